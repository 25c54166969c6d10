"""Trajectories and annotations, their files, and those of the neighbours (:mod:`atlas_ray.data.exchange`)."""

from __future__ import annotations

import warnings
from typing import Any

from .data.exchange.agenttraj import export_agenttraj, import_agenttraj
from .data.exchange.openai_messages import export_messages, import_messages
from .data.pairs import Pair, Turn, iter_pairs, read_pairs, write_pairs
from .data.records import (
    Annotation,
    Part,
    Step,
    Trajectory,
    first_problem,
    iter_trajectories,
    max_critical_steps,
    read_annotations,
    read_trajectories,
    write_annotations,
    write_trajectories,
)
from .data.tool_calls import ToolCall, calls_of, write_calls

__all__ = [
    "Annotation",
    "Pair",
    "Part",
    "Step",
    "ToolCall",
    "Trajectory",
    "Turn",
    "calls_of",
    "export_agenttraj",
    "export_messages",
    "first_problem",
    "import_agenttraj",
    "import_messages",
    "iter_pairs",
    "iter_trajectories",
    "max_critical_steps",
    "read_annotations",
    "read_pairs",
    "read_trajectories",
    "write_annotations",
    "write_calls",
    "write_pairs",
    "write_trajectories",
]


def __getattr__(name: str) -> Any:
    if name != "cap":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.cap is now {__name__}.max_critical_steps", DeprecationWarning, stacklevel=2)
    return max_critical_steps
