"""Words of a text that a tokenizer does not know, counted where a model reads it (ours).

A tokenizer of bytes knows everything; one of words writes ``[UNK]``, and some drop what they do not know. A model that
is trained on such tokens learns to write them, and one that reads them acts half blind, without any error.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..data.records import Trajectory
    from .rendering import Renderer

FIELD = "unknown_share"
_log = logging.getLogger(__name__)
NOTHING: dict[str, Any] = {"tokens": 0, "unknown": 0, "words": {}}
"""The counts of nothing; of models from before there were any."""
_STRANGE = "qzxjv ☃ ꙮ \U00013080 ǂ 犇 ᚠ"
_SHOWN, _MOST_TEXTS = 8, 50_000


class Unknown:
    """Counts tokens, and words that are none, of the texts that it is told of.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Attributes:
        tokens: of all texts.
        unknown: those of them that stand for something unknown, and words that were dropped.
        words: how often each was met.
        lossy: whether there can be any; where there cannot, texts are only counted.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokens = self.unknown = 0
        self.words = Counter[str]()
        self._tokenizer = tokenizer
        self._known: dict[str, list[str]] = {}
        self.lossy = bool(self._lost(_STRANGE))

    def note(self, text: str, tokens: int) -> None:
        """A text of so many tokens was read."""
        self.tokens += tokens
        if not self.lossy:
            return
        lost = self._known.get(text)
        if lost is None:
            if len(self._known) > _MOST_TEXTS:
                self._known.clear()
            lost = self._known[text] = self._lost(text)
        self.unknown += len(lost)
        self.words.update(lost)

    @property
    def share(self) -> float:
        """Of the tokens, those that are unknown."""
        return self.unknown / self.tokens if self.tokens else 0.0

    def row(self) -> dict[str, Any]:
        """The counts with the most frequent words, ready for JSON."""
        return {"tokens": self.tokens, "unknown": self.unknown, "words": dict(self.words.most_common(_SHOWN))}

    def _lost(self, text: str) -> list[str]:
        unk = self._tokenizer.unk_token_id
        if not self._tokenizer.is_fast:
            pieces = {word: self._encoded(word)["input_ids"] for word in set(text.split())}
            return [word for word in text.split() if not pieces[word] or unk in pieces[word]]
        made = self._encoded(text, return_offsets_mapping=True)
        spans = list(zip(made["input_ids"], made["offset_mapping"], strict=True))
        lost = [text[start:end].strip() or "(empty)" for token, (start, end) in spans if token == unk]
        if self._covers(text, made["offset_mapping"]):
            return lost
        # places are wrong behind what was dropped, so every word is looked at alone
        alone = {word: self._encoded(word, return_offsets_mapping=True)["offset_mapping"] for word in text.split()}
        return lost + [word for word in text.split() if not self._covers(word, alone[word])]

    def _encoded(self, text: str, **settings: Any) -> Any:
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, **settings)

    @staticmethod
    def _covers(text: str, spans: Iterable[tuple[int, int]]) -> bool:
        """Whether tokens stand for all of a text but its white space."""
        rest = list(text)
        for start, end in spans:
            rest[start:end] = " " * (end - start)
        return not "".join(rest).strip()


class Reader:
    """Counts what a player reads, warns once, and refuses to go on where too much of it is unknown.

    Args:
        renderer: of the player.
        most: share of the tokens.
        model: its name.
    """

    enough = 2000
    """Tokens that have to be read before anything is said."""

    def __init__(self, renderer: Renderer, most: float, model: str) -> None:
        self.counts = Unknown(renderer.tokenizer)
        self._renderer, self._most, self._model, self._said = renderer, most, model, False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within, what is encoded is read.

        Raises:
            InputError: too much was unknown so far.
        """
        self._renderer.unknown = self.counts if self.counts.lossy else None
        try:
            yield
        finally:
            self._renderer.unknown = None
        if self.counts.tokens < self.enough or not self.counts.unknown:
            return
        if self.counts.share > self._most:
            way_out = "Let a model that knows them play"
            refuse(self.counts.row(), self._most, self._model, way_out)
        if not self._said:
            self._said = True
            _log.warning("of what it reads, %s", warning(self.counts.row(), self._model))


def survey(renderer: Renderer, trajectories: Iterable[Trajectory], counts: Unknown | None = None) -> Unknown:
    """Count what a renderer does not know of trajectories; those that know everything are not even read.

    Args:
        renderer: of the model that is to read them.
        trajectories: whole, or what is kept of them.
        counts: to add to; by default new ones.
    """
    counts = counts or Unknown(renderer.tokenizer)
    if counts.lossy:
        before, renderer.unknown = renderer.unknown, counts
        try:
            for trajectory in trajectories:
                renderer.render(trajectory)
        finally:
            renderer.unknown = before
    return counts


def warning(row: dict[str, Any], model: str) -> str | None:
    """What is to be said of counts (:meth:`Unknown.row`), as a sentence without its end; None of none."""
    if not row["unknown"]:
        return None
    words = ", ".join(f"{word} ({times:,} times)" for word, times in row["words"].items())
    share = row["unknown"] / max(1, row["tokens"])
    return f"{share:.1%} of {row['tokens']:,} tokens are unknown to the tokenizer of {model}: {words}"


def refuse(row: dict[str, Any], most: float, model: str, way_out: str) -> None:
    """Raise where more is unknown than may be.

    Args:
        row: counts.
        most: share of the tokens.
        model: whose tokenizer it is.
        way_out: what to do, as a request.

    Raises:
        InputError: it is more; names the most frequent words.
    """
    if row["unknown"] > most * row["tokens"]:
        raise InputError(f"{warning(row, model)}; {most:.0%} may be. {way_out}, or allow more here", field=FIELD)
