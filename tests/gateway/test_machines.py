"""The gateway on several machines: replicas on two nodes that share a PostgreSQL, and a node that dies under load."""

import itertools
import json
import time

import pytest
from gateway_parts import KEY, ask, chat, said
from ray_head import Head, free_ports

from tests.gateway.test_faults import CALLS, STATUSES, TOKENS, USD, check_ledger, recipe_text, spree
from tests.gateway.test_postgres import database
from tests.gateway.test_serve_deploy import LAYERS, Deployed

__all__ = ["database"]
SESSIONS, STEPS, SEED = 40, 8, 700


class TwoMachines(Deployed):
    """The config that ships on two nodes, each with a proxy. ``kill`` ends the second one."""

    def __init__(self, folder):
        second = free_ports(1)[0]  # all nodes lie on this machine
        self.head = Head(**LAYERS, ATLAS_TEST_KEY=KEY, RAY_SERVE_WORKER_PROXY_HTTP_PORT=str(second))
        self.head.wait()
        self.node = self.head.join()
        super().__init__(self.head, folder)
        self.first, self.ports = self.port, itertools.cycle([self.port, second])

    @property
    def port(self):
        return next(self.ports)

    @port.setter
    def port(self, port):
        self.ports = itertools.repeat(port)

    def nodes(self):
        """Of each replica."""
        return [row["node_id"] for row in self.head.actors() if row["class_name"].startswith("ServeReplica")]

    def kill(self):
        self.head.kill(self.node)
        self.port = self.first  # as a load balancer would

    def start(self):
        pass


@pytest.fixture
def machines(tmp_path):
    made = TwoMachines(tmp_path)
    try:
        yield made
    finally:
        made.head.close()


@pytest.mark.slow
def test_no_budget_is_exceeded_when_a_machine_dies_under_load(database, machines, upstream, tmp_path):
    """Prints its figures."""
    budget, scale = {"calls": CALLS, "tokens": TOKENS, "usd": USD}, {"min_replicas": 4, "max_replicas": 4}
    text = recipe_text(upstream.url, store=database, budget=budget, autoscaling={**scale, "num_cpus": 0.1})
    (tmp_path / "g.toml").write_text(text)
    machines.deploy(tmp_path / "g.toml")
    assert machines.status()["status"] == "RUNNING"
    assert len(set(machines.nodes())) == 2, "replicas are on both"
    talk, ids = ["go far"], set()
    for _ in range(4):  # the proxies take turns
        status, headers, text = ask(machines.port, chat(*talk))
        assert status == 200, text
        ids.add(headers["x-atlas-session"])
        talk += [said(text), f"seen {len(talk)}"]
    assert len(ids) == 1

    begun = time.monotonic()
    seen = spree(machines, upstream, sessions=SESSIONS, steps=STEPS, kills=1, seed=SEED)
    print(f"{sum(seen.values())} requests in {time.monotonic() - begun:.0f} s: {dict(seen)}")
    assert {status for status in seen if isinstance(status, int)} <= STATUSES and seen[200] > 60
    check_ledger(upstream, SESSIONS, SEED)
    upstream.chaos = None
    for _ in range(100):  # until the lost replicas are known as such
        status, headers, _ = ask(machines.port, chat(*talk))
        assert status in (200, 503)
        if status == 200:
            break
    assert headers["x-atlas-session"] in ids and headers["x-atlas-step"] == "4"
    for _ in range(300):
        if len(found := machines.nodes()) == 4 and len(set(found)) == 1:
            break
        time.sleep(1)
    assert len(set(found)) == 1 and len(found) == 4, "Serve has put the lost ones on the machine that is left"
    assert {ask(machines.port, chat(f"after {n}"))[0] for n in range(12)} == {200}
    assert json.loads(ask(machines.port, None, path="/healthz", method="GET")[2]) == {"status": "ok"}
