"""ScienceWorld (Wang et al. 2022, arXiv 2203.07540) through its simulator's own interface, without upstream's wrapper.

Upstream's ``step`` lists all valid actions, look and inventory each time; here an action is one call into the JVM and
two for its score, and the valid actions are listed when they are asked for.
"""

from __future__ import annotations

import re
from typing import ClassVar, Self

from . import agentgym_dialect as dialect
from .core import SPLITS, Turn
from .jvm import JvmEnv, Simulator

SIMULATOR = Simulator("ScienceWorld", "scienceworld", "scienceworld.runtime.pythonapi.PythonInterface")

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
_LISTED = re.compile(r"(?:^\t.*\n?)+", re.MULTILINE)
_SUBGOAL = re.compile(r"^\d+\t(true|false)\t", re.MULTILINE)


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
        simplifications: names of :data:`SIMPLIFICATIONS`, joined by commas.

    ``info["raw_score"]`` is the simulator's, -100..100; score and reward take what is below 0 for 0. Success is a raw
    score of 100; a wrong focus ends the task with -100. ``progress`` is the share of the task's sequential sub-goals.
    """

    simulator = SIMULATOR
    splits: ClassVar[tuple[str, ...]] = SPLITS
    cheap_list: ClassVar[bool] = False

    def __init__(
        self, task: str, max_steps: int | None = None, split: str | None = None, simplifications: str = ""
    ) -> None:
        super().__init__(task, max_steps, split)
        for name in filter(None, simplifications.split(",")):
            if name not in SIMPLIFICATIONS:
                raise ValueError(f"simplifications: no {name!r}; known are {', '.join(SIMPLIFICATIONS)}")
        self.simplifications = simplifications
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
        return goal, canonical(str(self._call("freeActionLook")))

    def _episode(self) -> tuple[str, int]:
        """Task and variation as the simulator names them."""
        return self.task, self.variation

    def _load(self, gold: bool) -> str:
        task, variation = self._episode()
        # load, not reset: after one gold path every reset would make another one
        problem = str(self._call("load", task, variation, self.simplifications, gold)).strip()
        if problem:
            raise ValueError(f"{task}, variation {variation}: {problem}")
        self._raw, self._progress = 0, self._reached()
        return str(self._call("getTaskDescription")).strip()

    def do(self, action: str) -> Turn:
        """One action in the simulator's language; it answers to what it does not understand."""
        return self._turn(canonical(str(self._call("step", action, seed=self._moment()))))

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
        look = str(self._call("step", "look around", seed=f"{self._episode()}/first"))
        return self.instructions or f"{dialect.INSTRUCTIONS['sciworld']}\n{goal}", dialect.sciworld_first_observation(
            goal, look
        )

    def do(self, action: str) -> Turn:
        """The action of a reply, or the whole of it when it has no headings."""
        return self._turn(str(self._call("step", dialect.parse_react(action)[1], seed=self._moment())))

    def clone(self) -> Self:
        """The same episode, replayed."""
        return self.replay_into(type(self)(self.home_task, self.max_steps, self.split, self.instructions))
