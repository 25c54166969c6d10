"""The training loop of one run: plain torch, the same on one process or many."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from ..errors import EmptySelectionError
from ..files import atomic_directory, read_json, write_json
from ..recipe import Finetune
from .data import Example, batches, micro_batches
from .loss import masked_loss


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


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _sum_gradients(model: torch.nn.Module, loss: float) -> float:
    """Add gradients and loss over the workers; every share is already divided by the global token count."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return loss
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None] + [torch.tensor([loss])])
    dist.all_reduce(flat)
    offset = 0
    for p in parameters:
        assert p.grad is not None
        p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
        offset += p.numel()
    return float(flat[-1])


def _save_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, counts: Any) -> None:
    tensors = {f"model.{n}": p.detach().contiguous() for n, p in model.named_parameters()}
    for name, p in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq") if p in optimizer.state else ():
            tensors[f"{key}.{name}"] = optimizer.state[p][key].contiguous()
    with atomic_directory(path) as directory:
        save_file(tensors, directory / "state.safetensors")
        write_json(directory / "state.json", {"step": step, "counts": counts})


def _load_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Any]:
    tensors = load_file(path / "state.safetensors")
    saved = read_json(path / "state.json")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
            if f"exp_avg.{name}" not in tensors:
                continue
            optimizer.state[p] = {
                "step": torch.tensor(float(saved["step"])),
                "exp_avg": tensors[f"exp_avg.{name}"].clone(),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].clone(),
            }
    return saved["step"], saved["counts"]


def train_run(
    model: Any,
    examples: Sequence[Example],
    config: Finetune,
    steps: int,
    seed: int,
    anchor_weight: float,
    pad: int,
    state_dir: Path,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Train ``model`` in place; call it on every worker with the same arguments.

    ``steps`` optimiser steps are taken, with the data in the order of ``seed``. The state is saved every
    ``config.save_every`` steps under ``state_dir`` and found again there, so that a run that was killed ends with
    the same weights as one that was not.

    Returns:
        Counts over all workers: steps, trained, context and cut tokens, padding share, seconds.

    Raises:
        EmptySelectionError: an optimiser step has no token to train.
    """
    rank, world = _rank_and_world()
    base = None
    if anchor_weight:
        base = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    counts = {"trained_tokens": 0, "context_tokens": 0, "cut_tokens": 0, "padded_tokens": 0, "seconds": 0.0}
    done = 0
    if (state_dir / "state.json").exists():
        done, counts = _load_state(state_dir, model, optimizer)
    model.train()
    start, before = time.perf_counter(), counts["seconds"]
    for step, indices in enumerate(batches(len(examples), config.batch_size, steps, seed)):
        if step < done:
            continue
        chosen = [examples[i] for i in indices]
        trained, anchored = sum(len(e.trained) for e in chosen), sum(len(e.anchored) for e in chosen)
        if not trained:
            raise EmptySelectionError(
                f"optimiser step {step} has no token to train: its {len(chosen)} episodes have no selected step"
            )
        warm = max(1, round(config.warmup * steps))
        scale = (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * scale
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for micro in micro_batches(examples, indices, rank, world, config.micro_tokens):
            part = masked_loss(model, micro, trained, pad, anchor_weight, anchored, base)
            part.backward()
            loss += float(part.detach())
        loss = _sum_gradients(model, loss)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip))
        optimizer.step()

        counts["trained_tokens"] += trained
        counts["context_tokens"] += sum(len(e.ids) for e in chosen) - trained
        counts["cut_tokens"] += sum(e.cut for e in chosen)
        for share in range(world):
            for micro in micro_batches(examples, indices, share, world, config.micro_tokens):
                longest = max(len(e.ids) for e in micro)
                counts["padded_tokens"] += sum(longest - len(e.ids) for e in micro)
        seconds = time.perf_counter() - start
        counts["seconds"] = before + seconds
        if rank == 0:
            on_step(Progress(step + 1, steps, loss, trained, config.learning_rate * scale, norm, seconds))
            if (step + 1) % config.save_every == 0 and step + 1 < steps:
                _save_state(state_dir, model, optimizer, step + 1, counts)
    model.eval()
    return {"steps": steps, **counts}
