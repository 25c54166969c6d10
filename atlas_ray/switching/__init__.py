"""LONDI: when a small model may act and when a large one must (arXiv 2402.12061)."""

from .past import Past
from .policy import SwitchPolicy

__all__ = ["Past", "SwitchPolicy"]
