"""Renamed keys: recipes, options, sweeps and runs that have the old names still work, with one warning each."""

import random
import warnings

import pytest

from atlas_ray import pipeline
from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.recipe.base import ConfigModel, first_name
from atlas_ray.recipe.loading import Recipe, RenamedKeyWarning, load
from atlas_ray.recipe.sweep_space import plan, with_current_fields, with_values
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.sweep.trials import trials_of

KEYS = {
    "patience": ("worker_timeout", "60.0"),
    "select.oracle.reasks": ("select.oracle.max_reprompts", "5"),
    "finetune.too_long": ("finetune.truncation", '"drop_last_steps"'),
    "finetune.emptied": ("finetune.on_all_truncated", '"skip"'),
    "switch.keep_replay": ("switch.keep_replay_buffer", "false"),
}
TEXT = """\
name = "old"
patience = 60.0
[collect.levels]
PickupDist = 4
[select]
selectors = ["all"]
[select.oracle]
reasks = 5
[finetune]
arms = [{ selector = "all" }]
too_long = "drop_last_steps"
emptied = "skip"
[evaluate]
held_in = ["PickupDist"]
[switch]
levels = ["PickupDist"]
costs = [0.1]
keep_replay = false
"""
SWEEP = """
[sweep]
samples = 2
[sweep.space]
finetune.too_long = { grid = ["error", "drop_last_steps"] }
"patience" = { uniform = [10.0, 20.0] }
"""
WITHOUT_SWITCH = TEXT[: TEXT.index("[switch]")]


def at(recipe, field):
    for part in field.split("."):
        recipe = getattr(recipe, part)
    return recipe


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "old.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def renewed(text):
    for old, (new, _) in KEYS.items():
        text = text.replace(old.rpartition(".")[2], new.rpartition(".")[2])
    return text


@pytest.fixture
def new(write):
    return load(write(renewed(TEXT)))


def test_a_recipe_with_old_keys_is_the_same_recipe_and_each_is_told_of_once_with_its_line(write, new):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        old = load(write(TEXT))
    assert old == new
    told = [str(w.message) for w in told if w.category is RenamedKeyWarning]
    assert len(told) == len(KEYS) and all("\n" not in text for text in told)
    assert told[0].startswith(f"{write(TEXT)}:2: patience is now called worker_timeout")
    assert told[1].startswith(f"{write(TEXT)}:8: select.oracle.reasks is now called select.oracle.max_reprompts")


@pytest.mark.parametrize("old", KEYS)
def test_overrides_know_old_names(write, old):
    current, value = KEYS[old]
    with pytest.warns(RenamedKeyWarning, match=f"--{old} is now called --{current}"):
        made = load(write(renewed(TEXT)), {old: value})
    assert made == load(write(renewed(TEXT)), {current: value})


def test_an_override_wins_over_the_file_whatever_the_names(write):
    with pytest.warns(RenamedKeyWarning):
        assert load(write(TEXT), {"worker_timeout": "5.0"}).worker_timeout == 5
    with pytest.warns(RenamedKeyWarning):
        assert load(write(renewed(TEXT)), {"patience": "5.0"}).worker_timeout == 5
    with pytest.warns(RenamedKeyWarning, match="--select.oracle: select.oracle.reasks"):
        assert load(write(renewed(TEXT)), {"select.oracle": "{ reasks = 7 }"}).select.oracle.max_reprompts == 7


@pytest.mark.filterwarnings("ignore::atlas_ray.recipe.loading.RenamedKeyWarning")
def test_both_names_at_once_are_refused(write):
    with pytest.raises(InputError, match="worker_timeout") as caught:
        load(write(TEXT.replace("patience = 60.0", "worker_timeout = 1.0\npatience = 60.0")))
    assert (caught.value.line, caught.value.field) == (3, "patience")
    with pytest.raises(InputError) as caught:
        load(write(renewed(TEXT)), {"worker_timeout": "5.0", "patience": "6.0"})
    assert caught.value.field == "--patience"
    twice = WITHOUT_SWITCH + SWEEP + 'finetune.truncation = { grid = ["error"] }\n'
    with pytest.raises(InputError) as caught:
        load(write(twice))
    assert caught.value.field == "sweep.space.finetune.too_long"


@pytest.mark.filterwarnings("ignore::atlas_ray.recipe.loading.RenamedKeyWarning")
def test_an_error_in_an_old_key_names_its_line(write):
    with pytest.raises(InputError) as caught:
        load(write(TEXT.replace("reasks = 5", "reasks = -5")))
    assert (caught.value.line, caught.value.field) == (8, "select.oracle.max_reprompts")
    with pytest.raises(InputError) as caught:
        load(write(TEXT), {"patience": "0.0"})
    assert caught.value.field == "--patience"


@pytest.mark.filterwarnings("ignore::atlas_ray.recipe.loading.RenamedKeyWarning")
def test_a_sweep_over_old_fields_has_the_same_trials_as_under_the_new_ones(write):
    old, today = load(write(WITHOUT_SWITCH + SWEEP)), load(write(renewed(WITHOUT_SWITCH + SWEEP)))
    assert list(old.sweep.space) == ["finetune.truncation", "worker_timeout"]
    assert old == today and plan(old.sweep, old.seed) == plan(today.sweep, today.seed)
    made = plan(old.sweep, old.seed)[-1]
    assert with_values(old, made).finetune.truncation == "drop_last_steps"
    assert with_values(old, {"finetune.too_long": "error"}).finetune.truncation == "error"
    option = {"sweep.space.finetune.too_long": '{ grid = ["error"] }'}
    for text in (WITHOUT_SWITCH + SWEEP, renewed(WITHOUT_SWITCH + SWEEP)):
        assert load(write(text), option).sweep.space["finetune.truncation"].grid == ["error"]


def test_what_is_drawn_does_not_depend_on_what_a_field_is_called_today(write):
    """Values that a sweep drew before its field was renamed (random seeds hold the field's name)."""
    assert first_name(Recipe, "worker_timeout") == first_name(Recipe, "patience") == "patience"
    assert first_name(Recipe, "switch.learning_rate") == "switch.learning_rate"
    drawn = plan(load(write(renewed(WITHOUT_SWITCH + SWEEP))).sweep, 0)[0]["worker_timeout"]
    assert drawn == random.Random("sweep 0 patience 0").uniform(10.0, 20.0)


@pytest.mark.filterwarnings("ignore::atlas_ray.recipe.loading.RenamedKeyWarning")
def test_trials_of_an_older_version_keep_their_values_under_the_new_names(write, tmp_path):
    recipe = load(write(WITHOUT_SWITCH + SWEEP))
    trial = trials_of(recipe, tmp_path / "run")[0]
    trial.directory.mkdir(parents=True)
    RunLayout(trial.directory).trial_result.write_text('{"status": "done", "values": {"finetune.too_long": "error"}}')
    assert trial.outcome()["values"] == {"finetune.truncation": "error"}
    assert with_current_fields({"patience": 1.0, "seed": 2}) == {"worker_timeout": 1.0, "seed": 2}


def aged(resolved):
    """A resolved recipe as an older version wrote it."""
    for old, (current, _) in KEYS.items():
        *tables, key = current.split(".")
        table = resolved
        for name in tables:
            table = table[name]
        table[old.rpartition(".")[2]] = table.pop(key)
    return resolved


def test_a_run_of_an_older_version_goes_on(new, tmp_path):
    found = aged(new.model_dump(mode="json"))
    assert "patience" in found and "reasks" in found["select"]["oracle"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Recipe.model_validate(found) == new
        pipeline.refuse_other(new, found, tmp_path)
    found["finetune"]["emptied"] = "error"
    with pytest.raises(InputError) as caught:
        pipeline.refuse_other(new, found, tmp_path)
    assert caught.value.field == "finetune.on_all_truncated"


def test_the_command_line_warns_in_one_line_each(write, capsys):
    assert main(["run", str(write(renewed(TEXT))), "--dry-run", "--patience", "5.0"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("atlas-ray: warning: --patience is now called --worker_timeout") and said.count("\n") == 1
    assert main(["run", str(write(renewed(TEXT))), "--dry-run"]) == 0
    assert capsys.readouterr().err == ""


def test_help_has_both_names(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    said = capsys.readouterr().out
    assert "--worker_timeout: " in said and "(was: patience)" in said and "--patience" not in said


def test_a_renamed_key_is_no_field_any_more():
    def tables(kind):
        for child in kind.__subclasses__():
            yield child
            yield from tables(child)

    seen = {table.__name__: table for table in tables(ConfigModel)}
    renamed = {(old, new) for table in seen.values() for old, new in table.renamed.items()}
    assert len(renamed) == len(KEYS)
    for table in seen.values():
        assert not set(table.renamed) & set(table.model_fields)
        assert set(table.renamed.values()) <= set(table.model_fields)
