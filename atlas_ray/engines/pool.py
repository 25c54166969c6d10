"""The engine actors of a recipe: where they are put, and which worker has its place at which."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..recipe.schema import Engine as Settings
from ..rundir.progress import duration, say
from .kept import KeptEngines, KeptServer, kept_engines
from .reloading import Reloaded
from .remote import LOADING, EngineLease
from .server import spawn


class EnginePool:
    """Engine actors with one model, for as long as the block lasts. Ray has to run.

    While engines are kept (:func:`atlas_ray.engines.kept.engines_kept`) it takes those that are there, which load this
    model in place of theirs, and leaves its own behind.

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
        shares = [len(range(s, workers, servers)) * slots for s in range(servers)]
        self._kept = kept_engines()
        self._servers = [
            self._server(settings, model, share, resources or {}, f"engine-{Path(model).name}-{index}")
            for index, share in enumerate(shares)
        ]
        self.servers: list[Any] = [each.server for each in self._servers]
        self.leases = tuple(
            EngineLease(
                self.servers[w % servers], model, w // servers * slots, slots, settings.timeout, shares[w % servers]
            )
            for w in range(workers if servers else 0)
        )
        _load(model, self._servers, shares)

    def _server(self, settings: Settings, model: str, slots: int, resources: dict[str, float], name: str) -> KeptServer:
        if self._kept and (found := self._kept.take(settings, resources, model)):
            return found
        kept = self._kept or KeptEngines()
        server = spawn(settings, resources, name, kept.rank, kept.sleep)
        server.load.remote(model, slots)
        return KeptServer(server, settings, resources, model)

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        import ray

        if self._kept and kind is None:
            self._kept.idle += self._servers
            return
        for server in self.servers:
            ray.kill(server)


def _load(model: str, servers: Sequence[KeptServer], slots: Sequence[int]) -> None:
    """Let those that have another model load this one, and say how they took it.

    Raises:
        InputError: they cannot run this model.
    """
    import ray

    other = [(kept, share) for kept, share in zip(servers, slots, strict=True) if kept.model != model]
    if not other:
        return
    begun = time.monotonic()
    try:
        expected = ray.get(other[0][0].server.expected.remote(model), timeout=LOADING)
        for kept, share in other:
            kept.server.load.remote(model, share, expected)
            kept.model = model
        asked = [kept.server.reloaded.remote(model, share) for kept, share in other]
        how: list[Reloaded] = ray.get(asked, timeout=LOADING)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        for kept, _ in other:  # started again, each loads what its workers ask for
            kept.model = model
            ray.kill(kept.server, no_restart=False)
        say(f"  an engine was lost when it was to take other weights, and starts again: {str(error).splitlines()[0]}")
        return
    anew = sum(each.anew for each in how)
    told = f", {anew} of them started anew" if anew else ""
    checked = [each for each in how if each.off is not None]
    if checked:
        off, before = (max(getattr(each, name) for each in checked) for name in ("off", "before"))
        told += f"; a probe text's log-probabilities are off by {off:.2g} per token (with the old ones by {before:.2g})"
    count = "1 engine" if len(other) == 1 else f"{len(other)} engines"
    say(f"  {count} took the weights of {Path(model).name} in {duration(time.monotonic() - begun)}{told}")
