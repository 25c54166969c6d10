"""The gateway over HTTP: OpenAI's client, raw requests, what goes through and what does not."""

import asyncio
import gc
import http.client
import json
import socket
import threading
import time

import pytest
from gateway_parts import HOST, KEY, answer_of, ask, chat, echo, said

from atlas_ray.gateway import limits
from atlas_ray.serving import bodies

openai = pytest.importorskip("openai", reason="needs the extra 'dev'")
JSON = {"Content-Type": "application/json"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def client(port, **more):
    return openai.OpenAI(base_url=f"http://{HOST}:{port}/v1", api_key="sk-client", max_retries=0, **more)


def calling(body):
    """A model that calls a tool, then speaks."""
    if body["messages"][-1]["role"] == "tool":
        return echo(body)
    call = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at": "é"}'}}
    return answer_of(body, {"role": "assistant", "content": None, "tool_calls": [call]}, 5, "tool_calls")


def test_the_openai_client_asks_and_streams(upstream, serve):
    port, _ = serve(budget={"calls": 3, "tokens": 100_000})
    ours = client(port)
    assert [m.id for m in ours.models.list()] == ["londi", "quick", "deepthink"]
    raw = ours.chat.completions.with_raw_response.create(**chat("hi"), logprobs=True, seed=3)
    made = raw.parse()
    assert made.choices[0].message.content == "to hi I say yes" and made.usage.completion_tokens == 5
    assert raw.headers["x-atlas-model"] == "large" and raw.headers["x-atlas-step"] == "0"
    assert raw.headers["x-atlas-budget-left"] == f"calls=2 tokens={100_000 - made.usage.total_tokens}"
    again = chat("hi", made.choices[0].message.content, "and now")
    parts = [c.choices[0].delta.content for c in ours.chat.completions.create(**again, stream=True) if c.choices]
    assert "".join(p or "" for p in parts) == "to and now I say yes"
    last = list(ours.chat.completions.create(**chat("new"), stream=True, stream_options={"include_usage": True}))[-1]
    assert last.usage.completion_tokens == 5 and not last.choices
    assert upstream.requests[0]["seed"] == 3 and upstream.requests[0]["logprobs"] is True


def test_the_openai_client_calls_tools_in_one_session(upstream, serve):
    port, _ = serve(budget={"calls": 9})
    upstream.script, ours, messages, ids = calling, client(port), chat("look around")["messages"], set()
    for stream in (False, True):
        talk = [*messages, {"role": "user", "content": f"stream {stream}"}]
        if stream:
            with ours.chat.completions.stream(model="londi", messages=talk, tools=[TOOL]) as events:
                message = events.get_final_completion().choices[0].message
        else:
            asked = ours.chat.completions.create(model="londi", messages=talk, tools=[TOOL], tool_choice="auto")
            message = asked.choices[0].message
        call = message.tool_calls[0]
        assert json.loads(call.function.arguments) == {"at": "é"}
        talk += [message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "a wall"}]
        raw = ours.chat.completions.with_raw_response.create(model="londi", messages=talk, tools=[TOOL])
        assert raw.parse().choices[0].message.content == "to a wall I say yes"
        assert raw.headers["x-atlas-step"] == "1"
        ids.add(raw.headers["x-atlas-session"])
    assert len(ids) == 2 and upstream.requests[-1]["tools"] == [TOOL]


def test_the_async_client_asks_many_things_at_once(upstream, serve):
    port, _ = serve()

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"http://{HOST}:{port}/v1", api_key="x") as ours:
            return await asyncio.gather(*(ours.chat.completions.create(**chat(f"hi {n}")) for n in range(16)))

    found = asyncio.run(all_of_them())
    assert [f.choices[0].message.content for f in found] == [f"to hi {n} I say yes" for n in range(16)]


def test_what_is_unknown_goes_through_both_ways_and_secrets_do_not(upstream, serve):
    port, _ = serve()
    body = chat(
        "hi", model="quick", future={"a": [1.5, None]}, response_format={"type": "json_object"}, temperature=0.3
    )
    status, headers, text = ask(port, body, {"Authorization": "Bearer sk-client", "X-Own": "1"})
    assert status == 200 and json.loads(text)["unknown"] == {"kept": [1.5]}
    sent, with_it = upstream.requests[0], upstream.headers[0]
    assert sent == {**body, "model": "small", "max_tokens": 50}
    assert with_it["Authorization"] == f"Bearer {KEY}" and "sk-client" not in str(with_it) and "X-Own" not in with_it
    assert KEY not in text.decode() + str(headers)


def test_a_recipe_says_how_a_model_is_asked(upstream, serve, monkeypatch):
    monkeypatch.setenv("ATLAS_OTHER", "other-secret")
    model = {"base_url": upstream.url, "model": "m", "key_variable": "", "headers": {"api-key": "$ATLAS_OTHER"}}
    model |= {"limit_field": "max_completion_tokens", "temperature": "unset", "extra": {"reasoning_effort": "low"}}
    port, _ = serve(models=[model, {**model, "temperature": 0.5}])
    ask(port, chat("a", model="quick", temperature=1, max_tokens=9, stream=True))
    ask(port, chat("b", model="deepthink", max_completion_tokens=10_000))
    one, two = upstream.requests
    assert "temperature" not in one and "max_tokens" not in one and one["max_completion_tokens"] == 9
    assert one["reasoning_effort"] == "low" and one["stream_options"] == {"include_usage": True}
    assert two["temperature"] == 0.5 and two["max_completion_tokens"] == 4096
    assert upstream.headers[0]["api-key"] == "other-secret" and "Authorization" not in upstream.headers[0]


def test_a_stream_comes_as_it_is_written(upstream, serve):
    port, _ = serve()
    upstream.step = threading.Semaphore(0)
    upstream.step.wait = lambda seconds: upstream.step.acquire(timeout=seconds)
    line = http.client.HTTPConnection(HOST, port, timeout=20)
    body = json.dumps(chat("hi", stream=True))
    line.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    got = line.getresponse()  # the upstream waits behind its first event
    assert got.headers["content-type"].startswith("text/event-stream")
    first = got.readline()
    assert b'"content": "to "' in first and len(upstream.ledger) == 1
    upstream.step.release(20)
    rest = got.read()
    assert rest.endswith(b"data: [DONE]\n\n") and b"usage" not in first + rest
    line.close()


def test_the_same_request_is_answered_once(upstream, serve):
    port, _ = serve(budget={"calls": 9})
    upstream.pause = 0.3
    answers, threads = [], []
    for _ in range(5):
        threads.append(threading.Thread(target=lambda: answers.append(ask(port, chat("hi", stream=True)))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    answers.append(ask(port, chat("hi", stream=True)))
    assert len({text for _, _, text in answers}) == 1 and len(upstream.ledger) == 1
    assert sum("x-atlas-repeated" in headers for _, headers, _ in answers) == 5
    assert ask(port, chat("hi", stream=True), {"Idempotency-Key": "2"})[0] == 200 and len(upstream.ledger) == 2


def test_the_same_request_to_two_gateways_of_one_store_is_answered_once(upstream, serve):
    (one, _), (two, _) = serve(budget={"calls": 9}), serve(budget={"calls": 9})
    upstream.pause = 0.5
    for stream in (False, True):
        before, answers = len(upstream.ledger), []
        threads = [
            threading.Thread(target=lambda to: answers.append(ask(to, chat("hi", stream=stream))), args=[port])
            for port in (one, two, two)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [status for status, _, _ in answers] == [200] * 3 and len({text for _, _, text in answers}) == 1
        assert sum("x-atlas-repeated" in headers for _, headers, _ in answers) == 2
        assert len(upstream.ledger) == before + 1


def test_who_hangs_up_finds_his_answer_when_he_comes_back(upstream, serve):
    port, _ = serve(budget={"calls": 9})
    upstream.pause = 0.5
    line = socket.create_connection((HOST, port))
    body = json.dumps(chat("hi")).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    line.sendall(head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    while not upstream.requests:
        time.sleep(0.01)
    line.close()
    status, headers, text = ask(port, chat("hi"))
    assert (status, said(text)) == (200, "to hi I say yes") and len(upstream.ledger) == 1
    assert headers["x-atlas-budget-left"] == "calls=8"


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [(400, 400, "c"), (429, 429, "c"), (500, 502, "upstream_error"), ("garbage", 502, "upstream_broken"),
     ("half", 502, "upstream_unreachable"), ("vanish", 502, "upstream_unreachable"), (401, 502, "upstream_error")],
)  # fmt: skip
def test_what_an_upstream_does_wrong_is_an_error_object(upstream, serve, monkeypatch, fault, status, reason):
    monkeypatch.setattr("atlas_ray.engines.retry.FIRST_BACKOFF", 0.01)
    port, _ = serve()
    upstream.faults = [fault] * 2
    got, _, text = ask(port, chat("hi"))
    error = json.loads(text)["error"]
    assert (got, error["code"]) == (status, reason) and error.keys() == {"message", "type", "param", "code"}
    assert KEY not in text.decode()
    upstream.faults = [] if fault in (400, 401) else [fault]
    assert ask(port, chat("hi"))[0] == 200, "the next attempt is another"


def test_streams_and_whole_answers_share_a_connection(upstream, serve):
    port, _ = serve()
    for n in range(6):
        status, _, text = ask(port, chat(f"hi {n}", stream=n != 3))
        assert status == 200 and (n == 3 or text.endswith(b"data: [DONE]\n\n"))
    assert upstream.connections == 1


def test_a_server_that_does_not_end_its_stream_holds_nobody_up(upstream, serve):
    port, _ = serve(budget={"calls": 3})
    events = threading.Semaphore(7)  # of eight, behind each of which it waits
    upstream.step = events
    events.wait = lambda _: events.acquire(timeout=60)
    line = http.client.HTTPConnection(HOST, port, timeout=20)
    line.request("POST", "/v1/chat/completions", json.dumps(chat("hi", stream=True)), JSON)
    assert line.getresponse().read().endswith(b"data: [DONE]\n\n")
    upstream.step = None
    events.release()
    assert ask(port, chat("hi", stream=True))[1]["x-atlas-repeated"] == "true", "it is settled"


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_answers_twice_answers_nobody_elses_request(upstream, serve, stream):
    port, _ = serve()
    upstream.faults = ["twice"]
    for n in range(3):
        assert f"hi{n} " in ask(port, chat(f"hi{n}", stream=stream))[2].decode()
    assert upstream.connections == 2, "the first is used no more"


def test_half_a_surrogate_pair_of_a_model_comes_through(upstream, serve, tmp_path):
    port, _ = serve(record=str(tmp_path / "record"))
    upstream.script = lambda body: answer_of(body, {"role": "assistant", "content": "x \ud800 \x00"}, 3)
    for body in (chat("hi"), chat("hi", stream=True)):
        status, _, text = ask(port, body)
        assert status == 200 and b"\\ud800" in text, text


def test_a_stream_that_breaks_off_says_so_and_keeps_its_reservation(upstream, serve):
    port, answering = serve(budget={"usd": 1.0})
    upstream.faults = ["half"]
    ours = client(port)
    with pytest.raises(openai.APIError, match="broke|reached"):
        list(ours.chat.completions.create(**chat("hi"), stream=True))
    session = ask(port, chat("hi", stream=True))[1]["x-atlas-session"]
    spent = asyncio.run(answering.call(answering.admission.spending, session))[0]
    assert spent.calls == 2 and spent.usd > upstream.spent()[2]


def test_usage_that_does_not_come_keeps_the_reservation(upstream, serve):
    port, _ = serve(budget={"tokens": 5000})
    upstream.faults = ["no usage"]
    left = ask(port, chat("hi"))[1]["x-atlas-budget-left"]
    assert int(left.partition("=")[2]) < 5000 - upstream.spent()[1]


def test_what_http_refuses(serve, monkeypatch):
    port, _ = serve()
    for path, method, status in (("/", "GET", 404), ("/v1/chat/completions", "GET", 405), ("/healthz", "GET", 200)):
        got, _, text = ask(port, None, path=path, method=method)
        assert got == status and (status == 200 or "error" in json.loads(text))
    status, _, text = ask(port, chat("hi"), {"Host": "evil.example"})  # a page that leads its own name here
    assert (status, json.loads(text)["error"]["code"]) == (400, "invalid_host")
    assert ask(port, chat("hi"), {"Content-Type": "text/plain"})[0] == 415, "what a page may send unasked"
    assert "access-control-allow-origin" not in ask(port, chat("hi"), {"Origin": "http://evil.example"})[1]
    assert ask(port, rb'{"model": "\ud83d"}')[0] == 400
    assert ask(port, b"x" * (17 * 2**20))[0] == 413
    status, _, text = ask(port, chat("hi", model="gpt"))
    assert status == 404 and json.loads(text)["error"]["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client(port).chat.completions.create(**chat("hi", model="gpt"))
    with pytest.raises(openai.APIStatusError) as error:
        client(port).chat.completions.create(**chat("hi", model="londi@tokens=1"))
    assert error.value.status_code == 402 and error.value.code == "budget_exceeded"
    assert b'atlas_gateway_requests_total{status="402"} 1.0' in ask(port, None, path="/metrics", method="GET")[2]


@pytest.mark.parametrize("head", [b"no HTTP\r\n\r\n", b"GET / HTTP/1.1\r\nX: %s\r\n" % (b"x" * 70_000)])
def test_what_is_no_http_gets_an_error_object_too(serve, head):
    with socket.create_connection((HOST, serve()[0]), timeout=20) as line:
        line.sendall(head)
        got = http.client.HTTPResponse(line)
        got.begin()
        assert got.status == 400 and json.loads(got.read())["error"]["code"] == "invalid_http"


def test_a_head_that_does_not_come_is_waited_for_no_longer(serve, monkeypatch):
    monkeypatch.setattr(limits, "HEADER_SECONDS", 0.3)
    port, _ = serve()
    for sent in (b"", b"POST /v1/chat/comp"):
        with socket.create_connection((HOST, port), timeout=20) as line:
            line.sendall(sent)
            assert line.recv(100) == b""
    assert ask(port, chat("hi"))[0] == 200


def test_a_body_that_does_not_come_is_408(serve, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    port, _ = serve()
    with socket.create_connection((HOST, port), timeout=20) as line:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        got = http.client.HTTPResponse(line)
        got.begin()
        assert got.status == 408 and json.loads(got.read())["error"]["code"] == "too_slow"


def test_who_does_not_take_his_answer_is_waited_for_no_longer(monkeypatch):
    monkeypatch.setattr(limits, "SEND_SECONDS", 0.01)

    async def says(scope, receive, send):
        await send({"type": "http.response.body", "body": b"x"})

    async def stalls(_):
        await asyncio.sleep(60)

    scope = {"type": "http", "path": "/", "headers": [(b"host", HOST.encode())], "server": (HOST, 1)}
    with pytest.raises(TimeoutError):
        asyncio.run(limits.Guard(says, (), [HOST])(scope, None, stalls))


def test_tokens_let_in_and_have_budgets_of_their_own(upstream, serve):
    tokens = ("first-token-of-16-and-more", "second-token-of-16-and-more")
    port, _ = serve(tokens=tokens, daily={"calls": 1})
    bearers = [{"Authorization": f"Bearer {token}"} for token in tokens]
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {tokens[0]}"}):
        status, _, text = ask(port, chat("hi"), headers)
        assert (status, json.loads(text)["error"]["code"]) == (401, "invalid_api_key")
    assert ask(port, None, path="/metrics", method="GET")[0] == 401
    assert ask(port, None, path="/healthz", method="GET")[0] == 200
    for headers in bearers:
        assert [ask(port, chat(t), headers)[1]["x-atlas-model"] for t in ("a", "b")] == ["large", "small"]
    assert not any(token in str(upstream.headers) for token in tokens)


def test_garbage_is_not_looked_for_in_what_was_imported_before(serve):
    serve()
    assert gc.get_freeze_count() > 10_000
