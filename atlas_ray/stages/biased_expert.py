"""An expert with habits and slips, as people have them, around the expert of an environment (ours).

ATLaS says that cloning whole trajectories brings the expert's bias. The experts of these environments have next to
none, so that it has to be given to them to be measured.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence

from .. import envs
from ..recipe.loading import ExpertBias


class BiasedExpert:
    """Makes the moves of a bias besides those of the environment's own expert, which is told of every one.

    A sub-goal is new where the expert says a thought that the episode has not had, so that a habit cannot set itself
    off for ever by what it changes; of an expert without thoughts, where the score is one that the episode has not had.
    Whatever is done, the thought is the one that the expert has at that moment: that is what such an expert would say.
    Where it has none in the midst of a habit or a detour, it is the last one.

    Args:
        expert: the environment's own, told of every step, and asked before each; without thoughts not in the midst of a
            habit or a detour, since its answer may be dear (:class:`envs.GoldPath` tries what is left of its list).
        admissible: lists what can be done now; asked only for a move that is drawn, since listing may be dear. A drawn
            move may be the expert's own.
        bias: what it does besides.
        seed: of all draws.
        score: the episode's so far.
    """

    def __init__(
        self,
        expert: envs.Expert,
        admissible: Callable[[], Sequence[str]],
        bias: ExpertBias,
        seed: str,
        score: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._expert, self._admissible, self._bias, self._score = expert, admissible, bias, score
        self._random = random.Random(seed)
        self._had: set[str | float] = set()
        self._thought: str | None = None
        self._ahead: list[str | None] = []
        self._said: str | None = None

    def act(self) -> envs.ExpertStep:
        """The next move.

        Raises:
            ExpertGaveUpError: the environment's expert cannot go on from here, or no move can be drawn.
        """
        if self._said is not None:
            self.follow(self._said)
        action: str | None
        if self._ahead:
            if self._thought is not None:
                with contextlib.suppress(envs.ExpertGaveUpError):
                    self._thought = self._expert.act().thought
            action = self._ahead.pop(0)
        else:
            move = self._expert.act()
            self._thought = move.thought
            self._ahead = self._before(move.thought)
            if self._ahead:
                action = self._ahead.pop(0)
            else:
                action = None if self._random.random() < self._bias.noise else move.action
        self._said = self._drawn() if action is None else action
        return envs.ExpertStep(self._thought, self._said)

    def follow(self, action: str) -> None:
        """See :meth:`envs.Expert.follow`."""
        self._said = None
        self._expert.follow(action)

    def _before(self, thought: str | None) -> list[str | None]:
        """What is done before the expert's own move; None is a random one."""
        sub_goal = self._score() if thought is None else thought
        if sub_goal in self._had:
            return []
        self._had.add(sub_goal)
        habit = self._bias.habit if self._random.random() < self._bias.habit_share else []
        return [*habit, *[None] * self._bias.detour]

    def _drawn(self) -> str:
        actions = sorted({*self._admissible()})
        if not actions:
            raise envs.ExpertGaveUpError("the environment lists no actions, of which a random one could be drawn")
        return self._random.choice(actions)
