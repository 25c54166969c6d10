"""The table [rounds]: what it needs, and what is refused."""

import json

import pytest

from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import load

RECIPE = """
name = "r"
[switch]
levels = ["GoToLocalS5N2"]
costs = [0.05]
[rounds]
"""


def write(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text)
    return path


def test_defaults_take_every_arm_and_the_calls_go_on(tmp_path):
    rounds = load(write(tmp_path, RECIPE)).rounds
    assert rounds.arms[0] == "calls" and len(rounds.arms) == 5
    assert rounds.stop and rounds.tune_from == "before"


@pytest.mark.parametrize(
    ("text", "field", "word"),
    [
        (RECIPE.replace("costs = [0.05]", 'costs = [0.05]\nmodels = ["expert", "tiny-quick"]'), "switch", "expert"),
        (
            RECIPE.replace(
                "costs = [0.05]",
                'costs = [0.05]\nmodels = [{ model = "x", base_url = "http://localhost:1/v1" }, "tiny-quick"]',
            ),
            "switch",
            "endpoint",
        ),
        ('name = "r"\n[rounds]\n', "rounds", "[switch]"),
        (
            RECIPE + '[collect]\nlevels = { GoToLocalS5N2 = 2 }\nswitch = "runs/x/always-quick"\n',
            "collect.switch",
            "own",
        ),
        (RECIPE + 'arms = ["random_calls"]\n', "rounds", "calls"),
        (RECIPE + 'arms = ["deepthink-equal-tokens", "calls"]\n', "rounds", "first arm"),
        (RECIPE + 'arms = ["all", "all"]\n', "rounds", "twice"),
        (RECIPE + "count = 0\n", "rounds.count", "greater"),
        (RECIPE + "[rounds.finetune]\nbase = 'tiny-quick'\n", "rounds.finetune.base", "unknown"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(tmp_path, text, field, word):
    with pytest.raises(InputError) as caught:
        load(write(tmp_path, text))
    assert word in f"{caught.value.field} {caught.value}"
    assert field in str(caught.value)


def test_the_command_needs_the_table_and_the_switch(tmp_path, capsys):
    without = write(tmp_path, RECIPE.replace("[rounds]", ""))
    assert main(["rounds", str(without), "--out", str(tmp_path / "run")]) == 2
    assert "[rounds]" in capsys.readouterr().err
    path = write(tmp_path, RECIPE)
    assert main(["rounds", str(path), "--dry-run", "--rounds.count", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"]["count"] == 3
    assert main(["rounds", str(path), "--out", str(tmp_path / "run"), "--workers", "0"]) == 2
    assert "switch" in capsys.readouterr().err
