"""Steps and resets a second of our environments beside the upstream interface, in one run.

python benchmarks/environments.py            steps and resets, five episodes a round, alternating, medians of the rounds
python benchmarks/environments.py --memory   200 episodes in one process: resident memory of Python and of the JVM
python benchmarks/environments.py --levels 32   32 episodes at a time of one ScienceWorld task after the other
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym

from atlas_ray import envs
from atlas_ray.envs.science_world import VARIATIONS

Play = Callable[[int], tuple[int, float, float]]
"""Plays the episode of a seed: steps, seconds spent in steps, seconds spent in the reset."""


def timed(reset: Callable[[], Any], step: Callable[[str], Any], actions: list[str]) -> tuple[int, float, float]:
    start = time.perf_counter()
    reset()
    middle = time.perf_counter()
    for action in actions:
        step(action)
    return len(actions), time.perf_counter() - middle, middle - start


def babyai() -> Iterator[tuple[str, Play, Play]]:
    import minigrid  # noqa: F401

    for level in ("PutNextLocal", "KeyCorridor"):
        raw = gym.make(f"BabyAI-{level}-v0", disable_env_checker=True).unwrapped
        ours = envs.make(level)
        words = ours.admissible()

        def moves(seed: int, count: int = 60) -> list[int]:
            return [random.Random(f"{seed}/{i}").randrange(3) for i in range(count)]

        def play_raw(seed: int, raw: Any = raw, moves: Any = moves) -> tuple[int, float, float]:
            return timed(lambda: raw.reset(seed=seed), raw.step, moves(seed))

        def play(seed: int, ours: Any = ours, words: Any = words, moves: Any = moves) -> tuple[int, float, float]:
            return timed(lambda: ours.reset(seed=seed), ours.step, [words[m] for m in moves(seed)])

        yield f"BabyAIText/{level} (minigrid, no text)", play_raw, play


def gold(env: envs.TextEnv, seed: int, cache: dict[int, list[str]]) -> list[str]:
    """The gold path without its last action, so that an episode is not over, whichever interface plays it."""
    if seed not in cache:
        env.reset(seed=seed)
        expert, path = env.expert(), []
        while True:
            path.append(expert.act().action)
            if any(env.step(path[-1])[2:4]):
                break
        cache[seed] = path[:-1]
    return cache[seed]


def science_world() -> Iterator[tuple[str, Play, Play]]:
    from scienceworld import ScienceWorldEnv

    raw = ScienceWorldEnv("", envStepLimit=1000)
    for task in ("boil", "find-animal", "grow-plant"):
        ours, paths = envs.make(f"ScienceWorld/{task}", max_steps=1000), dict[int, list[str]]()

        def reset_raw(seed: int, task: str = task) -> None:
            raw.load(task, seed)
            raw.reset()

        def reset_bare(seed: int, task: str = task) -> None:
            raw.server.load(task, seed, "", False)
            raw.server.freeActionLook()

        def step_bare(action: str) -> None:
            raw.server.step(action)
            raw.server.getScore()
            raw.server.getCompleted()

        def play_raw(seed: int, ours: Any = ours, paths: Any = paths, reset: Any = reset_raw) -> Any:
            return timed(lambda: reset(seed), raw.step, gold(ours, seed, paths)[:15])

        def play_bare(seed: int, ours: Any = ours, paths: Any = paths, reset: Any = reset_bare) -> Any:
            return timed(lambda: reset(seed), step_bare, gold(ours, seed, paths))

        def play(seed: int, ours: Any = ours, paths: Any = paths) -> tuple[int, float, float]:
            return timed(lambda: ours.reset(seed=seed), ours.step, gold(ours, seed, paths))

        yield f"ScienceWorld/{task} (upstream's env.step)", play_raw, play
        yield f"ScienceWorld/{task} (its bare server.step)", play_bare, play


def textworld_express() -> Iterator[tuple[str, Play, Play]]:
    from textworld_express import TextWorldExpressEnv

    raw = TextWorldExpressEnv(envStepLimit=1000)
    for game in ("cookingworld", "mapreader"):
        ours, paths = envs.make(f"TextWorldExpress/{game}"), dict[int, list[str]]()
        raw.load(game, "")

        def play_raw(seed: int, game: str = game, ours: Any = ours, paths: Any = paths) -> tuple[int, float, float]:
            actions = gold(ours, seed, paths)
            raw.load(game, "")
            return timed(lambda: raw.reset(seed=seed, gameFold="train"), raw.step, actions)

        def play(seed: int, ours: Any = ours, paths: Any = paths) -> tuple[int, float, float]:
            return timed(lambda: ours.reset(seed=seed), ours.step, gold(ours, seed, paths))

        yield f"TextWorldExpress/{game} (upstream's env.step)", play_raw, play


def textworld() -> Iterator[tuple[str, Play, Play]]:
    import textworld as upstream

    from atlas_ray.envs.textworld import make_game

    for task in ("cooking-hard", "coin-collector-20"):
        ours, paths = envs.make(f"TextWorld/{task}"), dict[int, list[str]]()
        files = {seed: str(make_game(task, seed)) for seed in range(5)}
        for listed in (False, True):
            infos = upstream.EnvInfos(admissible_commands=listed, won=True, score=True)

            def play_raw(
                seed: int, infos: Any = infos, files: Any = files, ours: Any = ours, paths: Any = paths
            ) -> Any:
                kept: list[Any] = []

                def reset() -> None:
                    kept.append(upstream.start(files[seed % 5], infos))
                    kept[0].reset()

                return timed(reset, lambda action: kept[0].step(action), gold(ours, seed % 5, paths))

            def play(seed: int, ours: Any = ours, paths: Any = paths) -> tuple[int, float, float]:
                return timed(lambda: ours.reset(seed=seed % 5), ours.step, gold(ours, seed % 5, paths))

            # an upstream environment is made for a game, so that the next episode is another environment
            yield f"TextWorld/{task} (upstream's step{', commands listed' if listed else ''})", play_raw, play


def runnable() -> Iterator[tuple[str, Play, Play]]:
    there = {name.partition("/")[0] for name in envs.ids()}
    if "TextWorldExpress" in there:
        yield from textworld_express()
    if "ScienceWorld" in there:
        yield from science_world()
    if "TextWorld" in there:
        yield from textworld()
    yield from babyai()


def compare(rounds: int) -> None:
    print("| environment (against) | raw steps/s | ours steps/s | factor | raw resets/s | ours resets/s | factor |")
    print("|---|---|---|---|---|---|---|")
    # all are made before any is timed and kept to the end, or a JVM would start cold for each
    for name, raw, ours in list(runnable()):
        rates: dict[str, list[float]] = {"raw": [], "ours": [], "raw reset": [], "ours reset": []}
        for number in range((rounds if "BabyAI" not in name else 10 * rounds) + 1):
            for which, play in (("raw", raw), ("ours", ours)) if number % 2 else (("ours", ours), ("raw", raw)):
                played = [play(number * 5 + k) for k in range(5)]
                if number:  # the first round warms up
                    rates[which].append(sum(p[0] for p in played) / sum(p[1] for p in played))
                    rates[f"{which} reset"].append(len(played) / sum(p[2] for p in played))
        a, b, c, d = (statistics.median(v) for v in rates.values())
        print(f"| {name} | {a:,.0f} | {b:,.0f} | {b / a:.2f} | {c:,.1f} | {d:,.1f} | {d / c:.2f} |", flush=True)


def resident(pid: int) -> int:
    """MiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) // 1024


def memory(episodes: int) -> None:
    tasks = ("boil", "find-animal", "grow-plant", "test-conductivity", "inclined-plane-determine-angle")
    env, steps = envs.lease("ScienceWorld/boil"), 0
    print("| episodes | steps | Python MiB | JVM MiB |\n|---|---|---|---|")
    for episode in range(episodes + 1):
        env.reset(seed=episode, options={"task": tasks[episode % len(tasks)]})
        expert = env.expert()
        while True:
            _, _, terminated, truncated, _ = env.step(expert.act().action)
            steps += 1
            if terminated or truncated:
                break
        if episode % 20 == 0:
            print(f"| {episode} | {steps} | {resident(os.getpid())} | {resident(env.pid)} |", flush=True)  # type: ignore[attr-defined]


def levels(width: int) -> None:
    """``width`` episodes at a time of one task after the other, as a run's stages play the levels of a recipe."""
    print("| task | episodes at a time | resets/s | JVM MiB |\n|---|---|---|---|")
    for task in list(VARIATIONS)[:6] + [name for name in VARIATIONS if name.startswith("lifespan")]:
        playing = [envs.lease(f"ScienceWorld/{task}") for _ in range(width)]
        began = time.perf_counter()
        for number, env in enumerate(playing):
            env.reset(seed=number)
        spent = time.perf_counter() - began
        print(f"| {task} | {width} | {width / spent:.1f} | {resident(playing[0].pid)} |", flush=True)  # type: ignore[attr-defined]
        for env in playing:
            envs.release(env)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--levels", type=int, metavar="WIDTH")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--episodes", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.levels:
        levels(arguments.levels)
    elif arguments.memory:
        memory(arguments.episodes)
    else:
        compare(arguments.rounds)
