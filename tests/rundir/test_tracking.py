"""Rows of metrics.jsonl reach each tracker once: beside other processes, after a kill, after a tracker's failure."""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import types

import pytest

from atlas_ray import pipeline
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir import tracking
from atlas_ray.rundir.files import RunLog, read_json, recover_jsonl

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(tracking, "_POLL_SECONDS", 0.02)


def follow(run_dir, *trackers):
    return tracking.follow(run_dir, trackers, "small", {"seed": 3})


def python(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def scalars(run_dir):
    """(tag, step, value) of every scalar, in order; every length and checksum must fit."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for path in sorted((run_dir / "tensorboard").iterdir()):
        assert "tfevents" in path.name
        data, versions = path.read_bytes(), []
        while data:
            (length, crc) = struct.unpack("<QI", data[:12])
            record, (end,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
            assert (crc, end) == (masked_crc32c(data[:8]), masked_crc32c(record))
            event = Event.FromString(record)
            versions.append(event.file_version)
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
        assert versions[0] == "brain.Event:2" and not any(versions[1:])
    return found


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


class FakeWandb(types.ModuleType):
    """What W&B is asked for; ``broken`` makes calls fail, with the key in the message as a careless one may."""

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.rows, self.axes, self.ends, self.broken = [], [], [], [], False
        self.online, self.starting_step = True, 0

    def Settings(self, **values):
        return values

    def init(self, **values):
        self.inits.append(values)
        self.starting_step = max((number + 1 for number, _ in self.rows), default=0) if self.online else 0
        return self

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, values, step, commit):
        if self.broken:
            raise OSError(f"no network\nfor {os.environ['WANDB_API_KEY']}")
        assert commit and step >= self.starting_step
        self.rows.append((step, values))

    def finish(self, exit_code):
        self.ends.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def test_rows_of_several_processes_arrive_whole_and_half_a_line_waits_for_its_rest(tmp_path):
    writer = """
import sys
from atlas_ray.rundir.files import RunLog
for step in range(200):
    RunLog(sys.argv[1]).metric("finetune", arm=sys.argv[2], seed=0, step=step, loss=step / 7, fast=True, note=None)
"""
    path = tmp_path / "metrics.jsonl"
    with follow(tmp_path, "tensorboard"):
        writers = [python(writer, tmp_path, arm) for arm in ("all", "value+anchor0.5")]
        assert [w.wait() for w in writers] == [0, 0]
        with path.open("a") as file:
            file.write('{"stage": "select", "selec')
            file.flush()
            time.sleep(0.2)
            file.write('tor": "value", "flat": 1}\n{"stage": "select", "selector": "val')
    found = scalars(tmp_path)
    for arm in ("all", "value+anchor0.5"):
        tag = f"finetune/loss/{arm}/s0"
        assert [v for v in found if v[0] == tag] == [(tag, step, float32(step / 7)) for step in range(200)]
    assert found[400:] == [("select/flat/value", 0, 1.0)]
    with path.open("a") as file:
        file.write('ue", "flat": 2}\n')
    # a resumed run would cut half a line; this one is whole by now
    with follow(tmp_path, "tensorboard"):
        pass
    assert scalars(tmp_path)[401:] == [("select/flat/value", 1, 2.0)]
    assert not (tmp_path / "events.jsonl").exists()


ROWS = [
    {"stage": "pipeline", "name": "collect", "seconds": 1.5},
    {"stage": "finetune", "arm": "all", "seed": 0, "step": 1, "loss": 0.5, "trained_tokens": 10},
    {"stage": "finetune", "arm": "all", "seed": 1, "step": 1, "loss": 0.25, "trained_tokens": 11},
    {"stage": "evaluate", "episodes": 3},
    {"stage": "evaluate", "model": "all", "flags": [1, 2]},
    {"stage": "pipeline", "name": "collect", "seconds": 0.5},
    {"stage": "evaluate", "episodes": 4},
    {"stage": "finetune", "arm": "all", "seed": 0, "step": 2, "loss": 0.125, "trained_tokens": 20},
]
POINTS = [
    ("pipeline/seconds/collect", 0, 1.5),
    ("finetune/loss/all/s0", 1, 0.5),
    ("finetune/trained_tokens/all/s0", 1, 10.0),
    ("finetune/loss/all/s1", 1, 0.25),
    ("finetune/trained_tokens/all/s1", 1, 11.0),
    ("evaluate/episodes", 0, 3.0),
    ("pipeline/seconds/collect", 1, 0.5),
    ("evaluate/episodes", 1, 4.0),
    ("finetune/loss/all/s0", 2, 0.125),
    ("finetune/trained_tokens/all/s0", 2, 20.0),
]
KILLED = """
import json, os, signal, sys, time
from pathlib import Path
from atlas_ray.rundir import tracking
from atlas_ray.rundir.files import RunLog, read_json
run_dir, rows = Path(sys.argv[1]), json.loads(sys.argv[2])
signal.alarm(60)
tracking._POLL_SECONDS, real, doomed = 0.02, tracking.write_json, []
def write_json(path, value):
    if doomed:  # the rows are on disk, that they are is not
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "sel')
        with max((run_dir / "tensorboard").iterdir()).open("ab") as file:
            file.write(b"half a record")
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, value)
tracking.write_json = write_json
with tracking.follow(run_dir, ["tensorboard"], "small", {}):
    for row in rows:
        if row == rows[-1]:
            doomed.append(row)
        RunLog(run_dir).metric(**row)
        size = (run_dir / "metrics.jsonl").stat().st_size
        while read_json(run_dir / ".tracked.json")["tensorboard"]["offset"] < size:
            time.sleep(0.01)
"""


@pytest.mark.slow  # (the one above says what is taken up again)
def test_a_run_killed_again_and_again_sends_what_an_unbroken_one_sends(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    with follow(whole, "tensorboard"):
        for row in ROWS:
            RunLog(whole).metric(**row)
    assert scalars(whole) == POINTS
    # killed before anything is remembered, and after some of it is; the last row each time is sent and not remembered
    for rows, lines in ((ROWS[:1], 2), (ROWS[1:4], 5)):
        assert python(KILLED, broken, json.dumps(rows)).wait() == -signal.SIGKILL
        assert len((broken / "metrics.jsonl").read_bytes().splitlines()) == lines
    with follow(broken, "tensorboard"):
        for row in ROWS[4:]:
            RunLog(broken).metric(**row)
    assert recover_jsonl(broken / "metrics.jsonl") == ROWS
    assert scalars(broken) == POINTS
    with follow(broken, "tensorboard"):
        pass
    assert scalars(broken) == POINTS


def test_wandb_is_one_run_over_all_resumes_and_never_sees_two_rows_of_one_number(tmp_path, wandb, capsys):
    for rows in (ROWS[:4], ROWS[4:]):
        with follow(tmp_path, "wandb"):
            for row in rows:
                RunLog(tmp_path).metric(**row)
    assert [number for number, _ in wandb.rows] == [1, 2, 3, 4, 6, 7, 8], "the row without numbers is left out"
    sent = [(tag, v) for _, row in wandb.rows for tag, v in row.items() if not tag.endswith("/step")]
    assert sent == [(tag, value) for tag, _, value in POINTS]
    assert [row.get("finetune/step") for _, row in wandb.rows] == [None, 1, 1, None, None, None, 2]
    assert wandb.axes[:2] == [("pipeline/*", "pipeline/step"), ("finetune/*", "finetune/step")]
    first, second = wandb.inits
    assert first == second
    assert first["id"] == read_json(tmp_path / ".tracked.json")["wandb"]["id"]
    assert (first["name"], first["config"], first["resume"]) == ("small", {"seed": 3}, "allow")
    assert (first["dir"], first["project"]) == (str(tmp_path), "atlas-ray")
    assert wandb.ends == [0, 0]
    assert not any(KEY in p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert KEY not in repr(wandb.inits) + capsys.readouterr().out


@pytest.mark.parametrize("online", [True, False])
def test_what_wandb_lost_with_a_killed_process_is_sent_again(tmp_path, wandb, online):
    def killed(exit_code):
        raise TimeoutError("still uploading")

    wandb.online, wandb.finish = online, killed
    with follow(tmp_path, "wandb"):
        for row in ROWS[:4]:
            RunLog(tmp_path).metric(**row)
    del wandb.rows[2:], wandb.finish
    with follow(tmp_path, "wandb"):
        for row in ROWS[4:]:
            RunLog(tmp_path).metric(**row)
    again = [] if online else [1, 2]
    assert [number for number, _ in wandb.rows] == [1, 2, *again, 3, 4, 6, 7, 8]


def test_what_is_left_is_sent_when_the_block_fails(tmp_path, wandb):
    def block():
        with follow(tmp_path, "tensorboard", "wandb"):
            RunLog(tmp_path).metric("select", selector="value", flat=2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()
    assert scalars(tmp_path) == [("select/flat/value", 0, 2.0)]
    assert wandb.rows == [(1, {"select/flat/value": 2.0, "select/step": 0})]
    assert wandb.ends == [1]


def test_a_tracker_that_fails_is_said_once_and_catches_up_when_the_run_is_resumed(tmp_path, wandb, capsys):
    sent = threading.Event()
    log, wandb.log = wandb.log, lambda *row, **more: (log(*row, **more), sent.set())
    with follow(tmp_path, "wandb", "tensorboard"):
        RunLog(tmp_path).metric(**ROWS[0])
        assert sent.wait(30)
        wandb.broken = True
        for row in ROWS[1:]:
            RunLog(tmp_path).metric(**row)
    said = capsys.readouterr().out
    assert said.count("wandb FAILED, the run goes on without it: OSError: no network for (key)") == 1
    (event,) = recover_jsonl(tmp_path / "events.jsonl")
    why = "OSError: no network for (key)"
    assert event == {"stage": "tracking", "event": "tracker failed", "tracker": "wandb", "why": why}
    assert scalars(tmp_path) == POINTS, "the other one misses nothing"
    wandb.broken = False
    for _ in range(2):
        with follow(tmp_path, "wandb", "tensorboard"):
            pass
    assert len(wandb.inits) == 2, "all is sent, so the third time nobody is asked"
    assert [number for number, _ in wandb.rows] == [1, 2, 3, 4, 6, 7, 8]
    assert scalars(tmp_path) == POINTS


def test_a_full_disk_costs_the_event_files_only(tmp_path, capsys):
    path = tmp_path / "tensorboard" / "events.out.tfevents.000000000000"
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    with follow(tmp_path, "tensorboard"):
        RunLog(tmp_path).metric(**ROWS[0])
    assert capsys.readouterr().out.count("tensorboard FAILED, the run goes on without it: OSError: [Errno 28]") == 1
    assert [e["event"] for e in recover_jsonl(tmp_path / "events.jsonl")] == ["tracker failed"]
    path.unlink()
    with follow(tmp_path, "tensorboard"):
        pass
    assert scalars(tmp_path) == POINTS[:1]


def test_a_broken_line_is_noted_and_the_rest_is_sent(tmp_path):
    with follow(tmp_path, "tensorboard"):
        RunLog(tmp_path).metric(**ROWS[0])
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "fi{"stage": "finetune"}\n')
        RunLog(tmp_path).metric(**ROWS[3])
    assert scalars(tmp_path) == [POINTS[0], POINTS[5]]
    (event,) = recover_jsonl(tmp_path / "events.jsonl")
    assert (event["event"], event["row"]) == ("dropped", 2)


@pytest.mark.parametrize("missing", ["package", "key"])
def test_wandb_that_cannot_be_had_is_refused_before_anything_is_written(tmp_path, wandb, monkeypatch, missing):
    recipe = Recipe.model_validate({"name": "small", "trackers": ["wandb"], "collect": {"levels": {"GoToObjS4": 1}}})
    if missing == "package":
        monkeypatch.setitem(sys.modules, "wandb", None)
        why = r"trackers: wandb is not installed: pip install 'atlas-ray\[track\]'"
    else:
        monkeypatch.delenv("WANDB_API_KEY")
        why = "trackers: wandb has no key: set WANDB_API_KEY, or WANDB_MODE=offline"
    with pytest.raises(InputError, match=why):
        pipeline.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_offline_wandb_needs_no_key_and_a_folder_of_its_name_is_not_it(tmp_path, wandb, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking.check(["wandb"])
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(InputError, match="wandb is not installed"):
        tracking.check(["wandb"])


def test_the_pipeline_forwards_what_its_stages_note(tmp_path):
    recipe = {"name": "small", "workers": 0, "trackers": ["tensorboard"], "collect": {"levels": {"GoToObjS4": 2}}}
    pipeline.run(Recipe.model_validate(recipe), tmp_path / "run")
    rows = recover_jsonl(tmp_path / "run" / "metrics.jsonl")
    (last,) = (row for row in rows if row["stage"] == "pipeline")
    assert scalars(tmp_path / "run")[-1] == ("pipeline/seconds/collect", 0, float32(last["seconds"]))
    assert (tmp_path / "run" / ".tracked.json").is_file()


def test_no_tracker_that_is_not_named_is_imported(tmp_path):
    code = """
import sys
from pathlib import Path
from atlas_ray.rundir import tracking
with tracking.follow(Path(sys.argv[1]), sys.argv[2:], "small", {}):
    print("tensorboardX" in sys.modules)
"""
    for trackers in ([], ["tensorboard"]):
        out, _ = python(code, tmp_path, *trackers).communicate()
        assert out == f"{bool(trackers)}\n"
        assert (tmp_path / ".tracked.json").exists() == bool(trackers)
