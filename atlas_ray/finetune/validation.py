"""Held-in success of a model while it is being trained."""

from __future__ import annotations

from typing import Any, get_args

import torch

from ..agents.rollout import VALIDATE, EnvSpec, EpisodeStarter, env_spec, rollout, seed_block
from ..agents.spec import agent_spec
from ..data.replies import Replies, ReplyOutcome, summed
from ..errors import AtlasError
from ..recipe.loading import Recipe
from .process_group import ProcessGroup


def levels(recipe: Recipe) -> list[EnvSpec]:
    """What is played: the held-in levels, or those of the expert where there is no ``[evaluate]``."""
    if recipe.evaluate:
        return [env_spec(recipe, name, recipe.evaluate.max_steps, "dev") for name in recipe.evaluate.held_in]
    assert recipe.collect is not None
    return [env_spec(recipe, name, recipe.collect.max_steps, "dev") for name in recipe.collect.levels]


def success(recipe: Recipe, model: Any, tokenizer: Any, group: ProcessGroup, replies: Replies | None = None) -> float:
    """Share of the validation's episodes that succeed; the group's workers play a part each.

    Args:
        recipe: with ``finetune.validation``.
        model: plays in this process, by transformers, whatever engine the recipe has.
        tokenizer: the model's.
        group: whose every worker calls this with the same weights.
        replies: takes what became of those that the model wrote, to all workers.

    Raises:
        AtlasError: every episode was lost to its environment.
    """
    assert recipe.finetune is not None and recipe.finetune.validation is not None
    first = seed_block(recipe.seed, VALIDATE)
    episodes = [
        (spec, seed)
        for spec in levels(recipe)
        for seed in range(first, first + min(recipe.finetune.validation.episodes, spec.episodes()))
    ]
    mine = episodes[group.rank :: group.size]
    spec, names = agent_spec(recipe, "trained"), get_args(ReplyOutcome)

    def outcomes() -> list[int]:
        from ..engines import TransformersEngine  # (takes seconds)

        engine = TransformersEngine(model, max(1, min(recipe.num_envs, len(mine))), tokenizer, device=group.device)
        agent = spec.new_agent(engine)
        beginnings = EpisodeStarter()
        ended = list(rollout(agent, ([beginnings.start(*episode)] for episode in mine)))
        engine.close()
        written = summed(e.replies for e in ended)
        return [sum(e.success for e in ended), sum(not e.lost for e in ended), *(written[name] for name in names)]

    # agreed on before the sum, in which the others would wait for one that failed
    counts = group.run_all_or_raise(outcomes)
    totals = group.sum(torch.tensor(counts, dtype=torch.float64, device=group.device)).tolist()
    if replies is not None:
        replies.add({name: int(count) for name, count in zip(names, totals[2:], strict=True) if count})
    if not totals[1]:
        raise AtlasError("no episode of the validation could be played: every one was lost to its environment")
    return totals[0] / totals[1]
