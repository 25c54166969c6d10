"""Sweeps that are killed, and whose machine is lost, end like those that were not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from sweep_recipes import recipe_of, switch_recipe

from atlas_ray.rundir.files import read_json
from atlas_ray.sweep.trials import trials_of


def command(path, out):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "atlas_ray", "sweep", str(path), "--out", str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def begun(path, out):
    """A sweep of which a trial is done."""
    driver = command(path, out)
    deadline = time.monotonic() + 300
    while not list(out.glob("trials/*/trial.json")):
        if driver.poll() is not None or time.monotonic() > deadline:
            driver.kill()
            pytest.fail(driver.communicate()[0])
        time.sleep(0.1)
    return driver


def killed_and_run_again(recipe, tmp_path, mark):
    """Kill the driver once a trial is done, then run the same command; what was done, and what it says."""
    path, out = tmp_path / "r.json.toml", tmp_path / "run"
    path.write_text(as_toml(recipe))
    driver = begun(path, out)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    time.sleep(3)  # what the driver started ends with it
    done = {p.parent for p in out.glob("trials/*/trial.json")}
    before = {p: p.stat().st_mtime_ns for d in done for p in d.rglob(mark)}
    assert before and len(done) < len(trials_of(recipe, out))
    again = command(path, out)
    said, _ = again.communicate(timeout=500)
    assert again.returncode == 0, said
    assert {p: p.stat().st_mtime_ns for d in done for p in d.rglob(mark)} == before, "what was done is not done again"
    assert f"{len(done)} of them already done" in said
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["atlas", "switch"])
def test_a_sweep_that_is_ended_and_whose_machine_is_lost_goes_on_from_its_storage(models, tmp_path, kind):
    if kind == "atlas":
        recipe = recipe_of(str(models / "quick"), {"finetune.learning_rate": {"grid": [1e-3, 3e-3, 1e-2, 3e-2]}})
    else:
        space = {"switch.costs": {"grid": [0.01, 0.02, 0.03, 0.04]}}
        recipe = switch_recipe(models, space, {"concurrent": 1}, steps=400)
    path, one, two = tmp_path / "r.toml", tmp_path / "one" / "run", tmp_path / "two" / "run"
    (tmp_path / "shared").mkdir()
    path.write_text(as_toml(recipe.model_copy(update={"storage": str(tmp_path / "shared")})))
    driver = begun(path, one)
    driver.terminate()
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 143, said
    # (a trial may end while its driver does)
    done = len(list((tmp_path / "shared").glob("run/trials/*/trial.json")))
    assert 1 <= done < 4
    shutil.rmtree(one)
    again = command(path, two)
    said, _ = again.communicate(timeout=500)
    assert again.returncode == 0, said
    assert f"{done} of them already done" in said
    assert [row["status"] for row in timeless(two)] == ["done"] * 4
    if kind == "atlas":
        whole = command(path, tmp_path / "whole")
        said, _ = whole.communicate(timeout=500)
        assert whole.returncode == 0, said
        assert timeless(two) == timeless(tmp_path / "whole")
    for t in trials_of(recipe, two):
        steps = [row["step"] for row in read_json(t.directory / "history.json")] if kind == "switch" else []
        assert steps == sorted(set(steps))


def as_toml(recipe):
    """Inline tables alone, which is enough."""

    def value(given):
        if isinstance(given, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in given.items()) + "}"
        return "[" + ", ".join(map(value, given)) + "]" if isinstance(given, list) else json.dumps(given)

    data = recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return "".join(f"{key} = {value(given)}\n" for key, given in data.items())


def timeless(out):
    rows = read_json(out / "sweep.json")["trials"]
    return [{k: v for k, v in row.items() if k not in ("seconds", "train_seconds")} for row in rows]


@pytest.mark.slow
def test_a_killed_sweep_of_atlas_ends_like_one_that_was_not(models, tmp_path):
    space = {"finetune.learning_rate": {"grid": [1e-3, 3e-3, 1e-2, 3e-2]}, "select.fraction": {"grid": [0.2, 0.5]}}
    recipe = recipe_of(str(models / "quick"), space)
    out = killed_and_run_again(recipe, tmp_path, "run.json")
    whole = command(tmp_path / "r.json.toml", tmp_path / "whole")
    said, _ = whole.communicate(timeout=500)
    assert whole.returncode == 0, said
    assert timeless(out) == timeless(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_sweep_of_the_switch_goes_on(models, tmp_path):
    recipe = switch_recipe(models, {"switch.costs": {"grid": [0.01, 0.02, 0.03, 0.04]}}, {"concurrent": 1}, steps=400)
    out = killed_and_run_again(recipe, tmp_path, "model.safetensors")
    assert [row["status"] for row in timeless(out)] == ["done"] * 4
    for t in trials_of(recipe, out):
        steps = [row["step"] for row in read_json(t.directory / "history.json")]
        assert steps[-2] < 400 <= steps[-1]
        # the last is as long as what was left
        gaps = [after - before for before, after in pairwise([0, *steps[:-1]])]
        assert all(40 <= gap < 80 for gap in gaps), "no step is trained twice, and none left out"
