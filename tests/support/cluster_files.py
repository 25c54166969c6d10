"""The cluster files as a user has filled them in, and a way to change one thing in them."""

import copy
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "clusters"
LAUNCHER = ("aws", "gcp", "onprem")
MANIFESTS = ("base", "raycluster", "rayjob")
FLAGS = ["--placement.workers", "environments", "--placement.engines", "engines", "--placement.trainers", "trainers"]


def module(name):
    """A script of clusters/ as a module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, CLUSTERS / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def path_of(name):
    return CLUSTERS / ("kuberay" if name in MANIFESTS else "") / f"{name}.yaml"


def filled(name, folder):
    """The file without its CHANGE-ME."""
    made = folder / f"{name}.yaml"
    made.write_text(path_of(name).read_text().replace("CHANGE-ME", "mine"))
    return made


def changed(document, path, value):
    """A copy with one thing set; None takes it out. Steps of the path are joined by blanks, numbers are positions."""
    made = copy.deepcopy(document)
    *steps, last = [int(step) if step.isdigit() else step for step in path.split()]
    at = made
    for step in steps:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return made
