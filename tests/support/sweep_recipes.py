"""Small recipes with a sweep, for the tests of sweeps."""

from switch_models import small_switch

from atlas_ray.recipe.loading import Recipe


def recipe_of(model, space, **more):
    """A sweep of ATLaS over one arm of a small model."""
    tuning = {"base": model, "arms": [{"selector": "value"}], "epochs": 1, "batch_size": 4, "workers": 0}
    given = {
        "name": "small",
        "workers": 0,
        "num_envs": 4,
        "collect": {"levels": {"GoToLocalS5N2": 4}, "max_steps": 20},
        "select": {"selectors": ["all", "random", "value"], "model": model, "rollouts": 2, "horizon": 4},
        "finetune": tuning,
        "evaluate": {"held_in": ["GoToLocalS5N2"], "episodes": 3, "max_steps": 5},
        "sweep": {"space": space},
    }
    return Recipe.model_validate({**given, **more})


def switch_recipe(models, space, sweep=(), **switch):
    """A sweep of the switch between two models that lie in the directory ``models``."""
    about = {"name": "s", "workers": 0, "style": "action", "switch": small_switch(models, **switch)}
    return Recipe.model_validate({**about, "sweep": {**dict(sweep), "space": space}})
