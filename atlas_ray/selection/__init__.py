"""ATLaS selection: which steps of an expert trajectory are critical, and the controls to compare with."""

from .stage import select

__all__ = ["select"]
