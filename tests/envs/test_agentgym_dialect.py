"""AgentGym's wording of BabyAI and ScienceWorld: texts by example, macro actions by what they do to the grid."""

import json
import random

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Box, Door, Key

from atlas_ray.envs import BabyAIText, UnknownEnvironmentError
from atlas_ray.envs.agentgym_babyai import BabyAIAgentGym
from atlas_ray.envs.agentgym_dialect import (
    BABYAI_LEVELS,
    INSTRUCTIONS,
    SCIWORLD_TASKS,
    instructions_from,
    parse_react,
    plain_action,
    sciworld_first_observation,
    sciworld_item,
    sciworld_score,
)
from atlas_ray.envs.agentgym_macros import MacroGame
from atlas_ray.envs.babyai_text import levels
from atlas_ray.envs.science_world import VARIATIONS

FORWARD, PICKUP, DROP, TOGGLE = 2, 3, 4, 5


def game(things, at=(4, 4), facing=3, carrying=None, size=9, mission="go to the red ball"):
    """A macro game in an empty walled room; ``things`` are ``{(x, y): object}``, facing 3 is up."""
    env = BabyAIText("GoToLocal-v0").grid_env
    env.reset(seed=0)
    env.grid = Grid(size, size)
    env.grid.wall_rect(0, 0, size, size)
    for (x, y), thing in things.items():
        env.grid.set(x, y, thing)
    env.agent_pos, env.agent_dir, env.carrying = at, facing, carrying
    env.mission = mission
    return MacroGame(env, env.gen_obs())


def test_the_observation_is_worded_like_agentgyms():
    assert game({(4, 2): Ball("red"), (2, 3): Key("blue"), (6, 1): Box("grey"), (5, 3): Ball("red")}).observation == (
        "In front of you in this room, you can see several objects: "
        "There is a red ball 1 right in front of you 2 steps away.  "
        "There is a red ball 2 1 steps in front of you and 1 steps to your right.  "
        "There is a blue key 1 1 steps in front of you and 2 steps to your left.  "
        "There is a grey box 1 3 steps in front of you and 2 steps to your right.  "
        "The room has walls around you. You are facing a wall 4 steps away. You are not carrying anything."
        '\nAvailable actions: ["turn left", "turn right", "move forward", "pickup red ball 1", "pickup red ball 2", '
        '"pickup blue key 1", "pickup grey box 1", "go to red ball 1", "go to red ball 2", "go to blue key 1", '
        '"go to grey box 1", "check available actions"]'
    )
    doors = {(4, 0): Door("green", is_open=True), (1, 0): Door("red"), (6, 0): Door("blue", is_locked=True)}
    assert game(doors, at=(4, 2), carrying=Key("blue")).observation == (
        "In front of you in this room, you can see several objects: "
        "There is a green open door 1 right in front of you 2 steps away.  "
        "There is a blue locked door 1 2 steps in front of you and 2 steps to your right.  "
        "There is a red closed door 1 2 steps in front of you and 3 steps to your left.  "
        "The room has walls around you. You are carrying a blue key."
        '\nAvailable actions: ["turn left", "turn right", "move forward", "drop", "go through green open door 1", '
        '"toggle and go through blue locked door 1", "toggle and go through red closed door 1", '
        '"go to green open door 1", "go to blue locked door 1", "go to red closed door 1", "check available actions"]'
    )


def test_with_nothing_in_view():
    far = game({}, at=(9, 9), size=19)
    assert far.observation == (
        "You cannot see any objects within sight.The room has walls around you. You are not carrying anything."
        '\nAvailable actions: ["turn left", "turn right", "move forward", "check available actions"]'
    )
    walls_only = game({}, at=(4, 1))
    assert walls_only.observation.startswith(
        "In front of you in this room, you can see several objects: The room has walls around you. "
        "You are facing a wall 1 steps away. "
    )
    assert "move forward" not in walls_only.actions


def test_moves_of_the_macro_actions():
    room = game({(4, 1): Ball("red"), (6, 4): Key("blue"), (4, 0): Door("red")})
    assert room.actions["go to red ball 1"] == [FORWARD, FORWARD]
    assert room.actions["pickup red ball 1"] == [FORWARD, FORWARD, PICKUP]
    assert room.actions["pickup blue key 1"] == [1, FORWARD, PICKUP]
    assert "toggle" not in room.actions
    at_door = game({(4, 0): Door("red")}, at=(4, 1))
    assert at_door.actions["go to red closed door 1"] == []
    assert at_door.actions["toggle"] == [TOGGLE]
    assert at_door.actions["toggle and go through red closed door 1"] == [TOGGLE, FORWARD]
    assert game({}, carrying=Key("red")).actions["drop"] == [DROP]


def test_what_cannot_be_reached_has_no_number_among_the_actions():
    """The nearer ball is walled in: the description calls the other one 2, the actions call it 1."""
    things = {(4, 2): Box("grey"), (3, 2): Box("grey"), (5, 2): Box("grey"), (4, 1): Ball("red"), (7, 1): Ball("red")}
    things |= {(3, 1): Box("grey"), (5, 1): Box("grey")}
    room = game(things)
    balls = [a for a in room.actions if "red ball" in a]
    assert balls == ["pickup red ball 1", "go to red ball 1"]
    assert room.act("go to red ball 2") is False
    assert room.observation.startswith(
        "The action is not recognized. Please check valid actions.\nAvailable actions: ["
    )


@pytest.mark.parametrize(
    ("things", "carrying", "action", "answer"),
    [
        ({}, None, "dance", "The action is not recognized. Please check valid actions."),
        ({}, None, "", "No change in state."),
        ({}, None, "drop", "You cannot drop the object, as you are not carrying anything."),
        (
            {(4, 3): Ball("red")},
            Key("red"),
            "drop",
            "You cannot drop the object, as there is already an object in front of you.",
        ),
        ({(4, 3): Ball("red")}, None, "go to red ball 1", "No change in state."),
        ({(4, 3): Box("red")}, None, "move forward", "There is a barrier in front of you, you can't move forward."),
        (
            {(4, 0): Door("red", is_locked=True)},
            None,
            "toggle and go through red locked door 1",
            "You cannot toggle and go through red locked door 1, as you are not carrying a key.",
        ),
        (
            {(4, 0): Door("red", is_locked=True)},
            Key("blue"),
            "toggle and go through red locked door 1",
            "You cannot toggle and go through red locked door 1, as the color of the key you are carrying does not "
            "match the color of door.",
        ),
        (
            {(4, 0): Door("red")},
            None,
            "go through red closed door 1",
            "You cannot go through red closed door 1, as it is closed. You should toggle it first.",
        ),
        (
            {},
            None,
            "check available actions",
            "You can take the following actions: turn left, turn right, move forward, check available actions",
        ),
    ],
)
def test_answers_to_what_does_nothing(things, carrying, action, answer):
    room = game(things, carrying=carrying)
    assert room.act(action) is False
    said, _, offered = room.observation.partition("\nAvailable actions: ")
    assert said == answer
    assert json.loads(offered) == list(room.actions)
    assert room.total == 0


def test_macros_change_the_grid_as_they_say():
    ball, door = Ball("red"), Door("green")
    room = game({(6, 2): ball, (4, 0): door})
    env = room._grid_env
    room.act("PICKUP red ball 1 ")
    assert env.carrying is ball
    room.act("turn left")
    room.act("drop")
    assert env.carrying is None
    room = game({(4, 0): Door("green")})
    assert room.act("toggle and go through green closed door 1") is False
    assert tuple(room._grid_env.agent_pos) == (4, 0)


def test_the_missions_order_is_lost_as_in_agentgym():
    assert game({}, mission="open a door, then pick up a box").goal == "open a door, and pick up a box"
    assert game({}, mission="open a door after you pick up a box").goal == "open a door and pick up a box"


def play(env, item, rng, steps=20):
    """A run that reaches for the things the goal names first, and where nothing of that is left moves at random."""
    observation, info = env.reset(options={"variation": item})
    words = observation.partition("\n")[0].split()
    log = [observation]
    for _ in range(steps):
        actions = info["admissible"]()
        verb = "pickup" if "pick" in words else "go to"
        wanted = [a for a in actions if a.startswith(verb) and a.split()[-2] in words and a.split()[-3] in words]
        others = [a for a in actions if "through" in a or a.startswith("turn") or a == "move forward"]
        action = wanted[0] if wanted and rng.random() < 0.8 else rng.choice(others)
        observation, reward, terminated, truncated, info = env.step(action)
        log.append((action, observation, reward, info["score"], info["success"]))
        if terminated or truncated:
            break
    return log, terminated, info


def test_macro_actions_solve_levels():
    solved = 0
    for item in (0, 1, 2, 3, 4, 9, 18, 40, 41, 43, 44, 58, 81, 83, 121):
        _, terminated, info = play(BabyAIAgentGym(), item, random.Random(item))
        assert terminated == info["success"] == (info["score"] > 0.5)
        solved += info["success"]
    assert solved >= 11


def test_an_item_is_always_the_same_episode_and_items_differ():
    starts = set()
    for item in range(0, 80, 5):
        first = play(BabyAIAgentGym(), item, random.Random(0))
        assert first[0] == play(BabyAIAgentGym(), item, random.Random(0))[0]
        starts.add(first[0][0])
    assert len(starts) == 16


def test_a_seed_picks_the_item():
    env = BabyAIAgentGym()
    by_seed = env.reset(seed=83)[0]
    assert env.variation == 83
    assert by_seed == env.reset(options={"variation": 83})[0]
    with pytest.raises(ValueError, match="variation"):
        env.reset(options={"variation": -1})


def test_all_forty_levels_start_at_their_place():
    assert len(BABYAI_LEVELS) == 40
    env = BabyAIAgentGym()
    for item, level in enumerate(BABYAI_LEVELS):
        observation, info = env.reset(options={"variation": 80 + item})
        own = gym.make(levels()[f"{level}-v0"]).unwrapped
        first, _ = own.reset(seed=2)
        twin = MacroGame(own, first)
        assert observation == f"Your goal: {twin.goal}\n{twin.observation}"
        assert info["admissible"]() == list(twin.actions)
        assert info["goal"] == f"{INSTRUCTIONS['babyai']}\nYour goal: {twin.goal}"


def test_reward_end_and_limit():
    env = BabyAIAgentGym()
    env.reset(options={"variation": 0})
    while True:
        toward = [a for a in env.admissible() if a.startswith("go to red ball")]
        observation, reward, terminated, _, info = env.step(toward[0] if toward else "turn left")
        if terminated:
            break
        assert reward == 0
    assert observation.partition("\nAvailable")[0].endswith("\n The task is completed.")
    assert 0.5 < reward == info["score"] == info["raw_score"] < 1
    assert info["success"]
    with pytest.raises(gym.error.ResetNeeded):
        env.step("turn left")
    env.reset(options={"variation": 0})
    flags = [env.step("check available actions")[2:4] for _ in range(20)]
    assert flags == [(False, False)] * 19 + [(False, True)]


def test_a_late_mission_is_not_over_and_its_reward_counts_again():
    env = BabyAIAgentGym(max_steps=50)
    env.reset(options={"variation": 2})
    env._game._grid_env.step_count = 40
    while not env.score:
        toward = [a for a in env.admissible() if a.startswith("go to red ball")]
        observation, _, terminated, _, info = env.step(toward[0] if toward else "turn left")
    first = info["raw_score"]
    assert 0 < first < 0.5
    assert "The task is completed." in observation
    assert (terminated, info["success"]) == (False, False)
    for n in range(2, 5):
        *_, info = env.step("check available actions")
        assert info["raw_score"] == pytest.approx(n * first)
    assert info["score"] == min(1.0, info["raw_score"])


def test_replies_with_thoughts_are_understood():
    a, b = BabyAIAgentGym(), BabyAIAgentGym()
    a.reset(seed=4)
    b.reset(seed=4)
    action = a.admissible()[-2]
    assert a.step(f"Thought:\nAction: is what I need.\n\nAction:\n{action}.")[:4] == b.step(action)[:4]


def test_a_clone_is_independent():
    env = BabyAIAgentGym()
    env.reset(seed=4)
    env.step("turn left")
    clone = env.clone()
    ahead = [clone.step(a)[:2] for a in ("turn left", "move forward", "turn right")]
    assert [env.step(a)[:2] for a in ("turn left", "move forward", "turn right")] == ahead


def test_gymnasiums_own_check_has_nothing_to_say(recwarn):
    check_env(BabyAIAgentGym(), skip_render_check=True)
    assert [str(w.message) for w in recwarn] == []
    with pytest.raises(UnknownEnvironmentError):
        BabyAIAgentGym("webshop-v0")
    with pytest.raises(ValueError, match="split"):
        BabyAIAgentGym(split="test")


def test_instructions_become_the_goal_as_they_are():
    env = BabyAIAgentGym(instructions="Play.")
    observation, info = env.reset(seed=0)
    assert info["goal"] == "Play."
    assert observation.startswith("Your goal: go to the red ball\nIn front of you")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Thought:\nI go.\n\nAction:\ngo to red ball 1", ("I go.", "go to red ball 1")),
        ("Thought: I go. Action: go", ("I go.", "go")),
        ("Thought:\nAction: one\nis it.\nAction:\ntwo", ("Action: one\nis it.", "two")),
        ("I go.\nACTION: go", ("I go.", "go")),
        ("Action:\ngo", (None, "go")),
        ("go", (None, "go")),
        ("Thought:\nhm", (None, "Thought:\nhm")),
        ("Thought:\nhm\n\nAction:\n", ("hm", "")),
        ("Action: f with Action Input: {}", (None, "f with Action Input: {}")),
        ("", (None, "")),
    ],
)
def test_parse_react(text, parsed):
    assert parse_react(text) == parsed


def test_plain_action():
    assert plain_action(" **go to**  red_ball 1.\nThen stop") == "go to redball 1"
    assert plain_action("craft 1 stick using 2 oak planks, 1 bamboo!") == "craft 1 stick using 2 oak planks, 1 bamboo"
    assert plain_action("\n") == ""


def record(item, text):
    return {"item_id": item, "conversations": [{"from": "human", "loss": None, "value": text}]}


@pytest.mark.parametrize("lines", [False, True])
def test_instructions_from_a_file(tmp_path, lines):
    rows = [
        record("babyai_7", "B"),
        record("sciworld_1", "S\u2028s"),
        record("babyai_8", "other"),
        record("a_b_9", "A"),
    ]
    text = "\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n" if lines else json.dumps(rows)
    path = tmp_path / "traj.json"
    path.write_text(text, encoding="utf-8")
    assert instructions_from(path) == {"babyai": "B", "sciworld": "S\u2028s", "a_b": "A"}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '{"item_id": "x"}',
        '{"item_id": "babyai_1", "conversations": []}',
        json.dumps(record("nameless", "N")),
    ],
)
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "traj.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"traj\.jsonl"):
        instructions_from(path)


def test_sciworld_items():
    assert len(SCIWORLD_TASKS) == len(set(SCIWORLD_TASKS)) == 23
    assert set(SCIWORLD_TASKS) < set(VARIATIONS)
    assert sciworld_item(0, VARIATIONS) == ("boil", 0)
    assert sciworld_item(30, VARIATIONS) == ("melt", 0)
    assert sciworld_item(119, VARIATIONS) == ("change-the-state-of-matter-of", 29)
    assert sciworld_item(120, VARIATIONS) == ("use-thermometer", 0)
    assert sciworld_item(4638, VARIATIONS) == ("identify-life-stages-2", 9)
    assert len({sciworld_item(i, VARIATIONS) for i in range(4639)}) == 4639
    for index in (-1, 4639):
        with pytest.raises(ValueError, match=str(index)):
            sciworld_item(index, VARIATIONS)


def test_sciworld_texts_and_scores():
    assert sciworld_first_observation("Your task is to boil water.", "This room is called the hallway.") == (
        "Your task is to boil water.\nThis room is called the hallway."
    )
    assert [sciworld_score(raw) for raw in (-100, 0, 33, 100)] == [0.0, 0.0, 0.33, 1.0]
