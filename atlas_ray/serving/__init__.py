"""A run's switch, or one of its models, behind HTTP: ``atlas-ray serve`` (ours)."""

from .desk import Answer, Asked, Desk, Refused, open_desk, policies

__all__ = ["Answer", "Asked", "Desk", "Refused", "open_desk", "policies"]
