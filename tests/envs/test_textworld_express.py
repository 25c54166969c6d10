"""TextWorld-Express: its games, folds and gold paths."""

import gymnasium as gym
import pytest

from atlas_ray import envs
from atlas_ray.envs.jvm import Interface
from atlas_ray.envs.textworld_express import GAMES, PARAMS, SIMULATOR, TextWorldExpress

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
    with pytest.raises(ValueError, match="params"):
        envs.make("TextWorldExpress/coin", params="noSuch=1")
    with pytest.raises(ValueError, match="params: twc has no 'numIngredients'"):
        envs.make("TextWorldExpress/cookingworld", params="numIngredients=2").reset(options={"task": "twc"})


@pytest.mark.parametrize(
    ("game", "params", "said"),
    [
        ("cookingworld", "numLocations", "give numLocations=NUMBER, a whole number from 1 to 11"),
        ("cookingworld", "numLocations=abc", "give numLocations=NUMBER"),
        ("cookingworld", "numLocations=3.5", "give numLocations=NUMBER"),
        ("cookingworld", "numLocations=true", "give numLocations=NUMBER"),
        ("cookingworld", "numLocations=3;includeDoors=0", "give numLocations=NUMBER"),
        ("cookingworld", "numLocations=99", "from 1 to 11"),
        ("cookingworld", "numLocations=3,numLocations=4", "given twice"),
        ("cookingworld", "NumLocations=3", "has no 'NumLocations'; it has numLocations"),
        ("twc", "numItemsToPutAway=0", "from 1 to 4"),
        ("sorting", "a=b", "has no 'a'; it has none"),
        ("coin", 3, "is no text"),
    ],
)
def test_settings_that_the_simulator_swallows_are_refused_at_once(game, params, said):
    with pytest.raises(ValueError, match=f"^params: .*{said}"):
        TextWorldExpress(game, params=params)


@pytest.mark.parametrize("game", GAMES)
def test_the_table_of_settings_is_the_simulators(env, game):
    simulator = Interface(SIMULATOR)
    said = simulator.call("load", game, "none=1").partition("Known properties:")[2]
    assert [name for name in PARAMS[game] if name not in said] == []
    assert len(said.split(",")) == max(1, len(PARAMS[game]))
    for name, (low, high) in PARAMS[game].items():
        for number in (low, high):
            assert simulator.call("load", game, f"{name}={number}") == "", (name, number)
        if (low, high) != (0, 1):
            assert simulator.call("load", game, f"{name}={high + 1}") != "", name
    simulator.close()


def test_settings_are_read_without_white_space_and_empty_entries():
    made = TextWorldExpress("cookingworld", params=" numLocations = 3 ,, includeDoors=0,")
    assert made.params == "numLocations=3,includeDoors=0"
    assert made.reset(seed=0)[0].startswith("You are in the")
    made.close()


def test_an_error_of_the_simulator_is_a_fault_and_never_a_score(monkeypatch):
    monkeypatch.setattr("atlas_ray.envs.textworld_express.game_params", lambda game, params: params)
    for params in ("numLocations=abc", "numLocations"):
        made = TextWorldExpress("cookingworld", params=params)
        with pytest.raises(envs.EnvironmentDiedError, match="ERROR: Game generator is not initialized"):
            made.reset(seed=0)
    made = TextWorldExpress("twc", params="numItemsToPutAway=0")
    with pytest.raises(envs.EnvironmentDiedError, match="its score is nan"):
        made.reset(seed=0)
    with pytest.raises(gym.error.ResetNeeded):
        made.step("look around")
    monkeypatch.undo()
    far = TextWorldExpress("mapreader", params="numLocations=1,maxDistanceApart=8")
    with pytest.raises(envs.EnvironmentDiedError, match="No locations could be found"):
        far.reset(seed=0)
