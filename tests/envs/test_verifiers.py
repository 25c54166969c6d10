"""``verifiers:ID`` without verifiers: conversations and traces as ``verifiers`` 0.4.0 gives them, recorded by hand.

``tests/sharing/test_verifiers.py`` plays the real package.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from atlas_ray import envs
from atlas_ray.envs import conformance
from atlas_ray.envs.verifiers import outcome, texts

SYSTEM = {"role": "system", "content": "You guess a number."}
FIRST = [SYSTEM, {"role": "user", "content": "Guess."}]


def trace(reward=1.0, **metrics):
    return SimpleNamespace(
        ok=True,
        agent=SimpleNamespace(name="player"),
        rewards={"score": SimpleNamespace(value=reward)},
        reward=reward,
        metrics=metrics,
        errors=[],
    )


class Game:
    """Two turns; ``right`` wins at once."""

    unending = False
    closed = 0

    def __init__(self, package, taskset, timeout):
        self.package, self.taskset, self.said = package, taskset, []

    def tasks(self, most):
        return min(most, self.taskset.get("count", 4))

    def begin(self, number):
        self.said = [*FIRST[:1], {"role": "user", "content": f"Guess {number}."}]
        return self.said

    def act(self, action):
        if action == "die":
            raise envs.EnvironmentDiedError("verifiers: boom")
        if action == "right" or len(self.said) > 3:
            return trace(float(action == "right"), **self.taskset.get("metrics", {}))
        text = [{"type": "text", "text": "No."}, {"type": "text", "text": "Again."}]
        self.said += [{"role": "assistant", "content": action}, {"role": "user", "content": text}]
        return self.said

    def close(self):
        Game.closed += 1


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    module = ModuleType("atlas_ray.envs.verifiers_player")
    module.Game = Game
    monkeypatch.setitem(sys.modules, "atlas_ray.envs.verifiers_player", module)


def make(**settings):
    return envs.make("verifiers:owner/guess", **settings)


def test_what_the_package_says_is_the_observation_and_a_reply_the_action():
    env = make()
    seen, info = env.reset(seed=6)
    assert (seen, info["goal"], env.variation) == ("Guess 2.", "You guess a number.", 2)
    assert env.step("wrong")[:4] == ("No.\nAgain.", 0.0, False, False)
    seen, reward, over, _, info = env.step("right")
    assert (seen, reward, over, info["score"], info["success"]) == ("The episode is over.", 1.0, True, 1.0, False)
    assert env._game.package == "owner/guess"
    before = Game.closed
    env.close()
    env.close()
    assert Game.closed == before + 1


@pytest.mark.parametrize(
    ("metrics", "success_at", "success"),
    [
        ({}, None, False),
        ({"success": 1.0}, None, True),
        ({"success": 0.5}, None, False),
        ({"success": None}, None, False),
        ({"won": 1.0}, None, False),
        ({}, 1.0, True),
        ({"success": 1.0}, 2.0, False),
    ],
)
def test_only_a_metric_of_one_or_success_at_makes_a_success(metrics, success_at, success):
    env = envs.make("verifiers:guess", success_at=success_at)
    env.reset(seed=0)
    env._game.taskset = {"metrics": metrics}
    assert env.step("right")[4]["success"] is success


def test_a_lost_episode_has_no_outcome():
    env = make()
    env.reset(seed=0)
    with pytest.raises(envs.EnvironmentDiedError, match="boom"):
        env.step("die")
    env.reset(seed=0)
    env.close()
    with pytest.raises(Exception, match="reset"):
        env.step("right")


def test_it_keeps_the_dialect_as_far_as_it_can_and_says_what_it_lacks():
    assert set(make().lacks()) == {"seeds", "replay", "success"}
    assert set(make(success_at=1.0).lacks()) == {"seeds", "replay"}
    found = {c.name: c for c in conformance.run("verifiers:guess", goal="guess", taskset='{"count": 2}')}
    assert [c for c in found.values() if c.ok is False] == []
    assert {n for n, c in found.items() if c.ok is None} >= {"gymnasium", "same seed, same text", "expert", "clone"}


def test_what_was_said_since_the_last_reply():
    said = [
        *FIRST,
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    assert texts(said) == ["a", "b"]
    assert texts(FIRST) == ["You guess a number.", "Guess."]
    for shown in (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
    ):
        with pytest.raises(envs.EnvironmentDiedError, match="more than texts"):
            texts([*FIRST, shown])


def episode(*traces, ok=True, errors=()):
    return SimpleNamespace(traces=list(traces), ok=ok, errors=list(errors))


def test_an_episode_with_an_error_or_a_missing_reward_is_lost():
    error = SimpleNamespace(type="TaskError", message="boom")
    good = trace()
    assert outcome(episode(good), "player") == ("trace", good)
    assert outcome(episode(good, ok=False, errors=[error]), "player") == ("lost", "TaskError: boom")
    assert outcome(episode(), "player")[0] == "lost"
    unscored = trace()
    unscored.rewards["other"] = None
    assert outcome(episode(unscored), "player") == ("lost", "a reward was not computed")
    failed = trace()
    failed.ok, failed.errors = False, [error]
    assert outcome(episode(failed), "player") == ("lost", "TaskError: boom")
    judge = trace()
    judge.agent.name = "judge"
    assert outcome(episode(good, judge), "player") == ("trace", good)
