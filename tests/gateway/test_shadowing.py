"""QUICK is asked in DEEPTHINK's shadow: no client notices, no budget is exceeded, and the record says what it did."""

import json
import threading
import time

import pytest
from gateway_parts import answer_of, ask, chat, gateway, recipe, said
from pydantic import ValidationError

from atlas_ray.gateway.admission import Admitted
from atlas_ray.gateway.recording import Recorder
from atlas_ray.gateway.shadowing import acts_alike
from atlas_ray.rundir.files import read_json
from atlas_ray.switching.spending import Usage
from tests.gateway.test_sessions import Talks, request

PLACES = ["a wall", "a door", "a hall", "a wall"]


def moves(body):
    """The large model goes left, the small one only where it sees a wall."""
    last = body["messages"][-1]["content"]
    text = "left" if body["model"] == "large" or last == "a wall" else "right"
    return answer_of(body, {"role": "assistant", "content": text}, 1)


def play(port, name="one", **more):
    talk = []
    for place in PLACES:
        talk.append(place)
        status, _, text = ask(port, chat(*talk, **more), {"x-atlas-session": name})
        assert status == 200
        talk.append("left" if more.get("stream") else said(text))
    return talk


def shadows(record):
    (path,) = (record / "usage").iterdir()
    return [step["shadow"] for step in read_json(path)["steps"]]


@pytest.mark.parametrize("stream", [False, True])
def test_the_record_says_what_quick_would_have_done_and_all_is_paid_for(upstream, tmp_path, stream):
    upstream.script, record = moves, tmp_path / "record"
    made = recipe(upstream.url, record=str(record), shadow=1.0)
    with gateway(made, tmp_path) as (port, _):
        talk = play(port, stream=stream)
    assert talk[1::2] == ["left"] * 4, "the large model's answers"
    found = shadows(record)
    assert [(s["same"], s["action"]) for s in found] == [
        *((True, "left"), (False, "right"), (False, "right"), (True, "left"))
    ]
    (path,) = (record / "usage").iterdir()
    usage = read_json(path)
    assert [step["model"] for step in usage["steps"]] == ["large"] * 4 and usage["spent"]["calls"] == 4
    assert usage["spent"]["tokens"] == upstream.spent()[1]
    assert sum(s["prompt_tokens"] + s["completion_tokens"] for s in found) == upstream.spent(model="small")[1]
    (path,) = (record / "trajectories").iterdir()
    assert {step["actor"] for step in json.loads(path.read_text())["steps"]} == {"deepthink"}
    for model in ("small", "large"):
        asked = [body for body in upstream.requests if body["model"] == model]
        assert sorted(len(body["messages"]) for body in asked) == [1, 3, 5, 7]
        assert all(body.get("stream", False) == (stream and model == "large") for body in asked)


def test_no_client_waits_for_it_and_a_failure_says_nothing(upstream, tmp_path):
    upstream.script, record = moves, tmp_path / "record"
    upstream.chaos = lambda body: "hang" if body["model"] == "small" else None
    made = recipe(upstream.url, record=str(record), shadow=1.0)
    with gateway(made, tmp_path) as (port, answering):
        assert play(port)[1::2] == ["left"] * 4, "while the small model hangs"
        while sum(body["model"] == "small" for body in upstream.requests) < 4:
            time.sleep(0.01)
        upstream.release.set()
        while answering._tasks:
            time.sleep(0.01)
        _, _, page = ask(port, None, path="/metrics", method="GET")
    assert b'upstream_failures_total{model="small"} 4.0' in page
    assert shadows(record) == [None] * 4
    (path,) = (record / "usage").iterdir()
    assert read_json(path)["spent"]["tokens"] > upstream.spent()[1], "nobody knows what they took"


def test_no_budget_is_exceeded_by_it(upstream, tmp_path):
    """Many sessions at a time and a server that fails at random, by the server's own ledger."""
    upstream.script = moves
    turns = iter(range(10**6))
    upstream.chaos = lambda body: [None, None, None, 500, "no usage", "vanish", 429][next(turns) % 7]
    budget = {"tokens": 3000}
    made = recipe(upstream.url, record=str(tmp_path / "record"), shadow=0.7, budget=budget, daily={"usd": 0.2})
    with gateway(made, tmp_path) as (port, _):

        def talk(name):
            for n in range(12):
                # as the session is named, the goal may name it to the ledger
                ask(port, chat(f"goal {name}.", "left", f"place {n}"), {"x-atlas-session": name})

        threads = [threading.Thread(target=talk, args=(f"s{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    spent = [upstream.spent(f"goal s{n}.") for n in range(6)]
    assert all(0 < tokens <= budget["tokens"] for _, tokens, _ in spent)
    assert upstream.spent(model="small")[0] > 6 and upstream.spent()[2] <= 0.2 * 10**12


def test_without_room_in_the_budget_it_is_left_out(tmp_path):
    record = {"record": str(tmp_path / "record"), "shadow": 1.0}
    roomy, tight = (Talks(tmp_path / n, budget={"tokens": most}, **record) for n, most in (("a", 2000), ("b", 445)))
    for talks, fits in ((roomy, True), (tight, False)):
        admitted = talks.turn("go", text="a")
        asked = talks.admission.shadow(admitted, request(chat("go")), "local")
        assert (asked is not None) == fits
        spent, summed = talks.admission.spending(admitted.session)
        assert spent == summed and spent.calls == 1
        if asked is not None:
            talks.admission.return_unused(asked)
            assert talks.admission.spending(admitted.session)[0].tokens == 12
        talks.store.close()


def test_only_deepthinks_steps_are_drawn_and_by_their_share(tmp_path):
    talks = Talks(tmp_path, switch="random", share=0.5, record=str(tmp_path / "record"), shadow=0.3)
    drawn = {0: 0, 1: 0}
    number = {0: 0, 1: 0}
    for n in range(300):
        admitted = talks.turn(f"go {n}")
        number[admitted.number] += 1
        drawn[admitted.number] += talks.admission.shadow(admitted, request(chat(f"go {n}")), "local") is not None
    assert drawn[0] == 0 and 0.2 < drawn[1] / number[1] < 0.4
    talks.store.close()


def test_images_without_a_bound_are_not_asked_about_where_tokens_have_a_limit(tmp_path):
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}}]
    body = {"model": "londi", "messages": [{"role": "user", "content": picture}]}
    for limit, fits in (({}, True), ({"usd": 5.0}, False)):
        talks = Talks(tmp_path / str(fits), record=str(tmp_path / "record"), shadow=1.0, daily=limit)
        admitted = talks.turn("go")
        assert (talks.admission.shadow(admitted, request(body), "local") is not None) == fits
        talks.store.close()


def test_what_it_said_is_kept_once_and_goes_with_its_session(tmp_path):
    more = {"record": str(tmp_path / "record"), "record_content": False, "shadow": 1.0, "keep_days": 1}
    talks = Talks(tmp_path, **more)
    admitted = talks.turn("go")
    assert isinstance(admitted, Admitted)
    recorder = Recorder(talks.admission.settings, talks.store)
    for same in (False, True):  # the second by a gateway that was taken for dead
        talks.now += 1
        asked = talks.admission.shadow(admitted, request(chat("go")), "local")
        talks.admission.shadowed(asked, Usage(7, 1), {"content": "secret"}, same)
        recorder.write()
        (told,) = shadows(tmp_path / "record")
        assert told == {"same": same, "action": "", "prompt_tokens": 7, "completion_tokens": 1, "usd": "0"}
    assert talks.admission.spending(admitted.session)[0].tokens == 12 + 2 * 8
    talks.now += 2 * 86_400
    assert talks.admission.remove_sessions() == 1
    talks.store.close()


def test_an_answer_that_nobody_can_read_is_paid_for_and_says_nothing(upstream, tmp_path):
    def script(body):
        message = {"role": "assistant", "content": "left"}
        return answer_of(body, message | ({"tool_calls": ["f"]} if body["model"] == "small" else {}), 1)

    upstream.script, record = script, tmp_path / "record"
    with gateway(recipe(upstream.url, record=str(record), shadow=1.0), tmp_path) as (port, _):
        play(port)
    found = shadows(record)
    assert [(s["same"], s["action"]) for s in found] == [(None, "")] * 4
    (path,) = (record / "usage").iterdir()
    assert read_json(path)["spent"]["tokens"] == upstream.spent()[1]


def test_it_needs_a_record():
    with pytest.raises(ValidationError, match="shadow: what QUICK says goes to the record"):
        recipe("http://127.0.0.1:1/v1", shadow=0.1)


def calls(*made, content=None):
    named = [{"id": f"{n}", "function": {"name": name, "arguments": text}} for n, (name, text) in enumerate(made)]
    return {"content": content, "tool_calls": named}


@pytest.mark.parametrize(
    ("one", "other", "style", "alike"),
    [
        ("go left", "go left", "action", True),
        ("go left", " go left\n", "action", True),
        ("go left", "go right", "action", False),
        ("Thought: why\nAction: go left", "Thought: because\nAction: go left", "react", True),
        ("Thought: why\nAction: go left", "Thought: why\nAction: go right", "react", False),
        ("I look.\n```bash\nls\n```", "Let me see.\n```bash\nls\n```", "action", True),
        ("Sure.\nIt is three.", "Sure.\nIt is four.", "action", False),
        ("", "", "action", None),
        (None, "go", "action", None),
        (calls(("f", '{"a": 1, "b": [2]}')), calls(("f", '{"b":[2],"a":1}'), content="so"), "action", True),
        (calls(("f", '{"a": 1}')), calls(("f", '{"a": true}')), "action", False),
        (calls(("f", '{"a": 1}')), calls(("g", '{"a": 1}')), "action", False),
        (calls(("f", "{}")), calls(("f", "")), "action", True),
        (calls(("f", '{"a":')), calls(("f", '{"a": 1}')), "action", False),
        (calls(("f", "{}"), ("g", "{}")), calls(("f", "{}")), "action", False),
        (calls(("f", "{}")), "f()", "action", False),
        ({"tool_calls": ["f"]}, calls(("f", "{}")), "action", None),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}, calls(("f", "{}")), "action", None),
    ],
)
def test_messages_that_do_the_same(one, other, style, alike):
    pair = [
        one if isinstance(one, dict) else {"content": one},
        other if isinstance(other, dict) else {"content": other},
    ]
    assert acts_alike(*pair, style) is alike and acts_alike(*reversed(pair), style) is alike
