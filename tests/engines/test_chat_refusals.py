"""What chat servers refuse with: which part of a request they do not know, and what cannot pass."""

import json

import pytest
from chat_server import status

from atlas_ray.engines.chat_endpoint import Completion
from atlas_ray.engines.chat_refusals import judge, said_in
from atlas_ray.errors import EndpointError


def ask(endpoint, text="hi", **kwargs):
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": text}]
    return endpoint.complete([talk], **{"max_tokens": 5, **kwargs})[0]


CONTEXT = [
    {"error": {"message": "This model's maximum context length is 8192 tokens.", "code": "context_length_exceeded"}},
    {"error": {"message": "too big", "code": "context_length_exceeded", "param": "messages"}},
    {
        "object": "error",
        "message": "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens (2900 in "
        "the messages, 100 in the completion). Please reduce the length of the messages or completion.",
        "code": 400,
    },
    {"error": {"message": "The decoder prompt (length 50) is longer than the maximum model length of 20."}},
    {
        "error": {
            "message": "'max_tokens' or 'max_completion_tokens' is too large: 256. This model's maximum context "
            "length is 2048 tokens and your request has 1900 input tokens"
        }
    },
    {
        "error": {
            "code": 400,
            "message": "the request exceeds the available context size. try increasing the context size",
            "type": "exceed_context_size_error",
        }
    },
    {"error": "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it"},
    {"error": {"message": "input length exceeds the context length", "type": "api_error"}},
    {"error": {"message": "prompt too long; exceeded max context length by 12 tokens"}},
    {
        "error": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with "
        "context length of only 4096 tokens"
    },
    {"error": {"message": "prompt is too long: 200010 tokens > 200000 maximum", "type": "invalid_request_error"}},
    {"error": {"message": "input length and `max_tokens` exceed context limit: 199000 + 4096 > 200000"}},
    [
        {
            "error": {
                "code": 400,
                "message": "The input token count (12) exceeds the maximum number of tokens allowed (9).",
            }
        }
    ],
    {"message": "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"},
    {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 and 100"},
    {"error": "Input validation error: `inputs` must have less than 4095 tokens. Given: 6000"},
    {"message": "The input (5000 tokens) is longer than the model's context length (4096 tokens)."},
    {"message": "Input is too long for requested model."},
    {"error": {"message": "Your input exceeds the context window of this model. Please adjust your input."}},
    {"error": "Prompt is 11543 tokens but the model context window is 4096 tokens."},
    {"error": {"message": "Input tokens exceed the configured limit of 272000 tokens"}},
    {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}},
    {"error": {"message": "Invalid 'messages[1].content': string too long. Expected a string with maximum length 10"}},
    {"error": {"message": "the prompt exceeds the model's token limit"}},
]
FILTERED = [
    {"error": {"message": "filtered", "code": "content_filter"}},
    {"error": {"message": "…", "code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
    {
        "error": {
            "message": "Your prompt was flagged as potentially violating our usage policy.",
            "code": "invalid_prompt",
        }
    },
    {"error": {"message": "Input data may contain inappropriate content.", "code": "data_inspection_failed"}},
    {"error": {"message": "Provider said no", "metadata": {"reasons": ["moderation"]}}},
    {"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}},
]


@pytest.mark.parametrize("body", CONTEXT)
@pytest.mark.parametrize("number", [400, 422, 500])
def test_a_conversation_that_is_too_long_is_told_apart_in_every_servers_words(body, number):
    verdict = judge(number, said_in(json.dumps(body).encode()), set())
    assert (verdict.kind, verdict.retryable) == ("context", False)


@pytest.mark.parametrize("body", FILTERED)
@pytest.mark.parametrize("number", [400, 403])
def test_a_filter_is_told_apart_in_every_servers_words(body, number):
    verdict = judge(number, said_in(json.dumps(body).encode()), set())
    assert (verdict.kind, verdict.retryable) == ("filtered", False)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (429, "Rate limit reached: too many tokens, please wait before trying again"),
        (500, "context deadline exceeded"),
        (503, "the model is loading"),
        (500, "upstream moderation service is down"),
    ],
)
def test_what_only_sounds_like_it_is_tried_again(number, text):
    assert judge(number, said_in(json.dumps({"error": {"message": text}}).encode()), set()).retryable


def test_a_request_that_never_fits_the_rate_is_too_long():
    text = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 50000."
    assert judge(429, said_in(json.dumps({"error": {"message": text}}).encode()), set()).kind == "context"


@pytest.mark.parametrize(
    ("body", "kwargs", "words"),
    [
        ({"error": {"message": "'temperature' only 1", "param": "temperature"}}, {}, r'set x\.temperature = "unset"'),
        (
            {"error": {"message": "Unsupported value: 'temperature' does not support 0 with this model."}},
            *({}, r'set x\.temperature = "unset"'),
        ),
        (
            {
                "error": {
                    "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                    "'max_completion_tokens' instead.",
                    "param": "max_tokens",
                    "code": "unsupported_parameter",
                }
            },
            *({}, r'set x\.limit_field = "max_completion_tokens"'),
        ),
        (
            {
                "detail": [
                    {"loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are not permitted", "input": 5}
                ]
            },
            *({"limit_field": "max_completion_tokens"}, r'set x\.limit_field = "max_tokens"'),
        ),
        (
            {
                "error": {
                    "message": "max_tokens is too large: 100000. This model supports at most 16384 completion tokens"
                }
            },
            *({}, r"lower x\.max_tokens"),
        ),
        (
            {"error": {"message": "Unrecognized request argument supplied: reasoning_effort"}},
            *({"extra": {"reasoning_effort": "low"}}, r"look at x\.extra"),
        ),
        ({"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}, {}, r"look at x\.model"),
    ],
)
def test_a_refusal_names_the_field_to_set(server, connect, body, kwargs, words):
    endpoint = connect(where="x", **kwargs)
    server.faults = [status(400, body)]
    with pytest.raises(EndpointError, match=words) as caught:
        ask(endpoint)
    assert (caught.value.kind, caught.value.status, caught.value.for_all) == ("refused", 400, False)
    assert endpoint.usage.requests == 1


def test_a_refusal_that_repeats_the_request_is_not_searched():
    body = {"detail": [{"loc": ["body", "foo"], "msg": "bad", "input": "maximum context length temperature flagged"}]}
    verdict = judge(422, said_in(json.dumps(body).encode()), {"seed"})
    assert (verdict.kind, verdict.part, verdict.field) == ("refused", None, "")


SYSTEM = [
    {"message": "System role not supported", "type": "BadRequestError"},
    {"message": "Conversation roles must alternate user/assistant/user/assistant/..."},
    {"message": "After the optional system message, conversation roles must alternate user/assistant"},
    {"message": "Only user and assistant roles are supported!"},
    {"message": "Only user, assistant and tool roles are supported, got system. at row 189, column 164"},
    {"message": "Template error: invalid operation: Conversation roles must alternate (in <string>:1)"},
    {"message": "Developer instruction is not enabled for models/gemma"},
    {
        "message": "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "param": "messages[0].role",
    },
    {"message": 'messages: Unexpected role "system".'},
    {"message": "roles must alternate between user and assistant"},
    {"message": "This model does not support system messages"},
]
SCHEMA = [
    {"message": "no response_format here"},
    {"message": '{"error": {"message": "Invalid input", "param": "response_format"}}', "code": "invalid_request_error"},
    {"message": "response_format.type `json_schema` is unavailable now"},
    {
        "message": "Invalid parameter: 'response_format' of type 'json_schema' is not supported",
        "param": "response_format",
    },
    {"message": "This response_format type is unavailable now"},
    {"message": "This model does not support response format `json_schema`"},
    {"message": "failed to parse grammar"},
    {"message": "Structured outputs are not supported"},
]


@pytest.mark.parametrize("error", SYSTEM)
@pytest.mark.parametrize("number", [400, 500])
def test_without_a_system_role_the_endpoint_falls_back_by_itself_and_says_so(server, connect, caplog, error, number):
    def script(body):
        roles = [m["role"] for m in body["messages"]]
        return {"error": error} if "system" in roles else body["messages"][0]["content"]

    refused = status(number, {"error": error})
    endpoint = connect(concurrency=1)
    server.faults = [refused]
    server.script = script
    assert ask(endpoint, "a").text == "s\n\na"
    assert ask(endpoint, "b").text == "s\n\nb"
    assert endpoint.usage.requests == 3 and endpoint.usage.retried == 1 and endpoint.usage.failed == 0
    (note,) = endpoint.notes
    assert "takes no system message" in note and "send_system = false" in note and note in caplog.text
    server.faults = [status(400, {"error": error})]
    with pytest.raises(EndpointError) as caught:
        ask(endpoint)
    assert caught.value.kind == "refused", "there is nothing left to leave out"


@pytest.mark.parametrize("error", SCHEMA)
def test_without_a_json_schema_the_endpoint_falls_back_by_itself_and_says_so(server, connect, error):
    endpoint = connect(concurrency=1)
    server.faults = [status(400, {"error": error})]
    talks = [[{"role": "user", "content": str(i)}] for i in range(3)]
    made = endpoint.complete(talks, max_tokens=5, json_schema={"type": "object"})
    assert [c.text for c in made] == ["0", "1", "2"]
    assert ["response_format" in body for _, body, _ in server.requests] == [True, False, False, False]
    (note,) = endpoint.notes
    assert "takes no JSON schema" in note and "send_schema" in note


def test_a_seed_is_left_out_where_the_server_knows_none(server, connect):
    endpoint = connect(concurrency=1)
    fault = {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "type": "extra_forbidden"}]}
    server.faults = [status(422, fault)]
    assert ask(endpoint, temperature=1.0, seeds=[3]).text == "hi"
    assert ["seed" in body for _, body, _ in server.requests] == [True, False]
    server.requests.clear()
    assert ask(endpoint, temperature=1.0, seeds=[3]).text == "hi"
    assert "seed" not in server.requests[0][1] and len(server.requests) == 1


def test_a_server_that_knows_none_of_it_is_asked_without_all_of_it(server, connect):
    server.faults = [
        status(400, {"error": "System role not supported"}),
        status(400, {"error": "json_schema is not supported"}),
        status(400, {"error": "unknown field: seed"}),
    ]
    endpoint = connect(retries=0)
    assert ask(endpoint, "a", temperature=1.0, seeds=[3], json_schema={}).text == "s\n\na"
    assert len(endpoint.notes) == 3
    assert server.requests[-1][1].keys() == {"model", "messages", "max_tokens", "temperature"}


@pytest.mark.parametrize("number", [401, 402, 403, 404])
def test_what_all_others_would_get_too_is_asked_once_but_a_filter_is_not(server, connect, number):
    server.faults = [status(number, {"error": {"message": "no"}})] * 3
    endpoint = connect(concurrency=1)
    talks = [[{"role": "user", "content": str(i)}] for i in range(3)]
    assert all(e.for_all for e in endpoint.complete(talks, max_tokens=5, return_exceptions=True))
    assert len(server.requests) == 1
    server.faults = [status(403, {"error": {"message": "your input was flagged"}})]
    made = connect(concurrency=1).complete(talks, max_tokens=5, return_exceptions=True)
    assert [type(e) for e in made] == [EndpointError, Completion, Completion]
