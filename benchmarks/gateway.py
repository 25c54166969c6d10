"""Latency that the gateway adds, against asking the upstream straight: 64 sessions at a time.

    python benchmarks/gateway.py                     # a scripted upstream that answers after 50 ms

Each session asks its steps one after the other. Whole answers and the first token of streams, three rounds of both
ways in turn; the median of the rounds' percentiles.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import median, quantiles

import httpx
import uvicorn

from atlas_ray.gateway.app import HOST, listen
from atlas_ray.gateway.limits import PatientProtocol
from atlas_ray.gateway.opening import open_gateway
from atlas_ray.gateway.routes import build
from atlas_ray.recipe.loading import Recipe

ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21},
}


async def scripted(scope, receive, send):
    """A server that answers after a pause, whatever it is asked."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await asyncio.sleep(float(os.environ["PAUSE"]))
    stream = json.loads(body).get("stream")
    kind = b"text/event-stream" if stream else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if not stream:
        await send({"type": "http.response.body", "body": json.dumps(ANSWER).encode()})
        return
    for n in range(20):
        choice = {"index": 0, "delta": {"content": "yes "}, "finish_reason": "stop" if n == 19 else None}
        event = f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0.002)
    last = {"choices": [], "usage": ANSWER["usage"]}
    await send({"type": "http.response.body", "body": f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode()})


def upstream(ready):
    sock = listen(HOST, 0)
    ready.send(sock.getsockname()[1])
    uvicorn.Server(uvicorn.Config(scripted, log_level="error", lifespan="off")).run(sockets=[sock])


def gateway(ready, url):
    model = {"base_url": url, "key_variable": "", "max_tokens": 100}
    table = {"models": [{"model": "small", **model}, {"model": "large", **model, "price_completion": 1}]}
    recipe = Recipe.model_validate(
        {"name": "b", "gateway": {**table, "budget": {"calls": 10_000, "usd": 10}, "switch": "random", "share": 0.5}}
    )
    sock = listen(HOST, 0)
    with tempfile.TemporaryDirectory() as folder, open_gateway(recipe, Path(folder)) as (answering, recorder):
        ready.send(sock.getsockname()[1])
        config = uvicorn.Config(build(answering, recorder, (), [HOST]), http=PatientProtocol, log_level="error")
        uvicorn.Server(config).run(sockets=[sock])


async def ask(port, sessions, steps, stream):
    """Seconds until the answer, or the first event, of each request; and requests a second."""
    found = []

    async def session(client, number):
        for step in range(steps):
            said = f"session {number} of {time.time()} does {step}"
            body = {"model": "londi", "stream": stream, "messages": [{"role": "user", "content": said}]}
            begun = time.perf_counter()
            headers = {"x-atlas-session": str(number)}
            async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as got:
                assert got.status_code == 200
                first = None
                async for _ in got.aiter_raw():
                    first = first or time.perf_counter() - begun
            found.append(first if stream else time.perf_counter() - begun)

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=sessions, keepalive_expiry=4)
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=60, limits=limits) as client:
        begun = time.perf_counter()
        await asyncio.gather(*(session(client, n) for n in range(sessions)))
        return found, len(found) / (time.perf_counter() - begun)


def started(what, *arguments):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=what, args=(theirs, *arguments), daemon=True)
    process.start()
    return process, ours.recv()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds until the upstream answers")
    options = parser.parse_args()
    os.environ["PAUSE"] = str(options.pause)
    multiprocessing.set_start_method("spawn")
    one, straight = started(upstream)
    two, through = started(gateway, f"http://{HOST}:{straight}/v1")
    print(f"load {os.getloadavg()[0]:.1f}, {threading.active_count()} threads here")
    for stream in (False, True):
        rows = {straight: [], through: []}
        for port in rows:
            asyncio.run(ask(port, options.sessions, 2, stream))
        for _ in range(options.rounds):
            for port in rows:
                seconds, rate = asyncio.run(ask(port, options.sessions, options.steps, stream))
                cuts = quantiles(seconds, n=100)
                rows[port].append((1000 * cuts[49], 1000 * cuts[98], rate))
        base, more = ([median(column) for column in zip(*rows[port], strict=True)] for port in (straight, through))
        what = "first event of a stream" if stream else "whole answers"
        print(f"{what}: straight p50 {base[0]:.1f} ms, p99 {base[1]:.1f} ms, {base[2]:.0f} requests/s")
        print(f"  through p50 {more[0]:.1f} ms, p99 {more[1]:.1f} ms, {more[2]:.0f} requests/s")
        print(f"  added p50 {more[0] - base[0]:.1f} ms, p99 {more[1] - base[1]:.1f} ms")
    one.kill()
    two.kill()


if __name__ == "__main__":
    main()
