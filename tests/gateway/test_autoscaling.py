"""Replicas of the gateway on Ray Serve come and go with the load."""

import threading
import time

import pytest
from gateway_parts import HOST, ask, chat, echo, recipe, said

from atlas_ray.recipe.gateway import Autoscaling
from tests.gateway.test_replicas import free_port, pids

replicas = pytest.importorskip("atlas_ray.gateway.replicas", reason="Ray Serve: needs the extra 'gateway-ray'")
AGENTS, SECONDS, CALLS = 12, 150, 20


@pytest.mark.slow
def test_a_second_replica_starts_under_load_and_takes_a_part_of_it(ray_session, upstream, tmp_path):
    """Prints when it came."""
    port, over, wrong, asked = free_port(), threading.Event(), [], [0] * AGENTS
    upstream.pause = 0.5
    scale = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "num_cpus": 0.1}
    model = {"base_url": upstream.url, "key_variable": "", "max_tokens": 40}
    made = recipe(upstream.url, models=[{"model": "small", **model}, {"model": "large", **model}], autoscaling=scale)

    def play(number):
        talk, ids = [f"agent {number} goes"], set()
        while not over.is_set():
            status, headers, text = ask(port, chat(*talk))
            if status != 200:
                wrong.append((status, text))
                return
            ids.add(headers["x-atlas-session"])
            talk = [*talk, said(text), f"seen {len(talk)}"]
            asked[number] += 1
        if len(ids) != 1:
            wrong.append(ids)

    def answering():
        page = ask(port, None, path="/metrics", method="GET")[2].decode()
        return sum(line.startswith("atlas_gateway_requests_total{") and "200" in line for line in page.splitlines())

    with replicas.deployed(made, tmp_path, HOST, port):
        assert len(pids()) == 1
        agents = [threading.Thread(target=play, args=[n]) for n in range(AGENTS)]
        begun = time.monotonic()
        for agent in agents:
            agent.start()
        while len(pids()) < 2 and not wrong and time.monotonic() < begun + SECONDS:
            time.sleep(0.2)
        came = time.monotonic() - begun
        while answering() < 2 and not wrong and time.monotonic() < begun + SECONDS:
            time.sleep(0.5)
        both = answering()
        over.set()
        for agent in agents:
            agent.join()
        print(f"the second replica came after {came:.0f} s; {sum(asked)} requests of {AGENTS} agents")
        assert not wrong and both == len(pids()) == 2


class Held:
    """A script of an upstream, and the pace of its streams: what says "hold" waits until the test lets go.

    A whole answer waits before its first byte, a stream behind its first word.
    """

    def __init__(self):
        self.go, self.waiting, self._lock = threading.Event(), 0, threading.Lock()

    def __call__(self, body):
        if "hold" in body["messages"][-1]["content"]:
            with self._lock:
                self.waiting += 1
            if not body.get("stream"):
                self.go.wait(300)
        return echo(body)

    def wait(self, _):
        self.go.wait(300)


@pytest.mark.slow
def test_a_replica_that_is_scaled_away_answers_what_it_has_begun(ray_session, upstream, tmp_path, monkeypatch):
    """Two replicas hold two requests each when their load has become too small for both."""
    real = Autoscaling.model_dump
    quick = {"upscale_delay_s": 2.0, "downscale_delay_s": 5.0}  # Serve waits for ten minutes
    monkeypatch.setattr(Autoscaling, "model_dump", lambda self, **how: {**real(self, **how), **quick})
    scale = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 4, "num_cpus": 0.1}
    model = {"base_url": upstream.url, "key_variable": "", "max_tokens": 40, "timeout": 300.0}
    models = [{"model": "small", **model}, {"model": "large", **model}]
    made = recipe(upstream.url, models=models, budget={"calls": CALLS}, autoscaling=scale)
    port, talks, wrong, over, upstream.pause = free_port(), {}, [], threading.Event(), 0.3

    def step(name, more="on", stream=False):
        """The next step of a session, by whichever replica."""
        more = more if name in talks else f"{name} goes {more}"
        talk = [*talks.get(name, ()), more]
        status, headers, text = ask(port, chat(*talk, stream=stream), {"x-session-id": f"session {name}"})
        whole = status == 200 and (b"[DONE]" in text and b'"error"' not in text if stream else said(text))
        if not whole:
            wrong.append((status, text))
            return
        talks[name] = [*talk, f"to {more} I say yes"]
        if not stream:  # whose headers tell what is reserved
            left[name] = headers["x-atlas-budget-left"]

    def press(number):
        while not over.is_set():
            step(f"press {number}")

    def count(state):
        found = replicas.serve.status().applications.get(replicas.APP)
        return sum(d.replica_states.get(state, 0) for d in found.deployments.values())

    def until(what):
        deadline = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < deadline and not wrong, wrong[:1]
            time.sleep(0.2)

    left, hold = {}, Held()
    with replicas.deployed(made, tmp_path, HOST, port):
        crowd = [threading.Thread(target=press, args=[n]) for n in range(16)]
        for thread in crowd:
            thread.start()
        until(lambda: count("RUNNING") == 2)
        over.set()
        for thread in crowd:
            thread.join()
        both, held = set(pids()), []
        upstream.script = upstream.step = hold
        for number in range(4):  # each goes to the replica that has fewer
            held.append(threading.Thread(target=step, args=[f"held {number}", "hold", number % 2 == 1]))
            held[-1].start()
            until(lambda: hold.waiting == len(held))
        begun = time.monotonic()
        until(lambda: count("STOPPING") == 1)
        print(f"one is to go after {time.monotonic() - begun:.0f} s")
        for number in range(20):
            step(f"press {number % 4}")
            time.sleep(0.3)
        assert count("STOPPING") == 1 and set(pids()) == both, "it waits for what it has begun"
        hold.go.set()
        for thread in held:
            thread.join()
        until(lambda: len(pids()) == 1)
        for name in list(talks):
            step(name)
    assert not wrong and len(talks) == 20
    for name, told in left.items():
        spent = upstream.spent(f"{name} goes", "large")[0]
        assert told == f"calls={CALLS - spent}" and spent <= CALLS, name
