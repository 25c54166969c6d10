"""A classifier from the record of a gateway that asks QUICK in DEEPTHINK's shadow, by the number of its sessions.

    python benchmarks/switching_shadow.py                                # runs/switching-shadow/{100,300,1000}
    python benchmarks/switching_shadow.py --sessions 20 --test 20

Agents that speak OpenAI's API play training episodes of BabyAI-Text behind `atlas-ray gateway`, where DEEPTHINK acts,
and report how they ended. Then `atlas-ray run` fits to the first N sessions, without an environment, and plays what
came of it beside random calls at its rate, on the test episodes of the recipe `switching-fitted`. What is there is
kept.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import httpx

from atlas_ray.agents.rollout import SWITCH_TRAIN, seed_block
from atlas_ray.recipe.loading import load
from atlas_ray.report.headlines import with_interval
from atlas_ray.report.outcomes import compared
from atlas_ray.report.run import read_run
from atlas_ray.rundir.files import read_json, write_text
from atlas_ray.rundir.progress import track

AGENTS = 16
ATLAS_RAY = [sys.executable, "-m", "atlas_ray"]
GATEWAY = """name = "shadow"
num_envs = {agents}
[gateway]
models = ["tiny-quick", "tiny-deepthink"]
switch = "deepthink"
shadow = 1.0
max_steps = {steps}
record = {record}
"""
SWITCH = """name = "switching-shadow"
seed = {seed}
[switch]
models = ["tiny-quick", "tiny-deepthink"]
levels = {levels}
max_steps = {steps}
logs = {record}
baselines = ["random", "classifier"]
rates = {rates}
test_episodes = {test}
"""


def record(recipe, sessions, root, place):
    """Play sessions behind a gateway, each named by its seed."""
    settings, url = recipe.switch, "http://127.0.0.1:{}/v1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    toml = root / "gateway.toml"
    write_text(toml, GATEWAY.format(agents=AGENTS, steps=settings.max_steps, record=json.dumps(str(place))))
    command = [*ATLAS_RAY, "gateway", str(toml), "--port", str(port), "--out", str(root / "gateway")]
    server = subprocess.Popen(command)  # noqa: S603
    first, waiting = seed_block(recipe.seed, SWITCH_TRAIN), list(range(sessions))[::-1]

    def agent(progress):
        with httpx.Client(base_url=url.format(port), timeout=600) as client:
            while waiting:
                number = waiting.pop()
                play(client, settings, settings.levels[number % len(settings.levels)], first + number)
                progress.advance()

    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz").raise_for_status()
                break
            except httpx.HTTPError:
                if server.poll() is not None:
                    raise SystemExit("the gateway has ended") from None
                time.sleep(0.2)
        with track("sessions", sessions) as progress, ThreadPoolExecutor(AGENTS) as agents:
            for playing in [agents.submit(agent, progress) for _ in range(AGENTS)]:
                playing.result()
    finally:
        server.terminate()
        server.wait()


def play(client, settings, level, seed):
    """An episode, as an agent plays it that knows the gateway as OpenAI's API alone."""
    env = gym.make(f"atlas_ray.envs:BabyAIText/{level}-v0", max_steps=settings.max_steps)
    observation, info = env.reset(seed=seed)
    messages, over, name = [{"role": "user", "content": info["goal"]}], False, f"{level} {seed}"
    while not over:
        messages.append({"role": "user", "content": observation})
        body = {"model": "londi", "messages": messages, "structured_outputs": {"choice": info["admissible"]()}}
        got = client.post("/chat/completions", json=body, headers={"x-atlas-session": name}).raise_for_status()
        said = got.json()["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": said})
        observation, _, terminated, truncated, info = env.step(said.rpartition("Action:")[2].strip())
        over = terminated or truncated
    told = {"success": bool(info["success"])}
    client.post(f"/atlas/sessions/{name}/outcome", json=told).raise_for_status()
    env.close()


def first_sessions(whole, count, part):
    """Copy the sessions of the lowest seeds."""
    named = sorted((int(read_json(p)["session"].split()[1]), p.stem) for p in (whole / "usage").iterdir())
    for _, name in named[:count]:
        for folder, end in (("trajectories", "jsonl"), ("usage", "json")):
            (part / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(whole / folder / f"{name}.{end}", part / folder)


def table(root, count):
    """A line for each policy, with differences on the same episodes."""
    run = read_run(root)
    for policy in run.policies:
        found = [compared(run.outcomes.policies[policy.name], run.outcomes.policies["always-deepthink"])]
        share = f"{policy.deepthink_share:.2f}"
        if policy.name.startswith("classifier"):
            twin = run.outcomes.policies.get(f"random(p={share})")
            found.append(None if twin is None else compared(run.outcomes.policies[policy.name], twin))
        cells = [f"{count:,}", policy.name, f"{policy.success:.2f} [{policy.ci95[0]:.2f}, {policy.ci95[1]:.2f}]"]
        cells += ["" if d is None else with_interval(d) for d in [*found, None][:2]]
        cells += [f"{policy.deepthink_calls_per_episode:.2f}", f"{policy.compute / 1e6:,.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.25, 0.42])
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/switching-shadow"))
    options = parser.parse_args()
    given = load("switching-fitted")
    given = given.model_copy(update={"seed": options.seed})
    whole = options.out / f"record-{max(options.sessions)}"
    if not whole.is_dir():
        begun = whole.with_name("begun")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        record(given, max(options.sessions), begun, begun / "record")
        (begun / "record").rename(whole)
    for count in options.sessions:
        root = options.out / str(count)
        if not (root / "record").is_dir():
            first_sessions(whole, count, root / "record")
        about = {"levels": given.switch.levels, "rates": options.rates, "record": str(root / "record")}
        about = {name: json.dumps(value) for name, value in about.items()}
        about |= {"seed": options.seed, "steps": given.switch.max_steps, "test": options.test}
        write_text(root / "switch.toml", SWITCH.format(**about))
        command = [*ATLAS_RAY, "run", str(root / "switch.toml"), "--out", str(root / "run")]
        subprocess.run(command, check=True)  # noqa: S603
    heads = ["sessions", "policy", "success", "less DEEPTHINK", "less random at its rate", "calls", "MFLOPs"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for count in options.sessions:
        table(options.out / str(count) / "run", count)


if __name__ == "__main__":
    main()
