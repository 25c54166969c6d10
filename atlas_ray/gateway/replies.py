"""Why a request gets no answer, as OpenAI's error object."""

from __future__ import annotations

import json
from typing import Any

from ..errors import AtlasError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
"""The ``type`` of an error by its status; others are ``api_error``."""


class ApiError(AtlasError, RuntimeError):
    """A request that is refused or has failed.

    Args:
        status: of HTTP.
        message: why.
        reason: OpenAI's ``code``, a word for programs.
        param: the field at fault.
        headers: of the answer.
        said: an error object to give in place of one made of the above.
    """

    code = "request_refused"

    def __init__(
        self,
        status: int,
        message: str,
        reason: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        said: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(status, message, reason, param, headers, said)
        self.status, self.message, self.reason, self.param = status, message, reason, param
        self.headers, self.said = dict(headers or {}), said

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> bytes:
        """The error object, as the body of an answer."""
        return dumped({"error": self.said or self._object})

    @property
    def _object(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "api_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.reason}


def dumped(value: Any) -> bytes:
    """JSON in ASCII: what a model wrote may hold what UTF-8 cannot."""
    return json.dumps(value, allow_nan=False).encode("ascii")
