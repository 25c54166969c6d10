"""A scripted upstream that keeps its own ledger, and gateways in front of two of them, for the tests of the gateway."""

import contextlib
import http.client
import io
import json
import random
import threading
import time
from http.server import ThreadingHTTPServer

import chat_server
import uvicorn

from atlas_ray.gateway.app import HOST, listen
from atlas_ray.gateway.limits import PatientProtocol
from atlas_ray.gateway.opening import open_gateway
from atlas_ray.gateway.routes import build
from atlas_ray.recipe.loading import Recipe

KEY = "sk-upstream-0123456789abcdef"
PRICES = {"price_prompt": 2.0, "price_completion": 10.0}


class Handler(chat_server.Handler):
    def do_POST(self):
        up = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = up.script(body)
        with up.lock:
            up.requests.append(body)
            up.headers.append(dict(self.headers))
            fault = up.faults.pop(0) if up.faults else None
            if fault is None and up.chaos is not None:
                fault = up.chaos(body)
            billed = fault not in (429, 400, "vanish")
            if billed:
                up.ledger.append((body, answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]))
        if up.pause:
            time.sleep(up.pause)
        if fault == "hang":
            up.release.wait(30)
        if fault in ("vanish", "bill and vanish", "hang"):
            self.close_connection = True
        elif isinstance(fault, int):
            self.reply(fault, json.dumps({"error": {"message": f"no, {KEY}", "type": "x", "code": "c"}}).encode())
        elif fault == "garbage":
            self.reply(200, b'{"choices": [{"message": NaN}]}')
        elif fault == "no usage":
            answer.pop("usage")
            self.answer(body, answer)
        elif fault == "twice":
            line, self.wfile = self.wfile, io.BytesIO()
            self.answer(body, answer)
            told, self.wfile = self.wfile.getvalue(), line
            line.write(told + told)
        elif fault == "half":
            self.half(body, answer)
        else:
            self.answer(body, answer)

    def reply(self, status, data, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, body, answer):
        if not body.get("stream"):
            self.reply(200, json.dumps(answer).encode())
            return
        self.start_stream()
        for event in stream_of(answer, (body.get("stream_options") or {}).get("include_usage")):
            self.piece(event)
            if self.server.step is not None:
                self.server.step.wait(10)
        self.piece(b"")

    def half(self, body, answer):
        if body.get("stream"):
            self.start_stream()
            self.piece(stream_of(answer, False)[0])
        else:
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def start_stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def piece(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def stream_of(answer, usage):
    about = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": answer["model"]}
    message, made = answer["choices"][0]["message"], []
    for word in (message.get("content") or "").split(" "):
        made.append({"index": 0, "delta": {"role": "assistant", "content": f"{word} "}, "finish_reason": None})
    made[-1]["delta"]["content"] = made[-1]["delta"]["content"][:-1]
    for n, call in enumerate(message.get("tool_calls") or ()):
        first = {"index": n, "id": call["id"], "type": "function", "function": {**call["function"], "arguments": ""}}
        made.append({"index": 0, "delta": {"tool_calls": [first]}, "finish_reason": None})
        for letter in call["function"]["arguments"]:
            more = {"index": n, "function": {"arguments": letter}}
            made.append({"index": 0, "delta": {"tool_calls": [more]}, "finish_reason": None})
    made.append({"index": 0, "delta": {}, "finish_reason": answer["choices"][0]["finish_reason"]})
    more = {"usage": None} if usage else {}
    chunks = [{**about, "choices": [choice], **more} for choice in made]
    if usage and "usage" in answer:
        chunks.append({**about, "choices": [], "usage": answer["usage"]})
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]


def tokens_of(body):
    """A tokenizer of a token for every third byte of what is said, and what a template puts around it."""
    said = json.dumps([body["messages"], body.get("tools")], ensure_ascii=False).encode()
    return len(said) // 3 + 8 * len(body["messages"])


def echo(body):
    """Says what it was asked last, within its limit."""
    limit = body.get("max_tokens") or body["max_completion_tokens"]
    last = body["messages"][-1].get("content")
    words = f"to {last if isinstance(last, str) else 'that'} I say yes".split()[:limit]
    return answer_of(body, {"role": "assistant", "content": " ".join(words), "refusal": None}, len(words))


def answer_of(body, message, written, reason="stop"):
    prompt = tokens_of(body)
    usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": {"content": []}}
    about = {"id": "c1", "object": "chat.completion", "created": 1, "model": f"real-{body['model']}"}
    return {**about, "choices": [choice], "usage": {**usage, "details": {"cached": 1}}, "unknown": {"kept": [1.5]}}


class Upstream(ThreadingHTTPServer):
    """``faults`` come first, one a request; ``chaos`` then makes them up. ``ledger``: what it would bill."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, script=echo):
        super().__init__((HOST, 0), Handler)
        self.script, self.faults, self.requests, self.headers, self.ledger = script, [], [], [], []
        self.chaos, self.pause, self.step, self.connections = None, 0.0, None, 0
        self.lock, self.release = threading.Lock(), threading.Event()
        self.url = f"http://{HOST}:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def kill(self):
        self.release.set()
        self.shutdown()
        self.server_close()

    def get_request(self):
        self.connections += 1
        return super().get_request()

    def handle_error(self, *_):
        pass

    def spent(self, who=None, model=None):
        """(requests, tokens, picodollars) that it would bill: of a session by its first user message, of a model."""
        with self.lock:
            rows = [
                row
                for row in self.ledger
                if (model is None or row[0]["model"] == model) and (who is None or who in goal(row[0]))
            ]
        money = sum(p * 2 * 10**6 + c * 10 * 10**6 for b, p, c in rows if b["model"] == "large")
        return len(rows), sum(p + c for _, p, c in rows), money


def goal(body):
    return next(m["content"] for m in body["messages"] if m["role"] == "user")


def recipe(url, **more):
    """Of a gateway in front of one server with two models."""
    model = {"base_url": url, "key_variable": "ATLAS_TEST_KEY", "timeout": 10.0, "retries": 1, "max_tokens": 50}
    table = {
        "models": [{"model": "small", **model}, {"model": "large", **model, **PRICES}],
        "switch": "deepthink",
        **more,
    }
    return Recipe.model_validate({"name": "g", "gateway": table})


@contextlib.contextmanager
def gateway(made, folder, tokens=()):
    """The port of a gateway, and its parts."""
    sock = listen(HOST, 0)
    with open_gateway(made, folder) as (answering, recorder):
        app = build(answering, recorder, tuple(tokens), [HOST, "localhost"])
        config = uvicorn.Config(app, http=PatientProtocol, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            yield sock.getsockname()[1], answering
        finally:
            server.should_exit = True
            thread.join(20)
            sock.close()


def ask(port, body, headers=(), path="/v1/chat/completions", method="POST"):
    """Status, headers and body of an answer."""
    line = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        line.request(method, path, data, {"Content-Type": "application/json", **dict(headers)})
        got = line.getresponse()
        text = got.read()
        return got.status, {k.lower(): v for k, v in got.headers.items()}, text
    finally:
        line.close()


def chat(*said, model="londi", **more):
    """A request: user and assistant in turn."""
    roles = ("user", "assistant")
    return {"model": model, "messages": [{"role": roles[n % 2], "content": s} for n, s in enumerate(said)], **more}


def said(text):
    return json.loads(text)["choices"][0]["message"]["content"]


def rng(*seeds):
    return random.Random(repr(seeds))
