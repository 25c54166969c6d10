"""Made-up episodes of two systems whose true difference is known: hard episodes are hard for both, seeds differ."""

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

RATES, CALLS = (0.6, 0.55), (1.5, 1.0)
"""Of the first and the second system."""


def successes(rng, seeds, episodes, spread=0.0, shared=0.0, rates=RATES, hardness=0.6):
    """Success of two systems, ``[seeds, episodes]`` each.

    Args:
        seeds: of the first and of the second.
        spread: of seeds, on the probit scale: 0.1, 0.2 and 0.4 move a rate of one half by 0.04, 0.08 and 0.15.
        shared: the part of it that seeds of one number have in common.
        hardness: the part of all else that is the episode's.
    """
    hard_N, common_K1 = rng.normal(size=episodes), rng.normal(size=(max(seeds), 1))

    def drawn(rate, count):
        own_K1 = shared**0.5 * common_K1[:count] + (1 - shared) ** 0.5 * rng.normal(size=(count, 1))
        noise_KN = hardness**0.5 * hard_N + (1 - hardness) ** 0.5 * rng.normal(size=(count, episodes))
        return ndtri(rate) * (1 + spread**2) ** 0.5 + spread * own_K1 + noise_KN > 0

    return drawn(rates[0], seeds[0]), drawn(rates[1], seeds[1])


def calls(rng, seeds, episodes, spread=0.0, shared=0.0, means=CALLS):
    """Calls of two systems, none in most episodes and many in a few, ``[seeds, episodes]`` each."""
    hard_N, common_K1 = rng.gamma(0.5, 2, size=episodes), rng.normal(size=(max(seeds), 1))

    def drawn(mean, count):
        own_K1 = shared**0.5 * common_K1[:count] + (1 - shared) ** 0.5 * rng.normal(size=(count, 1))
        each_KN = np.exp(spread * own_K1 - spread**2 / 2) * hard_N * rng.gamma(1, 1, size=(count, episodes))
        return rng.poisson(mean * each_KN)

    return drawn(means[0], seeds[0]), drawn(means[1], seeds[1])


def spread_of_rates(spread):
    """By how much seeds move a rate of one half, standard deviation."""
    at = np.random.default_rng(0).normal(size=10_000)
    return float(ndtr(spread * at).std())


def plain_interval(first, second, chained, counts=False):
    """The 95 % interval of a mean difference by variance components, in plain loops; rows are training seeds."""

    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    def seeds_of(rows):
        k, n = len(rows), len(rows[0])
        if k == 1:
            return 0.0, 0.0
        whole = mean(v for row in rows for v in row)
        by_seed, by_episode = [mean(row) for row in rows], [mean(row[i] for row in rows) for i in range(n)]
        ms_seeds = n * sum((m - whole) ** 2 for m in by_seed) / (k - 1)
        rest = [rows[r][i] - by_seed[r] - by_episode[i] + whole for r in range(k) for i in range(n)]
        ms_rest = sum(v * v for v in rest) / ((k - 1) * (n - 1))
        return max(0.0, ms_seeds - ms_rest) / (k * n), (ms_seeds / (k * n)) ** 2 / (k - 1)

    n = len(first[0])
    d = [mean(row[i] for row in first) - mean(row[i] for row in second) for i in range(n)]
    both = [
        [first[k % len(first)][i] - second[k % len(second)][i] for i in range(n)]
        for k in range(max(len(first), len(second)))
    ]
    parts = [seeds_of(rows) for rows in ([both] if chained else (first, second))]
    middle = mean(d) if counts else sum(d) / (n + 2)
    alone = (sum((x - middle) ** 2 for x in d) + 1) / (n - 1) / n
    if not counts:
        alone = ((sum(x * x for x in d) + 1) / (n + 2) - middle**2) / (n + 2)
    variance = alone + sum(v for v, _ in parts)
    uncertain = sum(u for _, u in parts) + (alone**2 / (n - 1) if counts else 0)
    fewest = min([len(rows) - 1 for rows in ([both] if chained else (first, second)) if len(rows) > 1] or [n - 1])
    free = max(fewest, variance**2 / uncertain) if uncertain else 1e12
    half = student.ppf(0.975, free) * variance**0.5
    return middle - half, middle + half
