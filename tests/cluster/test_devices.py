"""Engines whose GPUs cannot be there are refused before anything starts, by the field that asks for them."""

import importlib.metadata

import fake_vllm
import pytest
import ray

from atlas_ray import ray_private
from atlas_ray.cli import main
from atlas_ray.cluster.devices import check_devices, check_node
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe

VLLM = {"kind": "vllm", "actors": 1}


def recipe(**tables):
    switch = {"levels": ["GoToLocal"], "costs": [0.1]}
    return Recipe.model_validate({"name": "x", "workers": 2, "switch": switch, **tables})


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs, and no Ray on it yet."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def has(gpus):
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)

    return has


@pytest.fixture
def cluster(monkeypatch):
    """A cluster with such nodes, whose autoscaler may start such others."""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr("atlas_ray.cluster.workers.ensure_ray", lambda cpus: None)

    def has(nodes, to_come=None):
        there = [{"Alive": True, "Resources": {"CPU": 8.0, **node}} for node in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: there)
        monkeypatch.setattr(ray_private, "node_types", lambda: to_come)

    return has


@pytest.mark.parametrize(
    ("gpus", "engine", "field"),
    [
        (0, {"gpus": 1.0}, "engine.gpus"),
        (4, {"gpus": 8.0}, "engine.gpus"),
        (2, {"gpus": 2.0}, "engine.actors"),  # of each of the two models
        (3, {"gpus": 1.0, "actors": 2}, "engine.actors"),
    ],
)
def test_a_machine_with_too_few(machine, gpus, engine, field):
    machine(gpus)
    with pytest.raises(InputError) as refused:
        check_devices(recipe(engine=VLLM | engine), ["switch"])
    assert refused.value.field == field
    check_devices(recipe(engine=VLLM | engine), ["collect"])


def test_rounds_need_what_their_switch_does(machine):
    machine(1)
    asks = recipe(engine=VLLM | {"gpus": 1.0}, rounds={"finetune": {"workers": 0}})
    with pytest.raises(InputError, match="2 engines with 1 GPUs"):
        check_devices(asks, ["rounds"])
    machine(2)
    check_devices(asks, ["rounds"])


def test_workers_that_hold_a_model_each_are_counted(machine):
    machine(1)
    with pytest.raises(InputError) as refused:
        check_devices(recipe(engine={"gpus": 1.0}), ["switch"])
    assert refused.value.field == "workers"
    machine(2)
    check_devices(recipe(engine={"gpus": 1.0}), ["switch"])


def test_a_vllm_for_gpus_is_told_how_many(machine, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"vllm": "0.32.0"}[name])
    machine(1)
    with pytest.raises(InputError, match="is 0") as refused:
        check_devices(recipe(engine=VLLM), ["switch"])
    assert refused.value.field == "engine.gpus"
    machine(0)
    check_devices(recipe(engine=VLLM), ["switch"])


def test_a_cluster_whose_nodes_are_too_small(cluster):
    asks = recipe(engine=VLLM | {"gpus": 4.0}, placement={"engines": "large"})
    for nodes, to_come in (
        ([{"GPU": 2.0, "large": 1.0}, {"GPU": 8.0}], None),  # the large one is in no group
        ([{"large": 1.0}], []),  # it has none, and no other may come
        ([{"GPU": 2.0, "large": 1.0}], [{"GPU": 2.0, "large": 1.0}, {"GPU": 8.0}]),
    ):
        cluster(nodes, to_come)
        with pytest.raises(InputError, match="'large'") as refused:
            check_devices(asks, ["switch"])
        assert refused.value.field == "engine.gpus"
    for nodes, to_come in (
        ([{"GPU": 4.0, "large": 1.0}], None),
        ([{"GPU": 2.0, "large": 1.0}], [{"GPU": 8.0, "large": 1.0}]),
        ([{}], None),  # scaled down to none, and nobody knows what may come
    ):
        cluster(nodes, to_come)
        check_devices(asks, ["switch"])


def test_node_types_are_those_that_the_autoscaler_reports(monkeypatch):
    from ray._private.state import state
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    reported = ClusterConfig()
    monkeypatch.setattr(state, "get_cluster_config", lambda: reported)
    assert ray_private.node_types() is None
    reported.node_group_configs.add(name="a", max_count=2, resources={"GPU": 8, "CPU": 96})
    reported.node_group_configs.add(name="b", max_count=0, resources={"GPU": 16})
    reported.node_group_configs.add(name="c", max_count=1, resources={"GPU": 4})
    assert ray_private.node_types() == [{"GPU": 8, "CPU": 96}, {"GPU": 4}]
    monkeypatch.setattr(ray, "nodes", lambda: [])
    check_node(8.0, None)
    with pytest.raises(InputError, match="more than 8"):
        check_node(9.0, None)


RECIPE = """
name = "x"
[engine]
{engine}
[switch]
levels = ["GoToLocal"]
costs = [0.1]
models = [{{ model = "tiny-quick" }}, {{ model = "tiny-deepthink" }}]
"""


@pytest.mark.parametrize(
    ("gpus", "engine", "said"),
    [
        (0, "gpus = 1.0", "engine.gpus: an engine asks for 1 GPUs, this machine has 0"),
        (8, 'kind = "vllm"\nactors = 1\ngpus = 3.0', "engine.gpus: 3 GPUs cannot share the 4 attention heads"),
        (8, 'kind = "vllm"\nactors = 1\ngpus = 0.5', "memory: engines with gpus = 0.5 share a GPU"),
    ],
)
def test_the_command_refuses_before_anything_is_written(machine, monkeypatch, tmp_path, capsys, gpus, engine, said):
    fake_vllm.install(monkeypatch)
    machine(gpus)
    (tmp_path / "x.toml").write_text(RECIPE.format(engine=engine))
    assert main(["switch", str(tmp_path / "x.toml"), "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0], lines
    assert not (tmp_path / "run").exists()
