"""Gymnasium text environments: ``gym.make("envs:BabyAIText/GoToLocal-v0")``."""

from __future__ import annotations

from . import agentgym, alfworld, science_world, textworld, textworld_express
from .babyai_expert import BabyAIExpert
from .babyai_text import BabyAIText, levels
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
    "full_id",
    "ids",
    "lease",
    "make",
    "missing",
    "register",
    "release",
]

register(Family("BabyAIText", "envs.babyai_text:BabyAIText", lambda: list(levels()), lambda: None))
register(
    Family(
        "ScienceWorld",
        "envs.science_world:ScienceWorld",
        lambda: [f"{task}-v0" for task in science_world.VARIATIONS],
        science_world.SIMULATOR.missing,
    )
)
register(
    Family(
        "TextWorldExpress",
        "envs.textworld_express:TextWorldExpress",
        lambda: [f"{game}-v0" for game in textworld_express.GAMES],
        textworld_express.SIMULATOR.missing,
    )
)
register(
    Family(
        "AgentGym",
        "envs.agentgym:AgentGym",
        lambda: agentgym.TASKS,
        agentgym.missing,
        lambda task: agentgym.missing(task) is None,
    )
)
register(
    Family(
        "AgentGymBabyAI",
        "envs.agentgym_dialect:BabyAIAgentGym",
        lambda: ["babyai-v0"],
        lambda: None,
    )
)
register(
    Family(
        "AgentGymSciWorld",
        "envs.science_world:SciWorldAgentGym",
        lambda: ["sciworld-v0"],
        science_world.SIMULATOR.missing,
    )
)
register(
    Family(
        "TextWorld",
        "envs.textworld:TextWorld",
        lambda: [f"{task}-v0" for task in textworld.tasks()],
        textworld.missing,
    )
)
register(
    Family(
        "ALFWorld",
        "envs.alfworld:ALFWorld",
        lambda: [f"{task}-v0" for task in alfworld.tasks()],
        alfworld.missing,
    )
)
