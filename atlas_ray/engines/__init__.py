"""Where text comes from: a causal language model behind one small protocol.

Engines that hold a model are imported when one is asked for: that takes seconds, and most processes hold none.
"""

from typing import TYPE_CHECKING, Any

from ..cluster.remote_rundir import localize
from ..errors import InputError
from ..models.loading import adapted
from ..recipe.schema import Engine as Settings
from .base import Capabilities, Engine, LocalEngine
from .pool import EnginePool
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
    "make_engine",
]


def __getattr__(name: str) -> Any:
    if name == "TransformersEngine":
        from .transformers import TransformersEngine

        return TransformersEngine
    if name == "VllmEngine":
        from .vllm import VllmEngine

        return VllmEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def make_engine(settings: Settings, model: str, slots: int) -> LocalEngine:
    """An engine in this process, by the ``[engine]`` table of a recipe.

    Args:
        settings: the table.
        model: shipped name, directory (an adapter's too) or Hugging Face id.
        slots: episodes side by side.

    Raises:
        InputError: vLLM is missing, or the engine cannot run this model.
    """
    model = localize(model)
    if settings.kind == "vllm":
        base = adapted(model)
        if base and adapted(base):
            raise InputError(
                "lies over another adapter, and vLLM takes one at a time: merge them, or take another engine", model
            )
        from .vllm import VllmEngine

        return VllmEngine(
            base or model,
            slots,
            adapter=model if base else None,
            gpu_memory=settings.memory,
            tensor_parallel=max(1, int(settings.gpus)),
            context=settings.context,
            kv_space_gib=settings.cache_gib,
        )
    from .transformers import TransformersEngine

    return TransformersEngine(model, slots, context=settings.context)
