"""A Taskset for verifiers over an environment of ours: what the packages of ``atlas-ray env export`` are made of.

Written after ``verifiers`` 0.4.0 (Apache-2.0), whose ``Env.run`` plays the user: the environment's texts are the user's
turns, the model's replies its actions. Needs the extra `verifiers`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

import verifiers.v1 as vf
from pydantic import Field

from .agentgym_dialect import parse_react
from .core import TextEnv
from .registry import environment_class, lease, make, release

INSTRUCTION = (
    "You act in a text environment, one action a turn. You may think first. End your answer with a line that begins "
    "with 'Action:' and holds one action."
)
_THREAD = ThreadPoolExecutor(1, "atlas-ray")
"""Plays all episodes of a process, a step after the other: environments need not know of threads."""


class EpisodeData(vf.TaskData):
    """Which episode of which environment a task is."""

    env: str
    settings: dict[str, Any]
    episode_split: str | None = None
    variation: int


class EpisodeTask(vf.Task[EpisodeData]):
    """One episode."""


class EpisodesConfig(vf.TasksetConfig):
    """Which episodes there are."""

    split: str | None = None
    """``train``, ``dev`` or ``test``; None takes the package's own. Of an environment without splits it is None."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the environment, over those of the package."""


class EpisodesTaskset(vf.Taskset[EpisodeTask, EpisodesConfig]):
    """The episodes of an environment; a package of ``atlas-ray env export`` names which."""

    env: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}
    split: ClassVar[str | None] = None

    def load(self) -> Iterator[EpisodeTask]:
        """A task per variation, in their order; without end where any seed is an episode."""
        split = self.config.split or self.split
        settings = {**self.settings, **self.config.settings}
        made = make(self.env, **settings)
        try:
            episodes = made.variations(made.task, split)
        finally:
            made.close()
        for variation in episodes:
            data = EpisodeData(
                name=f"{self.env}#{variation}",
                system_prompt=INSTRUCTION,
                env=self.env,
                settings=settings,
                episode_split=split,
                variation=variation,
            )
            yield EpisodeTask(data, self.config.task)

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.INFINITE = environment_class(cls.env).unbounded_episodes


class PlayConfig(vf.EnvConfig):
    """Who plays: by default in this process, as a text game hands the model nothing that could be run."""

    player: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class PlayEnv(vf.Env[PlayConfig]):
    """An episode: the environment speaks, the player answers with an action, until one of them ends it.

    The reward ``score`` is the environment's own, 0 to 1; the metric ``success`` is 1 only where the environment said
    so. An episode whose environment is lost is an error, and has neither.
    """

    async def run(self, task: EpisodeTask, agents: vf.Agents) -> None:
        """Play the task's episode."""
        data = task.data
        game = await _thread(partial(lease, data.env, **data.settings))
        try:
            options = {"variation": data.variation, "split": data.episode_split}
            options = {k: v for k, v in options.items() if v is not None}
            seen, info = await _thread(partial(game.reset, options=options))
            async with agents.player.interaction(task) as interaction:
                segment = await interaction.turn(
                    f"Goal: {info['goal']}\n\n{await _thread(partial(_shown, game, seen))}"
                )
                while not segment.terminated:
                    action = parse_react(segment.last_reply)[1]
                    seen, _, terminated, truncated, info = await _thread(partial(game.step, action))
                    if terminated or truncated:
                        break
                    segment = await interaction.turn(await _thread(partial(_shown, game, seen)))
            trace = interaction.trace
            trace.record_reward("score", info["score"], 1.0)
            trace.record_metrics({"success": float(info["success"]), "steps": float(len(game.history))})
        finally:
            await asyncio.shield(_thread(partial(release, game)))


def _shown(game: TextEnv, seen: str) -> str:
    offered = game.admissible() if game.cheap_list else []
    return f"{seen}\n\nPossible actions: {', '.join(itertools.islice(offered, 100))}" if offered else seen


async def _thread(work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(_THREAD, work)
