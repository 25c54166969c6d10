"""What training reads of a run directory, prepared once for all models: token ids, new words, the base's word."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..agents.rendering_chat import make_renderer
from ..agents.unknown_words import refuse, warning
from ..data.pairs import iter_pairs
from ..data.records import iter_trajectories
from ..errors import InputError
from ..models.loading import note_base
from ..models.tiny import frequent_words
from ..recipe.loading import Finetune, Recipe
from ..rundir.files import read_json
from ..rundir.layout import RunLayout
from . import output
from .base_logps import base_logps, worth_keeping
from .pairs import PairExamples, build_pair_store
from .process_group import ProcessGroup, use_bf16
from .reference import reference_logps, shared_reference
from .store import TokenStore, build_store, store_key


def data_digest(run_dir: Path, pairs: str | None = None) -> str:
    """SHA-256 of the trajectories' file, or of that of a selector's pairs."""
    layout = RunLayout(run_dir)
    with (layout.expert if pairs is None else layout.pairs(pairs)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_other_base(recipe: Recipe, run_dir: Path) -> None:
    """Refuse a relative `finetune.base` that means another model where the run is gone on with.

    Raises:
        InputError: the models that are there were tuned from other weights than the recipe's base has now.
    """
    config = recipe.finetune
    assert config is not None
    for arm, seed in ((arm, seed) for arm in config.arms for seed in config.seeds):
        about = RunLayout(run_dir).checkpoint_record(arm.name, seed)
        base = read_json(about).get("base") if about.exists() else None
        if base and "sha256" in base and note_base(config.base).get("sha256") != base["sha256"]:
            raise InputError(
                f"{config.base} holds another model here ({Path(config.base).absolute()}) than {about.parent.name} was "
                "tuned from: start where the run was begun, or give the whole path",
                field="finetune.base",
            )


def new_words(recipe: Recipe, run_dir: Path) -> list[str]:
    """Words of the trajectories that become tokens of a new model; none for a model that has a base."""
    config = recipe.finetune
    if config is None or config.scratch is None or not config.scratch.words:
        return []
    read = iter_trajectories(RunLayout(run_dir).expert)
    texts = (text for t in read for text in (t.instruction, *(f"{s.observation} {s.action}" for s in t.steps)))
    return frequent_words(texts, config.scratch.words)


def open_store(run_dir: Path, pairs: str | None = None) -> TokenStore:
    """The token ids that :func:`prepare` left: of the trajectories, or of a selector's pairs."""
    return TokenStore(_store_dir(run_dir, pairs))


def _store_dir(run_dir: Path, pairs: str | None = None) -> Path:
    return RunLayout(run_dir).training_scratch / ("tokens" if pairs is None else f"pairs-{pairs}")


def prepare(recipe: Recipe, run_dir: Path, device: torch.device) -> list[TokenStore]:
    """Render all trajectories and pairs that arms are trained on, and keep what the base says of them.

    Of trajectories that is kept if an arm is anchored and it is little enough, of pairs it always is, but by
    :func:`share_reference` where FSDP2's workers share the base out.

    Call it in one process before any :func:`atlas_ray.finetune.run.train_arm`; what is there already stays.

    Raises:
        ContextOverflowError: a trajectory or a pair is too long and shall not lose steps.
        StorageError: the disk is full.
        InputError: the tokenizer knows too little of them, or a pair cannot be trained on.
        EmptySelectionError: no pair is short enough.
    """
    config = recipe.finetune
    assert config is not None
    made = [_prepare_pairs(recipe, run_dir, device, name) for name in _of_pairs(config)]
    if all(arm.pairs for arm in config.arms):
        return made
    words = new_words(recipe, run_dir)
    outline, tokenizer = output.outline(recipe, words)
    context = output.context(recipe, outline)
    key = _key(recipe, tokenizer, context, data=data_digest(run_dir))
    store = build_store(
        _store_dir(run_dir),
        iter_trajectories(RunLayout(run_dir).expert),
        make_renderer(tokenizer, recipe.style, recipe.prompt),
        context,
        config.truncation,
        key,
    )
    refuse(store.unknown, recipe.unknown_share, _reader(config), _way_out(config))
    if any(arm.anchor for arm in config.arms) and not config.lora and worth_keeping(outline, store):
        model, _ = output.make_model(recipe, device, words)
        base_logps(base_logps_file(recipe, run_dir, key), model, store, config.micro_tokens)
    return [store, *made]


def _of_pairs(config: Finetune) -> list[str]:
    return list(dict.fromkeys(arm.selector for arm in config.arms if arm.pairs))


def _key(recipe: Recipe, tokenizer: Any, context: int, **data: str) -> str:
    assert recipe.finetune is not None
    return store_key(
        **data,
        tokenizer=_tokenizer_digest(tokenizer),
        renderer=[recipe.style, recipe.prompt],
        context=context,
        too_long=recipe.finetune.truncation,  # (this word stands in the digest of stores that are there)
    )


def _prepare_pairs(recipe: Recipe, run_dir: Path, device: torch.device, name: str) -> TokenStore:
    """Render the pairs of a selector, and keep what the base says of them."""
    config = recipe.finetune
    assert config is not None
    outline, tokenizer = output.outline(recipe)
    context = output.context(recipe, outline)
    key = _key(recipe, tokenizer, context, pairs=data_digest(run_dir, name), without=config.on_all_truncated)
    store = build_pair_store(
        _store_dir(run_dir, name),
        iter_pairs(RunLayout(run_dir).pairs(name)),
        make_renderer(tokenizer, recipe.style, recipe.prompt),
        context,
        config.truncation,
        config.on_all_truncated,
        key,
    )
    refuse(store.unknown, recipe.unknown_share, _reader(config), _way_out(config))
    path = reference_file(recipe, run_dir, key)
    if not path.exists() and not _shared(config):
        model, _ = output.make_model(recipe, device)
        reference_logps(path, model, store, config.pairs, config.micro_tokens, use_bf16(config.precision, device))
    return store


def _shared(config: Finetune) -> bool:
    """Whether no process may hold all of the base."""
    return config.strategy == "fsdp" and config.workers > 1


def share_reference(recipe: Recipe, run_dir: Path, name: str, group: ProcessGroup) -> None:
    """Keep what the base says of a selector's pairs where :func:`prepare` left that to FSDP2's workers.

    Every worker of ``group`` calls it.

    Raises:
        InputError: FSDP2 cannot shard this kind of model, or its weights cannot be read.
        StorageError: the disk is full.
    """
    config = recipe.finetune
    assert config is not None
    if _shared(config):
        store = open_store(run_dir, name)
        pairs = PairExamples(store, np.zeros((len(store) // 2, 2)))
        shared_reference(reference_file(recipe, run_dir, store.key), pairs, config, group)


def reference_file(recipe: Recipe, run_dir: Path, store_digest: str) -> Path:
    """Where the base's log-probabilities of the turns of pairs lie: named after the tokens and the base."""
    assert recipe.finetune is not None
    name = store_key(tokens=store_digest, base=recipe.finetune.base)
    return RunLayout(run_dir).training_scratch / f"reference-{name}.npy"


def base_logps_file(recipe: Recipe, run_dir: Path, store_digest: str) -> Path:
    """Where the base's log-probabilities lie: named after the tokens and the base."""
    config = recipe.finetune
    assert config is not None
    scratch = config.scratch.model_dump() if config.scratch else None
    name = store_key(tokens=store_digest, base=config.base, scratch=scratch, seed=recipe.seed)
    return RunLayout(run_dir).training_scratch / f"base-{name}.npy"


def unknown_warning(recipe: Recipe, store: TokenStore) -> str | None:
    """A warning of words of the trajectories that the tokenizer does not know; None without such words."""
    assert recipe.finetune is not None
    return warning(store.unknown, _reader(recipe.finetune))


def _reader(config: Finetune) -> str:
    return "the new model" if config.scratch else config.base


def _way_out(config: Finetune) -> str:
    if config.scratch:
        return f"Let it learn more words (finetune.scratch.words is {config.scratch.words})"
    return "Take a finetune.base that knows them, or a new model with finetune.scratch.words"


def _tokenizer_digest(tokenizer: Any) -> str:
    text = tokenizer.backend_tokenizer.to_str() if hasattr(tokenizer, "backend_tokenizer") else repr(tokenizer)
    return hashlib.sha256(f"{text}{tokenizer.chat_template}".encode()).hexdigest()
