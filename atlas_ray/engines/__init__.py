"""Where text comes from: engines behind one small protocol."""

from .base import Engine
from .transformers import TransformersEngine

__all__ = ["Engine", "TransformersEngine"]
