"""Whether a cluster file is filled in, safe, and large enough for a recipe.

python clusters/check.py FILE [RECIPE [--dotted.field VALUE ...]]

The manifest of a RayJob names its recipe itself. Nothing is started, and no cloud is asked. Exit 0 all is well, 2 with
a line for each thing that is not.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from atlas_ray.cli import recipe_of
from atlas_ray.cluster.resources import ResourceRequest, by_part, resource_requests
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe

HERE = Path(__file__).resolve().parent
MARK = "CHANGE-ME"


@dataclass
class Node:
    """What is left of a node."""

    group: str
    cpus: float
    gpus: float
    names: set[str] = field(default_factory=set)

    def take(self, demand: ResourceRequest) -> bool:
        """Place one of the actors here, if there is room."""
        if demand.cpus > self.cpus or demand.gpus > self.gpus or not {demand.group or "any"} <= self.names | {"any"}:
            return False
        self.cpus, self.gpus = self.cpus - demand.cpus, self.gpus - demand.gpus
        return True


def read(path: Path) -> list[dict[str, Any]]:
    """The documents of a cluster file."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def nodes(config: dict[str, Any]) -> list[Node]:
    """Every node that the cluster may have at most, without the head."""
    if config.get("kind") == "RayJob":
        config = config["spec"]["rayClusterSpec"]
    elif config.get("kind") == "RayCluster":
        config = config["spec"]
    if "workerGroupSpecs" in config:
        return [node for group in config["workerGroupSpecs"] for node in _pods(group)]
    if config["provider"]["type"] == "local":
        return list(_machines(config))
    found = []
    for name, kind in config["available_node_types"].items():
        if name != config["head_node_type"]:
            custom = set(kind["resources"]) - {"CPU", "GPU"}
            one = kind["resources"].get("CPU", 0), kind["resources"].get("GPU", 0)
            found += [Node(name, *one, custom) for _ in range(kind.get("max_workers", config["max_workers"]))]
    return found


def _pods(group: dict[str, Any]) -> Iterator[Node]:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    for _ in range(group["maxReplicas"]):
        gpus = float(limits.get("nvidia.com/gpu", 0))
        yield Node(group["groupName"], float(limits["cpu"]), gpus, set(group.get("resources", {})))


def _machines(config: dict[str, Any]) -> Iterator[Node]:
    sys.path.insert(0, str(HERE))
    from node import machines

    source = next(path for path in config["file_mounts"].values() if path.endswith(".txt"))
    known = machines((HERE.parent / source).read_text(encoding="utf-8").splitlines())
    for address in config["provider"]["worker_ips"]:
        if address not in known:
            raise InputError(f"{source} does not say what {address} is", None, None, "provider.worker_ips")
        group, cpus, gpus = known[address]
        yield Node(group, cpus, gpus, {group})


def lacks(recipe: Recipe, there: list[Node]) -> list[str]:
    """A line for each part of the recipe whose actors do not all find a place, at the largest size of the cluster."""
    found = []
    for stage, part, asked in by_part(resource_requests(recipe, gpus=any(node.gpus for node in there))):
        free = [Node(node.group, node.cpus, node.gpus, node.names) for node in there]
        # what is hardest to place first
        for demand in sorted(asked, key=lambda d: (-d.gpus, -d.cpus)):
            placed = sum(any(node.take(demand) for node in free) for _ in range(demand.count))
            if placed < demand.count:
                each = f"{demand.cpus:g} CPUs and {demand.gpus:g} GPUs" if demand.gpus else f"{demand.cpus:g} CPUs"
                where = f" among the {demand.group}" if demand.group else ""
                found.append(
                    f"{stage}, {part}: {demand.count} {demand.who} ask for {each} each, {placed} find a place{where}"
                )
    return found


def unsafe(config: dict[str, Any]) -> list[str]:
    """What would open a cluster of the launcher to others, or let them read its token or a secret."""
    found = []
    commands = {key: " ".join(config[f"{key}_start_ray_commands"]) for key in ("head", "worker")}
    options = config.get("docker", {}).get("run_options", [])
    for key, command in commands.items():
        if "RAY_AUTH_MODE=token" not in command or "RAY_AUTH_MODE=disabled" in command:
            found.append(f"{key}_start_ray_commands: Ray starts without RAY_AUTH_MODE=token")
        if "--dashboard-host" in command and "--dashboard-host=127.0.0.1" not in command:
            found.append(f"{key}_start_ray_commands: the dashboard listens to others than 127.0.0.1")
    if "--dashboard-host=127.0.0.1" not in commands["head"]:
        found.append("head_start_ray_commands: say --dashboard-host=127.0.0.1")
    if "--env RAY_AUTH_MODE=token" not in options:
        found.append("docker.run_options: jobs would not know of the token: --env RAY_AUTH_MODE=token")
    if "~/.ray/auth_token" not in config.get("file_mounts", {}):
        found.append("file_mounts: the token does not reach the machines")
    if config["provider"]["type"] != "local" and not config["provider"].get("use_internal_ips"):
        found.append("provider.use_internal_ips: the machines would have public addresses")
    if "--num-cpus=0" not in commands["head"]:
        found.append(
            "head_start_ray_commands: say --num-cpus=0, or the head works too and may take the cluster with it"
        )
    return found


def invalid(document: dict[str, Any]) -> list[str]:
    """What KubeRay's fields, as far as we use them, or Ray's own schema of the launcher, do not know or allow."""
    if "kind" in document:
        return _by_schema(document, HERE / "kuberay" / "schema.json")
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    told = _by_schema(document, Path(ray.autoscaler.__file__).with_name("ray-schema.json"))
    if told:
        return told
    try:
        validate_config(prepare_config(document))
    except (jsonschema.ValidationError, ValueError) as error:
        return [str(error).splitlines()[0]]
    return unsafe(document)


def _by_schema(document: dict[str, Any], path: Path) -> list[str]:
    validator = jsonschema.Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))
    return [_told(jsonschema.exceptions.best_match([error])) for error in validator.iter_errors(document)]


def _told(error: jsonschema.ValidationError) -> str:
    return f"{'.'.join(map(str, error.absolute_path)) or 'file'}: {error.message.splitlines()[0][:200]}"


def asked(document: dict[str, Any], words: list[str]) -> Recipe | None:
    """The recipe of the command line, or of a job's entrypoint, as `atlas-ray run` resolves it; None without one.

    Raises:
        SystemExit: it cannot be read, which was said.
    """
    if document.get("kind") == "RayJob":
        entrypoint = shlex.split(document["spec"]["entrypoint"])
        words = entrypoint[entrypoint.index("run") + 1 :]
    if not words:
        return None
    try:
        return recipe_of(["run", *words])  # (what it names by path is on the cluster, not here)
    except InputError as error:
        print(f"atlas-ray: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def main(arguments: list[str]) -> int:
    """See the top of the file."""
    path = Path(arguments[0])
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [f"line {n}: {line.strip()}" for n, line in enumerate(lines, start=1) if MARK in line.split("# ")[0]]
    for document in read(path):
        problems = invalid(document)
        if not problems and document.get("kind") in (None, "RayCluster", "RayJob"):
            recipe = asked(document, arguments[1:])
            problems = lacks(recipe, nodes(document)) if recipe else []
        found += problems
    for line in found:
        print(f"{path}: {line}", file=sys.stderr)
    return 2 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
