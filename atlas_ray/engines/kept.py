"""Engine actors that outlive the pool that they were started for: the next takes them, with other weights."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..cluster.capacity import nodes_of, resources_of
from ..recipe.loading import Recipe
from ..recipe.schema import Engine as Settings
from ..recipe.select import BY_BASE
from ..rundir.progress import duration, say
from .remote import LOADING

_open: list[KeptEngines] = []


@dataclass(eq=False)
class KeptServer:
    """An engine actor: how it was started, and the model that it was given last."""

    server: Any
    settings: Settings
    resources: dict[str, float]
    model: str


@dataclass
class KeptEngines:
    """The engine actors that nobody uses now.

    Attributes:
        rank: highest rank of an adapter that those started meanwhile have room for; 0 for none.
        sleep: whether those started meanwhile shall be able to give a GPU's memory back for a while.
    """

    rank: int = 0
    sleep: bool = False
    idle: list[KeptServer] = field(default_factory=list)

    def has(self, model: str) -> bool:
        """Whether one of them holds this model."""
        return any(kept.model == model for kept in self.idle)

    def take(self, settings: Settings, resources: dict[str, float], model: str) -> KeptServer | None:
        """One that was started alike, with this model where there is one. Others end: they would be in the way."""
        alike = [k for k in self.idle if k.settings == settings and k.resources == resources]
        if len(alike) < len(self.idle):
            self.idle = [k for k in self.idle if k not in alike]
            self.end()
        found = max(alike, key=lambda k: k.model == model, default=None)
        self.idle = [k for k in alike if k is not found]
        return found

    def end(self) -> None:
        """End all of them."""
        if self.idle:
            import ray

            for kept in self.idle:
                ray.kill(kept.server)
            self.idle = []

    def make_room(self, recipe: Recipe, stages: Collection[str]) -> None:
        """End all of them where what these stages start does not fit beside them: trainings, or models that score.

        Where this process trains, those that can sleep instead.
        """
        config, where = recipe.finetune, recipe.placement
        if not self.idle:
            return
        if "select" in stages and recipe.select and {*BY_BASE, "distilled"}.intersection(recipe.select.selectors):
            say("  the engines end, and start again later: the models that score steps take their place")
            self.end()
        if "finetune" not in stages or config is None or not self.idle:
            return
        there = resources_of(where.trainers)
        cpus, gpus = (sum(getattr(k.settings, name) for k in self.idle) for name in ("cpus", "gpus"))
        if where.trainers and not any(where.engines and where.engines in n for n in nodes_of(where.trainers)):
            cpus, gpus = (0, 0) if where.engines else (cpus, gpus)  # they lie on other nodes
        scarce = "GPU" if there.get("GPU", 0) else "CPU"
        runs = len(config.arms) * len(config.seeds)
        most = int(there.get(scarce, 0)) // max(1, config.workers)
        workers = config.workers * min(runs, most if config.parallel == "auto" else config.parallel)
        fits = workers + cpus <= there.get("CPU", 0) and (scarce == "CPU" or workers + gpus <= there["GPU"])
        if config.workers == 0:  # this process trains, on the GPU that it finds, whoever has it for Ray
            fits = not gpus or self._asleep()
        if not fits:
            say("  the engines end, and start again later: the models that are trained need their place")
            self.end()

    def _asleep(self) -> bool:
        """Let all of them sleep; says whether they do."""
        if not (self.sleep and all(kept.settings.kind == "vllm" for kept in self.idle)):
            return False
        import ray

        begun = time.monotonic()
        try:
            rest = all(ray.get([kept.server.sleep.remote() for kept in self.idle], timeout=LOADING))
        except ray.exceptions.RayError as error:
            say(f"  an engine was lost when it was to sleep: {str(error).splitlines()[0]}")
            return False
        if rest:
            count = "1 engine sleeps" if len(self.idle) == 1 else f"{len(self.idle)} engines sleep"
            say(f"  {count} after {duration(time.monotonic() - begun)}: this process trains on the GPU")
        return rest


@contextmanager
def engines_kept(rank: int = 0, sleep: bool = False) -> Iterator[KeptEngines]:
    """While the block lasts, pools of engines hand their actors on; at its end they end.

    Args:
        rank: of adapters to come.
        sleep: whether this process will train meanwhile, and needs the memory of their GPU.
    """
    if _open:
        yield _open[-1]
        return
    _open.append(KeptEngines(rank, sleep))
    try:
        yield _open[-1]
    finally:
        _open.pop().end()


def kept_engines() -> KeptEngines | None:
    """Where a pool puts its actors; None where they end with it."""
    return _open[-1] if _open else None
