"""What can only be told from all records that are read together, looked for when one of them leaves it open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import InputError
from .outcomes import beyond_one
from .reading import KEYS, read_records
from .turns import flag_of, is_answer

META = "atlas_ray"
"""Under which our own export writes what the neighbours' formats have no place for."""


class Survey:
    """Files that are read together, looked through once and only when asked."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def masked(self) -> bool:
        """Whether the flags are marks on steps: some agent's turn is flagged false behind one that is flagged true.

        Rounds that are not trained because they are examples all stand in front of those that are.
        """
        return self._found[0]

    def other_scale(self) -> frozenset[str]:
        """Score fields that somewhere go beyond 1, so that they are not on 0 to 1."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[bool, frozenset[str]]:
        masked, beyond = False, set[str]()
        for value in self._values():
            beyond |= beyond_one(value)
            masked = masked or (META not in value and _masked(value))
        return masked, frozenset(beyond)

    def _values(self) -> Iterator[dict[str, Any]]:
        for file in self._files:
            with suppress(InputError):  # which the reading itself raises
                yield from (record.value for record in read_records(file, "skip", None))


def _masked(value: dict[str, Any]) -> bool:
    turns = next((t for k in KEYS[:2] if isinstance(t := value.get(k), list)), [])
    flags = [flag_of(t) for t in turns if isinstance(t, dict) and is_answer(t)]
    return True in flags and False in flags[flags.index(True) :]
