"""A run goes on with the simulators that it was begun with: another version may answer the same actions differently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .. import envs
from ..errors import InputError
from ..recipe.loading import Recipe
from ..rundir.files import jsonl_rows, read_json, write_json
from ..rundir.layout import RunLayout
from ..rundir.progress import say
from .table import STAGE

Versions = dict[str, dict[str, str]]
"""By the id of an environment, what it is played by and in which version."""


def record_environments(recipe: Recipe, run_dir: Path, stage: str) -> None:
    """Note in which versions the environments are played that a stage which now begins plays; earlier notes stay.

    A run of a version that noted nothing goes on, which is said.
    """
    path, found = RunLayout(run_dir).environment_versions, _versions_of(recipe, run_dir, stage)
    noted = _noted(run_dir)
    if noted is None and _has_played(run_dir):
        for name, now in found.items():
            say(f"  the run does not say in which version {name} was played so far; it goes on with {_words(now)}")
    if noted is None or found.keys() - noted.keys():
        write_json(path, {**found, **(noted or {})})


def refuse_other_environments(recipe: Recipe, run_dir: Path, stage: str) -> None:
    """Refuse to play with another version of a simulator than the run was begun with.

    Raises:
        InputError: names both.
    """
    noted = _noted(run_dir)
    for name, now in (_versions_of(recipe, run_dir, stage) if noted else {}).items():
        before = (noted or {}).get(name, now)
        if before != now:
            raise InputError(
                f"{name} was played with {_words(before)} in this run, and here is {_words(now)}: bring the former "
                "back, or name another --out",
                run_dir,
                code="other_environment",
            )


def _words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "what has no version"


def _noted(run_dir: Path) -> Versions | None:
    path = RunLayout(run_dir).environment_versions
    found: Versions | None = read_json(path) if path.is_file() else None
    return found


def _has_played(run_dir: Path) -> bool:
    layout = RunLayout(run_dir)
    episodes = (layout.expert, layout.expert_part, layout.evaluation_episodes, layout.switch_episodes)
    return any(path.exists() for path in (*episodes, layout.switch_selection, layout.rounds))


def _versions_of(recipe: Recipe, run_dir: Path, stage: str) -> Versions:
    found: Versions = {}
    for name in dict.fromkeys(_names(recipe, run_dir, stage)):
        with suppress(envs.UnknownEnvironmentError, envs.MissingExtraError):  # which the stage itself tells of
            if versions := envs.versions(name):
                found[envs.full_id(name)] = versions
    return found


def _names(recipe: Recipe, run_dir: Path, stage: str) -> Iterator[str]:
    yield from (name for _, name, _, _ in STAGE[stage].environments(recipe))
    if stage == "select" and recipe.collect:  # whose selectors may replay what was collected
        yield from recipe.collect.levels
        if recipe.collect.file and RunLayout(run_dir).expert.is_file():
            for row in jsonl_rows(RunLayout(run_dir).expert):
                if not envs.foreign_module(row["env"]):  # a file of data must not choose what is imported
                    yield row["env"]
