"""Sweeps from the recipe to the table: real trainings, and trials that fail."""

import json
import shutil
from types import SimpleNamespace

import pytest
from ray.tune.error import _TuneStopTrialError
from sweep_recipes import recipe_of, switch_recipe

from atlas_ray.errors import AtlasError, InputError
from atlas_ray.rundir.files import read_json
from atlas_ray.stages.report import write_report
from atlas_ray.storage import sync
from atlas_ray.sweep import sweep, tuning
from atlas_ray.switching import SwitchPolicy


@pytest.mark.slow
def test_a_grid_of_switches_from_training_to_report(ray_session, models, tmp_path, capsys):
    recipe = switch_recipe(models, {"switch.costs": {"grid": [0.01]}, "switch.budgets": {"grid": [1]}})
    made = sweep(recipe, tmp_path / "run")
    said = capsys.readouterr().out
    assert "sweep over switch.costs, switch.budgets: 2 trials" in said and "2 done" in said
    assert "Trial status" not in said and "╭" not in said, "nothing of Tune's own"
    cost, budget = made["trials"]
    assert (cost["values"], budget["values"]) == ({"switch.costs": 0.01}, {"switch.budgets": 1})
    assert cost["steps"] >= 80 and cost["episodes"] == 16 and cost["compute_unit"] == "FLOPs/episode"
    assert budget["calls"] <= 1 and budget["budget_violations"] == 0
    assert [end["name"] for end in made["ends"]] == ["always-quick", "always-deepthink"]
    assert SwitchPolicy.load(tmp_path / "run/trials/0000/checkpoints/switch-cost0.01-seed0").config.cost == 0.01
    assert SwitchPolicy.load(tmp_path / "run/trials/0001/checkpoints/switch-budget1-seed0").config.budget == 1
    history = read_json(tmp_path / "run/trials/0001/history.json")
    assert [row["step"] >= wanted for row, wanted in zip(history, (40, 80), strict=True)] == [True, True]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The sweep" in page and "1 switch learned in each trial" in page
    assert "1 switch learned between" in write_report(tmp_path / "run/trials/0000").read_text(), "an ordinary run"
    assert not list((tmp_path / "run" / ".ray").iterdir()), "Tune's own state is gone"

    # the test episodes are scored as the switch stage scores them, by the policy that was kept
    rows = [json.loads(line) for line in (tmp_path / "run/trials/0000/switch/episodes.jsonl").read_text().splitlines()]
    assert cost["success"] == sum(r["success"] for r in rows) / 16
    assert cost["objective"] == pytest.approx(sum(r["return"] - 0.01 * r["calls"] for r in rows) / 16)

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "trials").rglob("*.jsonl")}
    assert sweep(recipe, tmp_path / "run")["trials"] == made["trials"]
    assert "2 of them already done" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "trials").rglob("*.jsonl")} == before


def in_this_process(recipe, run_dir, trials, trainable, name):
    """In place of Ray Tune: the trials one after the other."""
    given = recipe.model_dump(mode="json", exclude_unset=True)
    same = {"recipe": given, "run_dir": str(run_dir), "logs": None, "path": []}
    for trial in trials:
        one = trainable.__new__(trainable)
        one.setup({"point": {"number": trial.number, "values": trial.values, "bundles": [{"CPU": 1.0}]}, **same})
        assert one.step() == {"done": True}


def test_a_trial_that_fails_is_counted_and_the_others_go_on(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "tune", in_this_process)
    recipe = recipe_of(str(models / "quick"), {"finetune.context": {"grid": [8, 1024]}})
    made = sweep(recipe, tmp_path / "run")
    assert [row["status"] for row in made["trials"]] == ["failed", "done"]
    assert "metric" not in made["trials"][0] and "the model takes 8" in made["trials"][0]["why"]
    said = capsys.readouterr().out
    assert "1 done, 1 failed" in said and "trial 0 (finetune.context = 8) failed: " in said
    assert "Trials that failed" in (tmp_path / "run" / "report.html").read_text()


def test_arms_that_were_trained_are_compared_on_the_episodes_that_both_played(models, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "tune", in_this_process)
    arms = [{"selector": name} for name in ("value", "random_value")]
    select = {"selectors": ["value", "random_value"], "model": str(models / "quick"), "rollouts": 1, "horizon": 2}
    made = sweep(recipe_of(str(models / "quick"), {"finetune.arms": {"grid": arms}}, select=select), tmp_path / "run")
    value, random = made["trials"]
    (one,) = (c for c in made["comparisons"] if c["question"] == "random")
    assert (one["first"], one["second"], one["split"], one["values"]) == ("value", "random_value", "held_in", {})
    assert one["mean"] == pytest.approx(value["success"] - random["success"])
    assert (one["episodes"], one["seeds"], one["level"]) == (3, 1, 0.95)
    assert made["groups"][0]["untuned"]["selector"] == "none" and made["groups"][0]["trials"] == [0, 1]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Do critical steps teach more than as many random ones?" in page and "Trained once" in page


def of_tune(error):
    """As Tune keeps what a trial raised: as text."""
    return _TuneStopTrialError(f"Traceback (most recent call last):\n  File x\natlas_ray.errors.{error}")


@pytest.mark.parametrize(
    ("errors", "kind", "why"),
    [
        (
            ["InputError: select.model: is none", "InputError: select.model: is none"],
            InputError,
            "select.model: is none",
        ),
        (["InputError: select.model: is none", "DivergedError: NaN"], AtlasError, "select.model: is none"),
        ([None, None], AtlasError, "its process ended without a word"),
    ],
    ids=["bad input", "not all of it", "killed"],
)
def test_a_sweep_whose_trials_all_fail_ends_with_what_the_first_met_and_as_bad_input_if_all_were(
    models, tmp_path, monkeypatch, errors, kind, why
):
    recipe = recipe_of(str(models / "quick"), {"seed": {"grid": [1, 2]}})

    def fail(recipe, run_dir, trials, trainable, name):
        met = [
            SimpleNamespace(path=f"/x/{t.name}", error=e and of_tune(e)) for t, e in zip(trials, errors, strict=True)
        ]
        tuning._take_failures(trials, met)

    monkeypatch.setattr(tuning, "tune", fail)
    with pytest.raises(AtlasError) as caught:
        sweep(recipe, tmp_path / "run")
    assert type(caught.value) is kind
    assert str(caught.value) == f"all 2 trials failed; trial 0 (seed = 1): {why}"
    assert read_json(tmp_path / "run" / "sweep.json")["trials"][0]["why"] == why


def test_a_sweep_whose_trials_all_fail_fails_and_leaves_its_table(models, tmp_path, monkeypatch):
    recipe = recipe_of(str(models / "quick"), {"seed": {"grid": [1, 2]}})

    def fail(recipe, run_dir, trials, trainable, name):
        for t in trials:
            t.end("failed", 1.0, why="no luck")

    monkeypatch.setattr(tuning, "tune", fail)
    with pytest.raises(AtlasError, match="all 2 trials failed; trial 0 .seed = 1.: no luck"):
        sweep(recipe, tmp_path / "run")
    assert len((tmp_path / "run" / "sweep.csv").read_text().splitlines()) == 3


def test_what_cannot_be_had_is_refused_before_anything_is_written(models, tmp_path):
    recipe = switch_recipe(models, {"switch.encoder": {"grid": ["hashing", "no/such-encoder"]}})
    with pytest.raises(InputError, match="no/such-encoder"):
        sweep(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_sweep_whose_machine_is_lost_is_fetched_from_its_storage(ray_session, models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sync, "HEARTBEAT_SECONDS", 0.4)
    recipe = recipe_of(str(models / "quick"), {"finetune.learning_rate": {"grid": [1e-3, 1e-2]}})
    recipe = recipe.model_copy(update={"storage": str(tmp_path / "shared")})
    (tmp_path / "shared").mkdir()
    made = sweep(recipe, tmp_path / "one" / "run")
    shutil.rmtree(tmp_path / "one")
    capsys.readouterr()
    assert sweep(recipe, tmp_path / "two" / "run") == made
    assert "2 of them already done" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "shared").iterdir()] == ["run"], "what trials share is no run of its own"


def test_a_sweep_in_a_jobs_copy_of_the_code_is_refused(models, tmp_path):
    recipe = recipe_of(str(models / "quick"), {"seed": {"grid": [1, 2]}})
    with pytest.raises(InputError, match="or --storage"):
        sweep(recipe, tmp_path / "working_dir_files" / "run")
