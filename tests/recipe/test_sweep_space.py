"""How a sweep is written: which trials it asks for, and what is refused, with the line and the field."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.recipe import sweep_space
from atlas_ray.recipe.loading import Arm, Recipe, SearchSpace, Sweep, load
from atlas_ray.recipe.sweep_space import plan, shown, with_values

SWITCH = """\
name = "s"
seed = 3

[switch]
levels = ["GoToLocalS5N2"]
costs = [0.02]

[sweep]
samples = 2

[sweep.space]
switch.costs = { grid = [0.01, 0.05] }
"switch.learning_rate" = { loguniform = [1e-4, 1e-2] }
switch.encoder = { choice = ["hashing", "hidden"] }
"""
ATLAS = """\
name = "a"
[collect.levels]
PickupDist = 4
[select]
selectors = ["all", "random", "value"]
[finetune]
arms = [{ selector = "random" }]
[evaluate]
held_in = ["PickupDist"]
[sweep.space]
select.fraction = { grid = [0.1, 0.3] }
finetune.arms = { grid = [{ selector = "random" }, { selector = "value", anchor = 0.5 }] }
"""


@pytest.fixture
def write(tmp_path):
    def write(text, old="", new=""):
        assert old in text
        path = tmp_path / "r.toml"
        path.write_text(text.replace(old, new, 1))
        return path

    return write


def trials(recipe):
    return plan(recipe.sweep, recipe.seed)


def test_a_grid_is_crossed_and_each_point_gets_its_draws(write):
    recipe = load(write(SWITCH))
    found = trials(recipe)
    assert [v["switch.costs"] for v in found] == [0.01, 0.01, 0.05, 0.05]
    assert all(1e-4 <= v["switch.learning_rate"] <= 1e-2 for v in found)
    assert len({v["switch.learning_rate"] for v in found}) == 4
    assert found == trials(load(write(SWITCH))), "the same for one seed"
    assert found != trials(load(write(SWITCH), {"seed": "4"}))


def test_what_else_is_drawn_does_not_change_a_fields_draws(write):
    alone = load(write(SWITCH, 'switch.encoder = { choice = ["hashing", "hidden"] }\n', ""))
    rates = [[v["switch.learning_rate"] for v in trials(r)] for r in (alone, load(write(SWITCH)))]
    assert rates[0] == rates[1]


def test_a_grid_alone_has_one_trial_a_point_in_order(write):
    found = trials(load(write(ATLAS)))
    assert [(v["select.fraction"], v["finetune.arms"]["selector"]) for v in found] == [
        *((0.1, "random"), (0.1, "value"), (0.3, "random"), (0.3, "value"))
    ]


def test_costs_and_budgets_are_alternatives(write):
    recipe = load(write(SWITCH, "switch.encoder", "switch.budgets = { grid = [1, 2, 4] }\nswitch.encoder"))
    found = trials(recipe)
    assert len(found) == 2 * 2 + 3 * 2
    made = [with_values(recipe, v).switch for v in found]
    assert [(s.costs, s.budgets) for s in made[:4]] == [([0.01], [])] * 2 + [([0.05], [])] * 2
    assert [(s.costs, s.budgets) for s in made[4::2]] == [([], [1]), ([], [2]), ([], [4])]


def test_values_reach_the_recipe_of_a_trial(write):
    recipe = load(write(ATLAS))
    values = {"select.fraction": 0.2, "finetune.arms.0.anchor": 1.5, "collect.levels.PickupDist": 9, "engine.cpus": 2.0}
    made = with_values(recipe, values)
    assert (made.select.fraction, made.finetune.arms) == (0.2, [Arm(selector="random", anchor=1.5)])
    assert (made.collect.levels, made.engine.cpus, made.sweep) == ({"PickupDist": 9}, 2.0, None)
    assert with_values(recipe, {"finetune.arms": {"selector": "all"}}).finetune.arms == [Arm(selector="all")]
    assert with_values(recipe, {"finetune.seeds": [1, 2]}).finetune.seeds == [1, 2]
    assert recipe.select.fraction == 0.3, "the recipe itself is as it was"


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "says"),
    [
        ("[1e-4, 1e-2]", "[1e-2, 1e-4]", 13, "switch.learning_rate", "first must be below the second"),
        ("[1e-4, 1e-2]", "[0.0, 1e-2]", 13, "switch.learning_rate", "must be above 0"),
        ("loguniform = [1e-4", "uniform = [-1.0", 13, "switch.learning_rate", "greater than 0 (got -1.0)"),
        ("loguniform = [1e-4, 1e-2]", "loguniform = [1e-4]", 13, "switch.learning_rate.loguniform", "at least 2 items"),
        ("loguniform", "normal", 13, "switch.learning_rate.normal", "did you mean 'uniform'"),
        ('"switch.learning_rate"', '"switch.learning_rat"', 13, "switch.learning_rat", "did you mean 'learning_rate'"),
        ("switch.encoder", "swich.encoder", 14, "swich.encoder", "did you mean 'switch'"),
        ("switch.encoder", "switch.levels.3", 14, "switch.levels.3", "has no element '3'; it has 1"),
        ("switch.encoder", "select.fraction", 14, "select.fraction", "no [select] table"),
        ("switch.encoder", "name", 14, "name", "cannot be swept"),
        ('["hashing", "hidden"]', "[]", 14, "switch.encoder.choice", "at least 1 item"),
        ('["hashing", "hidden"]', "[1, 2]", 14, "switch.encoder", "valid string (got 1)"),
        ('["hashing", "hidden"]', '["a", "b", "a"]', 14, "switch.encoder", "one value stands twice"),
        ('choice = ["hashing", "hidden"]', "", 14, "switch.encoder", "got none"),
        ('choice = ["hashing"', 'grid = [1], choice = ["hashing"', 14, "switch.encoder", "got grid, choice"),
        ("[0.01, 0.05]", "[0.01, -0.05]", 12, "switch.costs", "at least 0"),
        ("[0.01, 0.05]", '["measured"]', 11, "", "measured with other policies"),
        (
            'switch.encoder = { choice = ["hashing", "hidden"]',
            "switch.playoff_episodes = { choice = [5, 9]",
            *(11, "", "trains without switch.playoff_episodes"),
        ),
        ("switch.encoder = { choice", "switch.seeds = { grid", 14, "switch.seeds", "valid integer"),
        (
            'switch.encoder = { choice = ["hashing", "hidden"]',
            "switch.seeds = { grid = [[0, 1]]",
            11,
            "",
            "one of switch.seeds",
        ),
        ("samples = 2", 'metric = "held_in"', 9, "metric", "must be one of success, return, objective, calls"),
        ("samples = 2", "samples = 0", 9, "samples", "greater than or equal to 1"),
        ("samples = 2", 'scheduler = "pbt"', 12, "switch.costs", "pbt changes values in mid-training"),
        ("samples = 2", "sample = 2", 9, "sample", "did you mean 'samples'"),
    ],
)
def test_a_switch_sweep_that_cannot_be(write, old, new, line, field, says):
    path = write(SWITCH, old, new)
    with pytest.raises(InputError) as error:
        load(path)
    where = ".".join(
        ["sweep", *(["space"] if "." in field or field in ("", "name") else []), *([field] if field else [])]
    )
    assert (error.value.path, error.value.line, error.value.field) == (path, line, where)
    assert says in error.value.message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[sweep.space]", '[sweep]\nscheduler = "asha"\n[sweep.space]', "sweep.scheduler: asha is for the switch"),
        ("[sweep.space]", "[sweep]\nsamples = 2\n[sweep.space]", "sweep.samples: all of the space is a grid"),
        ("[sweep.space]", '[sweep]\nmetric = "held_out"\n[sweep.space]', "sweep.metric: evaluate.held_out is empty"),
        ('"random", "value"]', '"random"]', "trial 1 would be refused: finetune.arms: select.selectors lacks value"),
        ("[0.1, 0.3]", "[0.1, 1.3]", "r.toml:11: sweep.space.select.fraction: Input should be less than or equal to 1"),
        (
            "{ grid = [{ selector",
            "{ grid = [[{ selector = 'all' }, { selector = 'random' }], { selector",
            "trains one arm",
        ),
        ("select.fraction", "finetune.epochs.x", "finetune.epochs is no table"),
    ],
)
def test_a_sweep_of_atlas_that_cannot_be(write, old, new, says):
    with pytest.raises(InputError) as error:
        load(write(ATLAS, old, new))
    assert says in str(error.value)


def test_both_methods_in_one_space_and_a_recipe_without_scores_are_refused(write):
    both = ATLAS.replace("[sweep.space]", '[switch]\nlevels = ["GoToLocalS5N2"]\ncosts = [0.1]\n[sweep.space]')
    with pytest.raises(InputError, match="of the switch, or of the other stages"):
        load(write(both + "switch.costs = { grid = [0.1] }\n"))
    with pytest.raises(InputError, match="an .evaluate. table"):
        load(write(ATLAS, '[evaluate]\nheld_in = ["PickupDist"]\n', ""))
    with pytest.raises(InputError, match="more than one must be a whole number"):
        load(write(ATLAS, "select.fraction = { grid = [0.1, 0.3] }", "engine.gpus = { grid = [1.5] }"))
    with pytest.raises(InputError, match="sweep.workers: engine.actors serve workers"):
        load(write(ATLAS, "[sweep.space]", "[engine]\nactors = 1\n[sweep]\nworkers = 0\n[sweep.space]"))
    with pytest.raises(InputError, match="sweep.workers: a trial of the switch has none"):
        load(write(SWITCH, "samples = 2", "workers = 2"))
    with pytest.raises(InputError, match="holds its models itself"):
        load(write(SWITCH, "[switch]", "[engine]\nactors = 1\n[switch]"))
    with pytest.raises(InputError, match="two trials at least"):
        load(
            write(
                SWITCH,
                SWITCH[SWITCH.index("[sweep]") :],
                '[sweep]\nscheduler = "pbt"\nspace.switch.gamma = { grid = [0.9] }',
            )
        )


def test_a_space_can_be_given_on_the_command_line(write):
    recipe = load(write(SWITCH), {"sweep.space.switch.costs": "{ grid = [0.5] }", "sweep.scheduler": "asha"})
    assert recipe.sweep.space["switch.costs"].grid == [0.5] and recipe.sweep.scheduler == "asha"
    with pytest.raises(InputError) as error:
        load(write(SWITCH), {"sweep.space.switch.costs": "{ grid = [-1] }"})
    assert error.value.field == "--sweep.space.switch.costs"


def test_a_sweep_survives_its_own_dump(write):
    for text in (SWITCH, ATLAS):
        recipe = load(write(text))
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@given(st.floats(1e-6, 1.0), st.floats(1.001, 1e4), st.integers(-50, 50), st.integers(1, 100), st.randoms())
def test_draws_stay_within_their_range(low, factor, first, width, rng):
    for draw in (SearchSpace(uniform=[low, low * factor]), SearchSpace(loguniform=[low, low * factor])):
        assert low * (1 - 1e-9) <= draw.draw(rng) <= low * factor * (1 + 1e-9)
    whole = SearchSpace(randint=[first, first + width])
    assert {whole.draw(rng) for _ in range(20)} <= set(range(first, first + width + 1))
    assert SearchSpace(choice=["a", "b"]).draw(rng) in ("a", "b")


def test_a_dry_run_says_how_many_trials_there_are_and_writes_nothing(write, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["sweep", str(write(SWITCH)), "--dry-run", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["sweep"]["space"]["switch.costs"]["grid"] == [0.01, 0.05]
    assert captured.err == "4 trials\n"
    assert main(["sweep", str(write(ATLAS, "[0.1, 0.3]", "[0.1, 3]")), "--out", str(out)]) == 2
    line = capsys.readouterr().err
    assert "r.toml:11: sweep.space.select.fraction:" in line and line.count("\n") == 1
    assert main(["sweep", "demo", "--out", str(out)]) == 2
    assert "no [sweep] table" in capsys.readouterr().err
    assert not out.exists()


def test_a_sweep_needs_a_space():
    with pytest.raises(ValidationError):
        Sweep(space={})


def test_values_are_shown_as_people_read_them():
    assert shown([{"selector": "value", "anchor": 0.5}]) == "value+anchor0.5"
    assert shown([0.0123456]) == "0.01235" and shown("x") == "x" and shown([1, 2]) == "[1, 2]"


def test_whoever_is_handed_a_recipe_does_not_build_its_grid_again(write, monkeypatch):
    """A worker of Tune validates the whole recipe; the grid was checked when the recipe was read."""
    resolved = load(write(SWITCH)).model_dump(mode="json")
    monkeypatch.setattr(sweep_space, "plan", lambda *_: pytest.fail("the grid is built"))
    made = Recipe.model_validate(resolved)
    assert len(made.sweep.space) == 3
    with pytest.raises(pytest.fail.Exception):
        load(write(SWITCH))
