"""Pairs of turns as training examples: token ids and the reference's word of them, both kept on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..agents.rendering import Rendered, Renderer
from ..data.pairs import Pair, Side
from ..data.records import Trajectory
from ..errors import ContextOverflowError, EmptySelectionError, InputError
from .data import Example, PairExample
from .store import TokenStore, stored, write_store

_SIDES: tuple[Side, Side] = ("chosen", "rejected")


class PairExamples(Sequence[PairExample]):
    """One example a pair, made when it is asked for.

    Args:
        store: that :func:`build_pair_store` wrote.
        reference: log-probabilities ``[pairs, 2]`` of the reference, see :mod:`atlas_ray.finetune.reference`.
    """

    def __init__(self, store: TokenStore, reference: Any) -> None:
        self.store, self.reference = store, reference

    def __len__(self) -> int:
        return len(self.store) // 2

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        chosen, rejected = (self._side(2 * index + side) for side in (0, 1))
        first, second = self.reference[index]
        return PairExample(chosen, rejected, (float(first), float(second)))

    def _side(self, row: int) -> Example:
        ids = self.store.ids(row).tolist()
        return Example(ids, range(*self.store.spans(row)[-1]), (), 0)


def build_pair_store(
    path: Path,
    pairs: Iterable[Pair],
    renderer: Renderer,
    context: int,
    truncation: str,
    on_all_truncated: str,
    key: str,
) -> TokenStore:
    """Render pairs into ``path``, the chosen and the rejected side of each one after the other, unless they lie there.

    Args:
        path: directory of the store.
        pairs: read once, one by one.
        renderer: of the model's tokenizer.
        context: most tokens of a side.
        truncation: what happens to pairs of which a side is longer: ``error``; with ``drop_first_steps`` both lose as
            many steps of the history's beginning; with ``drop_last_steps`` they lose the turn itself.
        on_all_truncated: what happens to a pair that loses its turn: ``error`` or ``skip``.
        key: names what the store is made of.

    Raises:
        ContextOverflowError: a pair is too long and shall not lose steps, or not even its turn fits.
        InputError: both turns of a pair are the same tokens, or a pair has lost its turn.
        EmptySelectionError: no pair is left.
    """

    def fitted() -> Iterator[tuple[Trajectory, int, Rendered]]:
        for pair in pairs:
            sides = _fit(pair, renderer, context, truncation)
            if sides is not None:
                yield from sides
            elif on_all_truncated == "error":
                raise InputError(
                    f"pair {pair.id!r} is longer than the context of {context} tokens and loses its turn: raise "
                    'finetune.context, drop steps of its beginning (finetune.truncation = "drop_first_steps"), or '
                    'leave such pairs out (finetune.on_all_truncated = "skip")'
                )

    store = stored(path, key) or write_store(path, fitted(), renderer, context, key)
    if not len(store):
        raise EmptySelectionError("no pair fits into the context, so there is nothing to train: raise finetune.context")
    return store


def _fit(
    pair: Pair, renderer: Renderer, context: int, truncation: str
) -> tuple[tuple[Trajectory, int, Rendered], ...] | None:
    """Both sides from the first step on with which both fit; None where the turn itself is what is dropped.

    Raises:
        ContextOverflowError: as in :func:`build_pair_store`.
        InputError: both turns are the same tokens.
    """
    whole = [pair.trajectory(side) for side in _SIDES]
    for first in range(1 + (pair.step if truncation == "drop_first_steps" else 0)):
        sides = [renderer.render(t.model_copy(update={"steps": t.steps[first:]})) for t in whole]
        if max(len(side.ids) for side in sides) <= context:
            chosen, rejected = (side.ids[slice(*side.spans[-1])] for side in sides)
            if chosen == rejected:
                why = "actions only" if renderer.style == "action" else "words that the tokenizer does not know"
                raise InputError(f"pair {pair.id!r}: both turns are the same tokens to the model ({why})")
            return tuple((t, first, side) for t, side in zip(whole, sides, strict=True))
    if truncation == "drop_last_steps":
        return None
    longest = max(len(side.ids) for side in sides)
    if truncation == "error":
        raise ContextOverflowError(
            f"pair {pair.id!r} has {longest} tokens, the model takes {context}: let its history lose steps "
            '(finetune.truncation = "drop_first_steps")'
        )
    raise ContextOverflowError(
        f"pair {pair.id!r}: not even its turn fits into {context} tokens; raise finetune.context"
    )
