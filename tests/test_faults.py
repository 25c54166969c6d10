"""Kills in the middle of a real run of the command, and a cluster of several nodes: no episode lost, none twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from atlas_ray import pipeline
from atlas_ray.cli import main
from atlas_ray.recipe.loading import load
from atlas_ray.rundir.files import read_json

EPISODES = 30  # on each of two models
RECIPE = """
name = "faults"
workers = 2
num_envs = 8
worker_cpus = 0.5
engine = { actors = 1, timeout = 60.0 }
[collect]
levels = { GoToLocalS5N2 = 4 }
[select]
selectors = ["all"]
[finetune]
arms = [{ selector = "all" }]
epochs = 1
workers = 0
[evaluate]
held_in = ["GoToLocalS5N2"]
max_steps = 12
episodes = 30
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recipe and a function that makes run directories with everything that comes before the evaluation."""
    folder = tmp_path_factory.mktemp("faults")
    recipe = folder / "faults.toml"
    recipe.write_text(RECIPE)
    pipeline.run(
        load(recipe, {"workers": "0", "engine.actors": "0"}), folder / "trained", ("collect", "select", "finetune")
    )

    def make(name):
        run = folder / name
        subprocess.run(["cp", "-r", folder / "trained", run], check=True)
        (run / "recipe.resolved.json").write_text(json.dumps(load(recipe).model_dump(mode="json")))
        return recipe, run

    return make


def start(recipe, run, **environment):
    """The command in a process group of its own, with a Ray of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "atlas_ray", "evaluate", str(recipe), "--out", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def rows(run):
    path = run / "evaluation" / "episodes.jsonl"
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def wait_for(count, run, driver):
    wait_until(lambda: len(rows(run)) >= count, driver)


def wait_until(there, driver):
    deadline = time.monotonic() + 120
    while not there():
        assert driver.poll() is None, driver.stdout.read()
        assert time.monotonic() < deadline, "nothing comes"
        time.sleep(0.02)


def actors(driver, name):
    """Process ids of the driver's Ray actors of a class, which stands in the title of their process."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        try:
            parents[entry.name] = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if (entry / "cmdline").read_bytes().startswith(f"ray::{name}".encode()):
                found.append(entry.name)
        except (OSError, IndexError):
            continue

    def ours(pid):
        while pid in parents and pid != "0":
            if pid == str(driver.pid):
                return True
            pid = parents[pid]
        return False

    return [int(pid) for pid in found if ours(pid)]


def scores(run):
    found = [json.loads(row) for row in rows(run)]
    return {(r["model"], r["seed"]): (r["success"], r["trajectory"]) for r in found}, found


@pytest.mark.slow
def test_kills_of_a_worker_an_engine_and_the_driver_lose_nothing_and_repeat_nothing(trained, ray_session, capsys):
    recipe, run = trained("killed")
    driver = start(recipe, run)
    wait_for(3, run, driver)
    os.kill(actors(driver, "_Worker")[0], signal.SIGKILL)
    wait_for(6, run, driver)  # early: a busy machine may see the last of 60 soon after
    os.kill(actors(driver, "EngineServer")[0], signal.SIGKILL)
    # the driver must have heard of the engine before it dies, which on a busy machine it has not by then
    events = run / "events.jsonl"
    wait_until(lambda: events.exists() and b'"engine lost"' in events.read_bytes(), driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    with (run / "evaluation" / "episodes.jsonl").open("a") as file:
        file.write('{"model": "none", "lev')  # cut off by the kill
    assert main(["evaluate", str(recipe), "--out", str(run)]) == 0
    output = capsys.readouterr().out
    found, every = scores(run)
    assert Counter((r["model"], r["seed"]) for r in every) == Counter(
        (m, 100_000_000 + s) for m in ("none", "all/0") for s in range(EPISODES)
    )
    assert all(r["error"] is None and not r["lost"] for r in every)
    for word in ("1 workers lost", "times resumed", "engine answers asked again"):
        assert word in output, output
    whole = trained("whole")[1]
    alone = load(recipe, {"workers": "0", "engine.actors": "0"})
    (whole / "recipe.resolved.json").write_text(json.dumps(alone.model_dump(mode="json")))
    pipeline.run(alone, whole, ("evaluate",))
    assert found == scores(whole)[0], "episode for episode what one process plays without a fault"
    assert read_json(run / "evaluation" / "atlas.json")["arms"][0]["held_in"]["episodes"] == EPISODES


# A head without CPUs, a node for workers, and two nodes with one (pretended) GPU each; the node of the engine is taken
# away when 10 episodes are there.
_NODES = """
import json, sys, threading, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from atlas_ray import pipeline
from atlas_ray.recipe import load

recipe, run = load(sys.argv[1]), Path(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = {"players": cluster.add_node(num_cpus=2)}
nodes |= {name: cluster.add_node(num_cpus=1, num_gpus=1) for name in ("one", "two")}
names = {node.node_id: name for name, node in nodes.items()}
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
seen = []

def look():
    alive = [a for a in ray._private.state.actors().values() if a["State"] == "ALIVE"]
    placed = [(a["ActorClassName"], names[a["Address"]["NodeID"]]) for a in alive]
    seen.append(sorted(p for p in placed if p[0] in ("_Worker", "EngineServer")))
    return seen[-1]

def watch():
    path = run / "evaluation" / "episodes.jsonl"
    while not path.exists() or path.read_bytes().count(b"\\n") < 10:
        time.sleep(0.05)
    cluster.remove_node(nodes[dict(look())["EngineServer"]], allow_graceful=False)
    while len(dict(look())) < 2 or seen[-1] == seen[0]:
        time.sleep(0.5)

watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
pipeline.run(recipe, run, ("evaluate",))
watcher.join(60)
print(json.dumps([seen[0], seen[-1]]))
"""


@pytest.mark.slow
def test_on_several_nodes_ray_puts_everything_where_the_recipe_says_and_a_lost_node_costs_nothing(trained, tmp_path):
    recipe, run = trained("nodes")
    text = recipe.read_text().replace("actors = 1, ", "actors = 1, gpus = 1.0, ").replace("= 0.5", "= 1.0")
    (tmp_path / "nodes.toml").write_text(text)
    (run / "recipe.resolved.json").write_text(json.dumps(load(tmp_path / "nodes.toml").model_dump(mode="json")))
    done = subprocess.run(
        [sys.executable, "-c", _NODES, str(tmp_path / "nodes.toml"), str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = json.loads(done.stdout.strip().splitlines()[-1])
    assert [tuple(a) for a in before if a[0] == "_Worker"] == [("_Worker", "players")] * 2
    ((_, first),) = [a for a in before if a[0] == "EngineServer"]
    ((_, second),) = [a for a in after if a[0] == "EngineServer"]
    assert {first, second} == {"one", "two"}, "the only nodes with a GPU"
    found, every = scores(run)
    assert len(found) == len(every) == 2 * EPISODES
