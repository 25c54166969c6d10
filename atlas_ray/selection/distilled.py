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
    own_N = logp_NV.gather(1, turns.targets_N[:, None])[:, 0]
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

    ``quality`` are its numbers on trajectories that neither fitted nor tuned it.
    """

    head: Head
    threshold: float
    quality: dict[str, Any]


def distil(teacher: MarkedRun, features: Features, groups: Sequence[int], fraction: float) -> Distilled:
    """Fit a head on a teacher's marks, tune and test it on other trajectories of the same run.

    The threshold makes as many marks as the teacher's on the trajectories that tune, or as many as the cap allows.

    Args:
        teacher: trajectories and marks.
        features: of the trajectories; those without are left out.
        groups: sizes of the groups of features.
        fraction: the cap m.

    Raises:
        InputError: there are too few trajectories, or too few or too many marks, to fit, tune and test.
    """
    parts = parts_of(t for t in teacher.trajectories if t.id in features)
    steps = {part: sum(len(t.steps) for t in each) for part, each in parts.items()}
    marked = {part: _marked(each, teacher.marks) for part, each in parts.items()}
    for part, found in marked.items():
        if not found.any() or found.all():
            raise InputError(
                f"marks {int(found.sum())} of {steps[part]} steps of the {len(parts[part])} trajectories that {part} "
                f"the head (of {len(teacher.trajectories)}): it takes more trajectories, with steps of both kinds",
                field=FIELD,
            )
    known = sorted({t.env for t in teacher.trajectories})
    read = {
        part: Steps(
            np.concatenate([features[t.id] for t in each]),
            marked[part],
            np.repeat([known.index(t.env) for t in each], [len(t.steps) for t in each]),
        )
        for part, each in parts.items()
    }
    head = fit_head(read["fit"], read["tune"], groups)
    tuned = {t.id: head.probabilities(features[t.id]) for t in parts["tune"]}
    threshold = threshold_for(tuned.values(), int(marked["tune"].sum()), fraction)
    scores = {t.id: head.probabilities(features[t.id]) for t in parts["test"]}
    chosen = [select_by_probability(t, scores[t.id], fraction, threshold) for t in parts["test"]]
    told = head.probabilities(read["test"].features_NF)
    compared = agreement(parts["test"], chosen, [teacher.marks[t.id] for t in parts["test"]], ("distilled", "teacher"))
    quality = {
        "trajectories": len(chosen),
        "steps": steps["test"],
        "auc": auc(told, marked["test"]),
        "brier": brier(told, marked["test"]),
        "brier_of_share": brier(np.full(len(told), marked["fit"].mean()), marked["test"]),
        "calibration_error": calibration_error(told, marked["test"]),
        **marks_quality(_marked(parts["test"], {a.trajectory_id: a for a in chosen}), marked["test"]),
        "kappa_ci95": list(compared.kappa_ci95) if compared.kappa_ci95 else None,
    }
    return Distilled(head, threshold, quality)


def threshold_for(probabilities: Iterable[NDArray[np.float64]], marks: int, fraction: float) -> float:
    """The probability from which on ``marks`` steps are marked, at most ``max_critical_steps`` of each trajectory.

    Ties may make it more; where the cap allows fewer, it is the least of those that the cap lets through.
    """
    let_through = [np.sort(each)[::-1][: max_critical_steps(fraction, len(each))] for each in probabilities]
    ordered = np.sort(np.concatenate(let_through))[::-1]
    return float(ordered[min(marks, len(ordered)) - 1])


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
