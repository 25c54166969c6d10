"""A run's switch, or one of its models, behind HTTP: ``atlas-ray serve`` (ours)."""

from .messages import ActRequest, Answer, Refused
from .opening import open_sessions, policies
from .sessions import SessionManager

__all__ = ["ActRequest", "Answer", "Refused", "SessionManager", "open_sessions", "policies"]
