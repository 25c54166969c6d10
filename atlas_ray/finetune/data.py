"""From trajectories and annotations to training examples, and the plan of which are trained when."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..errors import ContextOverflowError, EmptySelectionError, InputError
from ..rendering import Renderer
from ..trajectory import Annotation, Trajectory


@dataclass(frozen=True)
class Example:
    """One trajectory, ready to train on.

    ``ids`` are the token ids, cut after the last one that is trained or anchored (exact, because attention is
    causal). ``trained`` and ``anchored`` hold positions in ``ids`` of tokens with loss and of tokens held to the
    base model. ``cut`` counts the tokens that were cut off.
    """

    ids: tuple[int, ...]
    trained: tuple[int, ...]
    anchored: tuple[int, ...]
    cut: int


def build_examples(
    trajectories: Iterable[Trajectory],
    annotations: Iterable[Annotation],
    renderer: Renderer,
    context: int,
    anchored: bool = False,
) -> list[Example]:
    """One example a trajectory that has an annotation with at least one step; the others are left out.

    Raises:
        ContextOverflowError: an episode is longer than ``context`` tokens.
        InputError: two annotations of one trajectory, or a critical step that it does not have.
        EmptySelectionError: no step of any trajectory is selected.
    """
    chosen: dict[str, set[int]] = {}
    for annotation in annotations:
        if annotation.trajectory_id in chosen:
            raise InputError(f"trajectory {annotation.trajectory_id!r} has two annotations: train on one selector's")
        chosen[annotation.trajectory_id] = set(annotation.critical)
    examples = []
    for trajectory in trajectories:
        critical = chosen.get(trajectory.id)
        if not critical:
            continue
        if max(critical) >= len(trajectory.steps):
            raise InputError(f"trajectory {trajectory.id!r} has no step {max(critical)}, which is said to be critical")
        rendered = renderer.render(trajectory)
        if len(rendered.ids) > context:
            raise ContextOverflowError(
                f"trajectory {trajectory.id!r} has {len(rendered.ids)} tokens, the model takes {context}: "
                "collect with a smaller max_steps"
            )
        on: list[int] = []
        off: list[int] = []
        for index, (start, end) in enumerate(rendered.spans):
            if index in critical:
                on.extend(range(start, end))
            elif anchored:
                off.extend(range(start, end))
        last = max(on + off) + 1
        examples.append(Example(tuple(rendered.ids[:last]), tuple(on), tuple(off), len(rendered.ids) - last))
    if not examples:
        raise EmptySelectionError("no step of any trajectory is selected: there is nothing to train on")
    return examples


def steps_of(trajectories: int, batch_size: int, epochs: int) -> int:
    """Optimiser steps of a run. It counts all trajectories, annotated or not, so that every arm takes as many."""
    return epochs * -(-trajectories // batch_size)


def batches(examples: int, batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Indices of every optimiser step, in epochs of their own shuffle, until ``steps`` are made.

    Depends on its arguments alone, so a resumed run sees the same order.
    """
    made = 0
    for epoch in itertools.count():
        order = list(range(examples))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for start in range(0, examples, batch_size):
            if made == steps:
                return
            made += 1
            yield order[start : start + batch_size]


def micro_batches(
    examples: Sequence[Example], indices: Sequence[int], rank: int, world: int, micro_tokens: int
) -> list[list[Example]]:
    """This worker's share of an optimiser step, in groups of at most ``micro_tokens`` with the padding.

    In a group the longest is at most 1.3 times the shortest: less padding for more, smaller passes.
    """
    mine = sorted((examples[i] for i in indices), key=lambda e: len(e.ids))[rank::world]
    groups: list[list[Example]] = []
    for example in mine:
        length = len(example.ids)
        if groups and (len(groups[-1]) + 1) * length <= micro_tokens and length <= 1.3 * len(groups[-1][0].ids):
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups
