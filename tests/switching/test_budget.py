"""No budget is ever exceeded: whatever is asked for, however episodes are cut off, replayed or tried again.

Calls are counted where a model acts, behind the guard. Tabular games for a hundred thousand episodes, and text episodes
whose environments die.
"""

import tempfile
from pathlib import Path

import dying_env
import numpy as np
import pytest
import switch_mdps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_ray import envs
from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.agents.token_agent import Agent
from atlas_ray.engines import TransformersEngine
from atlas_ray.errors import BudgetViolationError
from atlas_ray.models.encoders import make_encoder
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.environment import PENALTY, SwitchingVectorEnv
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.policy import Situation, SwitchConfig
from atlas_ray.switching.text_game import TextGame

EPISODES = 1000


def always(features, rng, models):
    """The largest model in every step."""
    return np.full(len(features), models - 1)


def when_spent(features, rng, models):
    """Calls most where nothing is left, and now and then before, to get there."""
    spent = features[:, -2] == 0
    return np.where(spent | (rng.random(len(features)) < 0.6), rng.integers(1, models, len(features)), 0)


def anything(features, rng, models):
    return rng.integers(0, models, len(features))


def saved(budgeted):
    """Random networks, masked or not, that are saved and loaded again three times in the middle of episodes."""

    def decide(features, rng, models):
        nonlocal policy, decisions
        if policy is None:
            widths = [features.shape[1], 8, models]
            shapes = {"layers.0": widths[:2], "layers.2": widths[1:]}
            tensors = {f"{k}.weight": rng.normal(size=(n, m)) for k, (m, n) in shapes.items()}
            tensors |= {f"{k}.bias": rng.normal(size=n) for k, (m, n) in shapes.items()}
            config = SwitchConfig(features.shape[1] - 2, (8,), models, budget=3 if budgeted else None)
            policy = SwitchPolicy(config, {k: v.astype(np.float32) for k, v in tensors.items()})
        decisions += 1
        wanted = policy.greedy(features)
        if decisions in (3, 30, 300):
            with tempfile.TemporaryDirectory() as folder:
                policy.save(Path(folder) / "switch")
                policy = SwitchPolicy.load(Path(folder) / "switch")
            assert policy.greedy(features) == wanted
        if budgeted:
            assert not np.any(np.array(wanted)[features[:, -2] == 0]), "the mask keeps them from being asked for"
        return np.array(wanted)

    policy, decisions = None, 0
    return decide


ASKS = {
    "always": lambda: always,
    "when spent": lambda: when_spent,
    "anything": lambda: anything,
    "network": lambda: saved(False),
    "masked network": lambda: saved(True),
}


def play(name, budget, asks, rows, stride, resets, seed, episodes):
    """At least ``episodes``, some of them given up by a reset on the way; how many were played."""
    game = switch_mdps.TabularGame(switch_mdps.MDPS[name], rows)
    env = SwitchingVectorEnv(game, seed, budget, 0.0, stride=stride)
    rng, policy = np.random.default_rng(seed), ASKS[asks]()
    observations, _ = env.reset()
    wanted_more, overrides = 0, 0
    while len(game.finished) < episodes:
        if rng.random() < resets:
            observations, _ = env.reset(seed=int(rng.integers(1000)) if rng.random() < 0.5 else None)
        wanted = policy(observations, rng, game.models)
        playing = ~env._over
        spent = playing & (np.array(env.budget.left) == 0)
        before = np.array(game.calls)
        observations, rewards, _, _, info = env.step(wanted)
        made = np.array(game.calls) - before
        assert max(game.calls) <= budget
        assert info["calls"].tolist() == game.calls, "what is told is what was made"
        assert not made[spent].any()
        assert (made[playing & ~spent] == (wanted[playing & ~spent] > 0)).all(), "none is turned down before that"
        assert (rewards[spent & (wanted > 0)] <= 1 - PENALTY).all()
        wanted_more += int((spent & (wanted > 0)).sum())
        overrides += int((info["overrides"][playing] > 0).sum())
    assert max(game.finished) <= budget
    assert (overrides > 0) == (wanted_more > 0) or budget == 0
    assert asks != "always" or wanted_more > 0 or budget >= game.mdp.longest
    return len(game.finished)


@pytest.mark.parametrize("examples", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_budgets_hold_whatever_is_asked_for(examples):
    """A thousand episodes an example."""
    played = []

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        name=st.sampled_from(sorted(switch_mdps.MDPS)),
        budget=st.integers(0, 5),
        asks=st.sampled_from(sorted(ASKS)),
        rows=st.sampled_from([1, 2, 7, 32, 100]),
        stride=st.integers(1, 4),
        resets=st.sampled_from([0.0, 0.01, 0.3]),
        seed=st.integers(0, 2**20),
    )
    def example(**terms):
        played.append(play(**terms, episodes=EPISODES))

    example()
    assert sum(played) >= examples * EPISODES


def test_the_count_would_see_a_call_too_many(monkeypatch):
    """Without the guard the same test fails, in the environment and in the game."""
    monkeypatch.setattr("atlas_ray.switching.budget.BudgetGuard.grant", lambda self, row, wanted: wanted)
    terms = {"name": "chain-6", "budget": 1, "rows": 2, "stride": 1, "resets": 0.0, "seed": 0, "episodes": 50}
    with pytest.raises(BudgetViolationError):
        play(asks="always", **terms)
    monkeypatch.setattr("atlas_ray.switching.budget.BudgetGuard.record", lambda self, row: None)
    with pytest.raises(AssertionError):
        play(asks="always", **terms)


# Text episodes of which some die in their second step: one is replayed, the third death is the caller's to deal with.
SPEC = EnvSpec("dying_env:Dying/Doors-v0", {"max_steps": 6})


class Count:
    """How often a model acted in each row since the episode in it began."""

    def __init__(self, rows):
        self.calls, self.most, self.episodes = [0] * rows, 0, 0


class CountedAgent(Agent):
    count: Count

    def act(self, slots, *others):
        for slot in slots:
            self.count.calls[slot] += 1
        self.count.most = max(self.count.most, *self.count.calls)
        return super().act(slots, *others)

    def start(self, slot, *others):
        self.count.calls[slot] = 0
        self.count.episodes += 1
        super().start(slot, *others)


def counted_agents(rows=4):
    """QUICK, DEEPTHINK, and the count of what DEEPTHINK does."""
    models = [build_model(16, 1, 2, 32, seed=s) for s in (0, 1)]
    engines = [TransformersEngine(model, rows, build_tokenizer()) for model in models]
    agents = [kind(engine, "action") for kind, engine in zip((Agent, CountedAgent), engines, strict=True)]
    agents[1].count = Count(rows)
    return agents, agents[1].count


@pytest.fixture(autouse=True)
def _no_deaths_left():
    dying_env.DEATHS.clear()
    yield
    dying_env.DEATHS.clear()


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_budgets_hold_where_environments_die_and_are_replayed(budget):
    dying_env.DEATHS.update({seed: seed % 3 for seed in range(60)})
    agents, counted = counted_agents()
    game = TextGame([SPEC], agents, 4, make_encoder("hashing", 32))
    env, rng = SwitchingVectorEnv(game, 0, budget), np.random.default_rng(budget)
    observations, _ = env.reset()
    while counted.episodes < 60:
        wanted = when_spent(observations, rng, 2)
        observations, _, _, _, info = env.step(wanted)
        assert info["calls"].tolist() == counted.calls, "a replay calls no model"
    assert counted.most == budget
    assert sum(dying_env.DEATHS.values()) < sum(seed % 3 for seed in range(60)) / 4, "they did die"


@pytest.mark.parametrize("budget", [1, 2])
def test_an_episode_that_is_tried_again_has_its_budget_once_more_and_no_more(budget):
    """Three deaths end the attempt, and with it those beside it: what is played anew starts from a full budget."""

    class Greedy:
        needs = frozenset()

        def decide(self, situations: list[Situation]) -> list[int]:
            assert all(s.left is not None and 0 <= s.left <= budget for s in situations)
            return [1] * len(situations)

    seeds = range(12)
    expected = evaluate_policy(Greedy(), counted_agents()[0], [SPEC], seeds, budget=budget)
    dying_env.DEATHS.update({5: 3, 7: 2, 9: 4})
    (agents, counted), attempts = counted_agents(), 0
    while True:
        attempts += 1
        try:
            rows = evaluate_policy(Greedy(), agents, [SPEC], seeds, budget=budget)
            break
        except envs.EnvironmentDiedError:
            pass
    assert attempts == 3
    assert counted.most == budget
    assert [(r["seed"], r["calls"], r["success"]) for r in rows] == [
        (r["seed"], r["calls"], r["success"]) for r in expected
    ]
    assert {r["calls"] for r in rows} == {budget}
    assert {r["violations"] for r in rows} == {0}
    assert [r["overrides"] for r in rows] == [r["steps"] - budget for r in rows]
