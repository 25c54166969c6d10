"""What a saved switch computes in NumPy against the network that was trained: shapes, numbers of models, budgets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.features import BUDGET_ENTRY, EXTRA
from atlas_ray.switching.network import SwitchNetwork
from atlas_ray.switching.policy import Situation, SwitchConfig


def both(features, hidden, models, budget, seed):
    """A network with random weights and biases, and the policy that holds its tensors."""
    torch.manual_seed(seed)
    network = SwitchNetwork(features + EXTRA, hidden, models, budget is not None)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.5)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return network, SwitchPolicy(SwitchConfig(features, tuple(hidden), models, budget), tensors)


shapes = st.fixed_dictionaries(
    {
        "features": st.integers(0, 24),
        "hidden": st.lists(st.integers(1, 17), max_size=3),
        "models": st.integers(2, 4),
        "budget": st.one_of(st.none(), st.integers(0, 5)),
        "seed": st.integers(0, 10_000),
    }
)


@settings(max_examples=150, deadline=None)
@given(shapes, st.integers(1, 9))
def test_numbers_are_the_networks_to_rounding_and_masked_where_it_masks(shape, rows):
    network, policy = both(**shape)
    features = np.random.default_rng(shape["seed"]).normal(size=(rows, shape["features"] + EXTRA)).astype(np.float32)
    features[:, BUDGET_ENTRY] = np.random.default_rng(shape["seed"]).integers(0, 3, rows) / 2
    given_features = features.copy()
    with torch.no_grad():
        expected = network(torch.from_numpy(features)).numpy()
    numbers = policy.numbers(features)
    assert numbers.shape == expected.shape == (rows, shape["models"])
    assert np.array_equal(features, given_features), "what is read is left as it was"
    masked = np.isneginf(expected)
    spent = (features[:, [BUDGET_ENTRY]] == 0) & (shape["budget"] is not None) & (np.arange(shape["models"]) > 0)
    assert np.array_equal(masked, spent)
    assert np.array_equal(np.isneginf(numbers), masked)
    size = np.abs(expected[~masked]).max()
    assert np.abs(numbers[~masked] - expected[~masked]).max() <= 1e-5 * max(1.0, size)
    two = np.sort(expected, -1)[:, -2:]
    clear = two[:, 1] - two[:, 0] > 1e-4 * max(1.0, size)
    assert np.array_equal(np.array(policy.greedy(features))[clear], expected.argmax(-1)[clear])


@settings(max_examples=60, deadline=None)
@given(shapes, st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), min_size=1, max_size=6))
def test_decisions_are_the_same_alone_and_together_and_calls_need_a_budget(shape, states):
    network, policy = both(**shape)
    rng, budget = np.random.default_rng(shape["seed"]), shape["budget"]
    encoded = rng.normal(size=(len(states), shape["features"])).astype(np.float32)
    lefts = [None if budget is None else min(left, budget) for left, _ in states]
    situations = [
        Situation("", left, step, "", 0, vector) for left, (_, step), vector in zip(lefts, states, encoded, strict=True)
    ]
    together = policy.decide(situations)
    assert all(0 <= g < shape["models"] for g in together)
    assert not any(g for g, left in zip(together, lefts, strict=True) if left == 0)
    shares = [1.0 if budget is None else left / budget if budget else 0.0 for left in lefts]
    rows = np.column_stack([encoded, shares, [step for _, step in states]]).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(rows)).double().numpy()
    for row, (decided, situation) in enumerate(zip(together, situations, strict=True)):
        alone = policy("", situation.left, situation.step_share, situation.encoded)
        for choice in (decided, alone):
            assert expected[row].max() - expected[row, choice] <= 1e-4 * max(1.0, abs(expected[row].max()))


def test_value_and_advantages_add_up_by_hand():
    network, policy = both(1, [], 3, 2, seed=0)
    network.load_state_dict({"layers.0.weight": torch.zeros(3, 3), "layers.0.bias": torch.tensor([10.0, 6.0, -3.0])})
    policy.tensors["layers.0.weight"][:], policy.tensors["layers.0.bias"][:] = 0, [10, 6, -3]
    # mean advantage (0 + 6 - 3) / 3 = 1
    states = np.array([[0, 0.5, 0], [0, 0, 0]], np.float32)
    expected = [[9, 15, 6], [9, -np.inf, -np.inf]]
    assert policy.numbers(states).tolist() == expected
    assert network(torch.from_numpy(states)).tolist() == expected
    assert policy.greedy(states) == [1, 0]


def test_a_full_budget_is_meant_where_none_is_told():
    _, policy = both(4, [5], 2, 3, seed=1)
    vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    told = [policy("", 3, 0.5, vector) for vector in vectors]
    assert [policy("", None, 0.5, vector) for vector in vectors] == told
    assert set(told) == {0, 1}


def test_tensors_of_another_shape_are_refused():
    _, policy = both(4, [5], 2, None, seed=1)
    with pytest.raises(ValueError, match="must have the shapes"):
        SwitchPolicy(SwitchConfig(4, (5,), 3), policy.tensors)
    with pytest.raises(ValueError, match="must have the shapes"):
        SwitchPolicy(SwitchConfig(4, (5, 5)), policy.tensors)


def test_what_reads_more_than_text_has_to_be_given_it():
    _, policy = both(4, [], 2, None, seed=1)
    for config, reads in (
        (SwitchConfig(4, (), encoder="hidden"), "QUICK's hidden state"),
        (SwitchConfig(4, (), signals=("entropy", "margin")), "entropy and margin"),
    ):
        asking = SwitchPolicy(config, policy.tensors)
        with pytest.raises(ValueError, match=f"this switch reads {reads}: give them as `encoded`"):
            asking("go\nYou see nothing")
        assert asking("go\nYou see nothing", encoded=np.ones(4, np.float32)) in (0, 1)
