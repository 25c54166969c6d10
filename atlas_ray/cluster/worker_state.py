"""What a worker process keeps from one task to the next."""

from __future__ import annotations

from typing import Any, TypeVar, cast

T = TypeVar("T")


class WorkerState:
    """A worker's number in its pool, and one object of each type that its jobs ask for: an open engine, say.

    Attributes:
        index: which one that takes a lost worker's place has too; None until it is known.
    """

    def __init__(self, index: int | None = None) -> None:
        self.index = index
        self._objects: dict[type[Any], Any] = {}

    def get_or_create(self, kind: type[T]) -> T:
        """The worker's object of this type, made without arguments when it is first asked for."""
        if kind not in self._objects:
            self._objects[kind] = kind()
        return cast(T, self._objects[kind])

    def find(self, kind: type[T]) -> T | None:
        """The worker's object of this type, if there is one."""
        return cast("T | None", self._objects.get(kind))

    def clear(self) -> None:
        """Forget everything, the number too."""
        self.index = None
        self._objects.clear()
