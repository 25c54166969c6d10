"""Fitted switches beside DEEPTHINK and random calls at their rate, over several seeds of the recipe `switching-fitted`.

    python benchmarks/switching_fitted.py           # runs/switching-fitted/SEED, nine minutes each on two cores
    python benchmarks/switching_fitted.py --table   # the table of what is there

Each seed has training episodes, a fit and test episodes of its own. What a policy has in the mean, and its differences
on the same episodes, are said with 95 % intervals of Student's t over the seeds, which hold for new fits and new
episodes.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from scipy.special import stdtrit

from atlas_ray.data.paired import Difference
from atlas_ray.data.results import ALWAYS_DEEPTHINK, Policy
from atlas_ray.report.headlines import with_interval
from atlas_ray.report.outcomes import compared
from atlas_ray.report.run import Run, read_run
from atlas_ray.report.switch_reading import family, twins
from atlas_ray.rundir.layout import RunLayout

SEEDS = [0, 2, 3, 4, 5]
"""Not 1, on whose episodes the settings were chosen."""


def over_seeds(values: Sequence[float]) -> Difference:
    """The mean with its interval."""
    mean, seeds = fmean(values), len(values)
    half = stdtrit(seeds - 1, 0.975) * stdev(values) / math.sqrt(seeds) if seeds > 1 else math.nan
    return Difference(mean, mean - half, mean + half)


def apart(run: Run, first: str, second: str) -> float:
    """Success of a policy less that of another on the same episodes."""
    found = compared(run.outcomes.policies[first], run.outcomes.policies[second])
    assert found is not None
    return found.mean


def at_its_rate(policy: Policy, run: Run) -> str | None:
    """The name of random calls as often as a switch's, where they were played."""
    return next((p.name for p in twins(policy, run.policies) if family(p) == "random"), None)


def table(runs: Sequence[Run]) -> None:
    """Print a line for each policy."""
    heads = ["policy", "success", "less DEEPTHINK", "less random at its rate", "calls", "fewer", "MFLOPs", "less"]
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    named: list[dict[str, Policy]] = [{p.name: p for p in run.policies} for run in runs]
    for name, policy in named[0].items():
        if not all(name in by for by in named):
            continue  # random calls at a rate that a switch has by one of the fits
        own, deepthink = [by[name] for by in named], [by[ALWAYS_DEEPTHINK] for by in named]
        random = [at_its_rate(by[name], run) for by, run in zip(named, runs, strict=True)]
        told = policy.checkpoint is not None and None not in random
        to_random = [apart(run, name, other) for run, other in zip(runs, random, strict=True) if told and other]
        success = over_seeds([p.success for p in own])
        cells = [name, f"{success.mean:.2f} [{success.low:.2f}, {success.high:.2f}]"]
        cells.append(with_interval(over_seeds([apart(run, name, ALWAYS_DEEPTHINK) for run in runs])))
        cells.append(with_interval(over_seeds(to_random)) if to_random else "")
        for taken in ("deepthink_calls_per_episode", "compute"):
            mean, most = (fmean(getattr(p, taken) for p in of) for of in (own, deepthink))
            cells += [f"{mean:.2f}" if taken != "compute" else f"{mean / 1e6:,.0f}", f"{1 - mean / most:.0%}"]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="switching-fitted")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("runs/switching-fitted"))
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    directories = [options.out / str(seed) for seed in options.seeds]
    for seed, directory in zip(options.seeds, directories, strict=True):
        if not options.table and not RunLayout(directory).report.is_file():
            command = [sys.executable, "-m", "atlas_ray", "run", options.recipe, "--seed", str(seed)]
            subprocess.run([*command, "--out", str(directory)], check=True)  # noqa: S603
    table([read_run(directory) for directory in directories])


if __name__ == "__main__":
    main()
