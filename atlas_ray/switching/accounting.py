"""What the models of an episode use. It is accounted, not read off the engines, so that no cache can change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..agents.token_agent import Agent, Spent, shared
from ..errors import InputError
from .players import SwitchPlayer

Unit = Literal["flops", "seconds", "money"]
_MILLION = 1_000_000


@dataclass(frozen=True)
class Usage:
    """Of one model in one episode.

    ``calls``: answers, whether they were used or only looked at. ``tokens``: through the model, with those of the
    prompt that it had yet to read; of an endpoint, those of all its prompts and completions. ``flops``: 2 x weights x
    tokens; 0 where nobody tells the weights. ``seconds``: its share of the time of its batches. ``money``: by its
    prices.
    """

    calls: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    money: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.seconds + other.seconds,
            self.money + other.money,
        )


class Ledger:
    """What every model has read of the episode in each row, and what it used.

    A model keeps the last prompt that it answered, what it thought behind it, and nothing of other episodes: then a
    prompt takes what it does not begin with, and an answer what :class:`atlas_ray.agents.token_agent.Spent` says.
    Those are the
    tokens that an engine which keeps a slot's prefix feeds. An engine that had lost it, has found some of it in another
    episode, or never saw a prompt because its answer was known, feeds others; they are not counted.

    Args:
        players: the models.
        rows: episodes side by side.
    """

    def __init__(self, players: Sequence[SwitchPlayer], rows: int) -> None:
        self._players = players
        self._kept: list[list[Sequence[Any]]] = [[() for _ in players] for _ in range(rows)]
        self._used = [[Usage() for _ in players] for _ in range(rows)]

    def start(self, row: int) -> None:
        """A new episode: nothing is read and nothing used."""
        self._kept[row] = [() for _ in self._players]
        self._used[row] = [Usage() for _ in self._players]

    def usage(self, row: int) -> list[Usage]:
        """Of each model in this episode so far."""
        return list(self._used[row])

    def unread(self, row: int, number: int) -> float:
        """Share of the model's present prompt that it has yet to read, 0..1."""
        prompt = self._players[number].prompt(row)
        known = self._known(row, number, prompt)
        return 1 - known / len(prompt) if prompt else 0.0

    def tokens(self, row: int, number: int, spent: Spent | None) -> int:
        """Tokens of a model's answer to its present prompt; ``spent`` is None where it is only read."""
        return sum(self._split(row, number, spent))

    def charge(self, row: int, number: int, spent: Spent | None, seconds: float) -> None:
        """The model has answered its present prompt, or only read it.

        Raises:
            InputError: it has a price, and its server did not count the tokens.
        """
        player = self._players[number]
        if spent and any(player.price) and not spent.counted:
            raise InputError(
                "its server counts no tokens, so that nobody knows what it costs: give it no prices",
                field=f"switch.models.{number}",
            )
        read, written = self._split(row, number, spent)
        money = (read * player.price[0] + written * player.price[1]) / _MILLION
        flops = 2 * (player.parameters or 0) * (read + written)
        self._used[row][number] += Usage(int(spent is not None), read + written, flops, seconds, money)
        prompt = player.prompt(row)
        self._kept[row][number] = [*prompt, *spent.tail] if spent and isinstance(player, Agent) else prompt

    def _known(self, row: int, number: int, prompt: Sequence[Any]) -> int:
        # () is no beginning of a text, but of every list
        kept = self._kept[row][number]
        return shared(kept, prompt) if kept else 0

    def _split(self, row: int, number: int, spent: Spent | None) -> tuple[int, int]:
        """Tokens read and tokens written."""
        player, taken = self._players[number], spent or Spent()
        if not isinstance(player, Agent):
            return taken.read, taken.written
        prompt = player.prompt(row)
        # the last token is always fed, for what follows it
        known = min(self._known(row, number, prompt), len(prompt) - 1)
        return len(prompt) - known + taken.read, taken.written


def units(usages: Sequence[Usage], unit: Unit) -> float:
    """All of an episode's models together."""
    return float(sum(getattr(usage, unit) for usage in usages))


def check_unit(players: Sequence[SwitchPlayer], unit: Unit) -> None:
    """Refuse FLOPs where they cannot be known.

    Raises:
        InputError: the unit is FLOPs and a model is an endpoint's.
    """
    if unit == "flops" and any(player.parameters is None for player in players):
        raise InputError(
            "nobody tells the FLOPs of a model behind an endpoint: take seconds or money", field="switch.unit"
        )
