"""Spaces hold any text, and every family plays in gymnasium's vector environments, with processes and without."""

import copy
import itertools
import multiprocessing
import pickle
import sys

import gymnasium as gym
import numpy as np
import pytest
from agentgym_server import quick, serving  # noqa: F401
from gymnasium.utils.env_checker import check_env
from gymnasium.vector.utils import batch_space, shared_memory

from atlas_ray import envs
from atlas_ray.cli import main
from atlas_ray.envs import conformance
from atlas_ray.envs.core import Listing

TEXTS = ["", "a", "Tür öffnen, ja?", "打开门", "🚪🏽‍♀️", "a\x00b\n", "\ud800 alone", "x" * 100, "\U0010ffff"]
MODES = ("async", "sync")

FOREIGN = """
import gymnasium as gym
from atlas_ray import envs

class Türen(envs.TextEnv):
    def variations(self, task, split):
        return range(4)

    def begin(self, variation):
        return "öffne die Tür 🚪", f"部屋 {variation}: grüne Tür 🟩"

    def admissible(self):
        return ["öffne", "等待", "🚪"]

    def do(self, action):
        won = action == "öffne"
        return envs.Turn("Geöffnet — 開いた 🎉" if won else f"nichts: {action}", float(won), won, won)

    def expert(self, cpu_seconds=2.0):
        return envs.GoldPath(["等待", "öffne"], self)

gym.register("Fremd/Türen-v0", entry_point="fremd:Türen", kwargs={"task": "Türen-v0"})
"""


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_in_a_space_and_passes_through_gymnasiums_functions(text):
    space = envs.TextSpace(100)
    assert text in space
    assert gym.spaces.unflatten(space, gym.spaces.flatten(space, text)) == text
    memory = shared_memory.create_shared_memory(space, 3, multiprocessing)
    seen = shared_memory.read_from_shared_memory(space, memory, 3)
    for value in ("before, and longer than what comes next", text):
        shared_memory.write_to_shared_memory(space, 1, value, memory)
        assert copy.deepcopy(seen) == ("", value, ""), "what is seen is what lies there now"
    assert (len(seen), seen[1], tuple(seen[0:2])) == (3, text, ("", text))


def test_what_is_no_text_or_too_long_is_not_in_a_space():
    space = envs.TextSpace(5)
    assert [x in space for x in ("five.", "sixsix", b"a", 3, None, ["a"])] == [True, *[False] * 5]
    memory = shared_memory.create_shared_memory(space, 1, multiprocessing)
    with pytest.raises(ValueError, match=r"has 6 characters, its space holds 5: .*envs\.TextSpace\(6\)"):
        shared_memory.write_to_shared_memory(space, 0, "sixsix", memory)


def test_spaces_are_compared_shown_pickled_and_sampled():
    space = envs.TextSpace(40)
    assert space == pickle.loads(pickle.dumps(space)) == copy.deepcopy(space)
    assert space != envs.TextSpace(41)
    assert space != gym.spaces.Text(40)
    assert repr(space) == "TextSpace(40)"
    assert gym.spaces.utils.is_space_dtype_shape_equiv(space, envs.TextSpace(40))
    assert not gym.spaces.utils.is_space_dtype_shape_equiv(space, envs.TextSpace(41))
    assert len(space.character_set) == sys.maxunicode + 1
    assert "ß" in space.character_set
    space.seed(1)
    drawn = [space.sample() for _ in range(50)]
    assert all(x in space for x in drawn)
    assert len({len(x) for x in drawn}) > 10
    assert batch_space(space, 2).sample()


def play(name, mode, actions, **settings):
    """Reset two environments and take the actions; everything seen."""
    vector = gym.make_vec(name, num_envs=2, vectorization_mode=mode, **settings)
    try:
        seen, info = vector.reset(seed=0)
        found = [seen]
        for action in actions:
            seen, rewards, ended, cut, info = vector.step((action, action))
            found.append((seen, *(x.tolist() for x in (rewards, ended, cut)), list(info["goal"])))
        return found, [listed() for listed in info["admissible"]], vector.call("admissible")
    finally:
        vector.close()


@pytest.mark.parametrize("mode", MODES)
def test_babyai_in_vector_environments_shows_what_it_shows_alone(mode):
    found, listed, called = play(
        "atlas_ray.envs:BabyAIText/GoToLocal-v0", mode, ["turn left", "drück 日本 🎈", "go forward"]
    )
    alone = []
    for seed in (0, 1):
        env = envs.make("GoToLocal")
        first = env.reset(seed=seed)[0]
        alone.append([first, *(env.step(a)[0] for a in ("turn left", "drück 日本 🎈", "go forward"))])
    assert [found[0], *(step[0] for step in found[1:])] == list(zip(*alone, strict=True))
    assert listed == list(called) == [env.admissible()] * 2


@pytest.mark.parametrize("mode", MODES)
def test_agentgyms_babyai_in_vector_environments(mode):
    found, listed, called = play("atlas_ray.envs:AgentGymBabyAI/babyai-v0", mode, ["turn left"])
    assert all(found[0])
    assert listed == list(called)


@pytest.mark.parametrize("mode", MODES)
def test_a_server_in_vector_environments(serve, mode):
    server = serve("textcraft")
    vector = gym.make_vec("atlas_ray.envs:AgentGym/textcraft-v0", num_envs=2, vectorization_mode=mode, url=server.url)
    seen, _ = vector.reset(seed=3)
    assert [text[-2:] for text in seen] == ["#3", "#4"]
    seen, _, _, _, info = vector.step(("right", "wait"))
    assert list(seen) == ["1 right", "0 right"]
    assert vector.call("admissible") == ([], [])
    if mode == "async":
        with pytest.raises(RuntimeError, match=r'vector_env\.call\("admissible"\)'):
            info["admissible"][0]()
    vector.close()


@pytest.mark.java
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *itertools.product(["TextWorldExpress/coin-v0"], MODES),
        ("ScienceWorld/boil-v0", "sync"),
        pytest.param("ScienceWorld/boil-v0", "async", marks=pytest.mark.slow),  # two more JVMs
        pytest.param("AgentGymSciWorld/sciworld-v0", "sync", marks=pytest.mark.slow),  # of the simulator before
    ],
)
def test_the_java_families_in_vector_environments(jvms, name, mode):
    vector = gym.make_vec(f"atlas_ray.envs:{name}", num_envs=2, vectorization_mode=mode)
    seen, info = vector.reset(seed=1)
    env = envs.make(name)
    assert seen[0] == env.reset(seed=1)[0]
    for action in ("look around", "drück 日本 🎈"):
        seen, _, _, _, info = vector.step((action, action))
        assert seen[0] == env.step(action)[0]
    assert vector.call("admissible")[0] == env.admissible()
    assert info["goal"][0] == env.goal
    vector.close()
    env.close()


@pytest.mark.slow  # makes games
@pytest.mark.parametrize("mode", MODES)
def test_textworld_in_vector_environments(cache, mode):
    pytest.importorskip("textworld")
    name = "TextWorld/treasure-hunter-5-v0"
    vector = gym.make_vec(f"atlas_ray.envs:{name}", num_envs=2, vectorization_mode=mode, cache=str(cache))
    seen, _ = vector.reset(seed=0)
    env = envs.make(name, cache=str(cache))
    assert seen[0] == env.reset(seed=0)[0]
    for action in ("look", "drück 日本 🎈"):
        seen, _, _, _, _ = vector.step((action, action))
        assert seen[0] == env.step(action)[0]
    assert sorted(vector.call("admissible")[0]) == sorted(env.admissible())
    vector.close()


@pytest.fixture
def fremd(tmp_path, monkeypatch):
    (tmp_path / "fremd.py").write_text(FOREIGN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "fremd:Fremd/Türen-v0"
    sys.modules.pop("fremd", None)
    gym.registry.pop("Fremd/Türen-v0", None)


@pytest.mark.parametrize("mode", MODES)
def test_an_environment_of_ones_own_in_foreign_scripts(fremd, mode):
    found, listed, _ = play(fremd, mode, ["等待", "öffne"])
    assert found[0] == ("部屋 0: grüne Tür 🟩", "部屋 1: grüne Tür 🟩")
    assert found[1][0] == ("nichts: 等待",) * 2
    assert found[2] == (("Geöffnet — 開いた 🎉",) * 2, [1.0] * 2, [True] * 2, [False] * 2, ["öffne die Tür 🚪"] * 2)
    assert listed == [["öffne", "等待", "🚪"]] * 2


def test_doctor_finds_nothing_wrong_with_foreign_scripts(fremd, capsys):
    assert main(["doctor", "--env", fremd]) == 0
    assert capsys.readouterr().out.count("  ok  ") == len(conformance.CHECKS)


def test_doctor_finds_a_space_that_does_not_hold_what_the_environment_says(fremd, capsys, monkeypatch):
    made = envs.environment_class(fremd)
    monkeypatch.setattr(made, "observation_space", property(lambda self: gym.spaces.Text(1000), lambda *_: None), False)
    assert main(["doctor", "--env", fremd]) == 1
    assert "is not in its observation_space" in capsys.readouterr().out


def test_gymnasiums_own_check_has_nothing_to_say(recwarn):
    check_env(envs.make("GoToLocal"), skip_render_check=True)
    assert [str(w.message) for w in recwarn] == []


def test_a_listing_is_the_list_of_now_here_and_of_its_moment_elsewhere():
    env = envs.make("AgentGymBabyAI/babyai")
    _, info = env.reset(seed=0)
    listed = info["admissible"]
    assert listed == Listing(env)
    sent = pickle.loads(pickle.dumps(listed))
    before = env.admissible()
    env.step(before[0])
    assert (listed(), sent()) == (env.admissible(), before)
    assert np.array([listed], object)[0] is listed


def test_an_environment_that_says_endless_has_unbounded_episodes_for_one_release():
    with pytest.warns(DeprecationWarning, match="unbounded_episodes"):

        class Old(envs.TextEnv):
            endless = True

    assert Old.unbounded_episodes
    assert not envs.TextEnv.unbounded_episodes
