"""TextWorld-Express: its games, folds and gold paths."""

import pytest

import envs
from envs.textworld_express import GAMES, TextWorldExpress

pytestmark = pytest.mark.java


@pytest.fixture(scope="module")
def env():
    made = TextWorldExpress("coin-v0")
    made.reset(seed=0)
    yield made
    made.close()


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("split", envs.SPLITS)
def test_gold_paths_succeed_in_every_fold(env, game, split):
    for seed in range(3):
        env.reset(seed=seed, options={"task": game, "split": split})
        expert, total = env.expert(), 0.0
        while True:
            _, reward, terminated, truncated, info = env.step(expert.act().action)
            total += reward
            if terminated or truncated:
                break
        assert info["success"]
        assert total == pytest.approx(info["score"]) == 1.0


@pytest.mark.parametrize("game", GAMES)
def test_two_episodes_side_by_side_do_not_touch_each_other(game):
    pair = [TextWorldExpress(game), TextWorldExpress(game)]

    def play(env, seed):
        env.reset(seed=seed)
        expert = env.expert()
        while True:
            action = expert.act().action
            turn = env.step(action)
            yield action, turn[:4]
            if turn[2] or turn[3]:
                return

    alone = list(play(pair[0], 1))
    for other in (1, 2):
        pair[0].reset(seed=1)
        beside, together = play(pair[1], other), []
        for action, _ in alone:
            next(beside, None)
            together.append((action, pair[0].step(action)[:4]))
        assert together == alone
    for env in pair:
        env.close()


def test_games_folds_and_seeds_are_the_simulators(env):
    env.reset(seed=0)
    simulator = env._simulator
    assert sorted(simulator.strings("getGameNames")) == list(GAMES)
    for split, method in zip(envs.SPLITS, ("Train", "Dev", "Test"), strict=True):
        seeds = list(simulator.call(f"getSeeds{method}"))
        assert seeds == list(env.variations("coin", split))
    assert len(env.variations("coin", None)) == 3000


def test_a_lost_game_is_over_and_no_success(env):
    env.reset(seed=1, options={"task": "simonsays"})
    wrong = next(a for a in env.admissible() if a not in env.reset(seed=1, options={"task": "simonsays"})[0])
    _, _, terminated, _, info = env.step(wrong)
    assert terminated
    assert not info["success"]


def test_admissible_actions_are_what_the_game_takes(env):
    env.reset(seed=0)
    for action in env.admissible():
        env.reset(seed=0)
        assert not env.step(action)[0].startswith("Unknown action")


def test_settings_of_a_game_are_passed_on_and_checked():
    small = envs.make("TextWorldExpress/coin", params="numLocations=1,includeDoors=0,numDistractorItems=0")
    observation, _ = small.reset(seed=0)
    assert "To the" not in observation, "one location has no neighbours"
    small.close()
    wrong = envs.make("TextWorldExpress/coin", params="noSuch=1")
    with pytest.raises(ValueError, match="params"):
        wrong.reset(seed=0)
    wrong.close()
