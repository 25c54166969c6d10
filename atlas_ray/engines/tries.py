"""Candidates with common beginnings, and the choice among them. Needs torch, and nothing of transformers.

Whoever plays through an engine actor or an endpoint needs this and no model, and transformers takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

TRIE_TOKENS = 256
"""Nodes of a trie, by default."""


@dataclass
class TokenTrie:
    """Candidates with their common beginnings merged. A node is a token that more follow, parents before children.

    Attributes:
        tokens: the token of each node.
        depths: how many tokens stand before it.
        up: how many nodes back its parent lies, 0 for a root.
        wanted: candidate, node, and the candidate's token behind that node.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    up: list[int] = field(default_factory=list)
    wanted: list[tuple[int, int, int]] = field(default_factory=list)


def build_tries(options: Sequence[Sequence[int]], most: int) -> list[TokenTrie]:
    """Tries of at most ``most`` nodes, or of one candidate, that hold all candidates with more than one token."""
    tries: list[TokenTrie] = []
    children: dict[tuple[int, int], int] = {}
    # in order, those with a common beginning are neighbours, and few beginnings stand in two tries
    for k in sorted((k for k, option in enumerate(options) if len(option) > 1), key=lambda k: tuple(options[k])):
        if not tries or len(tries[-1].tokens) + len(options[k]) - 1 > most:
            tries.append(TokenTrie())
            children = {}
        trie, parent = tries[-1], -1
        for depth, (token, following) in enumerate(pairwise(options[k])):
            node = children.setdefault((parent, token), len(trie.tokens))
            if node == len(trie.tokens):
                trie.tokens.append(token)
                trie.depths.append(depth)
                trie.up.append(node - parent if depth else 0)
            trie.wanted.append((k, node, following))
            parent = node
    return tries


def choose(logits_RV: torch.Tensor, temperature: float, generators: Sequence[torch.Generator] | None) -> list[int]:
    """Greedy choice, or a sample by the Gumbel trick in which every row has a generator of its own."""
    if not temperature:
        found: list[int] = logits_RV.argmax(-1).tolist()  # (a GPU is waited for once, not for every row)
        return found
    if generators is None:
        raise ValueError("sampling at a temperature needs a seed for every row")
    uniform_RV = torch.stack([torch.rand(logits_RV.shape[-1], generator=g) for g in generators])
    gumbel_RV = -torch.log(-torch.log(uniform_RV.clamp(1e-20, 1 - 1e-7)))
    return [int(i) for i in (logits_RV.cpu() / temperature + gumbel_RV).argmax(-1)]
