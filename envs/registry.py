"""Which environments there are, which can run on this machine, and how one is made by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import gymnasium as gym

from .core import TextEnv, UnknownEnvironmentError
from .jvm_env import JvmEnv


@dataclass(frozen=True)
class Family:
    """Environments of one kind: ``NAME/TASK-v0``.

    ``tasks``, ``missing`` and ``runs`` must be quick and import nothing optional; ``missing`` says why the family
    cannot run here and how to change that, None when it can; ``runs`` tells of a task in a family that can.
    """

    name: str
    entry_point: str
    tasks: Callable[[], Sequence[str]]
    missing: Callable[[], str | None]
    runs: Callable[[str], bool] = lambda task: True

    def load(self) -> type[TextEnv]:
        """Its class."""
        return _load(self.entry_point)


@dataclass(frozen=True)
class Adapter:
    """Environments behind a protocol of others, ``KIND:WHAT``: any name of them, and no list."""

    entry_point: str
    full_id: Callable[[str], str]
    """Of a name as people write it; raises UnknownEnvironmentError."""


FAMILIES: dict[str, Family] = {}
_ADAPTERS: dict[str, Adapter] = {}
_GYMNASIUM = f"{__package__}.gymnasium_text:GymnasiumText"
_OLD = "envs"  # of this package, in names of an older version


def register(family: Family) -> None:
    """Add a family, each of its tasks with Gymnasium. Tasks carry their version: ``GoToLocal-v0``."""
    FAMILIES[family.name] = family
    for task in family.tasks():
        gym.register(f"{family.name}/{task}", entry_point=family.entry_point, kwargs={"task": task})


def register_adapter(kind: str, adapter: Adapter) -> None:
    """Add a protocol, whose environments are named ``KIND:WHAT``."""
    _ADAPTERS[kind] = adapter


def ids() -> list[str]:
    """Every registered id that can run on this machine now."""
    there = [f for f in FAMILIES.values() if f.missing() is None]
    return sorted(f"{f.name}/{task}" for f in there for task in f.tasks() if f.runs(task))


def missing() -> dict[str, str]:
    """Families that cannot run here, and why."""
    return {f.name: why for f in FAMILIES.values() if (why := f.missing()) is not None}


def full_id(name: str) -> str:
    """The registered id of a name as people write it.

    ``GoToLocal`` -> ``BabyAIText/GoToLocal-v0``, ``ScienceWorld/boil`` -> ``ScienceWorld/boil-v0``; an environment of
    one's own is named by its module, as Gymnasium does: ``my_games:Doors/Three-v0``.

    Raises:
        UnknownEnvironmentError: no such environment; the message names the nearest ones.
    """
    if adapter := adapted(name):
        return _ADAPTERS[adapter].full_id(name)
    module, _, rest = name.rpartition(":")
    if foreign_module(name):
        return _foreign(module, rest)
    if module == _OLD:
        warnings.warn(f"{name} is now {__package__}:{rest}", DeprecationWarning, stacklevel=2)
    family, task = _parts(rest)
    if family not in FAMILIES:
        raise UnknownEnvironmentError(f"no environment named {rest!r}{_near(family, FAMILIES)}")
    known = FAMILIES[family].tasks()
    if (found := _versioned(task, known)) is not None:
        return f"{family}/{found}"
    kind = "BabyAI level" if family == "BabyAIText" else f"{family} task"
    raise UnknownEnvironmentError(f"no {kind} named {task!r}{_near(task, [k.rsplit('-', 1)[0] for k in known])}")


def adapted(name: str) -> str:
    """Whose protocol an environment of this name is played in, ``openenv`` say; empty for one of Gymnasium."""
    kind, colon, _ = name.partition(":")
    return kind if colon and kind in _ADAPTERS else ""


def foreign_module(name: str) -> str:
    """The module that a name has Python import, empty for an environment of this package or behind a protocol."""
    module, _, rest = name.rpartition(":")
    if adapted(name):
        return ""
    if module == _OLD:
        family, task = _parts(rest)
        return "" if family in FAMILIES and _versioned(task, FAMILIES[family].tasks()) else module
    return "" if module == __package__ else module


def _parts(name: str) -> tuple[str, str]:
    family, slash, task = name.partition("/")
    return (family, task) if slash else ("BabyAIText", name)


def _versioned(task: str, known: Sequence[str]) -> str | None:
    return next((name for name in (task, f"{task}-v0", f"{task}-v1") if name in known), None)


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f"; did you mean {', '.join(near)}?" if near else f"; known are {', '.join(list(known)[:12])}"


def _foreign(module: str, rest: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UnknownEnvironmentError(f"{module}:{rest}: the module cannot be imported: {error}") from None
    if rest not in gym.registry:
        raise UnknownEnvironmentError(f"{module}:{rest}: the module registers no such id{_near(rest, gym.registry)}")
    return f"{module}:{rest}"


def _load(entry_point: str) -> Any:
    module, _, attribute = entry_point.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _entry(full: str) -> Any:
    """What makes a registered environment of a foreign module."""
    entry = gym.registry[full.rpartition(":")[2]].entry_point
    return gym.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry


def environment_class(name: str) -> type[TextEnv]:
    """The class behind a name: an adapter's for what is no :class:`TextEnv`.

    Raises:
        UnknownEnvironmentError: no such environment.
    """
    full = full_id(name)
    if adapter := adapted(full):
        return _load(_ADAPTERS[adapter].entry_point)
    if ":" not in full:
        return FAMILIES[full.partition("/")[0]].load()
    found = _entry(full)
    return found if isinstance(found, type) and issubclass(found, TextEnv) else _load(_GYMNASIUM)


def versions(name: str) -> dict[str, str]:
    """By what an environment is played, and in which version: ``{"scienceworld": "1.2.3"}``; empty where it has none.

    Raises:
        UnknownEnvironmentError: no such environment.
    """
    return environment_class(name).versions()


def arguments(name: str) -> dict[str, inspect.Parameter]:
    """Keyword arguments an environment takes besides its task, its split and its step limit."""
    cls = environment_class(name)
    parameters = dict(inspect.signature(cls.__init__).parameters)
    if cls.wraps:
        parameters = {**inspect.signature(_entry(full_id(name))).parameters, **parameters}
    hidden = ("self", "task", "split", "max_steps")
    return {k: p for k, p in parameters.items() if k not in hidden and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _check_types(cls: type[TextEnv], settings: Mapping[str, Any]) -> None:
    """Refuse a setting of another type than the environment's constructor names, as a recipe may hold any."""
    try:
        hints = get_type_hints(cls.__init__)
    except (NameError, TypeError):  # annotations of one's own environment may name what is imported for checkers only
        return
    for key, value in settings.items():
        if (hint := hints.get(key)) is not None and not _fits(value, hint):
            wanted = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint)
            raise ValueError(f"{key}: {value!r} is a {type(value).__name__}, it must be {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    kinds = get_args(hint) or (hint,)
    if not all(kind in (str, int, float, bool, Path, NoneType) for kind in kinds):
        return True
    taken = {float: (float, int), NoneType: (NoneType,)}
    return any(
        isinstance(value, taken.get(kind, (kind,))) and (kind is bool or not isinstance(value, bool)) for kind in kinds
    )


def make(name: str, **kwargs: Any) -> TextEnv:
    """The bare environment (no wrappers), cloneable: what roll-outs and selection use.

    Raises:
        UnknownEnvironmentError: no such environment.
        ValueError: it refuses a setting, or one is of another type.
        MissingExtraError: it cannot run here.
    """
    full = full_id(name)
    cls = environment_class(full)
    _check_types(cls, kwargs)
    if adapted(full) or cls.wraps:
        return cls(full, **kwargs)
    return cls(**{**gym.registry[full.rpartition(":")[2]].kwargs, **kwargs})


_idle: dict[tuple[Any, ...], list[TextEnv]] = {}
_idle_lock = threading.Lock()


def _key(name: str, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return (full_id(name), *sorted((k, repr(v)) for k, v in kwargs.items()))


def lease(name: str, **kwargs: Any) -> TextEnv:
    """Like :func:`make`, but takes one that :func:`release` kept, with the process behind it, where there is one.

    Where only others of its kind were kept, it goes on with what stands behind one of these.
    """
    key = _key(name, kwargs)
    with _idle_lock:
        idle = _idle.get(key)
        env = idle.pop() if idle else None
    if env is None:
        env = make(name, **kwargs)
        env.leased = key
    if isinstance(env, JvmEnv):
        with _idle_lock:
            env.take_over(other for kept in _idle.values() for other in kept)
    return env


def release(env: TextEnv) -> None:
    """Give back what :func:`lease` gave; any other environment is closed."""
    if env.reusable and env.leased is not None:
        with _idle_lock:
            _idle.setdefault(env.leased, []).append(env)
    else:
        env.close()


def drain() -> None:
    """Close what :func:`release` kept, and end the processes behind it."""
    with _idle_lock:
        kept = [env for idle in _idle.values() for env in idle]
        _idle.clear()
    for env in kept:
        env.close()
