"""The card of a dataset that an export makes: who marked what share of which episodes, by which recipe, and hashes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...rundir.files import read_json
from ...rundir.layout import RunLayout
from ...rundir.logs import redact
from ..kept import outcomes_of
from ..pairs import read_pairs
from ..records import read_annotations, read_trajectories
from .preference import PAIR_FORMATS
from .sources import begun_with

MARK = "<!-- written by atlas-ray export -->"
"""Stands in every card of ours; a card without it is somebody's own."""
_LEFT_OUT = "(left out)"


def dataset_card(run_dir: str | Path, selector: str | None, fmt: str, flag: str | None, out: Path, title: str) -> str:
    """The text of ``README.md`` beside an exported file; arguments are those of :func:`export_run`."""
    layout = RunLayout(run_dir)
    made = read_json(layout.recipe) if layout.recipe.is_file() else {}
    recipe = json.dumps(_shareable(made), indent=2, ensure_ascii=False)
    name = selector or "every-step"
    read = [layout.expert]
    if fmt in PAIR_FORMATS:
        read.append(layout.pairs(name))
        about = [("pairs", _pairs(layout, name))]
    else:
        read += [layout.annotations(name)] if selector else []
        about = list(_steps(layout, selector))
    files = [(out.name, out), *((str(path.relative_to(layout.root)) + " of the run", path) for path in read)]
    rows = [
        ("format", f"{fmt}, flag `{flag or 'trainable'}`" if fmt == "messages" else fmt),
        ("selector", f"`{name}`"),
        *about,
        *_origin(layout),
        (
            "recipe",
            f"`{made.get('name', '?')}`, SHA-256 `{hashlib.sha256(recipe.encode()).hexdigest()}` of the text below",
        ),
        ("made by", f"atlas-ray {version('atlas-ray')}"),
    ]
    hashes = [f"| `{name}` | {path.stat().st_size:,} | `{_sha256(path)}` |" for name, path in files if path.is_file()]
    parts = (
        f"---\ntags: [atlas-ray, agent, trajectories]\nconfigs:\n- config_name: default\n  data_files: {out.name}\n---",
        f"{MARK}\n# {title}",
        "Episodes of agents, with the steps that are to be trained marked. A trainer that ignores the flag trains all.",
        "| | |\n|---|---|\n" + "\n".join(f"| {key} | {_cell(text)} |" for key, text in rows),
        "| file | bytes | SHA-256 |\n|---|---|---|\n" + "\n".join(hashes),
        f"## Recipe\n\nPaths, addresses and keys are left out.\n\n````json\n{recipe}\n````",
    )
    return redact("\n\n".join(parts) + "\n")


def _steps(layout: RunLayout, selector: str | None) -> Iterator[tuple[str, str]]:
    items = read_trajectories(layout.expert)
    steps = sum(len(item.steps) for item in items)
    if selector is None:
        yield "steps marked", f"all {steps:,}, in {len(items):,} trajectories"
    else:
        marks = read_annotations(layout.annotations(selector), items)
        marked, some = sum(len(a.critical) for a in marks), sum(bool(a.critical) for a in marks)
        share = f"{100 * marked / steps:.1f} %" if steps else "none"
        yield "steps marked", f"{marked:,} of {steps:,} ({share}), in {some:,} of {len(items):,} trajectories"
        yield "most that a trajectory may have", _listed(f"{a.fraction:g}" for a in marks)
        if asked := [f"{a.model}, prompt {(a.prompt_sha256 or '?')[:16]}" for a in marks if a.model]:
            yield "marked by", _listed(asked)
    yield "outcomes", outcomes_of(items).words()
    yield "environments", _listed(f"`{item.env}`" for item in items)
    yield "played by", _listed(item.source for item in items)


def _pairs(layout: RunLayout, name: str) -> str:
    pairs = read_pairs(layout.pairs(name))
    return f"{len(pairs):,}, of {len({pair.episode for pair in pairs}):,} episodes"


def _origin(layout: RunLayout) -> Iterator[tuple[str, str]]:
    if read := begun_with(layout.root):
        where = read["file"] if read["revision"] else Path(read["file"]).name
        yield "read from", f"`{where}`" + (f" at {read['revision']}" if read["revision"] else "")


def _listed(values: Iterator[str] | list[str]) -> str:
    """Different values, the most frequent first, at most five."""
    counted = Counter(values).most_common()
    return ", ".join(value for value, _ in counted[:5]) + (f" and {len(counted) - 5} more" if len(counted) > 5 else "")


def _shareable(value: Any, key: str = "") -> Any:
    """A recipe without what tells of this machine and its network: absolute paths, addresses, headers."""
    if value and key in ("base_url", "headers", "key_variable", "storage", "url"):
        return _LEFT_OUT
    if isinstance(value, dict):
        return {k: _shareable(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_shareable(v) for v in value]
    if isinstance(value, str) and "://" in value and not value.startswith("hf://"):
        return _LEFT_OUT
    if isinstance(value, str) and value.startswith(("/", "~")):
        return f"{_LEFT_OUT}/{Path(value).name}"
    return value


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
