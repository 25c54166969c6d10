"""Environments of others: any Gymnasium environment of text, and those of OpenEnv servers."""

import gymnasium as gym
import numpy as np
import pytest

from atlas_ray import envs
from atlas_ray.cli import main
from atlas_ray.envs import conformance
from atlas_ray.envs.foreign import ForeignEnv

NAME = "gymnasium:Strangers/Number-v0"


class Number(gym.Env):
    """Guess a digit. Knows nothing of this package."""

    observation_space = gym.spaces.Text(200)
    action_space = gym.spaces.Text(10)
    drawn = iter(range(10**6))

    def __init__(self, tries=5, says=False, seeded=True, rewards=1.0):
        self.tries, self.says, self.seeded, self.rewards = tries, says, seeded, rewards

    def info(self, won):
        return {"is_success": won, "goal": "guess", "admissible_commands": ["1", "2"]} if self.says else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number = int(self.np_random.integers(1, 10)) if self.seeded else next(Number.drawn)
        self.left = self.tries
        return f"guess {'' if self.seeded else self.number}", self.info(False)

    def step(self, action):
        self.left -= 1
        won = action == str(self.number)
        observation = "yes" if won else "higher" if action.isdigit() and int(action) < self.number else "no"
        return observation, np.float64(won * self.rewards), won, not won and not self.left, self.info(won)


@pytest.fixture(autouse=True)
def registered():
    gym.register("Strangers/Number-v0", entry_point=Number, disable_env_checker=True)
    yield
    gym.registry.pop("Strangers/Number-v0")


def guess(env, seed):
    """The right number, then the outcome."""
    env.reset(seed=seed)
    for number in "123456789":
        _, _, terminated, truncated, info = env.step(number)
        if terminated or truncated:
            return terminated, truncated, info
    raise AssertionError


def test_an_environment_of_text_keeps_the_dialect_by_its_id():
    found = {c.name: c for c in conformance.run(NAME, says=True)}
    assert [c for c in found.values() if c.ok is False] == []
    assert [name for name, c in found.items() if c.ok is None] == ["expert"]


def test_success_goal_and_actions_are_what_the_environment_says():
    env = envs.make(NAME, says=True, tries=9)
    assert env.lacks() == {}
    _, info = env.reset(seed=1)
    assert (info["goal"], info["admissible"](), info["success"]) == ("guess", ["1", "2"], False)
    terminated, _, info = guess(env, 1)
    assert terminated and info["success"] is True and info["score"] == 1.0
    assert env.admissible() == []


def test_what_an_environment_does_not_say_is_never_a_success():
    env = envs.make(NAME, tries=9, goal="find it")
    assert set(env.lacks()) == {"success"}
    assert "set success_at" in env.lacks()["success"]
    terminated, _, info = guess(env, 1)
    assert terminated and info["success"] is False and info["score"] == 1.0
    assert info["goal"] == "find it"


def test_success_at_says_it_instead_and_scales_the_score():
    env = envs.make(NAME, tries=9, success_at=4.0, rewards=2.0)
    assert env.lacks() == {}
    _, _, info = guess(env, 1)
    assert (info["success"], info["score"]) == (False, 0.5)
    env = envs.make(NAME, tries=9, success_at=2.0, rewards=2.0)
    _, _, info = guess(env, 1)
    assert (info["success"], info["score"]) == (True, 1.0)


def test_its_own_limit_truncates():
    env = envs.make(NAME, tries=2)
    env.reset(seed=0)
    env.step("0")
    assert env.step("0")[2:4] == (False, True)
    with pytest.raises(gym.error.ResetNeeded):
        env.step("0")


def test_an_action_that_its_space_does_not_hold_costs_a_step_and_goes_nowhere():
    env = envs.make(NAME, tries=1, max_steps=2)
    env.reset(seed=0)
    assert env.step("x" * 11)[:4] == ("That is no action here.", 0.0, False, False)
    assert env.step("日本")[3] is True


def test_without_seeds_it_says_so_and_cannot_be_cloned():
    env = envs.make(NAME, seeded=False, success_at=1.0)
    assert set(env.lacks()) == {"seeds", "replay"}
    env.reset(seed=0)
    with pytest.raises(NotImplementedError, match="two episodes of one seed differ"):
        env.clone()
    found = {c.name: c for c in conformance.run(NAME, seeded=False, success_at=1.0)}
    assert [c for c in found.values() if c.ok is False] == []
    skipped = {name for name, c in found.items() if c.ok is None}
    assert skipped == {"gymnasium", "same seed, same text", "expert", "clone"}


def test_settings_are_its_own_and_the_adapters():
    assert list(envs.arguments(NAME)) == ["tries", "says", "seeded", "rewards", "goal", "success_at"]
    with pytest.raises(ValueError, match="success_at"):
        envs.make(NAME, success_at=0.0)
    with pytest.raises(ValueError, match=r"success_at: 'x' is a str"):
        envs.make(NAME, success_at="x")


def test_doctor_says_what_it_lacks(capsys, monkeypatch):
    monkeypatch.setattr(conformance, "CHECKS", {"clone": conformance.CHECKS["clone"]})
    assert main(["doctor", "--env", NAME, "--seeded", "false"]) == 0
    out = capsys.readouterr().out
    assert "  lacks seeds: two episodes of one seed differ" in out
    assert "  lacks success: it says nothing of success" in out
    assert "skipped  clone: it cannot be replayed" in out


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), "1", [1, 2]])
def test_a_reward_that_is_none_loses_the_episode(reward):
    with pytest.raises(envs.EnvironmentDiedError, match="not a finite number"):
        ForeignEnv("x").turn("text", reward, False, False, {})


@pytest.mark.parametrize("text", [None, 3, "x" * (2**18 + 1)])
def test_an_observation_that_is_none_loses_the_episode(text):
    with pytest.raises(envs.EnvironmentDiedError, match="observation"):
        ForeignEnv("x").turn(text, 0.0, False, False, {})


@pytest.mark.parametrize("score", [2.0, -1, float("nan"), "high", None])
def test_a_score_that_is_none_is_not_taken(score):
    env = ForeignEnv("x")
    assert env.turn("text", 0.25, False, False, {"score": score}).score == 0.25


@pytest.mark.parametrize("said", [{"success": "yes"}, {"success": 1}, {"won": True}, {"success": None}, {}])
def test_only_a_plain_true_is_a_success(said):
    assert ForeignEnv("x").turn("text", 1.0, True, False, said).success is False


def test_selectors_that_replay_refuse_it_by_name(tmp_path, capsys):
    from atlas_ray.errors import InputError
    from atlas_ray.recipe.loading import load
    from atlas_ray.stages.lacks import check_lacks

    path = tmp_path / "r.toml"
    for selector in ("value", "deviation", "verified"):
        path.write_text(
            f'name = "r"\n[environments."{NAME}"]\nseeded = false\n[collect]\nlevels = {{ "{NAME}" = 4 }}\n'
            f'[select]\nselectors = ["all", "{selector}"]\n'
        )
        with pytest.raises(InputError, match=f"{selector} replays episodes, and {NAME} cannot be replayed") as caught:
            check_lacks(load(path))
        assert caught.value.field == "select.selectors"
        assert f"{NAME} lacks seeds: two episodes of one seed differ\n" in capsys.readouterr().out
    path.write_text(path.read_text().replace("seeded = false", "seeded = true"))
    check_lacks(load(path))
    assert capsys.readouterr().out.count("lacks") == 1
