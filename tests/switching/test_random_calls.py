"""Learning every switch from the same random calls: what is played, what is made of it, and what it teaches."""

import json
import shutil
from itertools import pairwise
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import switch_logs
from pyarrow import parquet
from run_values import run_choices, run_values
from switch_mdps import MDPS
from switch_models import agents

from atlas_ray.agents.rollout import SWITCH_RANDOM, env_spec, seed_block
from atlas_ray.errors import AtlasError
from atlas_ray.models.encoders import make_encoder
from atlas_ray.recipe.loading import Recipe, Switch
from atlas_ray.report.summary import summary
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.switching import random_calls
from atlas_ray.switching.baselines import Random
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.features import with_shares
from atlas_ray.switching.policy import Situation, SwitchConfig
from atlas_ray.switching.stage import switch_stage
from atlas_ray.switching.stage_context import StageContext
from atlas_ray.switching.transitions import Transitions, write_transitions

GAMMA, GOOD = 0.98, 0.99


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("run", [1, 2, 3])
def test_decisions_are_what_a_plain_loop_makes_of_the_steps(run):
    rng = np.random.default_rng(run)
    lengths = rng.integers(1, 9, 40)
    starts, steps = np.concatenate([[0], np.cumsum(lengths)]), int(lengths.sum())
    actions, rewards = rng.choice(3, steps, p=[0.6, 0.2, 0.2]), rng.random(steps)
    for start, end in pairwise(starts):
        t = start
        while t < end:
            k = run if actions[t] else 1
            actions[t : min(t + k, end)] = actions[t]
            t += k
    known = Transitions(
        encoded=rng.random((steps, 5)).astype(np.float32),
        step_share=rng.random(steps),
        actions=actions,
        probabilities=np.full(steps, np.nan),
        money=np.full(steps, np.nan),
        starts=starts,
        outcome=np.zeros(40),
        success=np.zeros(40),
    )
    columns, obs, row = known.columns(3, run, GAMMA, rewards), known.features(), 0
    for start, end in pairwise(starts):
        t = start
        while t < end:
            k = min(run if actions[t] else 1, end - t)
            assert np.array_equal(columns["obs"][row], obs[t]) and columns["actions"][row] == actions[t]
            assert columns["rewards"][row] == pytest.approx(sum(GAMMA**i * rewards[t + i] for i in range(k)))
            assert columns["terminateds"][row] == (t + k == end)
            assert np.array_equal(columns["new_obs"][row], obs[t + k] if t + k < end else 0 * obs[t])
            if run > 1:
                assert columns["discounts"][row] == pytest.approx(GAMMA**k)
                assert columns["durations"][row] == pytest.approx(sum(GAMMA**i for i in range(k)))
            t, row = t + k, row + 1
    assert all(len(column) == row for column in columns.values())
    assert ("discounts" in columns) == (run > 1)


def test_random_calls_are_of_all_models_but_the_first_alike():
    seen = [Situation("x", None, 0.0, f"e{n}", n) for n in range(6000)]
    found = np.bincount(Random(0.3, 5, action=3, first=1).decide(seen), minlength=4) / len(seen)
    assert found == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.02)
    assert Random(0.3, 5, first=1).decide(seen) == Random(0.3, 5).decide(seen)


def learn(folder, name, *, cost=None, budget=None, run=1, steps=1500, episodes=2000, seed=0):
    """Share of the optimum with calls in such runs, of a switch learned from random ones."""
    from atlas_ray.switching.logged_training import train_from_logs

    mdp, data = MDPS[name], folder / f"{name}-{run}-{seed}.parquet"
    if not data.exists():
        log = switch_logs.arrays(name, episodes, seed, 0.3, run=run)
        write_transitions(data, log.columns(2, run, GAMMA))
    settings = Switch(
        levels=["GoToLocal"], costs=[0.0], random_episodes=episodes, run_length=run, steps=steps, gamma=GAMMA
    )
    terms = SwitchConfig(mdp.code.shape[1], (128, 64), 2, budget, cost, run_length=run)
    policy = train_from_logs(folder / f"{name}-{run}-{cost}-{budget}-{seed}", settings, terms, data, seed)
    terms = (mdp, GAMMA, run, cost or 0.0, budget)
    return run_values(*terms, run_choices(mdp, policy, run, budget))[0][0, -1] / run_values(*terms)[0][0, -1]


def test_random_runs_teach_the_best_switch_that_calls_in_runs(ray_session, tmp_path):
    """What a call costs goes by its steps: at this cost it pays where the run is used up, and not at the end."""
    assert learn(tmp_path, "chain-6", cost=0.05, run=2) >= GOOD


@pytest.mark.slow
@pytest.mark.parametrize(("terms", "good"), [({"cost": 0.05}, 0.96), ({"budget": 4}, GOOD)], ids=str)
def test_random_runs_teach_a_longer_game_its_best_switch(ray_session, tmp_path, terms, good):
    """At this cost a run in the wrong place loses 0.003 of 0.333, which a few thousand episodes hardly tell."""
    shares = [learn(tmp_path, "chain-12", run=2, steps=8000, episodes=4000, seed=seed, **terms) for seed in range(5)]
    assert sum(share >= good for share in shares) >= 4, shares


class Watched(Random):
    """Random calls that note what a switch would see."""

    needs = frozenset({"encoded"})

    def decide(self, situations):
        for s in situations:
            seen.setdefault(s.episode, []).append(with_shares(s.encoded[None], [1.0], [s.step_share])[0])
        return super().decide(situations)


seen: dict[str, list[np.ndarray]] = {}


@pytest.fixture(scope="module")
def learned(make, tmp_path_factory):
    """A run of the stage whose switches learn from the same random calls."""
    terms = {"seeds": [0, 3], "budgets": ["50%"], "baselines": ["random"], "signals": ["visits", "since-call"]}
    recipe = make(random_episodes=12, random_rate=0.4, test_episodes=6, **terms)
    directory, said = tmp_path_factory.mktemp("learned") / "run", []
    rows = switch_stage(recipe, directory, said.append)
    return SimpleNamespace(recipe=recipe, layout=RunLayout(directory), rows=rows, said=said)


def test_every_switch_learns_from_episodes_that_are_played_once(ray_session, learned):
    played = lines(learned.layout.switch_training("random"))
    first = seed_block(0, SWITCH_RANDOM)
    assert sorted(row["seed"] for row in played) == list(range(first, first + 12))
    assert {row["policy"] for row in played} == {"random calls"}
    steps, calls = (sum(row[name] for row in played) for name in ("steps", "calls"))
    told = f"  12 episodes of random calls, {steps:,} steps, {calls / steps:.0%} of them calls"
    assert [line for line in learned.said if "random calls," in line] == [told]
    assert 0.2 < calls / steps < 0.6
    assert [r["name"] for r in learned.rows[2:4]] == ["londi(c=0.05)", next(r for r in names(learned) if "-b(" in r)]
    assert not any("chosen_success" in row for row in learned.rows), "no evaluation chose among policies"
    assert len(learned.layout.switch_checkpoints) == 4


def names(learned):
    return [row["name"] for row in learned.rows]


def test_what_is_learned_from_is_what_a_switch_sees_at_play(ray_session, learned):
    """By the game itself, in which the same calls are made again."""
    table = parquet.read_table(learned.layout.switch_logs).to_pydict()
    settings, first = learned.recipe.switch, seed_block(0, SWITCH_RANDOM)
    seen.clear()
    rows = evaluate_policy(
        Watched(0.4, learned.recipe.seed),
        agents(),
        [env_spec(learned.recipe, level, settings.max_steps, "train") for level in settings.levels],
        range(first, first + 12),
        encoder=make_encoder(settings.encoder, settings.features),
        signals=settings.signals,
        record=True,
    )
    told = [episode for _, episode in sorted(seen.items(), key=lambda item: int(item[0].rsplit("/")[-1]))]
    assert np.array_equal(np.array(table["obs"], np.float32), np.concatenate(told))
    steps = [step for row in rows for step in row["episode"]["steps"]]
    assert table["actions"] == [int(step["actor"] == "deepthink") for step in steps]
    assert table["rewards"] == pytest.approx([step["reward"] for step in steps])
    ends = np.cumsum([row["steps"] for row in rows]) - 1
    assert np.flatnonzero(table["terminateds"]).tolist() == ends.tolist()


def test_a_second_start_plays_and_learns_what_is_missing(ray_session, learned):
    layout, gone = learned.layout, learned.layout.switch_checkpoint("cost0.05", 3)
    weights = (gone / "model.safetensors").read_bytes()
    kept = layout.switch_training("random").read_bytes()
    shutil.rmtree(gone)
    said = []
    switch_stage(learned.recipe, layout.root, said.append)
    assert (gone / "model.safetensors").read_bytes() == weights
    assert layout.switch_training("random").read_bytes() == kept
    assert sum("about" in line for line in said) == 1, "one training"
    layout.switch_logs.unlink()
    layout.switch_training("random").write_bytes(kept[: len(kept) // 2])
    shutil.rmtree(gone)
    switch_stage(learned.recipe, layout.root, said.append)
    assert (gone / "model.safetensors").read_bytes() == weights, "the same, in whatever order they were played"


@pytest.mark.slow
def test_workers_learn_what_this_process_does(ray_session, learned, make, tmp_path):
    terms = {"seeds": [0, 3], "baselines": [], "signals": ["visits", "since-call"]}
    recipe = make(2, random_episodes=12, random_rate=0.4, test_episodes=6, **terms)
    switch_stage(recipe, tmp_path, lambda line: None)
    for seed in (0, 3):
        own, other = (layout.switch_checkpoint("cost0.05", seed) for layout in (RunLayout(tmp_path), learned.layout))
        assert (own / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_lost_episode_teaches_nothing(make, tmp_path, monkeypatch):
    def rows(*lost):
        step = {"observation": "You see nothing", "action": "go", "reward": 0.0, "actor": "quick"}
        for seed in range(4):
            about = {"level": "x", "seed": seed, "limit": 5, "return": 0.0, "success": False, "calls": 0, "steps": 1}
            told = {"lost": True, "error": "gone"} if seed in lost else {"lost": False}
            yield {**about, **told, "episode": {"instruction": "drop", "steps": [step] * (1 + seed)}}

    class File:
        lost: ClassVar[list[int]] = []

        def __init__(self, *args, **options):
            pass

        def play(self, specs):
            return list(rows(*self.lost))

    monkeypatch.setattr(random_calls, "EpisodeFile", File)
    context = StageContext(make(random_episodes=4), tmp_path, lambda line: None)
    File.lost = [2]
    random_calls.play_random_calls(context)
    table = parquet.read_table(context.layout.switch_logs).to_pydict()
    assert np.diff([-1, *np.flatnonzero(table["terminateds"])]).tolist() == [1, 2, 4]
    context.layout.switch_logs.unlink()
    File.lost = [0, 1, 2, 3]
    with pytest.raises(AtlasError, match="no episode is left"):
        random_calls.play_random_calls(context)
    assert not context.layout.switch_logs.exists()


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"algorithm": "sac"}, "algorithm"),
        ({"averages": [1.5]}, "averages"),
        ({"signals": ["margin"]}, "signals"),
        ({"signals": ["verifier"]}, "signals"),
        ({"encoder": "hidden"}, "encoder"),
        ({"costs": ["measured"]}, "costs"),
        ({"budgets": [{"tokens": 100}]}, "budgets"),
        ({"boundary_episodes": 5}, "boundary_episodes"),
        ({"playoff_episodes": 5}, "playoff_episodes"),
        ({"logs": "x", "max_steps": 5}, "random_episodes"),
        ({"costs": [], "baselines": ["classifier"], "rates": [0.2]}, "random_episodes"),
    ],
)
def test_what_random_calls_cannot_teach_is_refused_by_its_field(table, field):
    terms = {"levels": ["GoToLocal"], "costs": [0.1], "random_episodes": 4}
    with pytest.raises(ValueError, match=f"{field}: "):
        Recipe.model_validate({"name": "x", "switch": {**terms, **table}})


def test_a_sweep_refuses_them_and_the_summary_tells_of_them():
    switch = {"levels": ["GoToLocal"], "costs": [0.1], "random_episodes": 4000, "signals": ["classifier"]}
    sweep = {"space": {"switch.learning_rate": {"choice": [1e-3, 1e-4]}}, "metric": "objective"}
    with pytest.raises(ValueError, match=r"switch\.random_episodes: a sweep learns at play"):
        Recipe.model_validate({"name": "x", "switch": switch, "sweep": sweep})
    recipe = Recipe.model_validate({"name": "x", "switch": switch})
    told = "1 switch learned from 4,000 episodes of random calls between tiny-quick and tiny-deepthink on GoToLocal."
    assert summary(SimpleNamespace(recipe=recipe, results=None, layout=RunLayout("nowhere"))).endswith(told)
