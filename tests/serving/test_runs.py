"""What of a run can be served, and the command that does it."""

import contextlib
import logging
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serving_sessions import HOST, ask, begin, play_over, rule, switch
from switch_models import LEVELS, SHAPES, model

from atlas_ray import cli
from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import read_json, write_json
from atlas_ray.serving import ActRequest, app, open_sessions
from atlas_ray.serving.app import GRACE, listen
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.features import EXTRA


@pytest.fixture
def run(tmp_path):
    """A run with two switches and a tuned model, as the stages leave them."""
    folders = {}
    for name in SHAPES:
        folders[name] = tmp_path / name
        model(name).save_pretrained(folders[name])
        build_tokenizer().save_pretrained(folders[name])
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "num_envs": 3,
            "style": "action",
            "switch": {
                "models": [str(f) for f in folders.values()],
                "levels": LEVELS,
                "num_envs": 5,
                "budgets": [1, 2],
            },
        }
    )
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "recipe.resolved.json", recipe.model_dump(mode="json"))
    for budget in (1, 2):
        switch(budget, signals=()).save(run / "checkpoints" / f"switch-budget{budget}-seed0")
    tuned = run / "checkpoints" / "all-s0"
    model("quick").save_pretrained(tuned)
    build_tokenizer().save_pretrained(tuned)
    write_json(tuned / "run.json", {})
    (run / "checkpoints" / "half-s0").mkdir()
    write_json(run / "checkpoints" / "half-s0" / "config.json", {})
    return run


def test_switches_tuned_models_and_the_switchs_own_models_can_be_served(run):
    now = ActRequest("you see a red ball 1 step forward", ["go forward", "turn left"])
    shapes = {}
    for name in ("switch-budget2-seed0", "all-s0", "always-quick", "always-deepthink"):
        with open_sessions(run, name) as sessions:
            key = sessions.open("go to the red ball", 5)
            answer = sessions.act({key: now})[key]
            assert answer.action in now.actions
            shapes[name] = (
                sessions.budget,
                sessions.max_sessions,
                len(sessions.models),
                os.path.basename(answer.model),
            )
    assert shapes["switch-budget2-seed0"][:3] == (2, 5, 2)
    assert shapes["all-s0"] == (None, 3, 1, "all-s0")
    assert shapes["always-quick"] == (None, 5, 1, "quick")
    assert shapes["always-deepthink"] == (None, 5, 1, "deepthink")
    with open_sessions(run, "all-s0", max_sessions=2) as sessions:
        assert sessions.max_sessions == 2


def test_a_fitted_switch_is_served_too_and_taken_unasked_where_no_switch_was_learned(run):
    rule().save(run / "checkpoints" / "switch-classifier0.25")
    with open_sessions(run, "switch-classifier0.25") as sessions:
        assert (sessions.budget, len(sessions.models)) == (None, 2)
    with pytest.raises(InputError, match="say which policy: all-s0, switch-budget1-seed0"), open_sessions(run):
        pass
    shutil.rmtree(run / "checkpoints" / "switch-budget1-seed0")
    with open_sessions(run) as sessions:
        assert sessions.name == "switch-budget2-seed0"
    shutil.rmtree(run / "checkpoints" / "switch-budget2-seed0")
    with open_sessions(run) as sessions:
        assert sessions.name == "switch-classifier0.25"
    rule(budget=2).save(run / "checkpoints" / "switch-classifier0.25-n2")
    with pytest.raises(InputError, match="say which policy: .*switch-classifier0.25-n2"), open_sessions(run):
        pass


def test_which_policy_has_to_be_said_where_there_are_several(run, tmp_path):
    known = "all-s0, switch-budget1-seed0, switch-budget2-seed0, always-quick, always-deepthink"
    with pytest.raises(InputError, match=f"say which policy: {known}"), open_sessions(run):
        pass
    with pytest.raises(InputError, match="has no policy 'half-s0'; it has all-s0"), open_sessions(run, "half-s0"):
        pass
    with pytest.raises(InputError, match="is not a run directory"), open_sessions(tmp_path):
        pass
    recipe = read_json(run / "recipe.resolved.json")
    write_json(run / "recipe.resolved.json", {**recipe, "novelty": 1})
    with (
        pytest.raises(InputError, match="recipe.resolved.json: novelty: "),
        open_sessions(run, "all-s0"),
    ):
        pass
    recipe["switch"]["models"][1] = {"model": "expert"}
    write_json(run / "recipe.resolved.json", recipe)
    with pytest.raises(InputError, match="the environment's expert"), open_sessions(run, "switch-budget1-seed0"):
        pass


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"name"', "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[1]", "other fields"),
    ],
)
def test_a_broken_recipe_is_bad_input_that_names_the_file(run, content, said):
    (run / "recipe.resolved.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"recipe\.resolved\.json: .*{said}"), open_sessions(run, "all-s0"):
        pass


def test_half_of_a_switch_is_bad_input_that_names_the_file(run):
    weights = run / "checkpoints" / "switch-budget1-seed0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with (
        pytest.raises(InputError, match=r"model\.safetensors: does not hold"),
        open_sessions(run, "switch-budget1-seed0"),
    ):
        pass


def test_bad_arguments_are_refused_before_a_model_is_loaded(run, capsys):
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    with listen(0) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(run), "all-s0", "--port", port]) == 2
    assert f"--port: {port}: " in capsys.readouterr().err
    assert main(["serve", str(run), "all-s0", "--max-sessions", "0"]) == 2
    assert "--max-sessions: " in capsys.readouterr().err
    assert main(["serve", str(run), "all-s0", "--places", "0"]) == 2  # the old name
    assert capsys.readouterr().err.count("--max-sessions") == 2, "a warning with its new name, and the error"
    assert main(["serve", str(run), "all-s0", "--places", "1", "--max-sessions", "1"]) == 2  # an old name
    assert main(["serve", str(run), "all-s0", "--port", "70000"]) == 2
    assert main(["serve", str(run)]) == 2
    assert "say which policy" in capsys.readouterr().err


@pytest.fixture
def signals():
    """Signals as a shell leaves them to a command; whoever runs the tests may have others."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def command(run, signals, monkeypatch):
    """The command in this process: its exit code, and what a client did that gets its port and then sends a signal."""
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    ports = queue.SimpleQueue()

    def listening(port):
        sock = listen(port)
        ports.put(sock.getsockname()[1])
        return sock

    def client(does, end):
        port = ports.get(timeout=60)
        try:
            return does(port), time.monotonic()
        finally:
            os.kill(os.getpid(), end)

    def serve(policy, does, end):
        with ThreadPoolExecutor(1) as threads:
            done = threads.submit(client, does, end)
            code = main(["serve", str(run), policy, "--port", "0"])
            found, ending = done.result()
        assert time.monotonic() - ending < app.GRACE + 15, "beside whatever else this machine does"
        return code, found

    monkeypatch.setattr(app, "listen", listening)
    monkeypatch.setattr(app, "GRACE", 1.0)
    monkeypatch.setattr(cli, "_terminated", threading.Event())
    return serve


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_serves_until_a_signal_ends_it_whoever_stalls(command, end, code, capsys):
    stalled = []
    foreign, closed = logging.Handler(), []
    foreign.close = lambda: closed.append(True)  # absl's closes what was sys.stderr when it was made

    def play(port):
        client = play_over(port, 3)
        head = b"POST /episodes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        lengths = (b"Content-Length: 99\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{")
        for sent in (b"", head, *(head + length for length in lengths)):
            stalled.append(socket.create_connection((HOST, port)))
            stalled[-1].sendall(sent)
        ask(port, "GET", "/")
        return client

    ended, client = command("switch-budget1-seed0", play, end)
    for line in stalled:
        line.close()
    out, err = capsys.readouterr()
    assert ended == code, err
    assert len(client.called_at) <= 1
    assert "at most 1 calls per episode" in out
    assert "goes on from" not in err, "there is nothing to go on with"
    assert code == 0 or "terminated; the episodes that were going on have ended with it" in err
    assert not closed, "handlers of others in this process are left alone"


@contextlib.contextmanager
def process_of(run, policy):
    """The command as a process, and its port."""
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    process = subprocess.Popen(
        [sys.executable, "-m", "atlas_ray", "serve", str(run), policy, "--port", "0"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "SERVED_KEY": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = process.stdout.readline()
        found = re.search(rf"serving {policy} .* on http://127.0.0.1:(\d+)", said)
        assert found, said + process.stderr.read()
        yield process, int(found[1]), said
    finally:
        process.kill()
        process.wait()


def ended(process, end):
    """What a process says when a signal ends it within a few seconds."""
    begun = time.monotonic()
    process.send_signal(end)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < GRACE + 15, "beside whatever else this machine does"
    assert "Traceback" not in err, err
    assert "goes on" not in out + err, "there is nothing to go on with"
    return err


def test_a_model_that_never_answers_does_not_keep_the_process(run):
    recipe = read_json(run / "recipe.resolved.json")
    with listen(0) as silent, ThreadPoolExecutor(1) as threads:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        recipe["switch"] |= {"unit": "seconds"}
        recipe["switch"]["models"][1] = {"model": "silent", "base_url": url, "key_variable": "SERVED_KEY"}
        write_json(run / "recipe.resolved.json", recipe)
        with process_of(run, "always-deepthink") as (process, port, _):
            act = {"observation": "a", "actions": ["go forward"]}
            asked = threads.submit(ask, port, "POST", f"/episodes/{begin(port)}/act", act)
            silent.accept()  # the model is asked
            err = ended(process, signal.SIGTERM)
        assert asked.result() == (503, {"detail": "the server is ending"})
    assert process.returncode == 143
    assert "a model was still at work; its answer is lost" in err


def test_a_switch_is_served_as_it_was_saved(run):
    policy = SwitchPolicy.load(run / "checkpoints" / "switch-budget2-seed0")
    features = np.random.default_rng(0).normal(size=(5, policy.config.features + EXTRA)).astype(np.float32)
    with open_sessions(run, "switch-budget2-seed0") as sessions:
        assert np.array_equal(sessions.policy.numbers(features), policy.numbers(features))
