"""The budget and its guard, the environment around them, and the encoder."""

import numpy as np
import pytest
from switch_mdps import MDPS, TabularGame

from atlas_ray.errors import BudgetViolationError, InputError
from atlas_ray.models.hashed_words import encode
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.baselines import Always, Random
from atlas_ray.switching.budget import BudgetGuard
from atlas_ray.switching.environment import PENALTY, SwitchingVectorEnv
from atlas_ray.switching.features import with_shares
from atlas_ray.switching.network import SwitchNetwork
from atlas_ray.switching.policy import Situation, SwitchConfig


def chain(rows):
    return TabularGame(MDPS["chain-12"], rows)


@pytest.mark.parametrize("budget", [0, 1, 3])
@pytest.mark.parametrize("asks", ["always", "at random"])
def test_no_episode_goes_over_its_budget(budget, asks):
    """10,000 episodes each, with autoreset, counted behind the guard by the game itself."""
    game = chain(100)
    env = SwitchingVectorEnv(game, 0, budget=budget)
    env.reset(seed=7)
    rng = np.random.default_rng(0)
    while len(game.finished) < 10_000:
        env.step(np.ones(100, int) if asks == "always" else rng.integers(0, 2, 100))
    assert max(game.finished) == budget
    assert sum(env.budget.overrides) > 0


def test_a_call_past_the_guard_is_an_error():
    budget = BudgetGuard(1, rows=1)
    budget.start(0)
    assert budget.grant(0, 1) == 1
    budget.record(0)
    assert budget.grant(0, 1) == 0
    assert (budget.left, budget.overrides) == ([0], [1])
    with pytest.raises(BudgetViolationError, match="call 2 of an episode whose budget is 1"):
        budget.record(0)


def test_shares_are_zero_only_when_nothing_is_left():
    budget = BudgetGuard(3, rows=1)
    shares = [budget.share(0)]
    for _ in range(3):
        budget.grant(0, 1)
        shares.append(budget.share(0))
    assert shares == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert BudgetGuard(0, 1).share(0) == 0
    assert BudgetGuard(None, 1).share(0) == 1


def test_rewards_have_the_cost_and_the_penalty():
    cost = SwitchingVectorEnv(chain(2), 0, cost=0.05)
    cost.reset(seed=0)
    assert cost.step(np.array([0, 1]))[1].tolist() == [0.0, -0.05]
    spent = SwitchingVectorEnv(chain(2), 0, budget=0)
    spent.reset(seed=0)
    assert spent.step(np.array([0, 1]))[1].tolist() == [0.0, -PENALTY]


def test_a_row_is_reset_by_the_step_after_its_last():
    env = SwitchingVectorEnv(chain(1), 0)
    first, _ = env.reset(seed=3)
    assert env.next_seed == 4
    ended = np.array([False])
    while not ended[0]:
        last, _, ended, _, _ = env.step(np.array([0]))
        assert env.next_seed == 4
    assert last[0, :12].tolist() != first[0, :12].tolist()
    again, rewards, ended, _, info = env.step(np.array([1]))
    assert again.tolist() == first.tolist()
    assert (rewards[0], ended[0], info["calls"][0]) == (0, False, 0), "the action of a reset step does nothing"
    assert env.next_seed == 5


def test_same_seed_same_episodes():
    def play(seed):
        env = SwitchingVectorEnv(chain(4), 0, budget=2)
        env.reset(seed=seed)
        rng = np.random.default_rng(1)
        return [env.step(rng.integers(0, 2, 4))[0].tolist() for _ in range(50)]

    assert play(5) == play(5) != play(6)


def test_encoding_tells_apart_what_matters():
    def one(observation, goal="go to the red ball"):
        return encode(f"{goal}\n{observation}", 128)

    near = one("You see a red ball 1 step left, You see a wall 2 steps right")
    assert (near[:32] == one("anything")[:32]).all()
    assert near[:32].any()
    dropped = one("You see a red ball 1 step left, You see a wall 2 steps right", "drop")
    assert (near[32:96] == dropped[32:96]).all()
    assert near[96:].any()
    assert not dropped[96:].any(), "nothing that is seen is in the goal"
    assert not (
        near[:96] == one("You see a grey key 1 step left, You see a wall 2 steps right", "go to the grey key")[:96]
    ).all()
    assert (
        near[96:] == one("You see a grey key 1 step left, You see a wall 2 steps right", "go to the grey key")[96:]
    ).all()
    assert (near == one("You see a wall 2 steps right, You see a red ball 1 step left")).all(), "facts have no order"
    others = [
        "You see a red ball 1 step right, You see a wall 2 steps left",
        "You see a red ball 2 steps left, You see a wall 1 step right",
        "You see a red box 1 step left, You see a wall 2 steps right",
    ]
    assert all((near != one(o)).any() for o in others)
    assert not encode("\n", 8).any()
    assert with_shares(near[None], [0.5], [0.25])[0, -2:].tolist() == [0.5, 0.25]


def test_a_directory_without_weights_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        SwitchPolicy.load(tmp_path)
    network = SwitchNetwork(8 + 2, [4], 2, budgeted=True)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    policy = SwitchPolicy(SwitchConfig(8, (4,), budget=2), tensors)
    policy.save(tmp_path / "switch")
    assert SwitchPolicy.load(tmp_path / "switch")("drop\nYou see nothing", 0) == 0
    (tmp_path / "switch" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="does not hold the weights"):
        SwitchPolicy.load(tmp_path / "switch")
    (tmp_path / "switch" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        SwitchPolicy.load(tmp_path / "switch")


def test_random_calls_have_their_rate_and_depend_on_episode_and_step_alone():
    situations = [Situation("", None, 0.0, f"e{i}", step) for i in range(100) for step in range(20)]
    calls = Random(0.3).decide(situations)
    assert np.mean(calls) == pytest.approx(0.3, abs=0.04)
    assert Random(0.3).decide(situations[::-1]) == calls[::-1]
    assert Random(0.3, seed=1).decide(situations) != calls
    assert Always(1).decide(situations[:2]) == [1, 1]
