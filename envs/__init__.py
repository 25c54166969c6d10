"""Gymnasium text environments: ``gym.make("atlas_ray.envs:BabyAIText/GoToLocal-v0")``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if __name__ == "envs":  # imported by its old name, in a checkout: there is one module, whatever it is called
    import sys
    import warnings
    from importlib import import_module

    warnings.warn("envs is now atlas_ray.envs", DeprecationWarning, stacklevel=2)
    sys.modules[__name__] = import_module("atlas_ray.envs")
    globals().update(vars(sys.modules[__name__]))  # so that what follows imports nothing under the old name

from . import families  # noqa: F401  (registers them)
from .core import (
    SPLITS,
    EnvironmentDiedError,
    Expert,
    ExpertGaveUpError,
    ExpertStep,
    ExpertTooSlowError,
    GoldPath,
    MissingExtraError,
    TextEnv,
    Turn,
    UnknownEnvironmentError,
)
from .registry import (
    Family,
    adapted,
    arguments,
    drain,
    environment_class,
    foreign_module,
    full_id,
    ids,
    lease,
    make,
    missing,
    register,
    release,
    versions,
)
from .text_space import TextSpace

if TYPE_CHECKING:
    from .babyai_expert import BabyAIExpert
    from .babyai_text import BabyAIText

__all__ = [
    "SPLITS",
    "BabyAIExpert",
    "BabyAIText",
    "EnvironmentDiedError",
    "Expert",
    "ExpertGaveUpError",
    "ExpertStep",
    "ExpertTooSlowError",
    "Family",
    "GoldPath",
    "MissingExtraError",
    "TextEnv",
    "TextSpace",
    "Turn",
    "UnknownEnvironmentError",
    "adapted",
    "arguments",
    "drain",
    "environment_class",
    "foreign_module",
    "full_id",
    "ids",
    "lease",
    "make",
    "missing",
    "register",
    "release",
    "versions",
]


def __getattr__(name: str) -> Any:
    """What brings minigrid with it, when it is asked for."""
    if name == "BabyAIExpert":
        from .babyai_expert import BabyAIExpert

        return BabyAIExpert
    if name == "BabyAIText":
        from .babyai_text import BabyAIText

        return BabyAIText
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
