"""Trajectories in the formats of the neighbours, in and out; docs/formats.md says who reads which flag."""

from .agenttraj import export_agenttraj, import_agenttraj
from .conversations import Options
from .flags import import_annotations
from .notices import Notices
from .openai_messages import export_messages, import_messages
from .preference import PAIR_FORMATS, export_pairs, import_pairs
from .pushing import export_command, push_run
from .runs import FORMATS, TOOL_CALLS, check_file, export_run, import_file
from .sources import check_there
from .tool_turns import WrongToolsError, tools_of

__all__ = [
    "FORMATS",
    "PAIR_FORMATS",
    "TOOL_CALLS",
    "Notices",
    "Options",
    "WrongToolsError",
    "check_file",
    "check_there",
    "export_agenttraj",
    "export_command",
    "export_messages",
    "export_pairs",
    "export_run",
    "import_agenttraj",
    "import_annotations",
    "import_file",
    "import_messages",
    "import_pairs",
    "push_run",
    "tools_of",
]
