"""Our environments in OpenEnv's protocol: the messages of ``openenv`` 0.10.0's client, and what that says."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from atlas_ray import envs
from atlas_ray.cli import main
from atlas_ray.sharing import openenv_server
from atlas_ray.sharing.openenv_sessions import MessageError, Session, read

testclient = pytest.importorskip("starlette.testclient", reason="extra 'serve'")

LEVEL = "BabyAIText/GoToLocal-v0"
LOOPBACK = {"base_url": "http://127.0.0.1"}


def client(max_sessions=2, name="GoToLocal", **settings):
    return testclient.TestClient(openenv_server.make_app(name, settings, max_sessions, ["127.0.0.1"]), **LOOPBACK)


def connect(app, **headers):
    return app.websocket_connect("/ws", headers={"host": "127.0.0.1", **headers})


def ask(socket, kind, **data):
    """As ``EnvClient._send_and_receive`` of openenv 0.10.0 does."""
    socket.send_text(json.dumps({"type": kind} if kind in ("state", "close") else {"type": kind, "data": data}))
    return json.loads(socket.receive_text())


def test_sessions_side_by_side_play_what_the_environment_plays():
    alone = [envs.make("GoToLocal") for _ in range(2)]
    app = client()
    with connect(app) as one, connect(app) as other:
        for seed, (env, socket) in enumerate(zip(alone, (one, other), strict=True)):
            text, info = env.reset(seed=seed)
            answer = ask(socket, "reset", seed=seed)
            assert answer["type"] == "observation"
            data = answer["data"]
            assert (data["reward"], data["done"]) == (None, False)
            assert (data["observation"]["text"], data["observation"]["goal"]) == (text, info["goal"])
            assert data["observation"]["actions"] == env.admissible()
        experts = [env.expert() for env in alone]
        going = {0: one, 1: other}
        while going:  # step by step in turn
            for number, socket in list(going.items()):
                action = experts[number].act().action
                text, reward, over, _, info = alone[number].step(action)
                data = ask(socket, "step", action=action)["data"]
                assert (data["observation"]["text"], data["reward"], data["done"]) == (text, reward, over)
                assert data["observation"]["success"] is info["success"]
                if over:
                    assert data["observation"]["score"] == info["score"] == 1.0
                    assert data["observation"]["actions"] is None
                    del going[number]


def test_state_says_which_episode_is_played():
    with connect(client()) as socket:
        assert ask(socket, "state")["data"] == {"episode_id": None, "step_count": 0, "env": LEVEL}
        ask(socket, "reset", seed=3, episode_id="mine")
        ask(socket, "step", action="turn left", metadata={"any": 1})
        state = {"episode_id": "mine", "step_count": 1, "env": LEVEL, "task": "GoToLocal-v0", "variation": 3}
        assert ask(socket, "state") == {"type": "state", "data": state}


@pytest.mark.parametrize(
    ("kind", "data", "code", "says"),
    [
        ("step", {"action": "look"}, "EXECUTION_ERROR", "call reset"),
        ("step", {"act": "look"}, "VALIDATION_ERROR", '{"action": TEXT}'),
        ("step", {"action": 3}, "VALIDATION_ERROR", '{"action": TEXT}'),
        ("reset", {"seed": -1}, "VALIDATION_ERROR", "seed"),
        ("reset", {"seed": True}, "VALIDATION_ERROR", "seed"),
        ("reset", {"episode_id": "x" * 256}, "VALIDATION_ERROR", "episode_id"),
        ("reset", {"no_such": 1}, "VALIDATION_ERROR", "no_such"),
        ("reset", {"split": "no such"}, "VALIDATION_ERROR", "split"),
        ("mcp", {}, "UNKNOWN_TYPE", "mcp"),
    ],
)
def test_what_cannot_be_followed_is_said_and_the_session_goes_on(kind, data, code, says):
    session = Session("GoToLocal", {})
    with pytest.raises(MessageError, match=says.replace("{", r"\{")) as caught:
        session.answer({"type": kind, "data": data})
    assert caught.value.code == code
    assert session.answer({"type": "reset", "data": {}})["data"]["done"] is False
    session.close()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "INVALID_JSON"),
        ("[" * 100_000, "INVALID_JSON"),
        ("[]", "VALIDATION_ERROR"),
        ('{"type": 1}', "VALIDATION_ERROR"),
        ('{"type": "step", "data": []}', "VALIDATION_ERROR"),
        ('{"type": "step", "more": 1}', "VALIDATION_ERROR"),
    ],
)
def test_what_is_no_message(text, code):
    with pytest.raises(MessageError) as caught:
        read(text)
    assert caught.value.code == code


def test_an_episode_that_is_lost_is_an_error_and_no_outcome(monkeypatch):
    session = Session("GoToLocal", {})
    session.answer({"type": "reset", "data": {"seed": 0}})

    def dies(self, action):
        raise envs.EnvironmentDiedError("its server is gone")

    monkeypatch.setattr(envs.BabyAIText, "do", dies)
    with pytest.raises(MessageError, match="its server is gone") as caught:
        session.answer({"type": "step", "data": {"action": "turn left"}})
    assert caught.value.code == "EXECUTION_ERROR"


def test_no_more_sessions_than_it_may_hold_and_a_place_is_free_again():
    app = client(max_sessions=1)
    with connect(app) as socket:
        ask(socket, "reset")
        with connect(app) as second:
            refused = json.loads(second.receive_text())
            assert (refused["type"], refused["data"]["code"]) == ("error", "CAPACITY_REACHED")
            assert (refused["data"]["active_sessions"], refused["data"]["max_sessions"]) == (1, 1)
        socket.send_text('{"type": "close"}')
    with connect(app) as socket:
        assert ask(socket, "reset", seed=0)["type"] == "observation"


def test_a_session_without_messages_ends():
    from atlas_ray.sharing.openenv_routes import build

    about = {"name": "x", "description": "x"}
    app = build(lambda: Session("GoToLocal", {}), about, 1, ["127.0.0.1"], idle=0.05)
    with connect(testclient.TestClient(app, **LOOPBACK)) as socket:
        last = json.loads(socket.receive_text())
        assert last["data"]["code"] == "SESSION_ERROR"
        with pytest.raises(testclient.WebSocketDisconnect):
            socket.receive_text()


@pytest.mark.parametrize("headers", [{"origin": "http://pages.example"}, {"host": "pages.example"}])
def test_a_page_of_another_site_plays_nothing(headers):
    with pytest.raises(testclient.WebSocketDisconnect):
        with connect(client(), **headers):
            pass


def test_what_describes_it_is_what_openenvs_own_validation_asks_for():
    app = client()
    assert app.get("/health").json() == {"status": "healthy"}
    assert app.get("/metadata").json()["name"] == LEVEL
    schema = app.get("/schema").json()
    assert schema["action"]["required"] == ["action"]
    assert {"observation", "state", "reset_observation"} <= set(schema)
    assert app.post("/mcp", json={}).json()["jsonrpc"] == "2.0"
    described = app.get("/openapi.json").json()
    assert isinstance(described["info"]["version"], str)
    assert "/reset" not in described["paths"]


def test_settings_and_ids_are_checked_before_anything_is_served(capsys):
    assert main(["env", "serve", "openenv", "GoToLocal", "--dry-run", "--max_steps", "9"]) == 0
    assert json.loads(capsys.readouterr().out) == {"env": LEVEL, "settings": {"max_steps": 9}}
    for words, says in (
        (["GoToNowhere"], "no BabyAI level named 'GoToNowhere'"),
        (["GoToLocal", "--colour", "red"], "--colour: no such setting"),
        (["GoToLocal", "--max-sessions", "0"], "--max-sessions: must be at least 1"),
    ):
        assert main(["env", "serve", "openenv", *words]) == 2
        assert says in capsys.readouterr().err


def test_a_setting_that_the_environment_refuses_is_said_before_anybody_connects():
    with pytest.raises(ValueError, match="max_steps is 0"):
        client(max_steps=0)


def test_a_missing_package_is_told_by_its_extra(monkeypatch, capsys):
    monkeypatch.setattr(openenv_server, "find_spec", lambda name: None if name == "websockets" else object())
    assert main(["env", "serve", "openenv", "GoToLocal"]) == 2
    assert "pip install 'atlas-ray[openenv]'" in capsys.readouterr().err


@contextmanager
def served(*words):
    """The command in a process of its own; its URL."""
    pytest.importorskip("websockets", reason="extra 'openenv'")
    command = [sys.executable, "-m", "atlas_ray", "env", "serve", "openenv", *words, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            line = process.stdout.readline()
            assert " on http://" in line, line
            yield next(word for word in line.split() if word.startswith("http://"))
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 128 + signal.SIGTERM


@pytest.mark.slow  # a process of its own
def test_the_newest_client_of_openenv_plays_sessions_side_by_side():
    """Its package is here, or in the Python that OPENENV_PYTHON names: its gradio wants an older pillow."""
    python = os.environ.get("OPENENV_PYTHON")
    if python is None:
        pytest.importorskip("openenv", reason="openenv: name a Python that has it, OPENENV_PYTHON")
        python = sys.executable
    expert, env = [], envs.make("GoToLocal")
    env.reset(seed=1)
    player = env.expert()
    while not expert or not env.history or not env._done:
        expert.append(player.act().action)
        env.step(expert[-1])
    script = f"""
import asyncio, json
from openenv import GenericEnvClient
from openenv.cli._validation import validate_running_environment
async def main(url):
    async with GenericEnvClient(base_url=url) as one, GenericEnvClient(base_url=url) as other:
        first, last = await one.reset(seed=0), await other.reset(seed=1)
        texts = [first.observation["text"], last.observation["text"]]
        await one.step({{"action": "turn left"}})
        for action in {expert!r}:
            last = await other.step({{"action": action}})
        states = [await one.state(), await other.state()]
        return texts, last.done, last.reward, last.observation["success"], [s["step_count"] for s in states]
import sys
url = sys.argv[1]
print(json.dumps([asyncio.run(main(url)), validate_running_environment(url)["passed"]]))
"""
    with served("GoToLocal", "--max-sessions", "2") as url:
        done = subprocess.run([python, "-c", script, url], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        (texts, over, reward, success, steps), passed = json.loads(done.stdout)
    assert texts == [env.reset(seed=seed)[0] for seed in (0, 1)]
    assert (over, success, steps, passed) == (True, True, [1, len(expert)], True)
    assert reward > 0
