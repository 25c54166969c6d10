"""Stage 3: every arm and seed in one Ray Train worker group."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from ..errors import AtlasError
from ..files import RunLog, append_jsonl, atomic_directory, read_json, write_json
from ..models import context_of, load_model, load_tokenizer
from ..progress import duration, say, track
from ..recipe import Arm, Finetune, Recipe
from ..rendering import Renderer
from ..tiny import build_model, build_tokenizer
from ..trajectory import read_annotations, read_trajectories
from ..workers import ensure_ray
from .data import build_examples, steps_of
from .loop import Progress, train_run


def checkpoint_dir(run_dir: Path, arm: Arm, seed: int) -> Path:
    """Where the model of an arm and seed lies: safetensors, tokenizer and ``run.json``."""
    return run_dir / "checkpoints" / f"{arm.name}-s{seed}"


def _runs(config: Finetune) -> list[tuple[Arm, int]]:
    return [(arm, seed) for seed in config.seeds for arm in config.arms]


def _train_one(recipe: Recipe, run_dir: Path, arm: Arm, seed: int, rank: int, number: int) -> None:
    config = recipe.finetune
    assert config is not None
    trajectories = read_trajectories(run_dir / "trajectories" / "expert.jsonl")
    annotations = read_annotations(run_dir / "annotations" / f"{arm.selector}.jsonl", trajectories)
    if config.scratch:
        tokenizer, model = build_tokenizer(), build_model(**config.scratch.model_dump(), seed=recipe.seed)
    else:
        tokenizer, model = load_tokenizer(config.base), load_model(config.base)
    if torch.cuda.is_available():
        model = model.to(f"cuda:{torch.cuda.current_device()}")
    renderer = Renderer(tokenizer, recipe.style)
    examples = build_examples(trajectories, annotations, renderer, context_of(model), anchored=arm.anchor > 0)
    steps = steps_of(len(trajectories), config.batch_size, config.epochs)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    target = checkpoint_dir(run_dir, arm, seed)

    def on_step(progress: Progress) -> None:
        row = {"stage": "finetune", "arm": arm.name, "seed": seed, "step": progress.step, "loss": progress.loss}
        row |= {"trained_tokens": progress.trained_tokens, "learning_rate": progress.learning_rate}
        row |= {"grad_norm": progress.grad_norm, "seconds": progress.seconds}
        append_jsonl(run_dir / "metrics.jsonl", [row])
        write_json(run_dir / ".finetune.json", {"run": number, "step": progress.step, "steps": progress.steps})

    state = run_dir / "checkpoints" / f".{target.name}.state"
    counts = train_run(model, examples, config, steps, seed, arm.anchor, pad, state, on_step)
    if rank == 0:
        selected = sum(len(a.critical) for a in annotations)
        share = selected / sum(len(t.steps) for t in trajectories)
        if config.save_dtype == "float16":
            model = model.half()
        with atomic_directory(target) as directory:
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            about = {"selector": arm.selector, "anchor": arm.anchor, "seed": seed, "steps_share": share, **counts}
            about |= {"examples": len(examples), "trajectories": len(trajectories)}
            write_json(directory / "run.json", about)
        shutil.rmtree(state, ignore_errors=True)


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


def _worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs: all runs that are not done yet, one after the other."""
    import ray.train
    import torch.distributed as dist

    _quiet()
    recipe, run_dir = Recipe.model_validate(config["recipe"]), Path(config["run_dir"])
    assert recipe.finetune is not None
    rank = ray.train.get_context().get_world_rank()
    torch.set_num_threads(config["threads"])
    for number, (arm, seed) in enumerate(_runs(recipe.finetune)):
        if not (checkpoint_dir(run_dir, arm, seed) / "run.json").exists():
            _train_one(recipe, run_dir, arm, seed, rank, number)
            if dist.is_initialized():
                dist.barrier()
        ray.train.report({"run": number})


def _follow(path: Path, runs: int, total: int, done: int, stop: threading.Event) -> None:
    """Shows the progress that rank 0 writes, until told to stop."""
    per_run = max(1, total // runs)
    with track("optimiser steps", total, done) as progress:
        while not stop.wait(0.5):
            if path.exists():
                now = read_json(path)
                progress.advance(now["run"] * per_run + now["step"] - progress.done)


def finetune(recipe: Recipe, run_dir: Path) -> list[Path]:
    """Train one model an arm and seed into ``checkpoints/ARM-sSEED/``; finished ones are kept.

    Raises:
        AtlasError: training failed; the message is the worker's.
    """
    config = recipe.finetune
    assert config is not None
    runs = _runs(config)
    targets = [checkpoint_dir(run_dir, arm, seed) for arm, seed in runs]
    missing = [t for t in targets if not (t / "run.json").exists()]
    if not missing:
        return targets
    if not config.scratch:
        load_tokenizer(config.base)  # a wrong name should fail here and now, not in a worker
    trajectories = read_trajectories(run_dir / "trajectories" / "expert.jsonl")
    per_run = steps_of(len(trajectories), config.batch_size, config.epochs)
    say(f"  {len(missing)} of {len(runs)} models to train, {per_run} optimiser steps each")
    progress_file, stop = run_dir / ".finetune.json", threading.Event()
    progress_file.unlink(missing_ok=True)
    done = (len(runs) - len(missing)) * per_run
    watcher = threading.Thread(
        target=_follow, args=(progress_file, len(runs), len(runs) * per_run, done, stop), daemon=True
    )
    watcher.start()
    start = time.monotonic()
    try:
        if config.workers == 0:
            for number, (arm, seed) in enumerate(runs):
                if not (checkpoint_dir(run_dir, arm, seed) / "run.json").exists():
                    _train_one(recipe, run_dir, arm, seed, 0, number)
        else:
            _fit(recipe, run_dir, config)
    finally:
        stop.set()
        watcher.join()
        progress_file.unlink(missing_ok=True)
    say(f"  trained in {duration(time.monotonic() - start)}")
    return targets


def _fit(recipe: Recipe, run_dir: Path, config: Finetune) -> None:
    ensure_ray(config.workers)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    gpu = torch.cuda.is_available()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "run_dir": str(run_dir.resolve()),
            "threads": max(1, (os.cpu_count() or 1) // config.workers),
        },
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpu, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="finetune",
            storage_path=str((run_dir / ".ray").resolve()),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        cause = _root(error)
        RunLog(run_dir).event("finetune", "failed", why=str(cause))
        if isinstance(cause, AtlasError):
            raise cause from error
        raise AtlasError(
            f"fine-tuning failed: {type(cause).__name__}: {str(cause).strip().splitlines()[-1]}"
        ) from error


def _root(error: BaseException) -> BaseException:
    failures = getattr(error, "worker_failures", None)
    if failures:
        return _root(next(iter(failures.values())))
    cause = getattr(error, "cause", None)
    return _root(cause) if isinstance(cause, BaseException) else error
