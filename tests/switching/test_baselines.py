"""The rules that a switch has to beat, what is compared with what, and how rows are summed up."""

import math

import numpy as np
import pytest

from atlas_ray.data.results import Policy, interval
from atlas_ray.recipe.loading import Switch
from atlas_ray.switching.baselines import Always, EveryKth, Oracle, Random, Threshold, Triggers, calibrate
from atlas_ray.switching.calibration import Calibration, Doubt
from atlas_ray.switching.fitted import Branch, EscalateOnce, doubting_switch
from atlas_ray.switching.logistic import BLANK
from atlas_ray.switching.policies import (
    baselines,
    call_histogram,
    learned_policies,
    resolve_budget,
    single_model_policies,
    summarize_policy,
)
from atlas_ray.switching.policy import Situation


def at(step, **told):
    return Situation("", None, 0.0, "episode", step, **told)


@pytest.mark.parametrize("thousandths", [0, 100, 140, 290, 300, 333, 570, 999, 1000])
def test_every_kth_meets_its_rate_exactly_at_every_length(thousandths):
    calls = np.cumsum(EveryKth(thousandths / 1000).decide([at(t) for t in range(1000)]))
    assert calls.tolist() == [thousandths * t // 1000 for t in range(1, 1001)]


def test_every_fourth_step_is_every_fourth_step():
    assert EveryKth(0.25).decide([at(t) for t in range(9)]) == [0, 0, 0, 1, 0, 0, 0, 1, 0]
    assert EveryKth(0.25, action=2).decide([at(3), at(2)]) == [2, 0], "each situation by its own step"


def test_rules_call_the_model_they_are_told_to():
    assert Always(2).decide([at(0)] * 2) == [2, 2]
    assert set(Random(0.5, action=2).decide([at(t) for t in range(50)])) == {0, 2}
    assert Threshold(0.3, action=2).decide([at(0, margin=m) for m in (0.29, 0.3, 0.9)]) == [2, 0, 0]
    assert Oracle(action=2).decide([at(0, agrees=a) for a in (True, False)]) == [0, 2]


@pytest.mark.parametrize("policy", [Threshold(0.5), Oracle()])
def test_a_rule_that_is_not_told_what_it_needs_says_so(policy):
    (name,) = policy.needs
    with pytest.raises(ValueError, match=name):
        policy.decide([at(0)])


def test_calibrated_thresholds_call_at_their_rate():
    margins = np.random.default_rng(0).permutation(np.linspace(0, 1, 201)).tolist()
    for rate in (0.0, 0.14, 0.5, 0.77, 1.0):
        below = sum(m < calibrate(margins, rate) for m in margins)
        assert below == round(rate * 201)


def test_ties_are_all_below_or_none():
    ties = [0.1] * 4 + [0.5] * 6
    assert calibrate(ties, 0.1) == 0.1, "0 is nearer to 1 than 4 is"
    assert calibrate(ties, 0.3) == 0.5, "4 is nearer to 3 than 0 is"
    assert calibrate(ties, 0.6) == 0.5
    assert calibrate(ties, 0.8) > 0.5
    assert math.isfinite(calibrate(ties, 1.0))
    with pytest.raises(ValueError, match="none to calibrate"):
        calibrate([], 0.5)


def settings(**more):
    given = {"levels": ["GoToLocalS5N2"], "costs": [0.05], "test_episodes": 4, "seeds": [0, 7], **more}
    return Switch.model_validate(given)


def test_every_switch_has_a_directory_for_each_training_seed(tmp_path):
    recipe = settings(costs=[0.05, "measured"], budgets=[2], averages=[1.5])
    found = learned_policies(recipe, tmp_path)
    assert [c.name for c in found] == ["londi(c=0.05)", "londi(c=measured)", "londi-b(n=2)", "londi-l(calls=1.5)"]
    assert found[0].directory(7) == tmp_path / "checkpoints" / "switch-cost0.05-seed7"
    assert found[1].cost_terms(recipe) == (recipe.price, None)
    assert found[2].cost_terms(recipe) == (0, [0, 1])
    assert len({d for c in found for d in c.directories}) == 8


def test_percentages_become_budgets_and_equal_ones_are_trained_once(tmp_path):
    recipe = settings(budgets=["50%", 3, "45%", "90%"])
    assert [c.name for c in learned_policies(recipe, tmp_path)] == ["londi(c=0.05)", "londi-b(n=3)"]
    resolved = {p: resolve_budget(p, calls=3.2) for p in recipe.budgets if isinstance(p, str)}
    assert resolved == {"50%": 2, "45%": 2, "90%": 3}
    found = learned_policies(recipe, tmp_path, resolved)
    assert [(c.name, c.budget_fraction) for c in found] == [
        ("londi(c=0.05)", None),
        ("londi-b(n=2)", 0.5),
        ("londi-b(n=3)", 0.9),
    ]


@pytest.mark.parametrize(
    ("percentage", "calls", "n"), [("50%", 0, 1), ("10%", 30, 3), ("29%", 100, 29), ("1%", 100.1, 2)]
)
def test_a_share_of_the_calls_is_rounded_up(percentage, calls, n):
    assert resolve_budget(percentage, calls) == n


def row(policy, training, seed, success, calls, steps, **more):
    used = {"flops": 10.0 * steps + 100 * len(calls), "seconds": 0.5, "money": 0.0}
    by_model = [steps - len(calls), len(calls)]
    return {
        "policy": policy,
        "training": training,
        "seed": seed,
        "success": success,
        "return": 0.5 * success,
        "calls": len(calls),
        "called_at": calls,
        "calls_by_model": by_model,
        "steps": steps,
        "violations": 0,
        **used,
        **more,
    }


def test_rows_of_several_training_seeds_are_summed_up_by_hand(tmp_path):
    policy_spec = learned_policies(settings(), tmp_path)[0]
    name = policy_spec.name
    rows = [
        row(name, 7, 1, True, [0, 1], 2),
        row(name, 0, 2, False, [], 10),
        row(name, 0, 1, True, [9], 10),
        row(name, 7, 2, True, [], 2, violations=1),
    ]
    found = summarize_policy(policy_spec, rows, "flops")
    mean, low, high = interval([[True, False], [True, True]])
    assert found["success"] == mean == 0.75
    assert found["ci95"] == [low, high]
    assert found["success_by_seed"] == [0.5, 1.0]
    assert found["seeds"] == [0, 7]
    assert found["deepthink_share"] == 3 / 24
    assert found["deepthink_calls_per_episode"] == 3 / 4
    assert (found["compute"], found["compute_unit"]) == ((240 + 300) / 4, "FLOPs/episode")
    assert (found["budget_violations"], found["episodes"], found["cost"]) == (1, 4, 0.05)
    # the last of ten steps, and both of two: half an episode each
    assert found["called_at"] == pytest.approx([0.2 / 3] * 9 + [1.2 / 3])
    assert Policy.model_validate(found).learned
    assert summarize_policy(policy_spec, rows, "seconds")["compute"] == 0.5
    with pytest.raises(ValueError, match="every seed needs the same episodes"):
        summarize_policy(policy_spec, rows[:3], "flops")


def test_calls_at_every_step_are_spread_evenly_however_long_episodes_are():
    rows = [row("x", None, i, True, list(range(steps)), steps) for i, steps in enumerate((1, 3, 7, 10, 64))]
    assert call_histogram(rows) == pytest.approx([0.1] * 10)
    assert call_histogram([row("x", None, 0, True, [], 5)]) is None
    assert call_histogram([row("x", None, 0, True, [0], 5)]) == pytest.approx([0.5, 0.5] + [0] * 8)


def test_several_models_have_their_calls_apart():
    recipe = settings(models=["tiny-quick", "tiny-deepthink", "tiny-deepthink"])
    assert [c.name for c in single_model_policies(recipe)] == ["always-quick", "always-1", "always-deepthink"]
    assert [c.make_policy(0).decide([at(0)]) for c in single_model_policies(recipe)] == [[0], [1], [2]]
    rows = [row("always-1", None, s, True, [0, 1, 2], 3, calls_by_model=[0, 3, 0]) for s in range(2)]
    found = summarize_policy(single_model_policies(recipe)[1], rows, "flops", models=3)
    assert found["calls_by_model"] == [0, 3, 0]
    assert found["deepthink_share"] == 1


def test_baselines_have_the_rate_and_the_budget_of_each_switch(tmp_path):
    recipe = settings(budgets=[2], baselines=["random", "every", "threshold", "oracle"], rates=[0.1, 0.125])
    learned = learned_policies(recipe, tmp_path)
    rows = [row("londi(c=0.05)", t, s, True, [0], 7) for t in (0, 7) for s in range(3)]
    rows += [row("londi-b(n=2)", t, s, True, [0, 1], 8) for t in (0, 7) for s in range(3)]
    calibration = Calibration(margins=[i / 100 for i in range(100)])
    found = baselines(recipe, learned, rows, calibration)
    assert [c.name for c in found] == [
        *("random(p=0.14)", "random(p=0.25, n=2)", "random(p=0.10)", "random(p=0.125)"),
        *("every(p=0.14)", "every(p=0.25, n=2)", "every(p=0.10)", "every(p=0.125)"),
        *("threshold(p=0.14)", "threshold(p=0.25, n=2)", "threshold(p=0.10)", "threshold(p=0.125)"),
        "oracle",
    ]
    by_name = {c.name: c for c in found}
    assert by_name["threshold(p=0.14)"].make_policy(0) == Threshold(0.14)
    assert by_name["threshold(p=0.25, n=2)"].budget == 2
    assert by_name["random(p=0.14)"].make_policy(3) == Random(0.14, 3)
    assert by_name["every(p=0.125)"].make_policy(0) == EveryKth(0.125)
    silent = [row(c.name, t, s, True, [], 8) for c in learned for t in (0, 7) for s in range(3)]
    assert [c.name for c in baselines(settings(budgets=[2]), learned, silent, Calibration())] == [], (
        "that is always-quick"
    )


def test_rules_that_look_back_are_fitted_once_and_set_to_each_rate(tmp_path):
    recipe = settings(budgets=[0, 2], baselines=["classifier", "escalate", "triggers"], critical=["drop"])
    learned = learned_policies(recipe, tmp_path)
    rows = [row(c.name, t, s, True, [0, 1], 8) for c in learned for t in (0, 7) for s in range(3)]
    branches = [Branch(n / 10, 8, 4, 2) for n in range(10)]
    doubts = {"classifier": Doubt(BLANK, [0.1, 0.2, 0.3, 0.4])}
    fitted = Calibration(doubts=doubts, escalation=(2.0,), after=3, branches=branches)
    by_name = {c.name: c for c in baselines(recipe, learned, rows, fitted)}
    assert list(by_name) == [
        *("classifier(p=0.25)", "classifier(p=0.25, n=0)", "classifier(p=0.25, n=2)"),
        *("escalate(p=0.25)", "escalate(p=0.25, n=0)", "escalate(p=0.25, n=2)"),
        *("triggers", "triggers(n=2)"),
    ]
    for name, budget in (("classifier(p=0.25)", None), ("classifier(p=0.25, n=2)", 2)):
        made, same = by_name[name].make_policy(0), doubting_switch("classifier", BLANK, 0.2, budget=budget)
        assert made.config == same.config and str(made.tensors) == str(same.tensors)
    kept = ("classifier0.25", "classifier0.25-n0", "classifier0.25-n2")
    assert tuple(spec.saved_as for spec in by_name.values() if spec.saved_as) == kept
    # eight of ten: 16 calls in 48 steps are 0.33, seven: 14 in 52 are 0.27, six: 12 in 56 are 0.21
    assert by_name["escalate(p=0.25, n=2)"].make_policy(0) == EscalateOnce((2.0,), 0.7, 3)
    assert by_name["triggers(n=2)"].make_policy(0) == Triggers(("drop",))
    assert [by_name[n].budget for n in ("triggers", "triggers(n=2)")] == [None, 2]
