"""The exceptions of atlas-ray. Each is also a built-in type and survives pickling, so it can cross a Ray boundary."""

from __future__ import annotations

import errno
from pathlib import Path

PLACES = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ENOENT", "ENOTDIR", "EEXIST", "EISDIR", "ELOOP", "EINVAL")
}
"""``errno`` of what a place is at fault for that somebody has named, not the room on it."""


CODES = {
    "failed": "something failed that has no code of its own",
    "bad_input": "a recipe, a file or an argument is wrong",
    "unknown_recipe": "no recipe of that name, and no such file",
    "not_toml": "a recipe is no TOML",
    "unknown_key": "a recipe has a key that does not exist",
    "invalid_value": "a recipe's key has a value that it cannot have, or does not go with another key",
    "given_twice": "one thing is given under its old and its new name",
    "unexpected_argument": "the command takes no such argument",
    "missing_table": "the recipe lacks the table that the command is about",
    "not_a_run": "a directory is no run",
    "other_recipe": "a run was made with another recipe",
    "other_model": "a run was made with a model that is not here, or that holds other weights",
    "other_data": "a file that a run began to read holds other bytes now",
    "hub_failed": "a dataset's hub could not be reached, or failed",
    "other_environment": "a run was played with another version of an environment than is here",
    "missing_stage": "a stage needs an earlier one that was not run",
    "job_copy": "a run directory would be removed with its job",
    "storage_unusable": "the storage that a recipe names cannot be used",
    "run_in_use": "another driver is at work on the run",
    "runs_differ": "a run went on in two places",
    "run_taken_over": "another driver has taken the run over",
    "push_failed": "a run ended well, and its last push to storage failed",
    "not_written": "a file could not be written",
    "no_space": "a disk or a quota is full",
    "bad_place": "a file cannot be written where it was to be",
    "context_overflow": "a text is longer than the model's context",
    "empty_selection": "nothing would be trained",
    "diverged": "training gave NaN or infinity",
    "no_memory": "a GPU has too little memory for what training asked of it",
    "budget_violation": "a call past the budget reached the models, which is a bug",
    "worker_failed": "a piece of work failed more often than its retries allow",
    "environment_gone": "an environment's server or process does not come back",
    "endpoint_failed": "a model's endpoint did not answer, or not usably",
    "endpoint_error": "a model's endpoint says that its server failed",
    "endpoint_empty": "a model's endpoint wrote nothing up to the limit of tokens",
    "endpoint_filtered": "a model's endpoint would not answer",
    "endpoint_context": "a conversation does not fit the model of an endpoint",
    "endpoint_refused": "a model's endpoint takes no such request",
    "request_refused": "a client of the server asks for what cannot be done",
}
"""Every ``code`` of an error, and what it means. Codes stay as they are when messages change."""


def json_kind(value: object) -> str:
    """What JSON calls a value that it holds: ``null``, ``a number``, ``an object``."""
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")


class AtlasError(Exception):
    """Base of all errors raised on purpose.

    ``exit_code`` is what the command line returns; ``code`` says for programs what happened, one of :data:`CODES`.

    Args:
        args: the message.
        code: of this error, where it is narrower than its class's.
    """

    exit_code = 1
    code = "failed"

    def __init__(self, *args: object, code: str | None = None) -> None:
        super().__init__(*args)
        if code:
            self.code = code


class InputError(AtlasError, ValueError):
    """The user's input is wrong: a recipe, a file, an argument.

    Args:
        message: what is wrong and, where known, the way out.
        path: the file at fault.
        line: its 1-based line.
        field: dotted name of the field at fault.
        code: what is wrong, for programs.
    """

    exit_code = 2
    code = "bad_input"

    def __init__(
        self,
        message: str,
        path: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        code: str | None = None,
    ) -> None:
        self.message, self.path, self.line, self.field = message, path, line, field
        where = "" if path is None else str(path) if line is None else f"{path}:{line}"
        super().__init__(": ".join(part for part in (where, field or "", message) if part), code=code)

    def __reduce__(self) -> tuple[type[InputError], tuple[object, ...]]:
        return type(self), (self.message, self.path, self.line, self.field, self.code)


class ContextOverflowError(AtlasError, ValueError):
    """A prompt or a training sequence is longer than the model's context."""

    code = "context_overflow"


class EmptySelectionError(AtlasError, ValueError):
    """Nothing would be trained: no step of the data is selected."""

    code = "empty_selection"


class DivergedError(AtlasError, ArithmeticError):
    """Training gave numbers that are none: NaN or infinity."""

    code = "diverged"


class StorageError(AtlasError, OSError):
    """Something could not be written: the disk is full, or the place is at fault, which is bad input.

    Args:
        message: the file, what happened, and what to do.
        number: ``errno`` of what happened, where it is known.
    """

    code = "not_written"

    def __init__(self, message: str, number: int | None = None) -> None:
        self.number = number
        self.exit_code = 2 if number in PLACES else 1
        full = "no_space" if number in (errno.ENOSPC, errno.EDQUOT) else None
        super().__init__(message, code="bad_place" if number in PLACES else full)

    def __reduce__(self) -> tuple[type[StorageError], tuple[object, ...]]:
        return type(self), (str(self), self.number)

    def __str__(self) -> str:
        return str(self.args[0])


class BudgetViolationError(AtlasError, RuntimeError):
    """A DEEPTHINK call past the budget reached the models. The guard makes this impossible; seeing it is a bug."""

    code = "budget_violation"


class WorkerFailedError(AtlasError, RuntimeError):
    """A piece of work failed more often than its retries allow."""

    code = "worker_failed"


class EnvironmentGoneError(AtlasError, RuntimeError):
    """An environment begins no episode any more: its server or its process is gone and does not come back."""

    code = "environment_gone"


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

    code = "endpoint_failed"

    def __init__(
        self, message: str, status: int | None = None, kind: str = "", tokens: tuple[int, int] = (0, 0)
    ) -> None:
        self.message, self.status, self.kind, self.tokens = message, status, kind, tokens
        super().__init__(message, code=f"endpoint_{kind or 'failed'}")

    @property
    def for_all(self) -> bool:
        """Whether all other requests would get it too: it is about the key, the account or the address."""
        return self.kind == "refused" and self.status in (401, 402, 403, 404, 429)

    def __reduce__(self) -> tuple[type[EndpointError], tuple[object, ...]]:
        return type(self), (self.message, self.status, self.kind, self.tokens)
