"""Relative names of models in a run that is gone on with, or served, from another directory."""

import shutil

import pytest
from serving_sessions import switch
from switch_models import LEVELS, SHAPES, model

from atlas_ray import pipeline
from atlas_ray.errors import InputError
from atlas_ray.models.loading import fingerprint
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import read_json, write_json
from atlas_ray.serving import open_sessions
from atlas_ray.stages.same_models import models_and_encoders, record_models
from atlas_ray.sweep import tuning
from atlas_ray.sweep.stage import _switch, train_switches
from atlas_ray.sweep.trials import trials_of


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where runs are begun, and another directory with other models of the same names."""
    for place, others in (("here", SHAPES), ("there", reversed(SHAPES))):
        for name, shape in zip(SHAPES, others, strict=True):
            model(shape).save_pretrained(tmp_path / place / name)
            build_tokenizer().save_pretrained(tmp_path / place / name)
    (tmp_path / "nowhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_a_stage_goes_on_with_the_models_it_was_begun_with_only(folders, monkeypatch):
    select = {"selectors": ["perplexity", "last"], "model": "quick"}
    collect = {"levels": {"GoToLocalS5N2": 2}}
    recipe = Recipe.model_validate({"name": "x", "workers": 0, "collect": collect, "select": select})
    run_dir = folders / "run"
    pipeline.run(recipe, run_dir, ("collect",))
    assert not (run_dir / "models.json").exists(), "no model has run yet"
    pipeline.run(recipe, run_dir, ("select",))
    assert read_json(run_dir / "models.json") == {"quick": fingerprint(folders / "here" / "quick")}
    marks = run_dir / "annotations" / "perplexity.jsonl"
    wanted = marks.read_bytes()
    for place, why in (("there", "holds another model here"), ("nowhere", "is not here")):
        monkeypatch.chdir(folders / place)
        pipeline.run(recipe, run_dir, ("select",))
        marks.unlink()
        with pytest.raises(InputError, match=rf"^select\.model: .*quick {why} \(.*{place}/quick\)"):
            pipeline.run(recipe, run_dir, ("select",))
        shutil.copytree(folders / "here" / "quick", folders / "nowhere" / "quick", dirs_exist_ok=True)
        monkeypatch.chdir(folders / "nowhere")
        pipeline.run(recipe, run_dir, ("select",))
        assert marks.read_bytes() == wanted
        shutil.rmtree(folders / "nowhere" / "quick")


def test_only_relative_directories_are_noted(folders):
    models = ["quick", str(folders / "here" / "deepthink"), "tiny-quick"]
    settings = {"models": models, "levels": LEVELS, "encoder": "minilm", "budgets": [1]}
    recipe = Recipe.model_validate({"name": "x", "switch": settings})
    assert [field for field, _ in models_and_encoders(recipe, "switch")] == [
        f"switch.models.{n}.model" for n in range(3)
    ]
    record_models(recipe, folders / "run", "switch")
    assert list(read_json(folders / "run" / "models.json")) == ["quick"]
    other = recipe.model_copy(update={"switch": recipe.switch.model_copy(update={"encoder": "org/encoder"})})
    assert list(models_and_encoders(other, "switch"))[-1] == ("switch.encoder", "org/encoder")


def test_so_does_a_sweep_of_switches(folders, monkeypatch):
    tuned = []
    monkeypatch.setattr(tuning, "tune", lambda recipe, run_dir, own, *_, **__: tuned.extend(own))
    settings = {"models": ["quick", "deepthink"], "levels": LEVELS, "costs": [0.1]}
    sweep = {"metric": "success", "space": {"switch.costs": {"grid": [0.1, 0.2]}}}
    recipe = Recipe.model_validate({"name": "x", "switch": settings, "sweep": sweep})
    trials = trials_of(recipe, folders / "run")
    train_switches(recipe, folders / "run", trials)
    assert tuned == trials
    monkeypatch.chdir(folders / "there")
    with pytest.raises(InputError, match=r"^switch\.models\.0\.model: quick holds another model here"):
        _switch(recipe, folders / "run", trials, trials[1:])


def test_a_switch_is_served_with_its_own_models_only(folders, monkeypatch):
    settings = {"models": ["./quick", "deepthink"], "levels": LEVELS, "budgets": [2]}
    recipe, run = Recipe.model_validate({"name": "r", "style": "action", "switch": settings}), folders / "run"
    write_json(run / "recipe.resolved.json", recipe.model_dump(mode="json"))
    switch(2, signals=()).save(run / "checkpoints" / "switch-budget2-seed0")
    record_models(recipe, run, "switch")
    with open_sessions(run) as sessions:
        assert sessions.models == ("./quick", "deepthink")
    for place, why in (("there", "holds another model here"), ("nowhere", "is not here")):
        monkeypatch.chdir(folders / place)
        for policy, field in ((None, 0), ("always-quick", 0), ("always-deepthink", 1)):
            with (
                pytest.raises(InputError, match=rf"^switch\.models\.{field}\.model: .*{why} \(.*{place}/") as caught,
                open_sessions(run, policy),
            ):
                pass
            assert "\n" not in str(caught.value)
    (run / "models.json").unlink()
    monkeypatch.chdir(folders / "there")
    with open_sessions(run, "always-quick"):
        pass
