"""Signals, ways to learn and baselines of a switch in one table, from runs of one recipe on the same test episodes.

    python benchmarks/switching_signals.py                    # all, into runs/switching-signals/VARIANT
    python benchmarks/switching_signals.py --quick            # the recipe's small form
    python benchmarks/switching_signals.py --only none loops  # some of them
    python benchmarks/switching_signals.py --table            # the table of what is there

A run that is there goes on, or is not run again. Baselines are played beside the first variant, random calls at each
switch's own rate beside all. By arithmetic an hour and three quarters on two idle cores: `switching` trains and plays
20 switches in half an hour, and each of the seven variants has ten.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from atlas_ray.data.results import combine, load_results
from atlas_ray.rundir.layout import RunLayout

RECIPE = "switching-signals"
LOOPS = ["visits", "unchanged", "since-call"]
VARIANTS: dict[str, dict[str, object]] = {
    "none": {},
    "margin": {"signals": ["margin", "entropy"]},
    "proposal": {"signals": ["proposal"]},
    "loops": {"signals": LOOPS},
    "classifier": {"signals": ["classifier"]},
    "all": {"signals": ["margin", "entropy", "proposal", "catch-up", *LOOPS]},  # but the classifier
    "boundary": {"boundary_episodes": 60},
    "playoff": {"playoff_episodes": 200},
}
"""What each variant sets in ``[switch]``, beside the recipe."""
SMALL = {"boundary_episodes": 6, "playoff_episodes": 8}
"""The same in the small form."""


def run(name: str, directory: Path, quick: bool) -> None:
    """Run one variant, or go on with it."""
    settings = {**({} if name == next(iter(VARIANTS)) else {"baselines": ["random"], "rates": []}), **VARIANTS[name]}
    settings |= {key: SMALL[key] for key in settings if quick and key in SMALL}
    words = [word for key, value in settings.items() for word in (f"--switch.{key}", json.dumps(value))]
    command = [sys.executable, "-m", "atlas_ray", "run", RECIPE, "--out", str(directory), *["--quick"] * quick, *words]
    print(f"{name}: {' '.join(command[3:])}", flush=True)
    subprocess.run(command, check=True)  # noqa: S603


def table(directories: dict[str, Path]) -> None:
    """Print what the runs say; of all but the first the switches and their twins alone."""
    heads = ["variant", "policy", "success", "when chosen", "over random at its rate", "calls", "compute"]
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for variant, directory in directories.items():
        results = load_results(RunLayout(directory).results)
        assert results.londi is not None
        policies = {p.name: p for p in results.londi.policies}
        for p in policies.values():
            if variant != next(iter(VARIANTS)) and not (p.learned or p.name.startswith("random")):
                continue
            limit = "" if p.budget is None else f", n={p.budget}"
            twin = policies.get(f"random(p={p.deepthink_share:.2f}{limit})") if p.learned else None
            over = "" if twin is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*combine([(1, p), (-1, twin)]))
            chosen = "" if p.chosen_success is None else f"{p.chosen_success:.2f}"
            success = f"{p.success:.2f} [{p.ci95[0]:.2f}, {p.ci95[1]:.2f}]"
            calls, compute = f"{p.deepthink_calls_per_episode:.2f}", f"{p.compute:.3g} {p.compute_unit}"
            print(f"| {variant} | {p.name} | {success} | {chosen} | {over} | {calls} | {compute} |")


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--quick", action="store_true", help="the small form of the recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/switching-signals"))
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    directories = {name: options.out / name for name in options.only}
    if not options.table:
        for name, directory in directories.items():
            run(name, directory, options.quick)
    table(directories)


if __name__ == "__main__":
    main()
