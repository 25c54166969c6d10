"""Trains a small model by ``torch.distributed`` processes of gloo, for finetune/test_process_group.py; run as a script.

    python finetune_group.py OUT PORT WORLD CASE...

A case is ``name:strategy:kind:size:steps:fail``, of kind ``full``, ``whole`` (its gradients between passes), ``lora``,
``pairs``, ``lora-pairs``, or ``unread``, ``unread-lora`` and ``reference`` (from ``OUT/base``). The first worker of
every group writes weights and losses to ``OUT/name-TEAM.safetensors``, that of a reference to ``OUT/name.npy``; a case
that raises writes ``OUT/name-RANK.error``.
"""

import random
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from preference_examples import random_pairs
from safetensors.torch import save_file

from atlas_ray.errors import AtlasError
from atlas_ray.finetune import state
from atlas_ray.finetune.data import Example
from atlas_ray.finetune.loop import train_run
from atlas_ray.finetune.output import weights
from atlas_ray.finetune.packing import causal_lm
from atlas_ray.finetune.process_group import own_process_group
from atlas_ray.finetune.reference import shared_reference, turn_logps
from atlas_ray.finetune.shares import unread_model
from atlas_ray.models.tiny import build_model, vocabulary
from atlas_ray.recipe.loading import Arm, Finetune, Pairs

STEPS, ANCHOR = 6, 0.5
PAIRS = Pairs(beta=0.5, sft=0.3)


def examples():
    """Of unlike length. Most have nothing anchored, and the last step of an epoch holds one: a worker has none."""
    rng = random.Random(0)
    found = []
    for number in range(17):
        length = rng.randint(6, 40)
        ids = [rng.randrange(len(vocabulary())) for _ in range(length)]
        places = sorted(rng.sample(range(1, length), 4))
        found.append(Example(ids, places[:2], places[2:] if number % 3 == 0 else [], 0))
    return found


def model(lora):
    """Small, and the same in every process."""
    plain = build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=0)
    if not lora:
        return plain
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))


def config(strategy, **more):
    """Micro-batches of few tokens, so that every worker has several."""
    given = {"batch_size": 8, "micro_tokens": 60, "learning_rate": 3e-3, "save_every": 2, "strategy": strategy, **more}
    return Finetune(arms=[Arm(selector="all")], **given)


def train(out, name, strategy, kind, group, steps=STEPS):
    """Train, from the state under ``out/name`` if there is one, and write what came of it."""
    if kind == "reference":
        shared_reference(out / f"{name}.npy", random_pairs(17), config(strategy, base=str(out / "base")), group)
        return
    losses, noted, pairs = [], [], kind.endswith("pairs")
    trained, unread, settings = model(kind.startswith("lora")), None, config(strategy)
    if kind == "whole":
        settings = config(strategy, workers=2, accumulate="whole")
    if kind.startswith("unread"):
        adapters = {"lora": {"rank": 4, "alpha": 8}} if kind == "unread-lora" else {}
        trained, unread = unread_model(config(strategy, base=str(out / "base"), **adapters), group, 0)

    def note(progress):
        losses.append(progress.loss)
        noted.append(list(progress.noted.values()))

    with scatters() as sent:
        train_run(
            trained,
            random_pairs(17) if pairs else examples(),
            settings,
            STEPS,
            seed=3,
            state_dir=out / f"{name.split('@')[0]}-{group.replica}",
            anchor=0.0 if pairs else ANCHOR,
            pairs=PAIRS if pairs else None,
            group=group,
            on_step=lambda p: note(p) if p.step <= steps else stop(),
            unread=unread,
        )
    found = weights(causal_lm(trained), group)
    if group.rank == 0:
        found["losses"] = torch.tensor(losses, dtype=torch.float64)
        if strategy == "fsdp":
            found["scatters"] = torch.tensor(sent)
        if pairs:
            found["noted"] = torch.tensor(noted, dtype=torch.float64)
        save_file(found, out / f"{name}-{group.replica}.safetensors")


def reference():
    """Log-probabilities of the turns of the pairs under the model, by this process alone."""
    return turn_logps(model(lora=False), random_pairs(17), PAIRS, config("ddp").micro_tokens, False)


@contextmanager
def scatters():
    """A list that gets the bytes of gradients that FSDP2 sums, of which it gives each worker its share."""
    found, scatter = [], dist.reduce_scatter_single

    def noted(*args, **kwargs):
        found.append(kwargs["input"].nbytes)
        return scatter(*args, **kwargs)

    dist.reduce_scatter_single = noted
    try:
        yield found
    finally:
        dist.reduce_scatter_single = scatter


def stop():
    """Stands for a kill that all workers see."""
    raise AtlasError("stopped")


def _full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def _process(rank, out, port, world, cases):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    for case in cases:
        name, strategy, kind, size, steps, fail = case.split(":")
        group = own_process_group(int(size), torch.device("cpu"))
        save = state.save_file
        if fail and rank == int(fail):
            state.save_file = _full
        try:
            train(out, name, strategy, kind, group, int(steps))
        except AtlasError as error:
            (out / f"{name}-{rank}.error").write_text(f"{type(error).__name__}: {error}")
        state.save_file = save
    dist.destroy_process_group()


if __name__ == "__main__":
    # forked, so that only this process imports torch
    given = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    mp.start_processes(_process, given, nprocs=given[2], start_method="fork")
