"""A small run for the select stage: its recipe, its model of random weights and its expert episodes."""

import shutil

import pytest

from atlas_ray import pipeline
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.trajectory import read_trajectories

SELECTORS = [
    "rank-mean_value_perplexity",
    "non-critical",
    "union_value_last",
    "intersection_random_uniform",
    "all",
    "random",
    "uniform",
    "last",
    "mine",
    "perplexity",
    "deviation",
    "value",
]


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A folder with a model of random weights, and with annotations of a user's own once they are written."""
    folder = tmp_path_factory.mktemp("small")
    build_model(hidden=16, layers=1, heads=2, intermediate=32, seed=0).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="session")
def recipe(small):
    return Recipe.model_validate(
        {
            "name": "x",
            "workers": 0,
            "num_envs": 8,
            "collect": {"levels": {"PickupDist": 6, "GoToLocalS5N2": 6}, "max_steps": 20},
            "select": {
                "selectors": SELECTORS,
                "files": {"mine": str(small / "mine.jsonl")},
                "rest_of": "union_value_last",
                "model": str(small / "model"),
                "rollouts": 2,
                "horizon": 2,
                "start_after": ["value", "last"],
                "start_after_steps": 3,
            },
        }
    )


@pytest.fixture(scope="session")
def collected(recipe, tmp_path_factory):
    """Begins a run of a recipe with expert episodes, which are played once, and returns them."""
    played = tmp_path_factory.mktemp("played")
    pipeline.run(recipe, played, ("collect",))

    def begin(own, run_dir):
        pipeline.run(own, run_dir, ())
        shutil.copytree(played / "trajectories", run_dir / "trajectories")
        return read_trajectories(run_dir / "trajectories" / "expert.jsonl")

    return begin
