"""``atlas-ray env``: environments of this package for others."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .. import envs
from ..errors import InputError
from ..recipe.toml_text import value_of


def env_command(
    until_a_signal: Callable[[Callable[[], None], str], int], arguments: argparse.Namespace, given: Mapping[str, str]
) -> int:
    """Run ``env serve`` or ``env export``; the exit code.

    Args:
        until_a_signal: runs a server; takes it and what its end means for those whom it served.
        arguments: of the command.
        given: settings of the environment, as they were written.

    Raises:
        InputError: an argument, an environment or a setting is wrong, or an extra is missing.
    """
    settings = {key: value_of(value) for key, value in given.items()}
    try:
        known = envs.arguments(arguments.env)
        for key in settings:
            if key not in (*known, "max_steps", "split"):
                raise InputError(f"no such setting; known are {', '.join(known) or 'none'}", None, None, f"--{key}")
        if arguments.dry_run:
            print(json.dumps({"env": envs.full_id(arguments.env), "settings": settings}, indent=2))
            return 0
        if arguments.action == "serve":
            return _serve(until_a_signal, arguments, settings)
        return _export(arguments, settings)
    except (envs.UnknownEnvironmentError, envs.MissingExtraError, ValueError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(str(problem), None, None, arguments.env) from None


def _serve(
    until_a_signal: Callable[[Callable[[], None], str], int], arguments: argparse.Namespace, settings: dict[str, Any]
) -> int:
    from .openenv_server import serve

    if arguments.max_sessions < 1:
        raise InputError("must be at least 1", None, None, "--max-sessions")
    serving = partial(serve, arguments.env, settings, arguments.host, arguments.port, arguments.max_sessions)
    return until_a_signal(serving, "the episodes that were going on have ended with it")


def _export(arguments: argparse.Namespace, settings: dict[str, Any]) -> int:
    from ..rundir.progress import say
    from .verifiers_package import export

    name = export(arguments.env, settings, arguments.out)
    say(f"written: {arguments.out}, package {name}; `python {arguments.out / 'check.py'}` plays it")
    return 0
