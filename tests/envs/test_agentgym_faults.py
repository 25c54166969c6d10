"""The AgentGym client when servers fail: what is sent again, what is not, and that it ends."""

import gc
import socket
import time
from collections import Counter

import gymnasium as gym
import pytest
from agentgym_server import broken, drop, hang, quick, raw, serving, vanish  # noqa: F401

from atlas_ray.envs import EnvironmentDiedError, agentgym_http
from atlas_ray.envs.agentgym import AgentGym


def until(condition):
    """Wait for what another thread does."""
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_credentials_are_sent_and_never_shown(serve):
    server = serve("maze")
    env = AgentGym("maze", url=server.url.replace("//", "//me:s%40cret@"), retries=0)
    env.reset(seed=0)
    assert set(server.authorizations) == {"Basic bWU6c0BjcmV0"}
    server.kill()
    with pytest.raises(EnvironmentDiedError) as caught:
        env.step("move up")
    error = caught.value
    while error is not None:
        assert "cret" not in str(error) + repr(error)
        error = error.__cause__ or error.__context__
    with pytest.raises(ValueError, match="url") as refused:
        AgentGym(url="http://me:s3/cret@host")
    assert "s3" not in str(refused.value)


BAD_ANSWERS = [
    (raw('{"observation": "x", "reward": NaN, "done": false}'), "NaN"),
    (raw('{"observation": "x", "reward": 1e999, "done": false}'), "finite"),
    (raw('{"observation": "x", "reward": "1", "done": false}'), "finite"),
    (raw('{"observation": "x", "reward": 1%s, "done": false}' % ("0" * 400)), "finite"),
    (raw('{"observation": "x", "reward": true, "done": true}'), "finite"),
    (raw('{"observation": "x", "reward": null, "done": true}'), "finite"),
    (raw('{"observation": "x", "done": true}'), "finite"),
    (raw('{"observation": "x", "reward": [1], "done": true}'), "finite"),
    (raw('{"observation": "x", "reward": Infinity, "done": true}'), "Infinity"),
    (raw('{"observation": "x", "reward": 1, "done": null}'), "done"),
    (raw('{"observation": "x", "reward": 1, "done": 1}'), "done"),
    (raw('{"observation": "x", "reward": 1, "done": "true"}'), "done"),
    (raw('{"observation": null, "reward": 1, "done": true}'), "observation"),
    (raw('{"observation": ["x"], "reward": 1, "done": true}'), "observation"),
    (raw('{"observation": {"text": "x"}, "reward": 1, "done": true}'), "observation"),
    (raw('{"error": "out of memory", "observation": "x", "reward": 1, "done": true}'), "out of memory"),
    (raw('{"error": {"code": 3}, "observation": "x", "reward": 1, "done": true}'), "code"),
    (raw('{"error": true}'), "the server says"),
    (raw('{"detail": "Internal error"}'), "observation"),
    (raw('{"reward": 1, "done": true}'), "observation"),
    (raw('{"observation": 3, "reward": 1, "done": true}'), "observation"),
    (raw('["x", 1, true]'), "no JSON object"),
    (raw('"x"'), "no JSON object"),
    (raw("null"), "no JSON object"),
    (raw("<html>hello</html>"), "not JSON"),
    (raw("[" * 100_000), "not JSON"),
    (raw(""), "not JSON"),
    (raw('{"error": "the simulator is gone"}'), "the simulator is gone"),
    (raw("{}", 422), "HTTP 422"),
    (raw("Bad Gateway", 502), "HTTP 502"),
    (raw("x" * (2**22 + 10)), "longer than"),
    (lambda handler: handler.send(307, b"", location="http://127.0.0.1:1/step"), "redirects"),
    (drop, "no answer"),
    (vanish, "no answer"),
]


@pytest.mark.parametrize(("fault", "said"), BAD_ANSWERS)
def test_a_bad_answer_to_an_action_loses_the_episode_at_once(serve, fault, said):
    server = serve("textcraft")
    env = AgentGym("textcraft", url=server.url)
    env.reset(seed=1)
    server.faults["step"] = [fault]
    with pytest.raises(EnvironmentDiedError, match=said) as caught:
        env.step("right")
    assert f"POST {server.url}/step: " in str(caught.value)
    assert server.count("step") == 1, "an action that may have been done is not sent again"
    with pytest.raises(gym.error.ResetNeeded):
        env.step("right")
    assert env.reset(seed=2)[0].endswith("#2")
    assert env.step("right")[0] == "1 right"
    assert (server.count("create"), server.count("close")) == (2, 1)
    assert len(server.world.sessions) == 1


def test_an_action_that_hangs_loses_the_episode(serve):
    server = serve("textcraft")
    env = AgentGym("textcraft", url=server.url, timeout=0.5)
    env.reset(seed=1)
    server.faults["step"] = [hang]
    with pytest.raises(EnvironmentDiedError, match=r"/step: no answer: Timeout"):
        env.step("right")
    assert server.count("step") == 1
    assert env.reset(seed=1)[0].endswith("#1")
    assert server.count("create") == 2


@pytest.mark.parametrize("fault", [broken(500), broken(503), drop, vanish, hang])
def test_creating_is_tried_again(serve, fault):
    server = serve("textcraft")
    server.faults["create"] = [fault, fault]
    env = AgentGym("textcraft", url=server.url, timeout=0.5 if fault is hang else 20.0, retries=2)
    assert env.reset(seed=4)[0].endswith("#4")
    assert (server.count("create"), server.count("reset")) == (3, 1)


@pytest.mark.parametrize("fault", [broken(500), drop, vanish, hang])
def test_a_failed_reset_is_tried_again_in_a_new_session(serve, fault):
    """The old session may still be at work on the first request, and would start over in the midst of the episode."""
    server = serve("textcraft")
    server.faults["reset"] = [fault, fault]
    env = AgentGym("textcraft", url=server.url, timeout=0.5 if fault is hang else 20.0, retries=2)
    assert env.reset(seed=4)[0].endswith("#4")
    resets = [fields["id"] for name, fields in server.requests if name == "reset"]
    assert len(set(resets)) == len(resets) == 3
    assert Counter(f["id"] for n, f in server.requests if n == "close") == Counter(resets[:2])


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_the_number_of_tries_is_bounded(serve, retries, monkeypatch):
    pauses = []
    monkeypatch.setattr(agentgym_http, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(agentgym_http.time, "sleep", pauses.append)
    server = serve("textcraft")
    server.faults["create"] = [broken(500)] * 50
    env = AgentGym("textcraft", url=server.url, retries=retries)
    with pytest.raises(EnvironmentDiedError, match=r"/create: HTTP 500"):
        env.reset(seed=0)
    assert server.count("create") == retries + 1
    assert pauses == [1.0, 2.0, 4.0, 4.0][:retries]
    server.kill()
    with pytest.raises(EnvironmentDiedError, match="no connection|no answer"):
        env.reset(seed=0)
    assert len(pauses) == 2 * retries


@pytest.mark.parametrize(
    ("answer", "said"),
    [('{"error": "no game data"}', "no game data"), ("{}", "no id"), ('{"id": "7"}', "no id"), ("true", "no id")],
)
def test_a_server_that_cannot_create_is_not_asked_again(serve, answer, said):
    server = serve("textcraft")
    server.faults["create"] = [raw(answer)] * 9
    with pytest.raises(EnvironmentDiedError, match=said):
        AgentGym("textcraft", url=server.url).reset(seed=0)
    assert server.count("create") == 1


def test_a_server_that_refuses_a_fresh_session_is_not_asked_again(serve):
    server = serve("textcraft")
    server.faults["reset"] = [raw('{"error": "broken"}')] * 9
    with pytest.raises(EnvironmentDiedError, match="the server says: broken"):
        AgentGym("textcraft", url=server.url).reset(seed=0)
    assert (server.count("create"), server.count("reset"), server.count("close")) == (1, 1, 1)


@pytest.mark.parametrize("listed", ["5", "null", '"left"', "[1, [], null]"])
def test_what_is_no_list_of_actions_is_none(serve, listed):
    server = serve("alfworld")
    env = AgentGym("alfworld", url=server.url)
    env.reset(seed=0)
    server.faults["step"] = [
        raw('{"observation": "x", "reward": 0, "done": false, "available_actions": ' + listed + "}")
    ]
    assert env.step("right")[4]["admissible"]() == []


def test_an_unusable_answer_to_reset(serve):
    server = serve("textcraft")
    server.faults["reset"] = [raw('{"done": false}')]
    env = AgentGym("textcraft", url=server.url)
    with pytest.raises(EnvironmentDiedError, match="no observation"):
        env.reset(seed=0)
    assert env.reset(seed=0)[0]


@pytest.mark.parametrize("kind", ["textcraft", "webshop"])
def test_a_server_that_was_started_anew_in_mid_episode(serve, kind):
    server = serve(kind)
    env = AgentGym(kind, url=server.url, retries=1)
    env.reset(seed=1)
    env.step("right")
    server.kill()
    with pytest.raises(EnvironmentDiedError, match=r"/step: no "):
        env.step("right")
    with pytest.raises(EnvironmentDiedError, match="no connection"):
        env.reset(seed=1)
    again = serve(kind, port=server.port)
    assert "#1" in env.reset(seed=1)[0]
    assert env.step("right")[0] == "1 right"
    assert again.count("create") == 1


@pytest.mark.parametrize("retries", [0, 3])
@pytest.mark.parametrize("kind", ["textcraft", "webshop"])
def test_a_server_that_was_started_anew_between_episodes(serve, kind, retries):
    server = serve(kind)
    env = AgentGym(kind, url=server.url, retries=retries)
    env.reset(seed=1)
    server.kill()
    again = serve(kind, port=server.port)
    assert "#2" in env.reset(seed=2)[0]
    assert again.count("create") == 1


def test_an_action_is_sent_again_if_no_connection_was_made(serve, monkeypatch):
    server = serve("textcraft")
    env = AgentGym("textcraft", url=server.url)
    env.reset(seed=1)
    tries = []

    def refused(*args, connect=socket.create_connection, **kwargs):
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionRefusedError("refused")
        return connect(*args, **kwargs)

    env._wire.hang_up()
    monkeypatch.setattr(socket, "create_connection", refused)
    assert env.step("right")[0] == "1 right"
    assert (len(tries), server.count("step")) == (3, 1)


def test_one_connection_serves_an_episode_and_one_that_idles_is_replaced(serve, monkeypatch):
    server = serve("textcraft")
    env = AgentGym("textcraft", url=server.url)
    monkeypatch.setattr(agentgym_http, "_IDLE", 1e9)
    env.reset(seed=1)
    env.step("right")
    env.reset(seed=2)
    assert len(server.sockets) == 1
    monkeypatch.setattr(agentgym_http, "_IDLE", -1.0)
    env._wire.hang_up()
    env.step("right")
    env.step("right")
    assert len(server.sockets) == 3


def test_closing_happens_once_whoever_asks(serve):
    server = serve("textcraft")
    env = AgentGym("textcraft", url=server.url)
    env.close()
    assert server.requests == []
    env.reset(seed=0)
    env.close()
    env.close()
    del env
    gc.collect()
    assert server.count("close") == 1
    env = AgentGym("textcraft", url=server.url)
    env.reset(seed=0)
    closer = env._closer
    assert closer.atexit
    del env
    gc.collect()
    assert not closer.alive
    assert until(lambda: server.count("close") == 2)
    assert server.world.sessions == {}


def test_closing_a_dead_server_is_no_error(serve):
    server = serve("textcraft")
    env = AgentGym("textcraft", url=server.url)
    env.reset(seed=0)
    server.kill()
    env.close()
    with pytest.raises(gym.error.ResetNeeded):
        env.step("right")


def test_a_closed_environment_can_be_reset(serve):
    env = AgentGym("textcraft", url=serve("textcraft").url)
    env.reset(seed=0)
    env.close()
    assert env.admissible() == []
    assert env.reset(seed=1)[0].endswith("#1")


def test_an_error_that_is_none_is_no_error_and_halves_of_characters_become_a_mark(serve):
    server = serve("textcraft")
    env = AgentGym("textcraft", url=server.url)
    env.reset(seed=0)
    for nothing in ("null", '""', "false"):
        server.faults["step"] = [
            raw('{"observation": "half \\ud83d of it", "reward": 0, "done": false, "error": ' + nothing + "}")
        ]
        assert env.step("right")[0] == "half \ufffd of it"
    server.faults["step"] = [raw('{"observation": "whole \\ud83d\\ude80", "reward": 0, "done": false}')]
    assert env.step("right")[0] == "whole 🚀"
