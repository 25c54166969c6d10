"""A logistic regression on features of steps, calibrated: the probability that a step is marked (ours).

The loss is convex, so there is no seed: whoever fits the same features gets the same head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import InputError
from ..rundir.files import read_json, replacing, write_json

Array = NDArray[Any]
PENALTIES = (0.3, 0.03, 0.003, 0.0003)
"""Weights of the squared norm, from the stiffest head to the most pliant."""
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Head:
    """``sigmoid(slope * (weights . (features - mean) / scale + bias) + offset)``.

    Attributes:
        mean_F: of each feature over the steps that it was fitted on.
        scale_F: their standard deviation; 1 where that is 0.
        weights_F: of the regression.
        bias: of the regression.
        slope: of the calibration.
        offset: of the calibration.
        penalty: of :data:`PENALTIES`.
    """

    mean_F: Array
    scale_F: Array
    weights_F: Array
    bias: float
    slope: float = 1.0
    offset: float = 0.0
    penalty: float = 0.0

    def scores(self, features_NF: Array) -> Array:
        """``[N]`` log-odds before calibration, float64."""
        scores_N: Array = (features_NF.astype(np.float64) - self.mean_F) / self.scale_F @ self.weights_F + self.bias
        return scores_N

    def probabilities(self, features_NF: Array) -> Array:
        """``[N]``, float64."""
        return _sigmoid(self.slope * self.scores(features_NF) + self.offset)

    def save(self, tensors: Path, about: Path, more: dict[str, Any]) -> None:
        """Write the arrays as safetensors, then the numbers, and ``more`` beside them, as JSON."""
        with replacing(tensors) as temporary:
            save_file({"mean": self.mean_F, "scale": self.scale_F, "weights": self.weights_F}, temporary)
        numbers = {"bias": self.bias, "slope": self.slope, "offset": self.offset, "penalty": self.penalty}
        write_json(about, {"head": numbers, **more})

    @classmethod
    def load(cls, tensors: Path, about: Path) -> Head:
        """What :meth:`save` wrote.

        Raises:
            InputError: a file is not what it should be.
        """
        try:
            arrays = load_file(tensors)
            return cls(arrays["mean"], arrays["scale"], arrays["weights"], **read_json(about)["head"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"holds no head that can be read: {error}", tensors) from None


@dataclass(frozen=True)
class Steps:
    """Features ``[N, F]`` of steps, and whether each is marked."""

    features_NF: Array
    marked_N: Array

    @property
    def of_both_kinds(self) -> bool:
        """Whether there are marked and unmarked ones, which a fit takes."""
        return bool(self.marked_N.any()) and not self.marked_N.all()


def fit_head(fit: Steps, tune: Steps, groups: Sequence[int]) -> Head:
    """A head that is fitted on some steps and tuned on others.

    Features are standardised, and each group of them weighs what one feature would. Of :data:`PENALTIES` the one counts
    that gives the steps that tune the least log loss, the stiffer one at a tie. The calibration is Platt's.

    Args:
        fit: to fit on.
        tune: to choose the penalty and to calibrate on.
        groups: how many features, one behind the other, are of one kind.
    """
    heads = _path(fit, groups)
    head = min(heads, key=lambda head: _log_loss(head.scores(tune.features_NF), tune.marked_N))
    slope, offset = calibration(head.scores(tune.features_NF), tune.marked_N)
    return replace(head, slope=slope, offset=offset)


def _path(fit: Steps, groups: Sequence[int]) -> list[Head]:
    """Heads before calibration, for :data:`PENALTIES`."""
    mean_F = fit.features_NF.mean(0, dtype=np.float64)
    scale_F = fit.features_NF.std(0, dtype=np.float64)
    scale_F = np.where(scale_F > 1e-6 * np.maximum(1.0, np.abs(mean_F)), scale_F, 1.0)
    scale_F *= np.sqrt(np.repeat(groups, groups))
    inputs_NF = torch.from_numpy((fit.features_NF - mean_F) / scale_F)
    targets_N = torch.from_numpy(fit.marked_N.astype(np.float64))
    fitted = torch.zeros(inputs_NF.shape[1] + 1, dtype=torch.float64)
    heads = []
    for penalty in PENALTIES:
        fitted = minimum(partial(_penalised, inputs_NF, targets_N, penalty), fitted)
        heads.append(Head(mean_F, scale_F, fitted[:-1].numpy().copy(), float(fitted[-1]), penalty=penalty))
    return heads


def _penalised(inputs_NF: torch.Tensor, targets_N: torch.Tensor, penalty: float, weights: torch.Tensor) -> torch.Tensor:
    """Log loss with half the penalty times the squared norm; the last weight is the bias, which is free."""
    loss = F.binary_cross_entropy_with_logits(inputs_NF @ weights[:-1] + weights[-1], targets_N)
    return loss + penalty / 2 * weights[:-1].square().sum()


def calibration(scores_M: Array, marked_M: Array) -> tuple[float, float]:
    """Platt's slope and offset (1999): a logistic regression of marks on scores, with targets that leave 0 and 1."""
    many, few = int(marked_M.sum()), int((~marked_M).sum())
    targets_M = torch.from_numpy(np.where(marked_M, (many + 1) / (many + 2), 1 / (few + 2)))
    given_M = torch.from_numpy(scores_M)
    spread = float(given_M.std(correction=0))  # so that a step is of like size in both directions
    spread = spread if spread > 1e-9 else 1.0
    found = minimum(
        lambda w: F.binary_cross_entropy_with_logits(w[0] * given_M / spread + w[1], targets_M),
        torch.tensor([spread, 0.0], dtype=torch.float64),
    )
    return float(found[0]) / spread, float(found[1])


def minimum(loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    """The minimum of a smooth convex loss, by L-BFGS from a start; float64."""
    weights = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weights],
        max_iter=1000,
        tolerance_grad=_TOLERANCE,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss(weights)
        value.backward()
        return value

    optimiser.step(closure)
    return weights.detach()


def _sigmoid(scores: Array) -> Array:
    found: Array = torch.from_numpy(scores).sigmoid().numpy()
    return found


def _log_loss(scores_N: Array, marked_N: Array) -> float:
    return float(np.logaddexp(0.0, np.where(marked_N, -scores_N, scores_N)).mean())
