"""A run's switch, or one of its models, behind HTTP: ``atlas-ray serve`` (ours)."""

from .asking import Answer, Asked, Refused
from .opening import open_desk, policies
from .sessions import Desk

__all__ = ["Answer", "Asked", "Desk", "Refused", "open_desk", "policies"]
