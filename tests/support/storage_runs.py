"""Runs on storage: what they hold, and drivers of them that may be killed."""

import json
import os
import subprocess
import sys
import tarfile
import time

from safetensors.torch import load_file

from atlas_ray.rundir.files import jsonl_rows
from atlas_ray.storage.snapshot import snapshot
from atlas_ray.storage.sync import RunSync

RECIPE = """
name = "kept"
workers = 0
num_envs = 8
[collect]
levels = { GoToLocalS5N2 = 12 }
max_steps = 20
[select]
selectors = ["all"]
[finetune]
arms = [{ selector = "all" }]
epochs = 10
batch_size = 4
save_every = 3
workers = 0
[evaluate]
held_in = ["GoToLocalS5N2"]
max_steps = 12
episodes = 10
"""


def anyone(found, where):
    """Refuses no run."""


def sync_of(place, run_dir):
    made = RunSync(place, run_dir)
    made.acquire(anyone)
    return made


def write(run_dir, name, content="x"):
    path = run_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def content(run_dir):
    """Every file that travels."""
    names = [p.name for p in snapshot(run_dir)]
    found = {}
    for name in names:
        path = run_dir / name.removesuffix(".tar")
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                found[file.relative_to(run_dir).as_posix()] = file.read_bytes()
    return found


_DRIVER = """
import sys
from atlas_ray.storage import sync as syncing
from atlas_ray.cli import main

syncing.PUSH_SECONDS, syncing.HEARTBEAT_SECONDS = 0.2, 0.2
sys.exit(main(sys.argv[1:]))
"""


def driver(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(true, process):
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def outcome(run):
    rows = [
        {k: v for k, v in row.items() if k != "seconds"} for row in jsonl_rows(run / "evaluation" / "episodes.jsonl")
    ]
    return load_file(run / "checkpoints" / "all-s0" / "model.safetensors"), sorted(rows, key=json.dumps)


def unpacked(storage):
    """Names of the files on the storage, those within archives too."""
    import io

    found = set()
    for name in storage.listing():
        if not name.endswith(".tar"):
            found.add(name)
            continue
        with tarfile.open(fileobj=io.BytesIO(storage.read(name))) as archive:
            found |= {f"{name.removesuffix('.tar')}/{m}" for m in archive.getnames() if m != ".whole"}
    return found
