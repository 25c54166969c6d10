"""Small rounds of a model's own runs: one of random weights plays and learns all steps, or those of successes."""

from switch_models import model

from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe


def save_own_model(folder):
    """Write the model that learns, of random weights; greedy it hardly ever succeeds."""
    model("quick").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def own_rounds_recipe(folder, tables=None, **rounds):
    """Two rounds in this process; the first arm learns all steps, the other those of the successes."""
    base = str(folder)
    given = {
        "name": "own",
        "workers": 0,
        "num_envs": 8,
        "style": "action",
        "collect": {
            "agent": {"model": base, "temperature": 20.0},
            "levels": {"GoToLocalS5N2": 6},
            "max_steps": 12,
        },
        "select": {"selectors": ["all", "successes"], "model": base},
        "finetune": {
            "base": base,
            "arms": [{"selector": "all"}, {"selector": "successes"}],
            "seeds": [0, 1],
            "epochs": 1,
            "batch_size": 4,
            "workers": 0,
        },
        "evaluate": {"held_in": ["GoToLocalS5N2"], "held_out": ["PickupDist"], "episodes": 4, "max_steps": 6},
        "rounds": {"count": 2, "judge_episodes": 3, "stop": False, **rounds},
    }
    for name, table in (tables or {}).items():
        given[name] = {**given[name], **table} if isinstance(table, dict) else table
    return Recipe.model_validate(given)
