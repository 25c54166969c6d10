"""Recipes: what is wrong is named by file, line and field, with the nearest name that exists."""

import json
import subprocess
import sys
import tomllib

import pytest
from pydantic import ValidationError

from atlas_ray.errors import InputError
from atlas_ray.recipe import loading as module
from atlas_ray.recipe.loading import Arm, ConfigModel, Finetune, NewModel, Recipe, load, shipped

TEXT = """\
# a comment with fraction = 5 in it
name = "mine"

[collect.levels]
GoToLocal = 5
"PickupDist-v0" = 3

[select]
fraction = 0.3

[finetune]
epochs = 1

[[finetune.arms]]
selector = "all"
[[finetune.arms]]
selector = "random"
anchor = 0.5

[evaluate]
held_in = [
  "GoToLocal",
]
held_out = ["PickupLoc"]

[switch]
levels = ["GoToLocal"]
costs = [0.1]
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(old="", new="", text=TEXT):
        assert old in text
        path = tmp_path / "mine.toml"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return path

    return write


def refused(path, overrides=None):
    with pytest.raises(InputError) as caught:
        load(path, overrides)
    return caught.value


def sections(kind=ConfigModel):
    for child in kind.__subclasses__():
        yield child
        yield from sections(child)


# --- what is right ---


def test_something_is_shipped():
    assert len(shipped()) >= 2


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_loads_and_its_dump_is_the_same_recipe(name):
    recipe = load(name)
    dump = recipe.model_dump(mode="json")
    assert Recipe.model_validate(dump) == recipe
    assert Recipe.model_validate(json.loads(json.dumps(dump))) == recipe
    assert load(module._recipes() / f"{name}.toml") == recipe


def test_a_file_and_its_dump_are_the_same_recipe(recipe_file):
    recipe = load(recipe_file())
    assert Recipe.model_validate_json(json.dumps(recipe.model_dump(mode="json"))) == recipe
    assert recipe.collect.levels == {"GoToLocal": 5, "PickupDist-v0": 3}
    assert [a.name for a in recipe.finetune.arms] == ["all", "random+anchor0.5"]


def test_a_path_goes_before_a_shipped_name(recipe_file, tmp_path, monkeypatch):
    path = recipe_file()
    path.rename(tmp_path / shipped()[0])
    monkeypatch.chdir(tmp_path)
    assert load(shipped()[0]).name == "mine"


def test_every_field_says_what_it_means():
    kinds = list(sections())
    assert len(kinds) >= 8
    for kind in kinds:
        assert kind.__doc__
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name}"
            assert field.description.endswith("."), f"{kind.__name__}.{name}"


def test_the_module_imports_neither_torch_nor_ray_nor_minigrid():
    code = (
        "import sys, atlas_ray.recipe.loading as r\n"
        "[r.load(n) for n in r.shipped()]\n"
        "print(sorted({'torch', 'ray', 'transformers', 'minigrid'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_recipe_cannot_be_changed_in_passing(recipe_file):
    recipe = load(recipe_file())
    with pytest.raises(ValidationError):
        recipe.seed = 3


# --- unknown keys ---


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "near"),
    [
        ('name = "mine"', 'name = "mine"\nworker = 3', 3, "worker", "workers"),
        ("[select]", "[selct]", 8, "selct", "select"),
        ("[collect.levels]", "[collect]\ncpu_second = 1\n[collect.levels]", 5, "collect.cpu_second", "cpu_seconds"),
        ("fraction = 0.3", "fracton = 0.3", 9, "select.fracton", "fraction"),
        ("epochs = 1", "epoch = 1", 12, "finetune.epoch", "epochs"),
        ("epochs = 1", "scratch = {hiden = 8}", 12, "finetune.scratch.hiden", "hidden"),
        ('selector = "all"', 'selector = "all"\nancor = 1', 16, "finetune.arms.0.ancor", "anchor"),
        ('selector = "all"', 'selectr = "all"', 15, "finetune.arms.0.selectr", "selector"),
        ("anchor = 0.5", "ankor = 0.5", 18, "finetune.arms.1.ankor", "anchor"),
        ("held_out", "heldout", 24, "evaluate.heldout", "held_out"),
        ("costs", "cost", 28, "switch.cost", "costs"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_name(recipe_file, old, new, line, field, near):
    path = recipe_file(old, new)
    error = refused(path)
    assert (error.path, error.line, error.field) == (path, line, field)
    assert error.message == f"unknown key; did you mean {near!r}?"


def test_a_key_unlike_all_others_gets_the_list(recipe_file):
    error = refused(recipe_file("fraction = 0.3", "zzzzqqq = 0.3"))
    assert error.message.startswith("unknown key; known are selectors, fraction")


# --- wrong values ---


@pytest.mark.parametrize("value", ["0", "0.0", "1.5", "-1", '"a"', '"0.3"', "true", "nan", "inf", "[0.3]"])
def test_a_fraction_that_is_none(recipe_file, value):
    path = recipe_file("fraction = 0.3", f"fraction = {value}")
    error = refused(path)
    assert (error.path, error.line, error.field) == (path, 9, "select.fraction")


@pytest.mark.parametrize(("value", "number"), [("1", 1.0), ("1.0", 1.0), ("0.0001", 0.0001)])
def test_a_fraction_that_is_one(recipe_file, value, number):
    assert load(recipe_file("fraction = 0.3", f"fraction = {value}")).select.fraction == number


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("GoToLocal = 5", "GoToLocal = 0", 5, "collect.levels.GoToLocal"),
        ('"PickupDist-v0" = 3', '"PickupDist-v0" = "3"', 6, "collect.levels.PickupDist-v0"),
        ("epochs = 1", "epochs = 1.5", 12, "finetune.epochs"),
        ("epochs = 1", "epochs = true", 12, "finetune.epochs"),
        ("epochs = 1", "learning_rate = 0", 12, "finetune.learning_rate"),
        ("epochs = 1", "seeds = []", 12, "finetune.seeds"),
        ("epochs = 1", "seeds = [0, '1']", 12, "finetune.seeds.1"),
        ('"all"', '"Best"', 15, "finetune.arms.0.selector"),
        ('"random"', '"Best"', 17, "finetune.arms.1.selector"),
        ("anchor = 0.5", "anchor = -1", 18, "finetune.arms.1.anchor"),
        ("costs = [0.1]", "costs = [0.1, -0.1]", 28, "switch.costs.1"),
        ('name = "mine"', "name = 3", 2, "name"),
        ('name = "mine"', 'name = ""', 2, "name"),
        ('name = "mine"', 'name = "../../etc"', 2, "name"),
        ('name = "mine"', 'name = "mine"\nseed = 1000', 3, "seed"),
        ('name = "mine"', 'name = "mine"\nstyle = "reakt"', 3, "style"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(recipe_file, old, new, line, field):
    path = recipe_file(old, new)
    error = refused(path)
    assert (error.path, error.line, error.field) == (path, line, field)
    assert str(error).startswith(f"{path}:{line}: {field}: ")


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "said"),
    [
        ('name = "mine"\n', "", None, "name", "Field required"),
        ('selector = "all"', "anchor = 1", 14, "finetune.arms.0.selector", "Field required"),
        ('levels = ["GoToLocal"]\n', "", 26, "switch", "levels: name at least one"),
    ],
)
def test_a_missing_key_is_named_with_its_table(recipe_file, old, new, line, field, said):
    error = refused(recipe_file(old, new))
    assert (error.line, error.field) == (line, field)
    assert error.message.startswith(said)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("GoToLocal = 5", "GoToLocl = 5", 5),
        ('held_out = ["PickupLoc"]', 'held_out = ["GoToLocl"]', 24),
        ('levels = ["GoToLocal"]', 'levels = ["GoToLocl"]', 27),
        ('  "GoToLocal",', '  "GoToLocl",', 21),
    ],
)
def test_a_level_that_does_not_exist_names_near_ones(recipe_file, old, new, line):
    error = refused(recipe_file(old, new))
    assert error.line == line
    assert "'GoToLocl'" in error.message
    assert "GoToLocal" in error.message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('[collect.levels]\nGoToLocal = 5\n"PickupDist-v0" = 3\n', "", "select: needs a [collect] table"),
        ("[select]\nfraction = 0.3\n", "", "finetune: needs a [select] table"),
        ("fraction = 0.3", 'selectors = ["all"]', "select.selectors lacks random"),
        ("fraction = 0.3", 'selectors = ["all", "random", "non-critical"]', "non-critical needs value"),
        (
            "fraction = 0.3",
            'selectors = ["all", "random", "valeu"]',
            "no selector is called 'valeu'; did you mean 'value'",
        ),
        ("fraction = 0.3", 'selectors = ["all", "random", "union_value_last"]', "joins value, which must be named too"),
        ("fraction = 0.3", 'selectors = ["all", "random", "all"]', "the same selector stands twice"),
        ("fraction = 0.3", 'selectors = ["all", "random", "union_value"]', "two or more different selectors"),
        ("fraction = 0.3", 'files = { value = "x.jsonl" }', "must be a new name"),
        ("fraction = 0.3", 'rest_of = "non-critical"', "cannot draw from its own rest"),
        ('selector = "random"\nanchor = 0.5', 'selector = "all"', "the same arm stands twice"),
        ("epochs = 1", "seeds = [1, 2, 1]", "the same seed stands twice"),
        ("epochs = 1", "scratch = {hidden = 10, layers = 1, heads = 4, intermediate = 8}", "hidden: 10"),
        ("epochs = 1", 'accumulate = "whole"', "accumulate: whole is for"),
        ("epochs = 1", 'accumulate = "whole"\nworkers = 4', "DDP exchanges no gradients"),
        ("epochs = 1", 'accumulate = "whole"\nstrategy = "fsdp"', "one worker exchanges no gradients"),
        ("costs = [0.1]", "", "at least one cost, budget or average"),
        ('"PickupDist-v0" = 3', '"GoToLocal-v0" = 3', "are the same environment"),
        ('held_out = ["PickupLoc"]', 'held_out = ["GoToLocal-v0"]', "are the same environment"),
        ('held_out = ["PickupLoc"]', 'held_out = ["PickupDist"]', "'PickupDist' is among collect.levels"),
    ],
)
def test_fields_that_do_not_fit_together(recipe_file, old, new, says):
    path = recipe_file(old, new)
    error = refused(path)
    assert error.path == path
    assert says in str(error)


def test_evaluation_without_fine_tuning(recipe_file):
    error = refused(recipe_file(text='name = "x"\n[evaluate]\nheld_in = ["GoToLocal"]\n'))
    assert "evaluate: needs a [finetune] table" in error.message


# --- files ---


def test_a_name_that_does_not_exist_names_the_nearest():
    wrong = shipped()[0] + "x"
    assert f"did you mean {shipped()[0]}?" in refused(wrong).message
    assert ", ".join(shipped()) in refused("zzzzzz/qqq.toml").message


def test_what_is_not_toml_is_named_with_its_line(recipe_file):
    error = refused(recipe_file("fraction = 0.3", "fraction = = 0.3"))
    assert error.line == 9
    assert "not TOML" in error.message
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(error.path.read_text())


def test_what_is_not_utf8_is_named(tmp_path):
    (tmp_path / "r.toml").write_bytes(b'name = "\xff"\n')
    assert refused(tmp_path / "r.toml").message == "not UTF-8 at byte 8"


# --- overrides ---


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("name", "other", "other"),
        ("name", '"other"', "other"),
        ("name", "2024", "2024"),
        ("name", "2024-01-01", "2024-01-01"),
        ("name", "true", "true"),
        ("seed", "7", 7),
        ("style", "action", "action"),
        ("select.fraction", "0.2", 0.2),
        ("select.fraction", "1", 1.0),
        ("select.selectors", '["all", "random"]', ["all", "random"]),
        ("finetune.base", "org/model", "org/model"),
        ("finetune.base", "./dir with space", "./dir with space"),
        ("finetune.seeds", "[1, 2]", [1, 2]),
        ("finetune.arms", '[{selector = "value", anchor = 1}]', [Arm(selector="value", anchor=1.0)]),
        (
            "finetune.scratch",
            "{hidden = 8, layers = 1, heads = 2, intermediate = 9}",
            NewModel(hidden=8, layers=1, heads=2, intermediate=9),
        ),
        ("collect.levels", "{GoToObj = 2}", {"GoToObj": 2}),
        ("collect.levels.PickupDist-v0", "9", {"GoToLocal": 5, "PickupDist-v0": 9}),
        ("collect.max_steps", "9", 9),
        ("switch.budgets", "[1]", [1]),
    ],
)
def test_an_override(recipe_file, key, text, value):
    got = load(recipe_file(), {key: text})
    for part in key.split(".")[: 2 if value.__class__ is dict else None]:
        got = getattr(got, part)
    assert got == value
    assert type(got) is type(value)


def test_overrides_create_tables(recipe_file):
    path = recipe_file(text='name = "x"\n')
    recipe = load(path, {"collect.levels.GoToLocal": "3", "select.fraction": "0.5", "collect.max_steps": "4"})
    assert (recipe.collect.levels, recipe.collect.max_steps, recipe.select.fraction) == ({"GoToLocal": 3}, 4, 0.5)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("select.fraction", "2", "less than or equal to 1"),
        ("select.fraction", "a", "valid number (got 'a')"),
        ("select.fraction", "nan", "finite"),
        ("select.fracton", "0.2", "did you mean 'fraction'?"),
        ("selct.fraction", "0.2", "did you mean 'select'?"),
        ("wrkers", "2", "did you mean 'workers'?"),
        ("finetune.lora", "{rnk = 4}", "rnk: unknown key; did you mean 'rank'?"),
        ("finetune.validation", "{every = 0}", "every: Input should be greater than or equal to 1"),
        ("workers", "2.5", "integer"),
        ("workers", '"2"', "integer"),
        ("name.x", "2", "not a table"),
        ("finetune.arms.0.selector", "all", "not a table"),
        ("evaluate.held_in", '["GoToLocl"]', "GoToLocal"),
        ("finetune.arms", '[{selector = "Best"}]', "is no name of a selector"),
        ("collect.levels.GoToLocl", "3", "GoToLocal"),
        ("collect.levels", "{}", "give either levels"),
        ("name", "a/b", "match"),
        ("name", "", "match"),
        ("", "3", "unknown key"),
        ("select", "3", "dictionary"),
    ],
)
def test_a_bad_override_is_named_as_it_was_given(recipe_file, key, text, says):
    error = refused(recipe_file(), {key: text})
    assert (error.path, error.line, error.field) == (None, None, f"--{key}")
    assert says in error.message
    assert str(error).startswith(f"--{key}: ")


def test_a_good_override_is_not_blamed_for_the_file(recipe_file):
    path = recipe_file("fraction = 0.3", "fraction = 3")
    error = refused(path, {"select.rollouts": "2", "name": "2024"})
    assert (error.path, error.line, error.field) == (path, 9, "select.fraction")
    assert load(path, {"select.fraction": "0.3"}).select.fraction == 0.3


def test_defaults_are_those_of_the_papers_where_they_name_them():
    tune = Finetune(arms=[Arm(selector="all")])
    assert tune.seeds == [0]
    assert module.Select().fraction == 0.3
    assert module.Select().rollouts == 5
