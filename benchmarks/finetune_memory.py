"""Memory of workers until training can begin: each loads the whole model, or reads its share of the files.

    python benchmarks/finetune_memory.py                        # 0.5 B parameters, 2 and 4 workers
    python benchmarks/finetune_memory.py --layers 4 --workers 2 --ways "lora whole" "lora shares"

The model has the shape of Qwen2.5-0.5B and random weights in bfloat16. Workers are processes of gloo on this machine's
CPUs, each forked anew from one that has imported all and holds no model. Peak resident memory is that of a worker less
what it held at its start; pages of the files that are mapped count too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.multiprocessing as mp
from peft import LoraConfig  # noqa: F401  (what is imported is not the model's)
from transformers import Qwen2Config, Qwen2ForCausalLM

from atlas_ray.finetune.adapters import add_adapters
from atlas_ray.finetune.process_group import own_process_group
from atlas_ray.finetune.shares import unread_model
from atlas_ray.finetune.state import local
from atlas_ray.finetune.trainer import Trainer
from atlas_ray.models.loading import load_model
from atlas_ray.recipe.finetune import Arm, Finetune, Lora

MIB = 1 << 20
DTYPES = ("float32", "bfloat16")
WAYS = {
    "full whole": "all weights, FSDP2, loaded whole",
    "full shares": "all weights, FSDP2, read share by share",
    "lora whole": "adapters, FSDP2, loaded whole",
    "lora shares": "adapters, FSDP2, read share by share",
    "lora float32": "adapters, DDP, loaded in float32",
    "lora bfloat16": "adapters, DDP, loaded in bfloat16",
}


def make(rank: int, target: Path, layers: int) -> None:
    """Write the model."""
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(target, max_shard_size="300MB")
    (target / "parameters").write_text(str(sum(p.numel() for p in model.parameters())))


def peak() -> int:
    """Most resident memory that this process has had, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def work(rank: int, base: Path, way: str, workers: int, folder: Path) -> None:
    """Write what one worker needs until it can train: seconds, and bytes above what it held without a model."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    group = own_process_group(workers, torch.device("cpu"))
    kind, weights = way.split()
    config = Finetune(
        arms=[Arm(selector="all")],
        base=str(base),
        strategy="ddp" if weights in DTYPES else "fsdp",
        lora=Lora() if kind == "lora" else None,
    )
    before, begun = peak(), time.monotonic()
    if weights == "shares":
        found = unread_model(config, group, 0)
        assert found is not None
        trainer = Trainer(found[0], [], config, 0.0, group, unread=found[1])
    else:
        model = load_model(str(base), getattr(torch, weights if weights in DTYPES else "float32"))
        trainer = Trainer(add_adapters(model, config, 0) if config.lora else model, [], config, 0.0, group)
    seconds = time.monotonic() - begun
    held = sum(local(p).nbytes for p in trainer.model.parameters())
    dist.barrier()
    dist.destroy_process_group()
    row = {"seconds": seconds, "peak": peak() - before, "share": held}
    (folder / f"{rank}.json").write_text(json.dumps(row))


def forked(function: Callable[..., None], given: tuple[Any, ...], workers: int = 1) -> None:
    """Call ``function`` with the number of a process and ``given`` in processes of their own."""
    mp.start_processes(function, given, nprocs=workers, start_method="fork")


def measure(base: Path, way: str, workers: int) -> list[dict[str, Any]]:
    """:func:`work` in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        forked(work, (base, way, workers, Path(folder)), workers)
        return [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="of the model")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], help="workers that share it")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="that are compared")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        forked(make, (base, options.layers))
        parameters = int((base / "parameters").read_text())
        print(f"{parameters / 1e6:,.0f} M parameters, {parameters * 4 / MIB:,.0f} MiB in float32\n")
        print("| workers | what is trained | a worker holds, MiB | peak of a worker, MiB | seconds |")
        print("|---|---|---|---|---|", flush=True)
        for workers in options.workers:
            for way in options.ways:
                rows = measure(base, way, workers)
                share, most = (max(row[name] for row in rows) / MIB for name in ("share", "peak"))
                seconds = max(row["seconds"] for row in rows)
                print(f"| {workers} | {WAYS[way]} | {share:,.0f} | {most:,.0f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
