"""Counts of reasons, for messages where many things went wrong for few reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_MOST = 3
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

Reasons = list[tuple[str, int]]
"""Each reason in its first wording, and how often; the most frequent first."""


def counted(texts: Iterable[str]) -> Reasons:
    """How often each reason came; numbers in it do not tell reasons apart."""
    counts, wordings = Counter[str](), dict[str, str]()
    for text in texts:
        alike = _NUMBER.sub("0", text)
        counts[alike] += 1
        wordings.setdefault(alike, text)
    return [(wordings[alike], count) for alike, count in counts.most_common()]


def told(found: Reasons) -> str:
    """The most frequent reasons in one line: ``7 times the bot failed: ...; 2 times ...``."""
    words = [f"{count} times {why}" for why, count in found[:_MOST]]
    rest = sum(count for _, count in found[_MOST:])
    return "; ".join(words) + (f"; {rest} times something else" if rest else "")
