"""Real ALFWorld games, from the folder that ``ATLAS_RAY_ALFWORLD_GAMES`` names; it holds ``json_2.1.1``."""

import importlib.util
import json
import os
import re

import gymnasium as gym
import pytest

from atlas_ray.agents.rollout import EpisodeStarter
from atlas_ray.envs import conformance
from atlas_ray.envs.alfworld import FOLDERS, TYPES, ALFWorld, game_of
from atlas_ray.recipe.loading import Recipe
from atlas_ray.selection.replays import replay_all, replay_specs
from atlas_ray.trajectory import import_agenttraj

GAMES = os.environ.get("ATLAS_RAY_ALFWORLD_GAMES", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not GAMES or not all(map(importlib.util.find_spec, ("textworld", "fast_downward"))),
        reason="needs textworld, fast_downward and ATLAS_RAY_ALFWORLD_GAMES",
    ),
]


@pytest.fixture(autouse=True)
def there(monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", GAMES)


def other_wording(action):
    words = action.split()
    if words[0] == "put":
        return " ".join(["move", *action[4:].replace(" in/on ", " to ").split()])
    return action.replace("move ", "put ").replace(" to ", " in/on ") if words[0] == "move" else action


def played(task, variation):
    """(environment at the end, what it showed before every action, its last info)."""
    env = ALFWorld(f"{task}-v0")
    shown, info = env.reset(options={"variation": variation})
    expert, over, seen = env.expert(), False, []
    while not over:
        seen.append(shown)
        shown, _, terminated, truncated, info = env.step(expert.act().action)
        over = terminated or truncated
    return env, seen, info


@pytest.mark.parametrize("task", TYPES)
def test_the_expert_wins_every_game_and_both_wordings_win_it(task):
    count = len(ALFWorld(f"{task}-v0").variations(task, None))
    assert count, "no game of this type is there"
    for variation in range(count):
        env, seen, info = played(task, variation)
        assert info["success"], env._all_files()[variation]
        assert "Nothing happens." not in seen
        again = ALFWorld(f"{task}-v0")
        again.reset(options={"variation": variation})
        for action in map(other_wording, env.history):
            *_, info = again.step(action)
        assert info["success"], env._all_files()[variation]
        env.close()
        again.close()


def test_conformance():
    failed = [c for c in conformance.run("ALFWorld/all") if c.ok is False]
    assert failed == []


def test_trajectories_of_others_replay_where_their_game_is_there(tmp_path):
    records, wanted = [], []
    for task in TYPES:
        env, seen, _ = played(task, 0)
        file = env._all_files()[0]
        turns = [{"from": "human", "value": "Interact with a household."}, {"from": "gpt", "value": "OK"}]
        for number, (text, action) in enumerate(zip(seen, env.history, strict=True)):
            # as ReAct's players word them: the task behind the room, and nobody arrives
            text = re.sub(r"^You arrive at [\w ]+\. ", "", text) if number else f"{text}\n\nYour task is to: {env.goal}"
            turns += [
                {"from": "human", "value": text},
                {"from": "gpt", "value": f"Thought: x\nAction: {other_wording(action)}"},
            ]
        records.append({"id": len(records), "game_file": f"json_2.1.1/train/{file.parts[-3]}/{file.parts[-2]}"})
        records[-1]["conversations"] = turns
        wanted.append((f"ALFWorld/{task}-v0", game_of(file.as_posix())[1]))
        env.close()
    gone = "look_at_obj_in_light-CD-None-DeskLamp-1/trial_T20190101_000000_000000"
    records.append({"id": 99, "game_file": gone, "conversations": records[0]["conversations"]})
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records))
    items = import_agenttraj(path, success=True)
    assert [(t.env, t.seed) for t in items[:-1]] == wanted
    recipe = Recipe.model_validate({"name": "x", "collect": {"file": str(path)}})
    specs, problems = replay_specs(recipe, items)
    found, left_out = replay_all(items, specs, EpisodeStarter().begin)
    assert not problems and list(found) == [t.id for t in items[:-1]]
    assert all(replay.success for replay in found.values())
    assert "is not under" in left_out["99"]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_games_in_vector_environments_show_what_they_show_alone(mode):
    name, pairs = "atlas_ray.envs:ALFWorld/all-v0", []
    alone = [gym.make(name), gym.make(name)]
    vector = gym.make_vec(name, num_envs=2, vectorization_mode=mode)
    try:
        pairs.append((vector.reset(seed=4)[0], [env.reset(seed=4 + n)[0] for n, env in enumerate(alone)]))
        experts = [env.unwrapped.expert() for env in alone]
        for own in (False, True, True):
            actions = [expert.act().action if own else "drück 日本 🎈" for expert in experts]
            turns = [env.step(action) for env, action in zip(alone, actions, strict=True)]
            seen, rewards, ended, cut, info = vector.step(tuple(actions))
            pairs.append((seen, [turn[0] for turn in turns]))
            assert [rewards.tolist(), ended.tolist(), cut.tolist()] == [list(x) for x in zip(*turns, strict=True)][1:4]
        assert pairs == [(tuple(texts), texts) for _, texts in pairs]
        assert list(info["goal"]) == [env.unwrapped.goal for env in alone]
        assert list(vector.call("admissible")) == [env.unwrapped.admissible() for env in alone]
    finally:
        vector.close()
    space = alone[0].observation_space
    for text in pairs[0][1]:
        assert gym.spaces.unflatten(space, gym.spaces.flatten(space, text)) == text


def test_all_splits_that_are_there_are_played():
    assert {s: bool(len(ALFWorld().variations("all", s))) for s in FOLDERS}["train"]
