"""ScienceWorld through its simulator: exact, fast to step, and gold paths that succeed."""

import itertools

import gymnasium as gym
import pytest

from atlas_ray import envs, preflight
from atlas_ray.envs.science_world import (
    SIMPLIFICATIONS,
    SIMULATOR,
    VARIATIONS,
    ScienceWorld,
    canonical,
    simplified,
    split_of,
)
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe

MENDELIAN = [task for task in VARIATIONS if task.startswith("mendelian")]


@pytest.fixture(scope="module")
def boil():
    pytest.importorskip("scienceworld")
    env = ScienceWorld("boil-v0")
    env.reset(seed=0)
    yield env
    env.close()


def test_listed_things_are_sorted_within_their_block_and_nothing_else_moves():
    text = "In it, you see: \n\tb\n\ta. On the a is: z\nYou also see:\n\tA door\n\n"
    assert canonical(text) == "In it, you see:\n\ta. On the a is: z\n\tb\nYou also see:\n\tA door"
    assert canonical("\tb\n\ta") == canonical("\ta\n\tb")
    assert canonical("first\nsecond") == "first\nsecond"


def test_splits_are_disjoint_and_cover_every_variation():
    assert len(VARIATIONS) == 30
    assert sum(VARIATIONS.values()) == 7207
    for task, count in VARIATIONS.items():
        parts = [split_of(task, split) for split in envs.SPLITS]
        assert list(itertools.chain(*parts)) == list(range(count)) == list(split_of(task, None))
        assert all(parts)


def test_names_simplifications_and_the_missing_extra(monkeypatch):
    assert envs.full_id("ScienceWorld/boil") == "ScienceWorld/boil-v0"
    with pytest.raises(envs.UnknownEnvironmentError, match="did you mean boil"):
        envs.full_id("ScienceWorld/boill")
    monkeypatch.setenv("PATH", "")
    assert "Java" in (SIMULATOR.missing() or "") or "extra 'java'" in (SIMULATOR.missing() or "")
    with pytest.raises(envs.MissingExtraError, match=r"Java|atlas-ray\[java\]"):
        ScienceWorld("boil-v0")
    assert not [i for i in envs.ids() if i.startswith("ScienceWorld/")]
    assert "ScienceWorld" in envs.missing()


@pytest.mark.java
def test_a_simplification_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="simplifications: no 'hard'"):
        ScienceWorld("boil-v0", simplifications="easy,hard")


@pytest.mark.java
@pytest.mark.slow
def test_the_table_of_variations_and_splits_is_the_simulators(boil):
    simulator = boil._interface()
    assert simulator.strings("getTaskNames") == list(VARIATIONS)
    for task, count in VARIATIONS.items():
        assert simulator.call("getTaskMaxVariations", task) == count
        if task in MENDELIAN:
            continue
        simulator.call("load", task, 0, "", False)
        for split, method in zip(envs.SPLITS, ("Train", "Dev", "Test"), strict=True):
            assert list(simulator.call(f"getVariations{method}")) == list(split_of(task, split)), (task, split)


def replay(env, task, variation):
    """Play the gold path; the score at its end and the longest."""
    env.reset(options={"task": task, "variation": variation})
    expert = env.expert()
    while True:
        _, _, terminated, truncated, info = env.step(expert.act().action)
        if terminated or truncated:
            return info


@pytest.mark.java
@pytest.mark.parametrize("task", [t for t in VARIATIONS if t not in MENDELIAN][6::3])
def test_a_gold_path_reaches_100(boil, task):
    info = replay(boil, task, VARIATIONS[task] // 2)
    assert (info["raw_score"], info["score"], info["success"], info["progress"]) == (100, 1.0, True, 1.0)


@pytest.mark.java
@pytest.mark.slow
@pytest.mark.parametrize("task", VARIATIONS)
def test_gold_paths_of_three_variations_reach_100(boil, task):
    for variation in (0, VARIATIONS[task] // 2, VARIATIONS[task] - 1):
        assert replay(boil, task, variation)["raw_score"] == 100


@pytest.mark.java
@pytest.mark.parametrize(
    ("task", "variation"),
    [
        pytest.param("freeze", 15, marks=pytest.mark.slow),
        pytest.param("grow-fruit", 0, marks=pytest.mark.slow),
        ("chemistry-mix-paint-secondary-color", 35),
    ],
)
def test_episodes_that_differ_from_run_to_run_upstream_are_exact_here(boil, task, variation):
    """Upstream, temperatures and the order of lines depend on identity hashes, bees on what is played beside."""
    boil.reset(options={"task": task, "variation": variation})
    expert, actions = boil.expert(), []
    runs = [[], [], []]
    while True:
        actions.append(expert.act().action)
        turn = boil.step(actions[-1])
        runs[0].append(turn[:4])
        if turn[2] or turn[3]:
            break
    other, beside = ScienceWorld("boil-v0"), ScienceWorld("melt-v0")
    beside.reset(seed=3)
    for run, env in ((runs[1], other), (runs[2], boil)):
        env.reset(options={"task": task, "variation": variation})
        for action in actions:
            run.append(env.step(action)[:4])
            beside.step("wait1")
            if beside._done:
                beside.reset(seed=3)
    assert runs[0] == runs[1] == runs[2]
    other.close()
    beside.close()


@pytest.mark.java
def test_a_gold_path_depends_on_none_that_was_asked_for_before(boil):
    """The simulator keeps a search through the rooms for all; who finds one draws less, and takes the blue wire."""
    boil.reset(options={"task": "test-conductivity", "variation": 0})
    paths = [boil._gold() for _ in range(2)]
    assert paths[0] == paths[1]
    assert "connect battery anode to black wire terminal 1" in paths[0]


@pytest.mark.java
def test_a_wrong_focus_ends_the_task_with_0_and_minus_100_in_info(boil):
    boil.reset(seed=0)
    boil.step("open door to kitchen")
    total = sum(boil.step(a)[1] for a in ("go to kitchen", "look around"))
    _, reward, terminated, truncated, info = boil.step("focus on agent")
    assert (terminated, truncated, info["raw_score"], info["score"], info["success"]) == (True, False, -100, 0.0, False)
    assert total + reward == 0.0
    with pytest.raises(gym.error.ResetNeeded):
        boil.step("look around")


@pytest.mark.java
def test_rewards_sum_to_the_score_and_progress_never_falls(boil):
    boil.reset(seed=2)
    expert, total, progress = boil.expert(), 0.0, [0.0]
    while True:
        _, reward, terminated, truncated, info = boil.step(expert.act().action)
        total += reward
        progress.append(info["progress"])
        if terminated or truncated:
            break
    assert total == pytest.approx(info["score"]) == 1.0
    assert progress == sorted(progress)
    assert {round(3 * p) for p in progress} <= {0, 1, 2, 3}, "boil has three sub-goals in sequence"
    assert len(set(progress)) > 2


@pytest.mark.java
def test_nothing_is_listed_unasked(boil, monkeypatch):
    boil.reset(seed=0)
    calls = []
    simulator = boil._interface()
    call, strings = simulator.call, simulator.strings
    monkeypatch.setattr(simulator, "call", lambda m, *a, **k: calls.append(m) or call(m, *a, **k))
    monkeypatch.setattr(simulator, "strings", lambda m, **k: calls.append(m) or strings(m, **k))
    boil.step("look around")
    assert calls == ["step", "getScore", "getCompleted"]
    offered = boil.admissible()
    assert boil.admissible() == offered
    assert calls[4:] == ["getValidActionObjectCombinations"]
    assert "open door to kitchen" in offered
    assert offered == sorted(set(offered))


@pytest.mark.java
def test_options_name_task_split_and_variation(boil):
    _, info = boil.reset(options={"task": "melt", "variation": 7})
    assert (boil.task, boil.variation) == ("melt", 7)
    assert "melt" in info["goal"]
    _, info = boil.reset(seed=5)
    assert (boil.task, boil.variation) == ("boil", 5), "the task was for that episode only"
    boil.reset(seed=5, options={"split": "test"})
    assert boil.variation == 21 + 5
    for bad in ({"task": "bake"}, {"variation": 30}, {"variation": "3"}, {"split": "dev", "variation": 3}, {"seed": 1}):
        with pytest.raises(ValueError, match=next(iter(bad)) if len(bad) == 1 else "variation"):
            boil.reset(options=bad)


@pytest.mark.java
def test_the_expert_is_asked_for_before_the_first_step(boil):
    boil.reset(seed=0)
    boil.step("look around")
    with pytest.raises(envs.ExpertGaveUpError, match="first step"):
        boil.expert()


@pytest.mark.java
def test_agentgyms_wording_and_numbering():
    env = envs.make("AgentGymSciWorld/sciworld", instructions="You are an agent.")
    assert len(env.variations("sciworld", None)) == 4639
    observation, info = env.reset(seed=30)
    assert info["goal"] == "You are an agent."
    assert env._episode() == ("melt", 0)
    goal, _, look = observation.partition("\n")
    assert goal.startswith("Your task is to melt")
    assert look.startswith("This room is called")
    text = env.step("Thought:\nI open the door. Action: none\n\nAction:\nopen door to kitchen")[0]
    assert text == "The door is now open."
    info = env.step("Action:\nfocus on agent")[4]
    assert (info["raw_score"], info["score"]) == (-100, 0.0)
    env.close()
    plain = envs.make("AgentGymSciWorld/sciworld", max_steps=200)
    _, info = plain.reset(seed=0)
    assert "Your task is to boil water" in info["goal"]
    assert replay(plain, "sciworld", 0)["raw_score"] == 100
    plain.close()


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("", ""),
        (" ", ""),
        (" easy ", "easy"),
        ("easy,", "easy"),
        ("easy, easy", "easy"),
        ("openDoors , openContainers", "openDoors,openContainers"),
        (",openDoors,,openDoors,", "openDoors"),
    ],
)
def test_simplifications_are_read_without_what_the_simulator_stumbles_over(given, read):
    assert simplified("boil", given) == read


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        (
            "boil",
            "easy,openDoors",
            "write 'teleportAction,selfWateringFlowerPots,openDoors,noElectricalAction' for all",
        ),
        ("boil", "openContainers,easy", "write 'teleportAction,selfWateringFlowerPots,openContainers,openDoors,noElec"),
        ("power-component", "easy,openDoors", "write 'teleportAction,selfWateringFlowerPots,openDoors' for all"),
        ("power-component", "noElectricalAction", "takes away what power-component needs"),
        ("test-conductivity", "openDoors, noElectricalAction", "takes away what test-conductivity needs"),
        ("boil", "easy openDoors", "no 'easy openDoors'"),
        ("boil", "Easy", "no 'Easy'.*did you mean 'easy'"),
        ("boil", "opendoors", "did you mean 'openDoors'"),
        ("boil", "hard", "no 'hard'; known are teleportAction"),
        ("boil", True, "is no text"),
        ("boil", ["easy"], "is no text"),
    ],
)
def test_what_the_simulator_cannot_do_is_refused_before_it_is_started(task, given, said):
    with pytest.raises(ValueError, match=f"^simplifications: .*{said}"):
        ScienceWorld(f"{task}-v0", simplifications=given)


def test_a_recipe_with_what_the_simulator_cannot_do_is_refused_before_anything_starts():
    for settings, said in (
        ({"simplifications": "easy,openDoors"}, "alone"),
        ({"simplifications": 3}, "it must be str"),
    ):
        recipe = Recipe.model_validate(
            {
                "name": "x",
                "environments": {"ScienceWorld/boil": settings},
                "collect": {"levels": {"ScienceWorld/boil-v0": 1}},
            }
        )
        with pytest.raises(InputError, match=f"^environments: ScienceWorld/boil-v0: simplifications: .*{said}"):
            preflight.check(recipe)


@pytest.mark.java
@pytest.mark.parametrize("task", ["boil", "power-component"])
@pytest.mark.parametrize("names", [*SIMPLIFICATIONS, "openDoors,openContainers", "easy"])
def test_every_simplification_that_is_taken_plays(boil, task, names):
    if task == "power-component" and names == "noElectricalAction":
        return
    env = ScienceWorld(f"{task}-v0", simplifications=names)
    text, _ = env.reset(seed=0)
    assert text.startswith("This room is called")
    assert env.step("look around")[0].startswith("This room is called")
    env.close()


@pytest.mark.java
def test_an_error_of_the_simulator_is_a_fault_and_never_a_score(boil, monkeypatch):
    monkeypatch.setattr("atlas_ray.envs.science_world.simplified", lambda task, names: names)
    env = ScienceWorld("boil-v0", simplifications="easy,openDoors")
    for _ in range(2):
        with pytest.raises(envs.EnvironmentDiedError, match="ERROR: Unknown simplification label: easy"):
            env.reset(seed=0)
        with pytest.raises(gym.error.ResetNeeded):
            env.step("look around")
    boil.reset(seed=0)
    monkeypatch.setattr(boil, "_call", lambda *a, **k: "ERROR: no game" if a[0] == "step" else 0)
    with pytest.raises(envs.EnvironmentDiedError, match="ERROR: no game"):
        boil.step("look around")
    monkeypatch.undo()
    assert boil.reset(seed=0)[0].startswith("This room is called")
