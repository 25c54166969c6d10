"""What trials share is done once and changes nothing."""

import json
from collections import Counter

import pytest
from safetensors.torch import load_file
from sweep_recipes import recipe_of

from atlas_ray import pipeline
from atlas_ray.rundir.files import read_json
from atlas_ray.selection import scored_stage as scored
from atlas_ray.stages import collect, scored_episodes
from atlas_ray.stages.table import ATLAS
from atlas_ray.sweep import shared, table
from atlas_ray.sweep.trials import trials_of


@pytest.fixture(scope="module")
def model(models):
    return str(models / "quick")


@pytest.fixture
def work(monkeypatch):
    """Counts what is computed: expert episodes, trajectories valued, models played."""
    done = Counter()

    def counting(module, name, key, amount):
        real = getattr(module, name)

        def counted(*arguments, **more):
            done[key] += amount(*arguments)
            return real(*arguments, **more)

        monkeypatch.setattr(module, name, counted)

    counting(collect, "expert_episode", "episodes", lambda *a: 1)
    counting(scored, "estimate_values", "valued", lambda agent, trajectories, config: len(trajectories))
    counting(scored_episodes, "_played", "scored", lambda finished, spec, seed, key: key == "none")
    return done


def everything(recipe, run_dir):
    trials = trials_of(recipe, run_dir)
    pipeline.open_run(recipe, run_dir)
    shared.share(recipe, run_dir, trials, trials)
    for trial in trials:
        pipeline.run(trial.recipe, trial.directory, ATLAS)
        trial.end("done", 1.0)
    return trials


def test_episodes_values_and_the_untuned_model_are_computed_once_over_m_and_arms(model, tmp_path, work):
    space = {
        "select.fraction": {"grid": [0.2, 0.6]},
        "finetune.arms": {"grid": [{"selector": s} for s in ("random", "value")]},
    }
    recipe = recipe_of(model, space)
    trials = everything(recipe, tmp_path)
    assert work["episodes"] < 8 and work["valued"] == 4 and work["scored"] == 3
    a, b, c, d = (t.directory for t in trials)
    expert = "trajectories/expert.jsonl"
    assert len({(t / expert).stat().st_ino for t in (tmp_path, a, b, c, d)}) == 1
    marks = [(t / "annotations" / "value.jsonl") for t in (a, b, c, d)]
    assert marks[0].stat().st_ino == marks[1].stat().st_ino != marks[2].stat().st_ino
    assert marks[0].read_text() != marks[2].read_text()
    assert not (tmp_path / "annotations").exists(), "m is swept, so the sweep's own directory has no marks"

    # a trial is what a run of its recipe by itself would be
    lone = tmp_path / "lone"
    pipeline.run(trials[3].recipe, lone, ATLAS)
    assert (lone / "annotations" / "value.jsonl").read_bytes() == marks[3].read_bytes()
    weights = [load_file(run / "checkpoints" / "value-s0" / "model.safetensors") for run in (lone, d)]
    assert all(bool((weights[0][k] == weights[1][k]).all()) for k in weights[0])
    arms = [read_json(run / "evaluation" / "atlas.json")["arms"] for run in (lone, d)]
    timeless = [[{k: v for k, v in arm.items() if k != "train_seconds"} for arm in own] for own in arms]
    assert timeless[0] == timeless[1]

    rows = [table.atlas_row(t, "held_in") for t in trials]
    made = table.write(tmp_path, "x", recipe.sweep, rows, [])
    assert made == read_json(tmp_path / "sweep.json")
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines[0].startswith("trial,status,select.fraction,finetune.arms,metric,success,ci95_low,ci95_high,held_out")
    assert len(lines) == 5 and lines[4].startswith('3,done,0.6,"{""selector"": ""value""}",')


def test_what_a_later_stage_sweeps_shares_the_marks_and_a_second_call_runs_nothing(model, tmp_path, work):
    recipe = recipe_of(model, {"finetune.learning_rate": {"grid": [1e-3, 1e-2]}})
    trials = everything(recipe, tmp_path)
    assert work["valued"] == 4 and work["scored"] == 3
    roots = [tmp_path, *(t.directory for t in trials)]
    assert len({(r / "annotations" / "value.jsonl").stat().st_ino for r in roots}) == 1
    for growing in ("annotations/scores/value.jsonl", "evaluation/episodes.jsonl"):
        assert len({(r / growing).stat().st_ino for r in roots}) == 3, "nothing grows in two places"
    assert not (tmp_path / "checkpoints").exists()

    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jsonl") if p.name != "metrics.jsonl"}
    work.clear()
    shared.share(recipe, tmp_path, trials, trials[1:])
    assert not work
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jsonl") if p.name != "metrics.jsonl"} == before


def test_a_sweep_of_the_scores_trains_once(model, tmp_path, work):
    recipe = recipe_of(model, {"evaluate.max_steps": {"grid": [3, 5]}})
    trials = everything(recipe, tmp_path)
    models = [r / "checkpoints" / "value-s0" / "model.safetensors" for r in (tmp_path, *(t.directory for t in trials))]
    assert len({m.stat().st_ino for m in models}) == 1
    assert work["scored"] == 6, "with other limits the untuned model plays other episodes"


def test_trials_that_have_nothing_in_common_share_nothing(model, tmp_path, work):
    recipe = recipe_of(model, {"seed": {"grid": [1, 2]}})
    trials = trials_of(recipe, tmp_path)
    pipeline.open_run(recipe, tmp_path)
    shared.share(recipe, tmp_path, trials, trials)
    assert not work
    assert not (tmp_path / "shared").exists() and not (tmp_path / "trajectories").exists()


@pytest.mark.parametrize(
    ("field", "stage"),
    [
        ("seed", "collect"),
        ("collect.max_steps", "collect"),
        ("environments.GoToLocal.size", "collect"),
        ("style", "select"),
        ("engine.cpus", "select"),
        ("select.fraction", "select"),
        ("finetune.base", "finetune"),
        ("finetune.learning_rate", "finetune"),
        ("evaluate.episodes", "evaluate"),
    ],
)
def test_the_first_stage_that_a_field_touches(model, field, stage):
    assert shared.first_stage(recipe_of(model, {"finetune.epochs": {"grid": [1, 2]}}), field) == stage


def test_the_base_touches_selection_by_perplexity_and_scores_touch_validation(model):
    space = {"finetune.epochs": {"grid": [1, 2]}}
    chosen = ["all", "value", "perplexity"]
    recipe = recipe_of(model, space, select={"selectors": chosen, "model": model})
    assert shared.first_stage(recipe, "finetune.base") == "select"
    assert shared.first_stage(recipe, "finetune.epochs") == "finetune"
    tuning = {**recipe.finetune.model_dump(), "validation": {"every": 1}}
    assert shared.first_stage(recipe_of(model, space, finetune=tuning), "evaluate.held_in") == "finetune"


def test_a_trial_that_failed_has_a_row_without_scores(model, tmp_path):
    recipe = recipe_of(model, {"finetune.epochs": {"grid": [1, 2]}})
    first, second = trials_of(recipe, tmp_path)
    first.end("failed", 2.0, why='it, "broke"')
    row = table.atlas_row(first, "held_in")
    assert row == {
        "trial": 0,
        "status": "failed",
        "values": {"finetune.epochs": 1},
        "seconds": 2.0,
        "why": 'it, "broke"',
    }
    made = table.write(tmp_path, "x", recipe.sweep, [row], [])
    assert made["best"] is None and made["front"] == []
    assert (tmp_path / "sweep.csv").read_text().splitlines()[1].endswith(',2.0,"it, ""broke"""')
    assert second.outcome() == {}


def test_the_front_holds_what_nothing_beats():
    def row(number, success, calls):
        return {"trial": number, "success": success, "calls": calls}

    rows = [row(0, 0.5, 2.0), row(1, 0.5, 1.0), row(2, 0.9, 4.0), row(3, 0.8, 4.0), row(4, 0.1, 0.0), row(5, 0.9, 4.0)]
    assert table.front([*rows, {"trial": 6}]) == [4, 1, 2, 5]


def test_best_is_the_largest_or_the_smallest(model, tmp_path):
    recipe = recipe_of(model, {"finetune.epochs": {"grid": [1, 2]}})
    rows = [{"trial": n, "status": "done", "values": {}, "metric": m, "seconds": 1.0} for n, m in enumerate((0.2, 0.7))]
    assert table.write(tmp_path, "x", recipe.sweep, rows, [])["best"] == 1
    smallest = recipe.sweep.model_copy(update={"mode": "min"})
    assert table.write(tmp_path, "x", smallest, rows, [])["best"] == 0
    assert json.loads((tmp_path / "sweep.json").read_text())["mode"] == "min"
