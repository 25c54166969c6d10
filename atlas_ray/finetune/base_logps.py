"""What the base says of every token of every turn, kept on disk: an anchor then costs no pass of the base (ours)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F

from ..models.config import text_config
from ..rundir.files import replacing
from .packing import hidden_at, packed, packs
from .store import TokenStore

MOST_BYTES = 1 << 30
"""More than this is not kept; the base then passes in every step."""


def worth_keeping(model: Any, store: TokenStore) -> bool:
    """Whether the log-probabilities of the base are few enough to be kept."""
    return packs(model) and 4 * store.turn_tokens * text_config(model.config).vocab_size <= MOST_BYTES


def base_logps(path: Path, model: Any, store: TokenStore, micro_tokens: int) -> Any:
    """Log-probabilities ``[turn tokens of the store, V]``, float32, mapped from the file ``path``; made if missing.

    Args:
        path: named after what the store and the base are.
        model: the base.
        store: whose every turn is read.
        micro_tokens: most tokens of a pass over more than one trajectory.
    """
    if not path.exists():
        shape = (store.turn_tokens, text_config(model.config).vocab_size)
        # (not mapped: a full disk would end the process)
        with replacing(path) as temporary, temporary.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
            _fill(file, model, store, micro_tokens)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def _fill(file: BinaryIO, model: Any, store: TokenStore, micro_tokens: int) -> None:
    device = next(model.parameters()).device
    group: list[int] = []

    def flush() -> None:
        parts = [torch.from_numpy(np.array(store.ids(i), dtype=np.int64)) for i in group]
        starts = np.cumsum([0, *(len(p) for p in parts)])
        at = [
            start + position
            for start, i in zip(starts, group, strict=False)
            for span in store.spans(i)
            for position in range(*span)
        ]
        where = torch.as_tensor(at, device=device) - 1
        hidden_ND = hidden_at(model, torch.cat(parts).to(device), [len(p) for p in parts], where)
        logps_NV = F.log_softmax(model.get_output_embeddings()(hidden_ND).float(), -1)
        file.write(logps_NV.cpu().numpy().data)
        group.clear()

    was_training = model.training
    model.eval()
    with packed(model):
        for i in range(len(store)):
            if group and sum(len(store.ids(j)) for j in (*group, i)) > micro_tokens:
                flush()
            group.append(i)
        flush()
    model.train(was_training)
