"""In and out again: conversations of users come back word by word, marks with all that they say."""

import json

import pytest
from exchange_records import BUY, ODD, annotation, record, three_steps, write

from atlas_ray.data.exchange import (
    Options,
    export_agenttraj,
    export_messages,
    export_run,
    import_agenttraj,
    import_annotations,
    import_file,
    import_messages,
)
from atlas_ray.trajectory import Annotation, Step, read_annotations, read_trajectories, write_trajectories


def user(text, **more):
    return {"role": "user", "content": text, **more}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Tidy up."}
PLAIN = "Thought:\nb\n\nAction:\nclose"
CHATS = {
    "ours": [SYSTEM, user("A box."), says(PLAIN)],
    "no system message": [user("A box."), says(PLAIN)],
    "an empty one": [{"role": "system", "content": ""}, user("A box."), says(PLAIN)],
    "a developer's": [{"role": "developer", "content": "Tidy up."}, user("A box."), says(PLAIN)],
    "two of them": [SYSTEM, {"role": "system", "content": "Now."}, user("A box."), says(PLAIN)],
    "a last observation": [SYSTEM, user("A box."), says(PLAIN), user("It is closed.")],
    "two last observations": [SYSTEM, user("A box."), says(PLAIN), user("It is closed."), user("Bye.")],
    "a remark behind the end": [SYSTEM, user("A box."), says(PLAIN), user("reward = 0"), says("Pity.")],
    "an acknowledgement": [SYSTEM, user("Begin."), says("OK."), user("A box."), says(PLAIN)],
    "headings in Markdown": [SYSTEM, user("Observation: A box."), says("**Thought:** b\n**Action:** `close`")],
    "one line": [SYSTEM, user("A box."), says("Thought: b. Action: close\n")],
    "a remark": [SYSTEM, user("A box."), says("Thought: b\nAction: close\n\nI hope that it closes.")],
    "invented rounds": [SYSTEM, user("A box."), says("Action: close\nObservation: a\nAction: b"), user("c")],
    "thinking": [SYSTEM, user("A box."), says("<think>x</think>\nAction: close")],
    "reasoning beside": [SYSTEM, user("A box.", name="door"), says(PLAIN, reasoning_content="x")],
    "parts": [user([{"type": "text", "text": "A box."}]), says([{"type": "text", "text": PLAIN}])],
    "an example": [SYSTEM, user("Example: a"), says("Action: b"), user("Now your turn. A box."), says(PLAIN)],
    "odd texts": [user("\u2028 A\u00a0box.\r\n"), says("\ufeffThought: \u898b\nAction: close <|im_end|>")],
}


@pytest.mark.parametrize("reasoning", ["drop", "thought"])
@pytest.mark.parametrize("kind", CHATS)
def test_messages_come_back_word_by_word(tmp_path, kind, reasoning):
    path, run = write(tmp_path / "a.jsonl", {"messages": CHATS[kind]}), tmp_path / "run"
    items = import_messages(path, reasoning=reasoning)
    export_messages(tmp_path / "b.jsonl", items, flag="train")
    import_file(path, run, options=Options(reasoning=reasoning))
    path.unlink()
    export_run(run, None, "messages", "train", tmp_path / "c.jsonl")
    for name in ("b.jsonl", "c.jsonl"):
        messages = json.loads((tmp_path / name).read_text())["messages"]
        assert [m.pop("train") for m in messages].count(True) == 1
        assert messages == CHATS[kind]
        assert import_messages(tmp_path / name) == items
    export_run(run, None, "messages", "weight", tmp_path / "d.jsonl")
    messages = json.loads((tmp_path / "d.jsonl").read_text())["messages"]
    assert [(m["role"], m["content"]) for m in messages] == [(m["role"], m["content"]) for m in CHATS[kind]]
    assert all(set(m) <= {"role", "content", "weight"} for m in messages)


@pytest.mark.parametrize("kind", CHATS)
def test_messages_become_agenttraj_and_the_other_way_round(tmp_path, kind):
    items = import_messages(write(tmp_path / "a.jsonl", {"messages": CHATS[kind]}))
    export_agenttraj(tmp_path / "b.json", items)
    turns = json.loads((tmp_path / "b.json").read_text())[0]["conversations"]
    assert [t["from"] for t in turns[:2]] == ["human", "gpt"] and turns[0]["value"] == items[0].instruction
    assert import_agenttraj(tmp_path / "b.json") == items
    export_messages(tmp_path / "c.jsonl", import_agenttraj(tmp_path / "b.json"))
    assert import_messages(tmp_path / "c.jsonl") == items


SHARED = {
    "no acknowledgement": {"conversations": ODD[0]["conversations"][2:]},
    "a system turn": {"conversations": [{"from": "system", "value": "S."}, *record(BUY)["conversations"]]},
    "a system prompt beside": record(BUY) | {"system": "S."},
    "extra turns": {"conversations": [*record(BUY, last="x")["conversations"], {"from": "human", "value": "y"}]},
    "a key more": {"conversations": [{**t, "name": "n"} for t in record(BUY)["conversations"]]},
}


@pytest.mark.parametrize("kind", SHARED)
def test_conversations_come_back_word_by_word(tmp_path, kind):
    path, run = write(tmp_path / "a.jsonl", SHARED[kind]), tmp_path / "run"
    items = import_agenttraj(path)
    export_agenttraj(tmp_path / "b.jsonl", items)
    import_file(path, run)
    export_run(run, None, "agenttraj", None, tmp_path / "c.jsonl")
    for name in ("b.jsonl", "c.jsonl"):
        back = json.loads((tmp_path / name).read_text())
        turns = [{k: v for k, v in t.items() if k != "loss"} for t in back["conversations"]]
        assert turns == [{k: v for k, v in t.items() if k != "loss"} for t in SHARED[kind]["conversations"]]
        assert back.get("system") == SHARED[kind].get("system")
        assert import_agenttraj(tmp_path / name) == items


def test_a_changed_trajectory_is_written_anew(tmp_path):
    path = write(tmp_path / "a.jsonl", {"messages": CHATS["a last observation"]})
    (item,) = import_messages(path)
    changed = item.model_copy(update={"steps": (item.steps[0].model_copy(update={"action": "look"}),)})
    export_messages(tmp_path / "b.jsonl", [changed])
    messages = json.loads((tmp_path / "b.jsonl").read_text())["messages"]
    assert [m["content"] for m in messages] == ["Tidy up.", "A box.", "Thought:\nb\n\nAction:\nlook"]


def test_words_that_an_earlier_version_kept_still_count(tmp_path):
    path, run = (
        write(tmp_path / "a.json", record("ACTION: look", BUY, last="end", acknowledgement="Yes.")),
        tmp_path / "run",
    )
    import_file(path, run)
    old = {"id": "webshop_6", "turns": {"1": "Yes.", "3": "ACTION: look", "6": "end"}}
    (run / "imported-words.jsonl").write_text(json.dumps(old) + "\n")
    export_run(run, None, "agenttraj", None, tmp_path / "b.json")
    turns = [t["value"] for t in json.loads((tmp_path / "b.json").read_text())[0]["conversations"]]
    assert turns == [
        t["value"] for t in record("ACTION: look", BUY, last="end", acknowledgement="Yes.")["conversations"]
    ]


def test_who_acted_and_how_likely_come_back(tmp_path):
    steps = (
        Step(observation="a", action="b", actor="quick", probability=0.25),
        Step(observation="c", thought="d", action="e", actor="deepthink"),
    )
    items = [three_steps(steps=steps), three_steps(id="plain")]
    export_agenttraj(tmp_path / "a.json", items)
    export_messages(tmp_path / "b.jsonl", items)
    write_trajectories(tmp_path / "c.jsonl", items)
    assert import_agenttraj(tmp_path / "a.json") == import_messages(tmp_path / "b.jsonl") == items
    assert read_trajectories(tmp_path / "c.jsonl") == items
    assert set(json.loads((tmp_path / "c.jsonl").read_text().splitlines()[0])["steps"][1]) == {
        "observation", "thought", "action", "reward", "actor"
    }  # fmt: skip


def test_marks_keep_their_reasons_and_who_made_them(tmp_path):
    told = Annotation(
        trajectory_id=three_steps().id,
        selector="oracle",
        fraction=0.3,
        critical=(0, 2),
        categories={0: "plan creation", 2: "critical action"},
        reasons={2: "weil es so ist"},
        prompt_sha256="00",
        model="m",
    )
    export_agenttraj(tmp_path / "a.json", [three_steps()], [told])
    export_messages(tmp_path / "b.jsonl", [three_steps()], [told])
    assert import_annotations(tmp_path / "a.json") == import_annotations(tmp_path / "b.jsonl") == [told]
    import_file(tmp_path / "b.jsonl", tmp_path / "run")
    assert read_annotations(tmp_path / "run" / "annotations" / "oracle.jsonl") == [told]
    export_agenttraj(tmp_path / "c.json", [three_steps()], [annotation(three_steps().id, 1)])
    assert import_annotations(tmp_path / "c.json") == [annotation(three_steps().id, 1)]


def test_what_an_earlier_version_exported_is_read_as_it_was_meant(tmp_path):
    """Its reader took all lines behind the heading for the action, and listed what that did not say."""
    row = record("Thought:\nT\n\nAction:\nput\nthe box")
    row["atlas_ray"] = {
        k: getattr(three_steps(), k) for k in ("id", "env", "task", "seed", "score", "success", "source")
    }
    row["atlas_ray"] |= {"rewards": [0.5], "exact_steps": []}
    (item,) = import_agenttraj(write(tmp_path / "a.json", row))
    assert item.steps == (Step(observation="page 0", thought="T", action="put\nthe box", reward=0.5),)
