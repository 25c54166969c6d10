"""Compute of the models in an episode, computed from prompts and not read off engines, so that no cache changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..agents.token_agent import Agent, TokenCost, shared
from ..errors import InputError
from .players import SwitchPlayer

Unit = Literal["flops", "seconds", "money"]
_MILLION = 1_000_000


@dataclass(frozen=True)
class ModelUsage:
    """Compute of one model in one episode.

    ``calls``: answers, whether they were acted on or only looked at. ``tokens``: through the model, with those of the
    prompt that it had yet to read; of an endpoint, those of all its prompts and completions. ``flops``: 2 x weights x
    tokens; 0 where the number of weights is unknown. ``catch_up``: of these, what it took to read steps that others
    took, or that a window shows again; not known of an endpoint. ``seconds``: its share of the time of
    its batches. ``money``: by its prices.
    """

    calls: int = 0
    tokens: int = 0
    flops: int = 0
    catch_up: int = 0
    seconds: float = 0.0
    money: float = 0.0

    def __add__(self, other: ModelUsage) -> ModelUsage:
        return ModelUsage(
            self.calls + other.calls,
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.catch_up + other.catch_up,
            self.seconds + other.seconds,
            self.money + other.money,
        )


class ComputeAccountant:
    """Counts the compute of every model in the episode of each row.

    The count assumes that a model has cached the last prompt that it answered, what it thought behind it, and nothing
    of other episodes. A prompt then costs the tokens behind that prefix, and an answer its
    :class:`atlas_ray.agents.token_agent.TokenCost`. These are the tokens that an engine with one prefix cache per slot
    feeds. An engine may feed others: it lost the prefix, found some of it in another episode, or never saw the prompt
    because the decision was cached. Those are not counted.

    Args:
        players: the models.
        rows: episodes side by side.
    """

    def __init__(self, players: Sequence[SwitchPlayer], rows: int) -> None:
        self._players = players
        self._last_prompt: list[list[Sequence[Any]]] = [[() for _ in players] for _ in range(rows)]
        self._usage = [[ModelUsage() for _ in players] for _ in range(rows)]

    def start(self, row: int) -> None:
        """Begin a new episode: nothing is read and nothing used."""
        self._last_prompt[row] = [() for _ in self._players]
        self._usage[row] = [ModelUsage() for _ in self._players]

    def usage(self, row: int) -> list[ModelUsage]:
        """Compute of each model in this episode so far."""
        return list(self._usage[row])

    def unread_share(self, row: int, number: int) -> float:
        """Share of the model's present prompt that it has yet to read, 0..1."""
        prompt = self._players[number].prompt(row)
        cached = self._cached_length(row, number, prompt)
        return 1 - cached / len(prompt) if prompt else 0.0

    def tokens(self, row: int, number: int, token_cost: TokenCost | None) -> int:
        """Tokens of a model's answer to its present prompt; ``token_cost`` is None where it is only read."""
        return sum(self._read_and_written(row, number, token_cost))

    def charge(self, row: int, number: int, token_cost: TokenCost | None, seconds: float) -> None:
        """Add what the model used to answer its present prompt, or only to read it.

        Raises:
            InputError: the model has a price, and its server did not count the tokens.
        """
        player = self._players[number]
        if token_cost and any(player.price) and not token_cost.counted:
            raise InputError(
                "its server counts no tokens, so its cost is unknown: give it no prices",
                field=f"switch.models.{number}",
            )
        read, written = self._read_and_written(row, number, token_cost)
        money = (read * player.price[0] + written * player.price[1]) / _MILLION
        each = 2 * (player.parameters or 0)
        self._usage[row][number] += ModelUsage(
            int(token_cost is not None),
            read + written,
            each * (read + written),
            each * self._missed(row, number),
            seconds,
            money,
        )
        prompt = player.prompt(row)
        self._last_prompt[row][number] = (
            [*prompt, *token_cost.tail] if token_cost and isinstance(player, Agent) else prompt
        )
        player.mark_read(row)

    def _missed(self, row: int, number: int) -> int:
        """Tokens of the present prompt that it reads to catch up; not known of an endpoint."""
        player = self._players[number]
        if not isinstance(player, Agent):
            return 0
        return player.missed(row, self._cached_length(row, number, player.prompt(row)))

    def _cached_length(self, row: int, number: int, prompt: Sequence[Any]) -> int:
        """Length of the prefix that the present prompt shares with the last one."""
        # () is no beginning of a text, but of every list
        last = self._last_prompt[row][number]
        return shared(last, prompt) if last else 0

    def _read_and_written(self, row: int, number: int, token_cost: TokenCost | None) -> tuple[int, int]:
        player, cost = self._players[number], token_cost or TokenCost()
        if not isinstance(player, Agent):
            return cost.read, cost.written
        prompt = player.prompt(row)
        # the last token is always fed, for what follows it
        cached = min(self._cached_length(row, number, prompt), len(prompt) - 1)
        return len(prompt) - cached + cost.read, cost.written


def total_in_unit(usages: Sequence[ModelUsage], unit: Unit) -> float:
    """Compute of all models of an episode together, in one unit."""
    return float(sum(getattr(usage, unit) for usage in usages))


def time_shares(tokens: Sequence[int]) -> list[float]:
    """Of the time of a batch, by the tokens of each."""
    total = sum(tokens)
    return [n / total if total else 1 / len(tokens) for n in tokens]


def check_unit(players: Sequence[SwitchPlayer], unit: Unit) -> None:
    """Refuse FLOPs where they cannot be known.

    Raises:
        InputError: the unit is FLOPs and a model is an endpoint's.
    """
    if unit == "flops" and any(player.parameters is None for player in players):
        raise InputError(
            "the FLOPs of a model behind an endpoint are unknown: take seconds or money", field="switch.unit"
        )
