"""Two untrained models on two small levels, and switches with random weights, for the tests of the switch."""

import torch

from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.agents.token_agent import Agent
from atlas_ray.engines import TransformersEngine
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.features import EXTRA
from atlas_ray.switching.network import SwitchNetwork
from atlas_ray.switching.policy import SwitchConfig

LEVELS = ["GoToLocalS5N2", "GoToLocalS6N3"]
SHAPES = {"quick": (16, 1), "deepthink": (32, 2)}


def model(name):
    hidden, layers = SHAPES[name]
    return build_model(hidden=hidden, layers=layers, heads=2, intermediate=32, seed=len(name))


def agents(slots=4):
    return [Agent(TransformersEngine(model(n), slots, build_tokenizer()), "action") for n in SHAPES]


def small_switch(folder, **more):
    """A recipe's table of a switch between the two models, which lie in ``folder``."""
    given = {
        "quick": str(folder / "quick"),
        "deepthink": str(folder / "deepthink"),
        "levels": LEVELS,
        "max_steps": 5,
        "costs": [0.05],
        "num_envs": 4,
        "steps": 80,
        "evaluate_every": 40,
        "evaluate_episodes": 6,
        "test_episodes": 16,
        "features": 32,
    }
    return {**given, **more}


def specs(max_steps):
    return [EnvSpec(level, {"max_steps": max_steps}) for level in LEVELS]


def both(features, hidden, models, budget, seed):
    """A network with random weights and biases, and the policy that holds its tensors."""
    torch.manual_seed(seed)
    network = SwitchNetwork(features + EXTRA, hidden, models, budget is not None)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.5)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return network, SwitchPolicy(SwitchConfig(features, tuple(hidden), models, budget), tensors)
