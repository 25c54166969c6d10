"""The BabyAI bot as expert: its sub-goals become thoughts, and it cannot run for ever."""

from __future__ import annotations

import contextlib
import time
import traceback
from pathlib import Path
from typing import Any

from minigrid.core.world_object import WorldObj
from minigrid.envs.babyai.core.verifier import ObjDesc
from minigrid.utils.baby_ai_bot import BabyAIBot

from .babyai_text import ACTIONS, BabyAIText
from .core import ExpertGaveUpError, ExpertStep, ExpertTooSlowError

_NOTHING = 6
"""Minigrid's "done", which changes nothing, as does what is no action."""


class _BoundedStack(list[Any]):
    """The bot's stack of sub-goals, which refuses to be worked on past a CPU limit.

    On some levels two sub-goals push and pop each other for ever inside one ``replan``. Every turn of that loop
    reads the stack, so this is the place to stop it, in any thread and without signals.
    """

    def __init__(self, cpu_seconds: float) -> None:
        super().__init__()
        self._cpu_seconds = cpu_seconds
        self.deadline = float("inf")

    def start(self) -> None:
        self.deadline = time.thread_time() + self._cpu_seconds

    def __getitem__(self, index: Any) -> Any:
        if time.thread_time() > self.deadline:
            raise ExpertTooSlowError(f"the bot found no action within {self._cpu_seconds:g} s of CPU time")
        return super().__getitem__(index)


def _name(datum: Any) -> str:
    if isinstance(datum, ObjDesc | WorldObj):
        return " ".join(w for w in (datum.color, datum.type or "object") if w)
    return ""


def _thought(bot: BabyAIBot) -> str:
    """The sub-goal in hand, worded; the wording is ours."""
    if not bot.stack:
        return "done"
    top = list.__getitem__(bot.stack, -1)
    kind, thing, carried = type(top).__name__, _name(top.datum), bot.mission.unwrapped.carrying
    if kind == "GoNextToSubgoal":
        if not thing:
            return "explore" if top.reason == "Explore" else "make way"
        if top.reason == "PutNext":
            return f"carry it to the {thing}"
        return f"go to the {thing}"
    if kind == "PickupSubgoal":
        return "pick it up"
    if kind == "DropSubgoal":
        return f"put down the {carried.color} {carried.type}" if carried else "put it down"
    if kind == "OpenSubgoal":
        return "open the door"
    return "look around"


def _said(error: Exception) -> str:
    """What an exception of the bot says; most of its assertions say nothing, so that their line has to."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return str(error).strip() or f"{(frame.line or '').strip()} (in {frame.name}, {Path(frame.filename).name})"


class BabyAIExpert:
    """Plays the episode that ``env`` was just reset to.

    The bot advises too: told of another's action it undoes what stands in its way and goes on. Where its plan breaks
    after such an action, a new bot plans from there; what the old one had seen is lost to it.

    Args:
        env: a :class:`BabyAIText`, freshly reset.
        cpu_seconds: CPU time one move may take before the expert gives up.
    """

    def __init__(self, env: BabyAIText, cpu_seconds: float = 2.0) -> None:
        self._env, self._cpu_seconds = env, cpu_seconds
        self._bot = self._new_bot()
        self._last: int | None = None
        self._said: int | None = None
        self._strayed = False

    def _new_bot(self) -> BabyAIBot:
        bot = BabyAIBot(self._env.grid_env)
        stack = _BoundedStack(self._cpu_seconds)
        stack.extend(bot.stack)
        bot.stack = stack
        return bot

    def act(self) -> ExpertStep:
        """The next move.

        Raises:
            ExpertGaveUpError: no plan, a plan that is wrong, or the CPU limit.
        """
        try:
            action = self._replan()
        except ExpertGaveUpError:
            if not self._strayed:
                raise
            self._bot, self._last, self._strayed = self._new_bot(), None, False
            action = self._replan()
        self._last = self._said = action
        return ExpertStep(thought=_thought(self._bot), action=ACTIONS[action])

    def follow(self, action: str) -> None:
        """See :meth:`envs.Expert.follow`."""
        if self._said is None:
            # the bot has to look at every state, or it mistakes what the next action changed
            with contextlib.suppress(ExpertGaveUpError):
                self.act()
        plain = action.strip().lower()
        self._last = ACTIONS.index(plain) if plain in ACTIONS else _NOTHING
        self._strayed |= self._last != self._said
        self._said = None

    def _replan(self) -> int:
        self._bot.stack.start()
        try:
            action = int(self._bot.replan(self._last))
        except ExpertGaveUpError:
            raise
        except Exception as error:  # the bot asserts its way through plans it cannot make
            raise ExpertGaveUpError(f"the bot failed: {type(error).__name__}: {_said(error)}") from error
        if not 0 <= action < len(ACTIONS):
            raise ExpertGaveUpError("the bot believes that it is done, the level does not")
        return action
