"""Where text comes from: a causal language model behind one small protocol.

Engines that hold a model are imported when one is asked for: that takes seconds, and most processes hold none.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..cluster.remote_rundir import localize
from ..errors import InputError
from ..models.loading import adapted
from ..recipe.schema import Engine as Settings
from .base import Capabilities, Engine, LocalEngine
from .kept import engines_kept
from .pool import EnginePool
from .reloading import CannotReloadError, Reloaded
from .remote import EngineLease, RemoteEngine

if TYPE_CHECKING:
    from .transformers import TransformersEngine
    from .vllm import VllmEngine

__all__ = [
    "Capabilities",
    "Engine",
    "EngineLease",
    "EnginePool",
    "LocalEngine",
    "RemoteEngine",
    "TransformersEngine",
    "VllmEngine",
    "engines_kept",
    "exchange",
    "make_engine",
]

_log = logging.getLogger(__name__)


def __getattr__(name: str) -> Any:
    if name == "TransformersEngine":
        from .transformers import TransformersEngine

        return TransformersEngine
    if name == "VllmEngine":
        from .vllm import VllmEngine

        return VllmEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def make_engine(settings: Settings, model: str, slots: int, rank: int = 0, sleeps: bool = False) -> LocalEngine:
    """An engine in this process, by the ``[engine]`` table of a recipe.

    Args:
        settings: the table.
        model: shipped name, directory (an adapter's too) or Hugging Face id.
        slots: episodes side by side.
        rank: of adapters that :func:`exchange` may bring; vLLM keeps room for them.
        sleeps: whether it shall be able to give a GPU's memory back, see :meth:`VllmEngine.sleep`.

    Raises:
        InputError: vLLM is missing, or the engine cannot run this model.
    """
    model = localize(model)
    if settings.kind == "vllm":
        from .vllm import VllmEngine

        base, adapter = _parts(model)
        return VllmEngine(
            base,
            slots,
            adapter=adapter,
            gpu_memory=settings.memory,
            tensor_parallel=max(1, int(settings.gpus)),
            context=settings.context,
            kv_space_gib=settings.cache_gib,
            rank=rank,
            sleeps=sleeps,
        )
    from .transformers import TransformersEngine

    return TransformersEngine(model, slots, context=settings.context)


def exchange(
    engine: LocalEngine,
    settings: Settings,
    model: str,
    slots: int,
    rank: int = 0,
    expected: Sequence[float] = (),
    sleeps: bool = False,
) -> tuple[LocalEngine, Reloaded]:
    """An engine with another model in place of one that is open: a vLLM that can take its weights stays.

    Args:
        engine: made by the same settings; closed where it cannot stay.
        settings, model, slots, rank, sleeps: as :func:`make_engine` takes them.
        expected: of the probe text, see :meth:`VllmEngine.reload`.

    Raises:
        InputError: the engine cannot run this model. None is open then.
    """
    if settings.kind == "vllm" and engine.slots >= slots:
        from .vllm import VllmEngine

        assert isinstance(engine, VllmEngine)
        try:
            return engine, engine.reload(*_parts(localize(model)), expected)
        except CannotReloadError as why:
            _log.info("vLLM is started anew: %s", why)
        except Exception:
            _log.exception("vLLM cannot take the weights of %s and is started anew", model)
    engine.close()
    return make_engine(settings, model, slots, rank, sleeps), Reloaded(anew=True)


def _parts(model: str) -> tuple[str, str | None]:
    """The whole model, and the adapter over it where ``model`` is one."""
    base = adapted(model)
    if base and adapted(base):
        raise InputError(
            "lies over another adapter, and vLLM takes one at a time: merge them, or take another engine", model
        )
    return (base, model) if base else (model, None)
