"""A run's switch, or one of its models, behind HTTP: ``atlas-ray serve`` (ours).

What holds models is imported when it is asked for: the gateway takes the limits of bodies alone.
"""

from typing import TYPE_CHECKING, Any

from .messages import ActRequest, Answer, Refused

if TYPE_CHECKING:
    from .opening import open_sessions, policies
    from .sessions import SessionManager

__all__ = ["ActRequest", "Answer", "Refused", "SessionManager", "open_sessions", "policies"]


def __getattr__(name: str) -> Any:
    if name in ("open_sessions", "policies"):
        from . import opening

        return getattr(opening, name)
    if name == "SessionManager":
        from .sessions import SessionManager

        return SessionManager
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
