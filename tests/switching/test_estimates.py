"""Off-policy estimates: exact cases, intervals over 100 logs of games whose values are known, and the warnings."""

import numpy as np
import pytest
import switch_logs
import switch_mdps
from estimate_coverage import GAMES, coverage, decider, parts, truth
from switch_logs import CodeEncoder
from switch_mdps import MDPS

from atlas_ray.switching.estimates import estimate, logged
from atlas_ray.switching.transitions import Transitions


def arrays(name, episodes):
    return Transitions.of(episodes, CodeEncoder(MDPS[name]), MDPS[name].longest)


_SLOW = {"chain-6, c = 0.2", "dead-ends-12, n = 1"}


@pytest.mark.parametrize("game", [pytest.param(g, marks=[pytest.mark.slow] * (g in _SLOW)) for g in GAMES])
def test_intervals_hold_the_true_value_in_at_least_90_of_100_logs(game):
    """Half of each log is for the model. Logs with fewer than 30 effective episodes come with a warning instead.

    Logs by which nothing was set: ``benchmarks/switching_estimates.py``.
    """
    found = coverage(game, range(100))
    assert np.median(found.ess) >= 30, found.ess
    assert min(found.held.values()) >= 90, found.held


def test_estimates_are_right_in_the_mean_and_the_model_narrows_them():
    table = switch_mdps.best_table(MDPS["chain-6"], 0.98, budget=1)
    success, calls = truth("chain-6", table, 1)
    rows = [estimate(decider("chain-6", table, 1), 2, 1, *parts("chain-6", 400, s, call=0.3)) for s in range(60)]
    spread = {}
    for kind in ("weighted", "doubly_robust"):
        for what, true in (("success", success), ("calls", calls)):
            means = [row[kind][what]["mean"] for row in rows]
            spread[kind, what] = np.std(means)
            assert np.mean(means) == pytest.approx(true, abs=4 * np.std(means) / 60**0.5)
    assert spread["doubly_robust", "success"] < spread["weighted", "success"]
    assert spread["doubly_robust", "calls"] < spread["weighted", "calls"]


def test_of_its_own_log_a_policy_is_worth_what_the_log_says():
    """The large model throughout: all weights are equal."""
    episodes = switch_logs.play("chain-6", 200, 3, call=1.0, money=True)
    logs = arrays("chain-6", episodes)
    row = estimate(lambda features: np.ones(len(features), int), 2, None, logs, logs)
    assert (row["episodes"], row["matched"], row["ess"]) == (200, 200, pytest.approx(200))
    for what, told in row["weighted"].items():
        assert told == pytest.approx(logged(logs)["plain"][what])
        assert row["doubly_robust"][what]["mean"] == pytest.approx(told["mean"], abs=1e-6)
    assert row["weighted"]["money"]["mean"] == pytest.approx(0.011 * np.mean([len(e.actors) for e in episodes]))
    assert row["warnings"] == []


def test_weights_are_the_chances_of_the_logged_models():
    """By hand: two of three episodes go the policy's way, one of them a quarter as likely as the other."""
    made = [
        switch_logs.LoggedEpisode("a", ("x\nstate 0", "x\nstate 1"), (0, 1), (0.5, 0.5), 1.0, True, None),
        switch_logs.LoggedEpisode("b", ("x\nstate 0",), (0,), (1.0,), 0.0, False, None),
        switch_logs.LoggedEpisode("c", ("x\nstate 0",), (1,), (0.25,), 1.0, True, None),
    ]
    logs = arrays("chain-6", made)
    row = estimate(lambda f: (f[:, 1] == 1).astype(int), 2, None, logs, logs)
    assert (row["matched"], row["ess"]) == (2, pytest.approx(25 / 17))
    assert row["weighted"]["success"]["mean"] == pytest.approx(4 / 5)
    assert row["weighted"]["calls"]["mean"] == pytest.approx(4 / 5)


def test_a_model_that_was_never_chosen_is_named_and_nothing_is_made_up():
    held, learned = parts("chain-6", 100, 0, call=0.0)
    row = estimate(lambda features: np.ones(len(features), int), 2, None, held, learned)
    assert row["ess"] == 0 and set(row["weighted"].values()) == set(row["doubly_robust"].values()) == {None}
    assert any("model 1 was never chosen" in told for told in row["warnings"])
    assert any("0.0 effective episodes" in told for told in row["warnings"])
    assert any("no chance to choose" in told for told in row["warnings"])


def test_steps_without_a_choice_count_as_such():
    """Under the log's own budget its forced steps are what the policy does too; without one they tell it nothing."""
    held, learned = parts("chain-6", 2000, 1, call=0.5, budget=1)
    always = lambda features: (features[:, -2] > 0).astype(int)  # noqa: E731
    own = estimate(always, 2, 1, held, learned)
    assert own["matched"] == sum(held.actions[held.starts[:-1]] == 1) and own["warnings"] == []
    assert own["weighted"]["calls"]["mean"] == 1
    free = estimate(always, 2, None, held, learned)
    assert any("no chance" in told for told in free["warnings"])


def test_few_effective_episodes_are_warned_of_and_give_wide_intervals():
    held, learned = parts("dead-ends-12", 200, 0, call=0.1)
    row = estimate(lambda f: np.ones(len(f), int), 2, None, held, learned)
    assert row["ess"] < 30 and any("do not trust" in told for told in row["warnings"])
    if row["weighted"]["success"] is not None:
        told = row["weighted"]["success"]
        assert told["high"] - told["low"] > 0.3
