"""A learned switch as a directory: ``model.safetensors`` and ``config.json``. Needs neither Ray nor the two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .. import files
from ..errors import InputError
from .budget import share
from .features import EXTRA, Vector, encode, with_shares
from .network import QNetwork

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Situation(NamedTuple):
    """What a switch may know when it decides: ``"goal\\nobservation"``, calls left, share of the steps used, and whose
    turn it is (``episode`` and ``step``, only for policies that draw)."""

    text: str
    left: int | None
    step_share: float
    episode: str
    step: int


@dataclass(frozen=True)
class SwitchConfig:
    """Shape and terms of a switch: width of the encoded text, hidden layers, budget n or cost c of a call."""

    features: int
    hidden: tuple[int, ...]
    budget: int | None
    cost: float


class SwitchPolicy:
    """Calls DEEPTHINK where ``Q(s, 1) > Q(s, 0)``, never with no call left."""

    def __init__(self, config: SwitchConfig) -> None:
        self.config = config
        self.network = QNetwork(config.features + EXTRA, config.hidden, config.budget is not None).eval()

    @torch.inference_mode()
    def greedy(self, features: Vector) -> list[int]:
        """Decisions for features ``[N, F]``."""
        return [int(g) for g in self.network(torch.from_numpy(features)).argmax(-1)]

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """0 (QUICK) or 1 (DEEPTHINK) for each situation."""
        if not situations:
            return []
        return self.greedy(
            with_shares(
                [encode(s.text, self.config.features) for s in situations],
                [share(s.left, self.config.budget) for s in situations],
                [s.step_share for s in situations],
            )
        )

    def __call__(self, observation: str, budget_left: int | None = None, step_share: float = 0.0) -> int:
        """Whether DEEPTHINK should act now.

        Args:
            observation: ``"goal\\nobservation"``.
            budget_left: calls left in this episode; None: the full budget.
            step_share: steps taken so far, as a share of the limit.

        Returns:
            1 for DEEPTHINK, 0 for QUICK; always 0 under a budget of which nothing is left.
        """
        left = self.config.budget if budget_left is None else budget_left
        return self.decide([Situation(observation, left, step_share, "", 0)])[0]

    def save(self, directory: str | Path) -> None:
        """Write the switch, atomically."""
        with files.atomic_directory(directory) as temporary:
            save_file(self.network.state_dict(), temporary / WEIGHTS)
            files.write_json(temporary / CONFIG, asdict(self.config))

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read a switch.

        Raises:
            InputError: a file is missing, or it is no switch.
        """
        directory = Path(directory)
        for name in (CONFIG, WEIGHTS):
            if not (directory / name).is_file():
                raise InputError(f"is no directory of a switch: it has no {name}", directory)
        try:
            raw = files.read_json(directory / CONFIG)
            policy = cls(SwitchConfig(**{**raw, "hidden": tuple(raw["hidden"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"is no configuration of a switch: {error}", directory / CONFIG) from None
        try:
            policy.network.load_state_dict(load_file(directory / WEIGHTS))
        except (SafetensorError, RuntimeError) as error:
            raise InputError(f"does not hold the weights of this switch: {error}", directory / WEIGHTS) from None
        return policy
