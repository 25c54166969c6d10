"""Runs under `ray job submit`, on a head of our own with token authentication: what a user of a cluster does.

What is not slow is the first command of docs/jobs.md, as it stands there.
"""

import json
import re
import shlex
import subprocess
import sys
import time

import pytest
from ray_head import ROOT, Head

from atlas_ray.rundir.files import jsonl_rows, read_json
from atlas_ray.storage.sync import LEASE

SMALL = {
    "workers": "1",
    "collect.levels": "{ GoToLocalS5N2 = 6, PickupDist = 6 }",
    "select.selectors": '["all", "value"]',
    "select.rollouts": "1",
    "finetune.arms": '[{ selector = "all" }, { selector = "value" }]',
    "finetune.seeds": "[0]",
    "finetune.epochs": "1",
    "finetune.batch_size": "4",
    "finetune.parallel": "1",
    "evaluate.held_in": '["PickupDist"]',
    "evaluate.held_out": "[]",
    "evaluate.episodes": "10",
    "switch.levels": '["PickupDist"]',
    "switch.costs": "[]",
    "switch.steps": "600",
    "switch.random_episodes": "16",
    "switch.evaluate_every": "300",
    "switch.evaluate_episodes": "8",
    "switch.test_episodes": "8",
    "switch.baselines": '["random"]',
    "rounds.episodes": "4",
    "rounds.arms": '["calls"]',
    "rounds.switch_steps": "64",
    "rounds.judge_episodes": "4",
    "rounds.finetune.epochs": "1",
}

SMALLEST = {
    "workers": "0",  # each starts with torch and transformers
    "collect.levels": "{ GoToLocalS5N2 = 4 }",
    "select.selectors": '["all", "random"]',
    "finetune.arms": '[{ selector = "all" }]',
    "finetune.workers": "0",
    "evaluate.held_in": '["GoToLocalS5N2"]',
    "evaluate.episodes": "2",
    "switch.levels": '["GoToLocalS5N2"]',
    "switch.steps": "64",
    "switch.random_episodes": "16",
    "switch.evaluate_every": "64",
    "switch.evaluate_episodes": "2",
    "switch.test_episodes": "2",
    "switch.num_envs": "4",
    "rounds.episodes": "1",
    "rounds.judge_episodes": "1",
}


@pytest.fixture(scope="module")
def head():
    pytest.importorskip("aiohttp_cors", reason="needs the extra 'jobs'")
    made = Head()
    try:
        made.wait()
        yield made
    finally:
        made.close()


def first_command():
    """The first command of docs/jobs.md."""
    text = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
    return re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1].strip()


def test_the_first_command_of_the_docs_runs_as_it_stands(head, tmp_path):
    """Of it, only the port and the bucket are the test's, and a small run takes the demo's place."""
    command = first_command()
    assert "ray job submit" in command and "python -m atlas_ray run demo" in command
    for ours, theirs in (("http://127.0.0.1:8265", head.address), ("s3://BUCKET/runs", str(tmp_path))):
        assert ours in command
        command = command.replace(ours, theirs)
    plain_user = {k: v for k, v in head.environment.items() if k != "RAY_AUTH_MODE"}
    done = subprocess.run(
        f"{command} {shlex.join(small(**SMALLEST))}",
        shell=True,
        cwd=ROOT,
        env=plain_user,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in plain(done.stdout)
    assert (tmp_path / "demo" / "report.html").exists() and read_json(tmp_path / "demo" / LEASE)["ended"]


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (None, "`ray job` sends none: RAY_AUTH_MODE is not set"),
        pytest.param("token", "on", marks=pytest.mark.slow),
    ],
)
def test_doctor_says_where_a_head_and_its_clients_disagree(head, mode, said):
    plain_user = {k: v for k, v in head.environment.items() if k != "RAY_AUTH_MODE"}
    environment = {**plain_user, "RAY_ADDRESS": head.address, **({"RAY_AUTH_MODE": mode} if mode else {})}
    command = [sys.executable, "-m", "atlas_ray", "doctor", "--json"]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    line = next(each for each in json.loads(answer.stdout) if each["name"] == "token authentication")
    assert said in line["found"], line
    assert (line["state"] == "ok") == (mode == "token")


def small(**more):
    return [part for key, value in {**SMALL, **more}.items() for part in (f"--{key}", value)]


def plain(output):
    return re.sub(r"\x1b\[[0-9;]*m", "", output)


@pytest.mark.slow
def test_a_small_demo_runs_as_a_job_whose_logs_stream_and_whose_exit_code_is_the_pipelines(head, tmp_path):
    done = head.submit("run", "demo", "--storage", tmp_path, *small())
    output = plain(done.stdout)
    assert done.returncode == 0, output + done.stderr
    for number, stage in enumerate(
        ("collect", "select", "finetune", "evaluate", "switch", "rounds", "report"), start=1
    ):
        assert f"[{number}/7] {stage}" in output
    assert "succeeded" in output
    run = tmp_path / "demo"
    assert (run / "report.html").exists() and read_json(run / LEASE)["ended"]
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"all-s0", "value-s0", "switch-budget2-seed0"}

    again = head.submit("run", "demo", "--storage", tmp_path, *small())
    assert again.returncode == 0
    assert plain(again.stdout).count("already done") == 7, "the results are found on the storage"


@pytest.mark.slow
def test_bad_input_and_a_run_directory_that_would_be_thrown_away_end_the_job_with_2(head, tmp_path):
    bad = head.submit("run", "demo", "--select.fractoin", "0.2")
    assert bad.returncode == 1, "ray says 1 for any job that fails"
    assert "entrypoint command failed with exit code 2" in plain(bad.stdout), bad.stdout
    assert "--select.fractoin: unknown key; did you mean 'fraction'?" in plain(bad.stdout)
    lost = head.submit("run", "demo", *small())
    assert "entrypoint command failed with exit code 2" in plain(lost.stdout), lost.stdout
    assert "give --out a directory that stays, or --storage" in plain(lost.stdout)


@pytest.mark.slow
def test_without_the_token_nothing_can_be_submitted(head):
    for wrong in (None, "0" * 64):
        environment = dict(head.stranger)
        if wrong:
            environment["RAY_AUTH_TOKEN"] = wrong
        refused = head.submit("run", "demo", environment=environment, name=f"stranger{wrong}")
        assert refused.returncode
        assert "stranger" not in head.job("list").stdout


@pytest.mark.slow
def test_stop_ends_a_job_cleanly_and_a_resubmit_goes_on_from_the_storage(head, tmp_path):
    # a name of its own: jobs of the same code may share their copy of it
    more = ["--out", "runs/ended", *small(**{"evaluate.episodes": "400", "evaluate.held_out": '["GoToLocalS6N4"]'})]
    head.submit("run", "demo", "--storage", tmp_path, *more, wait=False, name="first")
    run = tmp_path / "ended"
    deadline = time.monotonic() + 200
    while "[4/7] evaluate" not in head.job("logs", "first").stdout:
        assert time.monotonic() < deadline, head.job("logs", "first").stdout
        time.sleep(1)
    time.sleep(8)
    asked = time.monotonic()
    assert head.job("stop", "first").returncode == 0
    seconds = time.monotonic() - asked
    said = plain(head.job("logs", "first").stdout)
    assert "atlas-ray: terminated; the same command goes on from here" in said, said
    assert "was stopped" in head.job("status", "first").stdout
    assert not actors(head), "they ended with it"
    assert read_json(run / LEASE)["ended"], "the last push was in time"
    before = list(jsonl_rows(run / "evaluation" / "episodes.jsonl"))
    assert (run / "evaluation" / "episodes.jsonl").read_bytes().endswith(b"\n")
    assert not list(run.rglob("*.tmp"))
    print(f"stopped in {seconds:.1f} s with {len(before)} episodes")

    done = head.submit("run", "demo", "--storage", tmp_path, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(jsonl_rows(run / "evaluation" / "episodes.jsonl"))
    assert rows[: len(before)] == before
    keys = [(r["model"], r["level"], r["seed"]) for r in rows]
    assert len(set(keys)) == len(keys) == 3 * 2 * 400
    assert "finetune: masked fine-tuning · already done" in plain(done.stdout)


def actors(head):
    """Names of the classes of the actors that live."""
    names = [row["class_name"] for row in head.actors()]
    return [name for name in names if name not in ("JobSupervisor", "_AutoscalingCoordinatorActor")]  # Ray's own
