"""Learning against exact optima (all of them: benchmarks/switching_optimum.py), and what a kill leaves."""

import itertools

import pytest
import switch_mdps
from switch_mdps import MDPS

from atlas_ray.recipe.loading import Switch
from atlas_ray.rundir import files
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.train import train_switch

GAMMA = 0.98


def learn(
    directory,
    steps,
    name="chain-12",
    *,
    cost=None,
    budget=None,
    average=None,
    stop_after=None,
    seed=0,
    playoff=None,
    **more,
):
    """Train on one of the games; the policy, what was told of the evaluations, and the share of the optimum."""
    mdp, rows = MDPS[name], []
    defaults = {"num_envs": switch_mdps.ROWS, "gamma": GAMMA, "evaluate_every": 500}
    settings = Switch(levels=["GoToLocal"], costs=[0.05], steps=steps, **{**defaults, **more})
    models = [{"model": str(i), "weight": weight} for i, weight in enumerate(mdp.weights)]
    settings = Switch.model_validate({**settings.model_dump(), "models": models})
    terms = SwitchConfig(mdp.code.shape[1], (128, 64), mdp.models, budget, cost, average)

    def evaluate(policy):
        value = switch_mdps.value(mdp, policy.greedy, GAMMA, cost or 0.0, budget)
        return {"objective": value, "calls": calls(mdp, policy)}

    def note(row):
        rows.append(row)
        if len(rows) == stop_after:
            raise KeyboardInterrupt

    make_env = switch_mdps.maker(name, budget, cost or 0.0)
    policy = train_switch(directory, settings, terms, make_env, evaluate, 1000 * seed, seed, note, playoff=playoff)
    best = switch_mdps.optimum(mdp, GAMMA, cost or 0.0, budget)[0, -1]
    return policy, rows, switch_mdps.value(mdp, policy.greedy, GAMMA, cost or 0.0, budget) / best


def calls(mdp, policy):
    """Exact mean calls an episode of a policy without a budget."""
    choices = switch_mdps.table(mdp, policy.greedy)[:, 0]
    reached, total = [1.0] + [0.0] * (mdp.states - 1), 0.0
    for state, choice in enumerate(choices):
        total += reached[state] * (choice > 0)
        for branch in mdp.branches[state][choice]:
            if branch.to != switch_mdps.END:
                reached[branch.to] += reached[state] * branch.probability
    return total


@pytest.mark.parametrize(
    ("algorithm", "terms", "updates_per_step", "steps"),
    [
        pytest.param("dqn", {"cost": 0.05}, 0.5, 2000, marks=pytest.mark.slow),
        ("dqn", {"budget": 1}, 0.5, 2000),
        ("sac", {"cost": 0.05}, 1.0, 1000),
        pytest.param("sac", {"budget": 1}, 1.0, 2000, marks=pytest.mark.slow),
    ],
)
def test_learnt_switch_is_optimal(ray_session, tmp_path, algorithm, terms, updates_per_step, steps):
    """Longer chains, and what takes longer to learn on them, are in the slow table of test_optimum.py."""
    more = {"evaluate_every": 250, "updates_per_step": updates_per_step, **terms}
    _, rows, share = learn(tmp_path / "switch", steps, "chain-6", algorithm=algorithm, **more)
    assert share >= 0.99
    assert [row["best"] for row in rows] == list(itertools.accumulate((row["objective"] for row in rows), max))
    assert rows[-1]["eta_seconds"] == 0


@pytest.mark.parametrize("terms", [{"cost": 0.05}, {"budget": 1}], ids=str)
def test_a_chain_of_six_can_be_missed(terms):
    """So that the test above can fail: neither model alone comes near the optimum."""
    mdp = MDPS["chain-6"]
    best = switch_mdps.optimum(mdp, GAMMA, **terms)[0, -1]
    for policy in (lambda f: [0] * len(f), lambda f: [1] * len(f)):
        assert switch_mdps.value(mdp, policy, GAMMA, **terms) < 0.9 * best


@pytest.mark.slow
def test_three_models_are_each_called_where_they_pay(ray_session, tmp_path):
    """The second model costs 0.3 c and is as good as the third in two of the four hard states."""
    policy, _, share = learn(tmp_path / "switch", 6000, "three-12", cost=0.05)
    assert share >= 0.99
    mdp = MDPS["three-12"]
    called = switch_mdps.switch_set(mdp, switch_mdps.table(mdp, policy.greedy))
    assert set(called.values()) == {1, 2}


@pytest.mark.slow
def test_a_mean_number_of_calls_is_kept(ray_session, tmp_path):
    """Without a price the best switch calls 3.3 times; half of that is asked for."""
    mdp = MDPS["chain-12"]
    policy, rows, _ = learn(tmp_path / "switch", 6000, average=1.5, evaluate_every=250)
    assert calls(mdp, policy) <= 1.5
    kept = [row["objective"] for row in rows if row["calls"] <= 1.5]
    assert switch_mdps.value(mdp, policy.greedy, GAMMA) == pytest.approx(max(kept))
    none = switch_mdps.value(mdp, lambda features: [0] * len(features), GAMMA)
    assert max(kept) > 3 * none
    assert max(row["price"] for row in rows) > 0


def test_a_playoff_decides_among_the_best_of_the_evaluations(ray_session, tmp_path):
    played = []

    def playoff(policy):
        played.append(policy)
        return {"objective": float(len(played) == 3), "success": 0.25}

    short = {"cost": 0.05, "updates_per_step": 0.05, "evaluate_every": 100}
    policy, rows, _ = learn(tmp_path / "switch", 800, playoff=playoff, **short)
    assert len(rows) > len(played) == 4
    ranked = sorted(reversed(rows), key=lambda row: row["objective"], reverse=True)
    chosen = files.read_json(tmp_path / "switch" / "chosen.json")
    finalists = [{"step": row["step"], "objective": float(n == 2)} for n, row in enumerate(ranked[:4])]
    assert chosen == {"step": ranked[2]["step"], "objective": 1.0, "success": 0.25, "finalists": finalists}
    assert all((policy.tensors[name] == tensor).all() for name, tensor in played[2].tensors.items())
    _, rows, _ = learn(tmp_path / "plain", 500, **short)
    chosen, best = files.read_json(tmp_path / "plain" / "chosen.json"), max(row["objective"] for row in rows)
    assert (chosen["objective"], chosen["step"]) == (best, [r["step"] for r in rows if r["objective"] == best][-1])
    assert sorted(path.name for path in (tmp_path / "switch").iterdir()) == [
        *("chosen.json", "config.json", "last", "model.safetensors")
    ]


def test_a_killed_training_goes_on(ray_session, tmp_path):
    directory = tmp_path / "switch"
    short = {"updates_per_step": 0.05, "evaluate_every": 300}
    with pytest.raises(KeyboardInterrupt):
        learn(directory, 900, cost=0.05, stop_after=1, **short)
    assert not directory.exists()
    _, rows, _ = learn(directory, 900, cost=0.05, **short)
    assert len(rows) == 2, "one evaluation was done before"
    assert 600 <= rows[0]["step"] < 800 <= rows[1]["step"]
    assert rows[1]["next_seed"] > rows[0]["next_seed"] > 30, "no training episode is played twice"
    policy, again, _ = learn(directory, 900, cost=0.05, **short)
    assert again == []
    assert policy.config.cost == 0.05
    assert SwitchPolicy.load(directory / "last").config == policy.config


@pytest.mark.slow
@pytest.mark.parametrize("keep_replay_buffer", [True, False])
def test_what_goes_on_learns_as_well(ray_session, tmp_path, keep_replay_buffer):
    """With or without its replay buffer, a training that was killed half way finds the optimum."""
    directory = tmp_path / "switch"
    with pytest.raises(KeyboardInterrupt):
        learn(directory, 5000, cost=0.05, stop_after=3, keep_replay_buffer=keep_replay_buffer)
    state = files.read_json(tmp_path / "switch.train" / "state" / "history.json")
    assert len(state) == 3
    _, rows, share = learn(directory, 5000, cost=0.05, keep_replay_buffer=keep_replay_buffer)
    assert rows[0]["step"] > 1900
    assert share >= 0.99
