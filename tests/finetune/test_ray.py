"""Ray Train: process groups equal one process, also when a worker or the driver is killed on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atlas_ray import pipeline
from atlas_ray.errors import AtlasError, InputError
from atlas_ray.finetune import finetune
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.recipe.finetune import Lora
from atlas_ray.recipe.loading import Arm, Pairs, Recipe
from atlas_ray.rundir.files import jsonl_rows, read_json, write_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.trajectory import Pair, Turn, read_trajectories, write_pairs


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A recipe, and a run directory with episodes, annotations and the models that one process trains."""
    return prepare(tmp_path_factory.mktemp("ray-train"), epochs=3)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The same with enough steps to be killed in the middle."""
    return prepare(tmp_path_factory.mktemp("ray-train-long"), epochs=20)


def prepare(root, epochs):
    build_model(hidden=16, layers=1, heads=2, intermediate=32, seed=0).save_pretrained(root / "model")
    build_tokenizer().save_pretrained(root / "model")
    recipe = Recipe.model_validate(
        {
            "name": "train",
            "workers": 0,
            "collect": {"levels": {"GoToLocalS5N2": 12}, "max_steps": 20},
            "select": {"selectors": ["all", "random"]},
            "finetune": {
                "base": str(root / "model"),
                "arms": [{"selector": "all"}, {"selector": "random"}, {"selector": "random", "anchor": 0.5}],
                "epochs": epochs,
                "batch_size": 4,
                "save_every": 4,
                "workers": 0,
            },
        }
    )
    pipeline.run(recipe, root / "run")
    return recipe, root / "run"


def copied(run_dir, target):
    """The run before it trained."""
    return shutil.copytree(run_dir, target, ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl"))


def on_ray(recipe, run_dir, target, **changes):
    """Train in a copy of the run, by Ray Train."""
    if not target.exists():
        copied(run_dir, target)
    tuning = recipe.finetune.model_copy(update=changes)
    finetune(recipe.model_copy(update={"finetune": tuning}), target)


def made(run_dir):
    return sorted(p.name for p in (run_dir / "checkpoints").iterdir() if not p.name.startswith("."))


def assert_same_weights(one, other, models=("all-s0", "random+anchor0.5-s0", "random-s0")):
    assert made(other) == list(models)
    for model in models:
        a, b = (load_file(run / "checkpoints" / model / "model.safetensors") for run in (one, other))
        assert max(float((a[k] - b[k]).abs().max()) for k in a) < 2e-6, model


def losses(run_dir):
    """Loss by (arm, step), the last one written; a run that went on writes some twice."""
    return {(row["arm"], row["step"]): row["loss"] for row in jsonl_rows(run_dir / "metrics.jsonl") if "loss" in row}


@pytest.mark.slow
def test_process_groups_side_by_side_train_what_one_process_does(prepared, ray_session, tmp_path):
    recipe, run_dir = prepared
    on_ray(recipe, run_dir, tmp_path / "run", workers=2, parallel=2)
    assert_same_weights(run_dir, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(run_dir), rel=1e-6)


def some_pairs(run_dir):
    """Pairs at the first step of every expert episode; the other side turns away."""
    found = []
    for t in read_trajectories(RunLayout(run_dir).expert):
        here = t.steps[0]
        other = "turn left" if here.action == "turn right" else "turn right"
        sides = [Turn(thought=here.thought, action=action) for action in (here.action, other)]
        own = {name: getattr(t, name) for name in ("env", "task", "seed", "instruction", "source")}
        about = {"id": t.id, "episode": t.id, "step": 0, "history": (), "observation": here.observation, **own}
        found.append(Pair(**about, chosen=sides[0], rejected=sides[1]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["all weights", "adapters"])
def test_workers_none_of_which_holds_the_base_train_on_pairs_what_one_process_does(
    prepared, ray_session, tmp_path, lora
):
    recipe, run_dir = prepared
    given = {"arms": [Arm(selector="mine", pairs=True)], "pairs": Pairs(files={"mine": "x"}, beta=0.5), "lora": lora}
    for name in ("one", "two"):
        write_pairs(RunLayout(copied(run_dir, tmp_path / name)).pairs("mine"), some_pairs(run_dir))
    on_ray(recipe, run_dir, tmp_path / "one", **given)
    on_ray(recipe, run_dir, tmp_path / "two", workers=2, parallel=1, strategy="fsdp", accumulate="whole", **given)
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    one, two = (load_file(tmp_path / name / "checkpoints" / "mine+pairs-s0" / file) for name in ("one", "two"))
    assert one.keys() == two.keys() and max(float((one[k] - two[k]).abs().max()) for k in one) < 2e-6
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


def test_two_workers_train_what_one_process_does_and_a_failing_arm_costs_the_others_nothing(
    prepared, ray_session, tmp_path, monkeypatch
):
    recipe, run_dir = prepared
    monkeypatch.chdir(run_dir.parent)  # the base is named from here, and Ray Train's workers begin elsewhere
    target = copied(run_dir, tmp_path / "run")
    marks = target / "annotations" / "all.jsonl"
    rows = [{**row, "critical": []} for row in jsonl_rows(marks)]
    marks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arms = [recipe.finetune.arms[n] for n in (0, 2)]
    with pytest.raises(AtlasError, match="^all-s0: no step of any trajectory is selected") as caught:
        on_ray(recipe, run_dir, target, workers=2, parallel=1, arms=arms, base="model")
    assert "\n" not in str(caught.value)
    assert_same_weights(run_dir, target, ["random+anchor0.5-s0"])
    alone = {(arm, step): loss for (arm, step), loss in losses(run_dir).items() if arm == "random+anchor0.5"}
    assert losses(target) == pytest.approx(alone, rel=1e-6)
    assert not list((target / "checkpoints").glob(".random*")), "training states are removed at the end"
    about, single = (read_json(run / "checkpoints" / "random+anchor0.5-s0" / "run.json") for run in (target, run_dir))
    for key in ("trained_tokens", "context_tokens", "cut_tokens", "flops", "data_sha256", "steps_share"):
        assert about[key] == single[key]
    assert (about["workers"], single["workers"]) == (2, 1)


def test_more_workers_than_cpus_are_refused_at_once(prepared, ray_session, tmp_path):
    recipe, run_dir = prepared
    with pytest.raises(InputError, match=r"finetune\.workers: the models that are trained ask for 500 CPUs, Ray has"):
        on_ray(recipe, run_dir, tmp_path / "run", workers=500)


def train_workers():
    """Process ids of Ray Train workers that descend from this process."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if b"RayTrainWorker" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue

    def ours(pid):
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid in found if ours(pid)]


def on_pairs(recipe, path):
    """The recipe with an arm of pairs at the second step of each episode; the expert's action is the chosen one."""
    episodes = [t for t in read_trajectories(path.parent / "run" / "trajectories" / "expert.jsonl") if len(t.steps) > 1]
    pairs = [
        Pair(
            id=t.id,
            episode=t.id,
            step=1,
            history=t.steps[:1],
            observation=t.steps[1].observation,
            chosen=Turn(thought=t.steps[1].thought, action=t.steps[1].action),
            rejected=Turn(thought=t.steps[1].thought, action="drop"),
            **{name: getattr(t, name) for name in ("env", "task", "seed", "instruction", "source")},
        )
        for t in episodes
    ]
    write_pairs(path, pairs)
    given = recipe.model_dump(mode="json")
    table = {"files": {"mine": str(path)}, "beta": 0.5, "sft": 0.3}
    given["finetune"] |= {"arms": [{"selector": "mine", "pairs": True}], "pairs": table, "seeds": [0, 1]}
    return Recipe.model_validate(given), len(pairs)


@pytest.mark.slow
def test_pairs_are_trained_by_ray_train_as_by_one_process(prepared, ray_session, tmp_path):
    recipe, run_dir = prepared
    wanted, pairs = on_pairs(recipe, run_dir.parent / "mine.jsonl")
    assert pairs > 6
    kinds = {"one": {}, "ddp": {"workers": 2}, "fsdp": {"workers": 2, "strategy": "fsdp"}, "apart": {"workers": 1}}
    for name, changes in kinds.items():
        on_ray(wanted, run_dir, tmp_path / name, **changes)
        assert_same_weights(tmp_path / "one", tmp_path / name, ("mine+pairs-s0", "mine+pairs-s1"))
    about = [read_json(tmp_path / name / "checkpoints" / "mine+pairs-s0" / "run.json") for name in kinds]
    assert [each["workers"] for each in about] == [1, 2, 2, 1]
    assert len({each["trained_tokens"] for each in about}) == 1 and about[0]["examples"] == pairs


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_worker_changes_nothing(long, ray_session, tmp_path, strategy):
    recipe, run_dir = long
    target, killed = tmp_path / "run", []

    def assassin():
        metrics = target / "metrics.jsonl"
        while not killed:
            time.sleep(0.02)
            if metrics.exists() and metrics.read_bytes().count(b"\n") > 25 and (workers := train_workers()):
                os.kill(workers[-1], signal.SIGKILL)
                killed.append(workers[-1])

    thread = threading.Thread(target=assassin, daemon=True)
    thread.start()
    on_ray(recipe, run_dir, target, workers=2, parallel=1, strategy=strategy)
    thread.join(timeout=1)
    assert killed
    assert_same_weights(run_dir, target)
    assert losses(target) == pytest.approx(losses(run_dir), rel=1e-6)


DRIVER = """
import sys
from atlas_ray.rundir.files import read_json
from atlas_ray.finetune import finetune
from atlas_ray.recipe import Recipe
from pathlib import Path
finetune(Recipe.model_validate(read_json(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_driver_that_is_ended_again_and_again_changes_nothing(long, tmp_path):
    """In the middle of an epoch and, since the state is saved in every step, while a checkpoint is being written."""
    recipe, run_dir = long
    target = tmp_path / "run"
    copied(run_dir, target)
    tuning = recipe.finetune.model_copy(update={"save_every": 1})
    write_json(tmp_path / "recipe.json", recipe.model_copy(update={"finetune": tuning}).model_dump(mode="json"))
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "recipe.json"), str(target)]
    metrics, seen = target / "metrics.jsonl", 0
    for number in range(6):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while driver.poll() is None and (metrics.read_bytes().count(b"\n") if metrics.exists() else 0) < seen + 9:
            time.sleep(0.003)
        driver.send_signal(signal.SIGTERM if number % 2 else signal.SIGKILL)
        driver.wait()
        seen = metrics.read_bytes().count(b"\n")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert_same_weights(run_dir, target)
    assert losses(target) == losses(run_dir)
