"""Names of modules that have moved: they still work for this release, with a warning, also inside pickles of RLlib."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]
_ENVS = f"{_PACKAGE}.envs"
MOVED = {
    "agent_spec": "agents.spec",
    "chat": "agents.chat_agent",
    "collect": "stages.collect",
    "doctor_checks": "doctor.checks",
    "doctor_facts": "doctor.facts",
    "engines.http_line": "engines.http_transport",
    "engines.openai": "engines.chat_endpoint",
    "engines.patience": "engines.retry",
    "evaluation": "stages.evaluate",
    "exchange": "data.exchange",
    "exchange.agenttraj": "data.exchange.agenttraj",
    "exchange.items": "data.exchange.trajectories",
    "exchange.marks": "data.exchange.flags",
    "exchange.messages": "data.exchange.openai_messages",
    "exchange.runs": "data.exchange.runs",
    "exchange.talks": "data.exchange.conversations",
    "exchange.turns": "data.exchange.turns",
    "exchange.words": "data.exchange.verbatim",
    "fetch": "models.fetch",
    "files": "rundir.files",
    "flow": "agents.throughput",
    "home": "cluster.remote_rundir",
    "keeping": "storage.sync",
    "limits": "cluster.container",
    "logs": "rundir.logs",
    "parsing": "data.parsing",
    "pieces": "storage.snapshot",
    "progress": "rundir.progress",
    "records": "data.records",
    "rendering": "agents.rendering",
    "rendering_chat": "agents.rendering_chat",
    "report.replay": "report.episode_view",
    "resources": "cluster.resources",
    "results": "data.results",
    "rollout": "agents.rollout",
    "scheduling": "cluster.scheduling",
    "schema": "recipe.schema",
    "schema_base": "recipe.base",
    "schema_finetune": "recipe.finetune",
    "schema_select": "recipe.select",
    "schema_sweep": "recipe.sweep",
    "schema_switch": "recipe.switch",
    "selection.asking": "selection.oracle_stage",
    "selection.oracle_writer": "selection.chat_backend",
    "selection.scored": "selection.scored_stage",
    "selection.told": "selection.reply_counts",
    "serving.desk": "serving.sessions",
    "switching.answers": "switching.decision_cache",
    "switching.compare": "switching.policies",
    "switching.encoders": "models.encoders",
    "switching.replay": "switching.replay_buffer",
    "switching.text": "switching.text_game",
    "switching.usage": "switching.accounting",
    "switching.work": "switching.tasks",
    "tiny": "models.tiny",
    "toml_text": "recipe.toml_text",
    "tracking": "rundir.tracking",
    "workers": "cluster.workers",
}
"""Old name to new name, both behind ``atlas_ray.``."""


def forward(package: str, module: str) -> Callable[[str], Any]:
    """``__getattr__`` of a package that was a module: its names come from ``module``, with a warning.

    Args:
        package: full name of the package.
        module: the module in it that has them.
    """

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            found = getattr(import_module(f"{package}.{module}"), name)
        except AttributeError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        warnings.warn(f"{package}.{name} is now {package}.{module}.{name}", DeprecationWarning, stacklevel=2)
        return found

    return get


class _Alias(Loader):
    """Gives a module under its old name; there is one module, whatever it is called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import machinery put that of the old name there


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package == _PACKAGE and name in MOVED:
            new = f"{_PACKAGE}.{MOVED[name]}"
        elif package == "envs" and name and sys.modules.get("envs") is sys.modules.get(_ENVS, self):
            new = f"{_ENVS}.{name}"
        else:
            return None
        warnings.warn(f"{fullname} is now {new}", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Alias(new))


class _LastFinder(MetaPathFinder):
    """Serves ``envs`` where nobody else does, for pickles that are loaded away from the checkout."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "envs":
            return None
        warnings.warn(f"envs is now {_ENVS}", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Alias(_ENVS))


def install() -> None:
    """Let old names be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # an editable install looks into its own folder for any name
        if (Path(__file__).parent / "envs").is_symlink():  # a checkout
            sys.meta_path.append(_LastFinder())
