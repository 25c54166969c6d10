"""Playing with policies, and the stage from training to table."""

import json
from collections import Counter

import pytest
from switch_models import LEVELS, SHAPES, agents, model, specs

from atlas_ray.agents.rollout import SWITCH_TEST, seed_block
from atlas_ray.data.results import Londi, interval
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.baselines import Always, EveryKth, Oracle, Random, Threshold
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.players import ExpertPlayer
from atlas_ray.switching.policies import learned_policies
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


@pytest.fixture
def run(tmp_path):
    for name in SHAPES:
        model(name).save_pretrained(tmp_path / name)
        build_tokenizer().save_pretrained(tmp_path / name)

    def recipe(workers=1, **switch):
        given = {
            "quick": str(tmp_path / "quick"),
            "deepthink": str(tmp_path / "deepthink"),
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
        return Recipe.model_validate(
            {"name": "x", "workers": workers, "style": "action", "switch": {**given, **switch}}
        )

    return recipe, tmp_path / "run"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_stage_trains_compares_and_goes_on(ray_session, run):
    make, directory = run
    recipe = make(
        budgets=["50%"],
        seeds=[0, 3],
        baselines=["random", "every", "threshold", "oracle"],
        rates=[0.2],
    )
    said = []
    rows = switch_stage(recipe, directory, said.append)
    by_name = {r["name"]: r for r in rows}
    assert len(by_name) == len(rows)
    Londi.model_validate({"policies": rows})
    usage = json.loads((directory / "switch" / "usage.json").read_text())
    half = usage["budgets"]["50%"]
    names = list(by_name)
    learned = ["londi(c=0.05)", f"londi-b(n={half})"]
    assert [n for n in names if n.startswith("londi")] == learned
    assert by_name[f"londi-b(n={half})"]["budget_fraction"] == 0.5
    assert names[:2] == ["always-quick", "always-deepthink"] and names[-1] == "oracle"
    assert {"random(p=0.20)", "every(p=0.20)", "threshold(p=0.20)"} <= set(names)
    assert all(r["budget_violations"] == 0 for r in rows)

    # percentages are of the first cost's switch, in the episodes it was chosen by
    played = [r for r in lines(directory / "switch" / "selection.jsonl") if r["policy"] == "londi(c=0.05)"]
    assert len(played) == 12
    assert usage["calls"] == pytest.approx(sum(r["calls"] for r in played) / 12)

    episodes = directory / "switch" / "episodes.jsonl"
    first = seed_block(0, SWITCH_TEST)
    for row in rows:
        own = [r for r in lines(episodes) if r["policy"] == row["name"]]
        trained = [0, 3] if row["name"] in learned else [None]
        assert sorted((str(r["training"]), r["seed"]) for r in own) == sorted(
            (str(t), first + i) for t in trained for i in range(16)
        )
        wins = [[r["success"] for r in sorted(own, key=lambda r: r["seed"]) if r["training"] == t] for t in trained]
        assert [row["success"], *row["ci95"]] == list(interval(wins))
        assert row["compute"] == pytest.approx(sum(r["flops"] for r in own) / len(own))
        assert row.get("success_by_seed", []) == ([sum(w) / 16 for w in wins] if row["name"] in learned else [])
        if (budget := row.get("budget")) is not None:
            assert max(r["calls"] for r in own) <= budget
    for name in learned:
        rate = f"{by_name[name]['deepthink_share']:.2f}"
        limit = f", n={by_name[name]['budget']}" if "budget" in by_name[name] else ""
        assert rate == "0.00" or {f"{kind}(p={rate}{limit})" for kind in ("random", "every", "threshold")} <= set(names)

    where = directory / "checkpoints"
    assert not SwitchPolicy.load(where / f"switch-budget{half}-seed3")("drop\nYou see nothing", 0)
    assert (where / "switch-cost0.05-seed0/model.safetensors").read_bytes() != (
        where / "switch-cost0.05-seed3/model.safetensors"
    ).read_bytes()
    replay = json.loads((directory / "switch" / "replay.json").read_text())
    assert replay["policy"] == f"londi-b(n={half})" and replay["steps"][0]["actor"] in ("quick", "deepthink")
    (tally,) = [m for m in lines(directory / "metrics.jsonl") if m["stage"] == "switch" and "asked" in m]
    assert 0 < tally["answered_from_cache"] < tally["asked"]
    assert any("answers came from the cache" in line for line in said)

    for path in (episodes, directory / "switch" / "selection.jsonl"):
        kept = path.read_bytes()
        path.write_bytes(kept[: len(kept) // 2])
    again = switch_stage(recipe, directory, said.append)
    assert json.loads((directory / "switch" / "policies.json").read_text()) == again
    assert len(episodes.read_text().splitlines()) == sum(r["episodes"] for r in rows), "only what was missing is played"
    timed = [{k: v for k, v in r.items() if k != "seconds_per_episode"} for r in again]
    assert timed == [{k: v for k, v in r.items() if k != "seconds_per_episode"} for r in rows]


def test_a_measured_cost_is_of_a_mean_call_of_the_large_model_alone(ray_session, run):
    make, directory = run
    recipe = make(
        workers=0, costs=["measured"], averages=[1.5], baselines=[], signals=["margin", "catch-up"], cache=False
    )
    rows = switch_stage(recipe, directory, lambda line: None)
    assert [r["name"] for r in rows][2:] == ["londi(c=measured)", "londi-l(calls=1.5)"]
    alone = [r for r in lines(directory / "switch" / "selection.jsonl") if r["policy"] == "always-deepthink"]
    usage = json.loads((directory / "switch" / "usage.json").read_text())
    assert usage == {"unit": "flops", "mean_call": sum(r["flops"] for r in alone) / sum(r["calls"] for r in alone)}
    for row in lines(directory / "switch" / "episodes.jsonl"):
        charge = 0.05 * row["flops"] / usage["mean_call"] if row["policy"] == "londi(c=measured)" else 0
        assert row["objective"] == pytest.approx(row["return"] - charge)
    where = directory / "checkpoints"
    measured = SwitchPolicy.load(where / "switch-costmeasured-seed0").config
    assert (measured.cost, measured.signals, measured.features) == ("measured", ("margin", "catch-up"), 34)
    assert SwitchPolicy.load(where / "switch-average1.5-seed0").config.average == 1.5
    assert not any("asked" in m for m in lines(directory / "metrics.jsonl") if m["stage"] == "switch")


def test_what_was_lost_on_the_way_is_said_and_logged(run):
    make, directory = run
    said = []
    context = StageContext(make(), directory, said.append)
    (policy_spec,) = learned_policies(context.settings, directory)
    context.on_worker_lost(PlayTask(context.recipe, policy_spec, 0, (1,), "test", None, ()), 1, "it was killed")
    context.tally += Counter({"env-runners": 2, "engine answers": 3, "asked": 8, "answered from the cache": 6})
    context.report_tally()
    assert said == [
        "  londi(c=0.05): a worker died, trying again (1)",
        "  75% of 8 answers came from the cache",
        "  lost on the way and made up for: workers 1, env-runners 2, engine answers 3",
    ]
    events = lines(directory / "events.jsonl")
    assert [e["event"] for e in events] == ["worker lost", "engine answers asked again"]
    assert events[0]["policy"] == "londi(c=0.05)" and events[1]["answers"] == 3
