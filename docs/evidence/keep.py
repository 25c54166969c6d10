r"""Keeps the outcome of a run here, with its command and commit, for the tables of the pages.

python docs/evidence/keep.py runs/evidence-atlas evidence-atlas \
    --command "atlas-ray sweep evidence-atlas" --machine "two cores, no GPU"

Refuses a run that is unfinished (of a sweep ``--partial`` keeps what is there and counts the rest), a changed tree, and
a commit that is younger than the run. Then ``python docs/evidence/tables.py`` writes the pages.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tables import ABOUT, COMPARISONS, HERE

from atlas_ray.errors import InputError
from atlas_ray.report.run import read_recipe, read_run
from atlas_ray.report.swept_arms import Group, compare_arms
from atlas_ray.rundir.files import read_json, write_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.stages.table import done_stages
from atlas_ray.sweep.table import refresh

_CODE = ("atlas_ray", "envs", "pyproject.toml")
"""What a run can come from."""
_PATH = re.compile(r"(?<![\w.:/~-])(?:~|(?:/[\w.@+-]+)+)/([\w.@+-]+)")


def commit_of(run_dir: Path, given: str | None, root: Path) -> str:
    """The commit that made a run: the one given, else what is checked out.

    Raises:
        InputError: the tree has changes, or the commit cannot have made the run.
    """
    if changed := _git(root, "status", "--porcelain", "--", *_CODE):
        raise InputError(f"the code has changes that no commit has ({changed.splitlines()[0].strip()}): commit them")
    try:
        found = _git(root, "rev-parse", "--verify", f"{given or 'HEAD'}^{{commit}}")
        _git(root, "merge-base", "--is-ancestor", found, "HEAD")
    except subprocess.CalledProcessError:
        raise InputError("is no commit that this one comes from", None, None, f"--commit {given}") from None
    made = float(_git(root, "show", "--no-patch", "--format=%ct", found))
    begun = RunLayout(run_dir).recipe.stat().st_mtime
    if made > begun:
        raise InputError(f"was begun before {found[:9]} was made: name the commit that made it by --commit", run_dir)
    return found


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def trials_of(run_dir: Path, partial: bool) -> dict[str, int] | None:
    """How many trials of a sweep are done, unfinished and failed; None of a run that is no sweep.

    Raises:
        InputError: the run is unfinished.
    """
    layout = RunLayout(run_dir)
    recipe = read_recipe(layout.recipe)
    assert recipe is not None
    refresh(run_dir)
    if layout.sweep_json.is_file():
        by_status = Counter(row["status"] for row in read_json(layout.sweep_json)["trials"])
        found = {"done": by_status["done"] + by_status["stopped"]}
        found |= {"unfinished": by_status["unfinished"], "failed": by_status["failed"]}
        if found["unfinished"] and not partial:
            raise InputError(f"{found['unfinished']} trials are unfinished; --partial keeps the others", run_dir)
        return found
    if left := [stage for stage, done in done_stages(recipe, run_dir).items() if not done]:
        raise InputError(f"is unfinished: {', '.join(left)} is not done", run_dir)
    return None


def outcome_of(run_dir: Path) -> dict[str, Any]:
    """What is kept of a run, by name of the file."""
    layout = RunLayout(run_dir)
    found = {p.name: read_json(p) for p in (layout.results, layout.sweep_json, layout.rounds) if p.is_file()}
    if not found:
        raise InputError("holds no scores", run_dir)
    if layout.results.is_file() and not layout.sweep_json.is_file() and (arms := read_run(run_dir).arms):
        compared = compare_arms([Group({}, (), 0, 0, arms, run_dir)])
        found[COMPARISONS] = [comparison.row() for comparison in compared]
    return {name: without_paths(value) for name, value in found.items()}


def without_paths(value: Any) -> Any:
    """The same with only the names of files in place of their paths on this machine."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return _PATH.sub(r"…/\1", value) if isinstance(value, str) else value


def _ended(run_dir: Path) -> datetime:
    """When it last did something; a report that is written again is nothing."""
    layout = RunLayout(run_dir)
    rows = read_json(layout.sweep_json)["trials"] if layout.sweep_json.is_file() else ()
    told = [layout.recipe, layout.metrics, *(layout.trial(row["trial"]).trial_result for row in rows)]
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in told if path.is_file()), UTC)


def keep(given: argparse.Namespace, root: Path) -> Path:
    """Write the files; returns their directory."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", given.name):
        raise InputError("small letters, digits and hyphens", None, None, "NAME")
    if not given.run.is_dir():
        raise InputError("no such run directory", given.run)
    if not RunLayout(given.run).recipe.is_file():
        raise InputError(f"is no run: it has no {RunLayout(given.run).recipe.name}", given.run)
    commit = commit_of(given.run, given.commit, root)
    trials = trials_of(given.run, given.partial)
    outcome = outcome_of(given.run)
    about: dict[str, Any] = {"command": without_paths(given.command), "commit": commit}
    about |= {"date": f"{_ended(given.run):%Y-%m-%d}", "machine": given.machine}
    out: Path = given.out / given.name
    shutil.rmtree(out, ignore_errors=True)
    for name, value in outcome.items():
        write_json(out / name, value)
    write_json(out / ABOUT, about | ({"trials": trials} if trials else {}))
    return out


def main(argv: Sequence[str] | None = None, root: Path = HERE.parent.parent) -> int:
    """Keep a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("name", help="directory here, and name in the pages")
    parser.add_argument("--command", required=True, help="what made it")
    parser.add_argument("--machine", required=True, help='in words: "two cores, no GPU"')
    parser.add_argument("--commit", help="that made it; by default what is checked out")
    parser.add_argument("--partial", action="store_true", help="keep a sweep of which trials are unfinished")
    parser.add_argument("--out", type=Path, default=HERE, help="directory of all that is kept")
    try:
        print(f"kept: {keep(parser.parse_args(argv), root)}")
    except InputError as error:
        print(f"keep: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
