"""Clusters of several nodes on one machine: groups of nodes, nodes without the run directory, and lost nodes."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atlas_ray import pipeline
from atlas_ray.cluster.workers import ActorPool, worker_pool
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe, load
from atlas_ray.rundir.files import jsonl_rows, read_json

RECIPE = """
name = "placed"
workers = 2
num_envs = 16
worker_cpus = 0.5
engine = { actors = 1, gpus = 1.0, timeout = 60.0 }
placement = { workers = "playing", engines = "answering", trainers = "learning" }
[collect]
levels = { GoToLocalS5N2 = 12 }
max_steps = 20
[select]
selectors = ["all"]
[finetune]
arms = [{ selector = "all" }]
seeds = [0, 1]
epochs = 8
batch_size = 4
save_every = 4
workers = 1
parallel = 1
[evaluate]
held_in = ["GoToLocalS5N2"]
max_steps = 12
episodes = 40
[switch]
levels = ["GoToLocalS5N2"]
max_steps = 12
budgets = [2]
costs = []
steps = 600
env_runners = 1
num_envs = 16
evaluate_every = 200
evaluate_episodes = 8
test_episodes = 16
baselines = ["random"]
"""

# Started with the recipe, the run directory, what to lose, and until what file has so many lines. Prints which actors
# were seen on which nodes.
_CLUSTER = """
import json, sys, threading, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from atlas_ray import pipeline
from atlas_ray.recipe import load

recipe, run, lose, file, lines = load(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:6]
quick = {"_system_config": {"enable_worker_prestart": False}}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quick})
nodes = {
    f"{group}-{n}": cluster.add_node(num_cpus=3, num_gpus=2 * (group == "answering"), resources={group: 1})
    for group in ("playing", "answering", "learning")
    for n in range(1 + (group == lose))
}
names = {node.node_id: name for name, node in nodes.items()}
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
seen, lost = set(), []

def watch():
    while not over.wait(0.1):
        alive = [a for a in ray._private.state.actors().values() if a["State"] == "ALIVE"]
        seen.update((a["ActorClassName"], names.get(a["Address"]["NodeID"], "head")) for a in alive)
        if lose and not lost and (run / file).exists() and (run / file).read_bytes().count(b"\\n") >= int(lines):
            busy = {names.get(a["Address"]["NodeID"], "head") for a in alive}
            lost.extend(sorted(name for name in busy if name.startswith(lose))[:1])
            if lost:
                cluster.remove_node(nodes[lost[0]], allow_graceful=False)

over, watcher = threading.Event(), threading.Thread(target=watch)
watcher.start()
try:
    pipeline.run(recipe, run)
finally:
    over.set()
    watcher.join()
    ray.shutdown()
    cluster.shutdown()
print(json.dumps({"seen": sorted(seen), "lost": lost}))
"""


def on_cluster(script, *arguments, timeout=600):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("placement") / "placed.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(recipe):
    """What comes of it in one process."""
    alone = {"workers": "0", "engine.actors": "0", "finetune.workers": "0", "switch.env_runners": "0"}
    run = recipe.with_name("whole")
    pipeline.run(load(recipe, alone), run, ("collect", "select", "finetune", "evaluate"))
    return run


def episodes(run):
    rows = list(jsonl_rows(run / "evaluation" / "episodes.jsonl"))
    assert max(Counter((r["model"], r["level"], r["seed"]) for r in rows).values()) == 1
    assert not any(r["lost"] or r["error"] for r in rows)
    return {(r["model"], r["level"], r["seed"]): (r["success"], r["steps"], r["score"]) for r in rows}


def assert_same(run, whole):
    assert episodes(run) == episodes(whole)
    for name in ("all-s0", "all-s1"):
        one, other = (load_file(r / "checkpoints" / name / "model.safetensors") for r in (run, whole))
        assert all((one[key] == other[key]).all() for key in other)
    assert read_json(run / "checkpoints" / "switch-budget2-seed0" / "config.json")["budget"] == 2
    assert read_json(run / "switch" / "policies.json")
    assert not [p for p in (run / "checkpoints").iterdir() if p.name.startswith(".") or p.suffix == ".train"]


@pytest.mark.slow
def test_everything_is_where_the_recipe_says(recipe, whole, tmp_path):
    found = on_cluster(_CLUSTER, recipe, tmp_path / "run", "", "", 0)
    where = {}
    for name, node in found["seen"]:
        where.setdefault(name, set()).add(node.split("-")[0])
    assert where["EngineServer"] == {"answering"}
    assert where["_Worker"] == {"playing", "learning"}, "those that train a switch are trainers"
    assert where["SwitchRunner"] == {"playing"}
    assert where["RayTrainWorker"] == {"learning"}
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lose", "file", "lines", "event"),
    [
        ("playing", "evaluation/episodes.jsonl", 20, ("evaluate", "retried")),
        ("answering", "evaluation/episodes.jsonl", 20, None),
        ("learning", "metrics.jsonl", 10, None),
    ],
)
def test_a_lost_node_costs_only_the_work_in_flight(recipe, whole, tmp_path, lose, file, lines, event):
    run = tmp_path / "run"
    found = on_cluster(_CLUSTER, recipe, run, lose, file, lines)
    assert len(found["lost"]) == 1
    assert_same(run, whole)
    events = [(row["stage"], row["event"]) for row in jsonl_rows(run / "events.jsonl")]
    assert event is None or event in events
    if lose == "learning":
        steps = [row["step"] for row in jsonl_rows(run / "metrics.jsonl") if row.get("arm") and row["seed"] == 0]
        again = [step for step, count in Counter(steps).items() if count > 1]
        assert len(again) <= 4, "it goes on from the last state, which is at most four steps old"


# Two nodes that do not see the run directory: a file system lies over it in their mount namespace. The first that
# trains is lost when ten optimiser steps are done.
_FAR = """
import json, os, signal, socket, subprocess, sys, threading, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from atlas_ray import pipeline
from atlas_ray.recipe import load

recipe, run, lose = load(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "lose"
quick = {"_system_config": {"enable_worker_prestart": False}}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quick})
groups = json.dumps({"playing": 1, "answering": 1, "learning": 1})

def far(name):
    port = socket.socket()
    port.bind(("127.0.0.1", 0))
    agent = port.getsockname()[1]
    port.close()
    start = f"ray start --address={cluster.address} --block --num-cpus=6 --num-gpus=0 --node-name={name}"
    start += f" --resources='{groups}' --dashboard-agent-listen-port={agent} > {run.parent}/{name}.log 2>&1"
    (run.parent / name).mkdir()
    hidden = f"mount -t tmpfs none {run}; TMPDIR={run.parent}/{name} exec {start}"
    process, before = subprocess.Popen([*sys.argv[4:], hidden]), len(ray.nodes())
    while len(ray.nodes()) == before:  # two that begin together take the same sockets
        assert process.poll() is None, (run.parent / f"{name}.log").read_text()
        time.sleep(0.2)
    return process

run.mkdir(parents=True)
ray.init(address=cluster.address, log_to_driver=False)
far_nodes = {name: far(name) for name in ("one", "two")}
names = {n["NodeID"]: n["NodeName"] for n in ray.nodes()}
seen, lost = set(), []

def kill(name):
    # the kernel ends all processes of a PID namespace with its first one
    far_nodes[name].kill()
    far_nodes.pop(name).wait()

def steps():
    path = run / "metrics.jsonl"
    return path.read_text().count('"grad_norm"') if path.exists() else 0

def watch():
    while not over.wait(0.1):
        alive = [a for a in ray._private.state.actors().values() if a["State"] == "ALIVE"]
        at = [(a["ActorClassName"], names[a["Address"]["NodeID"]]) for a in alive]
        seen.update(at)
        if lose and not lost and steps() >= 10 and "RayTrainWorker" in dict(at):
            lost.append(dict(at)["RayTrainWorker"])
            kill(lost[0])

over, watcher = threading.Event(), threading.Thread(target=watch)
watcher.start()
try:
    pipeline.run(recipe, run)
finally:
    over.set()
    watcher.join()
    ray.shutdown()
    for name in list(far_nodes):
        kill(name)
    cluster.shutdown()
print(json.dumps({"seen": sorted(seen), "lost": lost}))
"""


# a shell with mounts and processes of its own, all of which end with it
APART = ["unshare", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]


def hides():
    """Whether this machine lets a process have mounts of its own."""
    try:
        return subprocess.run([*APART, "mount -t tmpfs none /mnt"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not hides(), reason="needs mount namespaces")
@pytest.mark.parametrize("lose", ["lose", "keep"])
def test_nodes_without_the_run_directory_do_the_same_work(recipe, whole, tmp_path, lose):
    text = recipe.read_text().replace("gpus = 1.0, ", "")
    (tmp_path / "far.toml").write_text(text)
    found = on_cluster(_FAR, tmp_path / "far.toml", tmp_path / "run", lose, *APART)
    workers = {"_Worker", "EngineServer", "RayTrainWorker", "SwitchRunner"}
    assert {name for name, node in found["seen"] if node in ("one", "two")} >= workers
    assert len(found["lost"]) == (lose == "lose")
    assert_same(tmp_path / "run", whole)
    steps = [row["step"] for row in jsonl_rows(tmp_path / "run" / "metrics.jsonl") if row.get("grad_norm")]
    assert 48 <= len(steps) <= 48 + 5 * (lose == "lose"), "each step once, but for those since the last state"


# A head alone, whose autoscaler may start one node of each group: Ray's own, which pretends to be a provider.
_GROWING = """
import json, os, socket, subprocess, sys
from pathlib import Path

import ray

from atlas_ray.cluster.capacity import resources_of, wait_for_groups

place, probe = Path(sys.argv[1]), socket.socket()
probe.bind(("127.0.0.1", 0))
port = probe.getsockname()[1]
probe.close()
address = f"{ray.util.get_node_ip_address()}:{port}"
kinds = {
    "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0},
    "playing": {"resources": {"CPU": 3, "playing": 1}},
    "learning": {"resources": {"CPU": 3, "GPU": 2, "learning": 1}},
}
config = {
    "cluster_name": "growing",
    "max_workers": 2,
    "idle_timeout_minutes": 1,
    "upscaling_speed": 1.0,
    "provider": {"type": "fake_multinode", "gcs_address": address},
    "auth": {"ssh_user": "nobody"},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        name: {"node_config": {}, "min_workers": 0, "max_workers": 1, **kind} for name, kind in kinds.items()
    },
}
lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
config |= {f"{name}_commands": [] for name in lists}
config |= {"docker": {}, "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False}
config |= {"rsync_exclude": [], "rsync_filter": []}
(place / "cluster.json").write_text(json.dumps(config))
start = ["ray", "start", "--head", "--num-cpus=0", f"--port={port}", "--include-dashboard=false"]
start += [f"--autoscaling-config={place}/cluster.json", f"--temp-dir={place}/ray"]
subprocess.run(start, env={**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}, check=True)
os.environ["RAY_ADDRESS"] = address
ray.init(log_to_driver=False)
before = resources_of("learning")
wait_for_groups({"learning": 0.001})
print(json.dumps([before, resources_of("learning"), resources_of("playing")]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hides(), reason="needs processes of its own")
def test_a_group_that_was_scaled_to_none_is_brought_back_before_its_gpus_are_counted():
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # sockets have short names
        done = subprocess.run(
            [*APART[:-2], sys.executable, "-c", _GROWING, place],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    before, after, others = json.loads(done.stdout.strip().splitlines()[-1])
    assert (before, others) == ({}, {}), "no other group is started for it"
    assert (after["CPU"], after["GPU"]) == (3, 2)


def test_a_group_that_no_node_has_is_refused_on_a_ray_of_this_machine(ray_session, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="placement: no node has the resource 'nowhere'"):
        ActorPool(1, resources={"nowhere": 0.001})
    engines = Recipe.model_validate(
        {"name": "x", "workers": 1, "engine": {"actors": 1, "cpus": 0.1}, "placement": {"engines": "neither"}}
    )
    with pytest.raises(InputError, match="placement: no node has the resource 'neither'"):
        worker_pool(engines, lambda task, attempt, why: None)


def test_a_group_that_no_node_of_a_cluster_has_is_waited_for(ray_session, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    ActorPool(1, resources={"nowhere": 0.001}).close()
    assert "no node has the resource 'nowhere': waiting for the cluster to grow" in capsys.readouterr().out
