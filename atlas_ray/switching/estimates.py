"""What a policy is worth by logs alone, before anything is deployed: off-policy estimates with intervals.

Two estimates of success, return, calls and money per episode: weighted importance sampling over whole episodes
(self-normalised; Precup et al. 2000), and the weighted doubly robust one (Jiang and Li 2016; Thomas and Brunskill
2016), whose model (:mod:`atlas_ray.switching.fitted_values`) is fitted to other episodes. A policy is deterministic, so
an episode counts as far as its logged models are those that the policy would have let act, with the calls that it would
have had left. Intervals are ours: with Kish's effective sample size in the place of a number of episodes, Student's,
widened by the whole range that was logged over that size, for what so few episodes may not show; a weighted mean in
0..1 has at least Wilson's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fitted_values import Decide, FittedValues
from .transitions import Floats, Transitions, uncertainty

LEAST_ESS = 30.0
"""Effective episodes below which an estimate comes with a warning."""
UNKNOWN_STATE = 0.5
"""Uncertainty from which on a model counts as hardly ever chosen there: less than one like step."""
_NOTABLE = 0.05
"""Share of the steps from which on such a thing is warned of."""
_Z = 1.959963984540054

Row = dict[str, Any]


@dataclass(frozen=True)
class Amounts:
    """What is estimated: ``values`` ``[N, M]`` of each step, whose sums per episode have these names.

    ``bounded`` ``[M]``: whether a sum lies in 0..1.
    """

    names: tuple[str, ...]
    values: Floats
    bounded: NDArray[np.bool_]

    @classmethod
    def of(cls, logs: Transitions, *others: Transitions) -> Amounts:
        """Those of logged steps: success and money only where all episodes, those of ``others`` too, say them."""
        known = (logs, *others)
        parts = {"return": logs.rewards(), "calls": (logs.actions > 0).astype(float)}
        if not any(np.isnan(one.success).any() for one in known):
            parts["success"] = np.zeros(len(logs.actions))
            parts["success"][logs.lasts] = logs.success
        if not any(np.isnan(one.money).any() for one in known):
            parts["money"] = logs.money
        names = tuple(name for name in ("success", "return", "calls", "money") if name in parts)
        values = np.stack([parts[name] for name in names], axis=1)
        return cls(names, values, np.array([name in ("success", "return") for name in names]))


def logged(logs: Transitions) -> Row:
    """What the logged behaviour itself came to, as :func:`estimate` says it."""
    amounts = Amounts.of(logs)
    sums, weights = np.add.reduceat(amounts.values, logs.starts[:-1]), np.ones(logs.episodes)
    found = {name: _weighted(sums[:, m], weights, bool(amounts.bounded[m])) for m, name in enumerate(amounts.names)}
    return {"episodes": logs.episodes, "ess": float(logs.episodes), "plain": found}


def estimate(decide: Decide, models: int, budget: int | None, held_out: Transitions, learned: Transitions) -> Row:
    """Estimates for a policy.

    Args:
        decide: features to models; it keeps to its budget by itself.
        models: how many there are.
        budget: most calls of an episode; None for no limit.
        held_out: logged episodes that the policy has not learned from.
        learned: those that it has, for the model.

    Returns:
        ``episodes``, ``matched`` (those that go the policy's way to the end), ``ess`` (how many equally weighted ones
        would say as much), ``weighted`` and ``doubly_robust`` (``mean``, ``low`` and ``high`` of ``success``,
        ``return``, ``calls``, ``money``; null where nothing can be said) and ``warnings``.
    """
    features, actions = _seen(held_out, budget), held_out.actions
    chosen = decide(features)
    ratios = np.where(chosen == actions, 1 / held_out.probabilities, 0.0)
    weights_ET = _cumulative(ratios, held_out)
    ends = weights_ET[:, -1]
    ess = _effective(ends)
    here, there = Amounts.of(held_out, learned), Amounts.of(learned, held_out)
    sums = np.add.reduceat(here.values, held_out.starts[:-1])
    weighted = {name: _weighted(sums[:, m], ends, bool(here.bounded[m])) for m, name in enumerate(here.names)}
    most: Floats = np.where(here.bounded, 1.0, np.add.reduceat(there.values, learned.starts[:-1]).max(0))
    model = FittedValues(learned, decide, there.values, most, models, budget)
    robust = _doubly_robust(model, features, chosen, weights_ET, ess, held_out, here)
    return {
        "episodes": held_out.episodes,
        "matched": int((ends > 0).sum()),
        "ess": ess,
        "weighted": weighted,
        "doubly_robust": dict(zip(here.names, robust, strict=True)),
        "warnings": _warnings(chosen, models, ess, weights_ET, held_out, learned),
    }


def _seen(logs: Transitions, budget: int | None) -> NDArray[np.float32]:
    """Features as the policy would see them, as long as it had decided as was logged."""
    if budget is None:
        return logs.features()
    return logs.features(np.maximum(0, budget - logs.calls_before()) / budget if budget else 0.0)


def _cumulative(ratios: Floats, logs: Transitions) -> Floats:
    """``[E, T]``: each episode's product of ratios up to each step; behind its end it stays."""
    lengths = np.diff(logs.starts)
    padded = np.ones((logs.episodes, int(lengths.max())))
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = ratios
    return np.asarray(np.cumprod(padded, axis=1), np.float64)


def _effective(weights: Floats) -> float:
    total = weights.sum()
    return float(total**2 / (weights**2).sum()) if total else 0.0


def _weighted(values: Floats, weights: Floats, bounded: bool) -> Row | None:
    """Self-normalised mean with its interval; None where no episode has a weight."""
    total, ess = weights.sum(), _effective(weights)
    if not total:
        return None
    mean = float((weights * values).sum() / total)
    error = math.sqrt(float((weights**2 * (values - mean) ** 2).sum())) / float(total)
    low, high = _student(mean, error, ess, float(np.ptp(values)))
    if bounded:  # weights may go with outcomes, of which Wilson's interval knows nothing
        lowest, highest = _wilson(mean, ess)
        low, high = max(0.0, min(low, lowest)), min(1.0, max(high, highest))
    return _row(mean, low, high)


def _doubly_robust(
    model: FittedValues,
    features: NDArray[np.float32],
    chosen: NDArray[np.int64],
    weights_ET: Floats,
    ess: float,
    logs: Transitions,
    amounts: Amounts,
) -> list[Row | None]:
    """The model's word on each episode's first step, corrected by its weighted errors at all steps."""
    if not ess:
        return [None] * len(amounts.names)
    worth = model(features, chosen)
    ahead = np.roll(worth, -1, axis=0)
    ahead[logs.lasts] = 0.0
    errors = amounts.values + ahead - model(features, logs.actions)
    lengths = np.diff(logs.starts)
    padded = np.zeros((*weights_ET.shape, errors.shape[1]))
    padded[np.arange(weights_ET.shape[1]) < lengths[:, None]] = errors
    shares_ET = weights_ET / weights_ET.sum(0)
    means_TM = np.einsum("et,etm->tm", shares_ET, padded)
    first, ranges = worth[logs.starts[:-1]], np.ptp(np.add.reduceat(amounts.values, logs.starts[:-1]), axis=0)
    means = first.mean(0) + means_TM.sum(0)
    # what each episode moves the estimate by
    moves = first - first.mean(0) + logs.episodes * np.einsum("et,etm->em", shares_ET, padded - means_TM)
    deviations = np.sqrt((moves**2).sum(0)) / logs.episodes
    found: list[Row | None] = []
    columns = (means.tolist(), deviations.tolist(), ranges.tolist(), amounts.bounded)
    for mean, error, whole, bounded in zip(*columns, strict=True):
        low, high = _student(mean, error, ess, whole)
        most = 1.0 if bounded else math.inf
        found.append(_row(*(min(most, max(0.0, x)) for x in (mean, low, high))))
    return found


def _warnings(
    chosen: NDArray[np.int64],
    models: int,
    ess: float,
    weights_ET: Floats,
    held_out: Transitions,
    learned: Transitions,
) -> list[str]:
    """Where the logs cannot tell."""
    found = []
    if ess < LEAST_ESS:
        found.append(
            f"the logs hold {ess:.1f} effective episodes of what this policy does, fewer than {LEAST_ESS:g}: "
            "do not trust these numbers"
        )
    # steps up to which an episode went the policy's way
    lengths = np.diff(held_out.starts)
    before = np.concatenate([np.ones((held_out.episodes, 1)), weights_ET[:, :-1]], axis=1)
    met = before[np.arange(weights_ET.shape[1]) < lengths[:, None]] > 0
    doubt = uncertainty(held_out.encoded, learned.encoded, learned.actions, models)
    for number in range(models):
        wanted = met & (chosen == number)
        if not (learned.actions == number).any() and wanted.any():
            found.append(f"model {number} was never chosen in the logs, and this policy chooses it")
        elif (share := _share(doubt[:, number] > UNKNOWN_STATE, wanted)) > _NOTABLE:
            found.append(f"in {share:.0%} of the states where it chooses model {number} the logs hardly ever did")
    forced = (held_out.probabilities == 1) & (chosen != held_out.actions)
    if (share := _share(forced, met)) > _NOTABLE:
        found.append(f"at {share:.0%} of the steps it wants a model that the logs had no chance to choose")
    return found


def _share(what: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    return float(what[among].mean()) if among.any() else 0.0


def _row(mean: float, low: float, high: float) -> Row:
    return {"mean": mean, "low": low, "high": high}


def _wilson(mean: float, ess: float) -> tuple[float, float]:
    """Of any mean in 0..1: none varies more than one of zeros and ones."""
    middle = (mean + _Z**2 / (2 * ess)) / (1 + _Z**2 / ess)
    half = _Z / (1 + _Z**2 / ess) * math.sqrt(mean * (1 - mean) / ess + _Z**2 / (4 * ess**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _student(mean: float, error: float, ess: float, whole: float) -> tuple[float, float]:
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    half = math.hypot(error * float(stdtrit(max(1.0, ess - 1), 0.975)), whole / ess)
    return mean - half, mean + half
