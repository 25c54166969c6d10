"""What trials ask of Tune, and Tune's schedulers on games with a known optimum."""

from collections import Counter
from types import SimpleNamespace

import pytest
import switch_mdps
from sweep_recipes import recipe_of, switch_recipe

from atlas_ray import pipeline
from atlas_ray.cluster.resources import Total
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Sweep
from atlas_ray.rundir.files import read_json
from atlas_ray.sweep import sweep, tuning
from atlas_ray.sweep.stage import train_switches
from atlas_ray.sweep.trials import trials_of
from atlas_ray.switching import SwitchPolicy

GAMMA = 0.98

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
    recipe = chain_recipe(models, space, steps=480, evaluate_every=160)

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
        step = two.steps / 480
        assert rate == pytest.approx(5e-4 * (1 - 0.9 * step), rel=0.05)
        assert not two.training.over and two.step()["done"] and two.trial.outcome()["status"] == "done"
    finally:
        one.stop()
        two.stop()
