"""The training loop of one run: plain torch, the same on one process or many."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import DivergedError, EmptySelectionError, InputError
from ..recipe.loading import Finetune
from .data import Example, batches, share_out
from .flops import Shape, plain_flops, shape_of, training_flops
from .loss import MaskedModel, Scale, packs_whole
from .packing import causal_lm, packed
from .state import load_state, save_state
from .team import Team, half, share_model, sync


@dataclass(frozen=True)
class Progress:
    """One optimiser step: counts are over all workers, ``seconds`` since the run (re)started."""

    step: int
    steps: int
    loss: float
    trained_tokens: int
    learning_rate: float
    grad_norm: float
    seconds: float


@dataclass
class Counts:
    """What a run did, over all workers.

    ``trained_tokens`` carry loss, ``anchored_tokens`` are held to the base, ``context_tokens`` are read besides.
    ``cut_tokens`` stood behind the last of them and were not computed. ``idle_tokens`` might have been while workers
    waited for one with a larger share; nothing is padded. ``seconds`` are of training, validation left out. ``flops``
    is what had to be computed, ``plain_flops`` what plain masking would (0 for kinds of models that are not known).
    ``scores`` are validations as (step, score), ``best`` the step whose weights are kept, if there were any.
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
    examples: Sequence[Example],
    config: Finetune,
    steps: int,
    seed: int,
    state_dir: Path,
    anchor: float = 0.0,
    team: Team | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    validate: Callable[[Any], float] | None = None,
    keep: Callable[[Any], None] = lambda model: None,
    on_save: Callable[[], None] = lambda: None,
) -> Counts:
    """Train ``model`` in place; call it on every worker of the team with the same arguments.

    ``steps`` optimiser steps are taken, with the data in the order of ``seed``. The state is saved every
    ``config.save_every`` steps under ``state_dir`` and found again there, so that a run that was killed ends with
    the same weights as one that was not.

    Args:
        model: a causal LM, or a peft model around one, on the team's device.
        examples: asked for by index, in every optimiser step.
        config: of the recipe.
        steps: optimiser steps.
        seed: of the data order and of dropout.
        state_dir: for training states.
        anchor: weight of the KL divergence to the base at anchored tokens (ours).
        team: the workers that train this model; this process alone by default.
        on_step: told of every optimiser step, on the first worker.
        validate: gives the score of the model; called on every worker, every ``config.validation.every`` steps.
        keep: called on every worker with the model whenever it has the best score so far.
        on_save: told of every state that was saved, on the first worker.

    Raises:
        EmptySelectionError: an optimiser step has no token to train.
        DivergedError: the loss or the gradient is NaN or infinite.
        StorageError: a state could not be written.
        InputError: FSDP2 cannot share out this kind of model.
    """
    team = team or Team()
    inner = causal_lm(model)
    base = _base(model, inner, examples) if anchor else None
    if config.gradient_checkpointing:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    bfloat16 = half(config.precision, team.device)
    shared_out = config.strategy == "fsdp" and team.size > 1
    if shared_out and not packs_whole(inner):
        raise InputError(
            f"FSDP2 workers must pass together, and a {inner.config.model_type} model, or one with an adapter on its "
            'LM head, is trained one sequence at a time here: use finetune.strategy = "ddp"'
        )
    whole = MaskedModel(inner, base, shared_out)
    layers = [part for part in whole.modules() if type(part).__name__ in (inner._no_split_modules or ())]
    module = share_model(whole, layers, team, config.strategy, bfloat16)
    optimizer = torch.optim.AdamW(
        [p for p in inner.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        fused=True,
    )
    counts, shape = Counts(), shape_of(inner.config)
    saved = load_state(state_dir, inner, optimizer, team)
    if saved:
        counts = Counts(**saved["counts"])
        counts.scores = [(step, score) for step, score in counts.scores]
    done = saved["step"] if saved else 0
    start, before = time.perf_counter(), counts.seconds
    half_passes = bfloat16 and not shared_out
    inner.train()
    for step, indices in enumerate(batches(len(examples), config.batch_size, steps, seed)):
        if step < done:
            continue
        chosen = [examples[i] for i in indices]
        plan = share_out([len(e.ids) for e in chosen], team.size, config.micro_tokens)
        scale = _scale(chosen, anchor, step)
        learning_rate = rate(config, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        # dropout must not depend on what was drawn before, or a resumed run would differ
        torch.manual_seed((seed * 1_000_003 + step) * 1_009 + team.rank)
        optimizer.zero_grad(set_to_none=True)
        mine = [[chosen[i] for i in places] for places in plan[team.rank]]
        with packed(inner), packed(whole.base):
            loss = _passes(module, mine, chosen[0], scale, team, half_passes)
        norm = float(_plain(nn.utils.clip_grad_norm_([p for p in inner.parameters() if p.requires_grad], config.clip)))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(_diverged(step, loss, norm, config))
        optimizer.step()

        _count(counts, chosen, plan)
        _count_flops(counts, shape, chosen, config, packs_whole(inner))
        counts.steps = step + 1
        counts.seconds = before + time.perf_counter() - start
        passed = time.perf_counter() - start
        now = Progress(step + 1, steps, loss, _trained(chosen), learning_rate, norm, passed)
        team.together(partial(on_step, now), leader=True)
        stop = False
        if validate and config.validation and ((step + 1) % config.validation.every == 0 or step + 1 == steps):
            paused = time.perf_counter()
            inner.eval()
            stop = _validated(counts, validate(inner), step + 1, config.validation.patience)
            if counts.best == step + 1:
                keep(inner)
            inner.train()
            start += time.perf_counter() - paused
        if stop:
            break
        if (step + 1) % config.save_every == 0 and step + 1 < steps:
            save_state(state_dir, inner, optimizer, team, shared_out, {"step": step + 1, "counts": asdict(counts)})
            team.together(on_save, leader=True)
    inner.eval()
    return counts


def _trained(chosen: Sequence[Example]) -> int:
    return sum(len(e.trained) for e in chosen)


def _base(model: Any, inner: Any, examples: Sequence[Example]) -> Any:
    """What the anchor holds to: the adapters switched off, nothing where log-probabilities were kept, or a copy."""
    if model is not inner:
        return model
    if getattr(examples, "base", None) is not None:
        return None
    return copy.deepcopy(inner).eval().requires_grad_(False)


def _scale(chosen: Sequence[Example], anchor: float, step: int) -> Scale:
    trained, anchored = _trained(chosen), sum(len(e.anchored) for e in chosen)
    if not trained:
        raise EmptySelectionError(
            f"optimiser step {step} has no token to train: its {len(chosen)} episodes have no selected step. "
            "Select more (select.fraction), or raise finetune.batch_size"
        )
    return Scale(1 / trained, anchor / anchored if anchor and anchored else 0.0)


def _passes(module: Any, mine: list[list[Example]], spare: Example, scale: Scale, team: Team, bfloat16: bool) -> float:
    """Forward and backward of this worker's micro-batches; the loss is the team's."""
    total = torch.zeros((), device=team.device)
    for i, micro in enumerate(mine):
        with sync(module, last=i + 1 == len(mine)):
            with torch.autocast(team.device.type, torch.bfloat16, enabled=bfloat16):
                # one without a share of its own must still pass with the others
                part = module(micro, scale) if micro else module([spare], Scale(0.0, 0.0))
            # gradients become the mean over the workers, and shares are to be added
            (part * team.size).backward()
        total += part.detach()
    return float(team.sum(total))


def _plain(norm: Any) -> torch.Tensor:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _diverged(step: int, loss: float, norm: float, config: Finetune) -> str:
    what = f"optimiser step {step + 1}: the loss is {loss}, the gradient's norm {norm}"
    if step == 0:
        return (
            f"{what}, in the first step: likely the base's weights hold NaN or its passes overflow. Try "
            'finetune.precision = "float32", or another finetune.base'
        )
    return (
        f"{what}: likely the learning rate is too high. Lower finetune.learning_rate (it is "
        f"{config.learning_rate:g}), or lengthen finetune.warmup (it is {config.warmup:g})"
    )


def _count(counts: Counts, chosen: Sequence[Example], plan: list[list[list[int]]]) -> None:
    trained, anchored = _trained(chosen), sum(len(e.anchored) for e in chosen)
    counts.trained_tokens += trained
    counts.anchored_tokens += anchored
    counts.context_tokens += sum(len(e.ids) for e in chosen) - trained - anchored
    counts.cut_tokens += sum(e.cut for e in chosen)
    for micros in zip(*plan, strict=True):
        loads = [sum(len(chosen[i].ids) for i in micro) for micro in micros]
        counts.idle_tokens += sum(max(loads) - load for load in loads)


def _count_flops(
    counts: Counts, shape: Shape | None, chosen: Sequence[Example], config: Finetune, narrow: bool
) -> None:
    if shape is None:
        return
    lora, again = config.lora is not None, config.gradient_checkpointing
    read, head = [len(e.ids) for e in chosen], sum(len(e.trained) + len(e.anchored) for e in chosen)
    counts.flops += training_flops(shape, read, head, head if narrow else None, lora, again)
    counts.plain_flops += plain_flops(shape, [len(e.ids) + e.cut for e in chosen], lora, again)


def _validated(counts: Counts, score: float, step: int, patience: int | None) -> bool:
    """Note a score; whether to stop."""
    counts.scores = [(s, v) for s, v in counts.scores if s < step] + [(step, score)]
    best = max(counts.scores, key=lambda pair: (pair[1], -pair[0]))
    counts.best = best[0]
    return patience is not None and len([s for s, _ in counts.scores if s > best[0]]) >= patience
