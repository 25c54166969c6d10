"""Compares the loss on pairs of turns with TRL's DPOTrainer: the same pairs, model and reference, loss and gradient.

    python -m venv trl && trl/bin/pip install torch==2.13.0    # torch first and exactly: a range may take another build
    trl/bin/pip install "trl>=1.16" transformers==5.19.0 datasets accelerate && trl/bin/pip install -e .
    trl/bin/python benchmarks/dpo_trl.py

TRL is no dependency of the project. For each kind of loss a row: the loss of both, how far the gradients are apart as a
share of the largest entry, and how far the numbers that both log are. It ends with 1 where something differs by more
than 1e-4. Everything is float32 on the CPU; pairs are of random tokens, and of a small random model.
"""

import copy
import os
import random
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from atlas_ray.finetune.data import Example, PairExample
from atlas_ray.finetune.packing import packed
from atlas_ray.finetune.preference import NOTED, PreferenceModel, pair_scale
from atlas_ray.models.tiny import build_model, build_tokenizer, vocabulary
from atlas_ray.recipe.loading import Pairs

KINDS = [
    Pairs(),
    Pairs(beta=0.5, sft=0.3),
    Pairs(loss="sigmoid_norm", beta=5.0),
    Pairs(loss="sigmoid_norm", beta=2.0, sft=0.2),
]
MOST = 1e-4


def random_pairs(count):
    """Token ids of history, chosen and rejected turn."""
    rng = random.Random(0)

    def tokens(least, most):
        return [rng.randrange(4, len(vocabulary())) for _ in range(rng.randint(least, most))]

    return [(tokens(5, 40), tokens(1, 8), tokens(1, 8)) for _ in range(count)]


def models():
    """The model, and a reference that differs from it."""
    reference = build_model(hidden=64, layers=2, heads=4, intermediate=128, seed=0)
    model = copy.deepcopy(reference)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.03)
    return model, reference


def gradient(model):
    """In one row."""
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def of_trl(rows, kind):
    """Loss, gradient and logged numbers of TRL."""
    model, reference = models()
    names = [kind.loss, "sft"] if kind.sft else [kind.loss]
    given = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in rows]
    text = Dataset.from_list([{"prompt": "go to the", "chosen": " red ball", "rejected": " grey key"}])  # it wants some
    with tempfile.TemporaryDirectory() as directory:
        config = DPOConfig(
            output_dir=directory,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            beta=kind.beta,
            loss_type=names,
            loss_weights=[1.0, kind.sft][: len(names)],
            max_length=None,
            per_device_train_batch_size=len(rows),
        )
        trainer = DPOTrainer(
            model=model, ref_model=reference, args=config, train_dataset=text, processing_class=build_tokenizer()
        )
        batch = trainer.data_collator(given)
        model.train()
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        logged = {name: trainer._metrics["train"][name][-1] for name in NOTED}
    return loss.item(), gradient(model), logged


def of_ours(rows, kind):
    """The same of this package, packed."""
    model, reference = models()

    def side(history, turn):
        return Example([*history, *turn], range(len(history), len(history) + len(turn)), (), 0)

    sides = [(side(p, c), side(p, r)) for p, c, r in rows]
    with packed(reference), torch.no_grad():
        known = PreferenceModel(reference, kind).turn_logps([part for both in sides for part in both])
    pairs = [PairExample(*both, tuple(known[2 * i : 2 * i + 2].tolist())) for i, both in enumerate(sides)]
    with packed(model):
        said = PreferenceModel(model, kind)(pairs, pair_scale(pairs, kind))
        said[0].backward()
    return said[0].item(), gradient(model), dict(zip(NOTED, said[1:].tolist(), strict=True))


def main():
    torch.set_num_threads(1)
    rows, worst = random_pairs(16), 0.0
    for kind in KINDS:
        (ours, grad, noted), (theirs, trl_grad, logged) = of_ours(rows, kind), of_trl(rows, kind)
        apart = abs(ours - theirs) / abs(theirs)
        pull = float((grad - trl_grad).abs().max() / trl_grad.abs().max())
        numbers = max(abs(noted[name] - logged[name]) / max(1, abs(logged[name])) for name in NOTED)
        print(
            f"{kind.loss}, beta {kind.beta:g}, sft {kind.sft:g}: loss {ours:.6f}, TRL {theirs:.6f} "
            f"({apart:.1e} apart), gradients {pull:.1e} apart, logged numbers {numbers:.1e}"
        )
        worst = max(worst, apart, pull, numbers)
    sys.exit(worst > MOST)


if __name__ == "__main__":
    main()
