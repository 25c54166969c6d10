"""How often the 95 % intervals of off-policy estimates hold the true value, in logs that nothing was set by.

    python benchmarks/switching_estimates.py                 # 100 logs a game, of seeds that no test uses
    python benchmarks/switching_estimates.py --first 5000    # others

The tests use the logs of seeds 0 to 99, and the intervals were made wide enough on these.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

import numpy as np
from estimate_coverage import GAMES, coverage


def main() -> None:
    """Print a row per game: of each interval how many logs it held in, and its mean width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=1_000, help="seed of the first log")
    parser.add_argument("--logs", type=int, default=100, help="of each game")
    parser.add_argument("--games", nargs="+", choices=GAMES, default=list(GAMES))
    options = parser.parse_args()
    kinds = [(kind, what) for kind in ("weighted", "doubly_robust") for what in ("return", "calls")]
    heads = ["game", "effective episodes, median", *(f"{kind.replace('_', ' ')}, {what}" for kind, what in kinds)]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for game in options.games:
        found = coverage(game, range(options.first, options.first + options.logs))
        cells = [f"{found.held[kind]} ({np.mean(found.widths[kind]):.3f})" for kind in kinds]
        print(f"| {game} | {np.median(found.ess):.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
