"""Sweeps on Ray Tune: real trainings, exact optima, trials that fail, kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
import switch_mdps
from ray.tune.error import _TuneStopTrialError
from switch_models import LEVELS, SHAPES, model

from atlas_ray import pipeline
from atlas_ray.cluster.resources import Total
from atlas_ray.errors import AtlasError, InputError
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe, Sweep
from atlas_ray.rundir.files import read_json
from atlas_ray.stages.report import write_report
from atlas_ray.storage import sync as syncing
from atlas_ray.sweep import sweep, tuning
from atlas_ray.sweep.stage import train_switches
from atlas_ray.sweep.trials import trials_of
from atlas_ray.switching import SwitchPolicy
from tests.sweep.test_shared import recipe_of

GAMMA = 0.98


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    where = tmp_path_factory.mktemp("models")
    for name in SHAPES:
        model(name).save_pretrained(where / name)
        build_tokenizer().save_pretrained(where / name)
    return where


def switch_recipe(models, space, sweep=(), **switch):
    given = {
        "quick": str(models / "quick"),
        "deepthink": str(models / "deepthink"),
        "levels": LEVELS,
        "max_steps": 5,
        "costs": [0.05],
        "num_envs": 4,
        "steps": 80,
        "evaluate_every": 40,
        "evaluate_episodes": 6,
        "test_episodes": 16,
        "features": 32,
    }
    about = {"name": "s", "workers": 1, "style": "action", "switch": {**given, **switch}}
    return Recipe.model_validate({**about, "sweep": {**dict(sweep), "space": space}})


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


def test_a_trial_that_fails_is_counted_and_the_others_go_on(ray_session, models, tmp_path, capsys):
    base = str(models / "quick")
    tuned = {"base": base, "epochs": 1, "batch_size": 4, "workers": 0, "arms": [{"selector": "all"}]}
    short = {"finetune.context": {"grid": [8, 1024]}}
    recipe = recipe_of(base, short, finetune=tuned)
    recipe = recipe.model_copy(update={"sweep": recipe.sweep.model_copy(update={"concurrent": 1})})
    made = sweep(recipe, tmp_path / "run")
    assert [row["status"] for row in made["trials"]] == ["failed", "done"]
    assert "metric" not in made["trials"][0] and "the model takes 8" in made["trials"][0]["why"]
    said = capsys.readouterr().out
    assert "1 done, 1 failed" in said and "trial 0 (finetune.context = 8) failed: " in said
    assert "Trials that failed" in (tmp_path / "run" / "report.html").read_text()


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


# --- what trials ask for ---


def asked(recipe, tmp_path, gpus=False):
    (bundle, *rest), total = tuning.resource_request(trials_of(recipe, tmp_path)[0], recipe.sweep.kind, gpus)
    return bundle, rest, total


def test_a_trial_asks_for_its_process_and_whatever_that_starts(models, tmp_path):
    base, space = str(models / "quick"), {"finetune.epochs": {"grid": [1, 2]}}
    alone = recipe_of(base, space)
    assert asked(alone, tmp_path) == ({"CPU": 1.0, "GPU": 0.0}, [], Total(1.0, 0.0))
    assert asked(alone, tmp_path, gpus=True)[2] == Total(1.0, 1.0), "it trains on a GPU where there is one"
    tuning_table = {**alone.finetune.model_dump(), "workers": 2}
    trains_apart = recipe_of(base, space, workers=3, finetune=tuning_table)
    bundle, _, total = asked(trains_apart, tmp_path, gpus=True)
    assert (bundle["CPU"], bundle["GPU"], total) == (1.0, 0.0, Total(3.0, 2.0)), "it plays, then 2 train"
    all_apart = recipe_of(base, space, sweep={"space": space, "workers": 3}, finetune=tuning_table)
    bundle, _, total = asked(all_apart, tmp_path, gpus=True)
    assert (bundle["CPU"], bundle["GPU"], total) == (0.0, 0.0, Total(3.0, 2.0)), "3 play, then 2 train"
    switch = switch_recipe(models, {"switch.costs": {"grid": [0.1]}}, env_runners=2)
    assert asked(switch, tmp_path) == ({"CPU": 1.0, "GPU": 0.0}, [{"CPU": 1.0}] * 2, Total(3.0, 0.0))


def test_trials_side_by_side_are_bounded_by_the_machine_and_by_the_recipe(ray_session):
    one, two = Total(1.0, 0.0), Total(2.0, 0.0)
    there = {"CPU": 4.0, "GPU": 1.0}
    space = {"switch.costs": {"grid": [0.1]}}
    assert tuning.at_a_time(Sweep(space=space), [one], there) == 4
    assert tuning.at_a_time(Sweep(space=space), [one, two], there) == 2
    assert tuning.at_a_time(Sweep(space=space, concurrent=3), [one], there) == 3
    assert tuning.at_a_time(Sweep(space=space, concurrent=9), [one], there) == 4
    with pytest.raises(InputError, match="a trial asks for 1000 CPUs"):
        tuning.at_a_time(Sweep(space=space), [Total(1000.0, 0.0)], there)


# --- games with a known optimum ---


def on_a_chain(name="chain-12"):
    """A trial's training on an exact game; a closure, so that it reaches processes without this module."""

    def setup_fn(trial):
        import switch_mdps

        from atlas_ray.switching.policy import SwitchConfig
        from atlas_ray.switching.tasks import TrainingSetup

        mdp, settings = switch_mdps.MDPS[name], trial.recipe.switch
        cost, budget = next(iter(settings.costs), None), next(iter(settings.budgets), None)
        config = SwitchConfig(mdp.code.shape[1], (128, 64), mdp.models, budget, cost)

        def evaluate(policy):
            value = switch_mdps.value(mdp, policy.greedy, 0.98, cost or 0.0, budget)
            return {"objective": value, "return": value, "success": value, "calls": 0.0}

        return TrainingSetup(settings, config, switch_mdps.maker(name, budget, cost or 0.0), evaluate, 0, trial.number)

    return setup_fn


def chain_recipe(models, space, sweep=(), **switch):
    exact = {"num_envs": switch_mdps.ROWS, "gamma": GAMMA, "evaluate_every": 500, "steps": 4000}
    return switch_recipe(models, space, {"metric": "objective", **dict(sweep)}, **{**exact, **switch})


def shares(trials, name="chain-12"):
    """How much of the optimum each trial's policy reaches."""
    mdp, found = switch_mdps.MDPS[name], []
    for t in trials:
        (where,) = (t.directory / "checkpoints").iterdir()
        policy, config = SwitchPolicy.load(where), SwitchPolicy.load(where).config
        value = switch_mdps.value(mdp, policy.greedy, GAMMA, config.cost or 0.0, config.budget)
        found.append(value / switch_mdps.optimum(mdp, GAMMA, config.cost or 0.0, config.budget)[0, -1])
    return found


@pytest.mark.slow
def test_a_grid_finds_the_best_switch_for_each_cost_and_budget_and_both_learners(ray_session, models, tmp_path):
    space = {
        "switch.costs": {"grid": [0.02, 0.05, 0.2]},
        "switch.budgets": {"grid": [4]},
        "switch.algorithm": {"grid": ["dqn", "sac"]},
    }
    trials = trials_of(chain_recipe(models, space), tmp_path)
    train_switches(chain_recipe(models, space), tmp_path, trials, on_a_chain())
    assert [t.outcome()["status"] for t in trials] == ["done"] * 8
    assert min(shares(trials)) >= 0.99


@pytest.mark.slow
def test_asha_stops_trials_that_lag_behind(ray_session, models, tmp_path):
    rates = [1e-9, 1e-3, 2e-9, 2e-3]
    recipe = chain_recipe(models, {"switch.learning_rate": {"grid": rates}}, {"scheduler": "asha", "concurrent": 4})
    trials = trials_of(recipe, tmp_path)
    train_switches(recipe, tmp_path, trials, on_a_chain())
    status = Counter(t.outcome()["status"] for t in trials)
    assert status["stopped"] >= 1 and status["done"] >= 1 and not status["failed"]
    steps = [read_json(t.directory / "history.json")[-1]["step"] for t in trials]
    assert all((n >= 4000) == (t.outcome()["status"] == "done") for n, t in zip(steps, trials, strict=True))
    assert max(shares(trials)) >= 0.99, "those that were stopped have a policy too"


@pytest.mark.slow
def test_pbt_goes_on_from_better_trials_with_other_values(ray_session, models, tmp_path):
    space = {"switch.learning_rate": {"loguniform": [1e-8, 3e-3]}}
    recipe = chain_recipe(models, space, {"scheduler": "pbt", "samples": 4, "concurrent": 4})
    trials = trials_of(recipe, tmp_path)
    train_switches(recipe, tmp_path, trials, on_a_chain())
    outcomes = [t.outcome() for t in trials]
    assert [o["status"] for o in outcomes] == ["done"] * 4
    rates = [o["values"]["switch.learning_rate"] for o in outcomes]
    assert rates != [t.values["switch.learning_rate"] for t in trials], "somebody took over another's"
    assert all(1e-8 <= rate <= 3e-3 for rate in rates)
    assert max(shares(trials)) >= 0.95


def test_a_state_of_another_trial_is_gone_on_from_with_ones_own_values(ray_session, models, tmp_path, monkeypatch):
    """What population based training does."""
    from ray.tune.result import TRIAL_INFO
    from ray.tune.trainable import trainable

    from atlas_ray.sweep.switch import TrialDQN

    monkeypatch.setattr(trainable, "DEFAULT_STORAGE_PATH", str(tmp_path / "ray"))
    space = {"switch.learning_rate": {"grid": [1e-3, 5e-4]}, "switch.batch_size": {"grid": [16]}}
    recipe = chain_recipe(models, space, steps=1200, evaluate_every=400)

    def start(number):
        values = trials_of(recipe, tmp_path)[number].values
        point = {"number": number, "values": values, "bundles": [{"CPU": 1.0}]}
        same = {"recipe": recipe.model_dump(mode="json", exclude_unset=True), "run_dir": str(tmp_path), "logs": None}
        info = {TRIAL_INFO: SimpleNamespace(trial_name=f"{number:04d}")}
        return TrialDQN(
            {"point": point, **same, "path": [], "metric": "success", "setup_fn": on_a_chain("chain-6"), **info}
        )

    one, two = start(0), start(1)
    try:
        first = one.step()
        one.save_checkpoint(str(tmp_path / "state"))
        two.load_checkpoint(str(tmp_path / "state"))
        assert two.steps == one.steps and len(two.training.history) == 1
        policies = [SwitchPolicy.load(t.place).tensors for t in (one, two)]
        assert all((policies[0][k] == policies[1][k]).all() for k in policies[0]), "the best so far came along"
        assert two.step()["score"] >= first["score"]
        rate = two.learner_group._learner.get_optimizer("default_policy", "q").param_groups[0]["lr"]
        step = two.steps / 1200
        assert rate == pytest.approx(5e-4 * (1 - 0.9 * step), rel=0.05)
        assert not two.training.over and two.step()["done"] and two.trial.outcome()["status"] == "done"
    finally:
        one.stop()
        two.stop()


# --- kills ---


def command(path, out):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "atlas_ray", "sweep", str(path), "--out", str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def begun(path, out):
    """A sweep of which a trial is done."""
    driver = command(path, out)
    deadline = time.monotonic() + 300
    while not list(out.glob("trials/*/trial.json")):
        if driver.poll() is not None or time.monotonic() > deadline:
            driver.kill()
            pytest.fail(driver.communicate()[0])
        time.sleep(0.1)
    return driver


def killed_and_run_again(recipe, tmp_path, mark):
    """Kill the driver once a trial is done, then run the same command; what was done, and what it says."""
    path, out = tmp_path / "r.json.toml", tmp_path / "run"
    path.write_text(as_toml(recipe))
    driver = begun(path, out)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    time.sleep(3)  # what the driver started ends with it
    done = {p.parent for p in out.glob("trials/*/trial.json")}
    before = {p: p.stat().st_mtime_ns for d in done for p in d.rglob(mark)}
    assert before and len(done) < len(trials_of(recipe, out))
    again = command(path, out)
    said, _ = again.communicate(timeout=500)
    assert again.returncode == 0, said
    assert {p: p.stat().st_mtime_ns for d in done for p in d.rglob(mark)} == before, "what was done is not done again"
    assert f"{len(done)} of them already done" in said
    return out


def test_a_sweep_whose_machine_is_lost_is_fetched_from_its_storage(ray_session, models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(syncing, "HEARTBEAT_SECONDS", 0.4)
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["atlas", "switch"])
def test_a_sweep_that_is_ended_and_whose_machine_is_lost_goes_on_from_its_storage(models, tmp_path, kind):
    if kind == "atlas":
        recipe = recipe_of(str(models / "quick"), {"finetune.learning_rate": {"grid": [1e-3, 3e-3, 1e-2, 3e-2]}})
    else:
        space = {"switch.costs": {"grid": [0.01, 0.02, 0.03, 0.04]}}
        recipe = switch_recipe(models, space, {"concurrent": 1}, steps=400)
    path, one, two = tmp_path / "r.toml", tmp_path / "one" / "run", tmp_path / "two" / "run"
    (tmp_path / "shared").mkdir()
    path.write_text(as_toml(recipe.model_copy(update={"storage": str(tmp_path / "shared")})))
    driver = begun(path, one)
    driver.terminate()
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 143, said
    # (a trial may end while its driver does)
    done = len(list((tmp_path / "shared").glob("run/trials/*/trial.json")))
    assert 1 <= done < 4
    shutil.rmtree(one)
    again = command(path, two)
    said, _ = again.communicate(timeout=500)
    assert again.returncode == 0, said
    assert f"{done} of them already done" in said
    assert [row["status"] for row in timeless(two)] == ["done"] * 4
    if kind == "atlas":
        whole = command(path, tmp_path / "whole")
        said, _ = whole.communicate(timeout=500)
        assert whole.returncode == 0, said
        assert timeless(two) == timeless(tmp_path / "whole")
    for t in trials_of(recipe, two):
        steps = [row["step"] for row in read_json(t.directory / "history.json")] if kind == "switch" else []
        assert steps == sorted(set(steps))


def as_toml(recipe):
    """Inline tables alone, which is enough."""

    def value(given):
        if isinstance(given, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in given.items()) + "}"
        return "[" + ", ".join(map(value, given)) + "]" if isinstance(given, list) else json.dumps(given)

    data = recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return "".join(f"{key} = {value(given)}\n" for key, given in data.items())


def timeless(out):
    rows = read_json(out / "sweep.json")["trials"]
    return [{k: v for k, v in row.items() if k not in ("seconds", "train_seconds")} for row in rows]


@pytest.mark.slow
def test_a_killed_sweep_of_atlas_ends_like_one_that_was_not(models, tmp_path):
    space = {"finetune.learning_rate": {"grid": [1e-3, 3e-3, 1e-2, 3e-2]}, "select.fraction": {"grid": [0.2, 0.5]}}
    recipe = recipe_of(str(models / "quick"), space)
    out = killed_and_run_again(recipe, tmp_path, "run.json")
    whole = command(tmp_path / "r.json.toml", tmp_path / "whole")
    said, _ = whole.communicate(timeout=500)
    assert whole.returncode == 0, said
    assert timeless(out) == timeless(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_sweep_of_the_switch_goes_on(models, tmp_path):
    recipe = switch_recipe(models, {"switch.costs": {"grid": [0.01, 0.02, 0.03, 0.04]}}, {"concurrent": 1}, steps=400)
    out = killed_and_run_again(recipe, tmp_path, "model.safetensors")
    assert [row["status"] for row in timeless(out)] == ["done"] * 4
    for t in trials_of(recipe, out):
        steps = [row["step"] for row in read_json(t.directory / "history.json")]
        assert steps[-2] < 400 <= steps[-1]
        # the last is as long as what was left
        gaps = [after - before for before, after in pairwise([0, *steps[:-1]])]
        assert all(40 <= gap < 80 for gap in gaps), "no step is trained twice, and none left out"


@pytest.mark.slow
def test_trials_may_have_workers_of_their_own(ray_session, models, tmp_path):
    """Two that play and one that trains, which find room outside of what Tune has set aside for the trial."""
    base = str(models / "quick")
    tuning_table = {"base": base, "arms": [{"selector": "value"}], "epochs": 1, "batch_size": 4, "workers": 1}
    own = {"space": {"finetune.seeds": {"grid": [0, 1]}}, "workers": 2}
    recipe = recipe_of(base, {}, sweep=own, finetune=tuning_table)
    made = sweep(recipe, tmp_path / "run")
    assert [row["status"] for row in made["trials"]] == ["done"] * 2
    lone = tmp_path / "lone"
    pipeline.run(trials_of(recipe, tmp_path)[1].recipe, lone, ("collect", "select", "finetune", "evaluate"))
    assert (
        read_json(lone / "evaluation" / "atlas.json")["arms"][1]["held_in"]["success"] == made["trials"][1]["success"]
    )
