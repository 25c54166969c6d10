"""Differences between the arms of two runs on the episodes that both played, with 95 % intervals.

python docs/evidence/across.py runs/evidence-own runs/evidence-own-more
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from atlas_ray.report.headlines import with_interval
from atlas_ray.report.outcomes import compared
from atlas_ray.report.run import read_run


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each pair of arms and each split."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path, help="run directory")
    parser.add_argument("second", type=Path, help="run directory that played the same test episodes")
    given = parser.parse_args(argv)
    one, other = read_run(given.first), read_run(given.second)
    for a in one.arms:
        for b in other.arms:
            for split, score in (("held-in", a.held_in), ("held-out", a.held_out)):
                levels = {*(score.levels or {})} if score else set()
                first, second = (
                    {k: {e: hit for e, hit in played.items() if e[0] in levels} for k, played in arms.items()}
                    for arms in (one.outcomes.arms[a.name], other.outcomes.arms[b.name])
                )
                found = compared(first, second)
                if found is not None:
                    print(f"{split}: {a.name} less {b.name}: {with_interval(found)}")


if __name__ == "__main__":
    main()
