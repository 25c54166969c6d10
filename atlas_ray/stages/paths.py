"""What a recipe names and has to be there: files, models, storage.

Looked at without torch, Ray or a network, but for datasets on the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..data.exchange import check_there
from ..data.hub import is_on_hub
from ..data.marked_run import read_marked_run
from ..errors import InputError
from ..models.fetch import known
from ..models.loading import resolve
from ..recipe.loading import Recipe
from ..recipe.switch import ENCODERS
from ..storage.place import check_place
from .collect_file import check_collected
from .collect_policy import check_collecting
from .table import models


def files(recipe: Recipe, annotations: bool = True) -> Iterator[tuple[str, str]]:
    """(field, path) of every file or folder that is read; with ``annotations`` also those of annotations and pairs."""
    if recipe.collect and recipe.collect.file:
        yield "collect.file", recipe.collect.file
    if recipe.switch:
        yield from (("switch.logs", path) for path in recipe.switch.logs)
    if recipe.select and annotations:
        yield from ((f"select.files.{name}", path) for name, path in recipe.select.files.items())
    if recipe.finetune and annotations:
        yield from ((f"finetune.pairs.files.{name}", path) for name, path in recipe.finetune.pairs.files.items())


def check_inputs(recipe: Recipe, fetched: bool = False, annotations: bool = True, collected: bool = False) -> None:
    """Refuse a recipe that names what cannot be had here. A model's name on the hub is taken as it is.

    Args:
        recipe: whose names are looked at.
        fetched: also refuse models that would have to be fetched first, and look into a file that lies on the hub.
        annotations: also look for files of annotations and pairs, which may be made when episodes are collected.
        collected: the trajectories are there already, so that nothing is asked of the file that they were read from.

    Raises:
        InputError: names the field and what is missing, or does not go with the others.
    """
    for field, path in files(recipe, annotations):
        if field != "collect.file" or not (collected or is_on_hub(path)):  # which is looked for below
            _under(field, lambda path=path: _check_file(path))  # type: ignore[misc]
    if not collected:
        _under("collect.file", lambda: check_collected(recipe, fetched))
    check_collecting(recipe)
    _check_calls(recipe)
    _check_failures(recipe)
    for field, name in models(recipe):
        if fetched or name not in known():
            _under(field, lambda name=name: resolve(name))  # type: ignore[misc]
    if annotations and recipe.select and "distilled" in recipe.select.selectors:
        read_marked_run(recipe.select.distilled.teacher or "", "select.distilled.teacher")
    encoder = recipe.switch.encoder if recipe.switch else "hashing"
    if encoder not in ENCODERS:
        _under("switch.encoder", lambda: _check_encoder(encoder))
    if recipe.storage:
        check_place(recipe.storage)


def _check_calls(recipe: Recipe) -> None:
    """Nobody is called where an expert acts alone."""
    config = recipe.collect
    if recipe.select and "calls" in recipe.select.selectors and config and config.levels and not config.switch:
        raise InputError(
            "calls marks steps by who took them, and experts take all of theirs: give collect.switch",
            field="select.selectors",
        )


def _check_failures(recipe: Recipe) -> None:
    """What is verified are steps of failed episodes of an agent that can play on."""
    config = recipe.collect
    if config is None or recipe.select is None or "verified" not in recipe.select.selectors:
        return
    if config.levels and not config.agent:
        who = "a switch, which does not play on" if config.switch else "experts, which succeed"
        raise InputError(
            f"verified plays on from failed episodes of an agent, and these are of {who}: give collect.agent",
            field="select.selectors",
        )
    if config.keep == "successes":
        raise InputError('verified needs failed episodes: keep "all" or "failures"', field="collect.keep")


def _under(field: str, look: Callable[[], object]) -> None:
    """Give an error of what a field names the field's name."""
    try:
        look()
    except InputError as error:
        raise InputError(error.message, error.path, error.line, error.field or field, error.code) from None


def _check_file(name: str) -> None:
    path = Path(name)
    try:
        if is_on_hub(name):
            check_there(name)
        elif "://" in name:
            raise InputError("is an address, and only datasets are read from one, as hf://datasets/ORG/NAME/FILE", name)
        elif path.is_file():
            path.open("rb").close()
        elif not path.is_dir():
            raise InputError(f"there is no such file or folder{_nearest(path)}", path)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path) from None


def _check_encoder(name: str) -> None:
    """A directory, or else something that may be a hub id."""
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file() and not (path / "modules.json").is_file():
        raise InputError("is no sentence encoder's directory: it has neither config.json nor modules.json", path)
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise InputError(f"there is no such directory{_nearest(path)}", path)


def _nearest(path: Path) -> str:
    """Where a path that leads nowhere stops."""
    there = next((parent for parent in path.parents if parent.is_dir()), None)
    if there is None or there == path.parent:
        return ""
    return f": {there.resolve()} has no {path.relative_to(there).parts[0]}"
