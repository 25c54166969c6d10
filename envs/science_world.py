"""ScienceWorld (Wang et al. 2022, arXiv 2203.07540) through its simulator's own interface, without upstream's wrapper.

Upstream's ``step`` lists all valid actions, look and inventory each time; here an action is one call into the JVM and
two for its score, and the valid actions are listed when they are asked for.
"""

from __future__ import annotations

import difflib
import re
from typing import ClassVar, Self

from . import agentgym_dialect as dialect
from .core import SPLITS, EnvironmentDiedError, Turn
from .jvm import Simulator, said_error
from .jvm_env import JvmEnv

SIMULATOR = Simulator(
    "ScienceWorld",
    "scienceworld",
    "scienceworld.runtime.pythonapi.PythonInterface",
    # ways through the rooms, in an order that is drawn: who finds them there draws less, and takes another wire
    cache=("scienceworld.goldagent.PathFinder$", "precomputedExhaustivePaths"),
)

VARIATIONS = {
    "boil": 30,
    "change-the-state-of-matter-of": 30,
    "chemistry-mix": 32,
    "chemistry-mix-paint-secondary-color": 36,
    "chemistry-mix-paint-tertiary-color": 36,
    "find-animal": 300,
    "find-living-thing": 300,
    "find-non-living-thing": 300,
    "find-plant": 300,
    "freeze": 30,
    "grow-fruit": 126,
    "grow-plant": 126,
    "identify-life-stages-1": 14,
    "identify-life-stages-2": 10,
    "inclined-plane-determine-angle": 168,
    "inclined-plane-friction-named-surfaces": 1386,
    "inclined-plane-friction-unnamed-surfaces": 162,
    "lifespan-longest-lived": 125,
    "lifespan-longest-lived-then-shortest-lived": 125,
    "lifespan-shortest-lived": 125,
    "measure-melting-point-known-substance": 436,
    "measure-melting-point-unknown-substance": 300,
    "melt": 30,
    "mendelian-genetics-known-plant": 120,
    "mendelian-genetics-unknown-plant": 480,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20,
    "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600,
    "use-thermometer": 540,
}
"""Task -> how many variations it has, in the simulator's order (checked against the jar by a test)."""

SIMPLIFICATIONS = (
    "teleportAction",
    "selfWateringFlowerPots",
    "openContainers",
    "openDoors",
    "noElectricalAction",
    "easy",
)
_OF_EASY = ("teleportAction", "selfWateringFlowerPots", "openDoors", "noElectricalAction")
_ELECTRICAL = (
    "power-component",
    "power-component-renewable-vs-nonrenewable-energy",
    "test-conductivity",
    "test-conductivity-of-unknown-substances",
)
"""Tasks that need the actions which ``noElectricalAction`` takes away; the simulator's ``easy`` leaves them there."""
_LISTED = re.compile(r"(?:^\t.*\n?)+", re.MULTILINE)
_SUBGOAL = re.compile(r"^\d+\t(true|false)\t", re.MULTILINE)


def simplified(task: str, names: object) -> str:
    """Names of :data:`SIMPLIFICATIONS` as the simulator reads them: each once, without white space and empty entries.

    The simulator takes what it cannot do for a valid choice, and every episode then ends at once with -100.

    Raises:
        ValueError: no such name, ``easy`` beside others, or actions would be taken away that the task needs.
    """
    if not isinstance(names, str):
        raise ValueError(f"simplifications: {names!r} is no text: write names, joined by commas")
    found = list(dict.fromkeys(filter(None, (name.strip() for name in names.split(",")))))
    for name in found:
        if name not in SIMPLIFICATIONS:
            near = difflib.get_close_matches(name.lower(), [known.lower() for known in SIMPLIFICATIONS], n=1)
            hint = next((f"; did you mean {known!r}?" for known in SIMPLIFICATIONS if known.lower() in near), "")
            raise ValueError(f"simplifications: no {name!r}; known are {', '.join(SIMPLIFICATIONS)}{hint}")
    needs_wires = task in _ELECTRICAL
    if "easy" in found and len(found) > 1:
        whole = [name for name in SIMPLIFICATIONS if name in (*_OF_EASY, *found) and name != "easy"]
        written = ",".join(name for name in whole if not (needs_wires and name == "noElectricalAction"))
        beside = ", ".join(name for name in found if name != "easy")
        raise ValueError(
            f"simplifications: the simulator knows 'easy' alone, not beside {beside}: write {written!r} for all of it"
        )
    if "noElectricalAction" in found and needs_wires:
        raise ValueError(
            f"simplifications: 'noElectricalAction' takes away what {task} needs: leave it out, or take 'easy'"
        )
    return ",".join(found)


def split_of(task: str, split: str | None) -> range:
    """Variations of a split, cut as the simulator cuts them: in order, a quarter for dev, twice that for train."""
    count = VARIATIONS[task]
    quarter = count // 4
    return {
        None: range(count),
        "train": range(2 * quarter),
        "dev": range(2 * quarter, 3 * quarter),
        "test": range(3 * quarter, count),
    }[split]


def canonical(text: str) -> str:
    """Equal states have equal text: the listed things in each block are sorted, blanks at line ends removed."""
    lines = _LISTED.sub(lambda m: "\n".join(sorted(m[0].splitlines())) + "\n", text)
    return "\n".join(line.rstrip() for line in lines.splitlines()).strip()


class ScienceWorld(JvmEnv):
    """One ScienceWorld task.

    Args:
        task: name of the task, ``boil-v0``.
        max_steps: own step limit in actions. Default 200, which a few gold paths of the inclined planes exceed.
        split: ``train``, ``dev`` or ``test``, the simulator's own.
        simplifications: names of :data:`SIMPLIFICATIONS`, joined by commas; ``easy`` stands alone, for several.

    ``info["raw_score"]`` is the simulator's, -100..100; score and reward take what is below 0 for 0. Success is a raw
    score of 100; a wrong focus ends the task with -100. ``progress`` is the share of the task's sequential sub-goals.
    """

    simulator = SIMULATOR
    packages = ("scienceworld",)
    splits: ClassVar[tuple[str, ...]] = SPLITS
    cheap_list: ClassVar[bool] = False

    def __init__(
        self, task: str, max_steps: int | None = None, split: str | None = None, simplifications: str = ""
    ) -> None:
        self.simplifications = simplified(task.removesuffix("-v0"), simplifications)
        super().__init__(task, max_steps, split)
        self.limit = max_steps or 200
        self._raw, self._progress = 0, 0.0

    def tasks(self) -> tuple[str, ...]:
        """All thirty."""
        return tuple(VARIATIONS)

    def variations(self, task: str, split: str | None) -> range:
        """The simulator's variations in a split."""
        return split_of(task, split)

    def begin(self, variation: int) -> tuple[str, str]:
        """Load the task; the first observation is a free look around."""
        goal = self._load(gold=False)
        return goal, canonical(self._said("freeActionLook"))

    def _said(self, method: str, *arguments: object, seed: str | None = None) -> str:
        """A text of the simulator.

        Raises:
            EnvironmentDiedError: it is an error, which says nothing of the agent.
        """
        text = str(self._call(method, *arguments, seed=seed))
        if said_error(text):
            self.close()
            raise EnvironmentDiedError(f"{SIMULATOR.title}: {method}: {' '.join(text.split())}")
        return text

    def _episode(self) -> tuple[str, int]:
        """Task and variation as the simulator names them."""
        return self.task, self.variation

    def _load(self, gold: bool) -> str:
        task, variation = self._episode()
        # load, not reset: after one gold path every reset would make another one
        problem = str(
            self._call("load", task, variation, simplified(task, self.simplifications), gold, afresh=gold)
        ).strip()
        if problem:
            raise ValueError(f"{task}, variation {variation}: {problem}")
        self._raw, self._progress = 0, self._reached()
        return self._said("getTaskDescription").strip()

    def do(self, action: str) -> Turn:
        """One action in the simulator's language; it answers to what it does not understand."""
        return self._turn(canonical(self._said("step", action, seed=self._moment())))

    def _turn(self, observation: str) -> Turn:
        raw = round(100 * float(str(self._call("getScore"))))
        over = bool(self._call("getCompleted")) or raw < 0
        if raw != self._raw:
            self._raw, self._progress = raw, self._reached()
        return Turn(
            observation, dialect.sciworld_score(raw), raw == 100, over, progress=self._progress, more={"raw_score": raw}
        )

    def _reached(self) -> float:
        listed = str(self._call("getGoalProgressStr")).partition("Unordered")[0]
        reached = _SUBGOAL.findall(listed)
        return reached.count("true") / len(reached) if reached else 0.0

    def progress(self) -> float:
        """Share of the sequential sub-goals reached."""
        return self._progress

    def admissible(self) -> list[str]:
        """Every valid action, sorted: up to thousands, and a fraction of a second of the simulator's time.

        A thing that goes by several names is listed under one of them.
        """
        return sorted(set(self._interface().strings("getValidActionObjectCombinations", seed=self._moment())))

    def _moment(self) -> str:
        """Seed of what happens by chance now: bees and wandering animals, the name that a thing is listed under."""
        return f"{self.task}/{self.variation}/{len(self.history)}"

    def _gold(self) -> list[str]:
        # it takes the simulator a second, of the mendelian tasks up to two minutes
        self._load(gold=True)
        return self._interface().strings("getGoldActionSequence")

    def clone(self) -> Self:
        """The same episode, replayed: the simulator cannot copy one."""
        return self.replay_into(type(self)(self.home_task, self.max_steps, self.split, self.simplifications))


class SciWorldAgentGym(ScienceWorld):
    """ScienceWorld as AgentGym words and numbers it, without its server.

    Args:
        task: ``sciworld-v0``.
        max_steps: own step limit; None takes AgentGym's 30 rounds.
        split: AgentGym has none.
        instructions: turn 0 of the conversation (:func:`envs.agentgym_dialect.instructions_from`), which becomes the
            goal as it is; the task stands in the first observation. None takes ours, with the task.

    A variation is AgentGym's item. Actions may come as ``Thought: ... Action: ...``. The text is the simulator's own.
    """

    splits = ()

    def __init__(
        self, task: str, max_steps: int | None = None, split: str | None = None, instructions: str | None = None
    ) -> None:
        super().__init__(task, max_steps, split)
        self.instructions = instructions
        self.limit = max_steps or dialect.SCIWORLD_ROUNDS

    def tasks(self) -> tuple[str, ...]:
        """All of them at once: an item names its task."""
        return (self.home_task,)

    def variations(self, task: str, split: str | None) -> range:
        """AgentGym's items."""
        return range(sum(VARIATIONS[name] for name in dialect.SCIWORLD_TASKS))

    def _episode(self) -> tuple[str, int]:
        return dialect.sciworld_item(self.variation, VARIATIONS)

    def begin(self, variation: int) -> tuple[str, str]:
        """Task and a look around, which costs a move, in AgentGym's order."""
        goal = self._load(gold=False)
        look = self._said("step", "look around", seed=f"{self._episode()}/first")
        return self.instructions or f"{dialect.INSTRUCTIONS['sciworld']}\n{goal}", dialect.sciworld_first_observation(
            goal, look
        )

    def do(self, action: str) -> Turn:
        """The action of a reply, or the whole of it when it has no headings."""
        return self._turn(self._said("step", dialect.parse_react(action)[1], seed=self._moment()))

    def clone(self) -> Self:
        """The same episode, replayed."""
        return self.replay_into(type(self)(self.home_task, self.max_steps, self.split, self.instructions))
