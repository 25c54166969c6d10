"""What several selectors mark together (ours): the paper names a combination of metrics as open.

An ensemble covers the trajectories that all its members cover. Its name says what it is: ``union_value_oracle``,
``intersection_value_perplexity``, ``rank-mean_value_perplexity``; so a member's own name holds no underscore.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..data.records import Annotation, Trajectory, max_critical_steps
from ..errors import InputError
from .controls import by_trajectory

AnnotationsBySelector = Mapping[str, Sequence[Annotation]]
"""Annotations by the name of their selector."""
ScoresBySelector = Mapping[str, Mapping[str, Sequence[float]]]
"""One number per step, higher is more critical, by the name of the selector and the trajectory's id."""


def select_intersection(trajectories: Iterable[Trajectory], members: AnnotationsBySelector) -> list[Annotation]:
    """The steps that every member marked; an empty selection where there is none.

    ``fraction`` is the smallest of the members' caps, which it keeps.
    """
    found = []
    for trajectory, by_member in _covered(trajectories, members):
        critical = set.intersection(*(set(a.critical) for a in by_member.values()))
        found.append(
            _joined("intersection", trajectory, by_member, critical, min(a.fraction for a in by_member.values()))
        )
    return found


def select_union(trajectories: Iterable[Trajectory], members: AnnotationsBySelector) -> list[Annotation]:
    """The steps that any member marked, all of them: it may exceed the members' caps.

    ``fraction`` is then the share that was marked, else the largest of the caps. For members combined under one cap
    there is :func:`select_rank_mean`.
    """
    found = []
    for trajectory, by_member in _covered(trajectories, members):
        critical = set.union(*(set(a.critical) for a in by_member.values()))
        fraction = max(len(critical) / len(trajectory.steps), *(a.fraction for a in by_member.values()))
        found.append(_joined("union", trajectory, by_member, critical, fraction))
    return found


def mark_scores(trajectories: Iterable[Trajectory], annotations: Iterable[Annotation]) -> dict[str, list[float]]:
    """Scores of a selector that only marks: 1.0 for its steps and 0.0 for the others."""
    by_id = by_trajectory(annotations)
    return {
        t.id: [float(i in by_id[t.id].critical) for i in range(len(t.steps))] for t in trajectories if t.id in by_id
    }


def select_rank_mean(trajectories: Iterable[Trajectory], scores: ScoresBySelector, fraction: float) -> list[Annotation]:
    """The ``max_critical_steps(fraction, T)`` steps of the lowest mean rank over the members; the earlier wins ties.

    Rank 1 is a trajectory's most critical step, steps of equal score share their mean rank. Scores are gains for
    ``value`` (:func:`atlas_ray.selection.value.gains`), perplexities, and :func:`mark_scores` for a selector that has
    no scores: then its marked steps are ahead of all others and equal among themselves.

    Raises:
        InputError: a member has not one score for each step of a trajectory.
    """
    name = "_".join(["rank-mean", *scores])
    found = []
    for trajectory in trajectories:
        steps = len(trajectory.steps)
        given = {member: by_id[trajectory.id] for member, by_id in scores.items() if trajectory.id in by_id}
        if len(given) < len(scores):
            continue
        for member, numbers in given.items():
            if len(numbers) != steps:
                raise InputError(f"{member} has {len(numbers)} scores for the {steps} steps of {trajectory.id!r}")
        # ranks are halves, so their sums are exact and ties stay ties
        sums = [sum(each) for each in zip(*map(_ranks, given.values()), strict=True)]
        critical = sorted(sorted(range(steps), key=lambda t: (sums[t], t))[: max_critical_steps(fraction, steps)])
        found.append(
            Annotation(
                trajectory_id=trajectory.id,
                selector=name,
                fraction=fraction,
                critical=tuple(critical),
                reasons={t: f"mean rank {sums[t] / len(given):.2f} of {steps}" for t in critical},
            )
        )
    return found


def _ranks(scores: Sequence[float]) -> list[float]:
    return [sum(other > own for other in scores) + (1 + scores.count(own)) / 2 for own in scores]


def _covered(
    trajectories: Iterable[Trajectory], members: AnnotationsBySelector
) -> Iterable[tuple[Trajectory, dict[str, Annotation]]]:
    """The trajectories that every member annotated, with its annotation by its name."""
    by_ids = {name: by_trajectory(annotations) for name, annotations in members.items()}
    for trajectory in trajectories:
        if all(trajectory.id in by_id for by_id in by_ids.values()):
            yield trajectory, {name: by_id[trajectory.id] for name, by_id in by_ids.items()}


def _joined(
    kind: str, trajectory: Trajectory, by_member: Mapping[str, Annotation], critical: Iterable[int], fraction: float
) -> Annotation:
    """An annotation with the category of the first member that has one, and everyone's reasons."""
    steps = tuple(sorted(critical))
    categories: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for step in steps:
        marking = {name: a for name, a in by_member.items() if step in a.critical}
        given = [a.categories[step] for a in marking.values() if a.categories and step in a.categories]
        if given:
            categories[step] = given[0]
        whys = {name: (a.reasons or {}).get(step) for name, a in marking.items()}
        reasons[step] = "; ".join(f"{name}: {why}" if why else name for name, why in whys.items())
    return Annotation(
        trajectory_id=trajectory.id,
        selector="_".join([kind, *by_member]),
        fraction=fraction,
        critical=steps,
        categories=categories or None,
        reasons=reasons,
    )
