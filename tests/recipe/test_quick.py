"""The small form of a recipe."""

import json

import pytest

from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import load

RECIPE = """\
name = "large"
[collect]
levels = { GoToLocal = 100, PickupDist = 100 }
max_steps = 40
[select]
selectors = ["all"]
rollouts = 5
[quick]
name = "small"
select.rollouts = 1
"collect.levels" = { GoToLocal = 4 }
[quick.select.oracle]
max_tokens = 9
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE)
    return tmp_path / "r.toml"


def test_a_recipe_is_large_unless_it_is_asked_to_be_quick(recipe):
    large, small = load(recipe), load(recipe, quick=True)
    assert (large.name, large.collect.levels) == ("large", {"GoToLocal": 100, "PickupDist": 100})
    assert (small.name, small.collect.levels) == ("small", {"GoToLocal": 4})
    assert (small.select.rollouts, small.select.oracle.max_tokens, small.collect.max_steps) == (1, 9, 40)


def test_what_is_given_by_hand_comes_last(recipe, capsys):
    assert main(["run", str(recipe), "--quick", "--select.rollouts", "3", "--dry-run"]) == 0
    resolved = json.loads(capsys.readouterr().out)
    assert (resolved["select"]["rollouts"], resolved["name"]) == (3, "small")


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("select.rollouts = 1", "select.rollouts = 0", 10, "select.rollouts"),
        ("select.rollouts = 1", "select.rolouts = 1", 10, "select.rolouts"),
        ('name = "small"', "name = 3", 9, "name"),
        (RECIPE[RECIPE.index("[quick]") :], "", None, "--quick"),
    ],
)
def test_what_is_wrong_is_named_where_it_stands(recipe, old, new, line, field):
    recipe.write_text(RECIPE.replace(old, new))
    with pytest.raises(InputError) as caught:
        load(recipe, quick=True)
    assert (caught.value.line, caught.value.field) == (line, field)
