"""``results.json``: the scores of a run, their schema, and how their intervals are made.

The file is a contract with scripts outside the project: unknown keys are refused, and every rate is a share in 0..1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from ..rundir.files import write_json
from .records import load_json
from .replies import ReplyOutcome

ALWAYS_QUICK = "always-quick"
ALWAYS_DEEPTHINK = "always-deepthink"
DECILES = 10
"""Number of equal parts of an episode in which calls are counted."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
ReplyCounts = dict[ReplyOutcome, Count]
"""Counts of a model's replies by outcome, see :class:`atlas_ray.data.replies.Replies`; zeros are left out."""


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )


class Cell(_Strict):
    """A success rate with its 95 % interval."""

    success: Share
    """Share of episodes that succeeded."""
    ci95: tuple[Share, Share]
    """95 % interval of ``success``, see :func:`interval`."""
    episodes: int = Field(ge=1)
    """Episodes played, over all training seeds."""

    @model_validator(mode="after")
    def _inside(self) -> Self:
        _check_interval(self.success, self.ci95)
        return self


class Score(Cell):
    """A success rate over several levels."""

    levels: dict[str, Cell] | None = None
    """The same for each level."""


class ArmCompute(_Strict):
    """FLOPs of models on the way to an arm's model; null where they are not counted.

    2 x weights x tokens where models play or read, of training what had to be computed.
    """

    collect: NonNegative | None
    """To play the collected episodes; 0 of experts."""
    select: NonNegative | None
    """To mark what is trained, roll-outs and whoever proposes included."""
    select_steps: Count | None
    """Environment steps of those roll-outs, replayed ones too."""
    train: NonNegative | None
    """Of one training."""

    @property
    def total(self) -> float | None:
        """Of all three; None where one is not known."""
        parts = (self.collect, self.select, self.train)
        return None if None in parts else sum(part for part in parts if part is not None)


class Arm(_Strict):
    """One way to train, over its training seeds; counts are means of one training run."""

    selector: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """Whose steps carried the loss; ``none`` is the untuned model. Names that are no selector of ours are ensembles
    (``union_value_oracle``) or the user's."""
    fraction: Share
    """The cap m on the share of a trajectory's steps; 0 for ``none``."""
    anchor: float = Field(default=0.0, ge=0)
    """Weight of the KL anchor to the base model; left out of the file when 0."""
    pairs: Literal["sigmoid", "sigmoid_norm"] | None = None
    """Loss of an arm that is trained on the selector's pairs of turns; left out of the file otherwise."""
    seeds: tuple[int, ...]
    """Training seeds, one model each; empty for ``none``."""
    steps_share: Share
    """Share of all steps that carried the loss."""
    trained_tokens: Count
    """Tokens that carried the loss, over all epochs."""
    context_tokens: Count
    """Tokens that were only read, over all epochs."""
    train_seconds: float = Field(ge=0)
    """Wall time of the training, in seconds."""
    compute: ArmCompute | None = None
    """FLOPs to collect, select and train; left out of the file for the untuned model."""
    held_in: Score
    """On levels of which other episodes were trained on."""
    held_out: Score | None
    """On levels that were never trained on; null when the recipe names none."""
    replies: ReplyCounts | None = None
    """Replies of models that write, over all episodes, by outcome; left out where no model writes."""
    lost_episodes: Count = 0
    """Episodes in which the environment or the model gave no answer, which are not scored; left out when 0."""

    @property
    def name(self) -> str:
        """Name of the arm in files and tables, the same as in the recipe."""
        if self.pairs:
            return f"{self.selector}+pairs"
        return self.selector if not self.anchor else f"{self.selector}+anchor{self.anchor:g}"

    @model_validator(mode="after")
    def _untuned(self) -> Self:
        if self.selector == "none" and self.steps_share:
            raise ValueError("steps_share: the untuned model (selector none) has share 0")
        if self.selector != "none" and not self.seeds:
            raise ValueError("seeds: a trained arm names at least one")
        return self


class Atlas(_Strict):
    """ATLaS: the arms, each scored on the same episodes."""

    arms: tuple[Arm, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        keys = [(a.name, a.fraction) for a in self.arms]
        if len(set(keys)) != len(keys):
            raise ValueError("the same arm (selector, fraction, anchor, pairs) stands twice")
        return self


def _cost(given: Any) -> float | str:
    if given == "measured" or (
        isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < math.inf
    ):
        cost: float | str = given
        return cost
    raise ValueError("must be a number of at least 0, or 'measured'")


def _budget(given: Any) -> int | float:
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < math.inf:
        budget: int | float = given
        return budget
    raise ValueError("must be a number of at least 0")


class Policy(_Strict):
    """One way to decide between the models, over the same episodes as the others."""

    name: str = Field(min_length=1)
    """``always-quick``, ``always-deepthink``, ``random(...)`` and other baselines; those of learned switches begin with
    ``londi``."""
    budget: Annotated[int | float, PlainValidator(_budget)] | None = None
    """Most DEEPTHINK calls per episode (LONDI-B), or most of ``budget_unit``."""
    budget_unit: Literal["tokens", "usd"] | None = None
    """What the budget is in, of all models; without it calls."""
    cost: Annotated[float | str, PlainValidator(_cost)] | None = None
    """Price c of a DEEPTHINK call in training (LONDI); ``measured`` charged what each call really took."""
    average: float | None = Field(default=None, gt=0)
    """Mean DEEPTHINK calls per episode that training kept to (Lagrangian)."""
    budget_fraction: float | None = Field(default=None, gt=0, lt=1)
    """The budget is this share of the calls that the first cost's switch makes."""
    of_use: float | None = Field(default=None, gt=0, lt=1)
    """Older name of ``budget_fraction``, written and read for one release."""
    success: Share
    """Share of episodes that succeeded."""
    mean_return: float = Field(alias="return")
    """Mean undiscounted sum of the environment's rewards, without costs of calls. The file says ``return``."""
    ci95: tuple[Share, Share]
    """95 % interval of ``success``, see :func:`interval`."""
    deepthink_share: Share
    """Share of steps taken by DEEPTHINK; with more than two models by any but QUICK, as everywhere here."""
    deepthink_calls_per_episode: float = Field(ge=0)
    """Mean DEEPTHINK calls per episode."""
    calls_by_model: tuple[NonNegative, ...] | None = Field(default=None, min_length=3)
    """Mean steps per episode of each model from QUICK to DEEPTHINK, where there are more than two."""
    called_at: tuple[Share, ...] | None = Field(default=None, min_length=DECILES, max_length=DECILES)
    """Share of the calls in each tenth of the episode; left out where there was no call."""
    compute: float = Field(ge=0)
    """Mean compute per episode, in ``compute_unit``."""
    compute_unit: str = Field(min_length=1)
    """FLOPs, seconds or money, the same for all policies."""
    seconds_per_episode: float | None = Field(default=None, ge=0)
    """Mean wall time of the models per episode, in seconds."""
    tokens_per_episode: float | None = Field(default=None, ge=0)
    """Mean tokens of all models that an episode is paid for; there where a budget of the recipe is not in calls."""
    usd_per_episode: float | None = Field(default=None, ge=0)
    """The same in dollars."""
    catch_up: float | None = Field(default=None, ge=0)
    """Of ``compute`` in FLOPs, what it took to read steps of others, or steps again; left out where it is unknown."""
    run_length: int = Field(default=1, ge=1)
    """Steps that a model acts for once it is called; left out when 1."""
    budget_violations: Count
    """Episodes that exceeded the budget."""
    episodes: int = Field(ge=1)
    """Episodes played, over all training seeds."""
    seeds: tuple[int, ...] = ()
    """Training seeds of a learned switch, one switch each."""
    success_by_seed: tuple[Share, ...] = ()
    """Success of each of them, in their order."""
    chosen_success: Share | None = None
    """Success in the episodes that chose the policies of a learned switch, mean over its training seeds; left out where
    it is not known."""
    checkpoint: str | None = None
    """Directory in ``checkpoints/`` of a rule that is kept as a switch, fitted and not learned."""
    replies: ReplyCounts | None = None
    """Replies of models that write, over all episodes, by outcome; left out where no model writes."""
    lost_episodes: Count = 0
    """Episodes in which a model gave no answer, which are not scored; left out when 0."""

    @property
    def is_switch(self) -> bool:
        """Whether it can be served: a trained switch, or a rule that is kept as one."""
        return self.learned or self.checkpoint is not None

    @property
    def learned(self) -> bool:
        """Whether this is a trained switch and not a baseline (which may have a budget too)."""
        return self.name.startswith("londi")

    @model_validator(mode="after")
    def _older_name(self) -> Self:
        # no validator "before": it would make Python objects of JSON, for which strict validation has other rules
        if self.budget_fraction is None and self.of_use is not None:
            warnings.warn("of_use is now budget_fraction", DeprecationWarning, stacklevel=2)
            object.__setattr__(self, "budget_fraction", self.of_use)
        object.__setattr__(self, "of_use", self.budget_fraction)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_interval(self.success, self.ci95)
        if self.budget_unit != "usd" and isinstance(self.budget, float):
            raise ValueError("budget: must be a whole number of calls or tokens")
        if len(self.success_by_seed) not in (0, len(self.seeds)):
            raise ValueError(f"success_by_seed: must hold one for each of the {len(self.seeds)} seeds")
        return self


class Londi(_Strict):
    """LONDI: the learned switches and their baselines, each on the same episodes."""

    policies: tuple[Policy, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [p.name for p in self.policies]
        if len(set(names)) != len(names):
            raise ValueError("two policies have the same name")
        if len({p.compute_unit for p in self.policies}) > 1:
            raise ValueError("compute_unit: policies measured in different units cannot be compared")
        return self


class Results(_Strict):
    """The whole file; a recipe may have only one of the parts."""

    atlas: Atlas | None = None
    londi: Londi | None = None
    replies: (
        dict[
            Literal["select"],
            dict[Literal["oracle", "mistakes", "value", "deviation", "verified", "start-after"], ReplyCounts],
        ]
        | None
    ) = None
    """Replies that no arm or policy above counts, by stage and by who asked, and by outcome; left out where there are
    none."""
    collected: dict[Literal["successes", "failures", "unknown"], Count] | None = None
    """How the episodes ended that were learnt from; left out where all are successes."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.atlas is None and self.londi is None and not self.replies:
            raise ValueError("holds neither atlas nor londi, and no replies")
        return self


def _check_interval(success: float, ci95: tuple[float, float]) -> None:
    if not ci95[0] - 1e-9 <= success <= ci95[1] + 1e-9:
        raise ValueError(f"ci95: [{ci95[0]:g}, {ci95[1]:g}] does not hold the success of {success:g}")


def load_results(path: str | Path) -> Results:
    """Read ``results.json``.

    Raises:
        InputError: names the file and the dotted field.
    """
    return load_json(Results, path)


def write_results(path: str | Path, results: Results) -> None:
    """Write ``results.json``, atomically. Optional fields that are not set are left out."""
    write_json(path, results.model_dump(mode="json", by_alias=True, exclude_defaults=True))


def wilson(rate: float, episodes: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a rate over ``episodes`` (effective, so not always whole) draws."""
    square = quantile**2
    middle = (rate + square / (2 * episodes)) / (1 + square / episodes)
    spread = rate * (1 - rate) / episodes + square / (4 * episodes**2)
    half = quantile / (1 + square / episodes) * math.sqrt(spread)
    # the rate lies inside but for rounding, at 0 and 1 exactly on the edge
    return max(0.0, min(rate, middle - half)), min(1.0, max(rate, middle + half))


def interval(successes_per_seed: Sequence[Sequence[bool]]) -> tuple[float, float, float]:
    """Mean success and its 95 % interval, for new episodes *and* new training seeds.

    Rows are training seeds, columns are episodes: every row must hold the same episodes in the same order, because a
    hard episode is hard for every seed, and ten models on fifty episodes are not five hundred independent draws.

    One row: Wilson's score interval; it knows nothing of the spread between training seeds.

    Several rows: a two-way random-effects variance of the mean (seeds crossed with episodes), by mean squares,

        V = V_episodes + V_seeds;   V_episodes = MS_episodes / (K n), at least p (1 - p) / (K n)
                                    V_seeds    = max(0, MS_seeds - MS_rest) / (K n)

    put into Wilson's interval as the effective number of draws p (1 - p) / V, with Student's t in place of the normal
    quantile, its degrees of freedom (K - 1) (V / V_seeds)^2 after Satterthwaite. So the interval is about Wilson's
    over pooled episodes when seeds agree, and widens with their spread, most when the seeds are few. In simulation it
    covers 93 to 98 % for up to a moderate spread; two seeds with a very large one can fall to about 83 %, where
    pooled Wilson falls to 52 %. The choice is ours.

    Returns:
        (mean, low, high), all in 0..1.

    Raises:
        ValueError: no episodes, or rows of different lengths.
    """
    lengths = {len(row) for row in successes_per_seed}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError("successes_per_seed: every seed needs the same episodes, at least one")
    y_KN = np.asarray(successes_per_seed, dtype=float)
    seeds, episodes = y_KN.shape
    mean, normal = float(y_KN.mean()), NormalDist().inv_cdf(0.975)
    if seeds == 1 or episodes == 1 or mean in (0.0, 1.0):
        return mean, *wilson(mean, float(y_KN.size), normal)
    by_seed_K1, by_episode_N = y_KN.mean(1, keepdims=True), y_KN.mean(0)
    ms_seeds = episodes * float(by_seed_K1.var(ddof=1))
    ms_episodes = seeds * float(by_episode_N.var(ddof=1))
    rest_KN = y_KN - by_seed_K1 - by_episode_N + mean
    ms_rest = float((rest_KN**2).sum()) / ((seeds - 1) * (episodes - 1))
    binomial = mean * (1 - mean)
    v_seeds = max(0.0, ms_seeds - ms_rest) / y_KN.size
    variance = max(ms_episodes, binomial) / y_KN.size + v_seeds
    if v_seeds == 0.0:
        return mean, *wilson(mean, binomial / variance, normal)
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    quantile = float(stdtrit((seeds - 1) * (variance / v_seeds) ** 2, 0.975))
    return mean, *wilson(mean, binomial / variance, quantile)


def tenths(places: Iterable[tuple[int, int]]) -> tuple[float, ...] | None:
    """Share of steps in each tenth of their episodes, from (0-based step, steps of its episode); None of none.

    Step t of T covers the part [t/T, (t+1)/T) of its episode and is shared out among the tenths it covers, so that
    steps spread evenly give a tenth each however short the episodes are.
    """
    found = [0.0] * DECILES
    for step, steps in places:
        start, end = step * DECILES / steps, (step + 1) * DECILES / steps
        for i in range(DECILES):
            found[i] += max(0.0, min(end, i + 1) - max(start, i)) / (end - start)
    total = sum(found)
    return tuple(share / total for share in found) if total else None


def combine(terms: Sequence[tuple[float, Cell | Policy]]) -> tuple[float, float, float]:
    """A weighted sum of success rates and its 95 % interval, from their intervals (MOVER, Zou & Donner 2008).

    ``[(1, a), (-1, b)]`` is the difference of a and b. The rates are taken as independent. Ours share their episodes,
    which makes the interval of a difference too wide rather than too narrow.
    """
    mean = sum(w * s.success for w, s in terms)
    below = sum((w * (s.success - s.ci95[0 if w > 0 else 1])) ** 2 for w, s in terms)
    above = sum((w * (s.success - s.ci95[1 if w > 0 else 0])) ** 2 for w, s in terms)
    return mean, mean - math.sqrt(below), mean + math.sqrt(above)
