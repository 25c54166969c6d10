"""Critical-step tuning (ATLaS) and learned model switching (LONDI) for language agents, on one laptop or a cluster."""

__version__ = "0.1.0"

from .moved import install

install()
