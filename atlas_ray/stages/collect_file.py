"""Stage 1 from a file in place of an expert: how a recipe wants it read, and what is said of it. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from ..data.exchange import Notices, Options, check_file, check_there, import_file
from ..data.hub import is_on_hub
from ..errors import InputError
from ..recipe.loading import Collect, Recipe
from ..rundir.progress import say


def _options(recipe: Recipe, config: Collect) -> Options:
    return Options(
        success=config.success,
        success_field=config.success_field,
        reasoning=config.reasoning,
        examples=config.examples,
        thinking=tuple(recipe.agent.thinking),
    )


def check_collected(recipe: Recipe, fetched: bool) -> None:
    """Look cheaply whether the file that the recipe collects from can be read, if it has one.

    Args:
        recipe: the recipe.
        fetched: copy what lies on the hub, and look into it; else it is only looked for.

    Raises:
        InputError: it is not there, or the first record that counts cannot be read.
    """
    config = recipe.collect
    if config and config.file:
        try:
            if is_on_hub(config.file) and not fetched:
                check_there(config.file)
            else:
                check_file(config.file, _options(recipe, config), config.on_bad)
        except InputError as error:
            raise _with_way_out(error, config) from None


def import_collected(recipe: Recipe, run_dir: Path) -> None:
    """The trajectories of the recipe's file; what was left out of them, or is unknown, is said and logged.

    Raises:
        InputError: the file cannot be read, or a record of it, if those are not to be skipped.
    """
    config, notices = recipe.collect, Notices()
    assert config is not None
    assert config.file is not None
    try:
        count = import_file(
            config.file,
            run_dir,
            options=_options(recipe, config),
            on_bad=config.on_bad,
            keep=config.keep,
            notices=notices,
        )
    except InputError as error:
        raise _with_way_out(error, config) from None
    say(f"  {count} trajectories from {config.file}")
    for line in notices.lines():
        say(f"  {line}")


def _with_way_out(error: InputError, config: Collect) -> InputError:
    """What is wrong with one record of a file, and how to go on without it."""
    of_record = error.line is not None or (error.field or "").find("]") >= 0
    if config.on_bad == "skip" or not of_record:
        return error
    message = f'{error.message} (collect.on_bad = "skip" leaves such records out)'
    return InputError(message, error.path, error.line, error.field, error.code)
