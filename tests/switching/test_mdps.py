"""The games with known optima: dynamic programming against trying everything and against playing."""

import pickle
from itertools import product

import numpy as np
import pytest
import switch_mdps
from switch_mdps import END, MDPS

from atlas_ray.switching.budget import share

GAMMA = 0.98
TERMS = [{"cost": 0.05}, {"cost": 0.2}, {"budget": 0}, {"budget": 1}, {"budget": 2}, {"budget": 4}]


def ways(mdp):
    """Every way to the end as its (state, branch by model) pairs; a branch that a model never takes is None."""

    def walk(state, so_far):
        targets = {b.to if b.to != END else (END, b.reward) for option in mdp.branches[state] for b in option}
        for target in sorted(targets, key=str):
            found = [
                next((b for b in option if target in (b.to, (b.to, b.reward)) and b.probability > 0), None)
                for option in mdp.branches[state]
            ]
            way = [*so_far, (state, found)]
            if isinstance(target, tuple):
                yield way
            else:
                yield from walk(target, way)

    return walk(0, [])


def best_of_all(mdp, cost=0.0, budget=None):
    """By trying every set of states to call in, on games where a state is reached in one way only."""
    sets = np.array(list(product([False, True], repeat=mdp.states)))
    values, allowed = np.zeros(len(sets)), np.ones(len(sets), bool)
    for way in ways(mdp):
        chance, calls, gained = np.ones(len(sets)), np.zeros(len(sets), int), np.zeros(len(sets))
        for step, (state, found) in enumerate(way):
            called = sets[:, state]
            p, r = ([(getattr(b, what) if b else 0.0) for b in found] for what in ("probability", "reward"))
            chance *= np.where(called, p[1], p[0])
            gained += GAMMA**step * (np.where(called, r[1], r[0]) - cost * called)
            calls += called
        values += chance * gained
        allowed &= (chance == 0) | (budget is None or calls <= budget)
    return values[allowed].max()


@pytest.mark.parametrize("name", ["chain-6", "chain-12", "tree-4"])
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_dynamic_programming_equals_trying_everything(name, terms):
    best = switch_mdps.optimum(MDPS[name], GAMMA, **terms)[0, -1]
    assert best == pytest.approx(best_of_all(MDPS[name], **terms), rel=1e-12)


@pytest.mark.parametrize("name", MDPS)
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_the_best_table_is_worth_the_optimum_and_no_other_is_worth_more(name, terms):
    mdp = MDPS[name]
    best = switch_mdps.optimum(mdp, GAMMA, **terms)[0, -1]
    table = switch_mdps.best_table(mdp, GAMMA, **terms)
    assert switch_mdps.table_values(mdp, table, GAMMA, **terms)[0, -1] == pytest.approx(best, rel=1e-9)
    assert switch_mdps.mistakes(mdp, table, GAMMA, **terms) == {}
    rng = np.random.default_rng(0)
    for flips in range(1, 30):
        other = np.where(rng.random(table.shape) < flips / 30, rng.integers(0, mdp.models, table.shape), table)
        if "budget" in terms:
            other[:, 0] = 0
        worth = switch_mdps.table_values(mdp, other, GAMMA, **terms)[0, -1]
        assert worth <= best + 1e-12
        assert (worth < best - 1e-9) == bool(switch_mdps.mistakes(mdp, other, GAMMA, **terms))


def test_a_budget_that_is_never_spent_is_no_budget():
    for mdp in MDPS.values():
        free = switch_mdps.optimum(mdp, GAMMA)
        ample = switch_mdps.optimum(mdp, GAMMA, budget=mdp.longest)
        assert ample[0, -1] == pytest.approx(free[0, -1])
        always = switch_mdps.value(mdp, lambda f: [1] * len(f), GAMMA)
        assert switch_mdps.value(mdp, lambda f: [1] * len(f), GAMMA, budget=mdp.longest) == pytest.approx(always)


@pytest.mark.parametrize("name", MDPS)
@pytest.mark.parametrize("terms", [{"cost": 0.05}, {"budget": 2}, {"budget": 0}], ids=str)
def test_exact_values_equal_the_mean_of_what_is_played(name, terms):
    """Through the vector environment, by a policy that reads nothing but the features, as a learned one does."""
    mdp = MDPS[name]
    weights = np.random.default_rng(1).normal(size=(mdp.code.shape[1] + 2, mdp.models))

    def policy(features):
        return (features @ weights).argmax(1)

    rows, episodes = 50, 1500
    env = switch_mdps.maker(name, terms.get("budget"), terms.get("cost", 0.0), rows)(0)
    observations, _ = env.reset(seed=0)
    shown = {tuple(row) for row in switch_mdps.features(mdp, terms.get("budget")).tolist()}
    returns, scale, so_far, over = [], np.ones(rows), np.zeros(rows), np.zeros(rows, bool)
    while len(returns) < episodes:
        assert {tuple(row) for row in observations[~over].tolist()} <= shown
        choices = policy(observations)
        if "budget" in terms:
            choices[observations[:, -2] == 0] = 0
        reset = over
        observations, rewards, ended, truncated, _ = env.step(choices)
        assert not truncated.any()
        so_far += scale * rewards
        scale = np.where(reset, 1.0, scale * GAMMA)
        for row in np.flatnonzero(ended):
            returns.append(so_far[row])
            so_far[row], scale[row] = 0.0, 1.0
        over = ended
    exact = switch_mdps.value(mdp, policy, GAMMA, **terms)
    assert np.mean(returns) == pytest.approx(exact, abs=4 * np.std(returns) / len(returns) ** 0.5 + 1e-9)


def test_the_switch_set_holds_what_is_reached():
    mdp = MDPS["dead-ends-12"]
    everywhere = switch_mdps.table(mdp, lambda f: [1] * len(f), budget=2)
    assert switch_mdps.switch_set(mdp, everywhere, budget=2) == {(0, 2): 1, (1, 1): 1}
    best = switch_mdps.best_table(mdp, GAMMA, budget=2)
    assert switch_mdps.switch_set(mdp, best, budget=2) == {(5, 2): 1, (10, 1): 1}
    lost = switch_mdps.mistakes(mdp, everywhere, GAMMA, budget=2)
    assert set(lost) == {(0, 2), (1, 1)}
    assert switch_mdps.mistakes(mdp, np.zeros_like(best), GAMMA, budget=2).keys() == {(5, 2), (7, 2), (10, 2)}
    free = switch_mdps.best_table(mdp, GAMMA, cost=0.05)
    assert switch_mdps.switch_set(mdp, free) == {(s, 0): 1 for s in (2, 5, 7, 10)}, "and nowhere on a dead end"


def test_features_are_those_of_the_environment_and_differ():
    for mdp in MDPS.values():
        rows = switch_mdps.features(mdp, budget=3)
        assert rows.shape == (4 * mdp.states, mdp.code.shape[1] + 2)
        assert len(np.unique(rows, axis=0)) == len(rows)
        assert rows[:4, -2].tolist() == np.float32([share(left, 3) for left in range(4)]).tolist()
        assert (rows[:, -1] < 1).all() and (rows[:4, -1] == 0).all()


def test_makers_travel_and_give_the_same_episodes():
    def play(make):
        env = make(3, 5)
        seen = [env.reset(seed=3)[0].tolist()]
        return seen + [env.step(np.ones(env.num_envs, int))[0].tolist() for _ in range(30)]

    make = switch_mdps.maker("tree-5", budget=2, rows=4)
    assert play(make) == play(pickle.loads(pickle.dumps(make)))
