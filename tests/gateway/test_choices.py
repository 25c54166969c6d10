"""Several answers to choose from: one step, one call, and a worst case of all of them."""

import json

import pytest
from gateway_parts import answer_of, ask, chat, recipe, said

from atlas_ray.gateway.budget import worst_case
from atlas_ray.gateway.requests import read_request
from atlas_ray.gateway.sse import StreamedAnswer
from atlas_ray.switching.spending import Usage


def request(**more):
    return read_request(json.dumps(chat("hi", **more)).encode(), {"content-type": "application/json"})


def several(body):
    """A model that gives as many answers as it is asked for."""
    words = [f"answer {n}" for n in range(body.get("n") or 1)]
    made = answer_of(body, {"role": "assistant", "content": words[0]}, 2 * len(words))
    made["choices"] = [{**made["choices"][0], "index": n, "message": {"content": w}} for n, w in enumerate(words)]
    return made


@pytest.mark.parametrize("context", [None, 300])
def test_the_worst_case_is_that_of_each(context):
    model = recipe("http://127.0.0.1:1/v1").gateway.models[1].model_copy(update={"context": context})
    one = worst_case(model, request(n=1, max_tokens=7))
    three = worst_case(model, request(n=3, max_tokens=7))
    assert three == Usage(3 * one.prompt, 21) and one.completion == 7


def chunk(index, text=None, reason=None, **more):
    choice = {"index": index, "delta": {"content": text} if text else {}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


def test_the_first_of_a_stream_is_read_and_the_last_is_waited_for():
    answer = StreamedAnswer(False, 2)
    for event in (chunk(1, "b"), chunk(0, "a"), chunk(1, "d"), chunk(0, "c"), chunk(1, reason="stop")):
        assert answer.take(event) == event
    assert not answer.finished and answer.message["content"] == "ac"
    answer.take(chunk(0, reason="length"))
    assert answer.finished


def test_they_come_through_as_one_step_and_one_call(upstream, serve):
    port, _ = serve(budget={"calls": 3, "tokens": 100_000})
    upstream.script = several
    _, headers, text = ask(port, chat("go", n=3))
    assert [c["message"]["content"] for c in json.loads(text)["choices"]] == ["answer 0", "answer 1", "answer 2"]
    assert headers["x-atlas-budget-left"].split()[0] == "calls=2" and upstream.requests[0]["n"] == 3
    _, after, text = ask(port, chat("go", "answer 2", "on"))
    assert after["x-atlas-session"] == headers["x-atlas-session"], "whichever it goes on with"
    assert said(text) == "answer 0"


def test_a_server_that_gives_fewer_is_told_of(upstream, serve):
    port, _ = serve()
    upstream.script = lambda body: several({**body, "n": 1})
    status, _, text = ask(port, chat("go", n=2))
    assert (status, json.loads(text)["error"]["code"]) == (502, "upstream_broken")
