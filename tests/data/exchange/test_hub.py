"""Trajectories from a dataset on the hub: a real client of it against one on loopback."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from exchange_records import BUY, record, refused
from hub_server import SECRET

from atlas_ray import pipeline
from atlas_ray.cli import main
from atlas_ray.data.exchange import check_there, import_agenttraj, import_file
from atlas_ray.data.hub import HubPath, hub_path
from atlas_ray.data.marked_run import read_marked_run
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import read_json, write_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.stages.paths import check_inputs
from atlas_ray.switching.logs import read_logs
from atlas_ray.trajectory import read_annotations, read_trajectories

NAME = "hf://datasets/org/walks"


def lines(*records):
    return "".join(json.dumps(r) + "\n" for r in records).encode()


def zstd(data):
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


def parquet(*records):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), sink)
    return sink.getvalue().to_pybytes()


def ids(run):
    return [t.id for t in read_trajectories(RunLayout(run).expert)]


def left_in(folder):
    return [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()] if folder.exists() else []


def test_names_of_files_on_the_hub():
    assert hub_path(f"{NAME}/data/a.json") == HubPath("org/walks", "data/a.json")
    assert hub_path(f"{NAME}@v1.0") == HubPath("org/walks", "", "v1.0")
    convert = hub_path(f"{NAME}@refs/convert/parquet/default/train/0.parquet")
    assert convert == HubPath("org/walks", "default/train/0.parquet", "refs/convert/parquet")
    assert str(convert) == f"{NAME}@refs/convert/parquet/default/train/0.parquet"
    for bad in (
        "hf://org/walks/a.json",
        "hf://datasets/walks",
        "hf://datasets/org/walks/../b",
        f"{NAME}//a",
        f"{NAME}@",
    ):
        assert "ORG/NAME/FILE" in refused(hub_path, bad).message


def test_every_packing_is_read_from_the_hub_and_its_bytes_are_recorded(hub, tmp_path):
    walk, text = record(BUY, item_id="a_1"), lines(record(BUY, item_id="a_1"))
    packed = {
        "a.jsonl": text,
        "b.json.gz": gzip.compress(json.dumps([walk]).encode()),
        "c.jsonl.zst": zstd(text),
        "d.parquet": parquet(walk),
    }
    commit = hub.put("org/walks", {f"data/{name}": data for name, data in packed.items()})
    hub.put("org/walks", {"data/a.jsonl": lines(record(item_id="later_1"))})
    for name, data in packed.items():
        file = f"{NAME}@{commit}/data/{name}"
        assert import_file(file, tmp_path / name) == 1
        assert ids(tmp_path / name) == ["a_1"]
        hashed = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert read_json(RunLayout(tmp_path / name).source) == {
            "file": file,
            "revision": commit,
            "files": {name: hashed},
        }
    assert [t.id for t in import_agenttraj(f"{NAME}/data/a.jsonl")] == ["later_1"]


def test_a_folder_of_a_dataset_is_read_as_one_of_this_machine(hub, tmp_path):
    one, two = lines(record(item_id="a_1")), zstd(lines(record(item_id="a_1")))
    hub.put("org/walks", {"README.md": b"# x", "b.jsonl.zst": two, "a.jsonl": one, ".x.json": b"?", "sub/c.json": b"?"})
    assert import_file(NAME, tmp_path / "run") == 2
    assert ids(tmp_path / "run") == ["a_1", "a_1#2"]
    assert list(read_json(RunLayout(tmp_path / "run").source)["files"]) == ["a.jsonl", "b.jsonl.zst"]
    hub.put("org/none", {"README.md": b"# x", "sub/c.json": one})
    assert "is a folder without" in refused(check_there, "hf://datasets/org/none").message
    assert import_file("hf://datasets/org/none/sub", tmp_path / "other") == 1


def test_a_private_dataset_is_read_with_the_token_of_the_environment(hub, tmp_path, monkeypatch):
    hub.put("org/walks", {"a.jsonl": lines(record(), record(item_id="b_2"))})
    hub.private.add("org/walks")
    error = refused(import_file, f"{NAME}/a.jsonl", tmp_path / "run")
    assert "no such dataset" in error.message and "HF_TOKEN is not set" in error.message
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert import_file(f"{NAME}/a.jsonl", tmp_path / "run") == 2
    assert {asked for _, _, asked in hub.requests} == {None, f"Bearer {SECRET}"}
    written = b"".join(path.read_bytes() for path in left_in(tmp_path / "run"))
    assert SECRET.encode() not in written
    hub.gated.add("org/walks")
    error = refused(check_there, f"{NAME}/a.jsonl")
    assert "is gated" in error.message and SECRET not in str(error)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("hf://datasets/org/nothing/a.jsonl", "no such dataset"),
        (f"{NAME}/b.jsonl", "no such file or folder"),
        (f"{NAME}@v9/a.jsonl", "has no revision 'v9'"),
        (f"{NAME}/cut.jsonl.gz", "gzip file that cannot be unpacked"),
        (f"{NAME}/cut.jsonl.zst", "zstd file that cannot be unpacked: Truncated"),
        (f"{NAME}/odd.jsonl.zst", "zstd file that cannot be unpacked"),
        (f"{NAME}/cut.parquet", "parquet file that cannot be read"),
        (f"{NAME}/a.zip", "is a zip archive"),
        (f"{NAME}/bad.jsonl", "loss"),
    ],
)
def test_what_cannot_be_read_is_named_as_it_was_asked_for(hub, tmp_path, capsys, file, message):
    text = lines(*(record(item_id=f"a_{n}") for n in range(50)))
    bad = record(item_id="b_1")
    bad["conversations"][3]["loss"] = "?"
    packed = zstd(text)
    files = {"a.jsonl": text, "cut.jsonl.gz": gzip.compress(text)[:-20], "cut.jsonl.zst": packed[:-20]}
    files |= {
        "odd.jsonl.zst": packed + b"and more",
        "cut.parquet": parquet(record())[:-9],
        "a.zip": b"PK\x03\x04",
        "bad.jsonl": b"",
    }
    files["bad.jsonl"] = lines(record(), bad)
    hub.put("org/walks", files)
    recipe = tmp_path / "x.toml"
    recipe.write_text(f'name = "x"\nworkers = 0\n[collect]\nfile = "{file}"\n')
    assert main(["collect", str(recipe), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said and file in said and str(tmp_path / "cache") not in said
    if "bad" in file:
        assert f"{file}:2: conversations[3].loss" in said
    assert not (tmp_path / "run" / "trajectories").exists()


def test_a_dry_run_copies_nothing(hub, tmp_path, capsys):
    hub.put("org/walks", {"a.jsonl": lines(record())})
    recipe = tmp_path / "x.toml"
    recipe.write_text(f'name = "x"\n[collect]\nfile = "{NAME}/a.jsonl"\n')
    assert main(["collect", str(recipe), "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["collect"]["file"] == f"{NAME}/a.jsonl"
    assert not left_in(tmp_path / "cache")


def test_a_download_that_is_cut_leaves_nothing_half_written(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.put("org/walks", {"a.jsonl": lines(*(record(item_id=f"a_{n}") for n in range(200)))})
    hub.cut = 2  # huggingface_hub begins again
    assert import_file(f"{NAME}/a.jsonl", tmp_path / "run") == 200
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "other"))
    hub.cut = 1
    monkeypatch.setattr("huggingface_hub.file_download.http_get", gone)
    error = refused(import_file, f"{NAME}/a.jsonl", tmp_path / "cut")
    assert error.code == "hub_failed" and error.exit_code == 2
    assert not (tmp_path / "cut").exists()
    assert not [path for path in left_in(tmp_path / "other") if path.suffix in (".jsonl", ".incomplete")]


def gone(url, temp_file, **_):
    """A connection that ends after some of the bytes, whatever is tried."""
    from huggingface_hub.errors import HTTPError

    temp_file.write(b'{"item_id"')
    raise HTTPError(f"peer closed connection, {url}?signature=abc")


def test_no_network_and_a_hub_that_fails(hub, tmp_path, monkeypatch):
    hub.put("org/walks", {"a.jsonl": lines(record())})
    hub.broken = 99
    error = refused(check_there, f"{NAME}/a.jsonl")
    assert "answers 500" in error.message and error.code == "hub_failed"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = refused(check_there, f"{NAME}/a.jsonl")
    assert "cannot be reached: Connect" in error.message and error.code == "hub_failed"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(check_there, f"{NAME}/a.jsonl").message


def recipe_of(file):
    return Recipe.model_validate({"name": "x", "workers": 0, "collect": {"file": file}})


def test_a_run_goes_on_with_the_commit_that_it_began_to_read(hub, tmp_path):
    first = hub.put("org/walks", {"a.jsonl": lines(record(item_id="old_1"))})
    run, recipe = tmp_path / "run", recipe_of(f"{NAME}/a.jsonl")
    pipeline.run(recipe, tmp_path / "begun", ("collect",))
    begun = read_json(RunLayout(tmp_path / "begun").source)
    assert begun["revision"] == first
    pipeline.open_run(recipe, run)
    write_json(RunLayout(run).source, begun)  # as a kill in the import leaves it
    hub.put("org/walks", {"a.jsonl": lines(record(item_id="new_1"))})
    pipeline.run(recipe, run, ("collect",))
    assert ids(run) == ["old_1"]
    hub.commits["org/walks"] = hub.commits["org/walks"][1:]  # its history was rewritten
    RunLayout(run).expert.unlink()
    assert first in refused(pipeline.run, recipe, run, ("collect",)).message
    asked = len(hub.requests)
    pipeline.run(recipe, tmp_path / "begun", ("collect",))
    assert len(hub.requests) == asked, "what is collected asks nothing of the hub"


def test_a_file_that_changed_under_a_killed_import_is_refused(tmp_path):
    file, run = tmp_path / "a.jsonl", tmp_path / "run"
    file.write_bytes(lines(record(item_id="old_1")))
    import_file(file, tmp_path / "begun")
    RunLayout(run).source.parent.mkdir(parents=True)
    RunLayout(run).source.write_bytes(RunLayout(tmp_path / "begun").source.read_bytes())
    file.write_bytes(lines(record(item_id="new_1")))
    error = refused(import_file, file, run)
    assert error.code == "other_data" and "a.jsonl holds other bytes" in error.message
    file.write_bytes(lines(record(item_id="old_1")))
    assert import_file(file, run) == 1 and ids(run) == ["old_1"]


def test_an_input_that_was_refused_may_be_mended(tmp_path):
    file, run = tmp_path / "a.jsonl", tmp_path / "run"
    file.write_bytes(b"{}\n")
    refused(import_file, file, run)
    file.write_bytes(lines(record()))
    assert import_file(file, run) == 1


KILLED = """
import os, signal, sys
from atlas_ray.data.exchange import import_file, runs
runs._check = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
import_file(sys.argv[1], sys.argv[2])
"""


def test_a_kill_leaves_the_note_of_what_was_read_and_no_trajectories(tmp_path):
    file, run = tmp_path / "a.jsonl", tmp_path / "run"
    file.write_bytes(lines(record()))
    done = subprocess.run([sys.executable, "-c", KILLED, str(file), str(run)], env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_json(RunLayout(run).source)["file"] == str(file)
    assert not RunLayout(run).expert.exists()
    assert import_file(file, run) == 1


def test_marks_pairs_and_logs_of_a_recipe_lie_on_the_hub_too(hub, tmp_path):
    steps = [{"observation": "x", "action": "a", "actor": who, "probability": 0.5} for who in ("quick", "deepthink")]
    about = {"id": "e", "env": "x", "task": "x", "seed": 0, "instruction": "go", "source": "x"}
    logged = {**about, "steps": steps, "score": None, "success": True}
    mark = {"trajectory_id": "a_1", "selector": "theirs", "fraction": 1.0, "critical": [0]}
    files = {"a.jsonl": lines(record(BUY, item_id="a_1")), "marks.jsonl": lines(mark), "logs/a.jsonl": lines(logged)}
    hub.put("org/walks", files)
    asked = {"name": "x", "workers": 0, "collect": {"file": f"{NAME}/a.jsonl"}}
    asked["select"] = {"selectors": ["mine"], "files": {"mine": f"{NAME}/marks.jsonl"}}
    pipeline.run(Recipe.model_validate(asked), tmp_path / "run", ("collect", "select"))
    (made,) = read_annotations(RunLayout(tmp_path / "run").annotations("mine"))
    assert (made.selector, made.critical) == ("mine", (0,))
    for place in (f"{NAME}/logs", f"{NAME}/logs/a.jsonl"):
        assert [e.id for e in read_logs([place], 2).episodes] == ["e"]
    hub.put("org/walks", {"logs/a.jsonl": lines({**logged, "steps": [{**steps[0], "actor": None}]})})
    assert str(refused(read_logs, [f"{NAME}/logs"], 2)).startswith(f"{NAME}/logs/a.jsonl:1: ")
    asked["finetune"] = {"arms": [{"selector": "own", "pairs": True}], "pairs": {"files": {"own": f"{NAME}/no.jsonl"}}}
    error = refused(check_inputs, Recipe.model_validate(asked))
    assert error.field == "finetune.pairs.files.own" and "no such file or folder" in error.message
    asked["select"]["files"]["mine"] = f"{NAME}/no.jsonl"
    assert refused(check_inputs, Recipe.model_validate(asked)).field == "select.files.mine"
    assert "no run" in refused(read_marked_run, f"{NAME}/value", "select.distilled.teacher").message
