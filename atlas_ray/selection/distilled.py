"""Critical steps by prediction (ours): a head learns from steps what another selector marked, and marks other episodes.

Marks that are dear, such as an answer of a large model per trajectory or roll-outs per step, are then made once on some
trajectories. What a head reads of a step are a model's hidden states behind the prompt of the step and behind the
expert's action, how likely that turn is to the model, and the place in the episode; or, with an encoder of text, the
observation and the turn under the goal, and the place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.marked_run import MarkedRun
from ..data.records import Annotation, Trajectory, max_critical_steps
from ..errors import InputError
from ..models.encoders import Encoder
from .agreement import agreement
from .head import Head, Steps, fit_head
from .quality import auc, brier, calibration_error, marks_quality
from .turn_pass import TurnPass

Features = Mapping[str, NDArray[np.float32]]
"""``[T, F]`` of each trajectory, by its id."""
FIELD = "select.distilled.teacher"
_SAID, _PLACE = 6, 4
_MOST_FOLDS = 5
_LEAST_LOGP = -100.0  # of a token that a model holds impossible
_PARTS = ("fit", "fit", "fit", "tune", "test")
"""Trajectories of an environment are dealt out to these in turn."""


def place_features(steps: int) -> NDArray[np.float32]:
    """``[T, 4]``: share of the episode done with each step, whether it is first or last, log of all steps."""
    done_T = np.arange(1, steps + 1) / steps
    first_T, last_T = np.eye(1, steps, 0)[0], np.eye(1, steps, steps - 1)[0]
    return np.stack([done_T, first_T, last_T, np.full(steps, np.log(steps))], 1).astype(np.float32)


def groups_of(width: int, model: bool) -> tuple[int, ...]:
    """Sizes of the groups of ``width`` features, of a model or of an encoder of text."""
    said = (_SAID,) if model else ()
    states = (width - sum(said) - _PLACE) // 2
    return states, states, *said, _PLACE


@torch.inference_mode()
def model_features(turns: TurnPass) -> NDArray[np.float32]:
    """``[T, 2 H + 10]`` of a model's pass over a trajectory.

    The state behind the prompt of each step and the state behind its turn; the log-probability of the turn (sum, mean
    and least over its tokens) and the entropy of the model (before the turn, mean and most over its tokens);
    :func:`place_features`.
    """
    ends = np.cumsum(turns.lengths)
    logp_NV = turns.logits_NV.float().log_softmax(-1)
    own_N = logp_NV.gather(1, turns.targets_N[:, None])[:, 0].clamp_min(_LEAST_LOGP)
    # a token of probability 0 adds nothing, and not NaN
    entropy_N = -(logp_NV.exp() * logp_NV.clamp_min(torch.finfo(torch.float32).min)).sum(-1)
    said = [
        torch.stack([own.sum(), own.mean(), own.min(), entropy[0], entropy.mean(), entropy.max()])
        for own, entropy in zip(own_N.split(turns.lengths), entropy_N.split(turns.lengths), strict=True)
    ]
    states_NH = turns.states_NH.float()
    read = torch.cat([states_NH[ends - np.array(turns.lengths)], states_NH[ends - 1], torch.stack(said)], 1)
    return np.concatenate([read.cpu().numpy(), place_features(len(turns.lengths))], 1)


def text_features(encoder: Encoder, trajectory: Trajectory) -> NDArray[np.float32]:
    """``[T, 2 W + 4]``: observation and turn, each under the goal, and :func:`place_features`."""
    goal = " ".join(trajectory.instruction.split())
    seen = encoder([f"{goal}\n{step.observation}" for step in trajectory.steps])
    done = encoder([f"{goal}\n{f'{step.thought}. ' if step.thought else ''}{step.action}" for step in trajectory.steps])
    return np.concatenate([seen, done, place_features(len(trajectory.steps))], 1)


def parts_of(trajectories: Iterable[Trajectory]) -> dict[str, list[Trajectory]]:
    """Trajectories to ``fit`` a head on (three of five), to ``tune`` it and to ``test`` it, by their ids alone.

    Each environment is dealt out evenly.
    """
    drawn = sorted(trajectories, key=lambda t: (t.env, hashlib.sha256(t.id.encode()).digest()))
    found: dict[str, list[Trajectory]] = {part: [] for part in _PARTS}
    for number, trajectory in enumerate(drawn):
        found[_PARTS[number % len(_PARTS)]].append(trajectory)
    return found


@dataclass(frozen=True)
class Distilled:
    """A fitted head and from which probability on a step is marked.

    Attributes:
        head: says how probable a mark is.
        threshold: the least probability of a marked step.
        held_out: its numbers on trajectories that neither fitted nor tuned it.
        left_out: numbers of heads that were fitted and tuned without an environment, on all its trajectories, over all
            environments: what to expect elsewhere. None where that cannot be had.
    """

    head: Head
    threshold: float
    held_out: dict[str, Any]
    left_out: dict[str, Any] | None


class Distiller:
    """Learns a teacher's marks.

    Args:
        teacher: trajectories and marks.
        features: of the trajectories; those without are left out.
        groups: sizes of the groups of features.
        fraction: the cap m.
    """

    def __init__(self, teacher: MarkedRun, features: Features, groups: Sequence[int], fraction: float) -> None:
        self._teacher, self._features, self._groups, self._fraction = teacher, features, groups, fraction
        self._there = [t for t in teacher.trajectories if t.id in features]

    def distil(self) -> Distilled:
        """Fit a head, tune it and test it, each on other trajectories.

        Raises:
            InputError: there are too few trajectories, or too few or too many marks.
        """
        parts = parts_of(self._there)
        for part, each in parts.items():
            if not each or not (steps := self._steps(each)).of_both_kinds:
                marks = (
                    f"marks {int(steps.marked_N.sum())} of {len(steps.marked_N)} steps of" if each else "has none of"
                )
                raise InputError(
                    f"{marks} the {len(each)} trajectories that {part} the head (of {len(self._there)}): it takes more "
                    "trajectories, with steps of both kinds",
                    field=FIELD,
                )
        head, threshold = self._fit(parts)
        held_out = self._quality([(head, threshold, parts["test"])])
        return Distilled(head, threshold, held_out, self._left_out())

    def _left_out(self) -> dict[str, Any] | None:
        known = sorted({t.env for t in self._there})
        folds = [known[n::_MOST_FOLDS] for n in range(min(_MOST_FOLDS, len(known)))]
        found = []
        for fold in folds:
            parts = parts_of(t for t in self._there if t.env not in fold)
            if not all(parts[part] and self._steps(parts[part]).of_both_kinds for part in ("fit", "tune")):
                return None
            found.append((*self._fit(parts), [t for t in self._there if t.env in fold]))
        return self._quality(found)

    def _fit(self, parts: Mapping[str, Sequence[Trajectory]]) -> tuple[Head, float]:
        """The threshold makes as many marks as the teacher's where it is tuned, or as many as the cap allows."""
        tune = self._steps(parts["tune"])
        head = fit_head(self._steps(parts["fit"]), tune, self._groups)
        told = [head.probabilities(self._features[t.id]) for t in parts["tune"]]
        return head, threshold_for(told, int(tune.marked_N.sum()), self._fraction)

    def _steps(self, trajectories: Sequence[Trajectory]) -> Steps:
        features = np.concatenate([self._features[t.id] for t in trajectories])
        return Steps(features, _marked(trajectories, self._teacher.marks))

    def _quality(self, tests: Sequence[tuple[Head, float, Sequence[Trajectory]]]) -> dict[str, Any]:
        """Numbers over several heads, each with its threshold and its trajectories."""
        tested = [t for _, _, trajectories in tests for t in trajectories]
        told = {t.id: head.probabilities(self._features[t.id]) for head, _, each in tests for t in each}
        chosen = [select_by_probability(t, told[t.id], self._fraction, least) for _, least, each in tests for t in each]
        marks = [self._teacher.marks[t.id] for t in tested]
        truth, said = _marked(tested, self._teacher.marks), np.concatenate([told[t.id] for t in tested])
        compared = agreement(tested, chosen, marks, ("distilled", "teacher"))
        return {
            "trajectories": len(tested),
            "steps": len(truth),
            "auc": auc(said, truth),
            "brier": brier(said, truth),
            "brier_of_share": brier(np.full(len(truth), truth.mean()), truth),
            "calibration_error": calibration_error(said, truth),
            **marks_quality(_marked(tested, {a.trajectory_id: a for a in chosen}), truth),
            "kappa_ci95": list(compared.kappa_ci95) if compared.kappa_ci95 else None,
        }


def threshold_for(probabilities: Iterable[NDArray[np.float64]], marks: int, fraction: float) -> float:
    """The probability from which on ``marks`` steps are marked, at most ``max_critical_steps`` of each trajectory.

    It lies midway between the last step that is marked and the first that is not. Ties may make it more steps; where
    the cap allows fewer, it is the least of those that the cap lets through.
    """
    let_through = [np.sort(each)[::-1][: max_critical_steps(fraction, len(each))] for each in probabilities]
    ordered = np.sort(np.concatenate(let_through))[::-1]
    return float(ordered[marks - 1 : marks + 1].mean()) if marks < len(ordered) else float(ordered[-1])


def select_by_probability(
    trajectory: Trajectory, probabilities: Sequence[float] | NDArray[np.float64], fraction: float, threshold: float
) -> Annotation:
    """The ``max_critical_steps(fraction, T)`` most probable steps, of those from the threshold on; there may be none.

    The earlier wins ties.
    """
    ranked = sorted(range(len(trajectory.steps)), key=lambda t: (-probabilities[t], t))
    likely = ranked[: max_critical_steps(fraction, len(ranked))]
    critical = sorted(t for t in likely if probabilities[t] >= threshold)
    return Annotation(
        trajectory_id=trajectory.id,
        selector="distilled",
        fraction=fraction,
        critical=tuple(critical),
        reasons={t: f"probability {probabilities[t]:.2f}" for t in critical},
    )


def _marked(trajectories: Iterable[Trajectory], marks: Mapping[str, Annotation]) -> NDArray[np.bool_]:
    found = [step in marks[t.id].critical for t in trajectories for step in range(len(t.steps))]
    return np.array(found, bool)
