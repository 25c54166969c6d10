"""What observations and actions are drawn from: any text. Gymnasium's ``Text`` knows the letters of a charset only.

Gymnasium's vector environments hand observations on in shared memory, by functions that each class of spaces may
register; those of ``Text`` look every character up in its charset. Here a text travels as its length and code points.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import shared_memory
from numpy.typing import NDArray

_SAMPLED = string.ascii_letters + string.digits + " "
_POINTS = 0x110000
"""Code points of Unicode. Those of surrogates count: text that was not UTF-8 may hold them."""


class _Characters(Sequence[str]):
    """Every character there is, by code point, without holding a million of them."""

    def __len__(self) -> int:
        return _POINTS

    def __getitem__(self, index: Any) -> Any:
        return chr(range(_POINTS)[index])

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and len(value) == 1

    def __iter__(self) -> Iterator[str]:
        return map(chr, range(_POINTS))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Characters)

    __hash__ = None  # type: ignore[assignment]


class TextSpace(spaces.Text):
    """Any string of at most ``max_length`` characters, of any script; samples are ASCII letters, digits, blanks."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length, min_length=0, charset=_SAMPLED)

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a string that is not too long, whatever its alphabet."""
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A text of any length within the space."""
        if mask is not None or probability is not None:
            return super().sample(mask, probability)
        length = self.np_random.integers(self.max_length + 1)
        return "".join(self.np_random.choice(list(_SAMPLED), length))

    @property
    def character_set(self) -> Any:
        """All characters of Unicode."""
        return _Characters()

    @property
    def character_list(self) -> Any:
        """All characters of Unicode, in the order of their code points."""
        return _Characters()

    def character_index(self, char: str) -> np.int32:
        """The code point of a character."""
        return np.int32(ord(char))

    @property
    def characters(self) -> str:
        """All characters of Unicode, one after the other."""
        return "".join(_Characters())

    def __repr__(self) -> str:
        return f"TextSpace({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextSpace) and self.max_length == other.max_length

    __hash__ = None  # type: ignore[assignment]


def _create(space: TextSpace, n: int = 1, ctx: Any = None) -> Any:
    return ctx.Array("i", n * (space.max_length + 1))


def _places(space: TextSpace, memory: Any) -> NDArray[np.int32]:
    """A row an environment: the length of its text, then the text."""
    return np.frombuffer(memory.get_obj(), dtype=np.int32).reshape(-1, space.max_length + 1)


def _write(space: TextSpace, index: int, value: str, shared_memory: Any) -> None:
    if len(value) > space.max_length:
        raise ValueError(
            f"an observation has {len(value)} characters, its space holds {space.max_length}: give the environment an "
            f"observation_space of envs.TextSpace({len(value)}) or more, or vectorise with shared_memory=False"
        )
    place = _places(space, shared_memory)[index]
    place[1 : len(value) + 1] = np.frombuffer(value.encode("utf-32-le", "surrogatepass"), dtype="<i4")
    place[0] = len(value)


class _Live(Sequence[str]):
    """The texts that lie in shared memory now. Gymnasium asks for them once and expects to see later ones in it."""

    def __init__(self, places: NDArray[np.int32]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self)[index]
        place = self._places[index]
        return place[1 : place[0] + 1].astype("<i4").tobytes().decode("utf-32-le", "surrogatepass")

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return repr(tuple(self))


def _read(space: TextSpace, shared_memory: Any, n: int = 1) -> _Live:
    return _Live(_places(space, shared_memory))


shared_memory.create_shared_memory.register(TextSpace, _create)
shared_memory.write_to_shared_memory.register(TextSpace, _write)
shared_memory.read_from_shared_memory.register(TextSpace, _read)
