"""A learned switch as a directory, ``model.safetensors`` and ``config.json``. It needs neither Ray nor torch."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import InputError
from ..models.encoders import Encoder, make_encoder
from ..models.hashed_words import Vector
from ..rundir import files
from .budget import QUICK, amount, share, whole
from .features import BUDGET_ENTRY, EXTRA, with_shares
from .past import Past
from .signals import FROM_PAST, WIDTHS, Weights, of_episode, total_width
from .spending import Unit

if TYPE_CHECKING:  # a saved switch decides without the agents
    from ..agents.decisions import Decision

WEIGHTS, CONFIG = "model.safetensors", "config.json"
CHOSEN = "chosen.json"
"""Beside them: which policy of its training it is, and how it did in the episodes that chose it."""


class Situation(NamedTuple):
    r"""What a switch may know when it decides.

    ``text``: ``"goal\nobservation"``. ``left``: calls, tokens or picodollars left. ``step_share``: share of the steps
    that is used.
    ``episode`` and ``step``: whose turn it is, for policies that draw. ``encoded``: ``[width]``, what its encoder and
    signals say, where the text alone does not tell. ``margin``: of QUICK's answer. ``agrees``: whether QUICK does what
    the expert would. ``past``: the episode so far. ``proposal``: what QUICK is about to think and do, an empty action
    where it gives no answer. The last five are there only for policies that ask for them.
    """

    text: str
    left: int | None
    step_share: float
    episode: str
    step: int
    encoded: Vector | None = None
    margin: float | None = None
    agrees: bool | None = None
    past: Past | None = None
    proposal: Decision | None = None


@dataclass(frozen=True)
class SwitchConfig:
    """Shape and terms of a switch.

    ``encoder`` and ``signals``: as in the recipe. ``features``: width of what they give. ``hidden``: widths of the
    hidden layers. ``models``: how many there are. ``budget`` n in ``unit`` (``usd``: dollars), ``cost`` c of a call, or
    ``average`` calls per episode. ``run_length``: steps of a call, which whoever plays has to keep to.
    ``classifier`` and ``verifier``: the weights of these signals.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    features: Annotated[int, Field(ge=0)]
    hidden: tuple[Annotated[int, Field(ge=1)], ...]
    models: Annotated[int, Field(ge=2)] = 2
    budget: Annotated[int | float, Field(ge=0, le=10**12)] | None = None
    cost: float | str | None = None
    average: float | None = None
    encoder: str = "hashing"
    signals: tuple[str, ...] = ()
    unit: Unit = "calls"
    run_length: Annotated[int, Field(ge=1)] = 1
    classifier: tuple[float, ...] = ()
    verifier: tuple[float, ...] = ()

    @property
    def weights(self) -> Weights:
        """Of its signals that are fitted."""
        return Weights(self.classifier, self.verifier)

    @property
    def cap(self) -> int | None:
        """The budget in whole calls, tokens or picodollars."""
        return None if self.budget is None else whole(self.budget, self.unit)


class SwitchPolicy:
    """Lets the model act whose number is largest: a call where ``Q(s, 1) > Q(s, 0)``, and none with no call left.

    Args:
        config: shape and terms.
        tensors: of the network, by name, as :class:`atlas_ray.switching.network.SwitchNetwork` calls them.

    Raises:
        InputError: the tensors are not those of such a network.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"encoded"})

    def __init__(self, config: SwitchConfig, tensors: dict[str, NDArray[np.float32]]) -> None:
        self.config, self.tensors = config, tensors
        config.weights.check(config.signals)
        widths = [config.features + EXTRA, *config.hidden, config.models]
        shapes: dict[str, tuple[int, ...]]
        shapes = {f"layers.{2 * i}.weight": (after, before) for i, (before, after) in enumerate(pairwise(widths))}
        shapes |= {f"layers.{2 * i}.bias": (after,) for i, after in enumerate(widths[1:])}
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            raise InputError(f"the tensors must have the shapes {shapes}")
        if not all(tensor.dtype == np.float32 and np.isfinite(tensor).all() for tensor in tensors.values()):
            raise InputError("the tensors must be float32, without NaN and infinities")

    @cached_property
    def _cap(self) -> int | None:
        return self.config.cap

    @cached_property
    def encoder(self) -> Encoder:
        """Reads the text.

        Raises:
            InputError: it cannot be had, or is another than the switch was trained with.
        """
        wanted = self.config.features - total_width(self.config.signals)
        made = make_encoder(self.config.encoder, wanted)
        if made.width != wanted:
            raise InputError(f"{self.config.encoder} gives {made.width} entries, and this switch reads {wanted}")
        return made

    def numbers(self, features: Vector) -> Vector:
        """``[N, models]`` for features ``[N, F]``; minus infinity where a call is masked."""
        x = features
        for i in range(len(self.config.hidden) + 1):
            x = x @ self.tensors[f"layers.{2 * i}.weight"].T + self.tensors[f"layers.{2 * i}.bias"]
            if i < len(self.config.hidden):
                x = np.maximum(x, 0)
        x[:, 0] -= x[:, 1:].sum(1) / self.config.models  # value and advantages, see SwitchNetwork
        x[:, 1:] += x[:, :1]
        if self.config.budget is not None:
            x[features[:, BUDGET_ENTRY] == 0, 1:] = -np.inf
        return x

    def greedy(self, features: Vector) -> list[int]:
        """Decisions for features ``[N, F]``."""
        return [int(g) for g in self.numbers(features).argmax(-1)]

    def values(self, situations: Sequence[Situation]) -> Vector:
        """``[N, models]``: what it expects of a step by each model; minus infinity where there is no call left."""
        known = [s.encoded for s in situations if s.encoded is not None]
        encoded = np.stack(known) if len(known) == len(situations) else self._read(situations)
        shares = [share(s.left, self._cap) for s in situations]
        return self.numbers(with_shares(encoded, shares, [s.step_share for s in situations]))

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """The number of the model that is to act in each situation; 0 is QUICK."""
        return [int(n) for n in self.values(situations).argmax(-1)] if situations else []

    def _read(self, situations: Sequence[Situation]) -> Vector:
        seen = [(s.text, s.past) for s in situations if s.past is not None]
        if wants := self.reads_beside(FROM_PAST if len(seen) == len(situations) else frozenset()):
            how = "`encoded`" if self.reads_beside(FROM_PAST) else "`past`, or as `encoded`"
            raise InputError(f"this switch reads {' and '.join(wants)}: give them as {how}")
        parts = [self.encoder([s.text for s in situations])]
        for name in self.config.signals:
            told = [of_episode(name, self.config.weights, text, past) for text, past in seen]
            parts.append(np.array(told, np.float32)[:, None])
        return np.concatenate(parts, axis=1)

    def reads_beside(self, given: Collection[str]) -> list[str]:
        """What it reads besides the text and these signals, in words."""
        hidden = ["QUICK's hidden state"] if self.config.encoder == "hidden" else []
        return [*hidden, *(name for name in self.config.signals if name not in given)]

    def __call__(
        self,
        observation: str,
        budget_left: float | None = None,
        step_share: float = 0.0,
        encoded: Vector | None = None,
        past: Past | None = None,
    ) -> int:
        r"""Which model should act now.

        Args:
            observation: ``"goal\nobservation"``.
            budget_left: what is left in this episode, in its budget's unit: whole calls or tokens, or dollars; 0 where
                no call fits. None: the full budget, and so is more than that.
            step_share: steps taken so far, as a share of the limit, 0..1.
            encoded: ``[features]``, what is read in place of the text by a switch with signals or with QUICK's hidden
                state, in this order.
            past: the episode so far, from which a switch reads the signals `visits`, `unchanged`, `since-call` and
                `classifier` by itself.

        Returns:
            0 for QUICK, 1 for DEEPTHINK (with more models their number); always 0 with ``budget_left`` of 0 or less.

        Raises:
            InputError: an argument is of another type or out of its range; names it.
        """
        if not isinstance(observation, str):
            raise InputError(f"must be a str, is {type(observation).__name__}", field="observation")
        left = self._cap if budget_left is None else amount(budget_left, self.config.unit, "budget_left")
        step_share = _share(step_share)
        if encoded is not None:
            encoded = _vector(encoded, self.config.features)
        if past is not None and not (isinstance(past, Past) and past.observations):
            raise InputError("must be a Past that ends with the present observation", field="past")
        if left is not None and left <= 0:
            return QUICK
        return self.decide([Situation(observation, left, step_share, "", 0, encoded, past=past)])[0]

    def save(self, directory: str | Path) -> None:
        """Write the switch, atomically."""
        with files.atomic_directory(directory) as temporary:
            save_file(self.tensors, temporary / WEIGHTS)
            config = asdict(self.config)
            # so that earlier versions read it
            for name, default in (("unit", "calls"), ("run_length", 1), ("classifier", ()), ("verifier", ())):
                if config[name] == default:
                    del config[name]
            files.write_json(temporary / CONFIG, config)

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
            config = _CONFIG.validate_json((directory / CONFIG).read_bytes())
        except ValidationError as error:
            what, field = _first(error)
            raise InputError(what, directory / CONFIG, field=field) from None
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", directory / CONFIG) from None
        try:
            _ = config.cap
        except InputError as error:
            what = f"is no configuration of a switch: {error.message}"
            raise InputError(what, directory / CONFIG, field="budget") from None
        if unknown := set(config.signals) - set(WIDTHS):
            what = f"{min(unknown)!r} is no signal of this version: the switch was saved by another"
            raise InputError(what, directory / CONFIG, field="signals")
        try:
            return cls(config, load_file(directory / WEIGHTS))
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", directory / WEIGHTS) from None
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"does not hold the weights of this switch: {error}", directory / WEIGHTS) from None


_CONFIG = TypeAdapter(SwitchConfig)


def _first(error: ValidationError) -> tuple[str, str | None]:
    """What is wrong with a configuration, and with which field."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, first["loc"])) or None
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return "is no field of this version: the switch was saved by another", field
    return f"is no configuration of a switch: {first['msg']}", field


def _share(value: Any) -> float:
    """A share as somebody gives it."""
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise InputError(f"must be a number from 0 to 1, is {reprlib.repr(value)}", field="step_share")
    return float(number)


def _vector(value: Any, width: int) -> Vector:
    """What a switch reads, as somebody gives it."""
    try:
        with np.errstate(over="ignore"):  # infinities are refused below
            vector = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"must be {width} numbers, is {type(value).__name__}", field="encoded") from None
    if vector.shape != (width,) or not np.isfinite(vector).all():
        raise InputError(f"must be {width} finite numbers, has the shape {vector.shape}", field="encoded")
    return vector
