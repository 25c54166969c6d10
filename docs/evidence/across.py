"""Differences between the arms of two runs on the episodes that both played, with 95 % intervals.

python docs/evidence/across.py runs/evidence-own runs/evidence-own-more
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from atlas_ray.data.paired import Difference
from atlas_ray.report.headlines import with_interval
from atlas_ray.report.outcomes import Played, compared
from atlas_ray.report.run import read_run


def apart(first: Played, second: Played, levels: set[str]) -> Difference | None:
    """Success of the first less that of the second on these levels; None without an episode that both played."""
    return compared(first, second, counts=lambda episode: episode[0] in levels)


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
                found = apart(
                    one.outcomes.arms[a.name], other.outcomes.arms[b.name], {*(score.levels or {})} if score else set()
                )
                if found is not None:
                    print(f"{split}: {a.name} less {b.name}: {with_interval(found)}")


if __name__ == "__main__":
    main()
