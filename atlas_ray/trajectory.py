"""Trajectories and annotations, their files, and those of the neighbours (:mod:`atlas_ray.data.exchange`)."""

from __future__ import annotations

from .data.exchange.agenttraj import export_agenttraj, import_agenttraj
from .data.exchange.openai_messages import export_messages, import_messages
from .data.records import (
    Annotation,
    Step,
    Trajectory,
    cap,
    first_problem,
    iter_trajectories,
    read_annotations,
    read_trajectories,
    write_annotations,
    write_trajectories,
)

__all__ = [
    "Annotation",
    "Step",
    "Trajectory",
    "cap",
    "export_agenttraj",
    "export_messages",
    "first_problem",
    "import_agenttraj",
    "import_messages",
    "iter_trajectories",
    "read_annotations",
    "read_trajectories",
    "write_annotations",
    "write_trajectories",
]
