"""Where text comes from: a causal language model behind one small protocol."""

from .base import Capabilities, Engine
from .transformers import TransformersEngine
from .vllm import VllmEngine

__all__ = ["Capabilities", "Engine", "TransformersEngine", "VllmEngine", "make_engine"]


def make_engine(kind: str, model: str, slots: int) -> Engine:
    """An engine in this process.

    Args:
        kind: ``transformers`` or ``vllm``.
        model: shipped name, directory or Hugging Face id.
        slots: episodes side by side.

    Raises:
        InputError: vLLM is missing, or it cannot run this model.
    """
    return VllmEngine(model, slots) if kind == "vllm" else TransformersEngine(model, slots)
