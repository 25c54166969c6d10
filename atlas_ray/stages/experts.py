"""Episodes of an environment's own expert, why there is none, and what helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .. import envs
from ..agents.rollout import EnvSpec, EpisodeStart, start_episode
from ..data.records import Step, Trajectory
from ..recipe.loading import ExpertBias
from .biased_expert import BiasedExpert

Kind = Literal["gave up", "too slow", "limit", "failed", "lost"]
_HELP: dict[str, str] = {
    "gave up": "leave this environment out, its expert cannot play it",
    "too slow": "raise collect.cpu_seconds",
    "limit": "raise collect.max_steps",
    "failed": "leave this environment out, its expert ends its episodes without success",
    "lost": "see that what plays it runs, a server or a JVM",
}


class Unsolved(str):
    """Why there is no episode of an expert.

    ``kind``: it gave up, took too long for a move, reached the limit of steps, ended the episode without success, or
    the episode was lost to its environment.
    """

    kind: Kind


def unsolved(why: str, kind: Kind) -> Unsolved:
    """A reason of a kind."""
    made = Unsolved(why)
    made.kind = kind
    return made


@dataclass(frozen=True)
class Biased:
    """How far experts are biased, and the seed of their run."""

    bias: ExpertBias
    seed: int

    def expert(self, spec: EnvSpec, episode: int, env: envs.TextEnv, plain: envs.Expert) -> envs.Expert:
        """The expert of an episode: what it draws depends on the run, the environment and the episode alone."""
        seed = f"{self.seed}/{spec.id}/{episode}"
        return BiasedExpert(plain, env.admissible, self.bias, seed, lambda: env.score)


def expert_episode(
    spec: EnvSpec,
    seed: int,
    cpu_seconds: float,
    begin: Callable[[EnvSpec, int], EpisodeStart] = start_episode,
    biased: Biased | None = None,
) -> Trajectory | Unsolved:
    """One episode of the environment's expert, or why there is none.

    Args:
        spec: the environment.
        seed: of the episode.
        cpu_seconds: CPU time of a move.
        begin: begins the episode.
        biased: makes the expert one with a bias, which its trajectory names as its source.

    Raises:
        envs.EnvironmentDiedError: the episode is lost, which says nothing of the expert.
    """
    start = begin(spec, seed)
    env, observation, steps = start.env, start.observation, []
    try:
        expert = env.expert(cpu_seconds)
        if biased:
            expert = biased.expert(spec, seed, env, expert)
        while True:
            move = expert.act()
            if biased:
                expert.follow(move.action)
            following, reward, terminated, truncated, info = env.step(move.action)
            steps.append(Step(observation=observation, thought=move.thought, action=move.action, reward=reward))
            observation = following
            if terminated or truncated:
                break
    except envs.ExpertTooSlowError as error:
        return unsolved(str(error), "too slow")
    except envs.ExpertGaveUpError as error:
        return unsolved(str(error), "gave up")
    finally:
        envs.release(env)
    if not info["success"]:
        if truncated:
            return unsolved(f"not solved in {len(steps)} steps, the limit: see collect.max_steps", "limit")
        return unsolved(f"ended without success after {len(steps)} steps", "failed")
    return Trajectory(
        id=start.id,
        env=spec.id,
        task=spec.id.split("/")[-1],
        seed=seed,
        instruction=start.instruction,
        steps=tuple(steps),
        score=info["score"],
        success=True,
        source=", ".join(("expert", *(biased.bias.words if biased else ()))),
    )


def help_for(rows: Iterable[dict[str, Any]], bias: ExpertBias) -> str:
    """What helps against the most frequent kind of reason. Rows of earlier versions have no ``kind``."""
    kinds = Counter(row.get("kind") for row in rows if row["why"] is not None)
    helps = _HELP.get(str(kinds.most_common(1)[0][0]), _HELP["gave up"]) if kinds else _HELP["gave up"]
    return f"give the expert less of {' and '.join(bias.words)}, {helps}" if bias.words else helps
