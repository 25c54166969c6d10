"""Clients and upstreams that do everything wrong, and a gateway that is killed: no budget is exceeded.

The upstream keeps its own ledger of what it would bill, behind the guard.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from gateway_parts import HOST, KEY, PRICES, ask, chat, rng, said

STATUSES = {200, 400, 401, 402, 404, 405, 408, 413, 415, 422, 429, 502, 503, 504}
CALLS, TOKENS, USD = 4, 6000, 0.01
FAULTS = [500, 429, "garbage", "half", "vanish", "bill and vanish", "no usage", "twice"]


def recipe_text(url, **more):
    model = {"base_url": url, "key_variable": "ATLAS_TEST_KEY", "timeout": 5.0, "retries": 1, "max_tokens": 40}
    table = {"switch": "random", "share": 0.6, "budget": {"calls": CALLS, "tokens": TOKENS, "usd": USD}, **more}
    lines = ['name = "faulty"', "[gateway]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in table.items() if not isinstance(value, dict)]
    for name, value in table.items():
        if isinstance(value, dict):
            lines += [f"[gateway.{name}]", *(f"{k} = {v}" for k, v in value.items())]
    for name, extra in (("small", {}), ("large", PRICES)):
        lines.append("[[gateway.models]]")
        lines += [f"{k} = {json.dumps(v)}" for k, v in ({"model": name} | model | extra).items()]
    return "\n".join(lines)


class Killable:
    """A gateway in a process of its own."""

    def __init__(self, folder, url, **more):
        (folder / "g.toml").write_text(recipe_text(url, **more))
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = free.getsockname()[1]
        self.folder, self.process, self.logged, self._drains = folder, None, [], []
        self.start()

    def start(self):
        command = ["-m", "atlas_ray", "gateway", "g.toml", "--port", str(self.port), "--out", "state"]
        code = "from atlas_ray.engines import retry; retry.FIRST_BACKOFF = 0.01; import sys, atlas_ray.cli as c; "
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{code} sys.exit(c.main({command[2:]!r}))"],
            cwd=self.folder,
            env={**os.environ, "ATLAS_TEST_KEY": KEY},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said_first = self.process.stdout.readline()
        assert "gateway on" in said_first, said_first + self.process.stdout.read()
        self.logged.append(said_first)
        self._drains.append(threading.Thread(target=self._drain, args=[self.process], daemon=True))
        self._drains[-1].start()
        for _ in range(600):
            with contextlib.suppress(OSError):
                ask(self.port, None, path="/healthz", method="GET")
                return
            time.sleep(0.05)

    def _drain(self, process):
        self.logged.append(process.stdout.read())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._drains[-1].join()

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])


def misbehave(port, kind, body, headers=()):
    """What a bad client does; the status that it gets, if it waits for one."""
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in dict(headers).items())
    whole = head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
    bad = {
        "nan": b'{"model": "londi", "messages": NaN}',
        "surrogate": rb'{"model": "\ud800"}',
        "huge": b" " * 10_000_000,
    }
    if kind in bad:
        return ask(port, bad[kind])[0]
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5) as line:
        line.sendall({"hang up": whole, "half": whole[:-9], "stalled": whole[:20]}[kind])
        if kind == "hang up":
            time.sleep(0.005)
    return None


def session(port, number, steps, seen, seed, up):
    """An agent that comes back until it is answered, and its misdeeds."""
    draw, name, talk = rng(seed, number), f"session {number} of {seed}", []
    headers = {"x-atlas-session": name} if number % 2 else {}
    talk = [f"{name} wants something"]
    for step in range(steps):
        body = chat(*talk, stream=bool(draw.random() < 0.4), max_tokens=draw.choice([5, 40]))
        if draw.random() < 0.3:
            kind = draw.choice(["nan", "surrogate", "hang up", "half", "stalled"] + ["huge"] * (draw.random() < 0.1))
            with contextlib.suppress(OSError):
                seen[misbehave(port, kind, body, headers)] += 1
        answer = None
        for _ in range(12):
            up.wait(300)
            try:
                status, _, text = ask(port, body, headers)
            except (OSError, http.client.HTTPException) as error:  # it was killed
                seen[type(error).__name__] += 1
                time.sleep(0.05)
                continue
            seen[status] += 1
            if status == 200 and b'"error"' not in text:
                answer = text
                break
            if status == 402:
                return
        if answer is None:
            return
        spoken = said(answer) if not body["stream"] else streamed(answer)
        assert name in spoken or step or "wants" in spoken or body["max_tokens"] == 5, "an answer of another session"
        talk += [spoken, f"{name} goes on to {step}"]


def streamed(text):
    events = [json.loads(e[6:]) for e in text.decode().split("\n\n") if e.startswith("data: {")]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in events if c["choices"])


def spree(gateway, upstream, sessions, steps, kills, threads=12, seed=0):
    """Sessions side by side while faults happen; how often each status came."""
    draw, lock = rng("chaos", seed), threading.Lock()

    def chaos(_):
        with lock:
            return draw.choice(FAULTS) if draw.random() < 0.15 else None

    upstream.chaos = chaos
    seen, numbers, failed = Counter(), iter(range(sessions)), []
    up = threading.Event()
    up.set()

    def work():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                session(gateway.port, number, steps, seen, seed, up)
            except AssertionError as error:
                failed.append(error)

    agents = [threading.Thread(target=work) for _ in range(threads)]
    for agent in agents:
        agent.start()
    for n in range(kills):
        before = len(upstream.ledger)
        while len(upstream.ledger) < before + sessions * steps // (kills + 2) // 2 and any(
            a.is_alive() for a in agents
        ):
            time.sleep(0.02)
        up.clear()
        gateway.kill()
        gateway.start()
        up.set()
    for agent in agents:
        agent.join()
    assert not failed, failed[0]
    return seen


def check_ledger(upstream, sessions, seed=0, limits=(CALLS, TOKENS, USD)):
    """No session has taken more of the upstream than its budget, by the upstream's own count."""
    for number in range(sessions):
        name = f"session {number} of {seed} "
        requests, tokens, money = upstream.spent(name)
        calls = upstream.spent(name, "large")[0]
        found = (calls, tokens, money / 10**12)
        assert all(f <= limit for f, limit in zip(found, limits, strict=True)), (name, requests, found)


def test_no_budget_is_exceeded_whatever_clients_upstreams_and_kills_do(upstream, tmp_path):
    gateway = Killable(tmp_path, upstream.url)
    try:
        seen = spree(gateway, upstream, sessions=16, steps=8, kills=1)
        assert {s for s in seen if isinstance(s, int)} <= STATUSES, seen
        assert seen[200] > 50 and len(upstream.ledger) > 50
        check_ledger(upstream, 16)
    finally:
        gateway.kill()
    assert len(gateway.logged) == 4 and not any(KEY in text for text in gateway.logged), "no secret in a log"


def test_a_kill_in_mid_request_leaves_the_reservation_spent_and_the_session_there(upstream, tmp_path):
    gateway = Killable(tmp_path, upstream.url, switch="deepthink")
    try:
        _, headers, text = ask(gateway.port, chat("go on"))
        upstream.faults = ["hang"]
        threading.Thread(target=misbehave, args=[gateway.port, "hang up", chat("go on", said(text), "x")]).start()
        while len(upstream.requests) < 2:
            time.sleep(0.01)
        gateway.kill()
        gateway.start()
        status, after, _ = ask(gateway.port, chat("go on", said(text), "x"))
        assert status == 200 and after["x-atlas-session"] == headers["x-atlas-session"]
        assert after["x-atlas-step"] == "1"
        assert after["x-atlas-budget-left"].split()[0] == "calls=1", "three calls, of which one is lost"
    finally:
        gateway.kill()


@pytest.mark.slow
def test_ten_thousand_requests_of_two_hundred_sessions(upstream, tmp_path):
    """The whole suite; prints its figures."""
    limits = {"calls": 12, "tokens": 80_000, "usd": 0.05}  # for some fifty steps
    gateway = Killable(tmp_path, upstream.url, budget=limits)
    try:
        begun, seen, memory = time.monotonic(), Counter(), [gateway.memory()]
        for seed in range(10):
            seen += spree(gateway, upstream, sessions=20, steps=60, kills=1, threads=16, seed=seed)
            memory.append(gateway.memory())
            print(f"{sum(seen.values())} requests in {time.monotonic() - begun:.0f} s: {dict(seen)}", flush=True)
        for seed in range(10):
            check_ledger(upstream, 20, seed, tuple(limits.values()))
        assert {s for s in seen if isinstance(s, int)} <= STATUSES, seen
        print(f"upstream ledger {len(upstream.ledger)}, memory in KiB, at first and after each round: {memory}")
        assert sum(seen.values()) >= 10_000
        assert max(memory[1:]) < memory[0] + 60_000, "it grows"
    finally:
        gateway.kill()
