"""Calls in runs: what the guard reserves, what is learned from, what is played, and what it is worth."""

from typing import ClassVar

import numpy as np
import pytest
import switch_mdps
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from run_values import run_choices, run_values
from serving_sessions import Client, stubbed
from switch_mdps import MDPS, TabularGame
from switch_models import agents, specs

from atlas_ray.recipe.loading import Recipe, Switch
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.baselines import Random, calibrate
from atlas_ray.switching.budget import BudgetGuard
from atlas_ray.switching.calibration import Calibration, Doubt
from atlas_ray.switching.environment import PENALTY, RUN_LEFT, SwitchingVectorEnv
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.logistic import BLANK
from atlas_ray.switching.network import SwitchNetwork
from atlas_ray.switching.policies import PolicySpec, baselines, chance_of_a_run
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.replay_buffer import TransitionBuffer

GAMMA = 0.98


def lengths(acted, model=1):
    """Of the runs of a model in a list of who acted."""
    words = "".join("x" if number == model else " " for number in acted)
    return [len(word) for word in words.split()]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(MDPS)),
    budget=st.one_of(st.none(), st.integers(0, 9)),
    run=st.integers(2, 5),
    asks=st.sampled_from([0.2, 0.7, 1.0]),
    seed=st.integers(0, 2**20),
)
def test_no_budget_is_exceeded_and_no_run_begins_that_does_not_fit(name, budget, run, asks, seed):
    """Counted behind the guard, by the game; a run is broken off by the end of its episode alone."""
    game = TabularGame(MDPS[name], 8)
    env = SwitchingVectorEnv(game, seed, budget, 0.0, MDPS[name].weights, run=run)
    env.reset()
    rng, over = np.random.default_rng(seed), np.zeros(8, bool)
    for _ in range(60):
        left = [0 if over[row] else env.budget.run_left(row) for row in range(8)]
        before = [env.budget.left[row] for row in range(8)]
        made = list(env.budget.made)
        actions = (rng.random(8) < asks) * rng.integers(1, game.models, 8)
        live = ~over
        _, _, terminated, truncated, info = env.step(actions)
        for row in np.flatnonzero(live):
            called = env.budget.made[row] - made[row]
            if left[row]:
                assert called == 1, "a run that is on goes on"
                assert info[RUN_LEFT][row] in (0, left[row] - 1)
            elif called and budget is not None:
                assert before[row] >= run, "all of it was there"
                assert env.budget.left[row] == before[row] - run, "and is reserved at once"
        over = terminated | truncated
    if budget is not None:
        assert max([0, *game.finished]) <= budget // run * run


def test_a_run_is_no_request_and_its_states_are_not_read(monkeypatch):
    game = TabularGame(MDPS["chain-12"], 1)
    env = SwitchingVectorEnv(game, 0, budget=3, run=2)
    seen, observe = [], game.observe
    monkeypatch.setattr(game, "observe", lambda rows: seen.append(list(rows)) or observe(rows))
    env.reset(seed=1)
    told = [env.step(np.array([action])) for action in (1, 0, 1)]
    assert seen == [[0], [0], [0]], "not while a run was on"
    assert not told[0][0][0, :-2].any() and told[1][0][0, :-2].any()
    assert [t[1][0] for t in told] == [0.0, 0.0, -PENALTY], "one call is left, which is no run"
    assert [t[4][RUN_LEFT][0] for t in told] == [1, 0, 0]
    assert [t[0][0, -2] for t in told] == pytest.approx([0, 0, 0]) and env.budget.left == [1]
    assert env.budget.made == [2] and env.budget.overrides == [1]


def test_one_step_is_a_run_as_ever():
    plain, one = BudgetGuard(2, 1), BudgetGuard(2, 1, run=1)
    for wanted in (0, 1, 1, 1):
        assert plain.grant(0, wanted) == one.grant(0, wanted)
        assert (plain.left, plain.shown(0), one.run_left(0)) == (one.left, one.shown(0), 0)
    with pytest.raises(ValueError, match="run"):
        BudgetGuard(100, 1, "tokens", 2)


@pytest.mark.parametrize(("cost", "budget", "run"), [(0.05, None, 1), (0.05, None, 3), (0.0, 4, 2), (0.0, 5, 3)])
def test_the_best_switch_played_through_the_guard_gets_its_optimum(cost, budget, run):
    mdp, rows = MDPS["chain-12"], 64
    values, best = run_values(mdp, 1.0, run, cost, budget)
    if run == 1:
        assert values == pytest.approx(switch_mdps.optimum(mdp, 1.0, cost, budget))
    game = TabularGame(mdp, rows)
    env = SwitchingVectorEnv(game, 0, budget, cost, mdp.weights, run=run)
    env.reset(seed=3)
    gained, returns, live = np.zeros(rows), [], np.ones(rows, bool)
    for _ in range(500):
        places = [(game.states[row], env.budget.left[row] or 0) for row in range(rows)]
        wanted = [best[place] if place[0] >= 0 else 0 for place in places]
        _, rewards, terminated, _, _ = env.step(np.array(wanted))
        gained += rewards * live
        returns += gained[live & terminated].tolist()
        gained[terminated] = 0
        live = ~terminated
    assert np.mean(returns) == pytest.approx(values[0, -1], abs=4 * np.std(returns) / len(returns) ** 0.5)


def chunks(trace, sizes):
    """Chunks of episodes as an environment runner gives them: each goes on where the last has stopped."""
    made = []
    for name, (observations, actions, rewards, infos, terminated) in trace.items():
        start = 0
        for size in [*sizes, len(actions)]:
            stop = min(start + size, len(actions))
            if stop == start:
                break
            made.append(
                SingleAgentEpisode(
                    id_=name,
                    observations=observations[start : stop + 1],
                    actions=actions[start:stop],
                    rewards=rewards[start:stop],
                    infos=infos[start : stop + 1],
                    terminated=terminated and stop == len(actions),
                    len_lookback_buffer=0,
                )
            )
            start = stop
    return made


def played(run, budget, seed=0, steps=400):
    """Episodes of random choices, one at a time."""
    game = TabularGame(MDPS["dead-ends-12"], 1)
    env = SwitchingVectorEnv(game, seed, budget, 0.1, run=run)
    rng, trace = np.random.default_rng(seed), {}
    obs, info = env.reset()
    current = ([obs[0]], [], [], [{}])
    for _ in range(steps):
        action = int(rng.random() < 0.4) if obs[0, -2] else 0
        obs, reward, terminated, _, info = env.step(np.array([action]))
        for part, value in zip(current, (obs[0], action, reward[0], {RUN_LEFT: info[RUN_LEFT][0]}), strict=True):
            part.append(value)
        if terminated[0]:
            trace[f"e{len(trace)}"] = (*current, True)
            obs, *_ = env.step(np.array([0]))
            current = ([obs[0]], [], [], [{}])
    return trace


@pytest.mark.parametrize("sizes", [(100,), (1, 2, 1, 3, 1, 1)])
def test_a_run_is_one_transition_wherever_chunks_end(sizes):
    trace, run = played(3, 7), 3
    buffer = TransitionBuffer(1000, 12 + 4 * 4 + 2, 0, 7, run=run, gamma=GAMMA)
    buffer.add(chunks(trace, sizes))
    expected = []
    for observations, actions, rewards, _, _ in trace.values():
        t = 0
        while t < len(actions):
            k = min(run if actions[t] else 1, len(actions) - t)
            gain = sum(GAMMA**i * rewards[t + i] for i in range(k))
            expected.append((observations[t], actions[t], gain, t + k == len(actions), GAMMA**k, observations[t + k]))
            t += k
    assert any(e[4] == pytest.approx(GAMMA**3) for e in expected)
    assert any(e[3] and GAMMA**3 < e[4] < GAMMA for e in expected), "a run that the end has broken off"
    assert buffer.count == len(expected)
    assert buffer.count + buffer.merged == sum(len(actions) for _, actions, *_ in trace.values())
    names = ("obs", "actions", "rewards", "terminateds", "discounts", "new_obs")
    for name, column in zip(names, zip(*expected, strict=True), strict=True):
        assert np.allclose(buffer._arrays[name][: buffer.count], np.array(column)), name


def test_a_run_without_an_answer_ends_where_it_was_seen_last():
    seen = [np.full(3, n, np.float32) for n in range(4)]
    infos = [{}, {RUN_LEFT: 2}, {RUN_LEFT: 1}, {RUN_LEFT: 0, "lost": "gone"}]
    lost = SingleAgentEpisode(
        observations=seen,
        actions=[1, 0, 0],
        rewards=[1.0, 1.0, 5.0],
        infos=infos,
        truncated=True,
        len_lookback_buffer=0,
    )
    buffer = TransitionBuffer(10, 3, 0, run=3, gamma=0.5)
    buffer.add([lost])
    drawn = {name: column[0].tolist() for name, column in buffer._arrays.items()}
    assert (buffer.count, buffer.merged, buffer.dropped) == (1, 1, 1)
    assert drawn == {
        "obs": [0, 0, 0], "new_obs": [3, 3, 3], "actions": 1, "rewards": 1.5, "terminateds": False, "discounts": 0.25,
    }  # fmt: skip


def test_a_call_teaches_every_budget_that_allows_its_run():
    buffer = TransitionBuffer(1, 4, 0, 5, run=2, gamma=GAMMA)
    buffer.add(chunks({"e": ([np.ones(4)] * 3, [1, 0], [0.0, 0.0], [{}, {RUN_LEFT: 1}, {RUN_LEFT: 0}], False)}, (2,)))
    drawn = buffer.sample(500)
    pairs = {(round(5 * a), round(5 * b)) for a, b in zip(drawn["obs"][:, -2], drawn["new_obs"][:, -2], strict=True)}
    assert pairs == {(2, 0), (3, 0), (4, 2), (5, 3)}, "one call is no run, and is shown as none"


def who_acted(row):
    return [{"quick": 0, "deepthink": 1}[step["actor"]] for step in row["episode"]["steps"]]


class Watched(Random):
    """Random calls that note where they were asked for."""

    asked: ClassVar[set[tuple[str, int]]] = set()

    def decide(self, situations):
        self.asked.update((s.episode, s.step) for s in situations)
        return super().decide(situations)


def test_episodes_have_their_calls_in_runs_and_the_policy_is_asked_between_them():
    policy = Watched(0.3)
    rows = evaluate_policy(policy, agents(), specs(12), range(60, 72), budget=7, run=3, record=True)
    found = []
    for row in rows:
        acted, due, t = who_acted(row), [], 0
        while t < len(acted):
            due.append(t)
            t += 3 if acted[t] else 1
        assert sorted(t for name, t in policy.asked if name.endswith(f"/{row['seed']}")) == due
        found += lengths(acted)
        assert all(n % 3 == 0 for n in lengths(acted[:-2])[:-1])
        assert row["calls"] <= 6 and row["violations"] == 0
    assert 3 in found


def test_a_recorded_switch_has_values_where_it_decided(tmp_path):
    net = SwitchNetwork(8 + 2, (8,), 2, False)
    tensors = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    policy = SwitchPolicy(SwitchConfig(8, (8,), run_length=2), tensors)
    policy.tensors["layers.2.bias"] = np.array([0.0, 100.0], np.float32)
    rows = evaluate_policy(policy, agents(), specs(5), range(4), run=2, record=True)
    for row in rows:
        assert row["calls"] == row["steps"]
        assert ["values" in step for step in row["episode"]["steps"]] == [t % 2 == 0 for t in range(row["steps"])]
    policy.save(tmp_path / "x")
    assert SwitchPolicy.load(tmp_path / "x").config == policy.config
    assert "run_length" not in (tmp_path / "x" / "config.json").read_text() or policy.config.run_length == 2


def test_a_served_episode_has_its_calls_in_runs():
    class Third:
        needs = frozenset()

        def decide(self, seen):
            return [int(s.step == 1) for s in seen]

    manager, (quick, deepthink) = stubbed(Third(), run=2)
    client = Client(3)
    key = manager.open(client.goal, 10)
    who = []
    for _ in range(5):
        answer = manager.act({key: client.now})[key]
        who.append(answer.called)
        client.observation = f"{client.observation} again"
    assert who == [False, True, True, False, False]
    assert (len(quick.asked), len(deepthink.asked)) == (3, 2)


def test_random_calls_of_a_rate_come_in_runs_too():
    settings = Switch(levels=["GoToLocal"], costs=[0.1], baselines=["random", "every"], run_length=3)
    learned = [PolicySpec("londi(c=0.1)", "learned", cost=0.1, run=3, seeds=(0,))]
    rows = [{"policy": "londi(c=0.1)", "calls": 3, "steps": 10}]
    random, every = baselines(settings, learned, rows, _NothingFitted())
    assert (random.name, random.run, every.run) == ("random(p=0.30)", 3, 1)
    assert random.rate == pytest.approx(0.125)
    p = chance_of_a_run(0.3, 3)
    assert 3 * p / (3 * p + 1 - p) == pytest.approx(0.3)
    assert chance_of_a_run(0.37, 1) == 0.37


def test_rules_that_doubt_begin_runs_so_often_that_calls_have_their_rate():
    settings = Switch(levels=["GoToLocal"], baselines=["classifier", "verifier"], rates=[0.5], run_length=2)
    chances = [n / 99 for n in range(99)]
    calibration = Calibration(doubts={"classifier": Doubt(BLANK, chances), "verifier": Doubt((), chances)})
    for spec in baselines(settings, [], [], calibration):
        assert (spec.run, spec.rate, spec.saved_as) == (2, 0.5, f"{spec.kind}0.50")
        assert spec.tau == calibrate(chances, 1 / 3), "a third of the decisions begins a run, so half of the steps"
    assert spec.kind == "verifier"


class _NothingFitted:
    def terms(self, kind, rate, budget):
        return {}


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"budgets": [1]}, "budgets"),
        ({"budgets": [{"tokens": 100}]}, "budgets"),
        ({"averages": [1.5]}, "averages"),
        ({"boundary_episodes": 4}, "boundary_episodes"),
        ({"logs": "x", "max_steps": 5}, "logs"),
    ],
)
def test_what_runs_cannot_be_learned_with_is_refused(table, field):
    with pytest.raises(ValueError, match=f"run_length: 2 does not go with these {field}"):
        Recipe.model_validate(
            {"name": "x", "switch": {"levels": ["GoToLocal"], "costs": [0.1], "run_length": 2, **table}}
        )


@pytest.mark.slow
@pytest.mark.parametrize(("terms", "steps"), [({"cost": 0.05}, 8_000), ({"budget": 4}, 12_000)], ids=str)
def test_runs_are_learnt_to_their_optimum(ray_session, tmp_path, terms, steps):
    from functools import partial

    from atlas_ray.switching.algorithm import HIDDEN
    from atlas_ray.switching.train import train_switch

    mdp, run = MDPS["chain-12"], 2
    cost, budget = terms.get("cost", 0.0), terms.get("budget")
    best = run_values(mdp, GAMMA, run, cost, budget)[0][0, -1]

    def evaluate(policy):
        choices = run_choices(mdp, policy, run, budget)
        return {"objective": run_values(mdp, GAMMA, run, cost, budget, choices)[0][0, -1], "calls": 0.0}

    given = {"budgets": [budget]} if budget else {"costs": [cost]}
    settings = Switch.model_validate(
        {"levels": ["GoToLocal"], **given, "num_envs": 16, "steps": steps, "evaluate_every": 1_000, "run_length": run}
    )
    config = SwitchConfig(mdp.code.shape[1], HIDDEN, budget=budget, cost=terms.get("cost"), run_length=run)
    rows = []
    make = partial(_make, budget, cost, run)
    train_switch(tmp_path / "x", settings, config, make, evaluate, 0, on_evaluation=rows.append)
    assert max(row["objective"] for row in rows) >= 0.99 * best
    assert rows[-1]["step"] <= steps + 200, "steps of runs count as steps"


def _make(budget, cost, run, first_seed, stride=1):
    mdp = MDPS["chain-12"]
    return SwitchingVectorEnv(TabularGame(mdp, 16), first_seed, budget, cost, mdp.weights, stride, run=run)
