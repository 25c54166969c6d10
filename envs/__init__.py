"""Gymnasium text environments: ``gym.make("atlas_ray.envs:BabyAIText/GoToLocal-v0")``."""

from __future__ import annotations

if __name__ == "envs":  # imported by its old name, in a checkout: there is one module, whatever it is called
    import sys
    import warnings
    from importlib import import_module

    warnings.warn("envs is now atlas_ray.envs", DeprecationWarning, stacklevel=2)
    sys.modules[__name__] = import_module("atlas_ray.envs")
    globals().update(vars(sys.modules[__name__]))  # so that what follows imports nothing under the old name

from . import families  # noqa: F401  (registers them)
from .babyai_expert import BabyAIExpert
from .babyai_text import BabyAIText
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
)
from .text_space import TextSpace

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
]
