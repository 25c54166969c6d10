"""Episodes of random calls, played once, from which every switch of a recipe learns in place of playing its own (ours).

At play each switch learns from its own few hundred episodes, and from no other's. Here all costs, budgets and training
seeds learn from the same ones, which say of every model what it does to a state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..agents.rollout import SWITCH_RANDOM
from ..data.records import actor_number
from ..models.encoders import make_encoder
from .episode_file import EpisodeFile
from .logs import LoggedEpisode
from .policies import PolicySpec, Row, chance_of_a_run, scorable_episodes
from .stage_context import StageContext
from .transitions import Transitions, write_transitions


def play_random_calls(context: StageContext) -> None:
    """Play a recipe's ``random_episodes`` and write what is learned from them, unless it is there.

    Writes ``switch/random.jsonl``, a row per episode with its steps, and ``switch/logs.parquet``. An episode that was
    lost teaches nothing.

    Raises:
        AtlasError: more of a model's answers are none than may be.
    """
    settings, layout = context.settings, context.layout
    if layout.switch_logs.is_file():
        return
    models, run = len(settings.models), settings.run_length
    begins = chance_of_a_run(settings.random_rate, run)
    spec = PolicySpec("random calls", "mixed", action=models - 1, rate=begins, run=run)
    count, place = settings.random_episodes, layout.switch_training("random")
    file = EpisodeFile(context, place, "train", SWITCH_RANDOM, count, record=True)
    # in the order of their seeds, whoever played them
    rows = sorted(scorable_episodes(file.play([spec]), spec.name), key=lambda row: int(row["seed"]))
    rows = [row for row in rows if row["episode"]["steps"]]
    encoder = make_encoder(settings.encoder, settings.features)
    limits, episodes = [row["limit"] for row in rows], [logged_episode(row, models) for row in rows]
    known = Transitions.of(episodes, encoder, limits, settings.signals, context.weights)
    rewards = np.array([step["reward"] for row in rows for step in row["episode"]["steps"]])
    write_transitions(layout.switch_logs, known.columns(models, run, settings.gamma, rewards))
    called = sum(row["calls"] for row in rows) / len(known.actions)
    context.say(f"  {len(rows):,} episodes of random calls, {len(known.actions):,} steps, {called:.0%} of them calls")


def logged_episode(row: Row, models: int, probabilities: Sequence[float] | None = None) -> LoggedEpisode:
    """A row of :func:`atlas_ray.switching.evaluate.rollout_policy` with ``record``, as what was logged.

    Without ``probabilities`` they are not a number: to learn, nobody asks how likely a choice was.
    """
    steps, goal = row["episode"]["steps"], row["episode"]["instruction"]
    return LoggedEpisode(
        id=f"{row['level']}/{row['seed']}",
        texts=tuple(f"{goal}\n{step['observation']}" for step in steps),
        actors=tuple(actor_number(step["actor"], models) or 0 for step in steps),
        probabilities=(math.nan,) * len(steps) if probabilities is None else tuple(probabilities),
        outcome=row["return"],
        success=row["success"],
        money=None,
        actions=tuple(step["action"] for step in steps),
    )
