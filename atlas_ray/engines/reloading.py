"""How an engine took other weights, or why it could not, and could not sleep. Imports neither torch nor vLLM."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import AtlasError


class CannotReloadError(AtlasError, RuntimeError):
    """vLLM has to be started anew for these weights."""


class CannotSleepError(AtlasError, RuntimeError):
    """An engine keeps its memory until it is closed."""


class StaleWeightsError(AtlasError, RuntimeError):
    """vLLM does not compute with the weights that it was given."""


@dataclass(frozen=True)
class Reloaded:
    """How an engine took other weights.

    Attributes:
        off: mean difference of its log-probabilities of the probe text from what was expected, per token.
        before: the same with the weights that it had; None for both where nothing was expected.
        anew: whether it had to be started again.
    """

    off: float | None = None
    before: float | None = None
    anew: bool = False
