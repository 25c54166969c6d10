"""Whether Ray has what actors ask for, and the wait where a cluster may grow."""

from __future__ import annotations

from ..errors import InputError
from ..rundir.progress import say
from . import address as cluster
from .scheduling import no_placement_group


def nodes_of(group: str | None) -> list[dict[str, float]]:
    """What each node of a group has in total; without a group, each node of all."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"] and (not group or group in node["Resources"])]


def resources_of(group: str | None) -> dict[str, float]:
    """What the nodes of a group have in total; without a group, what all nodes have."""
    total: dict[str, float] = {}
    for node in nodes_of(group):
        for name, amount in node.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def check_room(cpus: float, gpus: float, who: str, fields: tuple[str, str]) -> None:
    """Refuse more than the Ray of this machine has, which Ray would wait for without end. A cluster may grow: wait.

    Raises:
        InputError: names the one of ``fields`` that asks for more CPUs, or more GPUs, than this machine has.
    """
    import ray

    there = ray.cluster_resources()
    for name, asked, where in (("CPU", cpus, fields[0]), ("GPU", gpus, fields[1])):
        if asked > there.get(name, 0):
            _lacks(f"{who} {asked:g} {name}s, Ray has {there.get(name, 0):g}", where)


def check_groups(resources: dict[str, float]) -> None:
    """Refuse a group that no node of this machine's Ray is in. A cluster may start such a node: wait.

    Raises:
        InputError: names the resource that no node has.
    """
    for group in resources:
        if not resources_of(group):
            _lacks(f"no node has the resource {group!r}", "placement")


def wait_for_groups(resources: dict[str, float]) -> None:
    """Wait until each group has a node: a cluster that was scaled down to none starts one when it is asked.

    Raises:
        InputError: names the resource that no node of this machine's own Ray has.
    """
    import ray

    check_groups(resources)
    for group, amount in resources.items():
        if not resources_of(group):
            asking = ray.remote(resources_of).options(num_cpus=0, resources={group: amount}, **no_placement_group())
            ray.get(asking.remote(group))


def _lacks(what: str, where: str) -> None:
    if not cluster.address():
        raise InputError(what, None, None, where)
    say(f"  {what}: waiting for the cluster to grow")
