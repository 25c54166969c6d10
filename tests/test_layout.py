"""The layout: packages import downwards only, few modules stand at the root, and names that moved still work."""

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import atlas_ray
from atlas_ray.moved import MOVED

ROOT = Path(atlas_ray.__file__).parent
FLOORS = (
    ("moved",),
    ("errors", "envs", "atlas_ray"),
    ("rundir",),
    ("data",),
    ("recipe", "trajectory"),
    ("cluster", "storage", "cli_arguments"),
    ("doctor", "models"),
    ("engines",),
    ("agents",),
    ("finetune", "selection", "switching"),
    ("report", "stages"),
    ("preflight", "serving"),
    ("pipeline",),
    ("sweep",),
    ("cli",),
    ("__main__",),
)
"""From the ground up; docs/architecture.md has the same."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {
    ".".join(("atlas_ray", *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for p in ROOT.rglob("*.py")
}


def room(module):
    parts = module.split(".")
    return parts[0] if len(parts) == 1 or parts[0] == "envs" else parts[1]


def imported(path):
    """Modules of ours that a file imports, at its head or later."""
    module = ".".join(("atlas_ray", *path.relative_to(ROOT).with_suffix("").parts))
    package = module.removesuffix(".__init__") if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            for a in node.names:
                yield f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base


def arrows():
    for path in sorted(ROOT.rglob("*.py")):
        here = room(".".join(("atlas_ray", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"))
        for module in imported(path):
            there = room(module)
            if module.split(".")[0] in ("atlas_ray", "envs") and there != here:
                yield here, there, f"{path.relative_to(ROOT)} imports {module}"


def test_every_arrow_points_down():
    found = list(arrows())
    assert len(found) > 300
    assert {r for pair in found for r in pair[:2]} <= set(FLOOR), "a room without a floor"
    assert [what for here, there, what in found if FLOOR[there] >= FLOOR[here]] == []


def test_environments_import_nothing_of_the_package():
    envs = ROOT.parent / "envs"
    assert [p.name for p in envs.glob("*.py") if "atlas_ray" in {n.split(".")[0] for n in imports_of(p)}] == []


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def test_few_modules_stand_at_the_root_and_every_package_says_what_it_is():
    assert len(list(ROOT.glob("*.py"))) <= 10
    for package in ROOT.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))), package


def test_modules_stay_short():
    assert [str(p) for p in ROOT.rglob("*.py") if len(p.read_text(encoding="utf-8").splitlines()) > 400] == []


@pytest.mark.parametrize("old", sorted(MOVED))
def test_what_moved_has_a_place_and_left_nothing_behind(old):
    assert f"atlas_ray.{MOVED[old]}" in MODULES
    assert f"atlas_ray.{old}" not in MODULES


def test_old_names_are_the_same_modules_with_a_warning():
    code = """
import json, pickle, sys, warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    from atlas_ray.records import Trajectory
    from atlas_ray.exchange import import_agenttraj
    import atlas_ray.exchange.turns
    from atlas_ray.models import resolve
    from atlas_ray.storage import Storage
import atlas_ray.data.records, atlas_ray.data.exchange.turns, atlas_ray.models.loading
same = (
    atlas_ray.data.records.Trajectory is Trajectory
    and sys.modules["atlas_ray.exchange.turns"] is atlas_ray.data.exchange.turns
    and atlas_ray.models.loading.resolve is resolve
    and atlas_ray.data.records.__spec__.name == "atlas_ray.data.records"
)
old = pickle.dumps(Trajectory).replace(b"atlas_ray.data.records", b"atlas_ray.records")
print(json.dumps([same, sorted({str(w.message) for w in told if w.category is DeprecationWarning})]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    same, told = json.loads(done.stdout)
    assert same
    assert "atlas_ray.records is now atlas_ray.data.records" in told
    assert "atlas_ray.models.resolve is now atlas_ray.models.loading.resolve" in told


def test_a_class_that_was_pickled_under_an_old_name_is_found():
    from atlas_ray.data.records import Step

    data = pickle.dumps(Step, protocol=0).replace(b"atlas_ray.data.records", b"atlas_ray.records")
    assert pickle.loads(data) is Step
