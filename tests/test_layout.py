"""The layout: packages import downwards only, few modules stand at the root, and names that moved still work."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import atlas_ray
from atlas_ray import envs
from atlas_ray.moved import MOVED

ROOT = Path(atlas_ray.__file__).parent
FLOORS = (
    ("moved",),
    ("errors", "envs", "ray_private", "atlas_ray"),
    ("rundir",),
    ("data",),
    ("recipe", "trajectory"),
    ("cluster", "storage"),
    ("doctor", "models"),
    ("engines",),
    ("agents",),
    ("finetune", "selection", "switching"),
    ("report",),
    ("stages",),
    ("preflight", "serving"),
    ("gateway", "sharing"),
    ("cli_arguments", "pipeline"),
    ("sweep",),
    ("cli",),
    ("__main__",),
)
"""From the ground up; docs/architecture.md has the same."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py")) + sorted((ROOT / "envs").glob("*.py"))  # (rglob follows no link)


def module_of(path):
    return ".".join(("atlas_ray", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def room(module):
    parts = module.split(".")
    return parts[0] if len(parts) == 1 else parts[1]


MODULES = {module_of(path) for path in FILES}


def imported(path):
    """Modules of ours that a file imports, at its head or later."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            for a in node.names:
                yield f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base


def arrows():
    for path in FILES:
        here = room(module_of(path))
        for module in imported(path):
            there = room(module)
            if module.split(".")[0] == "atlas_ray" and there != here:
                yield here, there, f"{path.relative_to(ROOT)} imports {module}"


def test_every_arrow_points_down():
    found = list(arrows())
    assert len(found) > 300
    assert {r for pair in found for r in pair[:2]} <= set(FLOOR), "a room without a floor"
    assert [what for here, there, what in found if FLOOR[there] >= FLOOR[here]] == []


def test_few_modules_stand_at_the_root_and_every_package_says_what_it_is():
    assert len(list(ROOT.glob("*.py"))) <= 10
    for package in ROOT.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))), package


def test_modules_stay_short():
    tests = Path(__file__).parent.rglob("*.py")
    assert [str(p) for p in [*FILES, *tests] if len(p.read_text(encoding="utf-8").splitlines()) > 400] == []


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


ALIAS = """
import json, sys, warnings
{before}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    {old}
import atlas_ray.envs.core, atlas_ray.envs.conformance, gymnasium
import envs.core, envs.conformance
same = (
    sys.modules["envs"] is atlas_ray.envs
    and envs.core is atlas_ray.envs.core
    and envs.conformance is atlas_ray.envs.conformance
    and atlas_ray.envs.__spec__.name == atlas_ray.envs.__name__ == "atlas_ray.envs"
    and type(atlas_ray.envs.make("GoToLocal")).__module__ == "atlas_ray.envs.babyai_text"
)
print(json.dumps([same, sorted(set(str(w.message) for w in told if w.category is DeprecationWarning))]))
"""
EDITABLE = """
sys.meta_path[:] = [f for f in sys.meta_path if not f.__module__.startswith('__editable__')]
import atlas_ray
"""
CORE = ["envs is now atlas_ray.envs", "envs.core is now atlas_ray.envs.core"]


@pytest.mark.parametrize(
    ("old", "warned", "place"),
    [
        ("import atlas_ray.envs, envs.core", CORE, "copy"),
        ("import pickle; pickle.loads(b'cenvs.core\\nTextEnv\\n.')", CORE, "checkout"),
        ("import pickle; pickle.loads(b'cenvs.core\\nTextEnv\\n.')", CORE, "elsewhere"),
        ("import gymnasium; gymnasium.make('envs:BabyAIText/GoToLocal-v0')", CORE[:1], "checkout"),
    ],
)
def test_in_a_checkout_envs_is_the_same_package_with_a_warning(old, warned, place, tmp_path):
    before, path = "", ROOT.parent
    if place == "copy":  # Ray's, for a job, has no links
        for name in ("atlas_ray", "envs"):
            shutil.copytree(ROOT.parent / name, tmp_path / name, ignore=shutil.ignore_patterns("weights"))
        path = tmp_path
    elif (
        place == "elsewhere"
    ):  # as in an editable install away from the checkout: atlas_ray is found, the folder above it is not
        (tmp_path / "atlas_ray").symlink_to(ROOT)
        before, path = EDITABLE, tmp_path
    done = subprocess.run(
        [sys.executable, "-c", ALIAS.format(before=before, old=old)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(path)},
    )
    same, told = json.loads(done.stdout)
    assert same
    assert set(warned) <= set(told)


def test_old_ids_of_environments_still_work_with_a_warning():
    with pytest.warns(DeprecationWarning, match="atlas_ray.envs:GoToLocal"):
        assert envs.full_id("envs:GoToLocal") == envs.full_id("atlas_ray.envs:GoToLocal") == "BabyAIText/GoToLocal-v0"
    assert [envs.foreign_module(f"{name}/GoToLocal") for name in ("atlas_ray.envs:BabyAIText", "BabyAIText")] == [
        "",
        "",
    ]
    assert envs.foreign_module("envs:BabyAIText/GoToLocal") == ""
    assert envs.foreign_module("envs:Doors/Three-v0") == "envs"  # a package of the user's own


def test_who_holds_no_model_does_not_wait_for_transformers_to_be_imported():
    """Drivers, workers that ask engine actors and workers that play experts are most of a run's processes."""
    modules = (
        "stages.collect",
        "stages.evaluate",
        "selection.stage",
        "finetune.stage",
        "switching.stage",
        "serving.app",
        "gateway.routes",
        "gateway.opening",
    )
    code = "import sys\n" + "".join(f"import atlas_ray.{name}\n" for name in (*modules, "engines.server", "preflight"))
    code += "print(sorted({'transformers', 'ray', 'scipy', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
