"""Two untrained models on two small levels, for the tests of the switch."""

from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.agents.token_agent import Agent
from atlas_ray.engines import TransformersEngine
from atlas_ray.models.tiny import build_model, build_tokenizer

LEVELS = ["GoToLocalS5N2", "GoToLocalS6N3"]
SHAPES = {"quick": (16, 1), "deepthink": (32, 2)}


def model(name):
    hidden, layers = SHAPES[name]
    return build_model(hidden=hidden, layers=layers, heads=2, intermediate=32, seed=len(name))


def agents(slots=4):
    return [Agent(TransformersEngine(model(n), slots, build_tokenizer()), "action") for n in SHAPES]


def specs(max_steps):
    return [EnvSpec(level, {"max_steps": max_steps}) for level in LEVELS]
