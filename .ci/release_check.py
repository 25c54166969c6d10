"""What must hold before a release: files, metadata, licences, an SBOM, and that the wheel works where nothing else is.

python .ci/release_check.py [--python 3.11 ...]   # `make release-check`, which builds the docs site first

Leaves ``dist/`` with wheel, source distribution and SBOM, as they would be published. A Python that is not on this
machine is named and left out; of those that are asked for at least one has to be here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.11", "3.12", "3.13")
TOOLS = ("build==1.6.1", "twine>=6,<7", "cyclonedx-bom>=7,<8", "uv==0.13.9")
"""Of the release, in an environment of their own."""
SMALL_RUN = """
name = "small"
workers = 0
[collect]
levels = { GoToLocalS5N2 = 4 }
[select]
selectors = ["all", "random"]
[finetune]
arms = [{ selector = "random" }]
epochs = 1
workers = 0
[evaluate]
held_in = ["GoToLocalS5N2"]
episodes = 2
max_steps = 4
"""


class CheckFailedError(Exception):
    """What is wrong, in a line."""


def run(*command: object, **options: Any) -> str:
    """The output of a command.

    Raises:
        CheckFailedError: it fails; with the end of what it said.
    """
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)  # noqa: S603
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise CheckFailedError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{said}")
    return done.stdout


def tools(folder: Path) -> Path:
    """The ``bin`` of an environment with the tools."""
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "python", "-m", "pip", "install", "-q", *TOOLS)
    return folder / "bin"


def build(bin_dir: Path) -> tuple[Path, Path]:
    """Wheel and source distribution, alone in ``dist/``; the wheel is made from the source distribution."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(bin_dir / "python", "-m", "build", "--outdir", DIST, ROOT)
    (wheel,), (sdist,) = list(DIST.glob("*.whl")), list(DIST.glob("*.tar.gz"))
    return wheel, sdist


def check_files(wheel: Path, sdist: Path) -> str:
    """Look at metadata and licence files of both.

    Raises:
        CheckFailedError: something is missing.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(about).decode("utf-8"))
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    licence = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    problems = [
        what
        for what, wrong in {
            "no licence file in the wheel": not licence,
            "no licence file in the source distribution": "LICENSE" not in sources,
            "no License-Expression": metadata["License-Expression"] != PROJECT["license"],
            "no License-File": "LICENSE" not in metadata.get_all("License-File", []),
            "another version": metadata["Version"] != PROJECT["version"],
            "no card of the models": "atlas_ray/weights/README.md" not in names,
            "more than the package": any(not name.startswith(("atlas_ray/", "atlas_ray-")) for name in names),
        }.items()
        if wrong
    ]
    if problems:
        raise CheckFailedError("; ".join(problems))
    return f"{len(names)} files, {metadata['License-Expression']}, {wheel.stat().st_size / 2**20:.0f} MiB"


def sbom(bin_dir: Path) -> Path:
    """A CycloneDX file of what the lock names.

    Raises:
        CheckFailedError: a pinned package is not in it.
    """
    path = DIST / f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}.cdx.json"
    lock, about = ROOT / "requirements.lock", ("--pyproject", ROOT / "pyproject.toml", "--mc-type", "library")
    run(bin_dir / "cyclonedx-py", "requirements", *about, "--output-reproducible", "--of", "JSON", "-o", path, lock)
    made = json.loads(path.read_text(encoding="utf-8"))
    held = {(entry["name"].lower(), entry.get("version")) for entry in made["components"]}
    pinned = [line.partition(" ;")[0] for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]
    if missing := [pin for pin in pinned if (pin.split("==")[0].lower(), pin.split("==")[1].strip()) not in held]:
        raise CheckFailedError(f"not in the SBOM: {', '.join(missing)}")
    return path


def interpreter(bin_dir: Path, python: str) -> str | None:
    """Where a version of Python is on this machine, by its name or as uv finds it; None where it is not."""
    names = [
        shutil.which(f"python{python}"),
        *sorted(map(str, Path.home().glob(f".pyenv/versions/{python}.*/bin/python"))),
    ]
    ask = (bin_dir / "uv", "python", "find", "--no-python-downloads", python)
    uv = subprocess.run(ask, capture_output=True, text=True)  # noqa: S603
    for name in filter(None, [*names, uv.stdout.strip()]):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([name, "-c", code], capture_output=True, text=True)  # noqa: S603
        if done.stdout.strip() == python:
            return name
    return None


def try_wheel(bin_dir: Path, python: str, wheel: Path, folder: Path) -> str | None:
    """Install the wheel into a fresh environment and use it from elsewhere; None where that Python is not here."""
    uv, environment = bin_dir / "uv", folder / python
    if (found := interpreter(bin_dir, python)) is None:
        return None
    run(found, "-m", "venv", "--without-pip", environment)
    install = (uv, "pip", "install", "-q", "--python", environment, "-c", ROOT / "requirements.lock")
    torch = next(text for text in PROJECT["dependencies"] if text.startswith("torch=="))
    run(*install, torch)
    run(*install, wheel)
    run(uv, "pip", "check", "-q", "--python", environment)
    away = folder / f"away-{python}"
    away.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    options: dict[str, Any] = {"cwd": away, "env": {**clean, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}}
    command = environment / "bin" / "atlas-ray"
    said = run(command, "--version", **options).strip()
    if said != f"{PROJECT['name']} {PROJECT['version']}":
        raise CheckFailedError(f"--version says {said}")
    if json.loads(run(command, "demo", "--dry-run", **options))["name"] != "demo":
        raise CheckFailedError("demo --dry-run prints another recipe")
    (away / "small.toml").write_text(SMALL_RUN, encoding="utf-8")
    run(command, "run", "small.toml", **options)
    arms = json.loads((away / "runs" / "small" / "results.json").read_text(encoding="utf-8"))["atlas"]["arms"]
    if [arm["selector"] for arm in arms] != ["none", "random"] or not (away / "runs/small/report.html").is_file():
        raise CheckFailedError("the small run has other results")
    shutil.rmtree(environment)
    return f"{said}, a small run with {arms[1]['trained_tokens']} trained tokens"


def main(argv: Sequence[str] | None = None) -> int:
    """Check one thing after the other; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="*", default=None, help=f"versions to try (default: {' '.join(PYTHONS)})")
    wanted: list[str] | None = parser.parse_args(argv).python
    asked = PYTHONS if wanted is None else wanted
    try:
        with tempfile.TemporaryDirectory(prefix="release-") as name:
            folder = Path(name)
            bin_dir = tools(folder / "tools")
            wheel, sdist = build(bin_dir)
            print(f"built: {wheel.name}, {sdist.name}: {check_files(wheel, sdist)}", flush=True)
            run(bin_dir / "twine", "check", "--strict", wheel, sdist)
            print("metadata: twine has nothing to say")
            print(f"SBOM: {sbom(bin_dir).name}", flush=True)
            tried = 0
            for python in asked:
                found = try_wheel(bin_dir, python, wheel, folder)
                tried += found is not None
                print(f"Python {python}: {found or 'skipped, it is not on this machine'}", flush=True)
            if asked and not tried:
                raise CheckFailedError(f"none of the Pythons {', '.join(asked)} is on this machine")
    except CheckFailedError as error:
        print(f"release-check: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
