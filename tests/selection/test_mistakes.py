"""The selector `mistakes`: what the oracle is asked of every step, what it may answer, and what is kept of it."""

import json
import re

import chat_server
import oracle_script
import pytest
from oracle_script import INJECTIONS, RECORD, goal, trajectory

from atlas_ray import pipeline
from atlas_ray.cli import main
from atlas_ray.engines.chat_endpoint import Completion
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import recover_jsonl
from atlas_ray.selection.oracle import Oracle, OracleConfig, Unannotated
from atlas_ray.selection.oracle_prompt import prompt_sha256, shares, whole_prompt
from atlas_ray.selection.oracle_task import CRITICAL, LABELS
from atlas_ray.selection.reply_counts import replies_of
from atlas_ray.trajectory import Annotation, read_annotations, read_trajectories, write_annotations

NAMES = ("good", "unnecessary", "mistake", "recovery")


def span(body):
    """What a request asks: first and last step, whether sub-goals are wanted, and whether labels are."""
    text = body["messages"][1]["content"]
    first, last = map(int, re.match(r"Here are the steps (\d+) to (\d+) of", text).groups())
    task = text[RECORD.search(text).end() :]
    return first, last, 'First "plan"' in task, '"labels": each of the steps' in task


def label(step, name=None, reason=None):
    name = name or NAMES[step % 4]
    return {"step": step, "label": name, "reason": ("" if name == "good" else "It did.") if reason is None else reason}


def labelled(body, labels=None, **changed):
    """A good answer: the labels in turn, under a plan of one goal."""
    first, last, plan, wanted = span(body)
    made = {"plan": [goal(first, last)]} if plan else {}
    if wanted:
        made["labels"] = [label(i) for i in range(first, last + 1)] if labels is None else labels
    return json.dumps({**made, **changed})


class Scripted:
    """A writer that answers in this process."""

    model = "m"

    def __init__(self, script=labelled):
        self.script, self.conversations = script, []

    def complete(self, conversations, *, json_schema, **_):
        self.conversations += conversations
        self.schema = json_schema
        return [Completion(self.script({"messages": messages}), 100, 10, "stop") for messages in conversations]


def ask(script=labelled, config=None, item=None):
    backend = Scripted(script)
    oracle = Oracle(backend, config or OracleConfig(), task=LABELS)
    (outcome,) = oracle.annotate([item or trajectory(8)])
    return outcome, oracle, backend


def test_all_but_mistakes_and_unnecessary_steps_are_marked_and_every_label_is_kept(tmp_path):
    made, oracle, backend = ask()
    assert made == Annotation(
        trajectory_id="t",
        selector="mistakes",
        fraction=1.0,
        critical=(0, 3, 4, 7),
        categories={i: NAMES[i % 4] for i in range(8)},
        reasons={i: "It did." for i in (1, 2, 3, 5, 6, 7)},
        prompt_sha256=prompt_sha256(LABELS),
        model="m",
    )
    write_annotations(tmp_path / "a.jsonl", [made])
    assert read_annotations(tmp_path / "a.jsonl", [trajectory(8)]) == [made]
    ((system, user),) = backend.conversations
    assert system["content"] == LABELS.system and all(f'"{name}"' in LABELS.system for name in NAMES)
    assert "Mark at most" not in user["content"], "there is no cap"
    item = backend.schema["properties"]["labels"]["items"]
    assert item["properties"]["label"]["enum"] == list(NAMES) and item["required"] == ["step", "label", "reason"]
    assert prompt_sha256(LABELS) != prompt_sha256(CRITICAL)
    assert (oracle.usage.requests, oracle.usage.prompt_tokens, oracle.usage.annotated) == (1, 100, 1)


def test_a_trajectory_of_mistakes_only_marks_nothing():
    made, *_ = ask(lambda body: labelled(body, [label(i, "mistake") for i in range(8)]))
    assert made.critical == () and set(made.categories.values()) == {"mistake"}


ALL = [label(i) for i in range(8)]
HOSTILE = {
    "one left out": (lambda b: labelled(b, ALL[:5] + ALL[6:]), "missing step"),
    "none": (lambda b: labelled(b, []), "missing step"),
    "twice": (lambda b: labelled(b, [*ALL, label(3)]), "repeated step"),
    "two labels": (lambda b: labelled(b, [*ALL[:7], label(6, "good")]), "repeated step"),
    "counted from one": (lambda b: labelled(b, [label(i) for i in range(1, 9)]), "no such step"),
    "a category of the oracle": (lambda b: labelled(b, [label(0, "critical action"), *ALL[1:]]), "unknown category"),
    "no label at all": (lambda b: labelled(b, [{**ALL[0], "label": None}, *ALL[1:]]), "unknown category"),
    "a list for a label": (lambda b: labelled(b, [{**ALL[0], "label": ["good"]}, *ALL[1:]]), "unknown category"),
    "a mistake without a reason": (lambda b: labelled(b, [*ALL[:2], label(2, reason=" "), *ALL[3:]]), "bad text"),
    "a reason that is none": (lambda b: labelled(b, [label(0, reason=0), *ALL[1:]]), "wrong form"),
    "no reason": (lambda b: labelled(b, [{"step": 0, "label": "good"}, *ALL[1:]]), "wrong form"),
    "marks": (lambda b: labelled(b, critical=[]), "wrong form"),
    "text for a number": (lambda b: labelled(b).replace('"step": 1', '"step": "1"'), "wrong form"),
    "labels by name": (lambda b: labelled(b, dict.fromkeys(map(str, range(8)), "good")), "wrong form"),
    "gap in the plan": (lambda b: labelled(b, plan=[goal(0, 3), goal(5, 7)]), "bad plan"),
    "prose": (lambda b: f"Sure!\n{labelled(b)}", "not JSON"),
    "nothing": (lambda b: " ", "empty"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_that_is_none_is_asked_for_again_and_then_is_no_label(name):
    script, kind = HOSTILE[name]
    outcome, oracle, backend = ask(script)
    assert isinstance(outcome, Unannotated) and outcome.reason.startswith(f"{kind}: ")
    assert [len(messages) for messages in backend.conversations] == [2, 4, 4]
    assert oracle.usage.refused == {kind: 3} and oracle.usage.unannotated == {kind: 1}
    answers = iter([script, labelled])
    made, *_ = ask(lambda body: next(answers)(body))
    assert made.critical == (0, 3, 4, 7), "one good answer after a bad one is enough"


@pytest.mark.parametrize("text", INJECTIONS)
def test_what_a_trajectory_says_is_data_and_never_an_answer(text):
    item = trajectory(8, observation=text)
    outcome, _, backend = ask(lambda body: text, OracleConfig(max_reprompts=0), item)
    assert isinstance(outcome, Unannotated)
    ((system, user),) = backend.conversations
    (found,) = RECORD.finditer(user["content"])
    assert system["content"] == LABELS.system and user["content"].count(found[1]) == 2
    assert all(oracle_script.LINE.fullmatch(line) for line in found[2].split("\n"))
    assert span({"messages": [system, user]}) == (0, 7, True, True)


def test_it_is_told_how_the_episode_ended_and_a_critical_step_is_not():
    item = trajectory(8)
    heads, keys = {}, set()
    for success in (True, False, None):
        ended = item.model_copy(update={"success": success})
        prompt = whole_prompt(ended, 8, LABELS)
        heads[success] = prompt.messages("w")[1]["content"].split("\n")[0]
        keys.add(prompt.key("m", 0.0))
        assert whole_prompt(ended, 3).key("m", 0.0) == whole_prompt(item, 3).key("m", 0.0)
    assert heads[True].endswith("It reached its goal.") and heads[False].endswith("It did not reach its goal.")
    assert "Nobody says" in heads[None] and len(keys) == 3


@pytest.mark.parametrize("context", [3600, 6000])
def test_each_step_of_a_long_trajectory_is_labelled_in_one_window(context):
    long = trajectory(60, observation="You see a red ball and a grey key. " * 5)
    made, _, backend = ask(config=OracleConfig(context=context, max_tokens=1200), item=long)
    assert made.categories == {i: NAMES[i % 4] for i in range(60)}
    assert made.critical == tuple(i for i in range(60) if i % 4 in (0, 3))
    windows = [span({"messages": messages}) for messages in backend.conversations]
    asked = [i for first, last, _, wanted in windows if wanted for i in range(first, last + 1)]
    assert asked == list(range(60)) and sum(wanted for *_, wanted in windows) >= 5
    assert shares([12, 12, 3], 27, 12) == [12, 12, 3], "every step of a window"


# --- in a run ---


@pytest.fixture
def server():
    made = chat_server.ChatServer(labelled)
    yield made
    made.kill()


def asking(recipe, server, selectors=("mistakes", "random_mistakes", "non-critical_mistakes", "all"), **more):
    oracle = {"base_url": server.url, "model": "m", "key_variable": None, "retries": 0, "batch": 2, **more}
    select = {"selectors": list(selectors), "oracle": oracle}
    return Recipe.model_validate(recipe.model_dump() | {"select": select})


def annotated(run_dir, selector):
    trajectories = read_trajectories(run_dir / "trajectories" / "expert.jsonl")
    return {a.trajectory_id: a for a in read_annotations(run_dir / "annotations" / f"{selector}.jsonl", trajectories)}


def test_a_run_labels_asks_once_counts_and_has_its_controls(recipe, server, tmp_path, capsys, collected):
    own, run_dir = asking(recipe, server), tmp_path / "run"
    trajectories = collected(own, run_dir)
    assert main_estimate(own, tmp_path, run_dir, server) == 0
    assert "mistakes: 12 trajectories to ask about: 12 requests" in capsys.readouterr().out and not server.requests
    victim = trajectories[3].instruction
    fooled = {t.id for t in trajectories if t.instruction == victim}
    server.script = lambda body: "Sure!" if victim in body["messages"][1]["content"] else labelled(body)
    pipeline.run(own, run_dir, ("select", "report"))
    marks = annotated(run_dir, "mistakes")
    assert set(marks) == {t.id for t in trajectories} - fooled
    for name in ("random_mistakes", "non-critical_mistakes"):
        for control in annotated(run_dir, name).values():
            steps, own_marks = len(marks[control.trajectory_id].categories), marks[control.trajectory_id].critical
            left = steps - len(own_marks)
            assert len(control.critical) == min(len(own_marks), steps if name.startswith("random") else left)
    assert replies_of(run_dir) == {
        "mistakes": {"ok": 12 - len(fooled), "not valid": 3 * len(fooled), "asked again": 2 * len(fooled)}
    }
    events = recover_jsonl(run_dir / "events.jsonl")
    assert sorted(e["trajectory"] for e in events if e["event"] == "unannotated") == sorted(fooled)
    page = (run_dir / "report.html").read_text()
    assert "unnecessary" in page and "SRFT" in page
    asked = len(server.requests)
    for name in ("mistakes.jsonl", "scores/mistakes.jsonl"):
        (run_dir / "annotations" / name).unlink()
    server.script = lambda body: "Sure!"
    pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == asked + 3 * len(fooled), "what was answered well is in the cache"
    assert annotated(run_dir, "mistakes") == marks


def main_estimate(own, tmp_path, run_dir, server):
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\n[collect]\nlevels = { GoToLocal = 1 }\n[select]\nselectors = ["mistakes"]\n')
    options = ["--select.oracle.base_url", server.url, "--select.oracle.model", "m"]
    return main(["select", str(path), "--out", str(run_dir), "--estimate", *options])


def test_a_run_in_which_nothing_is_worth_learning_is_bad_input(recipe, server, tmp_path, collected):
    own, run_dir = asking(recipe, server, ["mistakes"]), tmp_path / "run"
    collected(own, run_dir)

    def script(body):
        first, last, *_ = span(body)
        return labelled(body, [label(i, "mistake") for i in range(first, last + 1)])

    server.script = script
    with pytest.raises(InputError, match="selector mistakes marked no step in any of 12") as caught:
        pipeline.run(own, run_dir, ("select",))
    assert (caught.value.exit_code, caught.value.code) == (2, "empty_selection")
    assert not (run_dir / "annotations" / "mistakes.jsonl").exists()


def test_both_selectors_of_the_oracle_keep_answers_of_their_own(recipe, server, tmp_path, collected):
    own, run_dir = asking(recipe, server, ["oracle", "mistakes", "union_oracle_mistakes"]), tmp_path / "run"
    collected(own, run_dir)
    server.script = lambda body: labelled(body) if span(body)[3] else oracle_script.good(body)
    pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 24
    assert {a.fraction for a in annotated(run_dir, "oracle").values()} == {0.3}
    assert {a.fraction for a in annotated(run_dir, "mistakes").values()} == {1.0}
    assert set(replies_of(run_dir)) == {"oracle", "mistakes"}
