"""What a training run computes and reads, counted over all workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..recipe.loading import Finetune
from .data import Trained
from .flops import Shape, plain_flops, training_flops


@dataclass
class Counts:
    """What a run did, over all workers.

    ``trained_tokens`` carry loss, ``anchored_tokens`` are held to the base, ``context_tokens`` are read besides.
    ``cut_tokens`` stood behind the last of them and were not computed. ``idle_tokens`` could have been computed while
    workers waited for one with a larger share; nothing is padded. ``seconds`` are of training, validation left out.
    ``flops`` is what had to be computed, ``plain_flops`` what plain masking would have cost (0 for kinds of models that
    are not known). ``scores`` are validations as (step, score), ``best`` is the step whose weights are kept, if there
    were any.
    """

    steps: int = 0
    trained_tokens: int = 0
    anchored_tokens: int = 0
    context_tokens: int = 0
    cut_tokens: int = 0
    idle_tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    plain_flops: float = 0.0
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: int | None = None

    def add_tokens(self, chosen: Sequence[Trained], plan: Sequence[Sequence[Sequence[int]]]) -> None:
        """Add the tokens of an optimiser step.

        Args:
            chosen: its sequences.
            plan: of :func:`atlas_ray.finetune.data.share_out`.
        """
        trained, anchored = trained_tokens(chosen), anchored_tokens(chosen)
        self.trained_tokens += trained
        self.anchored_tokens += anchored
        self.context_tokens += sum(e.size for e in chosen) - trained - anchored
        self.cut_tokens += sum(part.cut for e in chosen for part in e.parts)
        for micros in zip(*plan, strict=True):
            loads = [sum(chosen[i].size for i in micro) for micro in micros]
            self.idle_tokens += sum(max(loads) - load for load in loads)

    def add_flops(self, shape: Shape | None, chosen: Sequence[Trained], config: Finetune, narrow: bool) -> None:
        """Add the FLOPs of an optimiser step; none for a model of unknown ``shape``.

        Args:
            shape: of the model.
            chosen: the sequences of the step.
            config: of the recipe.
            narrow: whether the last layer's MLP is computed at the trained and anchored positions only.
        """
        if shape is None:
            return
        lora, again = config.lora is not None, config.gradient_checkpointing
        parts, head = [p for e in chosen for p in e.parts], trained_tokens(chosen) + anchored_tokens(chosen)
        lengths = [p.size for p in parts]
        self.flops += training_flops(shape, lengths, head, head if narrow else None, lora, again)
        self.plain_flops += plain_flops(shape, [p.size + p.cut for p in parts], lora, again)

    def add_score(self, step: int, score: float, patience: int | None) -> bool:
        """Add the score of a validation after ``step``; returns whether training should stop.

        Args:
            step: optimiser steps so far.
            score: of the validation.
            patience: validations without a better score after which training stops; None for no end.
        """
        self.scores = [(s, v) for s, v in self.scores if s < step] + [(step, score)]
        self.best = max(self.scores, key=lambda pair: (pair[1], -pair[0]))[0]
        return patience is not None and sum(s > self.best for s, _ in self.scores) >= patience


def trained_tokens(chosen: Sequence[Trained]) -> int:
    """Tokens with loss."""
    return sum(len(part.trained) for e in chosen for part in e.parts)


def anchored_tokens(chosen: Sequence[Trained]) -> int:
    """Tokens that are held to the base."""
    return sum(len(part.anchored) for e in chosen for part in e.parts)
