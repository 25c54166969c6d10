"""Environments on OpenEnv servers, which answer as ``openenv`` 0.10.0 does; ours is one of them."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import ClassVar

import pytest

from atlas_ray import envs
from atlas_ray.envs import conformance, openenv
from atlas_ray.envs.openenv_wire import InvalidMessageError, OpenEnvSession
from atlas_ray.sharing.openenv_sessions import ACTION_SCHEMA, OBSERVATION_SCHEMA, MessageError, Session

URL = "openenv:http://127.0.0.1:8971"
ECHO = {
    "action": {
        "title": "EchoAction",
        "properties": {"metadata": {"type": "object"}, "message": {"type": "string", "minLength": 1}},
        "required": ["message"],
    },
    "observation": {
        "title": "EchoObservation",
        "properties": {
            "done": {"type": "boolean"},
            "reward": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "metadata": {"type": "object"},
            "echoed_message": {"type": "string"},
            "message_length": {"type": "integer"},
        },
    },
}
"""As ``create_app`` of openenv 0.10.0 publishes its models."""


class Echo:
    """The echo environment of OpenEnv's examples; ``done`` after ``stop``."""

    schema = ECHO

    def answer(self, kind, data):
        if kind == "reset":
            seen = {"echoed_message": "ready", "message_length": 0, "metadata": {}}
            return {"observation": seen, "reward": 0.0, "done": False}
        if set(data) - {"message", "metadata"} or not data.get("message"):
            raise InvalidMessageError("Invalid message")
        seen = {"echoed_message": data["message"], "message_length": len(data["message"]), "metadata": {}}
        return {"observation": seen, "reward": len(data["message"]) / 10, "done": data["message"] == "stop"}


class Ours:
    """A session of our own server."""

    schema: ClassVar = {"action": ACTION_SCHEMA, "observation": OBSERVATION_SCHEMA}

    def __init__(self):
        self.session = Session("GoToLocal", {})

    def answer(self, kind, data):
        try:
            return json.loads(json.dumps(self.session.answer({"type": kind, "data": data})["data"]))
        except MessageError as error:
            raise (InvalidMessageError if error.code == "VALIDATION_ERROR" else envs.EnvironmentDiedError)(str(error))


@pytest.fixture
def server(monkeypatch):
    """Say what answers: nothing goes over a wire."""

    class Direct:
        made = Echo

        def __init__(self, url, timeout):
            self.is_open, self.server = False, None

        def schema(self):
            return self.made.schema

        def ask(self, kind, data):
            if not self.is_open:
                self.is_open, self.server = True, self.made()
            try:
                return self.server.answer(kind, data)
            except envs.EnvironmentDiedError:
                self.close()
                raise

        def close(self):
            self.is_open = False

    monkeypatch.setattr(openenv, "OpenEnvSession", Direct)
    return Direct


def test_our_own_environments_come_back_as_they_were(server):
    server.made = Ours
    env, own = envs.make(URL), envs.make("GoToLocal")
    assert env.lacks() == {}
    for seed in (0, 1):
        (seen, info), (text, known) = env.reset(seed=seed), own.reset(seed=seed)
        assert (seen, info["goal"], env.admissible()) == (text, known["goal"], own.admissible())
        expert = own.expert()
        while not own._done:
            action = expert.act().action
            got, want = env.step(action), own.step(action)
            assert got[:4] == want[:4]
            assert [got[4][k] for k in ("score", "success")] == [want[4][k] for k in ("score", "success")]
        assert info["success"] is False and got[4]["success"] is True
    found = {c.name: c.ok for c in conformance.run(URL)}
    assert {name for name, ok in found.items() if ok is not True} == {"expert"}
    assert found["expert"] is None


def test_an_environment_that_says_nothing_of_success_has_none(server):
    env = envs.make(URL)
    assert set(env.lacks()) == {"success"}
    observation, info = env.reset(seed=5)
    assert (observation, info["goal"]) == ("ready", "Do what the environment asks for.")
    assert env.step("hello!")[:4] == ("hello!", 0.6, False, False)
    seen, reward, over, _, info = env.step("stop")
    assert (seen, reward, over, info["success"], info["score"]) == ("stop", 0.4, True, False, 1.0)


def test_success_at_is_the_sum_of_rewards(server):
    env = envs.make(URL, success_at=1.0)
    assert env.lacks() == {}
    env.reset(seed=0)
    assert env.step("123456")[4]["success"] is False
    assert env.step("stop")[4] | {"admissible": 0} == {"goal": env.goal, "score": 1.0, "success": True, "admissible": 0}


def test_an_action_that_the_server_does_not_take_costs_a_step(server):
    env = envs.make(URL, max_steps=2)
    env.reset(seed=0)
    assert env.step("")[:4] == ("That is no action here.", 0.0, False, False)
    assert env.step("")[3] is True


def test_actions_of_several_fields_are_json_objects(server):
    class Two(Echo):
        schema: ClassVar = {
            "action": {**ECHO["action"], "required": ["message", "volume"]},
            "observation": {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
        }

        def answer(self, kind, data):
            seen = {"a": "ä", "b": data.get("message", ""), "metadata": {}}
            return {"observation": seen, "reward": None, "done": False}

    server.made = Two
    env = envs.make(URL)
    assert env.reset(seed=0)[0] == '{"a": "ä", "b": ""}'
    assert env.step("hello")[0] == "An action is a JSON object."
    assert env.step('{"message": "x", "volume": 3}')[0] == '{"a": "ä", "b": "x"}'
    env = envs.make(URL, action_field="message", observation_field="b")
    env.reset(seed=0)
    assert env.step("hello")[0] == "hello"
    for setting in ("action_field", "observation_field"):
        with pytest.raises(ValueError, match=f"{setting}: .* has no 'c'; it has"):
            envs.make(URL, **{setting: "c"}).reset(seed=0)


def test_calls_of_tools_are_refused_by_name(server):
    class Tools(Echo):
        schema: ClassVar = {"action": {"title": "CallToolAction", "properties": {}}, "observation": {}}

    server.made = Tools
    with pytest.raises(ValueError, match="calls of tools"):
        envs.make(URL).reset(seed=0)


def test_a_server_without_seeds_cannot_be_replayed(server):
    class Random(Echo):
        count = iter(range(100))

        def answer(self, kind, data):
            found = super().answer(kind, data)
            found["observation"]["echoed_message"] += str(next(self.count))
            return found

    server.made = Random
    env = envs.make(URL)
    assert set(env.lacks()) == {"seeds", "replay", "success"}
    env.reset(seed=0)
    with pytest.raises(NotImplementedError, match="cannot be replayed"):
        env.clone()


def test_a_lost_session_begins_anew_once(server):
    env = envs.make(URL)
    env.reset(seed=0)
    assert env._session.is_open

    def gone(kind, data):
        env._session.is_open = False
        del env._session.ask
        raise envs.EnvironmentDiedError("gone")

    env._session.ask = gone
    assert env.reset(seed=1)[0]
    env._session.ask = gone
    with pytest.raises(envs.EnvironmentDiedError):
        env.step("hello")
    with pytest.raises(Exception, match="reset"):
        env.step("hello")
    assert env.reset(seed=1)[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("openenv:", "URL of a server"),
        ("openenv:GoToLocal", "URL of a server"),
        ("openenv:ftp://h", "URL of a server"),
        ("openenv:http://h?x=1", "URL of a server"),
        ("openenv:http://h:99999999", "URL of a server"),
        ("openenv:http://me:secret@h", "holds a name"),
    ],
)
def test_a_name_that_is_no_url_of_a_server(name, says):
    with pytest.raises(envs.UnknownEnvironmentError, match=says) as caught:
        envs.full_id(name)
    assert "secret" not in str(caught.value)


def test_names_and_settings():
    assert envs.full_id("openenv:http://127.0.0.1:8000/") == "openenv:http://127.0.0.1:8000"
    assert envs.adapted("openenv:http://127.0.0.1:8000") == "openenv"
    assert envs.adapted("GoToLocal") == envs.adapted("my_games:Doors-v0") == ""
    assert list(envs.arguments(URL)) == ["goal", "success_at", "action_field", "observation_field", "timeout"]


def test_a_file_of_data_does_not_choose_whom_this_machine_asks():
    from atlas_ray.recipe.loading import Recipe
    from atlas_ray.selection.replays import replay_specs

    class Told:
        env = URL

    recipe = Recipe.model_validate({"name": "r", "collect": {"file": "x.jsonl"}})
    specs, problems = replay_specs(recipe, [Told()])
    assert specs == {} and problems == {URL: f"its environment is {URL}: name it in [environments] to have it played"}


# ---- over the wire --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def wire(*answers):
    """A server of WebSockets that answers with these, in turn, and is then silent."""
    serving = pytest.importorskip("websockets.sync.server", reason="extra 'openenv'")
    asked = []

    def talk(socket):
        with contextlib.suppress(Exception):
            for answer in answers:
                asked.append(json.loads(socket.recv()))
                if answer is None:
                    return socket.close()
                socket.send(answer)
            asked.append(json.loads(socket.recv()))
            socket.recv()

    with serving.serve(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        session = OpenEnvSession(f"http://127.0.0.1:{server.socket.getsockname()[1]}", 2.0)
        try:
            yield session, asked
        finally:
            session.close()
            server.shutdown()
            thread.join()


GOOD = '{"type": "observation", "data": {"observation": {"text": "a"}, "reward": null, "done": false}}'


def test_a_session_asks_as_the_client_of_openenv_does():
    with wire(GOOD, GOOD) as (session, asked):
        assert session.ask("reset", {"seed": 3})["observation"] == {"text": "a"}
        assert session.ask("step", {"action": "ö"})["done"] is False
        assert session.is_open
        session.close()
        assert not session.is_open
    assert asked == [
        {"type": "reset", "data": {"seed": 3}},
        {"type": "step", "data": {"action": "ö"}},
        {"type": "close"},
    ]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "no answer"),
        ("{", "not JSON"),
        ("[]", "no data"),
        ('{"type": "observation", "data": {"observation": "a", "done": false}}', "no observation"),
        ('{"type": "observation", "data": {"observation": {}}}', "done is None"),
        ('{"type": "state", "data": {"observation": {}, "done": false}}', "no observation"),
        ('{"type": "error", "data": {"message": "boom", "code": "EXECUTION_ERROR"}}', "boom"),
        (json.dumps({"type": "observation", "data": {"observation": {"t": "x" * (4 * 2**20)}}}), "no answer"),
    ],
)
def test_an_answer_that_is_of_no_use_loses_the_episode_and_closes_the_session(answer, says):
    with wire(answer) as (session, _):
        with pytest.raises(envs.EnvironmentDiedError, match=says):
            session.ask("step", {})
        assert not session.is_open


def test_what_the_server_does_not_take_leaves_the_session_open():
    with wire('{"type": "error", "data": {"message": "Invalid", "code": "VALIDATION_ERROR"}}', GOOD) as (session, _):
        with pytest.raises(InvalidMessageError):
            session.ask("step", {})
        assert session.ask("step", {})["done"] is False


def test_nobody_there():
    pytest.importorskip("websockets", reason="extra 'openenv'")
    with pytest.raises(envs.EnvironmentDiedError, match="no answer"):
        OpenEnvSession("http://127.0.0.1:9", 1.0).ask("reset", {})


def test_the_missing_package_is_told_by_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    with pytest.raises(envs.MissingExtraError, match=r"pip install 'atlas-ray\[openenv\]'"):
        envs.make(URL)


SERVER = """
import sys
from openenv.core.env_server import Action, Environment, Observation, State, create_app
import uvicorn
class Said(Action):
    message: str
class Seen(Observation):
    echoed_message: str = ""
class Echo(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True
    def reset(self, seed=None, episode_id=None, **more):
        self.count = 0
        return Seen(echoed_message=f"ready {seed}", done=False, reward=0.0)
    def step(self, action, timeout_s=None, **more):
        self.count += 1
        return Seen(echoed_message=action.message, done=action.message == "stop", reward=1.0)
    @property
    def state(self):
        return State(step_count=self.count)
app = create_app(Echo, Said, Seen, max_concurrent_envs=16)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""


@pytest.mark.slow  # a process of its own
def test_an_environment_of_the_real_package_keeps_the_dialect(tmp_path):
    """The package is here, or in the Python that OPENENV_PYTHON names."""
    import socket
    import time

    python = os.environ.get("OPENENV_PYTHON")
    if python is None:
        pytest.importorskip("openenv", reason="openenv: name a Python that has it, OPENENV_PYTHON")
        python = sys.executable
    pytest.importorskip("websockets", reason="extra 'openenv'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "server.py").write_text(SERVER)
    with subprocess.Popen([python, str(tmp_path / "server.py"), str(port)]) as process:
        try:
            name, deadline = f"openenv:http://127.0.0.1:{port}", time.monotonic() + 120
            while True:
                try:
                    env = envs.make(name)
                    first = env.reset(seed=4)[0]
                    break
                except envs.EnvironmentDiedError:
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
            assert first == "ready 4"
            assert env.step("hello")[:3] == ("hello", 1.0, False)
            assert env.step("stop")[:3] == ("stop", 1.0, True)
            assert set(env.lacks()) == {"success"}
            env.close()
            found = {c.name: c for c in conformance.run(name, success_at=2.0)}
            assert [c for c in found.values() if c.ok is False] == []
            assert {name for name, c in found.items() if c.ok is None} == {"expert"}
        finally:
            process.terminate()
