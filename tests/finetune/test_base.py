"""Adapters and full models over a base that the recipe names by a relative path, and the files that training leaves."""

import json
import os
import shutil

import pytest
from finetune_examples import TOKENIZER, note, tiny, trajectory

from atlas_ray.errors import InputError
from atlas_ray.finetune import finetune
from atlas_ray.models.loading import load_model
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import read_json
from atlas_ray.stages.evaluate import _models
from atlas_ray.trajectory import write_annotations, write_trajectories


def recipe_of(base="m", **changes):
    finetune = {"base": base, "arms": [{"selector": "all"}], "workers": 0, "epochs": 1, **changes}
    return Recipe.model_validate(
        {
            "name": "base",
            "workers": 0,
            "collect": {"file": "x"},
            "select": {"selectors": ["all"]},
            "finetune": finetune,
            "evaluate": {"held_in": ["GoToLocalS5N2"], "episodes": 1},
        }
    )


def tuned(folder, recipe):
    """A run whose collecting and selecting is done, and which is trained now."""
    run_dir = folder / "runs" / "base"
    items = [trajectory(name, 3) for name in "abcd"]
    write_trajectories(run_dir / "trajectories" / "expert.jsonl", items)
    write_annotations(run_dir / "annotations" / "all.jsonl", [note(t.id, 0, 1, 2) for t in items])
    finetune(recipe, run_dir)
    return run_dir


def save(path, seed):
    tiny(seed).save_pretrained(path)
    TOKENIZER.save_pretrained(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the run is begun; another folder has a model of the same name."""
    save(tmp_path / "here" / "m", 1)
    save(tmp_path / "there" / "m", 2)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("lora", [{"rank": 2}, None])
def test_a_run_over_a_relative_base_is_never_taken_up_over_another_model(folder, monkeypatch, lora):
    recipe = recipe_of(lora=lora)
    run_dir = tuned(folder, recipe)
    path = run_dir / "checkpoints" / "all-s0"
    base = read_json(path / "run.json")["base"]
    assert (base["name"], len(base["sha256"])) == ("m", 64)
    if lora:
        config = json.loads((path / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "../../../../m"
    wanted = load_model(str(path)).state_dict()
    assert list(_models(recipe, run_dir)) == ["none", "all/0"]
    monkeypatch.chdir(folder.parent / "there")
    assert all(bool((wanted[name] == p).all()) for name, p in load_model(str(path)).state_dict().items())
    with pytest.raises(InputError, match=r"^finetune\.base: m holds another model here .* than all-s0 was tuned from"):
        _models(recipe, run_dir)
    more = recipe_of(lora=lora, seeds=[0, 1])
    with pytest.raises(InputError, match=r"^finetune\.base: m holds another model"):
        finetune(more, run_dir)
    shutil.rmtree("m")
    shutil.copytree(folder / "m", "m")
    assert list(_models(recipe, run_dir)) == ["none", "all/0"]


def test_a_shipped_base_keeps_its_name(tmp_path):
    path = tuned(tmp_path, recipe_of("tiny-quick", lora={"rank": 2})) / "checkpoints" / "all-s0"
    assert json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-quick"
    assert read_json(path / "run.json")["base"] == {"name": "tiny-quick"}
    load_model(str(path))


def test_runs_from_before_the_base_was_noted_go_on(folder):
    recipe = recipe_of()
    run_dir = tuned(folder, recipe)
    about = run_dir / "checkpoints" / "all-s0" / "run.json"
    old = {key: value for key, value in read_json(about).items() if key != "base"}
    about.write_text(json.dumps(old))
    assert list(_models(recipe, run_dir)) == ["none", "all/0"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_whoever_may_read_the_run_may_read_its_weights(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        run_dir = tuned(tmp_path, recipe_of("tiny-quick", lora={"rank": 2}))
    finally:
        os.umask(before)
    files = [p for p in run_dir.rglob("*") if p.is_file()]
    assert any(p.suffix == ".safetensors" for p in files)
    assert {p.stat().st_mode & 0o777 for p in files} == {mode}
