"""What playing environments, reading trajectories and loading a saved switch imports and needs to be installed."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from atlas_ray.cluster.causes import of_light_install
from atlas_ray.errors import InputError

ROOT = Path(__file__).parent.parent
DIRECT = {"gymnasium", "minigrid", "numpy", "pydantic", "safetensors"}
"""Distributions that are imported by name."""
OF_COMMANDS = {"packaging", "rich"}
"""What `atlas-ray` needs besides."""
THROUGH = {
    "annotated_types",
    "farama_notifications",
    "networkx",
    "pydantic_core",
    "pygame",
    "typing_extensions",
    "typing_inspection",
}
"""Modules that those import."""
CODE = """
import json, sys, sysconfig

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ImportError(f"{name} is not part of the light install")

REFUSED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Refuse())
import numpy as np
from atlas_ray import envs
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.trajectory import Step, Trajectory, read_trajectories, write_trajectories

rng = np.random.default_rng(0)
layers = {"layers.0.weight": (8, 256), "layers.0.bias": (8,), "layers.2.weight": (2, 8), "layers.2.bias": (2,)}
rows = layers["layers.0.weight"][1]
from atlas_ray.switching.features import EXTRA
tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in layers.items()}
SwitchPolicy(SwitchConfig(features=rows - EXTRA, hidden=(8,), budget=2), tensors).save("switch")
policy = SwitchPolicy.load("switch")

env = envs.make("atlas_ray.envs:BabyAIText/GoToLocal-v0")
observation, info = env.reset(seed=0)
expert, over, steps, calls = env.expert(), False, [], 0
while not over:
    calls += policy(f"{info['goal']}\\n{observation}", 2 - calls)
    action = expert.act().action
    seen = observation
    observation, reward, terminated, truncated, info = env.step(action)
    steps.append(Step(observation=seen, action=action, reward=reward))
    over = terminated or truncated
item = Trajectory(id="a", env="BabyAIText/GoToLocal-v0", task="GoToLocal-v0", seed=0, instruction=info["goal"],
                  steps=tuple(steps), score=info["score"], success=info["success"], source="expert")
write_trajectories("a.jsonl", [item])
assert read_trajectories("a.jsonl") == [item]
places = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
found = {name.partition(".")[0] for name, m in list(sys.modules.items())
         if (getattr(m, "__file__", None) or "").startswith(places)}
print(json.dumps({"success": info["success"], "calls": calls, "imported": sorted(found)}))
"""
HEAVY = "torch,ray,transformers,peft,scipy,matplotlib,httpx,rich,jinja2,pandas,pyarrow,huggingface_hub"


def use(python, folder, environment, refused=HEAVY):
    """Play, save and load in a process of a Python; what it says."""
    command = [python, "-c", CODE, refused]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_five_packages_and_what_they_need_are_all_that_is_imported(tmp_path):
    made = use(sys.executable, tmp_path, {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert made["success"] is True and made["calls"] <= 2
    installers = ("_distutils_hack", "_virtualenv", "__editable__", "atlas_ray")
    there = {name for name in made["imported"] if not name.startswith(installers)}
    assert DIRECT <= there <= DIRECT | THROUGH


def documented():
    """The two commands of the page on installing."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*--no-deps.*\n(?:.*\n)+?)```$", page, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in re.sub(r"\\\n\s*", "", block).splitlines()]


def test_the_page_names_what_the_core_asks_of_these():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = {canonicalize_name(r.name): r for r in map(Requirement, project["dependencies"])}
    ours, theirs = documented()
    assert ours[:5] == ["python", "-m", "pip", "install", "--no-deps"] and len(ours) == 6
    named = [Requirement(word) for word in theirs[4:] if not word.startswith("-") and word != "requirements.lock"]
    assert {r.name: r.specifier for r in named} == {name: core[name].specifier for name in DIRECT | OF_COMMANDS}


def test_a_command_that_needs_more_says_what_to_install():
    told = of_light_install(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert isinstance(told, InputError) and str(told).endswith("pip install atlas-ray")
    for name in ("ray.data", "my_games", "vllm"):
        error = ModuleNotFoundError(name=name)
        assert of_light_install(error) is error
