"""Ray Train: two workers equal one process, also when one of them is killed on the way."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atlas_ray import pipeline
from atlas_ray.finetune import finetune
from atlas_ray.recipe import Recipe
from atlas_ray.tiny import build_model, build_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A recipe, and a run directory with episodes, annotations and the models that one process trains."""
    root = tmp_path_factory.mktemp("ray-train")
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
                "epochs": 20,
                "batch_size": 4,
                "save_every": 10,
                "workers": 0,
            },
        }
    )
    pipeline.run(recipe, root / "run")
    return recipe, root / "run"


def on_two_workers(recipe, run_dir, target):
    shutil.copytree(run_dir, target, ignore=shutil.ignore_patterns("checkpoints", "*.jsonl.part", "metrics.jsonl"))
    tuning = recipe.finetune.model_copy(update={"workers": 2})
    finetune(recipe.model_copy(update={"finetune": tuning}), target)


def assert_same_weights(one, other):
    models = sorted(p.name for p in (one / "checkpoints").iterdir() if not p.name.startswith("."))
    assert models == ["all-s0", "random+anchor0.5-s0", "random-s0"]
    for model in models:
        a, b = (load_file(run / "checkpoints" / model / "model.safetensors") for run in (one, other))
        assert max(float((a[k] - b[k]).abs().max()) for k in a) < 2e-4, model


def test_two_workers_train_what_one_process_does(prepared, ray_session, tmp_path):
    recipe, run_dir = prepared
    on_two_workers(recipe, run_dir, tmp_path / "run")
    assert_same_weights(run_dir, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob(".*")), "training states are removed at the end"


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


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(prepared, ray_session, tmp_path):
    recipe, run_dir = prepared
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
    on_two_workers(recipe, run_dir, target)
    thread.join(timeout=1)
    assert killed
    assert_same_weights(run_dir, target)
