"""How often the intervals of paired differences hold the truth, where seeds differ little or much.

    python benchmarks/intervals.py                  # 2,000 draws of each kind, a minute on one core
    python benchmarks/intervals.py --draws 200
    python benchmarks/intervals.py --gains 0 0.05 0.1 0.15 --seeds 5 10 --episodes 300 --draws 150

Draws two systems whose true difference is known (``tests/support/made_up_outcomes.py``), and prints the share of 95 %
intervals that hold it, with their median width in brackets. Chained: both come from the same training seeds and share
half of what these differ by. Columns: by how much training seeds move a success rate of one half, or the mean calls.

With ``--gains`` instead: how often a success that is so much above 0.5 is told, chained, with an interval for four
comparisons.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from made_up_outcomes import CALLS, RATES, calls, spread_of_rates, successes

from atlas_ray.data.paired import level_for, paired_counts, paired_difference

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


def show_power(given):
    """The share of draws in which a gain is beyond chance."""
    print(f"| seeds x episodes | move a rate by | {' | '.join(f'{gain:g}' for gain in given.gains)} |")
    print("|---" * (len(given.gains) + 2) + "|")
    for seeds in given.seeds:
        for episodes in given.episodes:
            for spread in (0.1, 0.2):
                told = []
                for gain in given.gains:
                    rng = np.random.default_rng(0)
                    pairs = (
                        successes(rng, (seeds, seeds), episodes, spread, 0.5, rates=(0.5 + gain, 0.5))
                        for _ in range(given.draws)
                    )
                    told.append(
                        statistics.fmean(paired_difference(*p, level_for(4), chained=True).above for p in pairs)
                    )
                row = " | ".join(f"{share:.0%}" for share in told)
                print(f"| {seeds} x {episodes} | {spread_of_rates(spread):.2f} | {row} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--episodes", type=int, nargs="+", default=[100, 200])
    parser.add_argument("--gains", type=float, nargs="+")
    given = parser.parse_args()
    if given.gains:
        show_power(given)
        return
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
