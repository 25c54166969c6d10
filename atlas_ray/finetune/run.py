"""One model, from the run directory's files to its checkpoint; what every worker of its team calls."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..agents.rendering_chat import make_renderer
from ..agents.unknown_words import refuse, warning
from ..cluster.remote_rundir import open_run_dir
from ..data.records import iter_trajectories, read_annotations
from ..data.replies import Replies
from ..errors import InputError
from ..models.loading import note_base
from ..models.tiny import frequent_words
from ..recipe.loading import Arm, Finetune, Recipe
from ..rundir.disk import writing
from ..rundir.files import atomic_directory, read_json
from ..rundir.layout import RunLayout
from . import output
from .base_logps import base_logps, worth_keeping
from .data import Examples, steps_of
from .flops import device_peak
from .loop import Counts, Progress, train_run
from .packing import causal_lm
from .store import TokenStore, build_store, store_key
from .team import Team, half
from .validation import success

SCRATCH = "checkpoints/.training"


def checkpoint_dir(run_dir: Path, arm: Arm, seed: int) -> Path:
    """Where the model of an arm and seed lies: safetensors, tokenizer, ``run.json`` and a model card."""
    return run_dir / "checkpoints" / f"{arm.name}-s{seed}"


def expert_file(run_dir: Path) -> Path:
    """The trajectories that are trained on."""
    return RunLayout(run_dir).expert


def scratch_dir(run_dir: Path) -> Path:
    """What training needs on disk until all models are there."""
    return run_dir / SCRATCH


def data_digest(run_dir: Path) -> str:
    """SHA-256 of the trajectories' file."""
    with expert_file(run_dir).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_other_base(recipe: Recipe, run_dir: Path) -> None:
    """A relative `finetune.base` means something else where a run is gone on with in another directory.

    Raises:
        InputError: the models that are there were tuned from other weights than the recipe's base has now.
    """
    config = recipe.finetune
    assert config is not None
    for arm, seed in ((arm, seed) for arm in config.arms for seed in config.seeds):
        about = checkpoint_dir(run_dir, arm, seed) / "run.json"
        base = read_json(about).get("base") if about.exists() else None
        if base and "sha256" in base and note_base(config.base).get("sha256") != base["sha256"]:
            raise InputError(
                f"{config.base} holds another model here ({Path(config.base).absolute()}) than {about.parent.name} was "
                "tuned from: start where the run was begun, or give the whole path",
                field="finetune.base",
            )


def new_words(recipe: Recipe, run_dir: Path) -> list[str]:
    """What a new model's tokenizer learns from the trajectories."""
    config = recipe.finetune
    if config is None or config.scratch is None or not config.scratch.words:
        return []
    read = iter_trajectories(expert_file(run_dir))
    texts = (text for t in read for text in (t.instruction, *(f"{s.observation} {s.action}" for s in t.steps)))
    return frequent_words(texts, config.scratch.words)


def prepare(recipe: Recipe, run_dir: Path, device: torch.device) -> TokenStore:
    """Render all trajectories, and keep what the base says of them if an arm is anchored and it is little enough.

    Call it in one process before any :func:`train_arm`; what is there already stays.

    Raises:
        ContextOverflowError: a trajectory is too long and shall not lose steps.
        StorageError: the disk is full.
        InputError: the tokenizer knows too little of the trajectories.
    """
    config = recipe.finetune
    assert config is not None
    words = new_words(recipe, run_dir)
    outline, tokenizer = output.outline(recipe, words)
    key = store_key(
        data=data_digest(run_dir),
        tokenizer=_tokenizer_digest(tokenizer),
        renderer=[recipe.style, recipe.prompt],
        context=output.context(recipe, outline),
        too_long=config.truncation,
    )
    store = build_store(
        scratch_dir(run_dir) / "tokens",
        iter_trajectories(expert_file(run_dir)),
        make_renderer(tokenizer, recipe.style, recipe.prompt),
        output.context(recipe, outline),
        config.truncation,
        key,
    )
    refuse(store.unknown, recipe.unknown_share, _reader(config), _way_out(config))
    if any(arm.anchor for arm in config.arms) and not config.lora and worth_keeping(outline, store):
        model, _ = output.make_model(recipe, device, words)
        base_logps(_kept(recipe, run_dir, key), model, store, config.micro_tokens)
    return store


def _reader(config: Finetune) -> str:
    return "the new model" if config.scratch else config.base


def _way_out(config: Finetune) -> str:
    if config.scratch:
        return f"Let it learn more words (finetune.scratch.words is {config.scratch.words})"
    return "Take a finetune.base that knows them, or a new model with finetune.scratch.words"


def unknown_warning(recipe: Recipe, store: TokenStore) -> str | None:
    """What is to be said of words of the trajectories that the tokenizer does not know, if there are any."""
    assert recipe.finetune is not None
    return warning(store.unknown, _reader(recipe.finetune))


def _tokenizer_digest(tokenizer: Any) -> str:
    text = tokenizer.backend_tokenizer.to_str() if hasattr(tokenizer, "backend_tokenizer") else repr(tokenizer)
    return hashlib.sha256(f"{text}{tokenizer.chat_template}".encode()).hexdigest()


def _kept(recipe: Recipe, run_dir: Path, key: str) -> Path:
    """Where the base's word lies: another base says something else of the same tokens."""
    config = recipe.finetune
    assert config is not None
    scratch = config.scratch.model_dump() if config.scratch else None
    return (
        scratch_dir(run_dir) / f"base-{store_key(tokens=key, base=config.base, scratch=scratch, seed=recipe.seed)}.npy"
    )


def train_arm(recipe: Recipe, run_dir: Path, arm: Arm, seed: int, team: Team, number: int) -> None:
    """Train the model of an arm and seed and write its checkpoint; every worker of ``team`` calls it.

    ``number`` is the run's among all, for the progress that the driver shows.
    """
    config = recipe.finetune
    assert config is not None
    at = open_run_dir(run_dir)
    run_dir, name = at.root, checkpoint_dir(Path(), arm, seed).name
    target = checkpoint_dir(run_dir, arm, seed)
    states, kept_best = f"checkpoints/.{name}.state", f"checkpoints/.{name}.best"
    for each in (states, kept_best):
        at.fetch(each)
    store = TokenStore(scratch_dir(run_dir) / "tokens")
    annotations = read_annotations(RunLayout(run_dir).annotations(arm.selector))
    words = new_words(recipe, run_dir)
    model, tokenizer = output.make_model(recipe, team.device, words)
    kept = _kept(recipe, run_dir, store.key)
    base = np.load(kept, mmap_mode="r") if arm.anchor and kept.exists() else None
    examples = Examples(store, annotations, arm.anchor > 0, base, config.on_all_truncated)
    steps = steps_of(len(store), config.batch_size, config.epochs)
    best = run_dir / kept_best
    step_now = 0

    def on_step(progress: Progress) -> None:
        nonlocal step_now
        step_now = progress.step
        row = {"stage": "finetune", "arm": arm.name, "seed": seed, "step": progress.step, "loss": progress.loss}
        row |= {"trained_tokens": progress.trained_tokens, "learning_rate": progress.learning_rate}
        row |= {"grad_norm": progress.grad_norm, "seconds": progress.seconds}
        at.append("metrics.jsonl", [row])
        at.write_json(f"{SCRATCH}/progress-{number}.json", {"step": progress.step})

    def validate(trained: Any) -> float:
        replies = Replies()
        score = _score(recipe, trained, tokenizer, team, words, replies)
        row = {"stage": "finetune", "arm": arm.name, "seed": seed, "step": step_now, "held_in_success": score}
        row |= {"replies": replies.row()} if replies else {}
        team.together(lambda: at.append("metrics.jsonl", [row]), leader=True)
        return score

    def keep(trained: Any) -> None:
        values = output.weights(trained, team)

        def write() -> None:
            with writing(best), atomic_directory(best) as directory:
                save_file(values, directory / "weights.safetensors")
            at.send(kept_best)

        team.together(write, leader=True)

    counts = train_run(
        model,
        examples,
        config,
        steps,
        seed,
        run_dir / states,
        anchor=arm.anchor,
        team=team,
        on_step=on_step,
        validate=validate if config.validation else None,
        keep=keep,
        on_save=lambda: at.send(states),
    )
    last = output.weights(causal_lm(model), team) if config.strategy == "fsdp" else None

    def write() -> None:
        whole = model
        if last is not None:
            whole = output.make_model(recipe, torch.device("cpu"), words)[0]
            output.put(causal_lm(whole), last)
        if counts.best is not None and counts.best != counts.steps:
            output.put(causal_lm(whole), load_file(best / "weights.safetensors"))
        about = _about(recipe, run_dir, arm, seed, counts, examples, team)
        selected = sum(len(a.critical) for a in annotations)
        about["steps_share"] = selected / sum(entry.steps for entry in store.entries)
        output.write_model(target, whole, tokenizer, recipe, about)
        at.send(f"checkpoints/{name}")
        at.drop(states)
        at.drop(kept_best)

    team.together(write, leader=True)


def _score(recipe: Recipe, trained: Any, tokenizer: Any, team: Team, words: Sequence[str], replies: Replies) -> float:
    """Held-in success; a model that is shared out is put together on the first worker, which plays alone.

    ``replies`` takes what became of those that the model wrote, on the first worker at least.
    """
    config = recipe.finetune
    assert config is not None
    if config.strategy == "ddp" or team.size == 1:
        return success(recipe, trained, tokenizer, team, replies)
    values = output.weights(trained, team)

    def play() -> float:
        whole = causal_lm(output.make_model(recipe, team.device, words)[0])
        output.put(whole, values)
        return success(recipe, whole, tokenizer, Team(device=team.device), replies)

    alone = team.together(play, leader=True)
    return float(team.sum(torch.tensor(alone or 0.0, dtype=torch.float64, device=team.device)))


def _about(
    recipe: Recipe, run_dir: Path, arm: Arm, seed: int, counts: Counts, examples: Examples, team: Team
) -> dict[str, Any]:
    config = recipe.finetune
    assert config is not None
    about: dict[str, Any] = {"selector": arm.selector, "anchor": arm.anchor, "seed": seed, **asdict(counts)}
    read = counts.trained_tokens + counts.anchored_tokens + counts.context_tokens
    kind = torch.bfloat16 if half(config.precision, team.device) else torch.float32
    peak = device_peak(team.device.type, kind, torch.get_num_threads()) * team.size
    about |= {
        "examples": len(examples),
        "trajectories": len(examples.store),
        "emptied": examples.emptied,
        "lost_critical_steps": examples.lost,
        "shortened": sum(entry.kept < entry.steps for entry in examples.store.entries),
        "idle_share": counts.idle_tokens / (read + counts.idle_tokens),
        "tokens_per_second": read / counts.seconds,
        "flops_saved": 1 - counts.flops / counts.plain_flops if counts.plain_flops else None,
        "peak_share": counts.flops / counts.seconds / peak if counts.flops else None,
        "workers": team.size,
        "data_sha256": data_digest(run_dir),
        "unknown": examples.store.unknown,
        "base": None if config.scratch else note_base(config.base),
    }
    return about
