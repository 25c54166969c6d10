"""What turns the text that a switch reads into a vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .features import Vector, encode


class Encoder(Protocol):
    """Text to a vector, the same in every process."""

    width: int

    def __call__(self, texts: Sequence[str]) -> Vector:
        """``[len(texts), width]`` float32 of ``"goal\\nobservation"`` each."""
        ...


class Hashing:
    """Hashed words, see :mod:`atlas_ray.switching.features`."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, texts: Sequence[str]) -> Vector:
        """``[len(texts), width]``."""
        return np.stack([encode(text, self.width) for text in texts])


def make_encoder(name: str, features: int) -> Encoder:
    """The encoder that a recipe names; ``features`` is the width of the hashed words."""
    if name == "hashing":
        return Hashing(features)
    raise NotImplementedError(name)
