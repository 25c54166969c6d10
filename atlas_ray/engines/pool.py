"""The engine actors of a recipe: where they are put, and which worker has its place at which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..recipe.schema import Engine as Settings
from .remote import EngineLease
from .server import spawn


class EnginePool:
    """Engine actors with one model, for as long as the block lasts. Ray has to run.

    Args:
        settings: the ``[engine]`` table; with ``actors = 0`` there are none, and every worker holds a model itself.
        model: shipped name, directory or Hugging Face id.
        workers: how many share the actors, evenly.
        slots: episodes side by side of each worker.
        resources: custom ones that each asks for besides.
    """

    def __init__(
        self, settings: Settings, model: str, workers: int, slots: int, resources: dict[str, float] | None = None
    ) -> None:
        servers = min(settings.actors, workers)
        shares = [len(range(s, workers, servers)) for s in range(servers)]
        self.servers: list[Any] = [
            spawn(settings, model, share * slots, resources or {}, f"engine-{Path(model).name}-{index}")
            for index, share in enumerate(shares)
        ]
        self.leases = tuple(
            EngineLease(self.servers[w % servers], model, w // servers * slots, slots, settings.timeout)
            for w in range(workers if servers else 0)
        )

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(self, *exc: object) -> None:
        import ray

        for server in self.servers:
            ray.kill(server)
