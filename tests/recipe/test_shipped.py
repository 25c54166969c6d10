"""Every recipe that ships is one that the command line takes."""

import json
from importlib import resources

import pytest

from atlas_ray.cli import main
from atlas_ray.envs.science_world import split_of
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import load, shipped


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_passes_a_dry_run(name, capsys):
    assert main(["run", name, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == name


@pytest.mark.parametrize("name", shipped())
def test_the_small_form_of_a_shipped_recipe_has_a_name_of_its_own(name):
    """Or it would be refused in the run directory of the large one."""
    text = (resources.files("atlas_ray") / "recipes" / f"{name}.toml").read_text()
    if "\n[quick]\n" in text:
        assert load(name, quick=True).name == f"{name}-quick"
    else:
        with pytest.raises(InputError, match="has no .quick. table"):
            load(name, quick=True)


def test_the_large_recipe_takes_what_it_says_for_more_machines_and_for_adapters(capsys):
    lines = [
        ["--engine.actors", "16", "--workers", "64"],
        ["--finetune.workers", "64", "--finetune.batch_size", "512", "--finetune.learning_rate", "4e-5"],
        ["--finetune.lora", "{rank = 16}", "--finetune.strategy", "ddp", "--finetune.learning_rate", "1e-4"],
    ]
    resolved = []
    for line in lines:
        assert main(["run", "llama-8b", "--dry-run", *line]) == 0
        resolved.append(json.loads(capsys.readouterr().out)["finetune"])
    assert [(r["workers"], r["batch_size"]) for r in resolved] == [(4, 32), (64, 512), (4, 32)]
    assert resolved[2]["lora"] == {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}


def test_the_large_recipe_asks_for_no_variation_twice():
    recipe = load("llama-8b")
    for level, episodes in recipe.collect.levels.items():
        assert episodes <= len(split_of(level.split("/")[1], "train")), level
    for level in [*recipe.evaluate.held_in, *recipe.evaluate.held_out]:
        assert recipe.evaluate.episodes <= len(split_of(level.split("/")[1], "test")), level
