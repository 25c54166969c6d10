"""Sweeps: trials of a recipe with other values, on Ray Tune."""

from .stage import sweep

__all__ = ["sweep"]
