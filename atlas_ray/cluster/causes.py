"""The real cause of an error that went through other people's code: RLlib, Ray Train, Ray's actors and Tune.

They wrap what they catch, in chains, in attributes of their own or as mere text, and some of it has no text at all.
"""

from __future__ import annotations

import pickle
import re
import traceback
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires

from .. import errors
from ..errors import AtlasError, EndpointError, InputError, WorkerFailedError
from ..ray_private import caught_by

_LINE = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Timeout)): (\S.*)$", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LOST = {"ActorDiedError", "ActorUnavailableError", "LocalRayletDiedError", "NodeDiedError", "ObjectLostError"}
_LOST |= {"OutOfMemoryError", "OwnerDiedError", "RaySystemError", "WorkerCrashedError"}


def culprit(error: BaseException) -> BaseException:
    """What a user has to know of an error: the first of ours in its chain, else what the chain began with."""
    chain = list(_chain(error, set()))
    for each in chain:
        if isinstance(each, AtlasError) and not _wraps(each):
            return each
    told = [found for each in chain if (found := _of_text(each))]
    for each in told:
        if type(each) is not AtlasError:
            return each
    deepest = _deepest(error)
    return told[-1] if told and _of_ray(deepest) else deepest


def of_light_install(error: BaseException) -> BaseException:
    """An error, or what to say in its place where a package of the core is not here, as in a light install."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        with suppress(PackageNotFoundError):
            asked = [text for text in requires("atlas-ray") or [] if "extra ==" not in text]
            if error.name in {re.split(r"[^\w-]", text)[0] for text in asked}:
                return InputError(f"{error.name} is not installed, and this command needs it: pip install atlas-ray")
    return error


def described(error: BaseException) -> str:
    """One line that is never empty: the text of one of our errors, else the type too."""
    said = " ".join(_COLOUR.sub("", str(error)).split())
    if isinstance(error, AtlasError) and said:
        return said
    name = type(error).__name__
    if said:
        return f"{name}: {said}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{name} without a text" + (f", raised in {frames[-1].filename}:{frames[-1].lineno}" if frames else "")


def portable(error: BaseException) -> BaseException:
    """The :func:`culprit`, so that it reaches another process as it is: pickled, an error loses its chain."""
    found = culprit(error)
    try:
        again = pickle.loads(pickle.dumps(found))  # noqa: S301
        if type(again) is type(found) and str(again) == str(found) and str(found).strip():
            return found
    except Exception:  # noqa: S110 - whatever its own class makes of it
        pass
    return AtlasError(described(found))


def passes(error: BaseException) -> bool:
    """Whether the cause may be gone when the same command is run again: a server, a worker or a node was lost."""
    if isinstance(error, EndpointError):
        return getattr(error, "kind", "") in ("", "error")
    if isinstance(error, WorkerFailedError | ConnectionError | TimeoutError):
        return True
    return _of_ray(error) and type(error).__name__ in _LOST


def _inner(error: BaseException) -> list[BaseException]:
    """What an error says itself that it comes from."""
    found = caught_by(error)
    found += list(error.exceptions) if isinstance(error, BaseExceptionGroup) else []
    return found if error.__cause__ is None else [*found, error.__cause__]


def _chain(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    """An error and all behind it, the outermost first."""
    if id(error) in seen:
        return
    seen.add(id(error))
    yield error
    for each in _inner(error):
        yield from _chain(each, seen)
    if error.__context__ is not None and not error.__suppress_context__:
        yield from _chain(error.__context__, seen)


def _deepest(error: BaseException) -> BaseException:
    """Where a chain of other people's errors began; what was only at hand when an error with a text arose is not it."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        behind = _inner(error)
        if not behind and not str(error).strip() and not error.__suppress_context__ and error.__context__:
            behind = [error.__context__]
        error = behind[0] if behind else error
    return error


def _wraps(error: BaseException) -> bool:
    """Whether it is one of Ray's that has become a subclass of what it wraps."""
    return isinstance(getattr(error, "cause", None), BaseException)


def _of_ray(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] == "ray"


def _of_text(error: BaseException) -> AtlasError | None:
    """The error whose traceback is the text of one of Ray's; a chain's traceback begins with the innermost."""
    if not _of_ray(error):
        return None
    lines = _LINE.findall(_COLOUR.sub("", str(error)))
    for name, text in lines:
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, AtlasError):
            return kind(text)
    return AtlasError(": ".join(lines[0])) if lines else None
