"""The training state on disk: written beside the last good one, complete or not there at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..rundir.disk import writing
from ..rundir.files import open_up, read_json, write_json
from .process_group import ProcessGroup

_KEYS = ("exp_avg", "exp_avg_sq")


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This worker's share of a matrix that is shared out."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    group: ProcessGroup,
    sharded: bool,
    about: dict[str, Any],
) -> None:
    """Write weights and AdamW state of what is trained, and ``about``, into ``path/STEP``; then drop older ones.

    Every worker writes its own share where the model is shared out, else the first writes all. Call it on every one.

    Raises:
        StorageError: it could not be written; the last good state stays.
    """
    name = f"{about['step']:08d}"
    temporary = path / f".{name}.tmp"
    shares = group.size if sharded else 1

    def write() -> None:
        if group.rank >= shares:
            return
        with writing(path):
            temporary.mkdir(parents=True, exist_ok=True)
            tensors = {}
            for parameter, p in _trained(model):
                tensors[f"model.{parameter}"] = local(p).contiguous()
                for key in _KEYS if p in optimizer.state else ():
                    tensors[f"{key}.{parameter}"] = local(optimizer.state[p][key]).contiguous()
            save_file(tensors, temporary / f"{group.rank}-of-{shares}.safetensors")

    def finish() -> None:
        with writing(path):
            write_json(temporary / "state.json", {**about, "shares": shares})
            open_up(temporary)
            if (path / name / "state.json").exists():  # a resumed run came here again
                shutil.rmtree(temporary)
            else:
                shutil.rmtree(path / name, ignore_errors=True)  # (not a state: something removed a part of it)
                temporary.replace(path / name)
        for other in path.iterdir():
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)

    if group.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    group.run_all_or_raise(lambda: None)
    group.run_all_or_raise(write)
    group.run_all_or_raise(finish, leader=True)


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, group: ProcessGroup
) -> dict[str, Any] | None:
    """Put the newest whole state into model and optimiser; None when there is none. Any number of workers may load it.

    Returns:
        What was saved as ``about``.
    """
    good = sorted(p for p in path.glob("[0-9]*") if (p / "state.json").exists())
    if not good:
        return None
    about: dict[str, Any] = read_json(good[-1] / "state.json")
    names = [good[-1] / f"{i}-of-{about['shares']}.safetensors" for i in range(about["shares"])]
    files = [safe_open(name, framework="pt") for name in names]
    held = set(files[0].keys())

    def whole(key: str) -> torch.Tensor:
        return torch.cat([file.get_tensor(key) for file in files]) if len(files) > 1 else files[0].get_tensor(key)

    def put(target: torch.Tensor, key: str) -> torch.Tensor:
        mine, value = local(target), whole(key)
        if hasattr(target, "to_local") and group.size > 1:  # FSDP2 cuts along the first axis as torch.chunk does
            pieces = value.chunk(group.size)
            value = pieces[group.rank] if group.rank < len(pieces) else value[:0]
        mine.copy_(value.reshape(mine.shape))
        return target

    with torch.no_grad():
        for name, p in _trained(model):
            put(p, f"model.{name}")
            if f"{_KEYS[0]}.{name}" in held:
                state = {key: put(torch.zeros_like(p), f"{key}.{name}") for key in _KEYS}
                optimizer.state[p] = {"step": torch.tensor(float(about["step"]), device=p.device), **state}
    return about
