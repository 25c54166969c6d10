"""What the reference says of the turns of pairs, kept on disk: by one process, or by workers that share it out."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.loading import load_model
from ..recipe.loading import Finetune, Pairs
from ..rundir.disk import writing
from ..rundir.files import replacing
from .data import PairExample
from .packing import causal_lm, packed
from .pairs import PairExamples
from .preference import PreferenceModel
from .process_group import ProcessGroup
from .shares import unread_model
from .store import TokenStore
from .trainer import Trainer


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
        found = turn_logps(model, unknown, config, micro_tokens, bf16)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, found)
    return np.load(path)


@torch.no_grad()
def turn_logps(model: Any, pairs: Sequence[PairExample], config: Pairs, micro_tokens: int, bf16: bool) -> Any:
    """Log-probabilities ``[pairs, 2]`` of the turns of pairs under the reference; arguments as above."""
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


def shared_reference(path: Path, pairs: Sequence[PairExample], config: Finetune, group: ProcessGroup) -> None:
    """Write :func:`reference_logps` of a base that FSDP2's workers share out, unless ``path`` is there.

    No worker holds all of the base, and passes are those that training makes. Every worker of ``group`` calls it.

    Raises:
        InputError: FSDP2 cannot shard this kind of model, or its weights cannot be read.
        StorageError: the disk is full.
    """
    if not group.sum(torch.tensor(float(group.rank == 0 and not path.exists()), device=group.device)):
        return  # (as the first worker sees it: another group may be writing the same)
    bare = config.model_copy(update={"lora": None})
    found = unread_model(bare, group, 0)
    model, unread = found or (load_model(config.base, torch.float32).to(group.device), None)
    read = Trainer(model, [], bare, 0.0, group, config.pairs, unread).turn_reader()
    parts = list(_groups([pair.size for pair in pairs], config.micro_tokens))
    logps = torch.zeros(len(pairs), 2, device=group.device)
    for first in range(0, len(parts), group.size):
        mine = first + group.rank
        # a worker without pairs of its own must still pass with the others
        places = parts[mine if mine < len(parts) else 0]
        said = read([part for place in places for part in pairs[place].parts])
        if mine < len(parts):
            logps[places] = said.unflatten(0, (len(places), 2)).float()
    group.sum(logps)
    del read, model, found
    gc.collect()  # (FSDP2's hooks hold the model in circles)

    def write() -> None:
        with writing(path), replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, logps.cpu().numpy())

    group.run_all_or_raise(write, leader=True)
