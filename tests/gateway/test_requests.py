"""What is read of a request, and what is refused before anything is done."""

import json
import subprocess
import sys

import pytest
from gateway_parts import chat

from atlas_ray.gateway.replies import ApiError
from atlas_ray.gateway.requests import check_bounded, link, read_json, read_model, read_request
from atlas_ray.gateway.sse import BadStreamError, StreamedAnswer
from atlas_ray.switching.spending import Limits

JSON = {"content-type": "application/json"}


def request(body, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_request(json.dumps(body).encode(), {**JSON, **named})


BAD = {
    "NaN": b'{"model": "londi", "temperature": NaN}',
    "infinity": b'{"a": -Infinity}',
    "1e400": b'{"a": 1e400}',
    "half a pair": rb'{"a": "\ud83d"}',
    "half a pair for a name": rb'{"\ud83d": 1}',
    "twice": b'{"a": 1, "a": 2}',
    "a list": b"[1]",
    "half": b'{"a": ',
    "empty": b"",
    "deep": b"[" * 200_000,
    "Latin-1": '{"a": "\xe9"}'.encode("latin-1"),
    "digits without end": b'{"a": %s}' % (b"9" * 10_000),
}


@pytest.mark.parametrize("data", BAD.values(), ids=list(BAD))
def test_what_is_no_json_is_refused(data):
    with pytest.raises(ApiError) as error:
        read_json(data)
    assert (error.value.status, error.value.reason) == (400, "invalid_json")


FIELDS = [
    ({"model": 3}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": ["x"]}, "messages.0"),
    ({"messages": [{"role": 1}]}, "messages.0"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": 1}, "stream_options"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
]


@pytest.mark.parametrize(("more", "param"), FIELDS)
def test_a_field_that_is_wrong_is_named(more, param):
    with pytest.raises(ApiError) as error:
        request(chat("hi") | more)
    assert (error.value.status, error.value.param) == (400, param)


def test_other_content_types_and_bad_headers_are_refused():
    with pytest.raises(ApiError) as error:
        read_request(b"{}", {"content-type": "text/plain"})
    assert error.value.status == 415
    for headers in ({"x_atlas_session": "a\tb"}, {"idempotency_key": "x" * 201}):
        with pytest.raises(ApiError) as error:
            request(chat("hi"), **headers)
        assert error.value.reason == "invalid_header"


def test_models_name_a_policy_and_a_tighter_budget():
    assert read_model("londi") == ("londi", Limits())
    assert read_model("deepthink@calls=5,usd=0.20") == ("deepthink", Limits(5, None, 200_000_000_000))
    assert read_model("londi@calls=5@tokens=20000") == ("londi", Limits(5, 20_000))
    for name in ("londi@", "londi@calls=-1", "londi@calls=1.5", "londi@calls=1,calls=2", "londi@usd=NaN", "quick@x=1"):
        with pytest.raises(ApiError) as error:
            read_model(name)
        assert error.value.status == 400
    with pytest.raises(ApiError) as error:
        read_model("gpt-x")
    assert (error.value.status, error.value.reason) == (404, "model_not_found")


@pytest.mark.parametrize(
    "field", [{"prediction": {}}, {"service_tier": "priority"}, {"modalities": ["text", "audio"]}, {"audio": {}}]
)
def test_what_may_cost_more_than_tokens_say_is_refused_where_that_matters(field):
    with pytest.raises(ApiError, match="cost") as error:
        check_bounded(field)
    assert error.value.param == next(iter(field))
    check_bounded({"service_tier": "flex", "modalities": ["text"]})


def test_the_first_of_the_headers_names_the_session():
    headers = {"x_session_id": "c", "x_litellm_trace_id": "b", "x_atlas_session": "a"}
    for name, expected in (("x_atlas_session", "a"), ("x_litellm_trace_id", "b"), ("x_session_id", "c")):
        assert request(chat("hi"), **headers).session == expected
        del headers[name]
    assert request(chat("hi")).session is None


def test_goal_and_observation():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "find"}, {"type": "text", "text": "the ball"}]},
        {"role": "user", "content": "a door"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "1", "content": "it opens"},
        {"role": "user", "content": "and now"},
    ]
    made = request({"model": "londi", "messages": messages})
    assert (made.goal, made.observation) == ("find\nthe ball", "it opens\nand now")
    assert request({"model": "londi", "messages": messages[:3]}).observation == "a door"
    assert request({"model": "londi", "messages": messages[:2]}).observation == "find\nthe ball", "the goal is all"


def test_an_assistant_turn_is_known_again_as_clients_send_it_back():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    told = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [{**call, "index": 0}]}
    assert link("x", told) == link("x", {"role": "assistant", "content": "", "tool_calls": [call]})
    assert link("x", told) != link("x", {"role": "assistant", "content": "a"})
    user = {"role": "user", "content": "a"}
    assert link("x", user) != link("x", {**user, "name": "b"})
    chain = request(chat("a", "b", "c")).chain("k")
    assert chain[:2] == request(chat("a", "b")).chain("k") and chain[0] != request(chat("a")).chain("other")[0]
    assert chain[0] != request(chat("a", tools=[{"type": "function"}])).chain("k")[0]


def event(value):
    return b"data: " + json.dumps(value).encode() + b"\r\n\r\n"


def test_a_stream_tells_its_usage_to_those_only_who_asked():
    chunk = {"choices": [{"delta": {"content": "a"}, "finish_reason": None}], "usage": None}
    last = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    shown, hidden = StreamedAnswer(True), StreamedAnswer(False)
    assert [shown.take(event(e)) for e in (chunk, last)] == [event(chunk), event(last)]
    told = hidden.take(event(chunk))
    assert told is not None and b"usage" not in told and hidden.take(event(last)) is None
    assert shown.usage == hidden.usage == (3, 1)
    assert hidden.take(b": ping\n\n") == b": ping\n\n"
    assert hidden.message == {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "data", [b"data: {\n\n", b"data: []\n\n", event({"error": {"message": "x"}}), event({"choices": 1})]
)
def test_what_is_no_chunk_breaks_a_stream(data):
    with pytest.raises(BadStreamError):
        StreamedAnswer(False).take(data)


def test_a_gateway_in_front_of_servers_needs_no_torch():
    code = "import sys, atlas_ray.gateway.routes, atlas_ray.gateway.opening; print({'torch', 'ray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
