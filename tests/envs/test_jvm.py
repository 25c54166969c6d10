"""One JVM for all environments of a process: shared, replaced when it dies, and gone when nobody needs it."""

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atlas_ray import envs
from atlas_ray.agents.rollout import EnvSpec, EpisodeStarter, rollout, start_episode
from atlas_ray.agents.token_agent import Decision
from atlas_ray.envs import jvm
from atlas_ray.envs.textworld_express import TextWorldExpress
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.logs import run_logging
from atlas_ray.stages.collect import collect

pytestmark = pytest.mark.java
GAME = EnvSpec("TextWorldExpress/cookingworld", {"split": "train"})


@pytest.fixture(autouse=True)
def _no_leftovers(no_jvm):
    envs.drain()
    assert jvm.machines() == []
    yield
    envs.drain()
    gc.collect()
    assert jvm.machines() == [], "a test left a JVM behind"


def gone(pid):
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_environments_share_a_jvm_which_ends_with_the_last():
    a, b = TextWorldExpress("coin"), TextWorldExpress("twc")
    assert jvm.machines() == [], "nothing is started before the first episode"
    a.reset(seed=0)
    b.reset(seed=0)
    assert a.pid == b.pid
    assert jvm.machines() == [a.pid]
    pid = a.pid
    a.close()
    a.close()
    assert b.step("look around")[0]
    b.close()
    assert gone(pid)


def test_an_environment_that_is_forgotten_gives_its_jvm_back():
    env = TextWorldExpress("coin")
    env.reset(seed=0)
    pid = env.pid
    del env
    gc.collect()
    assert gone(pid)


def test_a_closed_environment_can_be_reset_again():
    env = TextWorldExpress("coin")
    first = env.reset(seed=0)[0]
    env.close()
    assert env.reset(seed=0)[0] == first
    env.close()


def test_killing_the_jvm_ends_every_episode_on_it_with_one_typed_error_and_reset_begins_anew():
    a, b = TextWorldExpress("coin"), TextWorldExpress("twc")
    text = a.reset(seed=0)[0]
    b.reset(seed=0)
    os.kill(a.pid, signal.SIGKILL)
    for env in (a, b):
        with pytest.raises(envs.EnvironmentDiedError, match=r"TextWorldExpress: the JVM died or hung"):
            env.step("look around")
    assert a.reset(seed=0)[0] == text
    assert b.reset(seed=0)
    assert a.pid == b.pid
    a.close()
    b.close()


def test_a_forked_child_leaves_the_jvm_to_its_parent():
    env = TextWorldExpress("coin-v0")
    env.reset(seed=1)
    pid = env.pid
    child = os.fork()
    if not child:
        code = 1
        try:
            env._simulator._object = None  # py4j has the JVM forget what is collected
            gc.collect()
            env._simulator._guarded("fork", env._simulator._machine.interface)
        except envs.EnvironmentDiedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    observation, *_, info = env.step("look around")
    assert observation and "look around" in info["admissible"]()
    assert env.pid == pid and pid in jvm.machines()
    env.close()


def test_a_jvm_that_hangs_is_given_up_and_killed():
    env = TextWorldExpress("coin")
    env.reset(seed=0)
    pid = env.pid
    for connection in env._simulator._machine.gateway._gateway_client.deque:
        assert connection.socket.gettimeout() == jvm.ANSWER_SECONDS
        connection.socket.settimeout(0.5)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(envs.EnvironmentDiedError):
        walk(env)
    assert gone(pid)
    env.reset(seed=0)
    env.close()


def test_the_jvm_is_gone_when_its_parent_is_killed():
    code = (
        "import time; from atlas_ray import envs\n"
        "e = envs.make('TextWorldExpress/coin'); e.reset(seed=0); print(e.pid, flush=True);"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert not gone_now(pid)
        parent.kill()
    assert gone(pid)


def walk(env):
    for _ in range(50):  # the threads of a stopped process stop one after the other
        env.step("look around")


def gone_now(pid):
    return not os.path.exists(f"/proc/{pid}")


def test_a_stranger_on_the_machine_cannot_use_the_gateway():
    from py4j.java_gateway import GatewayParameters, JavaGateway
    from py4j.protocol import Py4JError

    env = TextWorldExpress("coin")
    env.reset(seed=0)
    port = env._simulator._machine.gateway.gateway_parameters.port
    stranger = JavaGateway(gateway_parameters=GatewayParameters(port=port))
    with pytest.raises(Py4JError):
        stranger.jvm.java.lang.System.getProperty("user.name")
    stranger.close()
    env.close()


def test_a_run_that_kept_logs_leaves_nothing_to_be_said_of_a_jvm_that_is_gone(tmp_path):
    """Objects of it are let go of after the run, and py4j would tell of each that it cannot reach the JVM."""
    quiet = logging.getLogger("py4j.java_gateway")
    quiet.setLevel(logging.NOTSET)
    with run_logging(tmp_path):
        TextWorldExpress("coin").reset(seed=0)
        assert not quiet.isEnabledFor(logging.ERROR)
    assert not quiet.isEnabledFor(logging.ERROR)


def test_leases_reuse_an_environment_with_the_same_settings_only():
    a = envs.lease("TextWorldExpress/coin", split="train")
    envs.release(a)
    assert envs.lease("TextWorldExpress/coin-v0", split="dev") is not a
    assert envs.lease("TextWorldExpress/coin", split="train") is a


@pytest.mark.parametrize(
    ("levels", "settings"),
    [
        (("ScienceWorld/lifespan-longest-lived", "ScienceWorld/boil"), {}),
        (("TextWorldExpress/coin", "TextWorldExpress/mapreader"), {}),
        (("TextWorldExpress/coin", "TextWorldExpress/coin"), {"params": "numLocations=3"}),
    ],
)
def test_of_another_level_it_goes_on_with_what_stood_behind_the_last_and_plays_as_one_that_is_new(levels, settings):
    def told(env):
        first = env.reset(seed=3)
        return first[0], first[1]["goal"], env.step("look around")[0]

    names = (levels[0], {}), (levels[1], settings)
    fresh = []
    for name, kwargs in names:
        env = envs.make(name, **kwargs)
        fresh.append(told(env))
        env.close()
    assert fresh[0] != fresh[1]
    for (name, kwargs), expected in zip(names * 2, fresh * 2, strict=True):
        playing = [envs.lease(name, **kwargs) for _ in range(2)]
        assert [told(env) for env in playing] == [expected, expected]
        assert len(jvm.machines()) == 1 and jvm._machines[0].users == 2, "as many as play at once, whatever they played"
        for env in playing:
            envs.release(env)


def test_one_whose_jvm_died_while_it_was_kept_is_not_gone_on_with():
    kept = envs.lease("TextWorldExpress/coin")
    kept.reset(seed=0)
    os.kill(kept.pid, signal.SIGKILL)
    kept._simulator._machine.process.wait()
    envs.release(kept)
    other = envs.lease("TextWorldExpress/mapreader")
    assert other.reset(seed=0)[0] and other.pid in jvm.machines()
    envs.release(other)


def test_more_episodes_at_a_time_than_a_jvm_has_memory_for_are_played_in_several(monkeypatch):
    monkeypatch.setattr(jvm, "MOST_INTERFACES", 2)
    playing = [TextWorldExpress("coin") for _ in range(3)]
    assert len({env.reset(seed=0)[0] for env in playing}) == 1
    assert [env.pid for env in playing].count(playing[0].pid) == 2 and len(jvm.machines()) == 2
    playing[0].close()
    playing[0].reset(seed=0)
    assert len(jvm.machines()) == 2, "there is room in the first again"
    for env in playing:
        env.close()
    assert jvm.machines() == []


class _Killer:
    """An agent of one slot that follows a gold path and kills the JVM once, in its third step."""

    needs_list = True

    def __init__(self, path):
        self.path, self.at, self.kills = path, 0, 0
        self.engine = type("Engine", (), {"slots": 1})()

    def start(self, *_):
        self.at = 0

    def fits(self, _):
        return True

    def advance(self, *_):
        pass

    def act(self, slots, offered, seeds):
        if self.at == 2 and not self.kills:
            self.kills += 1
            os.kill(jvm.machines()[0], signal.SIGKILL)
        self.at += 1
        return [Decision(None, self.path[self.at - 1])]


def gold(seed):
    env = envs.make(GAME.name, **GAME.options)
    env.reset(seed=seed)
    expert, actions = env.expert(), []
    while True:
        actions.append(expert.act().action)
        if any(env.step(actions[-1])[2:4]):
            env.close()
            return actions


@pytest.mark.slow
def test_a_roll_out_loses_one_episode_and_says_so():
    agent = _Killer(gold(0))
    first, second = rollout(agent, ([start_episode(GAME, seed)] for seed in (0, 0)))
    assert first.lost
    assert "EnvironmentDiedError" in first.error
    assert (second.lost, second.success, second.score) == (False, True, 1.0)


def test_collecting_goes_on_when_its_jvm_is_killed_and_counts_what_was_lost(tmp_path, monkeypatch):
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "workers": 0,
            "collect": {"levels": {"TextWorldExpress/sorting": 4, "TextWorldExpress/cookingworld": 2}},
        }
    )
    whole = collect(recipe, tmp_path / "whole")
    steps, do = [0], TextWorldExpress.do

    def killing(self, action):
        steps[0] += 1
        if steps[0] in (5, 50):
            os.kill(self.pid, signal.SIGKILL)
        return do(self, action)

    monkeypatch.setattr(TextWorldExpress, "do", killing)
    assert collect(recipe, tmp_path / "killed") == whole
    events = (tmp_path / "killed" / "events.jsonl").read_text().splitlines()
    assert len(events) == 2
    assert all("lost episode" in e and "the JVM died" in e for e in events)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no room for the heap >&2; exit 1", "the JVM does not start: it ended; no room for the heap"),
        pytest.param("echo hello; exec sleep 60", "the JVM does not start: ", marks=pytest.mark.slow),
        pytest.param("exec sleep 60", "the JVM does not start: not within 1 s", marks=pytest.mark.slow),
        ("echo 25333; exec sleep 60", "the JVM does not start: not within 1 s"),
    ],
)
def test_a_jvm_that_does_not_start_is_a_typed_error_within_bounds(tmp_path, monkeypatch, script, said):
    (tmp_path / "java").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(jvm, "START_SECONDS", 1.0)
    begun = EpisodeStarter()
    start = begun.start(GAME, 0)
    assert said in start.lost
    monkeypatch.undo()
    assert begun.start(GAME, 0).lost is None, "and the next attempt begins anew"


def test_what_a_simulator_prints_does_not_stop_it(monkeypatch):
    env = TextWorldExpress("coin")
    env.reset(seed=0)
    out = env._simulator._machine.gateway.jvm.java.lang.System
    for stream in (out.out, out.err):
        stream.println("x" * 300_000)
    assert env.step("look around")[0]
    env.close()
