"""A finished run with a switch of random weights, and recipes that collect with its policies."""

from itertools import pairwise

import numpy as np
from switch_models import LEVELS, model

from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import write_json
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.features import EXTRA
from atlas_ray.switching.policy import SwitchConfig

FEATURES = 32


def random_switch(seed=0, models=2, **terms):
    """A switch that calls now and then."""
    rng, widths = np.random.default_rng(seed), [FEATURES + EXTRA, 8, models]
    tensors = {}
    for i, (before, after) in enumerate(pairwise(widths)):
        tensors[f"layers.{2 * i}.weight"] = rng.normal(size=(after, before)).astype(np.float32)
        tensors[f"layers.{2 * i}.bias"] = np.zeros(after, np.float32)
    return SwitchPolicy(SwitchConfig(FEATURES, (8,), models, **terms), tensors)


def save_model(name, folder):
    model(name).save_pretrained(folder / name)
    build_tokenizer().save_pretrained(folder / name)
    return str(folder / name)


def finished_run(run_dir, models, levels=LEVELS, max_steps=20, style="action", unit="flops", **more):
    """A run directory with ``switch-cost0.05-seed0`` and ``switch-budget2-seed0`` between these models."""
    switch = {"models": models, "levels": levels, "max_steps": max_steps, "features": FEATURES, "costs": [0.05]}
    switch["unit"] = unit
    recipe = Recipe.model_validate({"name": "lesson", "style": style, "switch": switch, **more})
    write_json(run_dir / "recipe.resolved.json", recipe.model_dump(mode="json"))
    random_switch(8, cost=0.05, models=len(models)).save(run_dir / "checkpoints" / "switch-cost0.05-seed0")
    random_switch(8, budget=2, models=len(models)).save(run_dir / "checkpoints" / "switch-budget2-seed0")
    return run_dir


def collects(policy, levels=None, max_steps=20, style="action", tables=None, **collect):
    """A recipe that collects with a policy of a run, in this process."""
    own = {"switch": str(policy), "levels": levels or dict.fromkeys(LEVELS, 4), "max_steps": max_steps, **collect}
    given = {"name": "x", "workers": 0, "num_envs": 4, "style": style, "collect": own}
    return Recipe.model_validate({**given, **(tables or {})})
