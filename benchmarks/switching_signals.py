"""Signals, ways to learn and baselines of a switch in one table, from runs of one recipe on the same test episodes.

    python benchmarks/switching_signals.py                    # all, into runs/switching-signals/VARIANT
    python benchmarks/switching_signals.py --quick            # the recipe's small form
    python benchmarks/switching_signals.py --only none loops  # some of them
    python benchmarks/switching_signals.py --table            # the table of what is there

A run that is there goes on, or is not run again. Baselines are played beside the first variant, random calls at each
switch's own rate beside all; all play the same test episodes, and differences are taken on these. Half an hour a
variant on two cores, three quarters the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from atlas_ray.data.results import Policy
from atlas_ray.report.headlines import with_interval
from atlas_ray.report.outcomes import compared
from atlas_ray.report.run import Run, read_run

RECIPE = "switching-signals"
LOOPS = ["visits", "unchanged", "since-call"]
VARIANTS: dict[str, dict[str, object]] = {
    "none": {},
    "margin": {"signals": ["margin", "entropy"]},
    "proposal": {"signals": ["proposal"]},
    "loops": {"signals": LOOPS},
    "classifier": {"signals": ["classifier"]},
    "classifier-alone": {"signals": ["classifier"], "features": 8},  # hardly a word beside it
    "all": {"signals": ["margin", "entropy", "proposal", "catch-up", *LOOPS]},  # but the classifier
    "boundary": {"boundary_episodes": 60},
    "playoff": {"playoff_episodes": 200},
    "hidden": {"encoder": "hidden"},
    "runs": {"run_length": 3},
    "verifier": {"signals": ["verifier"]},
    "random-2000": {"random_episodes": 2_000},
    "random-5000": {"random_episodes": 5_000},
    "random-loops": {"random_episodes": 5_000, "signals": LOOPS},
    "random-classifier": {"random_episodes": 5_000, "signals": ["classifier"]},
    "random-runs": {
        "random_episodes": 5_000,
        "run_length": 2,
        "models": '["tiny-quick", { model = "tiny-deepthink", catch_up = 2 }]',  # as in a recipe
    },
}
"""What each variant sets in ``[switch]``, beside the recipe."""
SMALL = {"boundary_episodes": 6, "playoff_episodes": 8, "random_episodes": 20}
"""The same in the small form."""


def run(name: str, directory: Path, quick: bool, seed: int) -> None:
    """Run one variant, or go on with it."""
    settings = {**({} if name == next(iter(VARIANTS)) else {"baselines": ["random"], "rates": []}), **VARIANTS[name]}
    settings |= {key: SMALL[key] for key in settings if quick and key in SMALL}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    words = [word for key, text in texts.items() for word in (f"--switch.{key}", text)]
    command = [sys.executable, "-m", "atlas_ray", "run", RECIPE, "--out", str(directory), *["--quick"] * quick]
    command += ["--seed", str(seed), *words]
    print(f"{name}: {' '.join(command[3:])}", flush=True)
    subprocess.run(command, check=True)  # noqa: S603


def over(one: Run, policy: Policy, other: Run, second: Policy | None) -> str:
    """Success of a policy less that of another on the same episodes, with a 95 % interval."""
    if second is None:
        return ""
    found = compared(one.outcomes.policies[policy.name], other.outcomes.policies[second.name])
    return "" if found is None else with_interval(found)


def table(directories: dict[str, Path]) -> None:
    """Print what the runs say; of all but the first the switches and their twins alone."""
    heads = ["success", "when chosen", "over random at its rate", "over the same of the first", "over the classifier"]
    heads = ["variant", "policy", *heads, "calls", "compute"]
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    runs = {name: read_run(directory) for name, directory in directories.items()}
    first = next(iter(runs.values()))
    for variant, run in runs.items():
        own, base = ({p.name: p for p in r.results.londi.policies} for r in (run, first))
        for p in own.values():
            if run is not first and not (p.learned or p.name.startswith("random")):
                continue
            limit = "" if p.budget is None else f", n={p.budget}"
            twin = own.get(f"random(p={p.deepthink_share:.2f}{limit})") if p.learned else None
            # the classifier that calls about as often under the same budget
            rules = [q for q in base.values() if q.name.startswith("classifier") and q.budget == p.budget and p.learned]
            rule = min(rules, key=lambda q: abs(q.deepthink_share - p.deepthink_share), default=None)
            chosen = "" if p.chosen_success is None else f"{p.chosen_success:.2f}"
            success = f"{p.success:.2f} [{p.ci95[0]:.2f}, {p.ci95[1]:.2f}]"
            differences = [
                over(run, p, run, twin),
                over(run, p, first, base.get(p.name) if run is not first and p.learned else None),
                over(run, p, first, rule) + (f" ({rule.deepthink_calls_per_episode:.2f} calls)" if rule else ""),
            ]
            calls, compute = f"{p.deepthink_calls_per_episode:.2f}", f"{p.compute / 1e6:,.0f} MFLOPs"
            print(f"| {' | '.join([variant, p.name, success, chosen, *differences, calls, compute])} |")


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--quick", action="store_true", help="the small form of the recipe")
    parser.add_argument("--seed", type=int, default=0, help="of the recipe: other episodes to learn from and to test")
    parser.add_argument("--out", type=Path, help="by default runs/switching-signals, with the seed unless it is 0")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    out = options.out or Path(f"runs/switching-signals{options.seed or ''}")
    directories = {name: out / name for name in options.only}
    if not options.table:
        for name, directory in directories.items():
            run(name, directory, options.quick, options.seed)
    table(directories)


if __name__ == "__main__":
    main()
