"""A run's switch, or one of its models, behind HTTP: ``atlas-ray serve`` (ours)."""

from .asking import Answer, Asked, Refused
from .desk import Desk
from .opening import open_desk, policies

__all__ = ["Answer", "Asked", "Desk", "Refused", "open_desk", "policies"]
