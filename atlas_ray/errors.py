"""The exceptions of atlas-ray. Each is also a built-in type and survives pickling, so it can cross a Ray boundary."""

from __future__ import annotations

import errno
from pathlib import Path

PLACES = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ENOENT", "ENOTDIR", "EEXIST", "EISDIR", "ELOOP", "EINVAL")
}
"""``errno`` of what a place is at fault for that somebody has named, not the room on it."""


class AtlasError(Exception):
    """Base of all errors raised on purpose. ``exit_code`` is what the command line returns."""

    exit_code = 1


class InputError(AtlasError, ValueError):
    """The user's input is wrong: a recipe, a file, an argument.

    Args:
        message: what is wrong and, where known, the way out.
        path: the file at fault.
        line: its 1-based line.
        field: dotted name of the field at fault.
    """

    exit_code = 2

    def __init__(
        self, message: str, path: str | Path | None = None, line: int | None = None, field: str | None = None
    ) -> None:
        self.message, self.path, self.line, self.field = message, path, line, field
        where = "" if path is None else str(path) if line is None else f"{path}:{line}"
        super().__init__(": ".join(part for part in (where, field or "", message) if part))

    def __reduce__(self) -> tuple[type[InputError], tuple[object, ...]]:
        return type(self), (self.message, self.path, self.line, self.field)


class ContextOverflowError(AtlasError, ValueError):
    """A prompt or a training sequence is longer than the model's context."""


class EmptySelectionError(AtlasError, ValueError):
    """Nothing would be trained: no step of the data is selected."""


class DivergedError(AtlasError, ArithmeticError):
    """Training gave numbers that are none: NaN or infinity."""


class StorageError(AtlasError, OSError):
    """Something could not be written: the disk is full, or the place is at fault, which is bad input.

    Args:
        message: the file, what happened, and what to do.
        number: ``errno`` of what happened, where it is known.
    """

    def __init__(self, message: str, number: int | None = None) -> None:
        self.number = number
        self.exit_code = 2 if number in PLACES else 1
        super().__init__(message)

    def __reduce__(self) -> tuple[type[StorageError], tuple[object, ...]]:
        return type(self), (str(self), self.number)

    def __str__(self) -> str:
        return str(self.args[0])


class BudgetViolationError(AtlasError, RuntimeError):
    """A DEEPTHINK call past the budget reached the models. The guard makes this impossible; seeing it is a bug."""


class WorkerFailedError(AtlasError, RuntimeError):
    """A piece of work failed more often than its retries allow."""


class EnvironmentGoneError(AtlasError, RuntimeError):
    """An environment begins no episode any more: its server or its process is gone and does not come back."""


class EndpointError(AtlasError, RuntimeError):
    """A model's endpoint refused a request, or gave no usable answer in time. Its text never holds the key.

    Args:
        message: what happened and, where known, what to do.
        status: HTTP status of the last answer; None when there was none.
        kind: ``""`` the line or the server failed, and the retries are used up; ``"error"`` the answer says that the
            server failed; ``"empty"`` nothing was written at the limit of tokens, so asking again with the same limit
            is no use; ``"filtered"`` the server's filter or the model would not answer; ``"context"`` the conversation
            does not fit the model; ``"refused"`` the server takes no such request.
        tokens: read and written for answers that are none, as far as the server counts them; they are paid for.
    """

    def __init__(
        self, message: str, status: int | None = None, kind: str = "", tokens: tuple[int, int] = (0, 0)
    ) -> None:
        self.message, self.status, self.kind, self.tokens = message, status, kind, tokens
        super().__init__(message)

    @property
    def for_all(self) -> bool:
        """Whether all other requests would get it too: it is about the key, the account or the address."""
        return self.kind == "refused" and self.status in (401, 402, 403, 404, 429)

    def __reduce__(self) -> tuple[type[EndpointError], tuple[object, ...]]:
        return type(self), (self.message, self.status, self.kind, self.tokens)
