"""Where text comes from: a causal language model behind one small protocol."""

from .base import Capabilities, Engine
from .transformers import TransformersEngine

__all__ = ["Capabilities", "Engine", "TransformersEngine"]
