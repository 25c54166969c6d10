"""The gateway on Ray Serve: two replicas that share a store, of which one is killed under load."""

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import ray
import yaml
from gateway_parts import HOST, KEY, Upstream, ask, chat, recipe, said

from atlas_ray.errors import InputError
from tests.gateway.test_faults import CALLS, STATUSES, TOKENS, USD, check_ledger, spree

pytest.importorskip("mmh3", reason="Ray Serve: needs the extra 'gateway-ray'")
replicas = pytest.importorskip("atlas_ray.gateway.replicas", reason="Ray Serve: needs the extra 'gateway-ray'")

replicas._END_SECONDS = 120.0  # the next Serve begins in the same Ray, and must not be ended with this one
TWO = {"min_replicas": 2, "max_replicas": 2, "num_cpus": 0.1}
BUDGET = {"calls": CALLS, "tokens": TOKENS, "usd": USD}


def free_port():
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return sock.getsockname()[1]


def pids(deployment="gateway"):
    """Processes of the replicas of a deployment."""
    actors = ray._private.state.actors().values()
    return [a["Pid"] for a in actors if f"#{deployment}#" in (a["Name"] or "") and a["State"] == "ALIVE"]


class Served:
    """A gateway on Serve, as the fault suite wants it: ``kill`` ends one replica, and Serve starts another."""

    def __init__(self, port, upstream):
        self.port, self.upstream = port, upstream

    def kill(self):
        os.kill(pids()[0], signal.SIGKILL)

    def start(self):
        pass


@pytest.fixture(scope="module")
def served(ray_session, tmp_path_factory):
    os.environ["ATLAS_TEST_KEY"] = KEY
    upstream, port = Upstream(), free_port()
    model = {"base_url": upstream.url, "key_variable": "", "timeout": 5.0, "retries": 1, "max_tokens": 40}
    models = [{"model": "small", **model}, {"model": "large", **model, "price_prompt": 2.0, "price_completion": 10.0}]
    made = recipe(upstream.url, models=models, switch="random", share=0.6, budget=BUDGET, autoscaling=TWO)
    try:
        with replicas.deployed(made, tmp_path_factory.mktemp("served"), HOST, port):
            yield Served(port, upstream)
    finally:
        upstream.kill()


def test_a_stream_comes_through_serve_as_it_is_written(served):
    upstream = served.upstream
    upstream.step = threading.Semaphore(0)
    upstream.step.wait = lambda seconds: upstream.step.acquire(timeout=seconds)
    line = http.client.HTTPConnection(HOST, served.port, timeout=20)
    body = json.dumps(chat("hi", stream=True))
    line.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    got = line.getresponse()  # the upstream waits behind its first event
    assert got.headers["content-type"].startswith("text/event-stream")
    first = got.readline()
    upstream.step.release(20)
    rest = got.read()
    upstream.step = None
    assert b'"content": "to "' in first and rest.endswith(b"data: [DONE]\n\n")
    line.close()


def test_asked_twice_is_answered_once_by_whichever_replica(served):
    upstream, before, answers = served.upstream, len(served.upstream.ledger), []
    upstream.pause = 0.5
    threads = [threading.Thread(target=lambda: answers.append(ask(served.port, chat("twice")))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    upstream.pause = 0
    assert {status for status, _, _ in answers} == {200} and len({text for _, _, text in answers}) == 1
    assert len(upstream.ledger) == before + 1
    page = ask(served.port, None, path="/metrics", method="GET")[2].decode()
    counts = [line for line in page.splitlines() if line.startswith("atlas_gateway_requests_total{") and "200" in line]
    assert len(counts) == 2, "both replicas have answered"


def test_serves_own_limits_are_ours(served, monkeypatch):
    assert ask(served.port, b"x" * (17 * 2**20))[0] == 413
    status, headers, text = ask(served.port, chat("hi"), {"Host": "evil.example"})
    assert status == 400 and headers["content-type"] == "application/json"
    assert ask(served.port, None, path="/-/routes", method="GET")[0] == 404
    assert ask(served.port, None, path="/healthz", method="GET")[0] == 200
    assert KEY not in text.decode()


def test_a_conversation_is_one_session_over_all_replicas(served):
    talk, ids = ["go far"], set()
    for step in range(6):
        _, headers, text = ask(served.port, chat(*talk))
        ids.add(headers["x-atlas-session"])
        assert headers["x-atlas-step"] == str(step)
        talk += [said(text), f"seen {step}"]
    assert len(ids) == 1


def test_no_budget_is_exceeded_when_a_replica_is_killed_under_load(served):
    before = set(pids())
    seen = spree(served, served.upstream, sessions=12, steps=6, kills=1, seed=100)
    assert {s for s in seen if isinstance(s, int)} <= STATUSES, seen
    assert seen[200] > 30
    check_ledger(served.upstream, 12, 100)
    for _ in range(600):
        if len(set(pids())) == 2 and set(pids()) != before:
            break
        time.sleep(0.1)
    assert len(before & set(pids())) == 1, "one was killed, and another has taken its place"


def test_a_serve_that_runs_already_is_left_alone(served, tmp_path):
    with pytest.raises(InputError, match="runs there already") as error:
        with replicas.deployed(recipe("http://127.0.0.1:1/v1"), tmp_path, HOST, free_port()):
            pass
    assert error.value.field == "--ray"
    assert ask(served.port, None, path="/healthz", method="GET")[0] == 200


def test_the_command_deploys_until_a_signal_ends_it(tmp_path, monkeypatch):
    """With Ray and Serve left out."""
    happened = []

    @contextlib.contextmanager
    def deployed(_, folder, host, port):
        happened.append(("deployed", folder, host, port))
        yield
        happened.append("gone")

    class Signal:
        def wait(self):
            raise KeyboardInterrupt

    monkeypatch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(replicas, "ensure_ray", lambda cpus, variables: happened.append((cpus, variables)))
    monkeypatch.setattr(replicas, "deployed", deployed)
    monkeypatch.setattr(replicas.threading, "Event", Signal)
    monkeypatch.setattr(replicas.ray, "shutdown", lambda: happened.append("shut down"))
    made = recipe("http://127.0.0.1:1/v1", autoscaling={"min_replicas": 2, "max_replicas": 3, "num_cpus": 0.5})
    with pytest.raises(KeyboardInterrupt):
        replicas.serve_on_ray(made, tmp_path, HOST, 0, lambda *told: happened.append(told))
    (cpus, variables), (_, folder, host, port), told, last = happened
    assert (cpus, folder, host, last) == (2, tmp_path, HOST, "shut down")
    assert variables == {replicas.VARIABLE: replicas.LAYERS}
    assert told == (port, "2 to 3 replicas") and port > 1023


def test_sessions_in_a_file_are_refused_for_several_machines(monkeypatch):
    made = recipe("http://127.0.0.1:1/v1")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    replicas.check_nodes(made)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}] * 2)
    with pytest.raises(InputError, match="replicas on one machine") as error:
        replicas.check_nodes(made)
    assert error.value.field == "gateway.store"
    replicas.check_nodes(recipe("http://127.0.0.1:1/v1", store="postgresql://db/atlas"))


@pytest.mark.parametrize("given", [{}, {"recipe": "a.toml", "run": "b"}, {"recipe": "a.toml", "port": "1"}])
def test_arguments_of_a_config_are_checked(given):
    with pytest.raises(InputError) as error:
        replicas.app(given)
    assert error.value.field == "args"


def test_the_config_is_one_that_serve_takes():
    config = yaml.safe_load((Path(__file__).parents[2] / "clusters" / "gateway-serve.yaml").read_text())
    schema = pytest.importorskip("ray.serve.schema").ServeDeploySchema.model_validate(config)
    (app,) = schema.applications
    assert app.import_path == f"{replicas.app.__module__}:{replicas.app.__name__}"
    assert schema.http_options.host == HOST and app.args.keys() <= {"recipe", "out", "version"}


def test_a_config_is_refused_where_clients_would_have_no_limits(tmp_path, monkeypatch):
    file = tmp_path / "g.toml"
    file.write_text('name = "g"\n[gateway]\nquick = "a"\ndeepthink = "b"\n')
    monkeypatch.delenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", raising=False)
    with pytest.raises(InputError, match="in which Ray starts"):
        replicas.app({"recipe": str(file)})


@pytest.mark.slow
def test_a_thousand_requests_while_replicas_are_killed(served):
    """The long form; prints its figures."""
    total, begun = 0, time.monotonic()
    for seed in range(200, 205):
        seen = spree(served, served.upstream, sessions=20, steps=40, kills=2, threads=16, seed=seed)
        assert {s for s in seen if isinstance(s, int)} <= STATUSES, seen
        check_ledger(served.upstream, 20, seed)
        total += sum(seen.values())
        print(f"{dict(seen)}")
    print(f"{total} requests in {time.monotonic() - begun:.0f} s")
    with contextlib.suppress(OSError):
        assert ask(served.port, None, path="/healthz", method="GET")[0] == 200
