"""Masked fine-tuning against TRL's SFTTrainer and against plain masking, each trick switched off one by one.

    python benchmarks/finetune.py --trl trl/bin/python                          # tiny-quick, BabyAI-Text
    python benchmarks/finetune.py --trl trl/bin/python --env ScienceWorld/boil ScienceWorld/melt --episodes 40
    python benchmarks/finetune.py --trl trl/bin/python --model smollm2-135m --lora 16 --episodes 24 --batch 8 --rounds 1
    python benchmarks/finetune.py --tricks                                      # what each one brings
    python benchmarks/finetune.py --anchor                                      # what an anchor costs

``trl/bin/python`` is an environment with TRL (see ``finetune_trl.py``). Everybody trains one epoch on the same
trajectories with a random 30 % of the steps trained, with the same batch size, AdamW and threads, in a process of its
own; rounds alternate, the median counts. Before that, TRL gets our batches in our order, and the losses of all steps
are compared. Seconds are those of the training call; memory is the peak of the process above what it held before.

``plain`` is masking and nothing else: batches in random order, padded to their longest, the LM head at every position;
``plain, packed`` the same without padding. Its FLOPs over ours are the ceiling of what the tricks can gain over it.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F

from atlas_ray.agents.rendering import Renderer
from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.finetune import loop, trainer
from atlas_ray.finetune.base_logps import base_logps
from atlas_ray.finetune.data import Example, Examples, batches, steps_of
from atlas_ray.finetune.loss import MaskedModel
from atlas_ray.finetune.output import make_model
from atlas_ray.finetune.packing import hidden_at
from atlas_ray.finetune.store import TokenStore, build_store
from atlas_ray.models.loading import context_of, load_model, load_tokenizer, resolve
from atlas_ray.recipe.loading import Recipe
from atlas_ray.selection.controls import select_random
from atlas_ray.trajectory import read_annotations

TRICKS = ("cut", "pack", "gather", "narrow")


def experts(names, count, most):
    """``count`` expert episodes, of the environments in turn."""
    from atlas_ray.stages.collect import expert_episode  # (not where other benchmarks take the variants)

    made, seed = [], 0
    while len(made) < count:
        options = {} if most is None else {"max_steps": most}
        episode = expert_episode(EnvSpec(names[seed % len(names)], options), seed, 60.0)
        made += [] if isinstance(episode, str) else [episode]
        seed += 1
    return made


class Variant(MaskedModel):
    """The loss with some tricks left out."""

    off = frozenset()

    def __init__(self, *args):
        super().__init__(*args)
        self.narrow = "narrow" not in self.off

    def forward(self, batch, scale):
        if not self.off & {"pack", "gather"}:
            return super().forward(batch, scale)
        device = next(self.model.parameters()).device
        if "pack" in self.off:
            longest = max(len(e.ids) for e in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, e in enumerate(batch):
                ids[row, : len(e.ids)] = torch.tensor(e.ids)
            trained = torch.tensor([row * longest + p for row, e in enumerate(batch) for p in e.trained])
            ids = ids.to(device)
            hidden_TD = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        else:
            lengths = [len(e.ids) for e in batch]
            ids = torch.cat([torch.tensor(e.ids) for e in batch]).to(device)
            starts = itertools.accumulate(lengths, initial=0)
            trained = torch.tensor([start + p for start, e in zip(starts, batch, strict=False) for p in e.trained])
            hidden_TD = hidden_at(self.model, ids, lengths, torch.arange(len(ids), device=device), narrow=False)
        trained = trained.to(device)
        head = self.model.get_output_embeddings()
        if "gather" not in self.off:
            logits, targets = head(hidden_TD[trained - 1]).float(), ids.flatten()[trained]
        else:
            labels = torch.full((ids.numel(),), -100, device=device)
            labels[trained - 1] = ids.flatten()[trained]
            logits, targets = head(hidden_TD).float(), labels
        return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") * scale.trained


def padded_share(sort):
    """Neighbours, by length or as they come, up to ``micro_tokens`` with the padding."""

    def share(lengths, world, micro_tokens):
        groups = []
        for i in sorted(range(len(lengths)), key=lambda i: lengths[i]) if sort else range(len(lengths)):
            longest = max(lengths[j] for j in (*groups[-1], i)) if groups else 0
            if groups and (len(groups[-1]) + 1) * longest <= micro_tokens:
                groups[-1].append(i)
            else:
                groups.append([i])
        return [groups]

    return share


def leave_out(off):
    """Let this process train without these tricks."""
    Variant.off, trainer.MaskedModel = frozenset(off), Variant
    if "pack" in off:
        trainer.packed = nullcontext
        loop.share_out = padded_share(sort="order" not in off)


class Whole(Examples):
    """Examples that are not cut."""

    def __getitem__(self, index):
        made = super().__getitem__(index)
        ids = self.store.ids(self._rows[index][0]).tolist()
        return Example(ids, made.trained, made.anchored, 0, made.base)


def recipe_of(options):
    tuning = {"base": options.model, "arms": [{"selector": "random"}], "epochs": 1, "workers": 0, "save_every": 10**6}
    tuning |= {"batch_size": options.batch, "micro_tokens": options.micro_tokens, "learning_rate": 5e-4}
    tuning |= {"lora": {"rank": options.lora}} if options.lora else {}
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "style": options.style,
            "collect": {"levels": {options.env[0]: 1}},
            "select": {"selectors": ["random"]},
            "finetune": tuning,
        }
    )


def prepared(options, folder):
    trajectories = experts(options.env, options.episodes, options.max_steps)
    renderer = Renderer(load_tokenizer(options.model), options.style)
    context = context_of(load_model(options.model))
    build_store(folder / "tokens", trajectories, renderer, context, "drop_last_steps", "benchmark")
    marks = select_random(trajectories, 0.3, options.seed)
    (folder / "marks.jsonl").write_text("".join(json.dumps(a.row()) + "\n" for a in marks))
    examples = loaded(folder, Whole)
    rows = [{"ids": list(e.ids), "trained": list(e.trained)} for e in examples]
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = steps_of(len(examples), options.batch, 1)
    (folder / "order.json").write_text(json.dumps(list(batches(len(examples), options.batch, steps, options.seed))))
    whole, cut = sum(len(e.ids) for e in examples), sum(len(e.ids) for e in loaded(folder, Examples))
    trained = sum(len(e.trained) for e in examples)
    print(
        f"{len(examples)} trajectories, {whole:,} tokens, {trained / whole:.0%} of them trained, {cut / whole:.0%} "
        f"left after the cut; lengths {min(len(e.ids) for e in examples)} to {max(len(e.ids) for e in examples)}",
        flush=True,
    )


def loaded(folder, kind, **settings):
    return kind(
        TokenStore(folder / "tokens"), read_annotations(folder / "marks.jsonl"), on_all_truncated="skip", **settings
    )


def status_mib(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def contestant(options, folder):
    """One epoch in this process; what it took goes to ``--out``."""
    torch.set_num_threads(options.threads)
    off = frozenset(options.off)
    leave_out(off)
    recipe = recipe_of(options)
    model, _ = make_model(recipe, torch.device("cpu"))
    if options.adapter:  # what a peft model starts from is drawn, so everybody starts from ours
        model.save_pretrained(options.adapter)
    anchor = {}
    if options.anchor_weight:
        anchor = {"anchored": True}
        if options.kept:
            begun = time.perf_counter()
            anchor["base"] = base_logps(folder / "base.npy", model, TokenStore(folder / "tokens"), options.micro_tokens)
            print(f"  the base's log-probabilities took {time.perf_counter() - begun:.1f} s")
    examples = loaded(folder, Whole if "cut" in off else Examples, **anchor)
    losses, base = [], status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    begun = time.perf_counter()
    counts = loop.train_run(
        model,
        examples,
        recipe.finetune,
        steps_of(len(examples), options.batch, 1),
        options.seed,
        folder / "state",
        anchor=options.anchor_weight,
        on_step=lambda p: losses.append(p.loss),
    )
    seconds = time.perf_counter() - begun
    result = {"train_seconds": seconds, "losses": losses, "peak_rss_mib": status_mib("VmHWM"), "base_rss_mib": base}
    result |= {"flops": counts.flops, "plain_flops": counts.plain_flops, "tokens": counts.trained_tokens}
    Path(options.out).write_text(json.dumps(result))


def run(command, out):
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}")
    for line in done.stdout.splitlines():
        if line.startswith("  the base"):
            print(line)
    return json.loads(Path(out).read_text())


def ours(options, folder, *more):
    command = [sys.executable, __file__, "--folder", folder, "--model", options.model, "--style", options.style]
    command += ["--batch", options.batch, "--micro-tokens", options.micro_tokens, "--threads", options.threads]
    command += ["--seed", options.seed, "--env", *options.env, *(["--lora", options.lora] if options.lora else [])]
    return run([*map(str, command), *map(str, more)], folder / "out.json")


def trl(options, folder, mode, *more):
    command = [options.trl, Path(__file__).with_name("finetune_trl.py"), "--examples", folder / "examples.jsonl"]
    command += ["--model", resolve(options.model), "--mode", mode, "--batch", options.batch]
    command += ["--threads", options.threads]
    if options.lora:
        command += ["--adapter", folder / "adapter"]
    return run([*map(str, command), *map(str, more)], folder / "out.json")


def table(results):
    print(f"\n{'':24}{'seconds':>9}{'against ours':>14}{'MiB above':>11}{'last losses':>13}")
    mine = statistics.median(r["train_seconds"] for r in results["ours"])
    for name, rounds in results.items():
        seconds = statistics.median(r["train_seconds"] for r in rounds)
        memory = max(r["peak_rss_mib"] - r["base_rss_mib"] for r in rounds)
        last = statistics.fmean(rounds[-1]["losses"][-5:])
        print(f"{name:24}{seconds:9.1f}{seconds / mine:13.2f}x{memory:11,.0f}{last:13.3f}")
    about = results["ours"][0]
    if about["flops"]:
        ceiling = about["plain_flops"] / about["flops"]
        plain = statistics.median(r["train_seconds"] for r in results["plain, packed"])
        print(f"\nceiling over plain masking without padding {ceiling:.2f}x, reached {plain / mine:.2f}x")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trl", help="python of an environment with TRL")
    parser.add_argument("--env", nargs="+", default=["PickupDist", "PutNextLocalS5N3", "GoToLocalS6N4"])
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--model", default="tiny-quick")
    parser.add_argument("--style", default="react", choices=["react", "action"])
    parser.add_argument("--lora", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tricks", action="store_true", help="switch each trick off")
    parser.add_argument("--anchor", action="store_true", help="with an anchor, its base passing each time or kept")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--off", nargs="*", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--anchor-weight", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--adapter", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        contestant(options, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared(options, folder)
        kinds = {
            "ours": lambda: ours(options, folder),
            "plain": lambda: ours(options, folder, "--off", *TRICKS, "order"),
            "plain, packed": lambda: ours(options, folder, "--off", "cut", "gather", "narrow"),
        }
        if options.tricks:
            for trick in TRICKS:
                kinds[f"without {trick}"] = lambda t=trick: ours(options, folder, "--off", t)
        if options.anchor:
            weight = ("--anchor-weight", 0.5)
            kinds["anchor, base passes"] = lambda: ours(options, folder, *weight)
            if not options.lora:
                kinds["anchor, base kept"] = lambda: ours(options, folder, *weight, "--kept")
        if options.trl:
            adapter = ["--adapter", folder / "adapter"] if options.lora else []
            mine = ours(options, folder, *adapter)["losses"]
            theirs = trl(options, folder, "best", "--fixed-order", folder / "order.json")["losses"]
            apart = max(abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True))
            print(f"losses of {len(mine)} steps in the same order differ from TRL's by at most {apart:.1e}", flush=True)
            kinds["TRL best"] = lambda: trl(options, folder, "best")
            kinds["TRL default"] = lambda: trl(options, folder, "default")
        results = {kind: [] for kind in kinds}
        for number in range(options.rounds):
            for kind, race in kinds.items():
                results[kind].append(race())
                print(f"  round {number + 1}: {kind} {results[kind][-1]['train_seconds']:.1f} s", flush=True)
        table(results)


if __name__ == "__main__":
    main()
