"""What rules are set by before they meet a switch: episodes of selection and training seeds, never of the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..recipe.switch import DOUBTS
from .baselines import calibrate
from .fitted import Branch, calibrate_escalation
from .logistic import chance, fit, read, read_answer
from .past import Past
from .signals import CLASSIFIER, VERIFIER

FITTED = frozenset({*DOUBTS, "escalate"})
"""Rules that are fitted to episodes on training seeds."""


class Doubt(NamedTuple):
    """Weights of such a rule's chance, and what that is in the states of episodes that QUICK played alone."""

    weights: tuple[float, ...]
    chances: Sequence[float]


@dataclass(frozen=True)
class Calibration:
    """Numbers that rules are set by.

    ``margins``: of QUICK in episodes that it played alone. ``doubts``: by the name of the rule. ``escalation``:
    weights; ``after`` how many steps it decides; ``branches`` both ways to go on from there, ``other_steps`` the steps
    of episodes that did not come so far.
    """

    margins: Sequence[float] = ()
    doubts: Mapping[str, Doubt] = field(default_factory=dict)
    escalation: tuple[float, ...] = ()
    after: int = 0
    branches: Sequence[Branch] = ()
    other_steps: int = 0

    def terms(self, kind: str, rate: float, budget: int | None) -> dict[str, Any]:
        """What a rule of this kind has of its own so that it calls at a rate.

        Raises:
            ValueError: there is nothing to calibrate it with.
        """
        if kind == "threshold":
            return {"tau": calibrate(self.margins, rate)}
        if kind in DOUBTS:
            doubt = self.doubts.get(kind, Doubt((), ()))
            return {"tau": calibrate(doubt.chances, rate), "weights": doubt.weights}
        if kind == "escalate":
            tau = calibrate_escalation(self.branches, rate, budget, self.other_steps)
            return {"tau": tau, "weights": self.escalation, "after": self.after}
        return {}

    def with_doubt(
        self,
        kind: str,
        quick: Sequence[dict[str, Any]],
        weights: tuple[float, ...],
    ) -> Calibration:
        """Set one of the rules that doubt QUICK.

        Args:
            kind: which.
            quick: rows of episodes that QUICK played alone, with the episodes.
            weights: as of :func:`weights_of`.
        """
        taken = [(row, n, step["action"]) for row in quick for n, step in enumerate(row["episode"]["steps"])]
        chances = [chance(weights, _seen(kind, row, step, action)) for row, step, action in taken]
        # in float32, as the rule reads them
        doubt = Doubt(weights, np.array(chances, np.float32).tolist())
        return replace(self, doubts={**self.doubts, kind: doubt})

    def with_escalation(
        self, quick: Sequence[dict[str, Any]], escalated: Sequence[dict[str, Any]], after: int
    ) -> Calibration:
        """Fit the value of the first steps: QUICK's chance to succeed alone.

        Args:
            quick: rows of episodes that QUICK played alone, with the episodes.
            escalated: of episodes that QUICK began and DEEPTHINK ended, for the same seeds.
            after: steps that QUICK takes before it is decided.

        Raises:
            InputError: none lasts so long.
        """
        other = {row["seed"]: row for row in escalated}
        reached = [row for row in quick if row["steps"] > after and row["seed"] in other]
        if not reached:
            raise InputError(f"no episode that QUICK begins lasts longer than {after}", field="switch.escalate_after")
        features = [_seen(CLASSIFIER, row, after, "") for row in reached]
        weights = fit(features, [row["success"] for row in reached])
        branches = [
            Branch(chance(weights, x), row["steps"], other[row["seed"]]["steps"], other[row["seed"]]["calls"])
            for row, x in zip(reached, features, strict=True)
        ]
        short = sum(row["steps"] for row in quick if row["steps"] <= after)
        return replace(self, escalation=weights, after=after, branches=branches, other_steps=short)


def weights_of(
    kind: str, shadowed: Sequence[dict[str, Any]], say: Callable[[str], None] = lambda line: None
) -> tuple[float, ...]:
    """Weights of the chance that QUICK says what DEEPTHINK says.

    Args:
        kind: one of ``DOUBTS`` of the recipe: whether QUICK's answer is read, too.
        shadowed: rows of episodes that DEEPTHINK played while QUICK was asked too. Where it won any, only those count.
        say: told what they are fitted to.
    """
    features, labels, used = [], [], [row for row in shadowed if row["success"]] or shadowed
    for row in used:
        for step, proposed in zip(range(row["steps"]), row["proposed"], strict=False):
            features.append(_seen(kind, row, step, proposed))
            labels.append(proposed == row["episode"]["steps"][step]["action"])
    calls = sum(row["calls"] for row in shadowed)
    say(
        f"  {kind}: fitted to {len(labels):,} steps of {len(used):,} of {len(shadowed):,} training episodes, which "
        f"took {calls:,} calls; QUICK says the same at {sum(labels) / max(1, len(labels)):.0%} of them"
    )
    return fit(features, labels)


def _seen(kind: str, row: dict[str, Any], step: int, action: str) -> Any:
    past = _past(row, step)
    text = f"{row['episode']['instruction']}\n{past.observations[-1]}"
    return read_answer(text, past, action) if kind == VERIFIER else read(text, past)


def _past(row: dict[str, Any], step: int) -> Past:
    """The episode of a row as it was when so many steps were taken."""
    steps = row["episode"]["steps"]
    seen, done = [s["observation"] for s in steps[: step + 1]], [s["action"] for s in steps[:step]]
    return Past(tuple(seen), tuple(done), ())
