"""Writes a package for verifiers over an environment of ours: ``atlas-ray env export verifiers ID --out DIR``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__, envs
from ..errors import InputError
from ..rundir.files import atomic_directory, write_text

VERIFIERS = "verifiers>=0.4,<0.5"
_EXTRAS = {
    "ScienceWorld": "science",
    "AgentGymSciWorld": "science",
    "TextWorldExpress": "science",
    "TextWorld": "textworld",
    "ALFWorld": "alfworld",
}

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
description = "{env} of atlas-ray as a taskset for verifiers"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["{verifiers}", "atlas-ray{extra}>={version}"{more}]

[tool.setuptools]
packages = ["{module}"]
"""

_INIT = '''\
"""{env} of atlas-ray as a taskset for verifiers; written by atlas-ray {version}."""

from typing import ClassVar

from atlas_ray.envs.verifiers_chat import ChatHarness
from atlas_ray.envs.verifiers_taskset import EpisodesTaskset, PlayEnv


class {prefix}Taskset(EpisodesTaskset):
    """The episodes of {env}."""

    env: ClassVar = {env!r}
    settings: ClassVar = {settings}
    split: ClassVar = {split!r}


__all__ = ["ChatHarness", "PlayEnv", "{prefix}Taskset"]
'''

_CHECK = '''\
"""Loads this package through verifiers and plays an episode of it, by the environment's expert where it has one."""

import sys

from atlas_ray.envs.verifiers_check import check

sys.exit(check({module!r}, {episodes}))
'''

_README = """\
# {name}

{env} of atlas-ray as a taskset for verifiers 0.4.

```
pip install .
python check.py
vf-eval {module} -m MODEL --client.base-url http://127.0.0.1:8000/v1 --select.limit 5 --push False
```

- A task is an episode, by its number{splits}.
- The environment speaks as the user, first with the goal; the model answers with one action a turn, in a line that
  begins with `Action:`. Where the environment lists its actions cheaply, they stand below what it says.
- The reward `score` is the environment's, 0 to 1; the metrics are `success` (1 only where the environment says so) and
  `steps`. An episode whose environment is lost is an error, not a failure.
- The player is a chat without tools, in verifiers' own process: one request of the model a turn.
- Settings of the environment: `--env.taskset.settings`, a JSON object.{needs}
"""


def export(name: str, settings: Mapping[str, Any], out: Path) -> str:
    """Write the package; its name.

    Args:
        name: of the environment, as for :func:`envs.make`.
        settings: of it; ``split`` is where its episodes come from, by default ``train`` where there is one.
        out: a directory that is not there, or is empty.

    Raises:
        InputError: there is something at ``out`` already.
        envs.UnknownEnvironmentError: no such environment, or one behind a protocol of others.
        ValueError: a setting is wrong.
    """
    full = envs.full_id(name)
    if adapter := envs.adapted(full):
        raise envs.UnknownEnvironmentError(f"{full} is of {adapter} already, and verifiers plays it without this")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is not empty: name a new directory", out, None, "--out")
    kind = envs.environment_class(full)
    own = {k: v for k, v in settings.items() if k != "split"}
    split = settings.get("split", "train" if "train" in kind.splits and not kind.unbounded_episodes else None)
    if split is not None and split not in kind.splits:
        raise ValueError(f"split: {full} has no split {split!r}; known: {', '.join(kind.splits) or 'none'}")
    for key, value in own.items():
        if not isinstance(value, str | int | float | bool):
            raise ValueError(f"{key}: {value!r} must be a text, a number or true or false")
    words = re.findall(r"[a-z0-9]+", re.sub(r"-v\d+$", "", full.rpartition(":")[2]).lower())
    package, module = "-".join(("atlas", *words)), "_".join(("atlas", *words))
    foreign = envs.foreign_module(full)
    extra = _EXTRAS.get(full.partition("/")[0]) if not foreign else None
    facts = {
        "name": package,
        "module": module,
        "env": full,
        "version": __version__,
        "verifiers": VERIFIERS,
        "extra": f"[{extra}]" if extra else "",
        "more": "",
        "prefix": "".join(word.capitalize() for word in words),
        "settings": _literal(own),
        "split": split,
        "episodes": 1,
        "splits": f", of the split `{split}` (`--env.taskset.split` takes another)" if split else "",
        "needs": f"\n- The module `{foreign}` is yours: it must be importable where this is played." if foreign else "",
    }
    with atomic_directory(out) as new:
        (new / module).mkdir()
        for path, text in (
            (new / "pyproject.toml", _PYPROJECT),
            (new / module / "__init__.py", _INIT),
            (new / "README.md", _README),
            (new / "check.py", _CHECK),
        ):
            write_text(path, text.format(**facts))
    return package


def _literal(settings: Mapping[str, Any]) -> str:
    """Settings as Python's own text."""
    return repr(json.loads(json.dumps(dict(settings))))
