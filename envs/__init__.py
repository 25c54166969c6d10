"""Gymnasium text environments: ``gym.make("envs:BabyAIText/GoToLocal-v0")``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from .babyai_expert import BabyAIExpert
from .babyai_text import BabyAIText, levels, resolve_level
from .core import ExpertGaveUpError, ExpertStep, TextEnv, UnknownEnvironmentError

__all__ = [
    "BabyAIExpert",
    "BabyAIText",
    "ExpertGaveUpError",
    "ExpertStep",
    "TextEnv",
    "UnknownEnvironmentError",
    "full_id",
    "ids",
    "make",
]

for _level in levels():
    gym.register(f"BabyAIText/{_level}", entry_point=BabyAIText, kwargs={"level": _level})


def ids() -> list[str]:
    """Every registered id that can run on this machine now."""
    return sorted(i for i in gym.registry if i.startswith("BabyAIText/"))


def full_id(name: str) -> str:
    """The registered id of a name as people write it: ``GoToLocal`` -> ``BabyAIText/GoToLocal-v0``.

    Raises:
        UnknownEnvironmentError: no such environment.
    """
    return f"BabyAIText/{resolve_level(name)}"


def make(name: str, **kwargs: Any) -> BabyAIText:
    """The bare environment (no wrappers), cloneable: what roll-outs and selection use."""
    return BabyAIText(resolve_level(name), **kwargs)
