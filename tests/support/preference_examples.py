"""Pairs of random tokens, and their loss by plain torch, independent of the package's."""

import random

import torch
from finetune_examples import SIZE

from atlas_ray.finetune.data import Example, PairExample
from atlas_ray.recipe.loading import Pairs


def random_pairs(count, seed=0, longest=24):
    """Pairs whose sides share a history and have turns of unlike length."""
    rng = random.Random(seed)

    def side(history):
        turn = [rng.randrange(SIZE) for _ in range(rng.randint(1, 6))]
        return Example([*history, *turn], range(len(history), len(history) + len(turn)), (), 0)

    found = []
    for _ in range(count):
        history = [rng.randrange(SIZE) for _ in range(rng.randint(2, longest - 6))]
        found.append(PairExample(side(history), side(history), (rng.uniform(-30, -5), rng.uniform(-30, -5))))
    return found


def plain_logps(model, pair):
    """Log-probabilities of the two turns: one sequence at a time, in float64, position after position."""
    found = []
    for side in pair.parts:
        logp = model(input_ids=torch.tensor([list(side.ids)])).logits[0].double().log_softmax(-1)
        found.append(sum(logp[position - 1, side.ids[position]] for position in side.trained))
    return found


def plain_loss(model, pairs, config):
    """The mean loss of pairs, and what TRL notes of them, from the formulas."""
    losses, nll, tokens = [], torch.zeros((), dtype=torch.float64), 0
    rewards, logps = [], []
    for pair in pairs:
        turns = plain_logps(model, pair)
        ratios = [turn - reference for turn, reference in zip(turns, pair.reference, strict=True)]
        lengths = [len(side.trained) for side in pair.parts] if config.loss == "sigmoid_norm" else [1, 1]
        gap = config.beta * (ratios[0] / lengths[0] - ratios[1] / lengths[1])
        losses.append(torch.log1p(torch.exp(-gap)))
        nll, tokens = nll - turns[0], tokens + len(pair.chosen.trained)
        rewards.append([config.beta * ratio.item() for ratio in ratios])
        logps.append([turn.item() for turn in turns])
    chosen, rejected = torch.tensor(rewards).T
    noted = {
        "rewards/chosen": chosen.mean().item(),
        "rewards/rejected": rejected.mean().item(),
        "rewards/accuracies": (chosen > rejected).double().mean().item(),
        "rewards/margins": (chosen - rejected).mean().item(),
        "logps/chosen": torch.tensor(logps)[:, 0].mean().item(),
        "logps/rejected": torch.tensor(logps)[:, 1].mean().item(),
    }
    return torch.stack(losses).mean() + config.sft * nll / tokens, noted


KINDS = [
    Pairs(),
    Pairs(beta=0.7, sft=0.5),
    Pairs(loss="sigmoid_norm", beta=5.0),
    Pairs(loss="sigmoid_norm", beta=2.0, sft=0.2),
]
