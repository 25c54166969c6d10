"""What a model's decision is paid for: at most, before it is asked, and afterwards, by tokens and prices."""

from __future__ import annotations

from collections.abc import Sequence

from ..agents.token_agent import Decision, LostAnswer
from .players import SwitchPlayer
from .spending import Amount, Prices, Usage, cost


def most_of_each(players: Sequence[SwitchPlayer], row: int, offered: Sequence[str]) -> list[Amount]:
    """What the next decision of every model in ``row`` costs at most."""
    found = []
    for number, player in enumerate(players):
        most = Usage(*player.worst_case(row, offered))
        found.append(cost(Prices(*player.price), most, bool(number)))
    return found


def paid_for(
    players: Sequence[SwitchPlayer], row: int, number: int, decision: Decision | LostAnswer | None
) -> Amount | None:
    """What a model's answer in the present state of ``row`` costs; None where nobody knows."""
    used = players[number].tokens_of(row, decision) if isinstance(decision, Decision) else None
    return None if used is None else cost(Prices(*players[number].price), Usage(*used), bool(number))
