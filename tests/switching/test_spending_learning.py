"""A budget of tokens through the whole training on Ray, against the optimum that dynamic programming knows."""

import numpy as np
import pytest
from spending_mdps import paid_maker, spends_of, values_of, worst
from switch_mdps import MDPS

from atlas_ray.recipe.loading import Switch
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.features import with_shares
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.train import train_switch

GAMMA = 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("name", "budget", "algorithm"), [("chain-12", 10, "dqn")])
def test_a_budget_of_tokens_is_learnt_to_its_optimum(ray_session, tmp_path, name, budget, algorithm):
    from atlas_ray.switching.algorithm import HIDDEN

    mdp, left = MDPS[name], np.arange(budget + 1)
    spends = spends_of(mdp)
    best = values_of(mdp, spends, GAMMA, budget)[0, -1]

    def evaluate(policy):
        """Exactly, by what it does in every state with every number of tokens left."""
        call = [min(worst(spends, state, model) for model in range(1, mdp.models)) for state in range(mdp.states)]
        shares = np.concatenate([np.where(left >= least, left / budget, 0.0) for least in call])
        steps = np.repeat(np.array(mdp.depth) / mdp.longest, budget + 1)
        choices = policy.greedy(with_shares(np.repeat(mdp.code, budget + 1, axis=0), shares, steps))
        table = np.array(choices).reshape(mdp.states, budget + 1)
        return {"objective": values_of(mdp, spends, GAMMA, budget, table)[0, -1], "calls": 0.0}

    terms = {"levels": ["GoToLocal"], "budgets": [{"tokens": budget}], "algorithm": algorithm, "num_envs": 16}
    settings = Switch.model_validate({**terms, "steps": 6_000, "evaluate_every": 1_000})
    config = SwitchConfig(mdp.code.shape[1], HIDDEN, models=mdp.models, budget=budget, unit="tokens")
    rows = []
    train_switch(tmp_path / "x", settings, config, paid_maker(name, budget), evaluate, 0, on_evaluation=rows.append)
    reached = {row["step"]: row["objective"] / best for row in rows}
    assert max(reached.values()) >= 0.99, reached
    saved = SwitchPolicy.load(tmp_path / "x")
    assert (saved.config.budget, saved.config.unit) == (budget, "tokens")
    assert evaluate(saved)["objective"] == pytest.approx(max(row["objective"] for row in rows)), "the best one is kept"
