"""Playing episodes: many side by side in one process, an empty place filled as soon as an episode ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import envs

from .agents import Agent
from .trajectory import Step

# Seeds of a run lie in blocks that never meet: training episodes, then evaluation, then the switch.
TRAIN, EVALUATE, SWITCH_TRAIN, SWITCH_SELECT, SWITCH_TEST = range(5)


def seed_block(run_seed: int, use: int) -> int:
    """First environment seed for a use (``TRAIN``, ``EVALUATE``, ...) of a run with seed ``run_seed`` below 1000."""
    return (use * 1000 + run_seed) * 100_000


def decision_seed(episode: str, step: int) -> int:
    """Seed of one sampled decision: the same wherever and beside whatever the episode is played."""
    return int.from_bytes(hashlib.sha256(f"{episode}/{step}".encode()).digest()[:7], "big")


@dataclass
class Start:
    """An episode about to be played by an agent; ``steps`` were already taken (by an expert, say)."""

    id: str
    env: envs.TextEnv
    instruction: str
    observation: str
    steps: list[Step] = field(default_factory=list)


@dataclass
class Finished:
    """How an episode ended. ``error`` says why it is unusable: an environment that crashed, a full context."""

    start: Start
    steps: list[Step]
    score: float
    success: bool
    error: str | None = None

    @property
    def reward(self) -> float:
        """Sum of rewards from the start on."""
        return sum(s.reward for s in self.steps)


def fresh(env_name: str, seed: int, max_steps: int | None, episode_id: str | None = None) -> Start:
    """A new episode of an environment."""
    env = envs.make(env_name, max_steps=max_steps)
    observation, info = env.reset(seed=seed)
    return Start(episode_id or f"{envs.full_id(env_name)}/{seed}", env, info["goal"], observation)


def play(agent: Agent, lanes: Iterable[Iterable[Start]], horizon: int | None = None) -> Iterator[Finished]:
    """Play every start to its end with ``agent``, as many side by side as it has slots.

    The starts of a lane are played one after the other in one slot, whose cache they share: put starts with a common
    prefix into a lane. ``horizon`` bounds the steps of every episode from its start. Lanes and starts are drawn only
    when their time comes. Episodes are yielded as they end.
    """
    waiting = iter(lanes)
    lane_of: dict[int, Iterator[Start]] = {}

    def following_start(slot: int) -> Start | None:
        while True:
            if slot in lane_of and (start := next(lane_of[slot], None)) is not None:
                return start
            lane = next(waiting, None)
            if lane is None:
                return None
            lane_of[slot] = iter(lane)

    running: dict[int, tuple[Start, list[Step], str]] = {}
    free = list(range(agent.engine.slots))
    while True:
        for slot in list(free):
            if (start := following_start(slot)) is None:
                continue
            free.remove(slot)
            agent.start(slot, start.instruction, start.steps, start.observation)
            running[slot] = (start, [], start.observation)
        if not running:
            return
        for slot in [s for s in running if not agent.fits(s)]:
            start, steps, _ = running.pop(slot)
            free.append(slot)
            yield Finished(start, steps, 0.0, False, "the context of the model is full")
        slots = sorted(running)
        if not slots:
            continue
        offered = [running[s][0].env.admissible() for s in slots]
        seeds = [decision_seed(running[s][0].id, len(running[s][1])) for s in slots]
        for slot, decision in zip(slots, agent.act(slots, offered, seeds), strict=True):
            start, steps, observation = running[slot]
            try:
                following, reward, terminated, truncated, info = start.env.step(decision.action)
            except Exception as error:  # a crashed environment must not end the others' episodes
                del running[slot]
                free.append(slot)
                yield Finished(start, steps, 0.0, False, f"the environment failed: {type(error).__name__}: {error}")
                continue
            step = Step(observation=observation, thought=decision.thought, action=decision.action, reward=reward)
            steps.append(step)
            if terminated or truncated or (horizon is not None and len(steps) >= horizon):
                del running[slot]
                free.append(slot)
                yield Finished(start, steps, info["score"], info["success"])
            else:
                agent.advance(slot, step, following)
                running[slot] = (start, steps, following)
