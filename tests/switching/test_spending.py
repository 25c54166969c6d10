"""Budgets in tokens and money: never exceeded, whatever is asked for, and worth what the best switch makes of them."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spending_mdps import CENT, PaidGame, best_choices, spends_of, values_of, worst
from switch_mdps import MDPS

from atlas_ray.errors import BudgetViolationError, InputError
from atlas_ray.gateway.budget import SessionAccount
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.budget import BudgetGuard, amount
from atlas_ray.switching.environment import SwitchingVectorEnv
from atlas_ray.switching.network import SwitchNetwork
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.spending import PER_DOLLAR, UNLIMITED, Account, Amount, Limits, settlement

GAMMA = 0.98


def paid_env(name, budget, rows=8, unit="tokens", silent=0.0, seed="spends", quick=1):
    mdp = MDPS[name]
    scale = CENT if unit == "usd" else 1
    game = PaidGame(mdp, spends_of(mdp, seed=seed, quick=quick), rows, silent, scale)
    given = budget if unit == "tokens" else budget / 100
    return SwitchingVectorEnv(game, 0, given, 0.0, mdp.weights, unit=unit)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(MDPS)),
    budget=st.integers(0, 30),
    unit=st.sampled_from(["tokens", "usd"]),
    asks=st.sampled_from([0.1, 0.5, 1.0]),
    silent=st.sampled_from([0.0, 0.3, 1.0]),
    quick=st.integers(0, 3),
    seed=st.integers(0, 2**20),
)
def test_no_budget_of_any_unit_is_exceeded(name, budget, unit, asks, silent, quick, seed):
    env = paid_env(name, budget, 8, unit, silent, str(seed), quick)
    game, rng, ended = env.game, np.random.default_rng(seed), 0
    seen, _ = env.reset(seed=seed)
    for _ in range(120):
        wanted = np.where(rng.random(8) < asks, rng.integers(1, game.models, 8), 0)
        shares, over, left = seen[:, -2].copy(), env._over.copy(), list(env.budget.left)
        states, before = list(game.states), list(game.calls)
        seen, _, terminated, _, _ = env.step(wanted)
        ended += terminated.sum()
        for row in range(8):
            if over[row]:
                continue
            fits = [worst(game.spends, states[row], m) * game.scale <= left[row] for m in range(game.models)]
            assert (shares[row] > 0) == any(fits[1:]) or left[row] == 0, "none is shown where no call fits"
            acted = game.calls[row] - before[row] if not env.budget.is_empty(row) or fits[0] else 0
            assert acted == (fits[0] and wanted[row] > 0 and fits[wanted[row]]), "and all are granted that fit"
            assert env.budget.left[row] == env.budget.cap - game.spent[row] * game.scale, "what comes back is exact"
        assert game.most <= budget
    assert ended, "episodes end"


def test_the_count_would_see_a_step_too_many(monkeypatch):
    """Without the guard the same play exceeds the budget."""
    env = paid_env("chain-12", 4)
    monkeypatch.setattr(BudgetGuard, "grant", lambda self, row, wanted: wanted)
    env.reset(seed=0)
    for _ in range(60):
        env.step(np.ones(8, int))
    assert env.game.most > 4


@pytest.mark.parametrize("name", ["chain-6", "chain-12", "dead-ends-12", "tree-4", "three-12"])
@pytest.mark.parametrize("budget", [0, 3, 8, 15])
def test_the_best_switch_is_worth_its_optimum_and_no_other_is_worth_more(name, budget):
    mdp = MDPS[name]
    spends = spends_of(mdp)
    best = values_of(mdp, spends, GAMMA, budget)[0, -1]
    table = best_choices(mdp, spends, GAMMA, budget)
    assert values_of(mdp, spends, GAMMA, budget, table)[0, -1] == pytest.approx(best, rel=1e-12)
    rng = np.random.default_rng(0)
    for flips in range(1, 20):
        other = np.where(rng.random(table.shape) < flips / 20, rng.integers(0, mdp.models, table.shape), table)
        assert values_of(mdp, spends, GAMMA, budget, other)[0, -1] <= best + 1e-12
    ample = values_of(mdp, spends, GAMMA, 6 * mdp.longest)[0, -1]
    assert best <= ample + 1e-12


@pytest.mark.parametrize("name", ["chain-6", "dead-ends-12", "tree-4"])
def test_the_best_switch_played_through_the_guard_gets_its_optimum(name):
    """It reads the features alone, as a learned one does: the share of tokens that is left, 0 where no call fits."""
    budget, rows, mdp = 8, 40, MDPS[name]
    env = paid_env(name, budget, rows)
    table = best_choices(mdp, env.game.spends, GAMMA, budget)
    seen, _ = env.reset(seed=0)
    returns, scale, so_far, over = [], np.ones(rows), np.zeros(rows), np.zeros(rows, bool)
    while len(returns) < 1500:
        states, left = seen[:, : mdp.states].argmax(1), (seen[:, -2] * budget).round().astype(int)
        seen, rewards, ended, _, info = env.step(np.where(seen[:, : mdp.states].any(1), table[states, left], 0))
        assert not info["overrides"][~ended].any()
        so_far += scale * rewards
        scale = np.where(over, 1.0, scale * GAMMA)
        for row in np.flatnonzero(ended):
            returns.append(so_far[row])
            so_far[row], scale[row] = 0.0, 1.0
        over = ended
    exact = values_of(mdp, env.game.spends, GAMMA, budget)[0, -1]
    assert np.mean(returns) == pytest.approx(exact, abs=4 * np.std(returns) / len(returns) ** 0.5 + 1e-9)
    assert env.game.most <= budget


SIZES = st.lists(st.integers(0, 9), min_size=2, max_size=2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(["calls", "tokens", "usd"]),
    st.integers(0, 40),
    st.lists(st.tuples(SIZES, st.integers(0, 1), st.floats(0, 1)), max_size=30),
)
def test_the_guard_and_the_gateway_grant_the_same(unit, budget, steps):
    guard = BudgetGuard(budget / PER_DOLLAR if unit == "usd" else budget, 1, unit)
    account = SessionAccount("s", Account(Limits(**{unit: budget})), "k", "day", Account(UNLIMITED))
    for sizes, wanted, used in steps:
        amounts = [Amount(n, size, size) for n, size in enumerate(sizes)]
        if guard.quotes:
            guard.quote(0, amounts)
        allowed = [account.fits(a) for a in amounts]
        if not allowed[0]:
            assert guard.is_empty(0)
            if not allowed[wanted]:
                with pytest.raises(BudgetViolationError):
                    guard.grant(0, wanted)
            break
        acts = wanted if allowed[wanted] else 0
        assert guard.grant(0, wanted) == acts
        took = amounts[acts]
        real = None if used < 0.2 else Amount(took.calls, int(took.tokens * used), int(took.usd * used))
        account = account.charged(took).charged(settlement(took, real))
        guard.settle(0, real)
        assert guard.left == [getattr(account.left, unit)]


def test_a_repeated_attempt_pays_again_and_is_one_call():
    guard = BudgetGuard(10, 1, "tokens")
    guard.quote(0, [Amount(0, 1), Amount(1, 4)])
    assert guard.grant(0, 1) == 1
    guard.record(0)
    assert guard.again(0) and guard.left == [2] and not guard.again(0) and guard.left == [2]
    guard.settle(0, Amount(1, 1))
    assert (guard.left, guard.made) == ([5], [1])


@pytest.mark.parametrize(("value", "unit"), [("2", "usd"), (True, "usd"), (float("nan"), "usd"), (1.5, "tokens")])
def test_amounts_are_numbers_of_their_unit(value, unit):
    with pytest.raises(InputError, match="budget_left"):
        amount(value, unit, "budget_left")
    assert amount(0.02, "usd", "") == 20_000_000_000


@pytest.mark.parametrize(("budget", "unit"), [(2000, "tokens"), (0.02, "usd")])
def test_a_saved_switch_has_its_unit_and_sees_its_share(tmp_path, budget, unit):
    network = SwitchNetwork(8 + 2, [4], 2, budgeted=True)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    SwitchPolicy(SwitchConfig(8, (4,), budget=budget, unit=unit), tensors).save(tmp_path / "paid")
    paid = SwitchPolicy.load(tmp_path / "paid")
    assert (paid.config.budget, paid.config.unit) == (budget, unit)
    assert paid.config.cap == (budget if unit == "tokens" else 20_000_000_000)
    SwitchPolicy(SwitchConfig(8, (4,), budget=4), tensors).save(tmp_path / "calls")
    assert "unit" not in (tmp_path / "calls" / "config.json").read_text(), "earlier versions read it"
    calls = SwitchPolicy.load(tmp_path / "calls")
    for share in (0, 1, 2, 3, 4, 5):
        texts = [f"go to the red ball\nYou see a grey key {n} steps forward" for n in range(9)]
        assert [paid(t, budget * share / 4) if unit == "usd" else paid(t, budget * share // 4) for t in texts] == [
            calls(t, share) for t in texts
        ]
    with pytest.raises(InputError, match="budget_left"):
        paid("a\nb", "much")
    text = (tmp_path / "paid" / "config.json").read_text()
    (tmp_path / "paid" / "config.json").write_text(text.replace(unit, "wishes"))
    with pytest.raises(InputError, match="unit"):
        SwitchPolicy.load(tmp_path / "paid")
