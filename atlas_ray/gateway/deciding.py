"""Who acts: a learned switch, one model, or chance; within what the budget allows, and with which probability."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.parsing import Style
from ..errors import InputError
from ..recipe.gateway import FIXED, Gateway
from ..recipe.of_run import policy_of
from ..switching.budget import QUICK
from ..switching.policy import Situation, SwitchPolicy
from ..switching.signals import CLASSIFIER, FROM_PAST
from ..switching.spending import Limits, Unit
from .past import actions_of

FIELD = "gateway.switch"


@dataclass(frozen=True)
class Choice:
    """The model that acts, and the probability with which it was chosen."""

    number: int
    probability: float


class Decider:
    """Decides for sessions.

    Args:
        settings: of the recipe.
        seed: of what is drawn.
        style: of what models say.

    Raises:
        InputError: the switch is not there, was trained with another number of models, or reads what only an engine
            that plays itself can give.
    """

    def __init__(self, settings: Gateway, seed: int, style: Style = "action") -> None:
        self._settings, self._seed, self.style, self.models = settings, seed, style, len(settings.models)
        self._switch: SwitchPolicy | None = None
        if settings.switch in FIXED:
            return
        policy = policy_of(settings.switch, FIELD)
        if policy.directory is None:
            raise InputError("is no switch: name one of the run's, or take quick or deepthink", field=FIELD)
        self._switch = switch = SwitchPolicy.load(policy.directory)
        if wants := switch.reads_beside(FROM_PAST):
            raise InputError(
                f"reads {' and '.join(wants)}, which the gateway does not have: train one without, or take "
                "`atlas-ray serve`, which has them of the models that it plays with",
                field=FIELD,
            )
        if switch.config.run_length > 1:
            what = f"calls in runs of {switch.config.run_length} steps, which the gateway does not keep to"
            raise InputError(f"{what}: train one without, or take `atlas-ray serve`", field=FIELD)
        if switch.config.models != self.models:
            raise InputError(f"chooses among {switch.config.models} models, and here are {self.models}", field=FIELD)
        switch.encoder([""])  # what it needs is loaded, or missed, now

    @property
    def unit(self) -> Unit:
        """What the budget is in that the switch was trained with, and of which it sees the share that is left."""
        return "calls" if self._switch is None else self._switch.config.unit

    @property
    def reads_past(self) -> bool:
        """Whether it has to be told of a session's past."""
        return self._switch is not None and bool(self._switch.config.signals)

    def actions(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """What was done in a conversation, where the switch reads that too."""
        reads = self._switch is not None and CLASSIFIER in self._switch.config.signals
        return actions_of(messages, self.style) if reads else ()

    @property
    def limits(self) -> Limits:
        """The budget of a session that the switch was trained with; none where it was trained without."""
        return Limits() if self._switch is None else Limits(**{self.unit: self._switch.config.cap})

    def choose(self, policy: str, allowed: Sequence[bool], situation: Situation) -> Choice:
        """Who acts.

        Args:
            policy: ``londi`` is the recipe's; ``quick`` and ``deepthink`` are those models, nothing else.
            allowed: whether each model fits the budget; QUICK does.
            situation: what is known; with the past where :attr:`reads_past` says so.
        """
        wanted, explore = self._distribution(policy, situation), self._settings.explore if policy == "londi" else 0.0
        chances = [0.0] * self.models
        for number, chance in enumerate(wanted):
            chances[number if allowed[number] else QUICK] += (1 - explore) * chance
        for number in range(self.models):
            chances[number] += explore * allowed[number] / sum(allowed)
        drawn = random.Random(f"{self._seed}/{situation.episode}/{situation.step}").random()
        for number, chance in enumerate(chances):
            if chance and drawn < chance:
                return Choice(number, min(1.0, chance))
            drawn -= chance
        number = max(n for n, chance in enumerate(chances) if chance)  # what rounding has left over
        return Choice(number, min(1.0, chances[number]))

    def shadows(self, session: str, step: int) -> bool:
        """Whether QUICK is to be asked too, after a step that DEEPTHINK has taken."""
        return random.Random(f"{self._seed}/{session}/{step}/shadow").random() < self._settings.shadow

    def _distribution(self, policy: str, situation: Situation) -> list[float]:
        """The probability with which each model is wanted."""
        name, last = self._settings.switch if policy == "londi" else policy, self.models - 1
        if name == "random":
            share = self._settings.share
            return [1 - share, *[0.0] * (last - 1), share]
        number = last if name == "deepthink" else QUICK
        if policy == "londi" and self._switch is not None:
            number = self._switch.decide([situation])[0]
        return [float(n == number) for n in range(self.models)]
