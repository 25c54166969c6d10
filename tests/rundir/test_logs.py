"""The logs of a run: what is kept where, what a user sees of it, and what nobody may see."""

import logging
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_ray import ray_private
from atlas_ray.cli import main
from atlas_ray.rundir import logs
from atlas_ray.rundir.progress import say
from atlas_ray.stages.table import STAGE

SECRET = "sk-0123456789abcdef"

# an environment that is as noisy as a framework, and one that breaks
NOISY = """\
import logging, os, sys, warnings
import gymnasium as gym
from dying_env import Doors

class Noisy(Doors):
    def begin(self, variation):
        print("printed", os.environ["NOISY_API_KEY"])
        os.write(2, b"written by C\\n")
        logging.getLogger("framework").warning("a warning with %s", os.environ["NOISY_API_KEY"])
        warnings.warn("deprecated")
        return super().begin(variation)

gym.register("Noisy/Doors-v0", entry_point=Noisy, kwargs={"task": "Doors-v0"})
"""
BROKEN = """\
import gymnasium as gym
from dying_env import Doors

class Broken(Doors):
    def do(self, action):
        raise RuntimeError("the door is stuck, SECRET")

gym.register("Broken/Doors-v0", entry_point=Broken, kwargs={"task": "Doors-v0"})
"""
RECIPE = """
name = "noisy"
workers = 1
num_envs = 4
unknown_share = 1.0
[collect]
levels = {{ "noisy_env:{env}/Doors-v0" = 4 }}
[select]
selectors = ["all", "random"]
[finetune]
base = "tiny-quick"
arms = [{{ selector = "all" }}, {{ selector = "random" }}]
epochs = 1
workers = 0
[evaluate]
held_in = ["GoToLocalS5N2"]
episodes = 4
max_steps = 8
"""
OURS = (
    r"\[\d/\d\] (collect|select|finetune|evaluate|switch|report): [\w -]+",
    r"  (collect|select|finetune|evaluate|switch|report) took .*",
    r"  (expert|evaluation|test) episodes: \d+/\d+.*",
    r"  (all|random|value): [\d.]+% of the steps",
    r"  \d+ of \d+ models to train, \d+ optimiser steps each",
    r"  optimiser steps: \d+/\d+.*",
    r"  trained in .* tokens/s per model.*",
    r"  \d+ episodes, [\d,]+ steps .*",
    r"  training \d+ switches of \d+ steps, \d+ at a time",
    r"  londi.*: step \d+, objective .*",
    r"  \d+% of [\d,]+ answers came from the cache",
    r"  [\d.]+% of [\d,]+ tokens are unknown to the tokenizer of tiny-quick: .*",
    r"  value: \d+ environment steps; roll-outs .*",
    r"done in .*, run directory: .*",
    r"\(\d\) .*",
    r"report: .*report.html",
)


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("NOISY_API_KEY", SECRET)


def start(folder, *arguments):
    """The command as a user gives it: its own Ray, with token authentication."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    environment |= {"HOME": str(folder), "NOISY_API_KEY": SECRET}
    environment.pop("RAY_AUTH_MODE")
    return subprocess.run(
        [sys.executable, "-m", "atlas_ray", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def not_ours(text):
    return [line for line in text.splitlines() if not any(re.fullmatch(pattern, line) for pattern in OURS)]


def test_secrets_are_named_not_shown(monkeypatch):
    monkeypatch.setenv("SOME_PASSWORD", "hunter2hunter2")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert logs.redact("is hunter2hunter2 false?") == "is (SOME_PASSWORD) false?"


def test_the_driver_keeps_all_and_shows_errors(tmp_path, capsys, secret):
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    level = root.level
    with logs.run_logging(tmp_path):
        assert logs.folder() == str(tmp_path / "logs")
        say(f"told the user {SECRET}")
        logging.getLogger("framework").info("chat")
        logging.getLogger("atlas_ray.engines").debug("detail")
        logging.getLogger("framework").error("broken\nfor good")
        warnings.warn("deprecated", stacklevel=1)
    assert (root.handlers, root.level, logs.folder()) == (before, level, None)
    captured = capsys.readouterr()
    assert captured.out == f"told the user {SECRET}\n"
    assert captured.err == "atlas-ray: framework: broken for good\n"
    text = (tmp_path / "logs" / "driver.log").read_text()
    for part in (
        "told the user (NOISY_API_KEY)",
        "INFO framework: chat",
        "DEBUG atlas_ray.engines: detail",
        "deprecated",
    ):
        assert part in text
    assert SECRET not in text


def test_a_run_within_a_run_has_logs_of_its_own_and_says_nothing_twice(tmp_path, capsys):
    with logs.run_logging(tmp_path / "sweep"):
        with logs.run_logging(tmp_path / "trial"):
            logging.getLogger("framework").error("broken")
            assert logs.folder() == str(tmp_path / "trial" / "logs")
        logging.getLogger("framework").error("again")
        assert logs.folder() == str(tmp_path / "sweep" / "logs")
    assert capsys.readouterr().err == "atlas-ray: framework: broken\natlas-ray: framework: again\n"
    assert "again" not in (tmp_path / "trial" / "logs" / "driver.log").read_text()
    assert "broken" in (tmp_path / "sweep" / "logs" / "driver.log").read_text()


def test_verbose_shows_what_others_write_too(tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-0.log").write_text("of an earlier run\n")
    with logs.run_logging(tmp_path, verbose=True):
        say("on stdout alone")
        logging.getLogger("framework").info("chat")
        with (tmp_path / "logs" / "worker-0.log").open("a") as file:
            file.write("new\nhalf")
    captured = capsys.readouterr()
    assert captured.out == "on stdout alone\n"
    assert re.search(r"^driver \| .* INFO framework: chat$", captured.err, re.MULTILINE)
    assert captured.err.splitlines()[-1] == "worker-0 | new"
    assert "on stdout alone" not in captured.err
    assert "earlier" not in captured.err


def test_a_framework_that_has_a_handler_of_its_own_is_heard_once(tmp_path, capsys):
    logger = logging.getLogger("loud")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.propagate = False
    with logs.run_logging(tmp_path):
        logs.capture_loggers("loud")
        logger.warning("hear me")
    assert capsys.readouterr().err == ""
    assert (tmp_path / "logs" / "driver.log").read_text().count("hear me") == 1
    logger.warning("afterwards")
    assert "afterwards" in capsys.readouterr().err
    logs.capture_loggers("loud")
    logger.warning("held back")
    logger.error("not held back")
    assert capsys.readouterr().err == "not held back\n"


def test_what_ray_brings_has_a_file_but_the_autoscalers_status_has_none(tmp_path):
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as brought

    about = {"pid": 7, "ip": "10.0.0.2", "actor_name": "TrainController"}
    ray_private.take_output(logs.on_ray_output)
    with logs.run_logging(tmp_path):
        brought.emit({**about, "lines": ["started"]})
        brought.emit(
            {"pid": "autoscaler", "ip": "10.0.0.1", "lines": ["Node status", ":event_summary:Resized to 4 CPUs."]}
        )
    brought.remove_handler("atlas-ray")
    text = (tmp_path / "logs" / "ray.log").read_text()
    assert "TrainController pid=7 ip=10.0.0.2: started\n" in text
    assert "pid=autoscaler ip=10.0.0.1: Resized to 4 CPUs.\n" in text
    assert "Node status" not in text


def test_a_failure_is_one_line_and_a_traceback_in_the_log(tmp_path, capsys, monkeypatch):
    def broken(recipe, run_dir):
        raise RuntimeError("no luck\ntoday")

    monkeypatch.setitem(STAGE, "collect", replace(STAGE["collect"], run=broken))
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "r"\n[collect]\nlevels = { GoToLocalS5N2 = 1 }\n')
    assert main(["collect", str(recipe), "--out", str(tmp_path / "run")]) == 1
    log = tmp_path / "run" / "logs" / "driver.log"
    assert capsys.readouterr().err == f"atlas-ray: RuntimeError: no luck today (traceback: {log})\n"
    assert 'in broken\n    raise RuntimeError("no luck\\ntoday")' in log.read_text()


def actor(code, folder, name="worker-0"):
    """Runs ``code`` in a process that is attached."""
    start = "import faulthandler, logging, os\nfrom atlas_ray.rundir import logs\n"
    start += f"logs.attach_process({str(folder)!r}, {name!r})\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True)


def test_all_that_an_actors_process_writes_is_in_its_file(tmp_path, secret):
    code = (
        "print('printed', os.environ['NOISY_API_KEY'])\n"
        "print(':task_name:run')\n"
        "os.system('echo of a child')\n"
        "logging.getLogger('framework').info('a record, %s', os.environ['NOISY_API_KEY'])\n"
        "logging.getLogger('urllib3').debug('chatter')\n"
        "faulthandler.enable()\n"
        "def here(): faulthandler._sigsegv()\n"
        "here()\n"
    )
    done = actor(code, tmp_path, "engine-a b/c-0")
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode < 0
    text = (tmp_path / "engine-a-b-c-0.log").read_text()
    for part in (
        "printed (NOISY_API_KEY)\n",
        "of a child\n",
        "INFO framework: a record, (NOISY_API_KEY)\n",
        " in here\n",
    ):
        assert part in text
    assert SECRET not in text
    assert "chatter" not in text
    assert ":task_name:" not in text


def test_one_that_takes_an_actors_place_writes_on_and_files_stay_small(tmp_path):
    actor("print('the first')", tmp_path)
    actor("print('the second')", tmp_path)
    assert re.findall("the (first|second)", (tmp_path / "worker-0.log").read_text()) == ["first", "second"]
    code = "logs.BYTES = 1000\nfor n in range(100): print(f'line {n:03}', 'x' * 40)\nos.write(2, b'of C\\n')\n"
    actor(code, tmp_path, "worker-1")
    old, new = (tmp_path / "worker-1.log.1").read_text(), (tmp_path / "worker-1.log").read_text()
    assert len(old) < 1100 and len(new) < 1100
    assert new.endswith("of C\n")
    numbers = [int(n) for n in re.findall(r"line (\d+)", old + new)]
    assert numbers == list(range(numbers[0], 100))


def test_an_actor_on_a_node_without_the_run_directory_leaves_its_output_to_ray(tmp_path, secret):
    code = "print('printed')\nlogging.getLogger('framework').info('%s', os.environ['NOISY_API_KEY'])"
    done = actor(code, tmp_path / "elsewhere")
    assert done.stdout == "printed\n"
    assert "INFO framework: (NOISY_API_KEY)" in done.stderr
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_run_says_nothing_that_is_not_ours(tmp_path):
    (tmp_path / "noisy_env.py").write_text(NOISY)
    (tmp_path / "Noisy.toml").write_text(RECIPE.format(env="Noisy"))
    done = start(tmp_path, "run", "Noisy.toml", "--out", "run")
    assert (done.returncode, done.stderr, not_ours(done.stdout)) == (0, "", [])
    worker = (tmp_path / "run" / "logs" / "worker-0.log").read_text()
    for part in ("printed (NOISY_API_KEY)", "written by C", "a warning with (NOISY_API_KEY)"):
        assert worker.count(part) >= 4
    assert "deprecated" in worker and SECRET not in worker


def test_a_crash_in_an_actor_leaves_its_traceback_in_both_logs(ray_session, tmp_path, monkeypatch, secret, capfd):
    """The actor is of a Ray that was started without the secret, so only the driver can tell it from other text."""
    (tmp_path / "broken_env.py").write_text(BROKEN.replace("SECRET", SECRET))
    (tmp_path / "Broken.toml").write_text(RECIPE.format(env="Broken").replace("noisy_env", "broken_env"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["collect", "Broken.toml", "--out", "broken"]) == 1
    out, err = capfd.readouterr()
    assert err == "atlas-ray: RuntimeError: the door is stuck, (NOISY_API_KEY) (traceback: broken/logs/driver.log)\n"
    assert not_ours(out) == []
    for name in ("driver", "worker-0"):
        text = (tmp_path / "broken" / "logs" / f"{name}.log").read_text()
        assert "Traceback (most recent call last)" in text
        assert "in do" in text
        assert "RuntimeError: the door is stuck, " in text
    assert SECRET not in (tmp_path / "broken" / "logs" / "driver.log").read_text()


@pytest.mark.slow
def test_training_on_ray_says_nothing_that_is_not_ours(tmp_path):
    (tmp_path / "small.toml").write_text(
        RECIPE.replace(
            "[select]",
            '[switch]\nlevels = ["GoToLocalS5N2"]\nmax_steps = 8\ncosts = [0.05]\nsteps = 200\n'
            "evaluate_every = 100\nevaluate_episodes = 4\ntest_episodes = 4\nenv_runners = 1\n[select]",
        )
        .replace("workers = 0", "workers = 2")
        .replace("workers = 1\n", "workers = 1\nengine = {{ actors = 1 }}\n", 1)
        .format(env="Noisy")
    )
    (tmp_path / "noisy_env.py").write_text(NOISY)
    done = start(tmp_path, "run", "small.toml", "--out", "run")
    assert (done.returncode, done.stderr, not_ours(done.stdout)) == (0, "", [])
    names = {path.stem for path in (tmp_path / "run" / "logs").glob("*.log")}
    assert {"driver", "ray", "worker-0", "engine-tiny-quick-0", "trainer-0", "trainer-1"} <= names
    assert {name for name in names if name.startswith("runner-switch-cost0.05")}
