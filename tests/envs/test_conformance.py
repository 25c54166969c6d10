"""The common dialect: every environment keeps it, what breaks it is found, and the docs' own example works."""

import json
import re
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from atlas_ray import envs
from atlas_ray.cli import main
from atlas_ray.envs import conformance
from atlas_ray.envs.textworld_express import GAMES

DOCS = Path(__file__).parents[2] / "docs" / "environments.md"
NAME = "my_games:MyGames/Doors-v0"


@pytest.mark.parametrize("level", ["GoToLocal", "PutNextLocalS5N3", "UnlockPickup"])
def test_babyai_text_keeps_the_dialect(level):
    assert [c for c in conformance.run(level) if not c.ok] == []


def test_agentgyms_babyai_keeps_the_dialect():
    assert [(c.name, c.ok) for c in conformance.run("AgentGymBabyAI/babyai") if not c.ok] == [("expert", None)]


SCIENCE = ["ScienceWorld/lifespan-longest-lived"]
EXPRESS = [f"TextWorldExpress/{game}" for game in GAMES]


@pytest.mark.java
@pytest.mark.parametrize(
    "name",
    [
        *SCIENCE,
        *EXPRESS[:2],
        *(pytest.param(name, marks=pytest.mark.slow) for name in (*EXPRESS[2:], "AgentGymSciWorld/sciworld")),
    ],
)
def test_the_java_environments_keep_the_dialect(name, request):
    """A limit of three steps cannot be seen where a wrong answer ends the game at once."""
    # the first of each simulator must also end the JVM that it starts
    request.getfixturevalue("no_jvm" if name in (SCIENCE[0], EXPRESS[0]) else "jvms")
    checks = list(conformance.run(name))
    assert [c for c in checks if c.ok is False] == []
    assert [c.name for c in checks if c.ok is None] in ([], ["step limit"])


@pytest.fixture
def my_games(tmp_path, monkeypatch):
    """The example of the docs as a module; the registry and the modules are as before afterwards."""
    code = re.search(r"```python\n(\"\"\"A corridor.*?)```", DOCS.read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) <= 50
    (tmp_path / "my_games.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_games", None)
    gym.registry.pop("MyGames/Doors-v0", None)


def test_the_example_of_the_docs_keeps_the_dialect(my_games, capsys):
    assert main(["doctor", "--env", NAME]) == 0
    out = capsys.readouterr().out
    assert out.count("  ok  ") == len(conformance.CHECKS)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_example_of_the_docs_is_collected_by_name(my_games, workers, request):
    if workers:
        request.getfixturevalue("ray_session")
    (my_games / "doors.toml").write_text(
        f'name = "doors"\nworkers = {workers}\n[collect]\nlevels = {{ "{NAME}" = 20 }}\n'
    )
    assert main(["collect", "doors.toml", "--out", "out"]) == 0
    rows = [json.loads(line) for line in (my_games / "out" / "trajectories" / "expert.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert all(r["success"] and r["env"] == NAME and "thought" not in r["steps"][0] for r in rows)
    assert [len(r["steps"]) for r in rows[:4]] == [1, 2, 3, 4]


def test_more_episodes_than_there_are_is_bad_input(my_games, capsys):
    (my_games / "doors.toml").write_text(f'name = "doors"\n[collect]\nlevels = {{ "{NAME}" = 301 }}\n')
    assert main(["collect", "doors.toml", "--out", "out"]) == 2
    assert "301 episodes are asked for, its split train has 300" in capsys.readouterr().err
    assert not (my_games / "out").exists()


def broken(**changes):
    """The Doors of the docs with one promise broken."""
    code = re.search(r"```python\n(\"\"\"A corridor.*?)gym.register", DOCS.read_text(), re.DOTALL)[1]
    space = {}
    exec(compile(code, "doors", "exec"), space)
    kind = type("Broken", (space["Doors"],), changes)
    gym.registry.pop("Broken/Doors-v0", None)
    gym.register("Broken/Doors-v0", entry_point=kind, kwargs={"task": "Doors-v0"})
    return {c.name: c for c in conformance.run("gymnasium:Broken/Doors-v0")}


calls = iter(range(10**6))


def raising(self, action):
    if action not in self.admissible():
        raise KeyError(action)
    return envs.Turn("x", 0.0)


def deaf(self, *, seed=None, options=None):
    return envs.TextEnv.reset(self, seed=0)


def shared(self):
    return self


@pytest.mark.parametrize(
    ("check", "changes", "words"),
    [
        ("same seed, same text", {"look": lambda self: f"door {next(calls)}"}, "seed 0"),
        ("same seed, same text", {"admissible": lambda self: ["walk on"]}, None),
        ("seeds", {"reset": deaf}, "is the seed dropped"),
        ("reset options", {"reset": deaf}, "neither honoured nor refused"),
        ("expert", {"expert": lambda self, cpu_seconds=2: envs.GoldPath(["open door"])}, "score 0.00"),
        ("expert", {"expert": lambda self, cpu_seconds=2: envs.GoldPath([])}, "gold path is at its end"),
        ("bad actions", {"do": raising}, "raises KeyError"),
        ("info", {"do": lambda self, a: envs.Turn("x", score=100.0)}, "not 0..1"),
        ("info", {"admissible": lambda self: "walk on"}, "no list of str"),
        ("step limit", {"limit": property(lambda self: 50, lambda self, value: None)}, "does not truncate"),
        ("clone", {"clone": shared}, "call reset() first"),
    ],
)
def test_a_broken_promise_is_found(check, changes, words):
    checks = broken(**changes)
    if words is None:
        assert checks[check].ok
    else:
        assert checks[check].ok is False
        assert words in checks[check].detail


def test_a_split_of_which_no_episode_is_here_is_said_and_no_broken_promise():
    checks = broken(splits=("train", "test"), variations=lambda self, task, split: range(0 if split == "test" else 300))
    assert checks["reset options"] == conformance.Check(
        "reset options", True, "splits train, test, without episodes test; what is unknown is refused"
    )


def test_a_process_left_behind_is_found():
    import subprocess

    def begin(self, variation):
        self.child = subprocess.Popen(["sleep", "30"])
        started.append(self.child)
        self.place, self.door = 0, 0
        return "goal", "text"

    started = []
    try:
        check = broken(begin=begin)["close"]
        assert check.ok is False
        assert str(started[-1].pid) in check.detail
    finally:
        for child in started:
            child.kill()
            child.wait()


def test_doctor_names_what_is_there_and_what_is_missing(capsys, monkeypatch):
    assert main(["doctor", "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["environments"]["BabyAIText"] == 96
    monkeypatch.setenv("PATH", "")
    main(["doctor"])
    out = capsys.readouterr().out
    assert "ScienceWorld: cannot run here; ScienceWorld needs" in out or "not here: ScienceWorld needs the extra" in out
    assert "ok       BabyAIText: 96" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env", "GoToLocl"], "did you mean GoToLocal"),
        (["--env", "Nowhere/x"], "no environment named 'Nowhere/x'"),
        (["--env", "no_such_module:A/b-v0"], "the module cannot be imported"),
        (["--env", "json:A/b-v0"], "registers no such id"),
        (["--env", "GoToLocal", "--size", "5"], "--size: no such setting"),
        (["--what"], "unexpected argument"),
    ],
)
def test_doctor_refuses_what_it_does_not_know(capsys, arguments, words):
    assert main(["doctor", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_an_environment_that_is_no_text_environment_is_refused():
    with pytest.raises(ValueError, match="its observation_space is Box"):
        envs.make("gymnasium:CartPole-v1")
