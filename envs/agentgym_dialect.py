"""AgentGym's wording of BabyAI and ScienceWorld, so that agents trained on AgentTraj-L can be scored here.

Read in the public repository WooooDyy/AgentGym and followed: the 40 BabyAI levels and their order, the observation's
wording, the macro actions, their routes, the messages, reward and end of an episode; which ScienceWorld episode an item
is and what is shown first; how a reply is split. Ours: the code, and every instruction text. AgentGym's own are not
here: :func:`instructions_from` takes them from the user's AgentTraj-L file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

BABYAI_LEVELS: tuple[str, ...] = (
    *("GoToRedBallGrey", "GoToRedBall", "GoToRedBallNoDists", "GoToObjS4", "GoToLocalS8N7", "GoToObjMazeS7"),
    *("GoToImpUnlock", "GoToSeqS5R2", "GoToRedBlueBall", "GoToDoor", "GoToObjDoor", "Open", "OpenRedDoor"),
    *("OpenDoorLoc", "OpenRedBlueDoorsDebug", "OpenDoorsOrderN4Debug", "Pickup", "UnblockPickup", "PickupLoc"),
    *("PickupDistDebug", "PickupAbove", "PutNextLocalS6N4", "PutNextS7N4Carrying", "Unlock", "UnlockLocalDist"),
    *("KeyInBox", "UnlockPickupDist", "BlockedUnlockPickup", "UnlockToUnlock", "ActionObjDoor", "FindObjS7"),
    *("KeyCorridorS6R3", "OneRoomS20", "MoveTwoAcrossS8N9", "SynthS5R2", "SynthLoc", "SynthSeq", "MiniBossLevel"),
    *("BossLevel", "BossLevelNoUnlock"),
)
"""Item i is level ``i % 40`` of these (AgentGym counts from 1: ``i % 40 + 1``), with seed ``i // 40``.

The fourth is ``GoToObjS6-v0`` there, which is ``GoToObjS4`` in all but name in the minigrid that AgentGym requires.
"""
BABYAI_ROUNDS, SCIWORLD_ROUNDS = 20, 30
"""Step limits of AgentGym's evaluation."""
SCIWORLD_TASKS: tuple[str, ...] = (
    *("boil", "melt", "freeze", "change-the-state-of-matter-of", "use-thermometer"),
    *("measure-melting-point-known-substance", "measure-melting-point-unknown-substance", "power-component"),
    *("power-component-renewable-vs-nonrenewable-energy", "test-conductivity"),
    *("test-conductivity-of-unknown-substances", "find-living-thing", "find-non-living-thing", "find-plant"),
    *("find-animal", "chemistry-mix", "chemistry-mix-paint-secondary-color", "chemistry-mix-paint-tertiary-color"),
    *("lifespan-longest-lived", "lifespan-shortest-lived", "lifespan-longest-lived-then-shortest-lived"),
    *("identify-life-stages-1", "identify-life-stages-2"),
)
"""ScienceWorld's tasks 1-1 to 8-2 by number, without 5-1 and 5-2; AgentGym also leaves 9-x and 10-x out."""
INSTRUCTIONS: dict[str, str] = {
    "babyai": (
        "You are in a world of rooms and see what is in front of you. Reach the goal. Actions: turn left; turn right; "
        "move forward; go to THING N; pickup THING N; drop; toggle; go through DOOR N (an open one); toggle and go "
        "through DOOR N (a closed one, or a locked one whose key you carry); check available actions. THING and DOOR "
        "are worded as in the observation, N is the number behind them. Answer with a line 'Thought:', your thought, a "
        "blank line, a line 'Action:' and one action."
    ),
    "sciworld": (
        "You do science experiments in a simulated house. Actions, with names of things for OBJ: open OBJ; close OBJ; "
        "activate OBJ; deactivate OBJ; connect OBJ to OBJ; disconnect OBJ; use OBJ; use OBJ on OBJ; look around; look "
        "at OBJ; look in OBJ; read OBJ; move OBJ to OBJ; pick up OBJ; put down OBJ; pour OBJ into OBJ; dunk OBJ into "
        "OBJ; mix OBJ; go to PLACE; eat OBJ; flush OBJ; focus on OBJ; wait; wait1; inventory; task. Answer with a line "
        "'Thought:', your thought, a blank line, a line 'Action:' and one action."
    ),
}
"""What to say before the first observation, in our words."""
_HEADING = re.compile(r"^[ \t]*action:", re.IGNORECASE | re.MULTILINE)
_THOUGHT = re.compile(r"\s*thought:", re.IGNORECASE)


# ---- replies and instructions ---------------------------------------------------------------------------------------


def parse_react(text: str) -> tuple[str | None, str]:
    r"""Thought and action of a reply ``Thought:\n...\n\nAction:\n...``, stripped.

    The last ``Action:`` wins: the last that begins a line, else the last anywhere, as in AgentGym. Text before it
    without ``Thought:`` is the thought all the same. Without ``Action:`` all of the text is the action (ours).
    """
    headings = list(_HEADING.finditer(text))
    start, end = headings[-1].span() if headings else (text.rfind("Action:"), text.rfind("Action:") + len("Action:"))
    if start < 0:
        return None, text.strip()
    thought = _THOUGHT.sub("", text[:start], count=1).strip()
    return thought or None, text[end:].strip()


def plain_action(action: str) -> str:
    """What AgentGym's BabyAI and TextCraft clients leave of an action: its first line, words, digits and commas."""
    lines = action.strip().splitlines()
    return " ".join(re.sub(r"[^A-Za-z0-9, ]+", "", lines[0] if lines else "").split())


def instructions_from(path: str | Path) -> dict[str, str]:
    """The instruction of each environment (``babyai``, ``sciworld``, ...), from an AgentTraj-L file.

    It is the text of turn 0 of the first record of an environment, which is named by ``item_id`` up to the last ``_``.

    Args:
        path: a JSON array of records, or one record a line.

    Raises:
        ValueError: the file holds no such records; the message names the record.
        OSError: the file cannot be read.
    """
    text = Path(path).read_text(encoding="utf-8-sig")
    found: dict[str, str] = {}
    try:
        lines = [line for line in text.split("\n") if line.strip()]
        records = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    for number, record in enumerate(records):
        try:
            name, turn = str(record["item_id"]).rpartition("_")[0], record["conversations"][0]["value"]
        except (KeyError, IndexError, TypeError):
            name, turn = "", None
        if not name or not isinstance(turn, str):
            raise ValueError(f"{path}: record {number} is none of AgentTraj-L: item_id and conversations[0].value")
        found.setdefault(name, turn)
    return found


# ---- ScienceWorld ---------------------------------------------------------------------------------------------------


def sciworld_item(data_idx: int, sizes: Mapping[str, int]) -> tuple[str, int]:
    """Task and variation of an AgentGym item: all variations of the first of :data:`SCIWORLD_TASKS`, then of the next.

    Args:
        data_idx: 0 to 4638 with ScienceWorld 1.2.3.
        sizes: how many variations the simulator has of each task; AgentGym asks the simulator as well.

    Raises:
        ValueError: there is no such item.
    """
    left = data_idx
    for task in SCIWORLD_TASKS:
        if 0 <= left < sizes[task]:
            return task, left
        left -= sizes[task]
    raise ValueError(f"variation: ScienceWorld has no AgentGym item {data_idx}")


def sciworld_first_observation(goal: str, look: str) -> str:
    """What AgentGym shows first. ``look`` is the answer to the action ``look around``, which costs a move there."""
    return f"{goal}\n{look}"


def sciworld_score(raw: float) -> float:
    """Score in 0..1 of the simulator's cumulative score, -100..100, which is what AgentGym gives the agent."""
    return min(max(raw / 100, 0.0), 1.0)
