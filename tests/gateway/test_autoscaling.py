"""Replicas of the gateway on Ray Serve come with the load."""

import threading
import time

import pytest
from gateway_parts import HOST, ask, chat, recipe, said

from tests.gateway.test_replicas import free_port, pids

replicas = pytest.importorskip("atlas_ray.gateway.replicas", reason="Ray Serve: needs the extra 'gateway-ray'")
AGENTS, SECONDS = 12, 150


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
