"""What can run on this machine, and whether an environment keeps the common dialect."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections import Counter
from dataclasses import asdict
from typing import Any

from .. import envs
from ..cluster.container import usable_cpus
from ..envs import conformance
from .checks import examine
from .facts import gather, java_version

_PACKAGES = ("torch", "ray", "transformers", "peft", "gymnasium", "minigrid", "scienceworld", "textworld-express")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, Any]:
    """Versions, and which environments can run here; for those that cannot, what to do."""
    runnable = envs.ids()
    families: dict[str, Any] = {}
    for name in runnable:
        family = name.partition("/")[0]
        families[family] = families.get(family, 0) + 1
    return {
        "python": platform.python_version(),
        "cpus": usable_cpus(),
        "java": java_version() or "not found",
        "packages": {package: _version(package) for package in _PACKAGES},
        "environments": families,
        "missing": envs.missing(),
    }


def examine_machine(as_json: bool = False) -> bool:
    """Print a line a check, or all of them as a JSON list; True when none is an error."""
    lines = examine(gather())
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
        return all(line.state != "error" for line in lines)
    for line in lines:
        print(line)
    count = Counter(line.state for line in lines)
    told = [f"{n} {state}{'s' * (n > 1)}" for state in ("error", "warning") if (n := count[state])]
    print(", ".join(told) if told else "all is well")
    return not count["error"]


def check_environment(name: str, options: dict[str, Any]) -> bool:
    """Run every conformance check on an environment and print each outcome; True when none failed.

    Raises:
        envs.UnknownEnvironmentError: no such environment.
        envs.MissingExtraError: it cannot run here.
    """
    print(f"{envs.full_id(name)}")
    env = envs.make(name, **options)
    try:
        for what, why in env.lacks().items():
            print(f"  lacks {what}: {why}")
    finally:
        env.close()
    failed = 0
    for check in conformance.run(name, **options):
        mark = {True: "ok      ", False: "FAILED  ", None: "skipped "}[check.ok]
        print(f"  {mark} {check.name}: {check.detail}", flush=True)
        failed += check.ok is False
    print("  keeps the dialect" if not failed else f"  {failed} checks failed")
    return not failed
