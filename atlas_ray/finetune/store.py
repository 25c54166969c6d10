"""The token ids of all trajectories of a run, on disk: made once, shared by every arm, seed and worker."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..agents.rendering import Rendered, Renderer
from ..agents.unknown_words import Unknown, survey
from ..data.records import Trajectory
from ..errors import ContextOverflowError
from ..rundir.files import atomic_directory, read_json, write_json


class Entry(NamedTuple):
    """A trajectory: its number of steps, and which of them are in the store, ``kept`` ones from ``first`` on."""

    id: str
    steps: int
    first: int
    kept: int


@dataclass(frozen=True)
class _Arrays:
    ids: Any
    spans: Any
    starts: Any
    turns: Any


class TokenStore:
    """Rendered trajectories in arrays that are mapped, not read: memory does not grow with their number of tokens.

    Args:
        path: directory that :func:`build_store` wrote.

    Attributes:
        unknown: what the tokenizer does not know of them, see :meth:`atlas_ray.agents.unknown_words.Unknown.row`.
    """

    def __init__(self, path: Path) -> None:
        about = read_json(path / "store.json")
        self.path, self.key, self.context = path, str(about["key"]), int(about["context"])
        self.entries = [Entry(*row) for row in about["entries"]]
        self.unknown: dict[str, Any] = about["unknown"]
        self._arrays = _Arrays(
            **{name: np.load(path / f"{name}.npy", mmap_mode="r") for name in ("ids", "spans", "starts", "turns")}
        )

    def __len__(self) -> int:
        return len(self.entries)

    def ids(self, row: int) -> Any:
        """Token ids of a trajectory, ``[L]``."""
        start, end = self._arrays.starts[row : row + 2, 0]
        return self._arrays.ids[start:end]

    def spans(self, row: int) -> list[tuple[int, int]]:
        """Half-open span of every turn that is kept, in positions of :meth:`ids`."""
        start, end = self._arrays.starts[row : row + 2, 1]
        return [(int(a), int(b)) for a, b in self._arrays.spans[start:end]]

    def turns_before(self, row: int) -> int:
        """Tokens of turns in all trajectories before this one."""
        return int(self._arrays.turns[row])

    @property
    def turn_tokens(self) -> int:
        """Tokens of turns in all trajectories."""
        return int(self._arrays.turns[-1])


def build_store(
    path: Path, trajectories: Iterable[Trajectory], renderer: Renderer, context: int, truncation: str, key: str
) -> TokenStore:
    """Render trajectories into ``path``, unless they lie there already under the same ``key``.

    Args:
        path: directory of the store.
        trajectories: read once, one by one.
        renderer: of the model's tokenizer.
        context: most tokens of a trajectory.
        truncation: what happens to longer ones: ``error``, or they lose whole steps of a side: ``drop_last_steps`` or
            ``drop_first_steps``.
        key: names what the store is made of.

    Raises:
        ContextOverflowError: an episode is too long and shall not lose steps, or not even one step fits.
    """
    fitted = ((trajectory, *fit(trajectory, renderer, context, truncation)) for trajectory in trajectories)
    return stored(path, key) or write_store(path, fitted, renderer, context, key)


def stored(path: Path, key: str) -> TokenStore | None:
    """The store that lies there under this key, if there is one."""
    if (path / "store.json").exists():
        about = read_json(path / "store.json")
        if about["key"] == key and "unknown" in about:  # (older ones did not count)
            return TokenStore(path)
    return None


def write_store(
    path: Path, fitted: Iterable[tuple[Trajectory, int, Rendered]], renderer: Renderer, context: int, key: str
) -> TokenStore:
    """Write what is kept of trajectories into ``path``.

    Args:
        path: directory of the store.
        fitted: trajectories, each with the first step that is kept and the tokens from there on; read once.
        renderer: which rendered them.
        context: most tokens of a trajectory.
        key: names what the store is made of.
    """
    ids: list[Any] = []
    spans: list[tuple[int, int]] = []
    starts, turns, entries = [(0, 0)], [0], []
    total, unknown = 0, Unknown(renderer.tokenizer)
    for trajectory, first, rendered in fitted:
        kept = trajectory.steps[first : first + len(rendered.spans)]
        survey(renderer, [trajectory.model_copy(update={"steps": kept})], unknown)
        ids.append(np.asarray(rendered.ids, dtype=np.int32))
        total += len(rendered.ids)
        spans += rendered.spans
        starts.append((total, len(spans)))
        turns.append(turns[-1] + sum(end - start for start, end in rendered.spans))
        entries.append(Entry(trajectory.id, len(trajectory.steps), first, len(rendered.spans)))
    with atomic_directory(path) as directory:
        np.save(directory / "ids.npy", np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32))
        np.save(directory / "spans.npy", np.asarray(spans, dtype=np.int64).reshape(-1, 2))
        np.save(directory / "starts.npy", np.asarray(starts, dtype=np.int64))
        np.save(directory / "turns.npy", np.asarray(turns, dtype=np.int64))
        about = {"key": key, "context": context, "entries": entries, "unknown": unknown.row()}
        write_json(directory / "store.json", about)
    return TokenStore(path)


def fit(trajectory: Trajectory, renderer: Renderer, context: int, truncation: str) -> tuple[int, Rendered]:
    """The first step that is kept, and what is kept of the trajectory: all of it, or as many whole steps as fit.

    Raises:
        ContextOverflowError: as in :func:`build_store`.
    """
    rendered = renderer.render(trajectory)
    if len(rendered.ids) <= context:
        return 0, rendered
    if truncation == "error":
        raise ContextOverflowError(
            f"trajectory {trajectory.id!r} has {len(rendered.ids)} tokens, the model takes {context}: "
            'collect with a smaller max_steps, or let it lose steps (finetune.truncation = "drop_last_steps")'
        )
    if truncation == "drop_last_steps":
        spans = [span for span in rendered.spans if span[1] <= context]
        if spans:
            return 0, Rendered(rendered.ids[: spans[-1][1]], spans)
    for first in range(1, len(trajectory.steps) if truncation == "drop_first_steps" else 0):
        late = renderer.render(trajectory.model_copy(update={"steps": trajectory.steps[first:]}))
        if len(late.ids) <= context:
            return first, late
    raise ContextOverflowError(
        f"trajectory {trajectory.id!r}: not even one step fits into {context} tokens; raise finetune.context"
    )


def store_key(**parts: Any) -> str:
    """A digest of what a store is made of."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
