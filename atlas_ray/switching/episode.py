"""An episode in which models take turns, its environment, and its expert; one that dies is replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .. import envs
from ..agents.attempts import MOST_ATTEMPTS
from ..agents.rollout import NO_ENV, EnvSpec, start_episode
from ..agents.token_agent import Decision, LostAnswer
from ..data.records import Step
from ..data.replies import Replies
from ..errors import InputError
from .past import Past
from .spending import NOTHING, Amount

NOBODY = -1
"""Number of the model that has lost an episode whose environment died."""
T = TypeVar("T")


@dataclass
class Episode:
    """A text episode in play. ``acted`` tells for every step which model took it, ``replies`` what each wrote.

    ``lost``: the answer of model ``lost_by`` that was none, which has ended it; or its environment has (``NOBODY``).
    """

    spec: EnvSpec
    seed: int
    env_seed: int
    env: envs.TextEnv
    goal: str
    observation: str
    steps: list[Step] = field(default_factory=list)
    acted: list[int] = field(default_factory=list)
    success: bool = False
    score: float = 0.0
    over: bool = False
    deaths: int = 0
    expert: envs.Expert | None = None
    replies: list[Replies] = field(default_factory=list)
    lost: LostAnswer | None = None
    lost_by: int = 0
    charged: float = 0.0
    """Units of :class:`ModelUsage` that outcomes have told of."""
    spent: Amount = NOTHING
    """What all models are paid for, where the game counts it; at worst where nobody tells."""

    @property
    def id(self) -> str:
        """The same for the same environment and seed, wherever it is played."""
        return f"{self.spec.id}/{self.seed}"

    def fail(self, why: object) -> None:
        """Its environment is gone: it is over, and says nothing of the models."""
        self.over, self.success, self.lost_by = True, False, NOBODY
        self.lost = LostAnswer(f"the environment failed: {why}", replies={})

    @property
    def past(self) -> Past:
        """What was seen and done so far."""
        seen = (*(step.observation for step in self.steps), self.observation)
        return Past(seen, tuple(step.action for step in self.steps), tuple(self.acted))

    @property
    def text(self) -> str:
        """What a switch reads: goal and observation."""
        return f"{self.goal}\n{self.observation}"


def with_recovery(episode: Episode, do: Callable[[], T]) -> T:
    """Do something with the episode's environment; if that dies, the episode is replayed to the same state.

    The models' answers would be lost otherwise. A death in a replay counts like any other.

    Raises:
        envs.EnvironmentDiedError: it died ``MOST_ATTEMPTS`` times, or its replay went another way.
    """
    guided, died = episode.expert is not None, False
    while True:
        try:
            if died and not restore_env(episode, guided):
                episode.deaths = MOST_ATTEMPTS
                raise envs.EnvironmentDiedError("the environment died, and the replay of its episode went another way")
            return do()
        except envs.EnvironmentDiedError:
            episode.deaths, died = episode.deaths + 1, True
            if episode.deaths >= MOST_ATTEMPTS:
                raise


class _NoExpert:
    """Of an episode for which the environment's expert has no plan."""

    def act(self) -> envs.ExpertStep:
        raise envs.ExpertGaveUpError("this episode has no expert")

    def follow(self, action: str) -> None:
        pass


def expert_of(episode: Episode) -> envs.Expert:
    """The expert of its environment, in its present state.

    Raises:
        InputError: the environment has none.
    """
    if type(episode.env).expert is envs.TextEnv.expert:
        raise InputError(f"{episode.spec.id} has no expert", field="switch.levels")
    try:
        return episode.env.expert()
    except envs.ExpertGaveUpError:
        return _NoExpert()


def expert_action(episode: Episode) -> str:
    """What its expert would do now."""
    assert episode.expert is not None
    return episode.expert.act().action


def take_step(episode: Episode, decision: Decision) -> tuple[str, float, bool, bool, dict[str, Any]]:
    """Do it in the environment, with the expert looking on."""
    if episode.expert is not None:
        episode.expert.follow(decision.action)
    return episode.env.step(decision.action)


def restore_env(episode: Episode, guided: bool) -> bool:
    """Bring a new environment to the state of the episode, ``guided`` with its expert; whether it came there."""
    envs.release(episode.env)
    # what was given back may be leased to another episode, so it is held no longer, whatever happens next
    episode.env, episode.expert = NO_ENV, None
    episode.env = start_episode(episode.spec, episode.env_seed).env
    episode.expert = expert_of(episode) if guided else None
    observation = episode.observation
    for step in episode.steps:
        if episode.expert is not None:
            episode.expert.follow(step.action)
        observation = episode.env.step(step.action)[0]
    return observation == episode.observation
