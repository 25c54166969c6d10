"""Two agents in text episodes: who acts, what each of them has read, and the stage from training to table."""

import json

import numpy as np
import pytest

from atlas_ray.agents import Agent
from atlas_ray.engines import TransformersEngine
from atlas_ray.recipe import Recipe
from atlas_ray.rollout import EnvSpec
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.encoders import make_encoder
from atlas_ray.switching.environment import SwitchingVectorEnv
from atlas_ray.switching.evaluate import Always, Random, play_switching
from atlas_ray.switching.stage import switch_stage
from atlas_ray.switching.text import TextGame
from atlas_ray.tiny import build_model, build_tokenizer

LEVELS = ["GoToLocalS5N2", "GoToLocalS6N3"]
SHAPES = {"quick": (16, 1), "deepthink": (32, 2)}


def model(name):
    hidden, layers = SHAPES[name]
    return build_model(hidden=hidden, layers=layers, heads=2, intermediate=32, seed=len(name))


def agents(slots=4):
    return [Agent(TransformersEngine(model(n), slots, build_tokenizer()), "action") for n in SHAPES]


def specs(max_steps):
    return [EnvSpec(level, {"max_steps": max_steps}) for level in LEVELS]


def game(rows=4, max_steps=6):
    return TextGame(specs(max_steps), agents(rows), rows, make_encoder("hashing", 32))


def test_each_model_is_asked_once_a_step_and_for_its_rows_alone(monkeypatch):
    playing = game()
    env = SwitchingVectorEnv(playing, 0)
    asked = []
    for name, agent in zip(SHAPES, playing.agents, strict=True):
        act = agent.act
        monkeypatch.setattr(agent, "act", lambda s, o, e, n=name, act=act: asked.append((n, list(s))) or act(s, o, e))
    env.reset(seed=0)
    env.step(np.array([0, 1, 1, 0]))
    assert asked == [("quick", [0, 3]), ("deepthink", [1, 2])]


def test_both_agents_hold_the_true_history():
    playing = game(max_steps=8)
    env = SwitchingVectorEnv(playing, 0, cost=0.05)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(30):
        env.step(rng.integers(0, 2, 4))
        for row, episode in playing.episodes.items():
            for agent in playing.agents:
                expected = agent.renderer.prompt(episode.goal, episode.steps, episode.observation)
                assert agent.prompt(row) == expected
    assert any(sum(e.acted) for e in playing.episodes.values())


def test_episodes_take_levels_in_turn_and_end_at_the_limit():
    playing = game(max_steps=3)
    env = SwitchingVectorEnv(playing, 0)
    observations, _ = env.reset(seed=10)
    assert [e.spec.name for e in playing.episodes.values()] == [LEVELS[0], LEVELS[1], LEVELS[0], LEVELS[1]]
    assert observations[:, -1].tolist() == [0, 0, 0, 0]
    for _ in range(3):
        observations, _rewards, terminated, truncated, _info = env.step(np.zeros(4, int))
    ended = terminated | (observations[:, -1] < 0.5)
    assert ended.all(), "the step limit is an end for learning: the policy sees how near it is"
    assert not truncated.any()


def test_a_full_context_cuts_the_episode():
    small = [
        Agent(TransformersEngine(build_model(16, 1, 2, 32, seed=1, context=c), 1, build_tokenizer()), "action")
        for c in (2048, 170)
    ]
    env = SwitchingVectorEnv(TextGame(specs(40), small, 1, make_encoder("hashing", 32)), 0)
    env.reset(seed=0)
    for _ in range(40):
        _, _, terminated, truncated, _ = env.step(np.zeros(1, int))
        if terminated[0] or truncated[0]:
            break
    assert truncated[0]
    assert not terminated[0]


def test_playing_is_reproducible_and_counts_what_it_cost():
    def play(policy, slots, **more):
        return play_switching(policy, agents(slots), specs(6), range(100, 107), **more)

    mixed = play(Random(0.5), 4, budget=2, cost=0.1, record=True)
    assert mixed == play(Random(0.5), 4, budget=2, cost=0.1, record=True)
    assert [r["seed"] for r in mixed] == list(range(100, 107))
    for row in mixed:
        assert row["calls"] == sum(step["actor"] == "deepthink" for step in row["episode"]["steps"]) <= 2
        assert row["steps"] == len(row["episode"]["steps"]) <= 6
        assert row["objective"] == pytest.approx(row["return"] - 0.1 * row["calls"])
    assert sum(r["overrides"] for r in mixed) > 0
    assert sum(r["violations"] for r in mixed) == 0
    sizes = [sum(p.numel() for p in model(n).parameters()) for n in SHAPES]
    for row in play(Always(1), 2):
        assert row["tokens"][0] == 0
        assert row["calls"] == row["steps"]
        assert row["flops"] == 2 * sizes[1] * row["tokens"][1]


def test_a_call_after_steps_of_the_other_reads_all_that_was_missed():
    playing = game(rows=1, max_steps=20)
    playing.begin(0, 4)
    for _ in range(3):
        playing.advance({0: 0})
    assert playing.tokens(0)[1] == 0
    prompt = playing.agents[1].prompt(0)
    playing.advance({0: 1})
    assert playing.tokens(0)[1] == len(prompt), "an action of one token is scored without feeding it"


@pytest.fixture
def run(tmp_path):
    for name in SHAPES:
        model(name).save_pretrained(tmp_path / name)
        build_tokenizer().save_pretrained(tmp_path / name)
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "workers": 1,
            "style": "action",
            "switch": {
                "quick": str(tmp_path / "quick"),
                "deepthink": str(tmp_path / "deepthink"),
                "levels": LEVELS,
                "max_steps": 5,
                "costs": [0.05],
                "budgets": [2],
                "num_envs": 4,
                "steps": 120,
                "evaluate_every": 60,
                "evaluate_episodes": 6,
                "test_episodes": 20,
                "features": 32,
            },
        }
    )
    return recipe, tmp_path / "run"


def test_stage_trains_compares_and_goes_on(ray_session, run):
    recipe, directory = run
    said = []
    rows = switch_stage(recipe, directory, said.append)
    names = [r["name"] for r in rows]
    assert names[:4] == ["always-quick", "always-deepthink", "londi(c=0.05)", "londi-b(n=2)"]
    assert len(names) in (5, 6)
    assert all(n.startswith("random(p=") for n in names[4:])
    assert all(r["episodes"] == 20 and r["budget_violations"] == 0 for r in rows)
    assert rows[0]["deepthink_share"] == 0
    assert rows[1]["deepthink_share"] == 1
    assert rows[3]["deepthink_calls_per_episode"] <= 2
    assert all(r["ci95"][0] <= r["success"] <= r["ci95"][1] for r in rows)
    assert json.loads((directory / "switch" / "policies.json").read_text()) == rows
    replay = json.loads((directory / "switch" / "replay.json").read_text())
    assert replay["policy"] == "londi-b(n=2)"
    assert replay["steps"][0]["actor"] in ("quick", "deepthink")
    assert SwitchPolicy.load(directory / "checkpoints" / "switch-budget2")("drop\nYou see nothing", 0) == 0
    assert said

    episodes = directory / "switch" / "episodes.jsonl"
    kept = episodes.read_bytes()
    episodes.write_bytes(kept[: len(kept) // 2])
    again = switch_stage(recipe, directory, said.append)
    assert again == rows, "what a kill left is played again, and only that"
    assert len(episodes.read_text().splitlines()) == len(kept.splitlines())
