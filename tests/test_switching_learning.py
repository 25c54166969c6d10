"""The learner against exact optima, and a killed training against an unbroken one."""

import itertools

import chain_mdp
import numpy as np
import pytest
import torch

from atlas_ray.recipe import Switch
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.environment import SwitchingVectorEnv
from atlas_ray.switching.network import SwitchNetwork
from atlas_ray.switching.train import train_switch

GAMMA = 0.98


def settings(steps, **more):
    defaults = {"num_envs": 16, "updates_per_step": 1.0, "batch_size": 64, "gamma": GAMMA, "evaluate_every": 1000}
    return Switch(levels=["GoToLocal"], costs=[0.05], steps=steps, **{**defaults, **more})


def learn(directory, steps, *, cost=0.0, budget=None, stop_after=None, seed=0, **more):
    rows = []

    def note(row):
        rows.append(row)
        if len(rows) == stop_after:
            raise KeyboardInterrupt

    policy = train_switch(
        directory,
        settings(steps, **more),
        lambda seed: SwitchingVectorEnv(chain_mdp.ChainGame(16), seed, budget, cost),
        lambda p: {"objective": chain_mdp.policy_value(p.greedy, GAMMA, cost, budget)},
        seed,
        chain_mdp.LENGTH,
        budget,
        cost,
        note,
    )
    return policy, rows


def test_dynamic_programming_equals_trying_everything():
    """A switch on the chain is a set of states to call in: with a budget of 2 no other set is better than DP says."""
    best_cost = best_budget = 0.0
    for called in itertools.product([False, True], repeat=len(chain_mdp.HARD)):
        states = {s for s, c in zip(chain_mdp.HARD, called, strict=True) if c}
        reach, cost = 1.0, 0.0
        for state in range(chain_mdp.LENGTH):
            cost += 0.05 * (state in states) * reach * GAMMA**state
            reach *= chain_mdp.advances(state, state in states)
        value = reach * GAMMA ** (chain_mdp.LENGTH - 1)
        best_cost = max(best_cost, value - cost)
        if len(states) <= 2:
            best_budget = max(best_budget, value)
    assert chain_mdp.optimum(GAMMA, cost=0.05)[0, 0] == pytest.approx(best_cost)
    assert chain_mdp.optimum(GAMMA, budget=2)[0, 2] == pytest.approx(best_budget)


def test_exact_value_of_a_policy_equals_its_mean_return():
    """The vector environment plays the chain that the exact values are about."""
    env = SwitchingVectorEnv(chain_mdp.ChainGame(50), 0, budget=2)
    observations, _ = env.reset(seed=0)
    weights, returns, current = np.ones(50), [], np.zeros(50)
    for _ in range(1500):
        calls = (observations[:, [2, 5]].sum(1) > 0).astype(int)
        over = env._over.copy()
        observations, rewards, ended, _, _ = env.step(calls)
        current += weights * rewards
        weights = np.where(over, 1.0, weights * GAMMA)
        for row in np.flatnonzero(ended):
            returns.append(current[row])
            current[row], weights[row] = 0.0, 1.0
    exact = chain_mdp.policy_value(lambda f: f[:, [2, 5]].sum(1) * (f[:, -2] > 0), GAMMA, budget=2)
    assert np.mean(returns) == pytest.approx(exact, abs=4 * np.std(returns) / len(returns) ** 0.5)


def test_learned_cost_switch_is_optimal(ray_session, tmp_path):
    policy, rows = learn(tmp_path / "switch", 4000, cost=0.05)
    best = chain_mdp.optimum(GAMMA, cost=0.05)[0, 0]
    assert chain_mdp.policy_value(policy.greedy, GAMMA, cost=0.05) >= 0.98 * best
    assert [row["best"] for row in rows] == list(itertools.accumulate((row["objective"] for row in rows), max))
    assert rows[-1]["eta_seconds"] == 0


def test_learned_budget_switch_saves_its_calls(ray_session, tmp_path):
    """Spending both calls as soon as it is hard is worth 0.70 of the optimum; the last hard state needs the second."""
    policy, _ = learn(tmp_path / "switch", 6000, budget=2, seed=1)
    best = chain_mdp.optimum(GAMMA, budget=2)[0, 2]
    assert chain_mdp.policy_value(policy.greedy, GAMMA, budget=2) >= 0.98 * best


def test_a_killed_training_goes_on(ray_session, tmp_path):
    directory = tmp_path / "switch"
    short = {"updates_per_step": 0.05, "evaluate_every": 300}
    with pytest.raises(KeyboardInterrupt):
        learn(directory, 900, cost=0.05, stop_after=1, **short)
    assert not directory.exists()
    _, rows = learn(directory, 900, cost=0.05, **short)
    assert len(rows) == 2, "one evaluation was done before"
    assert 600 <= rows[0]["step"] < 800 <= rows[1]["step"]
    assert rows[1]["next_seed"] > rows[0]["next_seed"] > 30, "no training episode is played twice"
    policy, again = learn(directory, 900, cost=0.05, **short)
    assert again == []
    assert policy.config.cost == 0.05


def module(budgeted, epsilon=1.0):
    import gymnasium as gym

    from atlas_ray.switching.module import SwitchModule

    made = SwitchModule(
        observation_space=gym.spaces.Box(-np.inf, np.inf, (6,), np.float32),
        action_space=gym.spaces.Discrete(2),
        model_config={"hidden": [16], "budgeted": budgeted, "epsilon": epsilon},
    )
    made.make_target_networks()
    return made


def test_no_exploration_picks_a_masked_call():
    obs = torch.rand(2000, 6) + 0.1
    obs[::2, -2] = 0.0
    made = module(budgeted=True)
    for share in (0.0, 0.5):
        obs[:, -1] = share
        actions = made.forward_exploration({"obs": obs}, t=0)["actions"]
        assert not actions[::2].any()
        assert actions[1::2].any()
        assert not actions[1::2].all()
    assert not made.forward_inference({"obs": obs})["actions"][::2].any()
    assert module(budgeted=False).forward_exploration({"obs": obs}, t=0)["actions"][::2].any()


def test_loss_of_a_masked_next_state_is_finite():
    """Both networks give minus infinity for a call that is masked in the next state; the target must not."""
    made = module(budgeted=True)
    obs = torch.rand(8, 6) + 0.1
    following = obs.clone()
    following[:, -2] = 0.0
    out = made.forward_train({"obs": obs, "new_obs": following})
    assert torch.isinf(out["qf_next_preds"][:, 1]).all()
    assert torch.isfinite(out["qf_next_preds"].max(-1).values).all()
    assert torch.isfinite(out["qf_target_next_preds"].max(-1).values).all()


def test_saved_policy_decides_as_the_module(tmp_path):
    from atlas_ray.switching.policy import SwitchConfig

    torch.manual_seed(0)
    made = module(budgeted=True)
    torch.nn.init.zeros_(made.net.layers[-1].bias)
    policy = SwitchPolicy(SwitchConfig(4, (16,), 3, 0.0))
    policy.network.load_state_dict(made.net.state_dict())
    policy.save(tmp_path / "switch")
    loaded = SwitchPolicy.load(tmp_path / "switch")
    obs = 5 * torch.randn(500, 6)
    obs[::3, -2] = 0.0
    expected = made.forward_inference({"obs": obs})["actions"].tolist()
    assert loaded.greedy(obs.numpy()) == policy.greedy(obs.numpy()) == expected
    assert 0 < sum(expected) < 500


def test_network_is_dueling_and_masks_with_minus_infinity():
    network = SwitchNetwork(5, [8], 2, budgeted=True)
    features = torch.rand(3, 5) + 0.1
    features[0, -2] = 0
    q = network(features)
    assert q[0, 1] == -torch.inf
    assert torch.isfinite(q[1:]).all()
