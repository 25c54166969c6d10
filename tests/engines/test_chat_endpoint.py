"""A chat endpoint against a real server on this machine, with every fault that servers and networks have."""

import json
import logging
import pickle
import threading
import time
from email.utils import formatdate

import pytest
from chat_server import ChatServer, answer, drop, endless, hang, status, trickle, twice, vanish

from atlas_ray.engines import http_transport, retry
from atlas_ray.engines.chat_endpoint import ChatEndpoint, Completion
from atlas_ray.errors import AtlasError, EndpointError, InputError

KEY = "sk-secret-0123456789/abc"


@pytest.fixture
def server():
    made = ChatServer()
    yield made
    made.kill()


@pytest.fixture(autouse=True)
def rests(monkeypatch):
    """Pauses that were asked for; none is really made."""
    asked = []

    def rest(stop, seconds):
        if seconds > 0:
            asked.append(seconds)
        return stop.is_set()

    monkeypatch.setattr(retry, "sleep", rest)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return asked


@pytest.fixture
def connect(server):
    made = []

    def start(**kwargs):
        made.append(ChatEndpoint(kwargs.pop("base_url", server.url), "m", **kwargs))
        return made[-1]

    yield start
    for endpoint in made:
        endpoint.close()


def talk(text):
    return [{"role": "user", "content": text}]


def ask(endpoint, text="hi", **kwargs):
    return endpoint.complete([talk(text)], **{"max_tokens": 5, **kwargs})[0]


def counts(endpoint):
    usage = endpoint.usage
    return usage.requests, usage.retried, usage.failed


def test_a_completion_and_what_was_sent_for_it(server, connect):
    endpoint = connect(extra={"top_p": 0.5, "model": "never"})
    assert ask(endpoint) == Completion("hi", 10, 2, "stop")
    path, body, authorization = server.requests[0]
    assert (path, authorization) == ("/v1/chat/completions", None)
    assert body == {"model": "m", "messages": talk("hi"), "max_tokens": 5, "temperature": 0.0, "top_p": 0.5}
    assert counts(endpoint) == (1, 0, 0)
    assert (endpoint.usage.prompt_tokens, endpoint.usage.completion_tokens, endpoint.usage.uncounted) == (10, 2, 0)
    assert not endpoint.capabilities.scores


def test_every_option_reaches_the_server(server, connect):
    endpoint = connect(limit_field="max_completion_tokens")
    schema = {"type": "object"}
    ask(endpoint, temperature=1.0, seeds=[2**55 + 7], stop=["\n"], json_schema=schema)
    body = server.requests[0][1]
    assert (body["seed"], body["stop"], body["max_completion_tokens"]) == (7, ["\n"], 5)
    assert body["response_format"]["json_schema"] == {"name": "answer", "schema": schema, "strict": True}
    assert "max_tokens" not in body
    ask(endpoint, temperature=None)
    assert not {"temperature", "seed", "stop", "response_format"} & set(server.requests[1][1])
    ask(endpoint, seeds=[3])
    assert "seed" not in server.requests[2][1], "greedy: Mistral's servers refuse a seed"


def test_text_that_is_no_utf8_goes_out_and_comes_in_whole(server, connect):
    server.script = lambda body: {"choices": [{"message": {"content": body["messages"][0]["content"] + "\ud800"}}]}
    assert ask(connect(), "né\udc00\x00中").text == "né?\x00中�"


def test_answers_keep_their_order_whoever_is_first(server, connect):
    def slow(body):
        number = int(body["messages"][0]["content"])
        time.sleep(0.002 * (10 - number))
        return str(number)

    server.script = slow
    endpoint = connect(concurrency=5)
    made = endpoint.complete([talk(str(i)) for i in range(10)], max_tokens=1)
    assert [c.text for c in made] == [str(i) for i in range(10)]
    assert endpoint.complete([], max_tokens=1) == []


def test_no_more_requests_at_a_time_than_allowed_and_their_connections_are_kept(server, connect):
    gate = threading.Barrier(3)
    server.script = lambda body: str(gate.wait(10))  # passes only where three are there at a time
    endpoint = connect(concurrency=3)
    endpoint.complete([talk("a")] * 9, max_tokens=1)
    endpoint.complete([talk("a")] * 3, max_tokens=1)
    assert server.most == 3
    assert len(server.peers) == 3


def test_a_server_that_answers_twice_answers_no_other_request(server, connect):
    endpoint = connect(concurrency=1)
    server.faults = [twice]
    assert [ask(endpoint, text).text for text in ("a", "b", "c")] == ["one of two", "b", "c"]
    assert len(server.peers) == 2, "the first connection is used no more"


def test_several_threads_share_the_limit(server, connect):
    endpoint = connect(concurrency=2)
    server.script = lambda body: time.sleep(0.01) or "x"
    threads = [threading.Thread(target=endpoint.complete, args=([talk("a")] * 3,), kwargs={"max_tokens": 1})]
    threads += [threading.Thread(target=ask, args=(endpoint,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most <= 2
    assert endpoint.usage.requests == 6


def test_the_rate_spaces_requests():
    clock = [100.0]
    pace = retry.RateLimiter(4, lambda: clock[0])
    assert [pace.reserve() for _ in range(4)] == [0, 0.25, 0.5, 0.75]
    clock[0] += 0.5
    assert pace.reserve() == 0.5
    clock[0] += 60
    assert [pace.reserve(), pace.reserve()] == [0, 0.25], "a pause earns no burst"
    assert [retry.RateLimiter(None).reserve() for _ in range(3)] == [0, 0, 0]


def test_repetitions_keep_to_the_rate_too(server, connect, rests):
    endpoint = connect(rate=0.5, concurrency=1)
    endpoint._rate_limiter = retry.RateLimiter(0.5, lambda: 0.0)
    server.faults = [status(500)]
    endpoint.complete([talk("a"), talk("b")], max_tokens=1)
    assert [r for r in rests if r >= 2] == [2, 4]


@pytest.mark.parametrize(
    "fault",
    [
        *(status(n, b"busy") for n in (408, 409, 429, 500, 502, 503, 529)),
        drop,
        vanish,
        status(200, b"<html>"),
        status(200, b"[" * 100_000),
        status(200, b'{"choices": []}'),
        status(200, {"error": {"message": "overloaded"}}),
        status(200, {"choices": [{"message": {"content": 3}}]}),
        status(200, {"choices": [{"message": None}]}),
        status(200, b"[]"),
        status(204),
    ],
)
def test_what_may_pass_is_tried_again(server, connect, rests, fault):
    server.faults = [fault, fault]
    endpoint = connect(retries=2)
    assert ask(endpoint).text == "hi"
    assert counts(endpoint) == (3, 2, 0)
    assert 0.25 <= rests[0] <= 0.5 <= rests[1] <= 1
    server.faults = [fault] * 3
    with pytest.raises(EndpointError, match="attempt 3 of 3"):
        ask(endpoint)
    assert counts(endpoint) == (6, 4, 1)


def test_a_server_that_is_not_there(connect, server, rests):
    server.kill()
    with pytest.raises(EndpointError, match="ConnectionRefused") as caught:
        ask(connect(retries=3))
    assert caught.value.status is None
    assert len(rests) == 3


@pytest.mark.parametrize("fault", [hang, trickle, endless])
def test_a_server_that_hangs_is_a_timeout(server, connect, fault):
    server.faults = [fault, fault]
    endpoint = connect(retries=1, timeout=0.2)
    with pytest.raises(EndpointError, match=r"no answer within 0.2 s \(attempt 2 of 2\)"):
        ask(endpoint)
    assert ask(endpoint).text == "hi"


def test_the_deadline_ends_it_before_the_retries_do(server, connect, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(retry, "now", lambda: clock[0])
    monkeypatch.setattr(retry, "sleep", lambda stop, seconds: clock.__setitem__(0, clock[0] + seconds))
    server.faults = [status(503)] * 50
    endpoint = connect(retries=40, deadline=20)
    with pytest.raises(EndpointError, match="another would end after the deadline of 20 s"):
        ask(endpoint)
    assert clock[0] < 20
    assert 4 < endpoint.usage.requests < 15


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ([("Retry-After", "7")], 7, 7.5),
        ([("Retry-After", "86400")], 60, 60.5),
        ([("retry-after-ms", "1500"), ("Retry-After", "9")], 1.5, 2),
        ([("Retry-After", "-5")], 0, 0.5),
        ([("Retry-After", "nan")], 0, 0.5),
        ([("Retry-After", "soon")], 0, 0.5),
        ([], 0, 0.5),
    ],
)
def test_the_pause_a_server_asks_for_is_made_within_bounds(server, connect, rests, headers, low, high):
    server.faults = [status(429, b"", headers)]
    ask(connect())
    assert len(rests) == 1
    assert low < rests[0] <= high


def test_the_pause_may_be_a_date():
    assert 25 < retry.retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}) <= 31
    assert retry.retry_after({"retry-after": formatdate(0, usegmt=True)}) == 0


@pytest.mark.parametrize(
    ("number", "value", "words"),
    [
        (400, {"error": "max_tokens is not supported"}, "HTTP 400: .*max_tokens is not supported"),
        (401, b"", "OPENAI_API_KEY is not set"),
        (403, b"no", "HTTP 403: no .*may not use the model m"),
        (404, b"", "usually ends with /v1"),
        (422, b"\x1b[31mred", r"HTTP 422: \[31mred$"),
        (301, b"", "redirects are not followed"),
        (429, {"error": {"code": "insufficient_quota"}}, "no quota left"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(server, connect, number, value, words):
    server.faults = [status(number, value)]
    endpoint = connect()
    with pytest.raises(EndpointError, match=words) as caught:
        ask(endpoint)
    assert caught.value.status == number
    assert counts(endpoint) == (1, 0, 1)
    assert ask(endpoint).text == "hi"


def test_a_huge_answer_is_refused_and_a_huge_refusal_is_cut(server, connect, monkeypatch):
    monkeypatch.setattr(http_transport, "LARGEST_ANSWER", 1000)
    monkeypatch.setattr(http_transport, "LARGEST_REFUSAL", 1000)
    endpoint = connect()
    with pytest.raises(EndpointError, match="longer than 1000 bytes"):
        ask(endpoint, "x" * 2000)
    assert counts(endpoint) == (1, 0, 1)
    server.faults = [status(400, b"y" * 5000)]
    with pytest.raises(EndpointError, match=f"HTTP 400: {'y' * 200}[.]{{3}}$"):
        ask(endpoint)
    assert ask(endpoint).text == "hi"


def test_one_failure_ends_a_batch_or_takes_its_place(server, connect):
    server.script = lambda body: (
        "fine" if body["messages"][0]["content"] == "good" else {"choices": [], "why": "a bad one"}
    )
    talks = [talk("good"), talk("bad"), talk("good"), talk("good")]
    each = connect(concurrency=1, retries=1).complete(talks, max_tokens=1, return_exceptions=True)
    assert [type(e) for e in each] == [Completion, EndpointError, Completion, Completion]
    server.requests.clear()
    endpoint = connect(concurrency=1, retries=1)
    with pytest.raises(EndpointError, match="a bad one"):
        endpoint.complete(talks, max_tokens=1)
    assert len(server.requests) == 3, "the two behind it were not sent"


def test_a_refused_key_is_asked_once(server, connect):
    server.faults = [status(401)] * 9
    endpoint = connect(concurrency=1)
    with pytest.warns(DeprecationWarning, match="return_exceptions"):
        each = endpoint.complete_each([talk("a")] * 9, max_tokens=1)  # the old name
    assert {e.status for e in each} == {401}
    assert len(server.requests) == 1


@pytest.mark.parametrize("number", [400, 401, 403, 404, 429, 500])
def test_the_key_is_sent_and_shown_nowhere(server, connect, monkeypatch, caplog, number):
    monkeypatch.setenv("OTHER_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    server.faults = [status(number, {"error": f"Incorrect API key provided: {KEY}, Bearer {KEY}"})] * 2
    endpoint = connect(key_variable="OTHER_KEY", retries=1)
    with pytest.raises(EndpointError) as caught:
        ask(endpoint)
    assert server.requests[0][2] == f"Bearer {KEY}"
    server.faults = [status(200, f"no JSON {KEY}".encode()), status(200, {"choices": KEY})]
    with pytest.raises(EndpointError) as broken:
        ask(endpoint)
    shown = [repr(endpoint), str(vars(endpoint)), caplog.text, repr(endpoint.usage)]
    for error in (caught.value, broken.value):
        while error is not None:
            shown += [str(error), repr(error), str(error.args)]
            error = error.__context__
    assert not any("secret" in text for text in shown)
    if number == 401:
        assert "the key in the environment variable OTHER_KEY is refused" in str(caught.value)
    assert ("again in" in caplog.text) == (number in (429, 500)) or "not JSON" in caplog.text


@pytest.mark.parametrize("bad", ["two words", "line\nbreak: x", "schlüssel"])
def test_a_key_that_is_none_is_refused_without_being_shown(connect, monkeypatch, bad):
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    with pytest.raises(InputError, match="OPENAI_API_KEY holds no key") as caught:
        connect()
    assert bad not in str(caught.value)


def test_a_key_travels_unencrypted_only_where_it_is_near(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for url in ("http://localhost:1", "http://[::1]:1/v1", "http://10.1.2.3", "http://192.168.0.9/v1", "https://a.b"):
        ChatEndpoint(url, "m").close()
    far = ("http://example.com", "http://8.8.8.8", "http://[::ffff:8.8.8.8]", "http://169.254.169.254", "http://vllm")
    for url in far:
        with pytest.raises(InputError, match="unencrypted: use https, or key_variable=None") as caught:
            ChatEndpoint(url, "m")
        assert KEY not in str(caught.value)
        ChatEndpoint(url, "m", key_variable=None).close()
    endpoint = ChatEndpoint("http://example.com", "m", key_variable="LATER")
    monkeypatch.setenv("LATER", KEY)
    with pytest.raises(InputError, match="unencrypted"):
        ask(endpoint)
    assert endpoint.usage.requests == 0


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.com", "ftp://a", "http://", "http://a?b=1", "http://a#b", "http://a:x", "http://u:hidden@a"),
        *("http://a b", "http://a/b c", "http://a..b", "http://a/\nHost: x", "file:///etc/passwd", "http://[::1"),
    ],
)
def test_a_base_url_that_is_none_is_refused(url):
    with pytest.raises(InputError) as caught:
        ChatEndpoint(url, "m")
    assert caught.value.field == "base_url"
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"rate": 0}, {"retries": -1}, {"concurrency": 0}, {"deadline": -1}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError) as caught:
        ChatEndpoint("https://a", "m", **wrong)
    assert caught.value.field == next(iter(wrong))


def test_counts_that_are_missing_or_wrong_are_not_counted(server, connect):
    endpoint = connect()
    for usage in (None, ("3", None), (-1, True)):
        server.script = lambda body, usage=usage: answer("x", "length", usage)
        assert ask(endpoint) == Completion("x", None, None, "length")
    assert endpoint.usage.uncounted == 3


def test_an_idle_connection_is_not_trusted_for_long(server, connect, monkeypatch):
    endpoint = connect()
    ask(endpoint)
    ask(endpoint)
    assert len(server.peers) == 1
    monkeypatch.setattr(http_transport, "IDLE", -1.0)
    endpoint = connect()
    ask(endpoint)
    ask(endpoint)
    assert len(server.peers) == 3


@pytest.mark.parametrize("url", ["http://[::1]/v1", "https://a.b/v1/"])
def test_an_address_without_a_port(url):
    client = http_transport.HttpClient(url, "/x")
    assert client.where == f"POST {url.rstrip('/')}/x"
    assert str(client._url) == f"{url.rstrip('/')}/x"


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(EndpointError("no", 400, "filtered")))
    assert (str(error), error.status, error.kind) == ("no", 400, "filtered")
    assert isinstance(error, AtlasError) and isinstance(error, RuntimeError)
    assert json.dumps(error.message)
