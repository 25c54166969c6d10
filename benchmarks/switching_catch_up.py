"""What it saves, and costs, when DEEPTHINK reads less of what it missed, or is called in runs.

    python benchmarks/switching_catch_up.py                                   # all rows, 200 test episodes each
    python benchmarks/switching_catch_up.py --reads all "catch_up 2" --runs 1  # some, and those that are there

What was played is in ``catch-up.json`` (``--json``) and not played again. A row takes about 40 s of CPU time.

tiny-quick and tiny-deepthink on GoToLocalS6N4 and PickupDist, as in recipe ``switching``. Nothing is trained: DEEPTHINK
acts throughout, or at random with a chance that gives it the same share of the steps whatever the length of its runs.
All rows play the same episodes of the test split. ``window w`` slides: w past steps are shown at every answer.
``catch_up w``: after a gap of more than w steps it reads the goal and the last w, and reads on from there.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlas_ray.agents.rollout import SWITCH_TEST, env_spec, seed_block
from atlas_ray.cluster.worker_state import WorkerState
from atlas_ray.data.results import interval
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir import files
from atlas_ray.switching.baselines import Always, Random
from atlas_ray.switching.decision_cache import DecisionCache
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.players import open_players
from atlas_ray.switching.policies import chance_of_a_run

LEVELS, MAX_STEPS = ["GoToLocalS6N4", "PickupDist"], 20
READINGS: dict[str, dict[str, int]] = {
    "all": {},
    "window 4": {"window": 4},
    "window 2": {"window": 2},
    "catch_up 4": {"catch_up": 4},
    "catch_up 2": {"catch_up": 2},
    "catch_up 0": {"catch_up": 0},
}
"""Fields of DEEPTHINK in the recipe."""
RUNS = (1, 2, 4)

Row = dict[str, Any]


def play(reading: str, policy: Any, run: int, count: int, cache: DecisionCache, state: WorkerState) -> list[Row]:
    """The same episodes by one policy."""
    models = ["tiny-quick", {"model": "tiny-deepthink", **READINGS[reading]}]
    switch = {"models": models, "levels": LEVELS, "max_steps": MAX_STEPS, "costs": [0.02]}
    recipe = Recipe.model_validate({"name": "catch-up", "workers": 0, "switch": switch})
    specs = [env_spec(recipe, level, MAX_STEPS, "test") for level in LEVELS]
    first = seed_block(recipe.seed, SWITCH_TEST)
    seeds = range(first, first + count)
    return evaluate_policy(policy, open_players(recipe, state), specs, seeds, run=run, decision_cache=cache)


def interval_of_gap(row: Row, base: Row) -> str:
    """Mean difference of successes in the same episodes."""
    gaps = np.array(row["success"], float) - np.array(base["success"], float)
    return f"{gaps.mean():+.2f} ± {1.96 * gaps.std(ddof=1) / math.sqrt(len(gaps)):.2f}"


def table(found: dict[str, Row]) -> None:
    """Print the rows that are there; differences are to the one that reads all, in runs of one step."""
    heads = ["policy", "reads", "run", "success", "over all, run 1", "calls", "MFLOPs to catch up", "MFLOPs"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, row in found.items():
        policy, reading, run = name.split("; ")
        success, low, high = interval([row["success"]])
        base = found.get(f"{policy}; all; 1")
        over = "" if base is None or base is row else interval_of_gap(row, base)
        calls, *flops = (float(np.mean(row[name])) for name in ("calls", "catch_up", "flops"))
        cells = [f"{calls:.2f}", *(f"{amount / 1e6:,.0f}" for amount in flops)]
        print(
            f"| {policy} | {reading} | {run} | {success:.2f} [{low:.2f}, {high:.2f}] | {over} | {' | '.join(cells)} |"
        )


def main() -> None:
    """Play what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--share", type=float, default=1 / 3, help="of the steps that are calls")
    parser.add_argument("--reads", nargs="+", choices=READINGS, default=list(READINGS))
    parser.add_argument("--runs", nargs="+", type=int, choices=RUNS, default=list(RUNS))
    parser.add_argument("--alone", action="store_true", help="QUICK alone, and DEEPTHINK alone, too")
    parser.add_argument("--json", type=Path, default=Path("catch-up.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    plans: list[tuple[str, str, Any, int]] = []
    if options.alone:
        plans.append(("always QUICK", "all", Always(0), 1))
        # what it has not missed it need not catch up: with catch_up it reads as with all
        own = [reading for reading in options.reads if not reading.startswith("catch_up")]
        plans += [("always DEEPTHINK", reading, Always(1), 1) for reading in own]
    for reading in options.reads:
        for run in options.runs:
            policy = Random(chance_of_a_run(options.share, run))
            plans.append((f"random, {options.share:.0%}", reading, policy, run))
    cache, state = DecisionCache(), WorkerState()
    found: dict[str, Row] = files.read_json(options.json) if options.json.is_file() else {}
    for who, reading, policy, run in plans:
        if (name := f"{who}; {reading}; {run}") not in found:
            rows = play(reading, policy, run, options.episodes, cache, state)
            found[name] = {
                key: [row[key] for row in rows] for key in ("success", "calls", "steps", "catch_up", "flops")
            }
            files.write_json(options.json, found)
    table(found)


if __name__ == "__main__":
    main()
