"""The training loop of one run: plain torch, the same on one process or many."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import AtlasError
from ..recipe.loading import Finetune, Pairs
from .counts import Counts, trained_tokens
from .data import Trained, batches, share_out
from .flops import shape_of
from .process_group import ProcessGroup
from .trainer import Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """One optimiser step: counts are over all workers, ``seconds`` since the run (re)started.

    ``noted`` holds what else a loss says of the step, by name.
    """

    step: int
    steps: int
    loss: float
    trained_tokens: int
    learning_rate: float
    grad_norm: float
    seconds: float
    noted: dict[str, float] = field(default_factory=dict)


def rate(config: Finetune, step: int, steps: int) -> float:
    """Learning rate of the optimiser step ``step`` (from 0) of ``steps``."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    left = (steps - step) / max(1, steps - warm)
    shape = {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[config.schedule]
    return config.learning_rate * shape


def train_run(
    model: Any,
    examples: Sequence[Trained],
    config: Finetune,
    steps: int,
    seed: int,
    state_dir: Path,
    anchor: float = 0.0,
    pairs: Pairs | None = None,
    group: ProcessGroup | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    validate: Callable[[Any], float] | None = None,
    keep: Callable[[Any], None] = lambda model: None,
    on_save: Callable[[], None] = lambda: None,
    unread: Path | None = None,
) -> Counts:
    """Train ``model`` in place; call it on every worker of the group with the same arguments.

    ``steps`` optimiser steps are taken, with the data in the order of ``seed``. The state is saved every
    ``config.save_every`` steps under ``state_dir`` and found again there, so that a run that was killed ends with
    the same weights as one that was not.

    Args:
        model: a causal LM, or a peft model around one, on the group's device.
        examples: asked for by index, in every optimiser step.
        config: of the recipe.
        steps: optimiser steps.
        seed: of the data order and of dropout.
        state_dir: for training states.
        anchor: weight of the KL divergence to the base at anchored tokens (ours).
        pairs: the loss of examples that are pairs; None where they are none.
        group: the workers that train this model; this process alone by default.
        on_step: called after every optimiser step, on the first worker.
        validate: gives the score of the model; called on every worker, every ``config.validation.every`` steps.
        keep: called on every worker with the model whenever it has the best score so far.
        on_save: called after every saved state, on the first worker.
        unread: the directory of the weights of a ``model`` that has none yet, see :mod:`atlas_ray.finetune.shares`.

    Raises:
        EmptySelectionError: an optimiser step has no token to train.
        DivergedError: the loss or the gradient is NaN or infinite.
        StorageError: a state could not be written.
        AtlasError: the GPU has too little memory.
        InputError: FSDP2 cannot shard this kind of model, or its weights cannot be read.
    """
    group = group or ProcessGroup()
    trainer = Trainer(model, examples, config, anchor, group, pairs, unread)
    if group.rank == 0:
        _log.info("attention: %s", trainer.attention)
    done, counts = _resumed(trainer, state_dir)
    clock, shape = _Clock(counts.seconds), shape_of(trainer.model.config)
    trainer.model.train()
    for step, indices in enumerate(batches(len(examples), config.batch_size, steps, seed)):
        if step < done:
            continue
        chosen = [examples[i] for i in indices]
        plan = share_out([e.size for e in chosen], group.size, config.micro_tokens)
        learning_rate = rate(config, step, steps)
        with _memory_explained(config, group):
            taken = trainer.step(step, chosen, plan, learning_rate, seed)

        counts.add_tokens(chosen, plan)
        counts.add_flops(shape, chosen, config, trainer.narrow)
        counts.steps, counts.seconds = step + 1, clock.total()
        passed = clock.passed()
        tokens = trained_tokens(chosen)
        now = Progress(step + 1, steps, taken.loss, tokens, learning_rate, taken.norm, passed, taken.noted)
        group.run_all_or_raise(partial(on_step, now), leader=True)
        last = step + 1 == steps
        if validate and config.validation and ((step + 1) % config.validation.every == 0 or last):
            with clock.paused():
                stop = _validate(trainer.model, counts, validate, keep, config.validation.patience)
            if stop:
                break
        if (step + 1) % config.save_every == 0 and not last:
            trainer.save(state_dir, {"step": step + 1, "counts": asdict(counts)})
            group.run_all_or_raise(on_save, leader=True)
    trainer.model.eval()
    return counts


@contextmanager
def _memory_explained(config: Finetune, group: ProcessGroup) -> Iterator[None]:
    """Within, a GPU that is full is an error that says which settings take less.

    Of several workers one alone may be full, and the others wait for it: its error stays one that ends them all.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        ways = [] if config.gradient_checkpointing else ["finetune.gradient_checkpointing = true"]
        ways.append(f"a smaller finetune.micro_tokens (it is {config.micro_tokens}; the loss stays)")
        ways += [] if config.lora else ["finetune.lora"]
        if config.strategy == "ddp":
            ways.append('finetune.strategy = "fsdp" with more finetune.workers')
        first = str(error).partition(". ")[0]
        why = (
            f"{first}. What takes less, in this order: {'; '.join(ways)}. The same command goes on from the last state"
        )
        raise AtlasError(why, code="no_memory") if group.size == 1 else torch.OutOfMemoryError(why) from error


def _resumed(trainer: Trainer, state_dir: Path) -> tuple[int, Counts]:
    """Optimiser steps that are done, and what was counted in them."""
    saved = trainer.load(state_dir)
    if not saved:
        return 0, Counts()
    counts = Counts(**saved["counts"])
    counts.scores = [(step, score) for step, score in counts.scores]  # (JSON has lists)
    return saved["step"], counts


def _validate(
    model: Any, counts: Counts, validate: Callable[[Any], float], keep: Callable[[Any], None], patience: int | None
) -> bool:
    """Score the model, and keep its weights if they are the best so far; returns whether training should stop."""
    model.eval()
    stop = counts.add_score(counts.steps, validate(model), patience)
    if counts.best == counts.steps:
        keep(model)
    model.train()
    return stop


class _Clock:
    """Seconds of training, without those in which it was paused."""

    def __init__(self, before: float) -> None:
        self._before, self._start = before, time.perf_counter()

    def passed(self) -> float:
        """Seconds since the run (re)started."""
        return time.perf_counter() - self._start

    def total(self) -> float:
        """Those and the seconds before."""
        return self._before + self.passed()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, time does not count."""
        begun = time.perf_counter()
        yield
        self._start += time.perf_counter() - begun
