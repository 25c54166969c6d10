"""What chat servers send with status 200, and what they refuse with: an answer, or none, and for which reason."""

import json
import pickle

import pytest
from chat_server import answer, status

from atlas_ray.engines.chat_answers import NoCompletionError, completion
from atlas_ray.engines.chat_endpoint import Completion
from atlas_ray.engines.http_transport import HttpResponse
from atlas_ray.errors import EndpointError


def ask(endpoint, text="hi", **kwargs):
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": text}]
    return endpoint.complete([talk], **{"max_tokens": 5, **kwargs})[0]


def read(body, limit=5, kind="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return completion(HttpResponse(200, {"content-type": kind}, data), limit, "max_tokens")


def choice(reason="stop", **message):
    return {"choices": [{"finish_reason": reason, "message": {"role": "assistant", **message}}]}


TEXT = {"type": "text", "text": "Action: go right"}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}


@pytest.mark.parametrize(
    ("message", "text", "thought"),
    [
        ({"content": "Action: go right"}, "Action: go right", None),
        ({"content": [TEXT]}, "Action: go right", None),
        ({"content": TEXT}, "Action: go right", None),
        ({"content": [THOUGHT, TEXT]}, "Action: go right", "hm"),
        ({"content": [{"type": "thinking", "thinking": "hm"}, TEXT]}, "Action: go right", "hm"),
        ({"content": [{"type": "reasoning", "text": "hm"}, TEXT]}, "Action: go right", "hm"),
        ({"content": [{"type": "text", "text": "Action:"}, {"type": "text", "text": " go right"}]}, None, None),
        ({"content": ["Action:", " go right"]}, None, None),
        ({"content": [{"type": "output_text", "text": {"value": "Action: go right"}}]}, "Action: go right", None),
        ({"content": [{"type": "reference", "reference_ids": [1]}, TEXT]}, "Action: go right", None),
        ({"content": "Action: go right", "reasoning_content": "hm"}, "Action: go right", "hm"),
        ({"content": "Action: go right", "reasoning": "hm"}, "Action: go right", "hm"),
        ({"content": "Action: go right", "reasoning": None, "refusal": None, "tool_calls": []}, None, None),
        ({"content": "", "reasoning_content": "Action: go left"}, "", "Action: go left"),
        ({"content": None}, "", None),
        ({"content": []}, "", None),
    ],
)
def test_the_text_of_a_message_is_what_the_model_meant_as_its_answer(message, text, thought):
    text = "Action: go right" if text is None else text
    assert read(choice(**message)) == Completion(text, None, None, "stop", thought)


@pytest.mark.parametrize(
    ("reason", "read_as"),
    [
        *(("stop", "stop"), ("STOP", "stop"), ("eos_token", "stop"), ("end_turn", "stop")),
        *(("length", "length"), ("MAX_TOKENS", "length"), ("model_length", "length")),
        *((None, None), ("own words", "own words")),
    ],
)
def test_why_an_answer_ends_is_read_in_every_servers_words(reason, read_as):
    assert read(choice(reason, content="x")).finish_reason == read_as


@pytest.mark.parametrize(
    ("body", "kind", "again", "words"),
    [
        # errors within an answer
        ({"error": {"message": "overloaded"}}, "error", True, "overloaded"),
        ({"error": "overloaded"}, "error", True, "overloaded"),
        ({"error": {"code": 502, "metadata": {"raw": "upstream gone"}}}, "error", True, "upstream gone"),
        ({"object": "error", "message": "overloaded", "code": 503}, "error", True, r"overloaded \(503\)"),
        ({"detail": "no such thing"}, "error", True, "no such thing"),
        ({**choice(content="x"), "error": {"message": "broken off"}}, "error", True, "broken off"),
        ({"choices": [{"error": {"code": 502, "message": "down"}}]}, "error", True, r"down \(502\)"),
        (
            {"choices": [{"finish_reason": "error", "error": {"message": "down"}, "message": {"content": ""}}]},
            *("error", True, "down"),
        ),
        (choice("error", content="half an an"), "error", True, "ended with 'error': half an an"),
        (choice("abort", content="half"), "error", True, "ended with 'abort'"),
        (choice("insufficient_system_resource", content=""), "error", True, "insufficient_system_resource"),
        (choice("network_error", content=""), "error", True, "network_error"),
        # no answers
        ({"choices": None, "note": "so"}, "error", True, "no choices: .*so"),
        ({"choices": []}, "error", True, "no choices"),
        ({"choices": [None]}, "error", True, "no choices"),
        ({"choices": "abc"}, "error", True, "no choices"),
        ({"choices": [{"finish_reason": "stop"}]}, "error", True, r"no choices\[0\].message"),
        (choice(content=3), "error", True, "no choices.*content"),
        (choice(content=[3]), "error", True, "no choices.*content"),
        (choice(None, content=""), "error", True, "empty and ended with None"),
        (choice("function_call_filter: MALFORMED_FUNCTION_CALL", content=""), "error", True, "MALFORMED"),
        (b"[]", "error", True, "no JSON object"),
        (b"", "error", True, "not JSON: it is empty"),
        (b'{"choices": [', "error", True, "not JSON"),
        (
            b"\n<!DOCTYPE html><html><style>p{}</style><h1>502 Bad&nbsp;Gateway</h1>",
            "error",
            True,
            "a web page.*502 Bad",
        ),
        (b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]\n', "error", True, "a stream of events"),
        (b': PROCESSING\n\ndata: {"error": {"message": "no credit", "code": 502}}\n', "error", True, "no credit"),
        (b'event: error\ndata: {"message": "gone"}\n\n', "error", True, "gone"),
        # nothing written at the limit
        (choice("length", content=None, reasoning_content="hm"), "empty", False, "max_tokens = 5: thinking used it up"),
        (choice("length", content=""), "empty", False, "max_tokens = 5: perhaps thinking"),
        (choice("MAX_TOKENS", content=" \n"), "empty", False, "max_tokens = 5"),
        (choice("length", content=[THOUGHT]), "empty", False, "max_tokens = 5: thinking"),
        (
            {**choice("length", content=""), "usage": {"completion_tokens_details": {"reasoning_tokens": 5}}},
            *("empty", False, "5: thinking"),
        ),
        (choice("length", content="<think>\nAction: go left\nno, wait"), "empty", False, "5: thinking used it up"),
        (choice("length", content="<think>\nso\n</think>\n\n"), "empty", False, "5: thinking used it up"),
        (choice("length", content="hm\n</think>\n"), "empty", False, "5: thinking used it up"),
        ({**choice("stop", content=""), "usage": {"completion_tokens": 5}}, "empty", False, "max_tokens = 5"),
        ({**choice(None, content=""), "usage": {"completion_tokens": 5}}, "empty", False, "max_tokens = 5"),
        (choice("model_context_window_exceeded", content=""), "context", False, "fills the model's context"),
        # filtered
        (choice("content_filter", content=""), "filtered", False, "filtered"),
        (choice("content_filter", content="Action: go"), "filtered", False, "filtered"),
        ({"choices": [{"finish_reason": "content_filter: PROHIBITED_CONTENT"}]}, "filtered", False, "PROHIBITED"),
        (choice("SAFETY", content=None), "filtered", False, "SAFETY"),
        (choice("sensitive", content=""), "filtered", False, "sensitive"),
        (choice(content=None, refusal="I cannot"), "filtered", False, "refused to answer: I cannot"),
        (choice(content=[{"type": "refusal", "refusal": "I cannot"}]), "filtered", False, "I cannot"),
        (
            choice("tool_calls", content=None, tool_calls=[{"function": {"name": "walk", "arguments": "{}"}}]),
            *("error", False, "calls the tool 'walk'"),
        ),
        (choice("function_call", content="", function_call={"name": "walk"}), "error", False, "the tool 'walk'"),
    ],
)
def test_an_answer_that_is_none(body, kind, again, words):
    with pytest.raises(NoCompletionError, match=words) as caught:
        read(body)
    assert (caught.value.kind, caught.value.retryable) == (kind, again)


def test_an_empty_answer_that_the_model_ended_is_one():
    assert read({**choice(content=""), "usage": {"completion_tokens": 1}}).text == ""
    assert read({**choice(content="", reasoning="hm"), "usage": {"completion_tokens": 4}}).finish_reason == "stop"


def test_thoughts_in_the_text_stay_there_where_more_is_said_or_the_model_ended():
    for reason, text in (("length", "<think>a</think>Act"), ("stop", "<think>a"), ("length", "[hm] go to the")):
        assert read(choice(reason, content=text)).text == text
    own = {"content-type": "application/json"}
    body = json.dumps(choice("length", content="<<a b")).encode()
    with pytest.raises(NoCompletionError, match="thinking used it up"):
        completion(HttpResponse(200, own, body), 5, "max_tokens", thinking=["<< >>"])


def test_an_error_that_says_nothing_stands_in_no_ones_way():
    for nothing in (None, "", {}, []):
        assert read({**choice(content="x"), "error": nothing}).text == "x"


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        ({"error": {"message": "overloaded"}}, "error", 200),
        (choice("error", content=""), "error", 200),
        ({"choices": None}, "error", 200),
        (b"data: {}\n\n", "error", 200),
        (b"<html>busy</html>", "error", 200),
        ({"error": {"message": "down", "code": "503"}}, "error", 503),
        ({"error": "down", "status": 503}, "error", 503),
        ({"choices": [{"error": {"message": "slow down", "code": 429}}]}, "error", 429),
    ],
)
def test_what_may_pass_is_asked_again_as_what_it_is(server, connect, body, kind, code):
    endpoint = connect()
    server.faults = [status(200, body)] * 2
    assert ask(endpoint).text == "hi"
    server.faults = [status(200, body)] * 3
    with pytest.raises(EndpointError, match="attempt 3 of 3") as caught:
        ask(endpoint)
    assert (caught.value.kind, caught.value.status) == (kind, code)
    assert (endpoint.usage.requests, endpoint.usage.retried, endpoint.usage.failed) == (6, 4, 1)


def test_answers_that_are_none_are_counted_where_they_are_paid_for(server, connect):
    usage = {"usage": {"prompt_tokens": 30, "completion_tokens": 5}}
    server.script = lambda _: choice("length", content="") | usage
    server.faults = [status(200, choice("error", content="") | usage)]
    endpoint = connect()
    with pytest.raises(EndpointError) as caught:
        ask(endpoint)
    assert pickle.loads(pickle.dumps(caught.value)).tokens == (60, 10)
    server.script = lambda _: answer("x")
    server.faults = [status(200, choice("error", content="") | usage)]
    ask(endpoint)
    assert (endpoint.usage.prompt_tokens, endpoint.usage.completion_tokens) == (60 + 30 + 10, 10 + 5 + 2)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (choice("length", content="", reasoning="hm"), "empty", "switch.models.1.max_tokens = 5: thinking"),
        (choice("content_filter", content=""), "filtered", "filtered"),
        (choice(content=None, refusal="no"), "filtered", "refused to answer: no"),
        ({"error": {"code": 400, "message": "maximum context length is 9"}}, "context", "switch.models.1.context"),
        ({"error": {"message": "Your input was flagged"}}, "filtered", "flagged"),
        ({"error": {"code": 402, "message": "Insufficient credits"}}, "refused", "credits"),
    ],
)
def test_what_cannot_pass_is_asked_once(server, connect, body, kind, words):
    endpoint = connect(where="switch.models.1")
    server.script = lambda _: body
    with pytest.raises(EndpointError, match=words) as caught:
        ask(endpoint)
    assert caught.value.kind == kind and "attempt" not in str(caught.value)
    assert (endpoint.usage.requests, endpoint.usage.failed) == (1, 1)
