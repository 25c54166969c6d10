"""What environments of others cannot do: said before a run begins, and refused where a selector needs it (ours)."""

from __future__ import annotations

from .. import envs
from ..agents.rollout import env_spec
from ..errors import InputError
from ..recipe.loading import Recipe
from ..rundir.progress import say
from .table import STAGES

REPLAYING = ("value", "deviation", "verified")
"""Selectors that replay what was collected."""


def check_lacks(recipe: Recipe) -> None:
    """Say what environments of others cannot do, and refuse the selectors that need it.

    Raises:
        InputError: names environment and selector, or an environment that cannot be asked.
    """
    named = {name: field for stage in STAGES for field, name, _, _ in stage.environments(recipe)}
    collected = recipe.collect.levels if recipe.collect else ()
    for name, field in named.items():
        spec = env_spec(recipe, name, None, "train")
        try:
            lacks = spec.lacks()
        except envs.EnvironmentDiedError as error:
            raise InputError(f"{name}: {error}", field=field) from None
        for what, why in lacks.items():
            if what != "replay" or why != lacks.get("seeds"):
                say(f"{spec.id} lacks {what}: {why}")
        if "replay" not in lacks or name not in collected or recipe.select is None:
            continue
        for selector in (s for s in REPLAYING if s in recipe.select.selectors):
            raise InputError(
                f"{selector} replays episodes, and {spec.id} cannot be replayed: {lacks['replay']}",
                field="select.selectors",
            )
        if recipe.select.start_after:
            raise InputError(
                f"replays episodes, and {spec.id} cannot be replayed: {lacks['replay']}", field="select.start_after"
            )
