"""Trajectories in the formats of the neighbours, in and out; docs/formats.md says who reads which flag."""

from .agenttraj import export_agenttraj, import_agenttraj
from .marks import import_annotations
from .messages import export_messages, import_messages
from .runs import FORMATS, export_run, import_file

__all__ = [
    "FORMATS",
    "export_agenttraj",
    "export_messages",
    "export_run",
    "import_agenttraj",
    "import_annotations",
    "import_file",
    "import_messages",
]
