"""BabyAI-Text as an environment: names, seeds, steps, limits, clones and ends."""

import sys
import threading

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from minigrid.envs.babyai.core import roomgrid_level

from atlas_ray import envs
from atlas_ray.envs.babyai_text import ACTIONS, UNKNOWN_ACTION, levels


def test_the_96_levels_are_registered_and_start():
    ours = [i for i in envs.ids() if i.startswith("BabyAIText/")]
    assert len(ours) == len(levels()) == 96
    assert list(levels().values()) == [name for name in gym.registry if name.startswith("BabyAI-")]
    assert envs.ids() == sorted(envs.ids())
    for name in ours:
        observation, info = gym.make(f"atlas_ray.envs:{name}").reset(seed=0)
        assert observation
        assert info["goal"]


@pytest.mark.parametrize("level", ["GoToLocal", "BossLevel", "PutNextLocalS5N3", "KeyCorridorS3R1", "Unlock"])
def test_gymnasiums_own_check_has_nothing_to_say(level, recwarn):
    check_env(gym.make(f"atlas_ray.envs:BabyAIText/{level}-v0").unwrapped)
    assert [str(w.message) for w in recwarn] == []


def test_names_as_people_write_them():
    for name in ("GoToLocal", "GoToLocal-v0", "BabyAIText/GoToLocal-v0", "atlas_ray.envs:BabyAIText/GoToLocal-v0"):
        assert envs.full_id(name) == "BabyAIText/GoToLocal-v0"
    with pytest.raises(envs.UnknownEnvironmentError, match=r"GoToLocl.*did you mean.*GoToLocal"):
        envs.full_id("GoToLocl")
    with pytest.raises(envs.UnknownEnvironmentError):
        envs.make("")


def walk(env, actions):
    """What each action led to, without ``info``; the end of the episode refuses the rest."""
    results = []
    for action in actions:
        try:
            results.append(env.step(action)[:4])
        except gym.error.ResetNeeded:
            results.append("over")
    return results


WALK = [
    "turn left",
    "go forward",
    "go forward",
    "turn right",
    "toggle",
    "go forward",
    "pick up",
    "drop",
    "no such thing",
]


def test_a_seed_fixes_the_episode_and_seeds_differ():
    starts = []
    for seed in range(12):
        a, b = envs.make("GoToLocal"), envs.make("GoToLocal")
        (text_a, info_a), (text_b, info_b) = a.reset(seed=seed), b.reset(seed=seed)
        assert (text_a, info_a["goal"]) == (text_b, info_b["goal"])
        assert walk(a, WALK) == walk(b, WALK)
        assert a.reset(seed=seed)[0] == text_a, "what was played before does not matter"
        starts.append(text_a)
    assert len(set(starts)) > 8


def test_reset_without_a_seed_goes_on_with_the_own_generator():
    a, b, c = (envs.make("GoToLocal") for _ in range(3))
    for env, seed in ((a, 5), (b, 5), (c, 6)):
        env.reset(seed=seed)
    np.random.seed(1)
    walk(a, WALK)
    texts_a, texts_b, texts_c = ([env.reset()[0] for _ in range(5)] for env in (a, b, c))
    assert texts_a == texts_b != texts_c
    assert len(set(texts_a)) == 5


def test_the_own_generator_is_the_one_gymnasium_shows():
    texts = []
    for seed in (1, 2):
        env = envs.make("GoToLocal")
        env.reset(seed=seed)
        env.np_random = np.random.default_rng(0)
        texts.append([env.reset()[0] for _ in range(3)])
    assert texts[0] == texts[1]


def test_unknown_reset_options_are_refused_and_change_nothing():
    env, twin = envs.make("GoToLocal"), envs.make("GoToLocal")
    env.reset(seed=1)
    twin.reset(seed=1)
    with pytest.raises(ValueError, match="level"):
        env.reset(seed=9, options={"level": 3})
    assert walk(env, WALK) == walk(twin, WALK)
    assert env.reset(options={})[0] == twin.reset()[0]


@pytest.mark.parametrize("action", ["dance", "", "go  forward", "turn left, go forward", None, 2, "GO FORWARDS"])
def test_a_bad_action_costs_a_step_and_moves_nothing(action):
    env = envs.make("GoToLocal", max_steps=4)
    before, _ = env.reset(seed=0)
    text, reward, terminated, truncated, info = env.step(action)
    assert (text, reward, terminated, truncated, info["score"]) == (UNKNOWN_ACTION, 0.0, False, False, 0.0)
    assert text in env.observation_space
    env.step("turn left")
    text, _, _, truncated, _ = env.step("turn right")
    assert text == before
    assert not truncated
    text, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)
    with pytest.raises(gym.error.ResetNeeded):
        env.step("turn left")
    assert env.reset(seed=0)[0] == before


def test_case_and_spaces_around_an_action_do_not_matter():
    a, b = envs.make("GoToLocal"), envs.make("GoToLocal")
    a.reset(seed=2)
    b.reset(seed=2)
    assert a.step(" Go Forward\n")[:4] == b.step("go forward")[:4]


def test_a_step_before_the_first_reset_is_refused():
    with pytest.raises(gym.error.ResetNeeded):
        envs.make("GoToLocal").step("turn left")


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_the_own_step_limit_is_kept(limit):
    env = gym.make("atlas_ray.envs:BabyAIText/GoToLocal-v0", max_steps=limit)
    for _ in range(2):
        env.reset(seed=0)
        flags = [env.step("turn left")[2:4] for _ in range(limit)]
        assert flags == [(False, False)] * (limit - 1) + [(False, True)]


def test_without_an_own_limit_the_levels_holds():
    env = envs.make("GoToLocal")
    env.reset(seed=0)
    flags = [env.step("turn left")[3] for _ in range(env.grid_env.max_steps)]
    assert flags.index(True) == len(flags) - 1 == 63


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(ValueError, match="max_steps"):
        envs.make("GoToLocal", max_steps=limit)


@pytest.mark.parametrize("level", ["GoToLocal", "PutNextLocal", "UnlockPickup", "SynthSeq", "KeyInBox"])
def test_a_clone_is_independent_and_goes_on_alike(level):
    env, twin = envs.make(level), envs.make(level)
    rng = np.random.default_rng(0)
    for seed in range(3):
        env.reset(seed=seed)
        twin.reset(seed=seed)
        first = [ACTIONS[i] for i in rng.integers(0, 6, 8)]
        walk(env, first)
        walk(twin, first)
        clone = env.clone()
        rest = [ACTIONS[i] for i in rng.integers(0, 6, 20)]
        alone = clone.clone()
        with_clone = walk(clone, rest)
        walk(clone, ["turn left"])
        assert walk(env, rest) == with_clone == walk(alone, rest) == walk(twin, rest)
        assert clone.reset()[0] == env.reset()[0], "the generator is cloned too"


def test_info_and_reward_of_success_and_failure():
    succeeded = 0
    for seed in range(4):
        env = envs.make("GoToLocal")
        _, info = env.reset(seed=seed)
        assert set(info) == {"goal", "score", "success", "admissible"}
        assert (info["score"], info["success"], info["admissible"]()) == (0.0, False, list(ACTIONS))
        assert info["goal"].startswith("go to the ")
        expert = envs.BabyAIExpert(env)
        for count in range(1, 65):
            _, reward, terminated, truncated, info = env.step(expert.act().action)
            assert info["success"] == (reward > 0) == terminated
            assert info["score"] == float(info["success"])
            if terminated or truncated:
                break
        assert reward == pytest.approx(1 - 0.9 * count / 64, abs=1e-12)
        succeeded += info["success"]
    assert succeeded == 4


def test_doing_the_wrong_thing_ends_without_success():
    """Opening the second door first fails a sequence: terminated, yet reward 0."""
    ends = []
    for seed in range(30):
        env = envs.make("OpenDoorsOrderN4Debug")
        env.reset(seed=seed)
        expert = envs.BabyAIExpert(env, cpu_seconds=1)
        terminated = truncated = False
        try:
            while not (terminated or truncated):
                _, reward, terminated, truncated, info = env.step(expert.act().action)
        except envs.ExpertGaveUpError:
            continue
        assert info["success"] == (reward > 0)
        ends.append((terminated, info["success"]))
    assert {(True, True), (True, False)} <= set(ends)


def test_nothing_is_printed_even_from_threads(capfd, monkeypatch):
    said = []
    with monkeypatch.context() as patch:
        patch.setitem(vars(roomgrid_level), "print", lambda *words: said.append(words))
        for seed in range(10):
            envs.make("BossLevel").reset(seed=seed)
    assert said, "minigrid must have had something to say about these seeds"

    stdout = sys.stdout
    threads = [
        threading.Thread(target=lambda: [envs.make("BossLevel").reset(seed=seed) for seed in range(10)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.stdout is stdout
    assert capfd.readouterr().out == ""
