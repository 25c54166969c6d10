"""The masked loss and its gradient against a naive one, however the examples are packed, cut and split."""

import copy
import random

import pytest
import torch
from finetune_examples import (
    SIZE,
    counts,
    fast_loss,
    gradients,
    naive_loss,
    random_examples,
    sharp,
    tiny,
    with_adapters,
)

from atlas_ray.finetune import packing
from atlas_ray.finetune.data import Example, share_out
from atlas_ray.finetune.loss import MaskedModel, Scale
from atlas_ray.finetune.packing import causal_lm, packed


def loss_and_gradient(model, examples, anchor=0.0, base=None, groups=None, rows=None):
    """Of :class:`MaskedModel`; the base stays out where there is no anchor."""
    masked = MaskedModel(model, base if anchor else None)
    masked.rows = rows or masked.rows
    with packed(model), packed(masked.base):
        loss = fast_loss(masked, examples, anchor, groups)
        return loss.item(), gradients(model, loss)


def naive_loss_and_gradient(model, examples, anchor=0.0, base=None):
    loss = naive_loss(model, examples, anchor, base)
    return loss.item(), gradients(model, loss)


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    assert float((one[1] - other[1]).abs().max()) < 1e-6
    assert float(other[1].abs().max()) > 1e-3, "a gradient of zeros would say nothing"


@pytest.fixture(params=["packed", "one by one"])
def either_way(request, monkeypatch):
    """Families that are packed, and then as if they were not known."""
    if request.param == "one by one":
        monkeypatch.setattr(packing, "FAMILIES", frozenset())


# --- against the naive loss ---


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("anchor", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_the_naive_ones(seed, anchor):
    model, base = tiny(seed), tiny(seed + 10)
    examples = random_examples(7, seed)
    assert len({len(e.ids) for e in examples}) > 3
    expected = naive_loss_and_gradient(model, examples, anchor, base)
    assert_same(loss_and_gradient(model, examples, anchor, base), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_gets_its_gradient_whether_it_is_the_embedding_or_not(tied):
    model = sharp("llama", tie_word_embeddings=tied, initializer_range=0.05)
    base = sharp("llama", seed=1, tie_word_embeddings=tied)
    examples = random_examples(6, seed=3)
    expected = naive_loss_and_gradient(model, examples, 0.5, base)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert_same(loss_and_gradient(model, examples, 0.5, base), expected)
    assert model.get_output_embeddings().weight.grad.any()


def test_without_a_gradient_the_loss_is_the_same():
    model, base = tiny(0), tiny(1)
    examples = random_examples(5)
    with_gradient, _ = loss_and_gradient(model, examples, 0.5, base)
    with torch.no_grad(), packed(model), packed(base):
        assert fast_loss(MaskedModel(model, base), examples, 0.5).item() == with_gradient


def test_a_multiple_of_the_loss_has_the_multiple_of_the_gradient():
    model, examples = tiny(), random_examples(5)
    _, once = loss_and_gradient(model, examples)
    with packed(model):
        thrice = gradients(model, 3 * fast_loss(model, examples))
    assert torch.allclose(thrice, 3 * once, atol=1e-7)


# --- packed, split and cut ---


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_one_batch_of_eight_equals_eight_batches_of_one(anchor):
    model, base = tiny(0), tiny(1)
    examples = random_examples(8, seed=4)
    whole = loss_and_gradient(model, examples, anchor, base)
    assert_same(loss_and_gradient(model, examples, anchor, base, [[e] for e in examples]), whole)
    assert_same(loss_and_gradient(model, examples[::-1], anchor, base), whole)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_shares_of_all_workers_add_up_to_the_loss(world):
    model, base = tiny(0), tiny(1)
    examples = random_examples(9, seed=10)
    plan = share_out([len(e.ids) for e in examples], world, 40)
    groups = [[examples[i] for i in places] for worker in plan for places in worker]
    assert len(groups) > world
    assert_same(
        loss_and_gradient(model, examples, 0.5, base, groups), naive_loss_and_gradient(model, examples, 0.5, base)
    )


def test_an_example_that_weighs_nothing_adds_nothing():
    model = tiny()
    with packed(model):
        loss = MaskedModel(model)(random_examples(1), Scale(0.0, 0.0))
        assert loss.item() == 0
        assert not gradients(model, loss).any(), "and every weight gets a gradient"


@pytest.mark.parametrize("narrow", [True, False])
def test_the_whole_last_layer_and_the_narrow_one_give_the_same(narrow):
    model, base = tiny(0), tiny(1)
    examples = random_examples(6, seed=5)
    masked = MaskedModel(model, base)
    masked.narrow = narrow
    with packed(model), packed(base):
        loss = fast_loss(masked, examples, 0.5)
        assert_same((loss.item(), gradients(model, loss)), naive_loss_and_gradient(model, examples, 0.5, base))


def test_cutting_behind_the_last_trained_token_is_exact():
    model = tiny()
    rng = random.Random(1)
    cut = random_examples(6, seed=6, anchored=False)
    cut = [Example(e.ids[: e.trained[-1] + 1], e.trained, (), 0) for e in cut]
    whole = [
        Example(e.ids + tuple(rng.randrange(SIZE) for _ in range(rng.randint(1, 20))), e.trained, (), 0) for e in cut
    ]
    assert_same(loss_and_gradient(model, cut), loss_and_gradient(model, whole))


@pytest.mark.parametrize("anchor", [0.0, 0.6])
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_pieces_of_any_size_give_the_same(rows, anchor):
    model, base = tiny(0), tiny(1)
    examples = random_examples(6, seed=12)
    assert min(n for n in counts(examples) if n) > 7
    whole = loss_and_gradient(model, examples, anchor, base, rows=10_000)
    assert_same(loss_and_gradient(model, examples, anchor, base, rows=rows), whole)
    assert MaskedModel(model).rows >= sum(counts(examples)), "small batches go at once"


# --- which tokens ---


def untouched_by_context(seed):
    """A model whose logits depend on the token before alone: attention writes nothing."""
    model = sharp("llama", seed, vocab_size=300, tie_word_embeddings=False, pad_token_id=None)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    return model


def blind(seed):
    """A model whose logits are the same everywhere: all tokens have one embedding."""
    model = sharp("llama", seed, tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[:] = model.model.embed_tokens.weight[3].clone()
    return model


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_exactly_the_selected_positions_contribute(anchor):
    drawn, model, base = random_examples(6, seed=7), untouched_by_context(0), untouched_by_context(1)
    names = iter(range(300))  # every token is another one, so that its embedding's gradient tells of its position
    examples = [Example([next(names) for _ in e.ids], e.trained, e.anchored, 0) for e in drawn]
    loss_and_gradient(model, examples, anchor, base)
    touched = set(model.model.embed_tokens.weight.grad.abs().sum(-1).nonzero().flatten().tolist())
    wanted = {e.ids[p - 1] for e in examples for p in e.trained}
    if anchor:
        wanted |= {e.ids[p - 1] for e in examples for p in e.anchored}
    assert touched == wanted


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_every_selected_target_matters_and_no_other(anchor):
    examples, masked = random_examples(5, seed=8), MaskedModel(blind(0), blind(1))

    @torch.no_grad()
    def loss(examples):
        with packed(masked.model), packed(masked.base):
            return fast_loss(masked, examples, anchor).item()

    before = loss(examples)
    for row, example in enumerate(examples):
        for position in range(len(example.ids)):
            ids = list(example.ids)
            ids[position] = (ids[position] + 1) % SIZE
            changed = list(examples)
            changed[row] = Example(tuple(ids), example.trained, example.anchored, 0)
            assert (abs(loss(changed) - before) > 1e-6) == (position in example.trained)


# --- adapters on the head ---


@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_an_adapter_on_the_head_takes_part(anchor):
    adapted = with_adapters(sharp("llama"), targets=["lm_head", "q_proj"])
    inner, examples = causal_lm(adapted), random_examples(6, seed=13)
    masked, base = MaskedModel(inner, adapted), sharp("llama")
    expected = naive_loss_and_gradient(inner, examples, anchor, base)
    with packed(inner):
        loss = fast_loss(masked, examples, anchor)
        assert_same((loss.item(), gradients(inner, loss)), expected)
    plain = naive_loss(base, examples, anchor, copy.deepcopy(base)).item()
    assert abs(expected[0] - plain) > 1e-2, "the adapter changes something"
