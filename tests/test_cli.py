"""Exit codes and one-line errors of the commands, and that bad input leaves nothing half-written."""

import json

import pytest

from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.pipeline import open_run, refuse_other
from atlas_ray.recipe.loading import load

RECIPE = """\
name = "small"
num_envs = 4
[collect]
max_steps = 20
[collect.levels]
GoToLocalS5N2 = 4
[select]
selectors = ["all", "random"]
[finetune]
base = "{model}"
arms = [{{ selector = "all" }}, {{ selector = "random" }}]
epochs = 1
batch_size = 2
workers = 0
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    build_model(hidden=16, layers=1, heads=2, intermediate=32, seed=0).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def recipe(tmp_path, model_dir):
    path = tmp_path / "small.toml"
    path.write_text(RECIPE.format(model=model_dir))
    return path


def refused(capsys, *argv):
    """The one line on stderr of a command that must end with exit code 2."""
    assert main([str(a) for a in argv]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


def test_dry_run_prints_the_resolved_recipe_and_writes_nothing(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", str(recipe), "--dry-run", "--out", str(out), "--select.fraction", "0.2", "--seed=3"]) == 0
    resolved = json.loads(capsys.readouterr().out)
    assert (resolved["select"]["fraction"], resolved["seed"]) == (0.2, 3)
    assert not out.exists()


def test_help_lists_the_fields_that_a_command_reads(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["select", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--select.fraction: At most this share" in text
    assert "--seed: " in text
    assert "--switch.costs" not in text


def test_demo_is_a_shipped_recipe(capsys):
    assert main(["demo", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "demo"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--select.fractoin", "0.2"], ["--select.fractoin", "did you mean 'fraction'"]),
        (["--select.fraction", "0"], ["--select.fraction", "greater than 0", "got 0"]),
        (["--select.fraction", "1.5"], ["--select.fraction", "less than or equal to 1", "got 1.5"]),
        (["--collect.levels.GoToLocl", "5"], ["no BabyAI level", "GoToLocal"]),
        (["--seed"], ["--seed", "needs a value"]),
        (["stray"], ["unexpected argument 'stray'"]),
        (["--finetune.base", "no-such-model"], ["no model of that name"]),
    ],
)
def test_bad_arguments(recipe, tmp_path, capsys, arguments, parts):
    out = tmp_path / "run"
    line = refused(capsys, "run", recipe, "--out", out, *arguments)
    for part in parts:
        assert part in line
    assert not out.exists()


def test_unknown_key_names_file_line_and_nearest_key(recipe, capsys):
    recipe.write_text(recipe.read_text().replace("epochs", "epoch"))
    line = refused(capsys, "run", recipe)
    assert f"{recipe}:12: finetune.epoch" in line
    assert "did you mean 'epochs'" in line


def test_unknown_recipe(capsys):
    assert "did you mean demo" in refused(capsys, "run", "demoo")


def test_model_directory_without_weights(recipe, model_dir, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in refused(capsys, "run", recipe, "--finetune.base", empty)
    (empty / "config.json").write_text((model_dir / "config.json").read_text())
    assert "without weights" in refused(capsys, "run", recipe, "--finetune.base", empty)


def run_dir_with(tmp_path, recipe, text):
    out = tmp_path / "run"
    main(["collect", str(recipe), "--out", str(out), "--dry-run"])
    open_run(load(recipe), out)
    (out / "trajectories").mkdir()
    (out / "trajectories" / "expert.jsonl").write_text(text)
    return out


def test_empty_trajectory_file(recipe, tmp_path, capsys):
    out = run_dir_with(tmp_path, recipe, "")
    capsys.readouterr()
    assert "expert.jsonl: holds no trajectory" in refused(capsys, "select", recipe, "--out", out)
    assert not (out / "annotations").exists()


def test_truncated_trajectory_line(recipe, tmp_path, capsys):
    row = {"id": "a", "env": "e", "task": "t", "seed": 1, "instruction": "i", "score": 1.0, "success": True}
    row |= {"source": "expert", "steps": [{"observation": "o", "action": "go forward", "reward": 0.0}]}
    text = json.dumps(row) + "\n" + json.dumps(row)[:50]
    out = run_dir_with(tmp_path, recipe, text)
    capsys.readouterr()
    line = refused(capsys, "select", recipe, "--out", out)
    assert "expert.jsonl:2" in line
    assert "cut short" in line
    assert not (out / "annotations").exists()


def test_a_stage_without_its_input(recipe, tmp_path, capsys):
    assert "needs the stage collect" in refused(capsys, "finetune", recipe, "--out", tmp_path / "run")


def test_a_stage_that_the_recipe_lacks(recipe, tmp_path, capsys):
    assert "no [switch] table" in refused(capsys, "switch", recipe, "--out", tmp_path / "run")


def test_a_run_directory_of_another_recipe(recipe, tmp_path, capsys):
    out = run_dir_with(tmp_path, recipe, "")
    capsys.readouterr()
    line = refused(capsys, "run", recipe, "--out", out, "--select.fraction", "0.2")
    assert "select.fraction: this run was made with 0.3, the recipe now says 0.2" in line


def without(value, path):
    """A resolved recipe as it was before a field was added."""
    table, _, rest = path.partition(".")
    if rest:
        return {**value, table: without(value[table], rest)}
    return {key: inner for key, inner in value.items() if key != table}


@pytest.mark.parametrize("field", ["worker_timeout", "select.oracle", "select.threshold", "finetune.strategy", "sweep"])
def test_a_run_that_was_begun_before_a_field_was_added_goes_on(recipe, tmp_path, field):
    whole = load(recipe).model_dump(mode="json")
    old = without(whole, field)
    assert old != whole
    refuse_other(load(recipe), old, tmp_path)
    with pytest.raises(InputError, match=r"select\.fraction: this run was made with 0\.3, the recipe now says 0\.2"):
        refuse_other(load(recipe, {"select.fraction": "0.2"}), old, tmp_path)


def test_a_run_whose_added_field_the_recipe_sets_is_another_one(recipe, tmp_path):
    old = without(load(recipe).model_dump(mode="json"), "select.threshold")
    with pytest.raises(InputError, match=r"select\.threshold: this run was made with 0\.0, the recipe now says 0\.5"):
        refuse_other(load(recipe, {"select.threshold": "0.5"}), old, tmp_path)


def test_a_run_with_a_field_that_is_gone_is_refused_by_its_name(recipe, tmp_path):
    old = {**load(recipe).model_dump(mode="json"), "colour": "red"}
    with pytest.raises(InputError, match="colour: this run was made with 'red', the recipe now says None"):
        refuse_other(load(recipe), old, tmp_path)


def test_a_directory_that_is_no_run(recipe, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "not a run of ours" in refused(capsys, "run", recipe, "--out", tmp_path / "mine")
    assert "no recipe.resolved.json" in refused(capsys, "report", tmp_path / "mine")


def test_an_engine_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("atlas_ray.engines.vllm_setup.find_spec", lambda name: None)
    path = tmp_path / "r.toml"
    path.write_text('name = "r"\nengine = "vllm"\n[collect]\nlevels = { GoToLocal = 1 }\n')
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'atlas-ray[vllm]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    path.write_text(path.read_text() + '[switch]\nlevels = ["GoToLocal"]\ncosts = [0.1]\n')
    assert main(["run", str(path), "--dry-run"]) == 2
    assert "the switch plays several" in capsys.readouterr().err
