"""Decisions a second over HTTP, against the same switch and models without a server.

    python benchmarks/serving.py                     # 16 clients, tiny-quick and tiny-deepthink

Three ways, one after the other, in each of the rounds: the switch stage's own play; a sessions that is asked for all
episodes at once; clients in a process of their own, each with a connection that stays open. Every client steps a BabyAI
environment of its own. The policy calls DEEPTHINK at random in 3 of 10 steps.
"""

import argparse
import http.client
import json
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import torch
import uvicorn

from atlas_ray import envs
from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.agents.token_agent import Agent
from atlas_ray.engines import TransformersEngine
from atlas_ray.models.loading import load_model, load_tokenizer
from atlas_ray.serving import ActRequest, SessionManager
from atlas_ray.serving.app import HOST, listen, make_app
from atlas_ray.switching.baselines import Random
from atlas_ray.switching.evaluate import evaluate_policy

MODELS, LEVEL, STEPS = ("tiny-quick", "tiny-deepthink"), "GoToLocalS6N4", 20


class Client:
    def __init__(self, seed):
        self.env = envs.make(LEVEL, max_steps=STEPS)
        self.observation, info = self.env.reset(seed=seed)
        self.goal, self.over, self.steps = info["goal"], False, 0

    def take(self, action):
        self.observation, _, terminated, truncated, _ = self.env.step(action)
        self.over, self.steps = terminated or truncated, self.steps + 1


def in_python(sessions, seeds):
    waiting, playing, steps = list(seeds), {}, 0
    while waiting or playing:
        while waiting and len(playing) < sessions.max_sessions:
            client = Client(waiting.pop())
            playing[sessions.open(client.goal, STEPS)] = client
        for key, told in sessions.act(
            {k: ActRequest(c.observation, c.env.admissible()) for k, c in playing.items()}
        ).items():
            playing[key].take(told.action)
            if playing[key].over:
                steps += playing.pop(key).steps
                sessions.close(key)
    return steps


def _over_http(port, seed):
    line = http.client.HTTPConnection(HOST, port)

    def ask(method, path, body=None):
        line.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        return json.loads(line.getresponse().read() or "null")

    client = Client(seed)
    path = f"/episodes/{ask('POST', '/episodes', {'instruction': client.goal, 'max_steps': STEPS})['id']}"
    while not client.over:
        now = {"observation": client.observation, "actions": client.env.admissible(), "step": client.steps}
        client.take(ask("POST", f"{path}/act", now)["action"])
    ask("DELETE", path)
    return client.steps


def _clients(port, seeds, count, results):
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda seed: _over_http(port, seed), seeds[:count]))  # imports and connections
        begun = time.perf_counter()
        steps = sum(threads.map(lambda seed: _over_http(port, seed), seeds))
        results.put((steps, time.perf_counter() - begun))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    agents = [
        Agent(TransformersEngine(load_model(name), options.clients, load_tokenizer(name)), "action") for name in MODELS
    ]
    policy, seeds = Random(0.3), list(range(options.episodes))
    sessions = SessionManager("random", policy, agents, MODELS)
    sock = listen(0)
    server = uvicorn.Server(uvicorn.Config(make_app(sessions), log_level="warning", lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True).start()
    processes = multiprocessing.get_context("spawn")
    found = {"play": [], "python": [], "http": []}
    for _ in range(options.rounds):
        begun = time.perf_counter()
        rows = evaluate_policy(policy, agents, [EnvSpec(LEVEL, {"max_steps": STEPS})], seeds)
        found["play"].append(sum(row["steps"] for row in rows) / (time.perf_counter() - begun))
        begun = time.perf_counter()
        found["python"].append(in_python(sessions, seeds) / (time.perf_counter() - begun))
        results = processes.Queue()
        process = processes.Process(target=_clients, args=(sock.getsockname()[1], seeds, options.clients, results))
        process.start()
        steps, seconds = results.get()
        process.join()
        found["http"].append(steps / seconds)
    print("| way | decisions/s | of play |\n|---|---|---|")
    for way, rates in found.items():
        print(f"| {way} | {median(rates):.0f} | {median(rates) / median(found['play']):.2f} |")
    server.should_exit = True


if __name__ == "__main__":
    main()
