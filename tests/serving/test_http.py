"""A sessions behind HTTP: many clients, bodies of any kind, and what is refused."""

import contextlib
import json
import pickle
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_sessions import HOST, STEPS, ask, begin, play_over, served, serving, stubbed, switch
from switch_models import SHAPES, agents, specs

from atlas_ray.serving import Refused, bodies
from atlas_ray.switching.baselines import Always
from atlas_ray.switching.evaluate import evaluate_policy


@pytest.fixture
def port():
    """Of sessions with stubs."""
    with serving(stubbed(Always(0), max_sessions=6)[0]) as port:
        yield port


def test_many_clients_at_once_get_what_they_would_get_alone():
    policy, seeds = switch(2), range(12)
    expected = evaluate_policy(policy, agents(4), specs(STEPS), seeds, 2, record=True)
    with serving(served(policy, 2, max_sessions=6)) as port:
        with ThreadPoolExecutor(6) as threads:
            clients = list(threads.map(lambda seed: play_over(port, seed), seeds))
        about = {"policy": "it", "models": list(SHAPES), "budget": 2, "max_sessions": 6, "places": 6}
        assert ask(port, "GET", "/") == (200, about)
    for client, row in zip(clients, expected, strict=True):
        assert client.actions == [step["action"] for step in row["episode"]["steps"]]
        assert client.called_at == row["called_at"]


def test_what_http_refuses():
    with serving(served(Always(0), max_sessions=1)) as port:
        assert ask(port, "GET", "/episodes/none")[0] == 404
        plain = {"Content-Type": "text/plain"}
        body = json.dumps({"instruction": "x"}).encode()
        assert ask(port, "POST", "/episodes", body, plain)[0] == 422, "what a page in a browser may send unasked"
        assert ask(port, "GET", "/", headers={"Host": "evil.example"})[0] == 400, "a page that leads its own name here"
        status, begun = ask(port, "POST", "/episodes", {"instruction": "x"})
        assert (status, begun["max_steps"], begun["calls_left"]) == (201, 100, None)
        assert ask(port, "POST", "/episodes", {"instruction": "x"}) == (
            503,
            {"detail": "all 1 sessions are taken: end one, or serve with more --max-sessions"},
        )
        assert ask(port, "POST", f"/episodes/{begun['id']}/act", {"observation": "x"})[0] == 422


# --- bodies ---

LONG = "x" * 100_001
TEXTS = {
    "NaN": ('{"instruction":"a","max_steps":NaN}', ["max_steps"]),
    "infinity": ('{"instruction":"a","max_steps":-Infinity}', ["max_steps"]),
    "1e400": ('{"instruction":"a","max_steps":1e400}', ["max_steps"]),
    "half a pair": (r'{"instruction":"\ud83d"}', ["instruction"]),
    "half a pair for a field": (r'{"instruction":"a","\ud800":1}', ["?"]),
    "NaN for a text": ('{"instruction":NaN}', ["instruction"]),
    "NaN in an unknown field": ('{"instruction":"a","b":{"c":[NaN]}}', ["b"]),
    "an unknown field": ('{"instruction":"a","budget":9}', ["budget"]),
    "a long unknown field": ('{"instruction":"a","%s":9}' % ("y" * 5000), ["y" * 60 + "..."]),
    "a number for a text": ('{"instruction":3}', ["instruction"]),
    "nothing": ('{"instruction":null}', ["instruction"]),
    "missing": ("{}", ["instruction"]),
    "too long": (json.dumps({"instruction": LONG}), ["instruction"]),
    "no steps": ('{"instruction":"a","max_steps":0}', ["max_steps"]),
    "fewer than no steps": ('{"instruction":"a","max_steps":-5}', ["max_steps"]),
    "too many steps": ('{"instruction":"a","max_steps":10001}', ["max_steps"]),
    "digits without end": ('{"instruction":"a","max_steps":%s}' % ("9" * 10_000), ["max_steps"]),
    "a truth": ('{"instruction":"a","max_steps":true}', ["max_steps"]),
    "text for a number": ('{"instruction":"a","max_steps":"20"}', ["max_steps"]),
    "a fraction": ('{"instruction":"a","max_steps":2.5}', ["max_steps"]),
    "twice": ('{"instruction":"a","instruction":"b"}', ["instruction"]),
    "twice within": ('{"instruction":"a","b":{"c":1,"c":2}}', ["c"]),
    "a list": ("[1]", []),
    "a text": ('"instruction"', []),
    "half": ('{"instruction":"a', []),
    "behind": ('{"instruction":"a"} and more', []),
    "empty": ("", []),
    "deep": ("[" * 200_000, []),
    "deep objects": ('{"a":' * 100_000, []),
    "bytes": (b"\xff\xfe\xfa", []),
    "Latin-1": ('{"instruction":"\xe9"}'.encode("latin-1"), []),
}


def test_refusals_cross_between_processes():
    for error in (Refused("no", 409), Refused("is blank", 422, ("actions", 1)), bodies.BadBody([{"msg": "no"}])):
        twin = pickle.loads(pickle.dumps(error))
        assert (type(twin), str(twin), twin.status, twin.where) == (type(error), str(error), error.status, error.where)


@pytest.fixture(scope="module")
def one():
    """A port that is served for all bodies."""
    with serving(stubbed(Always(0), max_sessions=3)[0]) as port:
        yield port


@pytest.mark.parametrize(("body", "field"), TEXTS.values(), ids=list(TEXTS))
def test_a_bad_body_is_422_that_names_the_field_and_says_nothing_of_its_own(one, body, field):
    sent = body if isinstance(body, bytes) else body.encode()
    status, said = ask(one, "POST", "/episodes", sent)
    assert status == 422, said
    assert said["detail"][0]["loc"] == ["body", *field]
    assert len(json.dumps(said)) < 1000
    assert not {"input", "ctx"} & {name for problem in said["detail"] for name in problem}
    assert ask(one, "GET", "/")[0] == 200


ACTS = {
    "half a pair": ({"observation": "\ud83d", "actions": ["go"]}, ["observation"]),
    "half a pair offered": ({"observation": "a", "actions": ["go", "\ud83d"]}, ["actions", 1]),
    "blank": ({"observation": "a", "actions": ["go", " \n"]}, ["actions", 1]),
    "no text": ({"observation": "a", "actions": ["go", None]}, ["actions", 1]),
    "no list": ({"observation": "a", "actions": "go"}, ["actions"]),
    "long": ({"observation": "a", "actions": ["x" * 1001]}, ["actions", 0]),
    "many": ({"observation": "a", "actions": ["x"] * 10_001}, ["actions"]),
    "none": ({"observation": "a"}, ["actions"]),
    "long observation": ({"observation": LONG, "actions": ["go"]}, ["observation"]),
    "all wrong": ({"observation": "a", "actions": [1] * 10_000}, ["actions", 0]),
    "below the first step": ({"observation": "a", "actions": ["go"], "step": -1}, ["step"]),
    "half a step": ({"observation": "a", "actions": ["go"], "step": 0.5}, ["step"]),
    "a text for a step": ({"observation": "a", "actions": ["go"], "step": "0"}, ["step"]),
}


@pytest.mark.parametrize(("body", "field"), ACTS.values(), ids=list(ACTS))
def test_a_bad_act_is_422_that_names_the_field_and_the_episode_goes_on(one, body, field):
    key = begin(one)
    status, said = ask(one, "POST", f"/episodes/{key}/act", body)
    assert status == 422, said
    assert said["detail"][0]["loc"] == ["body", *field]
    assert len(json.dumps(said)) < 2000
    assert ask(one, "POST", f"/episodes/{key}/act", {"observation": "a", "actions": ["go"], "step": 0})[0] == 200
    ask(one, "DELETE", f"/episodes/{key}")


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data", "json"])
def test_another_content_type_is_refused(one, kind):
    for body in (b'{"instruction":"a"}', b"\xff\xfe"):
        status, said = ask(one, "POST", "/episodes", body, {"Content-Type": kind})
        assert status == 422 and "application/json" in said["detail"][0]["msg"]


def test_json_by_other_names_is_read(one):
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.it+json"):
        status, begun = ask(one, "POST", "/episodes", {"instruction": "a"}, {"Content-Type": kind})
        assert status == 201
        ask(one, "DELETE", f"/episodes/{begun['id']}")


def test_other_methods_and_paths_are_refused(one):
    for method, path, status in (
        ("HEAD", "/", 405),
        ("OPTIONS", "/episodes", 405),
        ("PUT", "/episodes", 405),
        ("GET", "/episodes", 405),
        ("GET", "/episodes/x/act", 405),
        ("POST", "/nothing", 404),
        ("GET", "/episodes/" + "x" * 3000, 404),
        ("GET", "/episodes/%00%ff", 404),
        ("DELETE", "/episodes/..%2f..", 404),
        ("GET", "/docs", 404),
    ):
        assert ask(one, method, path)[0] == status, (method, path)
    act = {"observation": "a", "actions": ["go"]}
    assert ask(one, "POST", "/episodes/none/act", act) == (
        404,
        {"detail": "no episode of this id: it was ended, or idle for long and lost its place"},
    )


def test_the_schemas_tell_of_bodies(one):
    paths = ask(one, "GET", "/openapi.json")[1]["paths"]
    for path, fields in (
        ("/episodes", {"instruction", "max_steps"}),
        ("/episodes/{key}/act", {"observation", "actions", "step"}),
    ):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["properties"]) == fields


# --- sizes ---


def raw(port, data, then=b""):
    """The status that bytes on the wire are answered with."""
    with socket.create_connection((HOST, port), timeout=30) as line:
        line.sendall(data)
        with contextlib.suppress(OSError):
            line.sendall(then)
        answer = b""
        while chunk := line.recv(65536):
            answer += chunk
        return int(answer.split(b" ", 2)[1]), answer


BREAK = b"\r\n\r\n"
HEAD = b"POST /episodes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_ten_megabytes_are_413_and_not_sent_back(one):
    for body in (json.dumps({"instruction": "z" * 10_000_000}).encode(), b"z" * 10_000_000):
        status, said = ask(one, "POST", "/episodes", body)
        assert (status, said) == (413, {"detail": f"the body is larger than {bodies.LARGEST} bytes"})
    assert ask(one, "POST", "/episodes/none/act", b" " * (bodies.LARGEST + 1))[0] == 413
    assert ask(one, "POST", "/episodes", b" " * bodies.LARGEST)[0] == 422, "which is no JSON, but not too large"


def test_chunks_are_counted_too(one):
    chunk = b"10000\r\n" + b"z" * 65536 + b"\r\n"
    status, answer = raw(one, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk * 40 + b"0\r\n\r\n")
    assert status == 413 and b"zzz" not in answer
    good = b'{"instruction":"a"}'
    parts = b"".join(b"%x\r\n%s\r\n" % (1, bytes([c])) for c in good)
    status, answer = raw(one, HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n", parts + b"0\r\n\r\n")
    assert status == 201
    ask(one, "DELETE", f"/episodes/{json.loads(answer.partition(BREAK)[2])['id']}")


def test_a_body_without_end_is_cut_off(one, monkeypatch):
    monkeypatch.setattr(bodies, "READ_ON", 4 * 2**20)
    chunk = b"10000\r\n" + b"z" * 65536 + b"\r\n"
    with contextlib.suppress(ConnectionError):  # it does not wait for the rest
        assert raw(one, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk * 1000)[0] == 413
    assert raw(one, HEAD + b"Content-Length: 99999999999\r\n\r\n")[0] == 413
    assert raw(one, HEAD + b"Content-Length: 9000000\r\nExpect: 100-continue\r\n\r\n")[0] == 413
    assert ask(one, "GET", "/")[0] == 200


def test_a_body_that_does_not_come_is_408_and_others_are_answered(one, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_SECONDS", 1.0)
    with ThreadPoolExecutor(3) as threads:
        slow = [
            threads.submit(raw, one, HEAD + more)
            for more in (b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{")
        ]
        begun = time.monotonic()
        assert ask(one, "GET", "/")[0] == 200
        assert time.monotonic() - begun < 10
        assert [future.result()[0] for future in slow] == [408, 408]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-A: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 200_000 + b"\r\n",
        b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=["long", "many", "path", "no host", "two hosts", "below nothing", "two lengths", "TLS"],
)
def test_bad_headers_are_400(one, head):
    with contextlib.suppress(ConnectionError):  # the rest of what was sent was not read
        assert raw(one, head)[0] == 400
    assert ask(one, "GET", "/")[0] == 200


def test_what_is_on_its_way_when_the_server_ends_is_503():
    gate, at_work = threading.Event(), threading.Event()

    def slow(goals, actions):
        at_work.set()
        gate.wait(30)

    sessions, _ = stubbed(Always(0), does=slow)
    with ThreadPoolExecutor(2) as threads:
        with serving(sessions) as port:
            key = begin(port)
            act = threads.submit(ask, port, "POST", f"/episodes/{key}/act", {"observation": "a", "actions": ["go"]})
            body = threads.submit(raw, port, HEAD + b"Content-Length: 100\r\n\r\n{")
            assert at_work.wait(30)
            begun = time.monotonic()
        assert time.monotonic() - begun < 10
        gate.set()
        assert act.result() == (503, {"detail": "the server is ending"})
        assert body.result()[0] == 503


def test_one_clients_bad_act_costs_nobody_else_an_answer(port):
    keys = [begin(port, f"go {n}") for n in range(4)]
    bad = [{"observation": "a", "actions": [" "]}, {"observation": "a", "actions": ["x" * 900_000]}]
    with ThreadPoolExecutor(6) as threads:
        for step in range(5):
            good = {"observation": "a", "actions": ["go"], "step": step}
            sent = [(key, good) for key in keys[:2]] + list(zip(keys[2:], bad, strict=True))
            found = list(threads.map(lambda s: ask(port, "POST", f"/episodes/{s[0]}/act", s[1])[0], sent))
            assert found == [200, 200, 422, 422]
