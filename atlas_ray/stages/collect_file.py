"""Stage 1 from a file in place of an expert: how a recipe wants it read, and what is said of it. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data.exchange import (
    TOOL_CALLS,
    Notices,
    Options,
    WrongToolsError,
    check_file,
    check_there,
    import_file,
    tools_of,
)
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
        tools=_tools(config.tools),
    )


def _tools(path: str | None) -> tuple[dict[str, Any], ...]:
    """The schemas in the file of ``collect.tools``.

    Raises:
        InputError: it is not there, or holds something else; names file and field.
    """
    if path is None:
        return ()
    try:
        return tools_of(json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", field="collect.tools") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", field="collect.tools") from None
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON at column {error.colno}: {error.msg}", Path(path), error.lineno) from None
    except WrongToolsError as error:
        raise InputError(error.why, Path(path), None, error.field) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON that can be read: {error}", Path(path)) from None


def check_collected(recipe: Recipe, fetched: bool) -> None:
    """Look cheaply whether the file that the recipe collects from can be read, if it has one.

    Args:
        recipe: the recipe.
        fetched: copy what lies on the hub, and look into it; else it is only looked for.

    Raises:
        InputError: it is not there, the first record that counts cannot be read, or models are to be tuned on tool
            calls without a chat template.
    """
    config = recipe.collect
    if config and config.file:
        try:
            kinds = ""
            if is_on_hub(config.file) and not fetched:
                check_there(config.file)
            else:
                kinds = check_file(config.file, _options(recipe, config), config.on_bad)
        except InputError as error:
            raise _with_way_out(error, config) from None
        if TOOL_CALLS in kinds and recipe.finetune and recipe.prompt == "plain":
            raise InputError(
                f'{config.file} holds tool calls, which only a chat template can write: set prompt = "chat"',
                field="prompt",
            )


def holds_tool_calls(recipe: Recipe) -> bool:
    """Whether the recipe collects from a file here whose first record is of an agent that calls tools."""
    config = recipe.collect
    if config is None or not config.file or is_on_hub(config.file):
        return False
    try:
        return TOOL_CALLS in check_file(config.file, _options(recipe, config), config.on_bad)
    except InputError:  # which is said where it is read; a run that has its trajectories needs the file no more
        return False


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
