"""Playing with policies, and the stage from training to table."""

import json
import shutil
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from switch_models import agents, specs

from atlas_ray.agents.rollout import SWITCH_TEST, SWITCH_TRAIN, seed_block
from atlas_ray.cluster.worker_state import WorkerState
from atlas_ray.data.results import Londi, interval
from atlas_ray.recipe.of_run import switch_policies
from atlas_ray.report.episode_view import switch_episode_view
from atlas_ray.rundir import files
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.baselines import Always, EveryKth, Oracle, Random, Threshold
from atlas_ray.switching.calibration import weights_of
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.features import EXTRA
from atlas_ray.switching.players import ExpertPlayer, close_players, open_players
from atlas_ray.switching.policies import learned_policies
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.stage import switch_stage
from atlas_ray.switching.stage_context import StageContext
from atlas_ray.switching.tasks import PlayTask
from atlas_ray.switching.text_game import TextGame


def test_the_oracle_with_the_expert_as_the_large_model_never_fails():
    quick = agents()[0]
    rows = evaluate_policy(Oracle(), [quick, ExpertPlayer(4)], specs(64), range(12))
    assert all(r["success"] for r in rows)
    assert not all(r["success"] for r in evaluate_policy(Always(0), [quick, quick], specs(64), range(12)))
    assert all(0 < r["calls"] <= r["steps"] for r in rows)


def test_a_policy_is_told_what_it_needs_and_nothing_else(monkeypatch):
    def refuse(self, rows):
        raise AssertionError("nobody asked for this")

    for method in ("observe", "confidence", "agrees"):
        monkeypatch.setattr(TextGame, method, refuse)
    for policy in (Always(1), Random(0.5), EveryKth(0.5)):
        assert len(evaluate_policy(policy, agents(), specs(4), range(4))) == 4
    for policy in (Threshold(0.5), Oracle()):
        with pytest.raises(AssertionError, match="nobody asked"):
            evaluate_policy(policy, agents(), specs(4), range(4))


def test_rows_say_when_the_large_model_was_called():
    rows = evaluate_policy(EveryKth(0.25), agents(), specs(7), range(6), record=True)
    for row in rows:
        assert row["called_at"] == list(range(3, row["steps"], 4))
        assert row["calls_by_model"] == [row["steps"] - row["calls"], row["calls"]]
        actors = [step["actor"] for step in row["episode"]["steps"]]
        assert [t for t, actor in enumerate(actors) if actor == "deepthink"] == row["called_at"]
        assert "margins" not in row


def test_a_threshold_calls_exactly_where_the_margin_is_below_it_within_its_budget():
    watched = evaluate_policy(Threshold(-1.0), agents(), specs(6), range(8))
    assert all(r["calls"] == 0 and len(r["margins"]) == r["steps"] for r in watched)
    middle = sorted(m for r in watched for m in r["margins"])[len(watched) * 2]
    rows = evaluate_policy(Threshold(middle), agents(), specs(6), range(8))
    assert sum(r["calls"] for r in rows)
    for row in rows:
        assert row["called_at"] == [t for t, m in enumerate(row["margins"]) if m < middle]
    bounded = evaluate_policy(Threshold(1.1), agents(), specs(6), range(8), budget=2)
    assert all(r["called_at"] == list(range(min(2, r["steps"]))) and r["violations"] == 0 for r in bounded)
    assert all(r["overrides"] == r["steps"] - r["calls"] for r in bounded)


def test_the_objective_takes_off_weights_or_what_was_really_used():
    three = [*agents(), agents()[1]]
    for row in evaluate_policy(Random(0.5, action=2), three, specs(6), range(4), cost=0.1, weights=[0.5, 1, 2]):
        quick, middle, deep = row["calls_by_model"]
        assert middle == 0
        assert row["objective"] == pytest.approx(row["return"] - 0.1 * (0.5 * quick + 2 * deep))
    measured = {"cost": 0.1, "weights": None, "unit": "flops", "mean_call": 1e6}
    for row in evaluate_policy(Random(0.5), agents(), specs(6), range(4), **measured):
        assert row["objective"] == pytest.approx(row["return"] - 0.1 * row["flops"] / 1e6)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def save_random_switch(directory, seed, **terms):
    """What a training would leave: the stage trains no switch that is there."""
    rng, widths = np.random.default_rng(seed), [32 + EXTRA, 8, 2]
    tensors = {}
    for i, (before, after) in enumerate(pairwise(widths)):
        tensors[f"layers.{2 * i}.weight"] = rng.normal(size=(after, before)).astype(np.float32)
        tensors[f"layers.{2 * i}.bias"] = np.zeros(after, np.float32)
    SwitchPolicy(SwitchConfig(32, (8,), **terms), tensors).save(directory)


@pytest.fixture(scope="module")
def compared(make, tmp_path_factory):
    """A run of the stage that every kind of policy takes part in: its recipe, directory, rows and what was said."""
    rules = ["random", "every", "threshold", "classifier", "verifier", "escalate", "triggers", "oracle"]
    fitted = {"fit_episodes": 6, "escalate_after": 2, "critical": ["go"]}
    recipe = make(budgets=["50%"], seeds=[0, 3], baselines=rules, rates=[0.2], **fitted)
    directory, said = tmp_path_factory.mktemp("compared") / "run", []
    for seed in (0, 3):
        save_random_switch(directory / f"checkpoints/switch-cost0.05-seed{seed}", seed, cost=0.05)
        for budget in range(1, 6):
            save_random_switch(directory / f"checkpoints/switch-budget{budget}-seed{seed}", seed, budget=budget)
    rows = switch_stage(recipe, directory, said.append)
    return SimpleNamespace(recipe=recipe, directory=directory, rows=rows, said=said)


def test_every_policy_of_the_recipe_has_a_row(compared):
    by_name = {row["name"]: row for row in compared.rows}
    assert len(by_name) == len(compared.rows)
    Londi.model_validate({"policies": compared.rows})
    budget = files.read_json(compared.directory / "switch" / "usage.json")["budgets"]["50%"]
    names, learned = list(by_name), ["londi(c=0.05)", f"londi-b(n={budget})"]
    assert [n for n in names if n.startswith("londi")] == learned
    assert by_name[learned[1]]["budget_fraction"] == 0.5
    assert names[:2] == ["always-quick", "always-deepthink"] and "oracle" in names
    for row in compared.rows:
        limit = f", n={row['budget']}" if "budget" in row else ""
        share = f"{row['deepthink_share']:.2f}"
        assert "checkpoint" not in row or share == "0.00" or f"random(p={share}{limit})" in names
    assert {"random(p=0.20)", "every(p=0.20)", "threshold(p=0.20)"} <= set(names)
    assert all(row["budget_violations"] == 0 for row in compared.rows)
    for name in learned:
        rate = f"{by_name[name]['deepthink_share']:.2f}"
        limit = f", n={by_name[name]['budget']}" if "budget" in by_name[name] else ""
        kinds = ("random", "every", "threshold", "classifier", "verifier", "escalate")
        assert rate == "0.00" or {f"{kind}(p={rate}{limit})" for kind in kinds} <= set(names)
    assert {"triggers", f"triggers(n={budget})"} <= set(names)
    assert files.read_json(compared.directory / "switch" / "policies.json") == compared.rows


def test_percentages_are_of_the_first_costs_switch_in_the_episodes_it_was_chosen_by(compared):
    folder = compared.directory / "switch"
    played = [row for row in lines(folder / "selection.jsonl") if row["policy"] == "londi(c=0.05)"]
    assert len(played) == 12
    assert files.read_json(folder / "usage.json")["calls"] == pytest.approx(sum(row["calls"] for row in played) / 12)


def test_rules_are_fitted_to_training_episodes_alone(compared):
    folder = compared.directory / "switch"
    played = lines(folder / "fitting.jsonl")
    names = ["quick, fitted to", "deepthink after 2", "deepthink, shadowed by quick"]
    first = seed_block(0, SWITCH_TRAIN)
    assert [(row["policy"], row["seed"]) for row in played] == [(n, first + i) for n in names for i in range(6)]
    tested = {row["seed"] for file in ("episodes", "selection") for row in lines(folder / f"{file}.jsonl")}
    assert not tested & {row["seed"] for row in played}
    for row in played:
        taken = row["episode"]["steps"]
        by = {"quick, fitted to": 0, "deepthink after 2": max(0, len(taken) - 2)}.get(row["policy"], len(taken))
        assert row["calls"] == by
        assert len(row.get("proposed", taken)) == len(taken)


def test_rows_sum_up_the_same_episodes_for_every_training_seed(compared):
    episodes, first = lines(compared.directory / "switch" / "episodes.jsonl"), seed_block(0, SWITCH_TEST)
    for row in compared.rows:
        own = [r for r in episodes if r["policy"] == row["name"]]
        trained = [0, 3] if row["name"].startswith("londi") else [None]
        assert sorted((str(r["training"]), r["seed"]) for r in own) == sorted(
            (str(t), first + i) for t in trained for i in range(16)
        )
        wins = [[r["success"] for r in sorted(own, key=lambda r: r["seed"]) if r["training"] == t] for t in trained]
        assert [row["success"], *row["ci95"]] == list(interval(wins))
        assert row["compute"] == pytest.approx(sum(r["flops"] for r in own) / len(own))
        assert row.get("success_by_seed", []) == ([sum(w) / 16 for w in wins] if len(trained) > 1 else [])
        if (budget := row.get("budget")) is not None:
            assert max(r["calls"] for r in own) <= budget


def test_an_episode_and_the_share_of_cached_answers_are_left(compared):
    budget = files.read_json(compared.directory / "switch" / "usage.json")["budgets"]["50%"]
    replay = files.read_json(compared.directory / "switch" / "replay.json")
    episodes = lines(compared.directory / "switch" / "episodes.jsonl")
    for one in (replay, *replay["others"]):
        assert one["policy"] == f"londi-b(n={budget})"
        (row,) = (r for r in episodes if (r["policy"], r["training"], r["seed"]) == (one["policy"], 0, one["seed"]))
        assert (len(one["steps"]), one["success"]) == (row["steps"], row["success"])
        assert [i for i, step in enumerate(one["steps"]) if step["actor"] == "deepthink"] == row["called_at"]
        left = budget
        for step in one["steps"]:
            quick, deepthink = step["values"]
            assert (deepthink is None) == (left == 0), "no value where no call is left"
            assert (step["actor"] == "deepthink") == (left > 0 and deepthink > quick)
            left -= step["actor"] == "deepthink"
    assert len({(one["success"], any(s["actor"] != "quick" for s in one["steps"])) for one in replay["others"]}) == len(
        replay["others"]
    )
    (tally,) = [m for m in lines(compared.directory / "metrics.jsonl") if m["stage"] == "switch" and "asked" in m]
    assert 0 < tally["answered_from_cache"] < tally["asked"]
    assert any("cache" in line for line in compared.said)


def test_only_missing_episodes_are_played_by_a_second_start(compared):
    folder = compared.directory / "switch"
    for path in (folder / "episodes.jsonl", folder / "selection.jsonl"):
        kept = path.read_bytes()
        path.write_bytes(kept[: len(kept) // 2])
    said = []
    again = switch_stage(compared.recipe, compared.directory, said.append)
    assert len(lines(folder / "episodes.jsonl")) == sum(row["episodes"] for row in compared.rows)
    timed = [{k: v for k, v in row.items() if k != "seconds_per_episode"} for row in again]
    assert timed == [{k: v for k, v in row.items() if k != "seconds_per_episode"} for row in compared.rows]


def test_a_switch_is_trained_for_each_seed_and_not_again(ray_session, make, tmp_path):
    recipe = make(costs=[], budgets=[1], seeds=[0, 3], baselines=[], steps=40, test_episodes=4)
    said = []
    switch_stage(recipe, tmp_path, said.append)
    paths = [tmp_path / "checkpoints" / f"switch-budget1-seed{seed}" for seed in (0, 3)]
    weights = [(path / "model.safetensors").read_bytes() for path in paths]
    assert weights[0] != weights[1]
    assert not SwitchPolicy.load(paths[1])("drop\nYou see nothing", 0)
    assert sum("objective" in line for line in said) == 2, "an evaluation each"
    again = []
    switch_stage(recipe, tmp_path, again.append)
    assert not any("training" in line for line in again)
    assert [(path / "model.safetensors").read_bytes() for path in paths] == weights


def test_a_classifier_is_fitted_before_any_switch_learns_and_plays_as_the_baseline_of_its_name(
    ray_session, make, tmp_path
):
    """Of the same episodes: they are played once, kept over a second start, and every switch has the same weights."""
    recipe = make(
        costs=[0.05],
        seeds=[0, 3],
        baselines=["classifier"],
        signals=["classifier", "visits", "verifier"],
        steps=40,
        fit_episodes=6,
    )
    said = []
    switch_stage(recipe, tmp_path, said.append)
    played = lines(tmp_path / "switch" / "fitting.jsonl")
    assert [row["policy"] for row in played] == ["deepthink, shadowed by quick"] * 6 + ["quick, fitted to"] * 6
    folders = [tmp_path / "checkpoints" / f"switch-cost0.05-seed{seed}" for seed in (0, 3)]
    configs = [SwitchPolicy.load(folder).config for folder in folders]
    assert (
        configs[0] == configs[1]
        and configs[0].signals == ("classifier", "visits", "verifier")
        and configs[0].features == 35
    )
    assert configs[0].verifier == weights_of("verifier", played[:6]) and any(configs[0].verifier)
    assert configs[0].classifier == weights_of("classifier", played[:6]) and any(configs[0].classifier)
    told, other = [line for line in said if ": fitted to" in line]
    assert told.split(":")[1] == other.split(":")[1] and "verifier" in other
    assert f"of 6 training episodes, which took {sum(row['calls'] for row in played):,} calls" in told
    shutil.rmtree(folders[1])
    (tmp_path / "switch" / "episodes.jsonl").unlink()
    switch_stage(recipe, tmp_path, said.append)
    assert SwitchPolicy.load(folders[1]).config == configs[0]
    assert lines(tmp_path / "switch" / "fitting.jsonl") == played


def test_a_rule_of_a_classifier_is_kept_as_a_switch_that_plays_as_its_row_says(compared):
    rows = [row for row in compared.rows if "checkpoint" in row]
    doubting = [row["name"] for row in compared.rows if row["name"].startswith(("classifier", "verifier"))]
    assert [row["name"] for row in rows] == doubting
    assert len(rows) >= 4 and any("budget" in row for row in rows)
    shadowed = [r for r in lines(compared.directory / "switch" / "fitting.jsonl") if "shadowed" in r["policy"]]
    episodes = lines(compared.directory / "switch" / "episodes.jsonl")
    for row in rows:
        rule = SwitchPolicy.load(compared.directory / "checkpoints" / row["checkpoint"])
        (kind,) = rule.config.signals
        assert (rule.config.budget, getattr(rule.config, kind)) == (row.get("budget"), weights_of(kind, shadowed))
        own = sorted((r for r in episodes if r["policy"] == row["name"]), key=lambda r: r["seed"])
        players = open_players(compared.recipe, state := WorkerState(0))
        seeds = [r["seed"] for r in own]
        again = evaluate_policy(rule, players, specs(5), seeds, rule.config.budget)
        close_players(state)
        assert [r["called_at"] for r in again] == [r["called_at"] for r in own]
        assert f"  {row['name']} is kept as checkpoints/{row['checkpoint']}" in compared.said
    policies = switch_policies(compared.recipe, compared.directory)
    assert {row["checkpoint"] for row in rows} == {name for name, policy in policies.items() if policy.fitted}


def test_a_budget_of_tokens_is_kept_and_told_by_every_policy_under_it(make, tmp_path):
    recipe = make(costs=[], budgets=[{"tokens": 300}], baselines=["random"], test_episodes=12)
    save_random_switch(tmp_path / "checkpoints/switch-tokens300-seed0", 3, budget=300, unit="tokens")
    rows = {row["name"]: row for row in switch_stage(recipe, tmp_path, lambda line: None)}
    Londi.model_validate({"policies": list(rows.values())})
    learned = rows["londi-b(tokens=300)"]
    assert (learned["budget"], learned["budget_unit"]) == (300, "tokens")
    assert any(name.startswith("random(p=") and name.endswith(", tokens=300)") for name in rows)
    for name, row in rows.items():
        assert row["budget_violations"] == 0 and row["usd_per_episode"] == 0
        assert row["tokens_per_episode"] <= 300 or "tokens=300" not in name
    episodes = lines(tmp_path / "switch" / "episodes.jsonl")
    assert max(e["spent"]["tokens"] for e in episodes if "tokens=300" in e["policy"]) <= 300
    assert files.read_json(tmp_path / "switch" / "replay.json")["budget"] == "tokens=300"
    assert "budget tokens=300" in str(switch_episode_view(tmp_path)[0])


def test_runs_of_calls_and_what_is_caught_up_are_in_episodes_and_rows(make, tmp_path):
    deepthink = {"model": make().switch.models[1].model, "catch_up": 1}
    terms = {"costs": [], "budgets": [4], "baselines": ["random"], "test_episodes": 8, "run_length": 2}
    recipe = make(deepthink=deepthink, **terms)
    save_random_switch(tmp_path / "checkpoints/switch-budget4-seed0", 3, budget=4, run_length=2)
    rows = {row["name"]: row for row in switch_stage(recipe, tmp_path, lambda line: None)}
    policies = {p.name: p for p in Londi.model_validate({"policies": list(rows.values())}).policies}
    assert policies["always-deepthink"].catch_up == 0 and policies["londi-b(n=4)"].run_length == 2
    assert any(p.catch_up for p in policies.values())
    for name, row in rows.items():
        own = [e for e in lines(tmp_path / "switch" / "episodes.jsonl") if e["policy"] == name]
        assert row["catch_up"] == pytest.approx(sum(e["catch_up"] for e in own) / len(own))
        assert row["catch_up"] < row["compute"] and row["budget_violations"] == 0
        if "n=4" in name:  # runs of two: the second step of each, but where the episode ended
            assert policies[name].run_length == 2
            for e in own:
                first = [t for n, t in enumerate(e["called_at"]) if n % 2 == 0]
                assert set(e["called_at"]) == {t + k for t in first for k in (0, 1) if t + k < e["steps"]}


@pytest.mark.slow
def test_workers_train_and_play_like_this_process(ray_session, make, tmp_path):
    few = {"costs": [], "budgets": [1], "baselines": [], "steps": 40, "test_episodes": 4}
    found = []
    for workers in (0, 1):
        rows = switch_stage(make(workers, **few), tmp_path / str(workers), lambda line: None)
        found.append([{k: v for k, v in row.items() if k != "seconds_per_episode"} for row in rows])
    assert found[0] == found[1]


def test_a_measured_cost_is_of_a_mean_call_of_the_large_model_alone(ray_session, make, tmp_path):
    recipe = make(
        costs=["measured"], averages=[1.5], baselines=[], signals=["margin", "catch-up"], cache=False, steps=40
    )
    rows = switch_stage(recipe, tmp_path, lambda line: None)
    assert [row["name"] for row in rows][2:] == ["londi(c=measured)", "londi-l(calls=1.5)"]
    alone = [r for r in lines(tmp_path / "switch" / "selection.jsonl") if r["policy"] == "always-deepthink"]
    usage = files.read_json(tmp_path / "switch" / "usage.json")
    assert usage == {"unit": "flops", "mean_call": sum(r["flops"] for r in alone) / sum(r["calls"] for r in alone)}
    for row in lines(tmp_path / "switch" / "episodes.jsonl"):
        charge = 0.05 * row["flops"] / usage["mean_call"] if row["policy"] == "londi(c=measured)" else 0
        assert row["objective"] == pytest.approx(row["return"] - charge)
    measured = SwitchPolicy.load(tmp_path / "checkpoints" / "switch-costmeasured-seed0").config
    assert (measured.cost, measured.signals, measured.features) == ("measured", ("margin", "catch-up"), 34)
    assert SwitchPolicy.load(tmp_path / "checkpoints" / "switch-average1.5-seed0").config.average == 1.5
    assert not any("asked" in m for m in lines(tmp_path / "metrics.jsonl") if m["stage"] == "switch")


def test_what_was_lost_on_the_way_is_said_and_logged(make, tmp_path):
    said = []
    context = StageContext(make(), tmp_path, said.append)
    (policy_spec,) = learned_policies(context.settings, tmp_path)
    context.on_worker_lost(PlayTask(context.recipe, policy_spec, 0, (1,), "test", None, ()), 1, "it was killed")
    context.tally += Counter({"env-runners": 2, "engine answers": 3, "asked": 8, "answered from the cache": 6})
    context.report_tally()
    assert said == [
        "  londi(c=0.05): a worker died, trying again (1)",
        "  75% of 8 answers came from the cache",
        "  lost on the way and made up for: workers 1, env-runners 2, engine answers 3",
    ]
    events = lines(tmp_path / "events.jsonl")
    assert [e["event"] for e in events] == ["worker lost", "engine answers asked again"]
    assert events[0]["policy"] == "londi(c=0.05)" and events[1]["answers"] == 3
