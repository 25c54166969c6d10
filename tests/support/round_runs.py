"""Small runs of rounds: an untrained QUICK, the expert as DEEPTHINK, and switches that are there already."""

import numpy as np
from switch_models import SHAPES, model, small_switch

from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.features import EXTRA, STEP_ENTRY
from atlas_ray.switching.policy import SwitchConfig

COST = 0.05
TERMS = f"cost{COST:g}"
PLAYED = 4
"""Test episodes of each policy, and episodes that judge it."""


def save_models(folder):
    """Write ``quick`` and ``deepthink``, both untrained."""
    for name in SHAPES:
        model(name).save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)


def rounds_recipe(folder, switch=(), **rounds):
    """Two rounds of all arms between the model ``quick`` in ``folder`` and the expert."""
    table = small_switch(folder, deepthink="expert", max_steps=8, test_episodes=PLAYED, baselines=[])
    tuning = {"epochs": 2, "batch_size": 4, "workers": 0}
    given = {"count": 2, "episodes": 2, "judge_episodes": PLAYED, "stop": False, "finetune": tuning, **rounds}
    about = {"name": "together", "workers": 0, "num_envs": 8, "style": "action"}
    return Recipe.model_validate({**about, "switch": {**table, **dict(switch)}, "rounds": given})


def call_after(directory, step, most, features):
    """Save a switch that lets QUICK take so many of ``most`` steps, and then calls."""
    layers = {
        "layers.0.weight": np.zeros((1, features + EXTRA)),
        "layers.0.bias": np.zeros(1),
        "layers.2.weight": np.array([[0.0], [float(most)]]),
        "layers.2.bias": np.array([0.0, 0.5 - step]),
    }
    layers["layers.0.weight"][0, STEP_ENTRY] = 1.0
    tensors = {name: value.astype(np.float32) for name, value in layers.items()}
    SwitchPolicy(SwitchConfig(features, (1,), cost=COST), tensors).save(directory)


def put_switches(recipe, run_dir, steps):
    """Put the switches of all rounds where training would: round n lets QUICK take ``steps[n]`` steps."""
    for seed in recipe.switch.seeds:
        for number, step in enumerate(steps):
            run = RunLayout(run_dir).round_part(number, seed, "switch") if number else RunLayout(run_dir)
            call_after(run.switch_checkpoint(TERMS, seed), step, recipe.switch.max_steps, recipe.switch.features)
