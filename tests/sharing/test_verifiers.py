"""Packages for verifiers, and its packages played here, with the real ``verifiers`` 0.4.0. Nothing is faked."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from atlas_ray import envs
from atlas_ray.cli import main

ROOT = Path(__file__).parents[2]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def export(*words):
    return main(["env", "export", "verifiers", *words])


def test_a_package_is_written(tmp_path, capsys):
    out = tmp_path / "boil"
    assert export("ScienceWorld/boil", "--out", str(out), "--simplifications", "easy", "--max_steps", "30") == 0
    assert "package atlas-scienceworld-boil" in capsys.readouterr().out
    assert files(out) == ["README.md", "atlas_scienceworld_boil/__init__.py", "check.py", "pyproject.toml"]
    project = tomllib.loads((out / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == ["verifiers>=0.4,<0.5", "atlas-ray[science]>=0.1.0"]
    assert project["tool"]["setuptools"]["packages"] == ["atlas_scienceworld_boil"]
    code = (out / "atlas_scienceworld_boil" / "__init__.py").read_text()
    compile(code, "init", "exec")
    assert "env: ClassVar = 'ScienceWorld/boil-v0'" in code
    assert "settings: ClassVar = {'simplifications': 'easy', 'max_steps': 30}" in code
    assert "split: ClassVar = 'train'" in code
    assert '__all__ = ["ChatHarness", "PlayEnv", "ScienceworldBoilTaskset"]' in code
    assert "vf-eval atlas_scienceworld_boil" in (out / "README.md").read_text()


def test_nothing_is_written_over_and_nothing_half(tmp_path, capsys):
    out = tmp_path / "package"
    for words, says in (
        (["GoToNowhere"], "no BabyAI level named"),
        (["ScienceWorld/boil", "--split", "no such"], "has no split 'no such'"),
        (["ScienceWorld/boil", "--colour", "red"], "--colour: no such setting"),
        (["openenv:http://127.0.0.1:1"], "is of openenv already"),
    ):
        assert export(*words, "--out", str(out)) == 2
        assert says in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("x")
    assert export("GoToLocal", "--out", str(out)) == 2
    assert "is not empty" in capsys.readouterr().err
    assert files(out) == ["mine"]


def test_an_environment_of_ones_own_says_whose_module_it_needs(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import gymnasium as gym\nfrom atlas_ray import envs\n\n\nclass Mine(envs.TextEnv):\n    pass\n\n\n"
        'gym.register("Mine/One-v0", entry_point="mine:Mine", kwargs={"task": "One"})\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert export("mine:Mine/One-v0", "--out", str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "atlas_mine_one").is_dir()
    assert "The module `mine` is yours" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["verifiers:", "verifiers:a b", "verifiers:../x", "verifiers:a/b/c"])
def test_a_name_that_is_no_id(name):
    with pytest.raises(envs.UnknownEnvironmentError, match="no id of a package"):
        envs.full_id(name)


def test_the_missing_package_is_told_by_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "verifiers", None)
    monkeypatch.delitem(sys.modules, "atlas_ray.envs.verifiers_player", raising=False)
    with pytest.raises(envs.MissingExtraError, match=r"pip install 'atlas-ray\[verifiers\]'"):
        envs.make("verifiers:wordle")
    assert envs.full_id("verifiers:primeintellect/wordle") == "verifiers:primeintellect/wordle"
    assert list(envs.arguments("verifiers:wordle")) == ["goal", "success_at", "taskset", "timeout"]


@pytest.mark.parametrize(("setting", "value"), [("taskset", "[]"), ("taskset", "{"), ("timeout", 0.0)])
def test_settings_that_are_none(setting, value):
    with pytest.raises(ValueError, match=setting):
        envs.make("verifiers:wordle", **{setting: value})


PACKAGE = '''
"""What a user's package may be: one turn, several, one with tools, one that breaks."""
import verifiers.v1 as vf


class Data(vf.TaskData):
    answer: str


class Task(vf.Task[Data]):
    @vf.reward(weight=2.0)
    async def right(self, trace: vf.Trace) -> float:
        if self.data.answer == "boom":
            raise RuntimeError("boom")
        return float(trace.last_reply == self.data.answer)


class Config(vf.TasksetConfig):
    count: int = 3


class Words(vf.Taskset[Task, Config]):
    def load(self):
        words = ["yes", "no", "boom"]
        for word in words[: self.config.count]:
            yield Task(Data(prompt=f"say {word}", system_prompt="You say a word.", answer=word), self.config.task)


__all__ = ["Words"]
'''

TOOLS = '''
import verifiers.v1 as vf


class Tools(vf.Toolset[vf.ToolsetConfig]):
    @vf.tool
    def look(self) -> str:
        """Look."""
        return "x"


class Task(vf.Task[vf.TaskData]):
    @classmethod
    def toolsets(cls, config):
        return [Tools(vf.ToolsetConfig())]


class Words(vf.Taskset[Task, vf.TasksetConfig]):
    def load(self):
        yield Task(vf.TaskData(prompt="look"), self.config.task)


__all__ = ["Words"]
'''

PLAY = """
import json
from atlas_ray import envs
from atlas_ray.envs import conformance

out = {}
env = envs.make("verifiers:words_package")
out["lacks"] = sorted(env.lacks())
out["tasks"] = len(env.variations("", None))
seen, info = env.reset(options={"variation": 0})
out["first"] = [seen, info["goal"], info["success"]]
out["won"] = [*env.step("yes")[:4], env.score]
env.reset(options={"variation": 1})
text, reward, over, cut, info = env.step("yes")
out["lost"] = [reward, over, info["success"], info["score"]]
env.reset(options={"variation": 2})
try:
    env.step("boom")
except envs.EnvironmentDiedError as error:
    out["died"] = str(error)
seen, info = env.reset(options={"variation": 0})
seen, info = env.reset(options={"variation": 1})  # the first is left alone
out["again"] = seen
env.close()
env = envs.make("verifiers:words_package", success_at=2.0, taskset='{"count": 1}')
out["one"] = len(env.variations("", None))
env.reset(seed=5)
_, _, _, _, info = env.step("yes")
out["success_at"] = [info["success"], info["score"]]
env.close()
for name in ("tools_package", "no_such_package"):
    try:
        envs.make(f"verifiers:{name}").reset(seed=0)
    except ValueError as error:
        out[name] = str(error)
found = {c.name: [c.ok, c.detail] for c in conformance.run("verifiers:words_package", taskset='{"count": 2}')}
out["failed"] = {name: why for name, (ok, why) in found.items() if ok is False}
out["skipped"] = sorted(name for name, (ok, _) in found.items() if ok is None)
print(json.dumps(out))
"""


@pytest.fixture
def python():
    """A Python that has verifiers, gymnasium and minigrid: this one, or the one that VERIFIERS_PYTHON names."""
    found = os.environ.get("VERIFIERS_PYTHON")
    if found is None:
        pytest.importorskip("verifiers", reason="extra 'verifiers'")
    return found or sys.executable


def run(python, *words, at, **more):
    where = os.pathsep.join((str(ROOT), str(at)))
    environment = {**os.environ, "PYTHONPATH": where, "HOME": str(at), **more}
    done = subprocess.run([python, *words], capture_output=True, text=True, timeout=600, env=environment, cwd=at)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow  # a process that imports verifiers
def test_packages_of_verifiers_are_played(python, tmp_path):
    (tmp_path / "words_package.py").write_text(PACKAGE)
    (tmp_path / "tools_package.py").write_text(TOOLS)
    out = json.loads(run(python, "-c", PLAY, at=tmp_path).splitlines()[-1])
    assert out["lacks"] == ["replay", "seeds", "success"]
    assert (out["tasks"], out["one"]) == (3, 1)
    assert out["first"] == ["say yes", "You say a word.", False]
    assert out["won"] == ["The episode is over.", 2.0, True, False, 1.0]
    assert out["lost"] == [0.0, True, False, 0.0]
    assert "boom" in out["died"]
    assert out["again"] == "say no"
    assert out["success_at"] == [True, 1.0]
    assert "tools, which cannot be played" in out["tools_package"]
    assert "no_such_package" in out["no_such_package"]
    assert out["failed"] == {}
    assert set(out["skipped"]) >= {"gymnasium", "same seed, same text", "expert", "clone"}


@pytest.mark.slow  # a process that imports verifiers
def test_verifiers_plays_an_exported_package_as_the_environment_is_alone(python, tmp_path):
    assert export("GoToLocal", "--out", str(tmp_path / "out")) == 0
    said = run(python, str(tmp_path / "out" / "check.py"), at=tmp_path / "out")
    assert said == "BabyAIText/GoToLocal-v0#0: as alone\n"


@pytest.mark.java
@pytest.mark.slow  # a JVM, and a process that imports verifiers
def test_verifiers_plays_an_exported_science_world(python, tmp_path):
    assert export("ScienceWorld/boil", "--out", str(tmp_path / "out"), "--simplifications", "easy") == 0
    said = run(python, str(tmp_path / "out" / "check.py"), at=tmp_path / "out")
    assert said.startswith("ScienceWorld/boil-v0#") and said.endswith(": as alone\n")
