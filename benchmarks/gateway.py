"""Latency and CPU that the gateway adds, against asking the upstream straight and beside other gateways.

    python benchmarks/gateway.py                         # the gateway alone
    python benchmarks/gateway.py --peers ~/peers         # and LiteLLM's proxy and LM-Proxy, in a venv of their own:
    python -m venv ~/peers && ~/peers/bin/pip install 'litellm[proxy]' lm-proxy

A scripted upstream answers after some ``--pause`` seconds, as models do; 64 agents at a time ask it step after step, in
conversations that grow. What a request took beyond the pause is compared: added is through minus straight, of whole
answers and of the first word of streams. Then without a pause, as fast as it goes: requests per second, and CPU per
request of the server. Every way has a turn in each round; the median of the rounds is shown.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

HOST = "127.0.0.1"
WORDS = 20
ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes " * WORDS}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": WORDS, "total_tokens": 20 + WORDS},
}
OURS = """
name = "benchmark"
[gateway]
switch = "random"
share = 0.5
budget = {{ calls = 10000, usd = 10 }}
daily = {{ usd = 1000000 }}
[[gateway.models]]
model = "small"
base_url = "{url}"
key_variable = ""
max_tokens = 100
[[gateway.models]]
model = "large"
base_url = "{url}"
key_variable = ""
max_tokens = 100
price_completion = 1
"""
LITELLM = """
model_list:
  - model_name: londi
    litellm_params: {{model: openai/small, api_base: "{url}", api_key: none}}
litellm_settings: {{telemetry: false}}
"""
LM_PROXY = """
host = "127.0.0.1"
port = {port}
[connections.up]
api_type = "open_ai"
api_base = "{url}"
api_key = "none"
[routing]
"*" = "up.small"
[groups.default]
api_keys = ["none"]
"""


def pause_of(text, mean):
    """Seconds until a request is answered: half to one and a half of the mean, by what it says."""
    return mean * (0.5 + random.Random(text).random())


async def read_head(reader):
    """First line and headers; None at the end."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    return lines[0], {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}


async def answer(reader, writer, mean):
    """One connection of the scripted upstream."""
    try:
        while True:
            _, headers = await read_head(reader)
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            await asyncio.sleep(pause_of(body["messages"][-1]["content"], mean))
            if not body.get("stream"):
                data = json.dumps(ANSWER).encode()
                head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
                writer.write(head.encode() + data)
                await writer.drain()
                continue
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            about = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            chunks = [{"choices": [{"index": 0, "delta": {"content": "yes "}, "finish_reason": None}]}] * WORDS
            chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            chunks.append({"choices": [], "usage": ANSWER["usage"]})
            for event in [*(json.dumps({**about, **chunk}) for chunk in chunks), "[DONE]"]:
                data = f"data: {event}\n\n".encode()
                writer.write(b"%x\r\n%s\r\n" % (len(data), data))
                await writer.drain()
                await asyncio.sleep(mean / 500)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def upstream(ready, mean):
    async def serve():
        server = await asyncio.start_server(lambda r, w: answer(r, w, mean), HOST, 0, backlog=256)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


async def take(reader, stream):
    """When the first word of an answer came, where it is streamed."""
    line, headers = await read_head(reader)
    first, status = None, int(line.split()[1])
    if "content-length" in headers:
        data = await reader.readexactly(int(headers["content-length"]))
    else:
        data = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            data += (await reader.readexactly(size + 2))[:-2]
            if first is None and b'"yes ' in data:  # some begin with an event of their own
                first = time.perf_counter()
        await reader.readexactly(2)
    if status != 200 or (stream and b"[DONE]" not in data):
        raise RuntimeError(f"{line}: {data[:300]!r}")
    return first


async def ask(port, sessions, steps, stream, mean):
    """What each request took beyond the pause, in seconds; and requests per second."""
    found, tag = [], f"{time.time()}"

    async def session(number):
        await asyncio.sleep(random.Random(number).random() * mean)  # agents do not march in step
        reader, writer = await asyncio.open_connection(HOST, port, limit=2**20)
        messages = [{"role": "user", "content": f"agent {number} of {tag} looks for the red ball"}]
        for step in range(steps):
            body = {"model": "londi", "stream": stream, "messages": messages}
            data = json.dumps(body).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
            head += f"Authorization: Bearer none\r\nContent-Length: {len(data)}\r\n\r\n"
            begun = time.perf_counter()
            writer.write(head.encode() + data)
            first = await take(reader, stream)
            ended = first if stream else time.perf_counter()
            found.append(ended - begun - pause_of(messages[-1]["content"], mean))
            messages.append(ANSWER["choices"][0]["message"])
            messages.append({"role": "user", "content": f"agent {number} sees a wall {step} steps ahead"})
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(session(n) for n in range(sessions)))
    return found, len(found) / (time.perf_counter() - begun)


def cpu_of(pid):
    """CPU seconds of a process and its children."""
    total = 0.0
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        total += sum(cpu_of(int(one)) for one in child.read_text().split())
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return total + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as one:
        one.bind((HOST, 0))
        return one.getsockname()[1]


class Server:
    """A server in a process of its own, at a port."""

    def __init__(self, name, command, port, folder):
        self.name, self.port = name, port
        self.log = folder / f"{name.replace(' ', '-')}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603
                command, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )
        for _ in range(1200):
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection((HOST, port), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise SystemExit(f"{name} does not start: {self.log.read_text()[-2000:]}")

    @property
    def pid(self):
        return self.process.pid

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Straight:
    """The upstream itself."""

    name, pid = "straight", None

    def __init__(self, port):
        self.port = port


def servers(url, peers, folder):
    (folder / "ours.toml").write_text(OURS.format(url=url))
    port = free_port()
    ours = [sys.executable, "-m", "atlas_ray", "gateway", "ours.toml", "--port", str(port), "--out", "state"]
    yield Server("atlas-ray", ours, port, folder)
    if peers is None:
        return
    (folder / "litellm.yaml").write_text(LITELLM.format(url=url))
    port = free_port()
    yield Server(
        "LiteLLM proxy", [peers / "bin/litellm", "--config", "litellm.yaml", "--port", str(port)], port, folder
    )
    port = free_port()
    (folder / "lm_proxy.toml").write_text(LM_PROXY.format(url=url, port=port))
    yield Server("LM-Proxy", [peers / "bin/lm-proxy", "--config", "lm_proxy.toml"], port, folder)


def rounds(ways, options, steps, stream, mean):
    """By way: medians of p50, p99 (milliseconds), requests per second, CPU milliseconds per request."""
    rows = {way: [] for way in ways}
    for way in ways:
        asyncio.run(ask(way.port, options.sessions, 2, stream, mean))
    for _ in range(options.rounds):
        for way in ways:
            before = cpu_of(way.pid) if way.pid else 0.0
            seconds, rate = asyncio.run(ask(way.port, options.sessions, steps, stream, mean))
            cpu = (cpu_of(way.pid) - before) / len(seconds) if way.pid else 0.0
            cuts = quantiles(seconds, n=100)
            rows[way].append((1000 * cuts[49], 1000 * cuts[98], rate, 1000 * cpu))
    return {way: [median(column) for column in zip(*found, strict=True)] for way, found in rows.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds until the upstream answers, in the mean")
    parser.add_argument("--peers", type=Path, help="a venv with litellm[proxy] and lm-proxy")
    options = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    started = []
    for mean in (options.pause, 0.0):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=upstream, args=(theirs, mean), daemon=True)
        process.start()
        started.append((mean, Straight(ours.recv()), process))
    print(f"{options.sessions} agents at a time, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        for mean, straight, process in started:
            ways = [straight]
            place = Path(folder) / str(mean)
            place.mkdir()
            try:
                peers = options.peers.expanduser().absolute() if options.peers else None
                ways += servers(f"http://{HOST}:{straight.port}/v1", peers, place)
                for stream in (False, True):
                    what = "first word of streams" if stream else "whole answers"
                    if mean:
                        print(f"\n{what}, an upstream of {mean} s: p50 and p99 in ms")
                    else:
                        print(f"\n{'streams' if stream else what} as fast as it goes")
                    found = rounds(ways, options, options.steps, stream, mean)
                    base = found[straight]
                    for way, (p50, p99, rate, cpu) in found.items():
                        if mean:
                            added = f"added {p50 - base[0]:6.1f} {p99 - base[1]:6.1f}"
                            print(f"  {way.name:14} {p50:6.1f} {p99:6.1f}  {added}  CPU {cpu:5.2f} ms per request")
                        else:
                            print(f"  {way.name:14} {rate:6.0f} requests/s  CPU {cpu:5.2f} ms per request")
            finally:
                for way in ways[1:]:
                    way.kill()
                process.kill()


if __name__ == "__main__":
    main()
