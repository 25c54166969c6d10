"""One model, from the run directory's files to its checkpoint; every worker of its process group calls this."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..cluster.remote_rundir import LocalRunDir, open_run_dir
from ..data.replies import Replies
from ..models.loading import load_tokenizer, note_base
from ..recipe.loading import Arm, Recipe
from ..rundir.disk import writing
from ..rundir.files import atomic_directory
from ..rundir.layout import RunLayout
from . import output
from .arm_data import arm_data, items
from .counts import Counts
from .data import steps_of
from .flops import device_peak
from .inputs import new_words, share_reference
from .loop import Progress, train_run
from .packing import causal_lm
from .process_group import ProcessGroup, use_bf16
from .shares import empty_model, unread_model
from .validation import success

_HERE = RunLayout()


def checkpoint_dir(run_dir: Path, arm: Arm, seed: int) -> Path:
    """Where the model of an arm and seed lies: safetensors, tokenizer, ``run.json`` and a model card."""
    return RunLayout(run_dir).checkpoint(arm.name, seed)


def progress_file(run_dir: Path, number: int) -> Path:
    """Where the run of this number says how many optimiser steps it has taken."""
    return RunLayout(run_dir).training_scratch / f"progress-{number}.json"


def train_arm(recipe: Recipe, run_dir: Path, arm: Arm, seed: int, group: ProcessGroup, number: int) -> None:
    """Train the model of an arm and seed and write its checkpoint; every worker of ``group`` calls it.

    ``number`` is the run's among all, for the progress that the driver shows.
    """
    run = _ArmRun(recipe, open_run_dir(run_dir), arm, seed, group, number)
    counts = train_run(
        run.model,
        run.data.examples,
        run.config,
        run.steps,
        seed,
        run.state_dir,
        anchor=arm.anchor,
        pairs=run.config.pairs if arm.pairs else None,
        group=group,
        on_step=run.note_step,
        validate=run.validate if run.config.validation else None,
        keep=run.keep_best,
        on_save=run.send_state,
        unread=run.unread,
    )
    run.write_checkpoint(counts)


class _ArmRun:
    """Model, data and files of one run, on one worker. Its methods are what training calls back.

    Args:
        recipe: with ``[finetune]``.
        at: the run directory as this process sees it.
        arm: what is trained.
        seed: of the data order and of dropout.
        group: the workers that train this model.
        number: of the run among all.
    """

    def __init__(self, recipe: Recipe, at: LocalRunDir, arm: Arm, seed: int, group: ProcessGroup, number: int) -> None:
        assert recipe.finetune is not None
        self.recipe, self.config, self.at, self.group, self.number = (
            recipe,
            recipe.finetune.of_arm(arm),
            at,
            group,
            number,
        )
        self.arm, self.seed, self._step = arm, seed, 0
        self._states = str(_HERE.training_states(arm.name, seed))
        self._best = str(_HERE.best_weights(arm.name, seed))
        for name in (self._states, self._best):
            at.fetch(name)
        self.state_dir = at.root / self._states
        self._words = new_words(recipe, at.root)
        if arm.pairs:
            share_reference(recipe, at.root, arm.selector, group)
        self.unread: Path | None = None
        if (found := unread_model(self.config, group, recipe.seed)) is not None:
            (self.model, self.unread), self.tokenizer = found, load_tokenizer(self.config.base)
        else:
            self.model, self.tokenizer = output.make_model(recipe, group.device, self._words)
        self.data = arm_data(recipe, at.root, arm)
        self.steps = steps_of(items(at.root, arm), self.config.batch_size, self.config.epochs)

    def note_step(self, progress: Progress) -> None:
        """Write what an optimiser step did into the run's metrics."""
        self._step = progress.step
        row = {**self._row(), "loss": progress.loss, "trained_tokens": progress.trained_tokens}
        row |= {"learning_rate": progress.learning_rate, "grad_norm": progress.grad_norm, "seconds": progress.seconds}
        row |= progress.noted
        self.at.append(str(_HERE.metrics), [row])
        self.at.write_json(str(progress_file(Path(), self.number)), {"step": progress.step})

    def _row(self) -> dict[str, Any]:
        return {"stage": "finetune", "arm": self.arm.name, "seed": self.seed, "step": self._step}

    def validate(self, model: Any) -> float:
        """Held-in success of the model so far; the first worker writes it into the run's metrics."""
        replies = Replies()
        score = self._play(model, replies)
        row = {**self._row(), "held_in_success": score, **({"replies": replies.row()} if replies else {})}
        self.group.run_all_or_raise(lambda: self.at.append(str(_HERE.metrics), [row]), leader=True)
        return score

    def _play(self, model: Any, replies: Replies) -> float:
        """Held-in success; a sharded model is put together on the first worker, which plays alone.

        ``replies`` takes what became of the replies that the model wrote, on the first worker at least.
        """
        group = self.group
        if self.config.strategy == "ddp" or group.size == 1:
            return success(self.recipe, model, self.tokenizer, group, replies)
        values = output.weights(model, group)

        def play() -> float:
            whole = causal_lm(output.make_model(self.recipe, group.device, self._words)[0])
            output.put(whole, values)
            return success(self.recipe, whole, self.tokenizer, ProcessGroup(device=group.device), replies)

        alone = group.run_all_or_raise(play, leader=True)
        return float(group.sum(torch.tensor(alone or 0.0, dtype=torch.float64, device=group.device)))

    def keep_best(self, model: Any) -> None:
        """Keep the model's weights as the best so far."""
        values = output.weights(model, self.group)
        best = self.at.root / self._best

        def write() -> None:
            with writing(best), atomic_directory(best) as directory:
                save_file(values, directory / "weights.safetensors")
            self.at.send(self._best)

        self.group.run_all_or_raise(write, leader=True)

    def send_state(self) -> None:
        """Bring a saved training state to the run directory's home."""
        self.at.send(self._states)

    def write_checkpoint(self, counts: Counts) -> None:
        """Write the checkpoint with the best weights, or the last ones without validation; drop the states."""
        sharded = self.config.strategy == "fsdp"
        dtype = getattr(torch, self.config.save_dtype)
        last = output.weights(causal_lm(self.model), self.group, dtype) if sharded else None

        def write() -> None:
            model, values = self.model, last
            if self.unread is not None:
                model = empty_model(self.config, self.unread, self.recipe.seed)
            elif values is not None:
                model = output.make_model(self.recipe, torch.device("cpu"), self._words)[0]
            if counts.best is not None and counts.best != counts.steps:
                values = load_file(self.at.root / self._best / "weights.safetensors")
            if values is not None and (self.unread is None or self.config.lora):
                output.put(causal_lm(model), values)
                values = None
            name = str(_HERE.checkpoint(self.arm.name, self.seed))
            output.write_model(self.at.root / name, model, self.tokenizer, self.recipe, self._record(counts), values)
            self.at.send(name)
            self.at.drop(self._states)
            self.at.drop(self._best)

        self.group.run_all_or_raise(write, leader=True)

    def _record(self, counts: Counts) -> dict[str, Any]:
        """What stands in ``run.json``: how the model was made."""
        device = self.group.device
        read = counts.trained_tokens + counts.anchored_tokens + counts.context_tokens
        dtype = torch.bfloat16 if use_bf16(self.config.precision, device) else torch.float32
        peak = device_peak(device.type, dtype, torch.get_num_threads()) * self.group.size
        return {
            "selector": self.arm.selector,
            "anchor": self.arm.anchor,
            "seed": self.seed,
            **asdict(counts),
            **self.data.about,
            "idle_share": counts.idle_tokens / (read + counts.idle_tokens),
            "tokens_per_second": read / counts.seconds,
            "flops_saved": 1 - counts.flops / counts.plain_flops if counts.plain_flops else None,
            "peak_share": counts.flops / counts.seconds / peak if counts.flops else None,
            "workers": self.group.size,
            "base": None if self.config.scratch else note_base(self.config.base),
        }
