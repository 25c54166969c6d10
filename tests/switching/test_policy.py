"""What a saved switch computes in NumPy against the network that was trained: shapes, numbers of models, budgets."""

import json
import os
import re
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from switch_models import both

from atlas_ray.errors import InputError
from atlas_ray.models.encoders import HashingEncoder, SentenceEncoder
from atlas_ray.models.hashed_words import LONGEST_PART, encode
from atlas_ray.recipe.switch import SCORED, Signal
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.budget import BudgetGuard
from atlas_ray.switching.features import BUDGET_ENTRY, EXTRA
from atlas_ray.switching.policy import Situation, SwitchConfig
from atlas_ray.switching.signals import SCORED as SCORED_SIGNALS
from atlas_ray.switching.signals import WIDTHS

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


# --- what a caller gives ---


@pytest.fixture(scope="module")
def caller():
    """A switch under a budget of 3 that calls in some situations whatever is left."""
    return both(16, [8], 2, 3, seed=4)[1]


OBSERVATIONS = [f"go to the {thing}\nyou see a {thing} {n} steps left" for thing in ("ball", "key") for n in range(75)]


def test_nothing_left_is_no_call_whatever_the_number(caller):
    assert {caller(o, 1) for o in OBSERVATIONS} == {0, 1}
    for nothing in (0, -1, -2, -7, -1e9, -(10**400), np.int64(-3), np.int8(-128), np.float32(-2), 0.0, -0.0):
        assert not any(caller(o, nothing) for o in OBSERVATIONS), nothing
    states = [Situation(o, left, 0.5, "", 0) for o in OBSERVATIONS for left in (-1, -5)]
    assert not any(caller.decide(states))
    costly = both(16, [8], 2, None, seed=4)[1]
    assert {costly(o) for o in OBSERVATIONS} == {0, 1}
    assert not any(costly(o, -1) for o in OBSERVATIONS), "whoever keeps count by himself has none left either"


def test_more_than_the_budget_is_all_of_it(caller):
    for much in (4, 10**400, np.int64(2**60), 1e300):
        assert [caller(o, much) for o in OBSERVATIONS] == [caller(o, 3) for o in OBSERVATIONS], much


def test_numbers_of_numpy_and_whole_floats_are_numbers(caller):
    wanted = [caller(o, 2, 0.25) for o in OBSERVATIONS]
    for two in (2.0, np.int8(2), np.uint64(2), np.float32(2), np.float64(2)):
        assert [caller(o, two, np.float64(0.25)) for o in OBSERVATIONS] == wanted


@pytest.mark.parametrize(
    ("given", "field"),
    [
        *(
            ({"budget_left": x}, "budget_left")
            for x in (True, np.True_, "2", b"2", 2.5, -0.5, np.float32(1.5), float("nan"), float("inf"), -np.inf, [2])
        ),
        *(
            ({"budget_left": x}, "budget_left")
            for x in (2j, Fraction(1, 2), {}, object(), np.array([1, 2]), "9" * 9999)
        ),
        *(({"observation": x}, "observation") for x in (None, b"go\nhere", ["go"], 3, float("nan"))),
        *(({"step_share": x}, "step_share") for x in (None, "0.5", True, float("nan"), -0.1, 1.1, 10**400, [0.5])),
        *(({"encoded": x}, "encoded") for x in ("text", [1.0], np.zeros((1, 16)), [float("nan")] * 16, [1e300] * 16)),
        ({"encoded": [None] * 16}, "encoded"),
    ],
)
def test_another_type_is_an_error_that_names_the_argument(caller, given, field):
    with pytest.raises(InputError) as error:
        caller(**{"observation": "go\nhere", "budget_left": 1, **given})
    assert error.value.field == field
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


@pytest.mark.parametrize("calls", [-1, 1.5, True, "2", float("nan")])
def test_a_guard_wants_a_whole_budget(calls):
    with pytest.raises(InputError, match="budget"):
        BudgetGuard(calls, 1)


def test_a_guard_with_less_than_nothing_left_grants_nothing():
    guard = BudgetGuard(2, 1)
    guard.left[0] = -1
    assert (guard.grant(0, 1), guard.overrides, guard.share(0)) == (0, [1], 0.0)


# --- hashed words ---


def as_defined(text, width):
    """Hashed words n-gram by n-gram, as features.py tells it."""
    goal, newline, observation = text.partition("\n")
    goal, observation = (goal, observation) if newline else ("", text)

    def facts(part):
        return [re.findall(r"\w+", fact) for fact in re.split(r"[,.;\n]", part.lower())]

    def ngrams(words, longest):
        return [" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1)]

    shared = {word for words in facts(goal) for word in words if len(word) > 2}
    through = []
    for words in facts(observation):
        if shared & set(words):
            masked = ["@" if word in shared else word for word in words]
            through += [*ngrams(masked, 4), " ".join(masked) + "."]
    quarter, vector = width // 4, []
    for grams, size in (
        ([n for words in facts(goal) for n in ngrams(words, 3)], quarter),
        ([n for words in facts(observation) for n in ngrams(words, 3)], width - 2 * quarter),
        (through, quarter),
    ):
        entries = np.zeros(size, np.float32)
        for gram in grams:
            code = zlib.crc32(gram.encode())
            entries[(code >> 1) % size] += 1.0 if code & 1 else -1.0
        norm = float(np.sqrt((entries**2).mean()))
        vector.append(entries / norm if norm else entries)
    return np.concatenate(vector)


pieces = st.sampled_from(
    ["red", "ball", "to", "the", "\u0130", "\u00df", "\ud800", ",", ".", ";", "\n", "\r", "@", "_", "-1"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=40), st.sampled_from(["", " "]), st.sampled_from([4, 7, 32, 512]))
def test_words_are_hashed_as_defined_to_the_last_bit(words, between, width):
    text = between.join(words)
    found = encode(text, width)
    assert (found.dtype, found.shape) == (np.float32, (width,))
    assert found.tobytes() == as_defined(text, width).tobytes()


@pytest.mark.parametrize(
    "text",
    [
        "red ball\n" + "red ball 1 " * 100_000,
        "red\n" + "red," * 250_000,
        "x" * 1_000_000,
        "red " * 250_000 + "\nred",
        "\n" * 1_000_000,
        "goal\n" + " ".join(map(str, range(170_000))),
    ],
    ids=["one fact", "facts", "one word", "goal", "lines", "numbers"],
)
def test_a_megabyte_of_text_costs_a_fraction_of_a_second(text):
    begun = time.process_time()
    HashingEncoder(512)([text])
    assert time.process_time() - begun < 1.0


def test_what_stands_behind_the_bound_is_not_read():
    longest = "x " * (LONGEST_PART // 2)
    assert np.array_equal(encode(f"{longest}\n{longest}", 64), encode(f"{longest}more\n{longest}more", 64))
    assert not np.array_equal(encode(f"g\n{longest}", 64), encode(f"g\n{longest[:-5]}more", 64))


def test_texts_without_room_for_them_are_nothing():
    assert encode("go here\nyou are there", 3).shape == (3,)
    assert encode("go here\nyou are there", 0).shape == (0,)


# --- directories ---


def _json(**changed):
    return json.dumps({"features": 16, "hidden": [8], "models": 2, "budget": 3, **changed}).encode()


BROKEN = {
    "no configuration": ("config.json", None, "has no config.json"),
    "no weights": ("model.safetensors", None, "has no model.safetensors"),
    "an empty one": ("config.json", b"", "config.json: is no configuration of a switch"),
    "half of one": ("config.json", b'{"features": 16, "hid', "config.json: is no configuration of a switch"),
    "bytes": ("config.json", b"\xff\xfe\x00", "config.json: is no configuration of a switch"),
    "a list": ("config.json", b"[1, 2]", "config.json: is no configuration of a switch"),
    "deep": ("config.json", b"[" * 100_000, "config.json: is no configuration of a switch"),
    "another version's": ("config.json", _json(gated=True), "config.json: gated: is no field of this version"),
    "another version's signal": (
        "config.json",
        _json(signals=["margin", "mood"]),
        "config.json: signals: 'mood' is no",
    ),
    "a field missing": ("config.json", b'{"features": 16}', "config.json: hidden: is no configuration"),
    "text for a number": ("config.json", _json(features="16"), "config.json: features: is no configuration"),
    "a fraction": ("config.json", _json(budget=2.5), "config.json: budget.*: is no configuration"),
    "below nothing": ("config.json", _json(budget=-1), "config.json: budget.*: is no configuration"),
    "a truth": ("config.json", _json(models=True), "config.json: models: is no configuration"),
    "one model": ("config.json", _json(models=1), "config.json: models: is no configuration"),
    "text for widths": ("config.json", _json(hidden="8"), "config.json: hidden: is no configuration"),
    "other widths": ("config.json", _json(hidden=[9]), "model.safetensors: does not hold the weights of this switch"),
    "empty weights": ("model.safetensors", b"", "model.safetensors: does not hold the weights"),
    "bytes for weights": ("model.safetensors", b"\xff" * 100, "model.safetensors: does not hold the weights"),
    "an archive": ("model.safetensors", b"PK\x03\x04" + b"\0" * 100, "model.safetensors: does not hold the weights"),
}


@pytest.mark.parametrize(("file", "content", "said"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_directory_is_bad_input_that_names_the_file(caller, tmp_path, file, content, said):
    caller.save(tmp_path / "switch")
    path = tmp_path / "switch" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        SwitchPolicy.load(tmp_path / "switch")
    assert "\n" not in str(error.value)


HEAVY = [
    "torch",
    "httpx",
    "transformers",
    "huggingface_hub",
    "ray",
    "gymnasium",
    "minigrid",
    "pandas",
    "pyarrow",
    "scipy",
]
HEAVY += [
    f"atlas_ray.{package}" for package in ("agents", "cluster", "engines", "envs", "ray_private", "recipe", "storage")
]


def test_a_saved_switch_decides_alike_in_a_process_that_imports_nothing_heavy(caller, tmp_path):
    caller.save(tmp_path / "switch")
    code = f"""
import json, sys
from atlas_ray.switching import SwitchPolicy
from atlas_ray.models.hashed_words import encode
decide, texts = SwitchPolicy.load({str(tmp_path / "switch")!r}), {OBSERVATIONS!r}
decisions = [decide(text, 2, 0.5) for text in texts]
print(json.dumps([decisions, encode(texts[0], 64).tolist(), [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    decisions = [caller(text, 2, 0.5) for text in OBSERVATIONS]
    assert json.loads(printed.stdout) == [decisions, encode(OBSERVATIONS[0], 64).tolist(), []]


def test_the_signals_that_are_known_are_the_recipes():
    assert get_args(Signal) and set(get_args(Signal)) == set(WIDTHS)
    assert set(SCORED) == SCORED_SIGNALS


def test_half_of_the_weights_and_weights_that_are_no_numbers_are_bad_input(caller, tmp_path):
    caller.save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for size in (7, 8, 100, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"model\.safetensors: does not hold the weights"):
            SwitchPolicy.load(tmp_path)
    bad = {name: tensor.copy() for name, tensor in caller.tensors.items()}
    bad["layers.0.weight"][0, 0] = np.nan
    with pytest.raises(InputError, match="without NaN"):
        SwitchPolicy(caller.config, bad)
    with pytest.raises(InputError, match="must be float32"):
        SwitchPolicy(caller.config, {name: tensor.astype(np.float64) for name, tensor in caller.tensors.items()})


@pytest.mark.parametrize("missing", ["models", "budget", "cost", "average", "encoder", "signals"])
def test_a_switch_saved_before_a_field_was_there_is_read(caller, tmp_path, missing):
    caller.save(tmp_path)
    kept = json.loads((tmp_path / "config.json").read_text())
    del kept[missing]
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert SwitchPolicy.load(tmp_path).config.features == 16


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("modules.json", "{}", r"modules\.json: must be a JSON list"),
        ("modules.json", "[[" * 50_000, r"modules\.json: is no JSON"),
        ("modules.json", '["Transformer"]', r"modules\.json: must be a list of modules with type and path"),
        ("modules.json", '[{"type": 3, "path": ""}]', r"modules\.json: must be a list of modules with type and path"),
        ("sentence_bert_config.json", "[128]", r"sentence_bert_config\.json: must be a JSON object"),
    ],
)
def test_a_broken_sentence_encoder_is_bad_input_that_names_the_file(tmp_path, file, content, said):
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=said):
        SentenceEncoder(str(tmp_path))
