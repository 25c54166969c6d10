"""What stands before Ray Serve's HTTP, with other servers in Serve's place."""

import asyncio
import json
import sys

import pytest

from atlas_ray.errors import InputError
from atlas_ray.gateway import proxy
from atlas_ray.gateway.app import require_extra
from atlas_ray.gateway.limits import Guard


def told(app, path="/v1/chat/completions", kind="http", layer=proxy.Front, body=b"{}", **more):
    """What a client gets of an app behind a layer: status, headers, body."""
    scope = {"type": kind, "path": path, "method": "POST", "headers": [], "server": ("127.0.0.1", 1), **more}
    sent, asked = [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return asked.pop() if asked else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(layer(app)(scope, receive, send))
    if kind != "http":
        return sent
    assert [m["type"] for m in sent[1:]] == ["http.response.body"] * (len(sent) - 1)
    assert not sent[-1].get("more_body"), "an end"
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(m.get("body", b"") for m in sent[1:])


def saying(status, kind, *bodies, ends=True):
    async def app(scope, receive, send):
        if status:
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        for number, body in enumerate(bodies):
            more = number + 1 < len(bodies) or not ends
            await send({"type": "http.response.body", "body": body, "more_body": more})

    return app


def test_what_a_replica_says_goes_through():
    assert told(saying(200, b"application/json", b"{", b"}"))[2] == b"{}"
    error = b'{"error": {"code": "budget_exceeded"}}'
    assert told(saying(402, b"application/json", error))[::2] == (402, error)
    assert told(saying(200, b"text/event-stream", b"data: 1\n\n", b"data: [DONE]\n\n"))[2].endswith(b"[DONE]\n\n")
    assert told(saying(200, b"text/plain", b"success"), path="/-/healthz")[2] == b"success"


@pytest.mark.parametrize(
    ("app", "status", "reason"),
    [
        (saying(0, b""), 503, "replica_lost"),
        (saying(503, b"text/plain", b"no replicas of secret-name"), 503, "busy"),
        (saying(500, b"text/plain; charset=utf-8", b"Traceback"), 503, "busy"),
        (saying(404, b"text/plain", b"Path not found. Ping http://.../-/routes"), 404, None),
    ],
)
def test_what_serve_says_itself_is_an_error_object(app, status, reason):
    got, headers, text = told(app)
    assert (got, headers[b"content-type"]) == (status, b"application/json")
    error = json.loads(text)["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["code"] == reason
    assert not any(word in text for word in (b"secret", b"Traceback", b"routes"))


def test_a_stream_whose_replica_has_died_ends_with_an_error():
    status, _, text = told(saying(200, b"text/event-stream", b"data: 1\n\n", ends=False))
    first, last = text.decode().strip().split("\n\n")
    assert (status, first) == (200, "data: 1")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_lost"


def test_nothing_else_of_serve_is_reached():
    assert told(saying(200, b"application/json", b"{}"), path="/-/routes")[0] == 404
    assert told(saying(200, b"", b""), kind="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_without_tokens_only_this_machine_is_answered():
    def guarded(app):
        return Guard(app, (), ["127.0.0.1"])

    here, headers = saying(200, b"application/json", b"{}"), [(b"host", b"127.0.0.1:8008")]
    assert told(here, layer=guarded, headers=headers)[0] == 200
    assert told(here, layer=guarded, headers=headers, server=("10.0.0.5", 8008))[0] == 401
    assert told(here, layer=guarded, headers=[(b"host", b"evil.example")])[0] == 400


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    require_extra()
    with pytest.raises(InputError, match=r"atlas-ray\[gateway-ray\]' \(ray.serve is missing\)"):
        require_extra(ray=True)


def test_it_is_not_deployed_where_clients_would_have_no_limits(monkeypatch):
    monkeypatch.delenv(proxy.VARIABLE, raising=False)
    with pytest.raises(InputError, match="in which Ray starts") as error:
        proxy.require_layers()
    assert error.value.field == proxy.VARIABLE
    monkeypatch.setenv(proxy.VARIABLE, proxy.LAYERS)
    proxy.require_layers()
