"""Memory of FSDP2's workers until training can begin: each loads the whole model, or reads its share of the files.

    python benchmarks/finetune_memory.py                        # 0.5 B parameters, 2 and 4 workers
    python benchmarks/finetune_memory.py --layers 4 --workers 2

The model has the shape of Qwen2.5-0.5B and random weights in bfloat16. Workers are processes of gloo on this machine's
CPUs, each started anew. Peak resident memory is that of a worker less what it held before there was a model; pages of
the files that are mapped count too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20


def make(target: Path, layers: int) -> int:
    """Write the model; returns its number of parameters."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(target, max_shard_size="300MB")
    return sum(p.numel() for p in model.parameters())


def peak() -> int:
    """Most resident memory that this process has had, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def work(base: Path, way: str, rank: int, workers: int, meeting: Path) -> dict[str, Any]:
    """What one worker needs until it can train: seconds, and bytes above what it held without a model."""
    import torch
    import torch.distributed as dist

    # what is imported is not the model's
    import torch.distributed.checkpoint
    import torch.distributed.fsdp
    from transformers import Qwen2ForCausalLM  # noqa: F401

    from atlas_ray.finetune.process_group import own_process_group
    from atlas_ray.finetune.shares import unread_model
    from atlas_ray.finetune.trainer import Trainer
    from atlas_ray.models.loading import load_model
    from atlas_ray.recipe.loading import Arm, Finetune

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    group = own_process_group(workers, torch.device("cpu"))
    config = Finetune(arms=[Arm(selector="all")], base=str(base), strategy="fsdp")
    before, begun = peak(), time.monotonic()
    if way == "shares":
        found = unread_model(config, group)
        assert found is not None
        trainer = Trainer(found[0], [], config, 0.0, group, unread=found[1])
    else:
        trainer = Trainer(load_model(str(base), torch.float32), [], config, 0.0, group)
    seconds = time.monotonic() - begun
    held = sum(p.to_local().numel() * 4 for p in trainer.model.parameters())
    dist.barrier()
    dist.destroy_process_group()
    return {"rank": rank, "seconds": seconds, "peak": peak() - before, "share": held}


def measure(base: Path, way: str, workers: int) -> list[dict[str, Any]]:
    """:func:`work` in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        given = [str(base), way, str(workers), f"{folder}/meeting"]
        started = [
            subprocess.Popen(  # noqa: S603
                [sys.executable, __file__, "--rank", str(rank), *given], stdout=subprocess.PIPE, text=True
            )
            for rank in range(workers)
        ]
        said = [process.communicate()[0] for process in started]
    return [json.loads(text.splitlines()[-1]) for text in said]


def main() -> None:
    """Measure and print a table."""
    if "--rank" in sys.argv:
        rank, base, way, workers, meeting = sys.argv[2:]
        print(json.dumps(work(Path(base), way, int(rank), int(workers), Path(meeting))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="of the model")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], help="workers that share it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parameters = make(Path(folder), options.layers)
        print(f"{parameters / 1e6:,.0f} M parameters, {parameters * 4 / MIB:,.0f} MiB in float32\n")
        print("| workers | weights | a worker's share, MiB | peak of a worker, MiB | seconds |")
        print("|---|---|---|---|---|")
        for workers in options.workers:
            for way in ("whole", "shares"):
                rows = measure(Path(folder), way, workers)
                share, most = (max(row[name] for row in rows) / MIB for name in ("share", "peak"))
                seconds = max(row["seconds"] for row in rows)
                print(f"| {workers} | {way} | {share:,.0f} | {most:,.0f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
