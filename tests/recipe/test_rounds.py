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


OWN = """
name = "r"
[collect]
agent = { model = "tiny-quick", temperature = 1.0 }
levels = { GoToLocalS5N2 = 4 }
[select]
selectors = ["successes"]
[finetune]
base = "tiny-quick"
arms = [{ selector = "successes" }]
[evaluate]
held_in = ["GoToLocalS5N2"]
[rounds]
"""


def test_without_a_switch_a_model_learns_from_its_own_runs(tmp_path):
    recipe = load(write(tmp_path, OWN + "count = 3\ntune_from = 'start'\njudge_episodes = 7\nstop = false\n"))
    assert recipe.switch is None and recipe.rounds.count == 3
    again = type(recipe).model_validate(recipe.model_dump(mode="json"))
    assert again == recipe, "a resolved recipe says all fields"


@pytest.mark.parametrize(
    ("text", "field", "word"),
    [
        (OWN.replace('agent = { model = "tiny-quick", temperature = 1.0 }', ""), "rounds", "collect.agent"),
        (OWN.replace('[evaluate]\nheld_in = ["GoToLocalS5N2"]', ""), "rounds", "[evaluate]"),
        (OWN + "margin = 0.1\n", "rounds.margin", "no [switch]"),
        (OWN + "episodes = 9\n", "rounds.episodes", "collect.levels"),
        (OWN + 'arms = ["calls"]\n', "rounds.arms", "finetune.arms"),
        (OWN + "switch_steps = 9\n", "rounds.switch_steps", "no [switch]"),
        (OWN + "[rounds.finetune]\nepochs = 9\n", "rounds.finetune", "[finetune]"),
        (OWN.replace('base = "tiny-quick"', 'base = "tiny-deepthink"'), "finetune.base", "collect.agent"),
        (
            OWN.replace('model = "tiny-quick"', 'model = "tiny-quick", base_url = "http://localhost:1/v1"'),
            "collect.agent",
            "endpoint",
        ),
        (OWN.replace("[finetune]", '[finetune]\npairs = { files = { mine = "x.jsonl" } }'), "files", "mine"),
        (
            OWN.replace("[select]", '[select]\nfiles = { own = "x.jsonl" }').replace(
                '["successes"]', '["successes", "own"]'
            ),
            "select.files",
            "every round",
        ),
    ],
)
def test_what_own_rounds_cannot_have_is_refused_with_its_field(tmp_path, capsys, text, field, word):
    assert main(["run", str(write(tmp_path, text)), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert field in said and word in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_command_needs_the_table_and_the_switch(tmp_path, capsys):
    without = write(tmp_path, RECIPE.replace("[rounds]", ""))
    assert main(["rounds", str(without), "--out", str(tmp_path / "run")]) == 2
    assert "[rounds]" in capsys.readouterr().err
    path = write(tmp_path, RECIPE)
    assert main(["rounds", str(path), "--dry-run", "--rounds.count", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"]["count"] == 3
    assert main(["rounds", str(path), "--out", str(tmp_path / "run"), "--workers", "0"]) == 2
    assert "switch" in capsys.readouterr().err
