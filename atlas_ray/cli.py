"""The command line: one thin command a stage."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from . import envs
from .cli_arguments import overrides, parser
from .cluster.causes import culprit, described, of_light_install, passes
from .cluster.container import cgroup_cpu_quota, usable_cpus
from .errors import AtlasError, InputError
from .recipe.loading import Recipe, RenamedKeyWarning, load, shipped
from .recipe.sweep_space import plan, with_values
from .recipe.toml_text import value_of
from .rundir.disk import is_full, unwritten
from .rundir.layout import RunLayout
from .rundir.logs import redact, where
from .sharing.commands import env_command
from .stages.paths import check_inputs
from .stages.table import STAGE, done_stages


def _dry_run_shown(arguments: argparse.Namespace) -> bool:
    """Whether ``--dry-run`` printed the recipe of an existing run, and that was all."""
    resolved = RunLayout(arguments.run).recipe
    if not _is_there(resolved) or not resolved.is_file():
        raise InputError(f"is not a run directory: it has no {resolved.name}", arguments.run, code="not_a_run")
    if arguments.dry_run:
        print(resolved.read_text(encoding="utf-8"), end="")
    return bool(arguments.dry_run)


def _report(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from .report.compare import build_comparison
    from .rundir.progress import say
    from .stages.report import write_report

    _reject_extra(rest)
    if _dry_run_shown(arguments):
        return 0
    if arguments.other is not None:
        say(f"comparison: {build_comparison(arguments.run, arguments.other, arguments.out)}")
        return 0
    if arguments.out is not None:
        raise InputError("is for a comparison of two runs", None, None, "out")
    from .sweep.table import refresh

    refresh(Path(arguments.run))  # a sweep that was stopped has no table yet
    report = write_report(arguments.run)
    _answers(arguments.run)
    say(f"report: {report}")
    return 0


def _export(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from .data.exchange import export_command
    from .rundir.progress import say

    _reject_extra(rest)
    if not _dry_run_shown(arguments):
        given = (arguments.run, arguments.selector, arguments.format, arguments.flag, arguments.unmarked)
        for line in export_command(*given, arguments.out, arguments.push, arguments.public):
            say(line)
    return 0


def _serve(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from .serving.app import serve

    _reject_extra(rest)
    if arguments.places is not None:
        if arguments.max_sessions is not None:
            raise InputError(
                "is the old name of --max-sessions, which is given too", field="--places", code="given_twice"
            )
        _warn("--places is now called --max-sessions; the next release will not know the old name")
        arguments.max_sessions = arguments.places
    if arguments.max_sessions is not None and arguments.max_sessions < 1:
        raise InputError("must be at least 1", None, None, "--max-sessions")
    if not _dry_run_shown(arguments):
        serving = partial(serve, arguments.run, arguments.policy, arguments.port, arguments.max_sessions)
        return _until_a_signal(serving, "the episodes that were going on have ended with it")
    return 0


def _until_a_signal(serve: Callable[[], None], lost: str) -> int:
    """Serve until a signal ends it; the exit code. ``lost`` says what a termination does to those who were served."""
    try:
        serve()
    except KeyboardInterrupt:  # which is how it ends
        return 0
    except SystemExit:
        if not _terminated.is_set():
            raise
        print(f"atlas-ray: terminated; {lost}", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 0


def _gateway(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    if arguments.report is not None or arguments.recipe is None:
        from .gateway.report import report_command

        _reject_extra(rest)
        return report_command(arguments.report, arguments.recipe, arguments.dry_run)
    from .gateway.app import require_extra, serve

    require_extra(arguments.ray)
    from .gateway.opening import check_gateway, recipe_of_gateway

    arguments.quick = False
    if Path(arguments.recipe).is_dir():
        _reject_extra(rest)
        run_dir = Path(arguments.recipe)
        recipe = recipe_of_gateway(run_dir, arguments.policy)
    else:
        if arguments.policy is not None:
            raise InputError(f"unexpected argument {arguments.policy!r}", code="unexpected_argument")
        recipe = _recipe(arguments, rest)
        run_dir = Path("runs") / recipe.name
    check_gateway(recipe)
    if arguments.dry_run:
        print(json.dumps(recipe.model_dump(mode="json"), indent=2))
        return 0
    serving = partial(serve, recipe, arguments.out or run_dir, arguments.host, arguments.port, arguments.ray)
    return _until_a_signal(serving, "sessions and what they have spent are kept")


def _models(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from .models.fetch import fetch, fetched, known
    from .rundir.progress import say

    _reject_extra(rest)
    if arguments.name is not None and arguments.name not in known():
        raise InputError(f"no model of that name can be fetched; known are {', '.join(known())}", arguments.name)
    if arguments.action == "list" or arguments.dry_run:
        chosen = {n: s for n, s in known().items() if arguments.name in (None, n)}
        print(json.dumps({n: {**asdict(s), "directory": str(fetched(n) or "")} for n, s in chosen.items()}, indent=2))
    elif arguments.name is None:
        raise InputError(f"needs a name; known are {', '.join(known())}", None, None, "models fetch")
    else:
        say(f"fetched: {fetch(arguments.name)}")
    return 0


def _doctor(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from . import doctor

    if arguments.env is None:
        _reject_extra(rest)
        if arguments.dry_run:
            print(json.dumps(doctor.machine(), indent=2))
            return 0
        return 0 if doctor.examine_machine(arguments.json) else 1
    options = {key: value_of(value) for key, value in overrides(rest).items()}
    try:
        known = envs.arguments(arguments.env)
        for key in options:
            if key not in known:
                raise InputError(f"no such setting; known are {', '.join(known) or 'none'}", None, None, f"--{key}")
        if arguments.dry_run:
            print(json.dumps({"env": envs.full_id(arguments.env), "settings": options}, indent=2))
            return 0
        return 0 if doctor.check_environment(arguments.env, options) else 1
    except envs.UnknownEnvironmentError as error:
        raise InputError(str(error), None, None, "--env") from None
    except (envs.MissingExtraError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(str(error), None, None, "--env") from None


def _reject_extra(rest: Sequence[str]) -> None:
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}", code="unexpected_argument")


def recipe_of(argv: Sequence[str]) -> Recipe:
    """The recipe of a command line, with its overrides; whether what it names is here is not looked at.

    Raises:
        InputError: names the file, the line and the field.
    """
    return _recipe(*parser().parse_known_args(argv))


def _recipe(arguments: argparse.Namespace, rest: Sequence[str]) -> Recipe:
    """The recipe of a command with its overrides; says which of their keys have other names today."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RenamedKeyWarning)
        try:
            name = "demo" if arguments.command == "demo" else arguments.recipe
            return load(name, overrides(rest), arguments.quick)
        finally:
            for each in told:
                _warn(str(each.message))


def _warn(message: str) -> None:
    print(f"atlas-ray: warning: {message}", file=sys.stderr)


def _stages(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    name = "demo" if arguments.command == "demo" else arguments.recipe
    recipe = _recipe(arguments, rest)
    if arguments.command == "sweep" and recipe.sweep is None:
        raise InputError("the recipe has no [sweep] table", name, code="missing_table")
    if arguments.dry_run:
        _check_names(recipe, arguments, rest)
        print(json.dumps(recipe.model_dump(mode="json"), indent=2))
        if arguments.command == "sweep" and recipe.sweep:
            print(f"{len(plan(recipe.sweep, recipe.seed))} trials", file=sys.stderr)
        return 0
    if arguments.command == "sweep":
        return _sweep(recipe, arguments)
    if not arguments.verbose:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    from . import pipeline
    from .rundir.progress import duration, say

    run_dir = _run_dir(recipe, arguments)
    if arguments.command == "demo":
        say(f"the demo takes about 15 minutes on two cores and writes {run_dir}; stop it at any time, it will go on")
    stages = tuple(STAGE) if arguments.command in ("demo", "run") else (arguments.command,)
    if not set(stages) & set(done_stages(recipe, run_dir)):
        raise InputError(f"the recipe has no [{arguments.command}] table", name, code="missing_table")
    if arguments.command == "select" and (arguments.compare or arguments.estimate):
        _inspect_selection(recipe, run_dir, arguments)
        return 0
    seconds = pipeline.run(recipe, run_dir, stages, arguments.verbose)
    if seconds:
        say(f"done in {duration(sum(seconds.values()))}, run directory: {run_dir}")
    if (report := RunLayout(run_dir).report).exists():
        _answers(run_dir)
        say(f"report: {report}")
    return 0


def _answers(run_dir: Path) -> None:
    """Say what came out, in a sentence for each question."""
    from .report import answers
    from .rundir.progress import say

    for number, answer in enumerate(answers(run_dir), start=1):
        say(f"({number}) {answer}")


def _check_names(recipe: Recipe, arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """Refuse a recipe, or a trial of its sweep, that names what is not here.

    A recipe that ships may name models that another one makes; these are only spoken of.
    """
    name = getattr(arguments, "recipe", "demo")
    trials = plan(recipe.sweep, recipe.seed) if arguments.command == "sweep" and recipe.sweep else []
    by_name = [values for values in trials if any(isinstance(value, str) for value in values.values())]
    try:
        for made in (recipe, *(with_values(recipe, values) for values in by_name)):
            check_inputs(made, annotations=arguments.command != "collect")
    except InputError as error:
        field = error.field or ""
        given = any(f"{field}.".startswith(f"{key}.") for key in overrides(rest))
        if given or name not in shipped() or Path(name).is_file() or by_name:
            raise
        print(f"atlas-ray: {error} (it is not made by this recipe)", file=sys.stderr)


def _run_dir(recipe: Recipe, arguments: argparse.Namespace) -> Path:
    """The run directory, which need not be there.

    Raises:
        InputError: it can be none.
    """
    run_dir = Path(arguments.out or Path("runs") / recipe.name)
    if _is_there(run_dir) and not run_dir.is_dir():
        raise InputError("is a file: name a directory", run_dir, None, "--out")
    return run_dir


def _is_there(path: Path) -> bool:
    """Whether something is there.

    Raises:
        InputError: that cannot be told: the name is too long, or a directory on the way is closed.
    """
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        raise InputError(getattr(error, "strerror", None) or str(error), path) from None


def _sweep(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from .rundir.progress import say
    from .sweep import sweep

    run_dir = _run_dir(recipe, arguments)
    sweep(recipe, run_dir, arguments.verbose)
    _answers(run_dir)
    say(f"table: {RunLayout(run_dir).sweep_csv}")
    say(f"report: {RunLayout(run_dir).report}")
    return 0


def _inspect_selection(recipe: Recipe, run_dir: Path, arguments: argparse.Namespace) -> None:
    """Print what was asked about the selectors; nothing is written."""
    from .rundir.progress import say
    from .selection.agreement import agreement_text
    from .selection.oracle_stage import estimates
    from .selection.stage import compare, expert_trajectories

    if arguments.compare:
        say(agreement_text(compare(run_dir, *arguments.compare)))
    if arguments.estimate:
        for line in estimates(recipe, run_dir, expert_trajectories(run_dir)):
            say(line)


def _flush(asked: bool) -> None:
    """Write out what was printed.

    Raises:
        StorageError: it was what was ``asked`` for, and could not be written. Else it was only told on the way.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # or Python would try again at its end
        if asked:
            raise unwritten("stdout", error) from error


_GOES_ON = "the same command goes on from here"
_terminated = threading.Event()


def _terminate(number: int, frame: object) -> None:
    """SIGTERM ends the block in hand, like an interrupt."""
    _terminated.set()
    sys.exit(number)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0 done, 1 failed, 2 bad input, 143 ended by SIGTERM."""
    arguments, rest = parser().parse_known_args(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    # environments of one's own lie where the command is run; `python -m` looks there by itself
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if cgroup_cpu_quota():  # torch would take a thread for every CPU that it sees
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cpus()))
    try:
        others = {
            "report": _report,
            "export": _export,
            "serve": _serve,
            "gateway": _gateway,
            "models": _models,
            "doctor": _doctor,
            "env": lambda arguments, rest: env_command(_until_a_signal, arguments, overrides(rest)),
        }
        code = others.get(arguments.command, _stages)(arguments, rest)
        _flush(getattr(arguments, "dry_run", False) or arguments.command in ("doctor", "models"))
        return code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, SystemExit):
        # (a SystemExit's code says nothing: Ray makes one of its own of it, and Ray Train makes one of an interrupt)
        what = "terminated" if _terminated.is_set() else "interrupted"
        print(f"atlas-ray: {what}; {_GOES_ON}", file=sys.stderr)
        return 128 + signal.SIGTERM if _terminated.is_set() else 1
    except Exception as error:
        found = of_light_install(culprit(error))
        if is_full(found):
            found = unwritten(getattr(found, "filename", None) or ("a file" if where(error) else "stdout"), found)
            _flush(asked=False)
        code = found.exit_code if isinstance(found, AtlasError) else 1
        more = (f"; {_GOES_ON}" if passes(found) and where(error) else "") + (where(error) if code == 1 else "")
        print(f"atlas-ray: {redact(described(found))}{more}", file=sys.stderr)
        return code
