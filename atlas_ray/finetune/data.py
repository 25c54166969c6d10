"""From trajectories and annotations to training examples, and the plan of which are trained when."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.records import Annotation
from ..errors import EmptySelectionError, InputError
from .store import TokenStore


@dataclass(frozen=True)
class Example:
    """One trajectory, ready to train on.

    ``ids`` are the token ids, cut after the last one that is trained or anchored (exact, because attention is
    causal). ``trained`` and ``anchored`` hold positions in ``ids`` of tokens with loss and of tokens held to the
    base model. ``cut`` counts the tokens that were cut off. ``base`` are the base's log-probabilities at the anchored
    tokens, ``[len(anchored), V]``, where they were kept.
    """

    ids: Sequence[int]
    trained: Sequence[int]
    anchored: Sequence[int]
    cut: int
    base: Any = None

    @property
    def parts(self) -> tuple[Example, ...]:
        """The sequences that are read for it."""
        return (self,)

    @property
    def size(self) -> int:
        """Tokens that are read for it."""
        return len(self.ids)


@dataclass(frozen=True)
class PairExample:
    """The two sequences of a pair, ready to train on: of each the tokens of the last turn are trained.

    ``reference`` holds the reference model's log-probability of the chosen and of the rejected turn, sums over their
    tokens.
    """

    chosen: Example
    rejected: Example
    reference: tuple[float, float]

    @property
    def parts(self) -> tuple[Example, ...]:
        """The sequences that are read for it."""
        return self.chosen, self.rejected

    @property
    def size(self) -> int:
        """Tokens that are read for it."""
        return self.chosen.size + self.rejected.size


Trained = Example | PairExample
"""What an optimiser step has so many of, and a micro-batch at least one."""


class Examples(Sequence[Example]):
    """One example a trajectory that has an annotation with at least one step, made when it is asked for.

    Args:
        store: the rendered trajectories.
        annotations: of one selector.
        anchored: whether the unselected turns are held to the base.
        base: rows of the base's log-probabilities, one for each token of every turn of the store; None to do without.
        on_all_truncated: what to do with a trajectory that lost all its critical steps to the context: ``error`` or
            ``skip``.

    ``lost`` counts critical steps that did not fit into the context, ``all_truncated`` the trajectories left out for
    it.

    Raises:
        InputError: two annotations of one trajectory, a critical step that it does not have, or a trajectory without
            any critical step left.
        EmptySelectionError: no step of any trajectory is selected.
    """

    def __init__(
        self,
        store: TokenStore,
        annotations: Iterable[Annotation],
        anchored: bool = False,
        base: Any = None,
        on_all_truncated: str = "error",
    ) -> None:
        self.store, self.anchored, self.base = store, anchored, base
        self.lost, self.all_truncated = 0, 0
        chosen: dict[str, tuple[int, ...]] = {}
        for annotation in annotations:
            if annotation.trajectory_id in chosen:
                raise InputError(
                    f"trajectory {annotation.trajectory_id!r} has two annotations: train on one selector's"
                )
            chosen[annotation.trajectory_id] = annotation.critical
        self._rows: list[tuple[int, frozenset[int]]] = []
        for row, entry in enumerate(store.entries):
            critical = chosen.get(entry.id)
            if not critical:
                continue
            if max(critical) >= entry.steps:
                raise InputError(f"trajectory {entry.id!r} has no step {max(critical)}, which is said to be critical")
            left = frozenset(c - entry.first for c in critical if entry.first <= c < entry.first + entry.kept)
            self.lost += len(critical) - len(left)
            if left:
                self._rows.append((row, left))
                continue
            self.all_truncated += 1
            if on_all_truncated == "error":
                raise InputError(
                    f"trajectory {entry.id!r} loses all its {len(critical)} critical steps to the context of "
                    f"{store.context} tokens: raise finetune.context, drop steps of the other side "
                    '(finetune.truncation), or leave such trajectories out (finetune.on_all_truncated = "skip")'
                )
        if not self._rows:
            why = f": {self.all_truncated} lost all of them to the context" if self.all_truncated else ""
            raise EmptySelectionError(
                f"no step of any trajectory is selected, so there is nothing to train on{why}. Likely the selector "
                "marked nothing: look into annotations/, raise select.fraction, or train on another selector"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        row, critical = self._rows[index]
        ids, spans = self.store.ids(row), self.store.spans(row)
        on: list[int] = []
        off: list[int] = []
        rows: list[int] = []
        seen = self.store.turns_before(row)
        for step, (start, end) in enumerate(spans):
            if step in critical:
                on.extend(range(start, end))
            elif self.anchored:
                off.extend(range(start, end))
                rows.extend(range(seen, seen + end - start))
            seen += end - start
        last = max(on[-1], off[-1] if off else 0) + 1
        base = self.base[rows] if self.base is not None and off else None
        return Example(ids[:last].tolist(), on, off, len(ids) - last, base)


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


def share_out(lengths: Sequence[int], world: int, micro_tokens: int) -> list[list[list[int]]]:
    """Places of an optimiser step's sequences by worker and micro-batch: ``[worker][micro-batch][place]``.

    Every worker gets as many micro-batches, since workers that share gradients or weights pass together, and the
    longest go first to wherever is least, so that all have about as many tokens. A micro-batch holds at most
    ``micro_tokens`` tokens or one sequence; one without a sequence is empty.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    least = sum(min(length, micro_tokens) for length in lengths)  # (a longer one fills a micro-batch alone)
    for rounds in itertools.count(max(1, -(-least // (world * micro_tokens)))):
        packs: list[list[int]] = [[] for _ in range(world * rounds)]
        loads = [0] * len(packs)
        for i in order:
            place = loads.index(min(loads))
            packs[place].append(i)
            loads[place] += lengths[i]
        if all(load <= micro_tokens or len(pack) == 1 for load, pack in zip(loads, packs, strict=True)):
            return [packs[worker::world] for worker in range(world)]
    raise AssertionError("unreachable")
