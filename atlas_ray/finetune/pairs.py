"""Pairs of turns as training examples: token ids and the reference's word of them, both kept on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..agents.rendering import Rendered, Renderer
from ..data.pairs import Pair, Side
from ..data.records import Trajectory
from ..errors import ContextOverflowError, EmptySelectionError, InputError
from ..recipe.loading import Pairs
from ..rundir.files import replacing
from .data import Example, PairExample
from .packing import causal_lm, packed
from .preference import PreferenceModel
from .store import TokenStore, stored, write_store

_SIDES: tuple[Side, Side] = ("chosen", "rejected")


class PairExamples(Sequence[PairExample]):
    """One example a pair, made when it is asked for.

    Args:
        store: that :func:`build_pair_store` wrote.
        reference: log-probabilities ``[pairs, 2]`` of the reference, see :func:`reference_logps`.
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


def reference_logps(path: Path, model: Any, store: TokenStore, config: Pairs, micro_tokens: int, bf16: bool) -> Any:
    """Log-probabilities ``[pairs, 2]`` of the chosen and the rejected turns, float32, from ``path``; made if missing.

    They are sums over a turn's tokens, by the passes that training makes, so that both agree.

    Args:
        path: named after what the store and the reference are.
        model: the reference; of a peft model the base, its adapters switched off.
        store: that :func:`build_pair_store` wrote.
        config: of the recipe.
        micro_tokens: most tokens of a pass over more than one pair.
        bf16: whether passes compute in bfloat16.
    """
    if not path.exists():
        unknown = PairExamples(store, np.zeros((len(store) // 2, 2)))
        found = _reference(model, unknown, config, micro_tokens, bf16)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, found)
    return np.load(path)


@torch.no_grad()
def _reference(model: Any, pairs: PairExamples, config: Pairs, micro_tokens: int, bf16: bool) -> Any:
    inner, training = causal_lm(model), model.training
    reader = PreferenceModel(inner, config)
    device = next(inner.parameters()).device
    found = np.zeros((len(pairs), 2), dtype=np.float32)
    off = model.disable_adapter() if model is not inner else nullcontext()
    model.eval()
    with off, packed(inner), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for group in _groups([pair.size for pair in pairs], micro_tokens):
            parts = [part for place in group for part in pairs[place].parts]
            found[group] = reader.turn_logps(parts).unflatten(0, (len(group), 2)).float().cpu().numpy()
    model.train(training)
    return found


def _groups(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of like size, together at most ``most``, or one alone."""
    group: list[int] = []
    for place in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if group and sum(sizes[i] for i in group) + sizes[place] > most:
            yield group
            group = []
        group.append(place)
    yield group
