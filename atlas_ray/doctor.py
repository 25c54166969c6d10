"""What can run on this machine, and whether an environment keeps the common dialect."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import envs
from envs import conformance

_PACKAGES = ("torch", "ray", "transformers", "peft", "gymnasium", "minigrid", "scienceworld", "textworld-express")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _java() -> str:
    if shutil.which("java") is None:
        return "not found"
    told = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)  # noqa: S607
    return (told.stderr or told.stdout).splitlines()[0] if told.stderr or told.stdout else "does not answer"


def machine() -> dict[str, Any]:
    """Versions, and which environments can run here; for those that cannot, what to do."""
    runnable = envs.ids()
    families: dict[str, Any] = {}
    for name in runnable:
        family = name.partition("/")[0]
        families[family] = families.get(family, 0) + 1
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "java": _java(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "environments": families,
        "missing": envs.missing(),
    }


def print_machine() -> None:
    """:func:`machine`, to read."""
    found = machine()
    print(f"python {found['python']} · {found['cpus']} CPUs · java: {found['java']}")
    print(" · ".join(f"{name} {version}" for name, version in found["packages"].items()))
    for family, count in found["environments"].items():
        print(f"  ok       {family}: {count} environments")
    for family, why in found["missing"].items():
        print(f"  missing  {family}: {why}")


def check_environment(name: str, options: dict[str, Any]) -> bool:
    """Run every conformance check on an environment and print each outcome; True when none failed.

    Raises:
        envs.UnknownEnvironmentError: no such environment.
        envs.MissingExtraError: it cannot run here.
    """
    print(f"{envs.full_id(name)}")
    failed = 0
    for check in conformance.run(name, **options):
        mark = {True: "ok      ", False: "FAILED  ", None: "skipped "}[check.ok]
        print(f"  {mark} {check.name}: {check.detail}", flush=True)
        failed += check.ok is False
    print("  keeps the dialect" if not failed else f"  {failed} checks failed")
    return not failed
