"""How often the intervals of paired differences hold the truth, where seeds differ little or much.

    python benchmarks/intervals.py                  # 2,000 draws of each kind, a minute on one core
    python benchmarks/intervals.py --draws 200

Draws two systems whose true difference is known (``tests/support/made_up_outcomes.py``), and prints the share of 95 %
intervals that hold it, with their median width in brackets. Chained: both come from the same training seeds and share
half of what these differ by. Columns: by how much training seeds move a success rate of one half, or the mean calls.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from made_up_outcomes import CALLS, RATES, calls, spread_of_rates, successes

from atlas_ray.data.paired import paired_counts, paired_difference

SPREADS = (0.0, 0.1, 0.2, 0.4)
KINDS = {
    "success": (successes, paired_difference, RATES[0] - RATES[1]),
    "calls": (calls, paired_counts, CALLS[0] - CALLS[1]),
}


def measured(kind, seeds, episodes, spread, chained, draws):
    """Share of intervals that hold the truth, and their median width."""
    draw, compare, truth = KINDS[kind]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        pair = draw(rng, (seeds, seeds), episodes, spread, 0.5 if chained else 0.0)
        found.append(compare(*pair, chained=chained))
    return statistics.fmean(d.low <= truth <= d.high for d in found), statistics.median(d.high - d.low for d in found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--episodes", type=int, nargs="+", default=[100, 200])
    given = parser.parse_args()
    for kind in KINDS:
        heads = " | ".join(f"{spread_of_rates(s):.2f}" if kind == "success" else f"{s:.0%}" for s in SPREADS)
        for chained in (True, False):
            print(f"\n| {kind}, {'chained' if chained else 'not chained'}: seeds x episodes | {heads} |")
            print("|---" * (len(SPREADS) + 1) + "|")
            for seeds in given.seeds:
                for episodes in given.episodes:
                    cells = [
                        "{:.3f} ({:.2f})".format(*measured(kind, seeds, episodes, spread, chained, given.draws))
                        for spread in (SPREADS if seeds > 1 else SPREADS[:1])
                    ]
                    print(f"| {seeds} x {episodes} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
