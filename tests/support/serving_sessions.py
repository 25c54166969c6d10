"""Sessions to serve, their clients, and models that do as they are told, for the tests of serving."""

import http.client
import json
import threading
from contextlib import contextmanager

import pytest
import torch
from switch_models import SHAPES, agents, specs

from atlas_ray import envs
from atlas_ray.agents.token_agent import Decision
from atlas_ray.serving import ActRequest, Refused, SessionManager
from atlas_ray.serving.app import HOST, listen, make_app
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.features import EXTRA
from atlas_ray.switching.fitted import doubting_switch
from atlas_ray.switching.logistic import ANSWERED_WIDTH, WIDTH
from atlas_ray.switching.network import SwitchNetwork
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.signals import total_width

STEPS = 7


def switch(budget=None, signals=("margin", "catch-up"), width=32):
    """A switch that nobody trained, which calls now and then."""
    torch.manual_seed(5)
    features = width + total_width(signals)
    network = SwitchNetwork(features + EXTRA, (8,), 2, budget is not None)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    own = {name: doubts(name) for name in ("classifier", "verifier") if name in signals}
    return SwitchPolicy(SwitchConfig(features, (8,), budget=budget, signals=signals, **own), tensors)


def doubts(signal):
    """Weights of a signal that nobody fitted, which doubts now and then."""
    width = WIDTH if signal == "classifier" else ANSWERED_WIDTH
    return tuple(torch.randn(width, generator=torch.Generator().manual_seed(3)).mul(0.06).tolist())


def rule(tau=0.5, signal="classifier", **terms):
    """A switch that calls where it doubts more."""
    return doubting_switch(signal, doubts(signal), tau, **terms)


def served(policy, budget=None, max_sessions=4, **more):
    return SessionManager("it", policy, agents(max_sessions), tuple(SHAPES), budget, **more)


class Stub:
    """A model that takes the first action, and tells what it was asked: (goal, observations so far, actions).

    Args:
        slots: episodes at a time.
        does: called with the goals and actions of a batch before it is answered; may raise.
    """

    needs_list, parameters, price = True, 0, (0.0, 0.0)

    class _Seats:
        def __init__(self, slots):
            self.slots = slots

    def __init__(self, slots, does=None):
        self.engine, self.does = self._Seats(slots), does
        self.asked, self.batches = [], []
        self.seen, self.took = {}, {}

    def fork(self):
        return self

    def start(self, slot, instruction, steps, observation):
        self.seen[slot], self.took[slot] = [instruction, observation], []

    def advance(self, slot, step, observation):
        self.took[slot].append(step.action)
        self.seen[slot].append(observation)

    def fits(self, slot):
        return True

    def act(self, slots, actions, seeds):
        goals = [self.seen[slot][0] for slot in slots]
        self.batches.append(goals)
        if self.does:
            self.does(goals, actions)
        for slot, offered in zip(slots, actions, strict=True):
            self.asked.append((self.seen[slot][0], tuple(self.seen[slot][1:]), tuple(offered)))
        return [Decision(None, offered[0]) for offered in actions]

    def prompt(self, slot):
        return " ".join(self.seen[slot])

    def key(self, slot, offered):
        return None

    def mark_read(self, slot):
        pass

    def on_cache_hit(self, slot, decision):
        raise AssertionError("nothing is cached")


def stubbed(policy, budget=None, max_sessions=4, does=None, **more):
    """Sessions with two stubs, and the stubs."""
    stubs = [Stub(max_sessions, does), Stub(max_sessions, does)]
    return SessionManager("it", policy, stubs, ("quick", "deepthink"), budget, **more), stubs


class Client:
    """An episode of BabyAI that asks what to do."""

    def __init__(self, seed):
        chosen = specs(STEPS)
        spec = chosen[seed % len(chosen)]
        self.env = envs.make(spec.name, **spec.options)
        self.observation, info = self.env.reset(seed=seed)
        self.goal, self.over, self.success = info["goal"], False, False
        self.actions, self.called_at, self.asked = [], [], 0

    @property
    def now(self):
        return ActRequest(self.observation, self.env.admissible())

    def take(self, action, called):
        if called:
            self.called_at.append(len(self.actions))
        self.actions.append(action)
        self.observation, _, terminated, truncated, info = self.env.step(action)
        self.over, self.success = terminated or truncated, info["success"]


def refused(answer):
    assert isinstance(answer, Refused), answer
    return answer.status, str(answer)


@contextmanager
def serving(sessions):
    """The port at which sessions are served as long as the block lasts."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    sock = listen(0)
    config = uvicorn.Config(
        make_app(sessions), http="h11", log_level="warning", lifespan="off", timeout_graceful_shutdown=1
    )
    made = uvicorn.Server(config)
    thread = threading.Thread(target=made.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        yield sock.getsockname()[1]
    finally:
        made.should_exit = True
        thread.join(20)
        sock.close()


def ask(port, method, path, body=None, headers=()):
    line = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        line.request(method, path, data, {"Content-Type": "application/json", **dict(headers)})
        answer = line.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text.decode()
    finally:
        line.close()


def begin(port, instruction="go", max_steps=20):
    status, begun = ask(port, "POST", "/episodes", {"instruction": instruction, "max_steps": max_steps})
    assert status == 201, begun
    return begun["id"]


def play_over(port, seed):
    client = Client(seed)
    key = begin(port, client.goal, STEPS)
    while not client.over:
        now = client.now
        body = {"observation": now.observation, "actions": list(now.actions), "step": len(client.actions)}
        status, told = ask(port, "POST", f"/episodes/{key}/act", body)
        assert status == 200, told
        client.take(told["action"], told["called"])
    assert ask(port, "GET", f"/episodes/{key}")[1]["calls"] == len(client.called_at)
    assert ask(port, "DELETE", f"/episodes/{key}") == (204, "")
    return client
