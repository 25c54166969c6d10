"""The families of environments of this package, registered when this is imported."""

from __future__ import annotations

from . import agentgym, alfworld, names, science_world, textworld, textworld_express
from .babyai_levels import LEVELS
from .registry import Adapter, Family, register, register_adapter

register(Family("BabyAIText", "atlas_ray.envs.babyai_text:BabyAIText", lambda: LEVELS, lambda: None))
register(
    Family(
        "ScienceWorld",
        "atlas_ray.envs.science_world:ScienceWorld",
        lambda: [f"{task}-v0" for task in science_world.VARIATIONS],
        science_world.SIMULATOR.missing,
    )
)
register(
    Family(
        "TextWorldExpress",
        "atlas_ray.envs.textworld_express:TextWorldExpress",
        lambda: [f"{game}-v0" for game in textworld_express.GAMES],
        textworld_express.SIMULATOR.missing,
    )
)
register(
    Family(
        "AgentGym",
        "atlas_ray.envs.agentgym:AgentGym",
        lambda: agentgym.TASKS,
        agentgym.missing,
        lambda task: agentgym.missing(task) is None,
    )
)
register(
    Family(
        "AgentGymBabyAI",
        "atlas_ray.envs.agentgym_babyai:BabyAIAgentGym",
        lambda: ["babyai-v0"],
        lambda: None,
    )
)
register(
    Family(
        "AgentGymSciWorld",
        "atlas_ray.envs.science_world:SciWorldAgentGym",
        lambda: ["sciworld-v0"],
        science_world.SIMULATOR.missing,
    )
)
register(
    Family(
        "TextWorld",
        "atlas_ray.envs.textworld:TextWorld",
        lambda: [f"{task}-v0" for task in textworld.tasks()],
        textworld.missing,
    )
)
register(
    Family(
        "ALFWorld",
        "atlas_ray.envs.alfworld:ALFWorld",
        lambda: [f"{task}-v0" for task in alfworld.tasks()],
        alfworld.missing,
    )
)
register_adapter("openenv", Adapter("atlas_ray.envs.openenv:OpenEnv", names.openenv))
register_adapter("verifiers", Adapter("atlas_ray.envs.verifiers:Verifiers", names.verifiers))
