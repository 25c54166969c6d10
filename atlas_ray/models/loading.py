"""Models by name: the two that ship with the package, one that was fetched, a directory, or a Hugging Face id."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from ..cluster.remote_rundir import driver_path
from ..errors import InputError
from ..rundir import logs
from ..rundir.files import read_json
from ..rundir.layout import CHECKPOINT_RECORD
from .config import longest, read_config
from .fetch import fetched, known

SHIPPED = ("tiny-quick", "tiny-deepthink")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ADAPTER, _BASE = "adapter_config.json", "base_model_name_or_path"


def resolve(name: str) -> str:
    """What ``from_pretrained`` takes for ``name``.

    A name that looks like a path is never taken for a hub id: one that begins with ``.``, ``~`` or ``/``, has more than
    one slash, or whose folder is here while the hub's cache has no model of that id.

    Raises:
        InputError: neither a shipped name nor a fetched one nor a directory with a model nor a hub id.
    """
    if name in SHIPPED:
        return str(resources.files("atlas_ray") / "weights" / name)
    if name in known():
        fetched_to = fetched(name)
        if fetched_to is None:
            raise InputError(f"is not on this machine yet: atlas-ray models fetch {name}", name)
        return str(fetched_to)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / _ADAPTER).is_file():
            raise InputError("is no model directory: it has no config.json", path)
        if not list(path.glob("*.safetensors")):
            raise InputError("is a model directory without weights: it has no *.safetensors", path)
        adapted(name)
        return str(path)
    if path.exists():
        raise InputError("is a file: a model is a directory with config.json and *.safetensors", path)
    if name in ("", ".", "..") or name.startswith(("/", "./", "../", "~")) or name.endswith("/") or name.count("/") > 1:
        raise InputError(f"there is no such directory (looked for {path.absolute()})", name)
    if not _HUB_ID.fullmatch(name):
        raise InputError(
            f"no model of that name; shipped are {', '.join(SHIPPED)}, to be fetched {', '.join(known())}, "
            f"else give a directory (looked for {path.absolute()}) or a hub id",
            name,
        )
    if path.parent.is_dir() and not _cached(name):
        raise InputError(
            f"there is no such directory in {path.parent.absolute()}; if the hub's model of that id is meant, start "
            f"where no folder is called {path.parent}",
            name,
        )
    return name


def look(name: str, field: str) -> Any:
    """The configuration of a model that can be had, with its bases if it is an adapter; no weights are read.

    Raises:
        InputError: it cannot; names ``field`` of the recipe.
    """
    try:
        return load_config(name)
    except InputError as error:
        raise InputError(str(error), field=field) from None


def adapted(name: str) -> str | None:
    """The base of an adapter's directory, as :func:`resolve` takes it; None when ``name`` is no such directory.

    The base is what the adapter's configuration names: a shipped or fetched name, a hub id, or a directory. A relative
    directory is one beside the adapter, never one of the working directory; where this package has noted what the base
    held (:func:`note_base`), it is also looked for under its name from the working directory and above the adapter, and
    only a directory with that content is taken.

    Raises:
        InputError: the configuration is broken, or its base is not here; says where it was looked for.
    """
    directory = Path(name).expanduser()
    if not (directory / _ADAPTER).is_file():
        return None
    base, noted = _base_name(directory), _noted(directory)
    if base in SHIPPED or base in known():
        return base
    if Path(base).parts[-3:-1] == ("atlas_ray", "weights") and Path(base).name in SHIPPED:
        return Path(base).name  # older adapters name the place of the package that made them
    looked = list(dict.fromkeys(_candidates(directory, base, noted)))
    there = [place for place in looked if place.is_dir()]
    found = next((place for place in there if "sha256" not in noted or fingerprint(place) == noted["sha256"]), None)
    if found is not None:
        return str(found)
    if "sha256" not in noted and _HUB_ID.fullmatch(base):
        if not Path(base).is_dir():
            return base
        raise InputError(
            f"{base} is meant from the hub, and the directory {Path(base).absolute()} would be taken: start elsewhere",
            directory / _ADAPTER,
            None,
            _BASE,
        )
    other = f"; {there[0]} holds another model" if there else ""
    raise InputError(
        f"the base of this adapter, {base}, is not here: looked for {', '.join(map(str, looked))}{other}. Bring it to "
        "one of these places, or write into this field where it is",
        directory / _ADAPTER,
        None,
        _BASE,
    )


def _base_name(directory: Path) -> str:
    """What the configuration of an adapter names as its base."""
    config = adapter_config(directory)
    base = config.get(_BASE)
    if not isinstance(base, str) or not base.strip():
        why = "is missing" if _BASE not in config else f"must name a model, is {base!r}"
        raise InputError(f"{why}: write the adapter's base here", directory / _ADAPTER, None, _BASE)
    return base.strip()


def adapter_config(directory: str | Path) -> dict[str, Any]:
    """The configuration of an adapter.

    Raises:
        InputError: it is no JSON object.
    """
    path = Path(directory) / _ADAPTER
    try:
        config = read_json(path)
    except ValueError as error:  # (also of bytes that are no UTF-8)
        raise InputError(f"is no JSON: {error}", path) from None
    if not isinstance(config, dict):
        raise InputError("must be a JSON object, the configuration of an adapter", path)
    return config


def _noted(directory: Path) -> dict[str, str]:
    """What :func:`note_base` gave when this adapter was trained; nothing for adapters of others."""
    try:
        base = read_json(directory / CHECKPOINT_RECORD)["base"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return base if isinstance(base, dict) else {}


def _candidates(directory: Path, base: str, noted: dict[str, str]) -> Iterator[Path]:
    """Where the base of an adapter may lie if it is a directory, the likeliest first."""
    if "name" in noted and "sha256" not in noted:
        return  # it is none
    homes = list(dict.fromkeys([directory.resolve(), driver_path(directory.resolve())]))
    yield from ((home / base).resolve() for home in homes)
    name = Path(noted.get("name", base)).expanduser()
    if noted:
        yield name.resolve()
    # a run was mostly begun in a folder above it, and that is all that older ones say
    if (directory / CHECKPOINT_RECORD).is_file() and not name.is_absolute():
        yield from ((above / name).resolve() for home in homes for above in list(home.parents)[2:-1])


def note_base(name: str) -> dict[str, str]:
    """What to keep of a base beside what is made of it: its name, and of a directory what tells it from another."""
    if name in SHIPPED or name in known() or not Path(name).expanduser().is_dir():
        return {"name": name}
    return {"name": name, "sha256": fingerprint(Path(name).expanduser())}


def base_from(name: str, directory: Path) -> str:
    """How an adapter in ``directory`` names its base, so that it is found on another machine too.

    Names and hub ids stay as they are; a directory becomes a path relative to the adapter.
    """
    if name in SHIPPED or name in known() or not Path(name).expanduser().is_dir():
        return name
    way = os.path.relpath(Path(name).expanduser().resolve(), driver_path(directory.resolve()))
    return way if way.startswith(os.pardir) else f"{os.curdir}{os.sep}{way}"


def whole(name: str) -> str:
    """The model under all adapters, as ``from_pretrained`` takes it."""
    seen = [name]
    while (base := adapted(seen[-1])) is not None:
        if base in seen:
            raise InputError("is its own base", Path(base) / _ADAPTER, None, _BASE)
        seen.append(base)
    return resolve(seen[-1])


def load_config(name: str) -> Any:
    """The configuration of a model, that of its base where it is an adapter. See :mod:`atlas_ray.models.config`."""
    place = whole(name)
    with _clear(name):
        return read_config(place)


def parameters(name: str) -> int:
    """Number of weights of a model, of an adapter those of its base; no weights are read."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(name))
    return sum(p.numel() for p in model.parameters())


def load_model(name: str, dtype: Any = None) -> Any:
    """A causal LM; safetensors only, no foreign code. Adapters are merged into their base.

    Args:
        name: as :func:`resolve` takes it.
        dtype: of the weights; by default float32 on a CPU and the model's own on a GPU.

    Raises:
        InputError: it cannot be had, or is no causal LM.
    """
    import torch
    from transformers import AutoModelForCausalLM

    logs.capture_transformers()
    dtype = dtype or ("auto" if torch.cuda.is_available() else torch.float32)
    place, base = resolve(name), adapted(name)
    if base is None:
        with _clear(name):
            config = read_config(place)
            return AutoModelForCausalLM.from_pretrained(place, config=config, dtype=dtype, use_safetensors=True)
    whole(name)  # (no circle)
    model = load_model(base, dtype)
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, place, use_safetensors=True).merge_and_unload()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"is no adapter that can be merged into {base}: {_line(error)}", name) from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model; an adapter's directory may have none of its own.

    Raises:
        InputError: it cannot be had.
    """
    logs.capture_transformers()
    place, base = resolve(name), adapted(name)
    if base is not None and not (Path(place) / "tokenizer_config.json").is_file():
        return load_tokenizer(base)
    with _clear(name):
        if _says_its_own_class(Path(place)):
            from transformers import TokenizersBackend

            return TokenizersBackend.from_pretrained(place)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(place, config=None if base else read_config(place))


def _says_its_own_class(place: Path) -> bool:
    """Whether a tokenizer is of the plain class by its own word.

    Then ``AutoTokenizer`` would give the same, but imports torch and all of generation first: three seconds in every
    process that holds no model.
    """
    try:
        said = read_json(place / "tokenizer_config.json")
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("tokenizer_class") == "TokenizersBackend"


def context_of(model: Any, asked: int | None = None, field: str = "engine.context") -> int:
    """Most tokens that a loaded model takes, or ``asked`` where its configuration states none.

    Raises:
        InputError: neither is known; names ``field`` of the recipe.
    """
    return longest(model.config, asked, field)


def fingerprint(directory: Path) -> str:
    """SHA-256 over the weights of a model or adapter; of a large file over 64 pieces of a MiB, evenly spread."""
    pieces, size = 64, 1 << 20
    hashed = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        length = path.stat().st_size
        hashed.update(f"{path.name} {length} ".encode())
        with path.open("rb") as file:
            for offset in range(0, length, max(size, (length - size) // (pieces - 1))):
                file.seek(offset)
                hashed.update(file.read(size))
    return hashed.hexdigest()


def _cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in ("config.json", _ADAPTER))


@contextmanager
def _clear(name: str) -> Iterator[None]:
    """What transformers says of a model that it cannot load, in one line that names it."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, ImportError, StrictDataclassError) as error:
        if isinstance(error, InputError):
            raise
        where = "" if Path(name).expanduser().is_dir() else "; it is no directory here, so it was asked of the hub"
        raise InputError(f"cannot be loaded: {_line(error)}{where}", name) from error


def _line(error: BaseException) -> str:
    """The first line, and the next where that only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
