"""ALFWorld as an environment: tiny games made here are played for real.

The real games have to be downloaded and are not there for these tests.
"""

import importlib.util
import json
import os
import random
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alfworld_games import problem, put
from gymnasium.utils.env_checker import check_env
from played import play

from atlas_ray.envs import alfworld as module
from atlas_ray.envs.alfworld import FOLDERS, TYPES, ALFWorld
from atlas_ray.envs.core import ExpertGaveUpError

ROOT = Path(__file__).parents[2]

PACKAGES = ("textworld", "fast_downward", "alfworld")

playing = pytest.mark.skipif(not all(map(importlib.util.find_spec, PACKAGES)), reason=f"needs {', '.join(PACKAGES)}")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A game of each type for each split, two more for training, with ALFWorld's own domain, grammar and goals."""
    root = tmp_path_factory.mktemp("alfworld")
    package = Path(importlib.util.find_spec("alfworld").origin).parent
    domain, grammar = ((package / "data" / f"alfred.{e}").read_text() for e in ("pddl", "twl2"))
    goals = runpy.run_path(str(package / "gen" / "goal_library.py"))["gdict"]
    for turn, split in enumerate(("train", "dev", "test", "train", "train")):
        for task in TYPES:
            words = {"obj": "Apple", "recep": "Fridge", "toggle": "DeskLamp", "mrecep": ""}
            goal = goals[task]["pddl"].replace("#", "-").format(**words)
            said = goals[task]["templates"][0].format(**{k: v.lower() for k, v in words.items()})
            texts = {"pddl_domain": domain, "grammar": grammar.replace("UNKNOWN GOAL", said)}
            texts["pddl_problem"] = problem(goal, turn)
            put(root, split, f"{task}-Apple-None-Fridge-{turn}", **texts)
    return root


@pytest.fixture
def there(data, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(data))
    return data


@playing
def test_gymnasiums_own_check_has_nothing_to_say(there, recwarn):
    env = ALFWorld("pick_and_place_simple-v0")
    check_env(env, skip_render_check=True)
    assert [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)] == []


@playing
def test_what_a_player_reads(there):
    env = ALFWorld("pick_heat_then_place_in_recep-v0", split="train")
    observation, info = env.reset(seed=0)
    assert observation.startswith("You are in the middle of a room. Looking quickly around you, you see a cabinet 2, ")
    assert info["goal"] == "put a hot apple in fridge."
    assert (info["score"], info["success"], "progress" in info) == (0.0, False, False)
    assert env.step("look")[0] == "You are in the middle of a room. Looking quickly around you, you see nothing."
    assert env.step(" GO TO  sinkbasin 1 ")[0] == "You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing."
    assert env.step("go to cabinet 2")[0] == "You arrive at cabinet 2. The cabinet 2 is closed."
    assert env.step("open cabinet 2")[0] == "You open the cabinet 2. The cabinet 2 is open. In it, you see a apple 2."
    assert {"take apple 2 from cabinet 2", "close cabinet 2", "inventory", "help"} < set(info["admissible"]())


@playing
@pytest.mark.parametrize("task", TYPES)
@pytest.mark.parametrize("planner", [False, True])
def test_rules_and_planner_win_every_type_in_every_split(there, task, planner, monkeypatch):
    if planner:
        monkeypatch.setattr("atlas_ray.envs.alfworld_expert.next_command", lambda game, goal: None)
    env = ALFWorld(f"{task}-v0")
    goals = set()
    for variation in range(5):
        _, info = env.reset(options={"variation": variation})
        goals.add(info["goal"])
        expert, terminated = env.expert(), False
        while not terminated:
            before = env.score
            _, reward, terminated, truncated, info = env.step(expert.act().action)
            assert not truncated
            assert (before, reward) == (0.0, float(terminated))
        assert (info["success"], info["score"]) == (True, 1.0)
        assert play(env, ["look"]) == ["over"]
    assert len(goals) == 1


@playing
def test_the_walkthrough_goes_first_and_the_planner_mends_it(there, tmp_path, monkeypatch):
    game = json.loads(ALFWorld()._files("pick_and_place_simple", "train")[0].read_text())
    walk = ["look", "go to countertop 1", "take apple 1 from countertop 1", "go to fridge 1", "open fridge 1"]
    for trial, ending in enumerate((["move apple 1 to fridge 1"], ["put apple 1 in/on fridge 1"], [])):
        game["walkthrough"] = walk + ending
        put(tmp_path, "train", "pick_and_place_simple-Apple-None-Fridge-1", f"trial_{trial}", **game)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    env = ALFWorld("pick_and_place_simple-v0")
    for variation in range(3):
        env.reset(options={"variation": variation})
        expert, terminated = env.expert(), False
        while not terminated:
            *_, terminated, _, info = env.step(expert.act().action)
        assert env.history == [*walk, "move apple 1 to fridge 1"]
        assert info["success"]


@playing
def test_an_expert_is_asked_at_the_start_and_may_give_up(there, tmp_path, monkeypatch):
    env = ALFWorld("pick_and_place_simple-v0")
    env.reset(seed=0)
    env.step("look")
    with pytest.raises(ExpertGaveUpError, match="right after reset"):
        env.expert()
    env.reset(seed=0)
    expert = env.expert()
    monkeypatch.setattr("atlas_ray.envs.alfworld_expert.next_command", lambda game, goal: None)
    monkeypatch.setattr(env._game, "plan", list)
    with pytest.raises(ExpertGaveUpError, match="no way"):
        expert.act()


@playing
@pytest.mark.parametrize("task", TYPES)
def test_text_and_commands_are_those_of_alfworlds_own_environment(there, task):
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs import PddlEnv

    rng = random.Random(0)
    env = ALFWorld(f"{task}-v0", max_steps=100)
    theirs = AlfredDemangler(PddlEnv(textworld.EnvInfos()))
    for variation in (0, 3):
        arguments = sys.argv
        observation, info = env.reset(options={"variation": variation})
        assert sys.argv is arguments
        theirs.load(str([p for split in FOLDERS for p in env._files(task, split)][variation]))
        state = theirs.reset()
        sys.argv = arguments
        intro = [observation, f"Your task is to: {info['goal']}"]
        assert state.feedback.split("\n\n") == ["-= Welcome to TextWorld, ALFRED! =-", *intro]
        for _ in range(15):
            assert info["admissible"]() == state.admissible_commands
            action = "dance" if rng.random() < 0.1 else rng.choice(state.admissible_commands)
            observation, _, terminated, _, info = env.step(action)
            state, _, done = theirs.step(action)
            assert (observation, terminated) == (state.feedback.strip(), done)
            if done:
                break


@playing
def test_bad_actions_change_nothing(there):
    env = ALFWorld()
    env.reset(seed=0)
    before = env.admissible()
    for action in ("", "  ", "fly to the 7th moon", "ö\t\x00\n", "x" * 20_000, None, 3, "go to", "open bed 1"):
        assert env.step(action)[:4] == ("Nothing happens.", 0.0, False, False)
    assert env.admissible() == before


@playing
def test_the_step_limit(there):
    env = ALFWorld(max_steps=2)
    env.reset(seed=0)
    assert [r[2:4] for r in play(env, ["look", "look"])] == [(False, False), (False, True)]
    env = ALFWorld()
    env.reset(seed=0)
    assert [r[3] for r in play(env, ["dance"] * 50)].index(True) == 49


@playing
def test_options_and_splits(there):
    env = ALFWorld("pick_and_place_simple-v0", split="test")
    env.reset(seed=7)
    assert env.variation == 4
    env.reset(seed=1, options={"split": "train"})
    assert env.variation == 1
    env.reset(options={"task": "look_at_obj_in_light", "split": None, "variation": 3})
    assert env.goal == "look at apple under the desklamp."
    for bad in ({"variation": 0}, {"split": "valid_seen"}, {"task": "juggle"}, {"level": 1}):
        with pytest.raises(ValueError, match="variation|split|task|level"):
            env.reset(options=bad)


@playing
def test_clones_go_their_own_ways(there):
    rng = random.Random(1)
    env = ALFWorld("pick_two_obj_and_place-v0", split="dev")
    env.reset(seed=0)
    assert not env.cheap_clone
    for _ in range(6):
        env.step(rng.choice(env.admissible()))
    clone = env.clone()
    assert clone.admissible() == env.admissible()
    rest = []
    for _ in range(10):
        rest.append(rng.choice(clone.admissible()))
        clone.step(rest[-1])
    twin = env.clone()
    assert play(twin, rest) == play(env, rest)


@playing
def test_planners_are_handed_on(there):
    idle = module._Planner._idle
    env, first = ALFWorld(), ""
    for _ in range(3):
        observation, _ = env.reset(seed=0)
        first = first or observation
        assert observation == first
        env.step("go to desk 1")
        before = len(idle)
        env.close()
        assert len(idle) == before + 1
        assert play(env, ["look"]) == ["over"]
    one, two = ALFWorld(), ALFWorld()
    one.reset(seed=0)
    two.reset(seed=1)
    assert one._game._planner.library is not two._game._planner.library


@playing
def test_threads_play_side_by_side(there):
    def one():
        env = ALFWorld("pick_and_place_simple-v0")
        observation, _ = env.reset(seed=0)
        said.append([observation, *play(env, ["go to desk 1", "examine desk 1", "help", "look"]), env.admissible()])

    said = []
    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 4
    assert all(s == said[0] for s in said)


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from atlas_ray.envs.alfworld import ALFWorld
env = ALFWorld("pick_clean_then_place_in_recep-v0")
said = [env.reset(seed=2)[0]]
expert, over = env.expert(), False
while not over:
    observation, _, over, _, info = env.step(expert.act().action)
    said += [observation, info["admissible"]()]
print(json.dumps(said))
"""


@playing
def test_the_same_episode_in_other_processes(there):
    command, said = [sys.executable, "-c", SCRIPT, str(ROOT)], []
    for hash_seed in ("1", "2"):
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, check=True)
        said.append(done.stdout)
    assert said[0] == said[1]
    assert len(json.loads(said[0])) > 5
