"""A run's export as a dataset on the hub, with a card: a real client against a hub on loopback."""

import hashlib
import json

import pytest
from exchange_records import BUY, record, refused, write
from hub_server import SECRET

from atlas_ray import pipeline
from atlas_ray.cli import main
from atlas_ray.data.exchange import import_annotations, push_run
from atlas_ray.data.hub import push
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.trajectory import read_annotations

TABLES = {"collect": {"success": True}, "select": {"selectors": ["random"], "fraction": 0.5}}


@pytest.fixture
def run(tmp_path):
    file = write(tmp_path / "walks.jsonl", record(BUY, BUY), record(BUY, BUY, BUY, BUY, item_id="b_1"))
    tables = {**TABLES, "collect": {**TABLES["collect"], "file": str(file)}}
    pipeline.run(Recipe.model_validate({"name": "x", "workers": 0, **tables}), tmp_path / "run", ("collect", "select"))
    return RunLayout(tmp_path / "run")


@pytest.fixture
def token(monkeypatch, hub):
    monkeypatch.setenv("HF_TOKEN", SECRET)


def exported(run, *more, selector="random", name="org/marked"):
    return main(["export", str(run.root), "--format", "agenttraj", "--selector", selector, "--push", name, *more])


def files(hub, name="org/marked"):
    return {path: data for path, data in hub.commits[name][-1][1].items() if path != ".gitattributes"}


@pytest.mark.usefixtures("token")
def test_an_export_is_pushed_with_its_card_to_a_private_dataset(hub, run, tmp_path, capsys):
    capsys.readouterr()
    assert exported(run) == 0
    assert f"{hub.url}/datasets/org/marked/commit/" in capsys.readouterr().out
    assert "org/marked" in hub.private
    made = files(hub)
    assert sorted(made) == ["README.md", "random.json"]
    card, digest = made["README.md"].decode(), hashlib.sha256(made["random.json"]).hexdigest()
    assert "3 of 6 (50.0 %), in 2 of 2 trajectories" in card and "`random`" in card and digest in card
    assert hashlib.sha256(run.expert.read_bytes()).hexdigest() in card
    assert hashlib.sha256(run.annotations("random").read_bytes()).hexdigest() in card
    assert "2 successes" in card and "data_files: random.json" in card
    recipe = json.loads(card.partition("````json\n")[2].partition("\n````")[0])
    assert recipe["select"]["fraction"] == 0.5 and recipe["collect"]["file"] == "(left out)/walks.jsonl"
    assert SECRET not in card and str(tmp_path) not in card
    marks = read_annotations(run.annotations("random"))
    assert [m.critical for m in import_annotations("hf://datasets/org/marked/random.json")] == [
        m.critical for m in marks
    ]


@pytest.mark.usefixtures("token")
def test_a_second_push_replaces_file_and_card_in_one_commit(hub, run, tmp_path):
    out = tmp_path / "out.json"
    assert exported(run, "--out", str(out)) == 0 and out.is_file()
    assert exported(run, "--out", str(out), selector="every-step") == 0
    assert sorted(files(hub)) == ["README.md", "out.json"]
    assert b"all 6, in 2 trajectories" in files(hub)["README.md"]
    assert len(hub.commits["org/marked"]) == 3, "the dataset, and a commit each"


@pytest.mark.usefixtures("token")
def test_a_public_dataset_takes_no_private_run(hub, run, capsys):
    hub.put("org/marked", {"README.md": b"---\nlicense: mit\n---\n"})
    assert exported(run) == 2
    assert "is a public dataset: give --public" in capsys.readouterr().err
    assert sorted(files(hub)) == ["README.md"]
    assert exported(run, "--public") == 0
    assert exported(run, "--public", name="org/open") == 0 and "org/open" not in hub.private


@pytest.mark.usefixtures("token")
def test_a_card_of_somebody_elses_is_not_lost(hub, run, capsys):
    hub.put("org/marked", {"README.md": b"---\nlicense: mit\n---\n# Mine\n"})
    hub.private.add("org/marked")
    assert exported(run) == 2
    assert "README.md of its own" in capsys.readouterr().err
    assert sorted(files(hub)) == ["README.md"]


def test_what_a_push_lacks_is_said_in_one_line_without_the_token(hub, run, capsys, monkeypatch):
    capsys.readouterr()
    for more, said in (((), "HF_TOKEN is not set"), (("--push", "marked"), "must be ORG/NAME, is 'marked'")):
        assert exported(run, *more) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line and "--push" in line
    plain = ["export", str(run.root), "--format", "agenttraj", "--selector", "random"]
    for more, said in (([], "--out"), (["--out", "x.json", "--public"], "--public")):
        assert main([*plain, *more]) == 2 and said in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_anothertokenaltogether")
    assert exported(run) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "hf_another" not in line and "answers 401" in line
    assert "org/marked" not in hub.commits


@pytest.mark.usefixtures("token")
def test_no_right_and_no_network(hub, run, tmp_path, monkeypatch):
    hub.locked.add("org")
    error = refused(push, "org/x", {"a": b"a"}, "m", "mark", False)
    assert "no right to do this (HF_TOKEN is set)" in error.message
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    out = tmp_path / "a.json"
    out.write_text("[]")
    error = refused(push_run, run.root, "random", "agenttraj", None, out, "org/x")
    assert error.code == "hub_failed" and "cannot be reached" in error.message
