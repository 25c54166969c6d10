"""A run that is gone on with where a simulator has another version than it was begun with."""

import importlib.metadata
import json

import pytest
from exchange_records import three_steps

from atlas_ray import envs, pipeline
from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import read_json, write_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.stages.same_environments import record_environments, refuse_other_environments
from atlas_ray.trajectory import write_trajectories

LEVEL = "BabyAIText/GoToLocalS5N2-v0"
HERE = importlib.metadata.version("minigrid")


def recipe(**tables):
    tables = tables or {"collect": {"levels": {"GoToLocalS5N2": 2}}, "select": {"selectors": ["random"]}}
    return Recipe.model_validate({"name": "x", "workers": 0, **tables})


@pytest.fixture
def run(tmp_path):
    pipeline.run(recipe(), tmp_path / "run", ("collect",))
    return RunLayout(tmp_path / "run")


def test_every_family_says_its_version():
    said = {name.partition("/")[0]: envs.environment_class(name).packages for name in ("ScienceWorld/boil", LEVEL)}
    assert said == {"ScienceWorld": ("scienceworld",), "BabyAIText": ("minigrid",)}
    assert envs.versions(LEVEL) == {"minigrid": HERE}
    others = {
        "TextWorldExpress/coin": "textworld-express",
        "TextWorld/simple": "textworld",
        "ALFWorld/all": "textworld",
    }
    assert all(package in envs.environment_class(name).packages for name, package in others.items())
    assert envs.versions("AgentGym/webshop") == {}, "a server does not tell"


def test_a_run_goes_on_with_the_version_it_was_begun_with_only(run, monkeypatch, capsys):
    assert read_json(run.environment_versions) == {LEVEL: {"minigrid": HERE}}
    monkeypatch.setattr(envs.environment_class(LEVEL), "versions", lambda: {"minigrid": "99.0"})
    pipeline.run(recipe(), run.root, ("collect",))  # which is done
    with pytest.raises(InputError) as caught:
        pipeline.run(recipe(), run.root, ("select",))
    assert (caught.value.code, caught.value.exit_code) == ("other_environment", 2)
    assert f"minigrid {HERE}" in caught.value.message and "minigrid 99.0" in caught.value.message
    assert not run.annotations("random").exists()
    monkeypatch.undo()
    capsys.readouterr()
    pipeline.run(recipe(), run.root, ("select",))
    assert run.annotations("random").exists() and "in which version" not in capsys.readouterr().err


def test_the_command_line_says_both_versions_in_one_line(run, monkeypatch, capsys, tmp_path):
    text = 'name = "x"\nworkers = 0\n[collect]\nlevels = { GoToLocalS5N2 = 2 }\n[select]\nselectors = ["random"]\n'
    (tmp_path / "x.toml").write_text(text)
    monkeypatch.setattr(envs.environment_class(LEVEL), "versions", lambda: {"minigrid": "99.0"})
    capsys.readouterr()
    assert main(["select", str(tmp_path / "x.toml"), "--out", str(run.root)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert HERE in line and "99.0" in line and LEVEL in line


def test_a_run_of_a_release_that_noted_nothing_goes_on_and_says_so(run, capsys):
    run.environment_versions.unlink()
    capsys.readouterr()
    pipeline.run(recipe(), run.root, ("select",))
    said = capsys.readouterr()
    assert f"in which version {LEVEL} was played so far; it goes on with minigrid {HERE}" in said.out + said.err
    assert read_json(run.environment_versions) == {LEVEL: {"minigrid": HERE}}


def test_what_was_imported_is_replayed_by_one_version(tmp_path):
    made = recipe(collect={"file": "a.jsonl"}, select={"selectors": ["value"]})
    layout = RunLayout(tmp_path)
    item = three_steps(env=LEVEL)
    write_trajectories(layout.expert, [item, item.model_copy(update={"id": "x", "env": "no_such_module:A/B-v0"})])
    write_json(layout.environment_versions, {})
    record_environments(made, tmp_path, "select")
    assert read_json(layout.environment_versions) == {LEVEL: {"minigrid": HERE}}
    layout.environment_versions.write_text(json.dumps({LEVEL: {"minigrid": "2.3.1"}}))
    with pytest.raises(InputError, match=r"minigrid 2\.3\.1.*minigrid " + HERE):
        refuse_other_environments(made, tmp_path, "select")
