"""Packed rows: every family whose sequences share a row gives what its own forward gives to each of them alone."""

import pytest
import torch
from finetune_examples import fast_loss, gradients, naive_loss, random_examples, sharp
from ragged_kernel import plain_varlen_attn

from atlas_ray.finetune import packing, ragged
from atlas_ray.finetune.loss import MaskedModel
from atlas_ray.finetune.packing import hidden_at, packed, packed_attention, packs

KINDS = {
    "llama": ("llama", {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, one key-value head": ("llama", {"num_key_value_heads": 1}),
    "llama, scaled rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, sliding window": ("mistral", {"sliding_window": 6}),
    "qwen2": ("qwen2", {}),
    "qwen2, some layers slide": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, the last layers slide": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "smollm3, no rope in the last layer": ("smollm3", {"no_rope_layers": [0, 1, 0]}),
    "smollm3, tied": ("smollm3", {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": True}),
}
# neighbours of one length, the same length again elsewhere, a single token, longer ones than the windows
LENGTHS = [5, 5, 1, 9, 5, 14, 14, 2]


def sequences(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 50, (n,), generator=generator) for n in LENGTHS]


def alone(model, rows):
    """Logits of the model's own forward, sequence by sequence, one after the other ``[T, V]``."""
    return torch.cat([model(input_ids=row[None]).logits[0] for row in rows])


def together(model, rows, at, narrow=True):
    hidden = hidden_at(model, torch.cat(rows), [len(r) for r in rows], at, narrow)
    return model.get_output_embeddings()(hidden)


def somewhere(seed=1, count=20):
    return torch.randperm(sum(LENGTHS), generator=torch.Generator().manual_seed(seed))[:count]


def test_every_family_is_compared():
    assert {kind for kind, _ in KINDS.values()} == packing.FAMILIES


def test_the_small_models_are_what_their_names_say():
    assert sharp("mistral", **KINDS["mistral, sliding window"][1]).config.sliding_window == 6 < max(LENGTHS)
    layers = sharp("qwen2", **KINDS["qwen2, some layers slide"][1]).get_decoder().layers
    assert [layer.self_attn.sliding_window for layer in layers] == [None, 5, 5]
    layers = sharp("smollm3", **KINDS["smollm3"][1]).get_decoder().layers
    assert [bool(layer.self_attn.use_rope) for layer in layers] == [True, False, True]
    assert all(hasattr(layer.self_attn, "q_norm") for layer in sharp("qwen3").get_decoder().layers)


def assert_as_alone(model, narrow, bound):
    rows, at = sequences(), somewhere()
    expected = alone(model, rows)[at]
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    expected_grad = gradients(model, (expected * weight).sum())
    with packed(model):
        logits = together(model, rows, at, narrow)
        grad = gradients(model, (logits * weight).sum())
    assert float(expected.detach().std()) > 0.5, "the logits differ enough to be compared"
    assert float((logits - expected).detach().abs().max()) < 10 * bound
    assert float((grad - expected_grad).abs().max()) < bound * float(expected_grad.abs().max())


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_packed_rows_give_what_each_sequence_gives_alone(name, narrow):
    kind, changes = KINDS[name]
    assert_as_alone(sharp(kind, **changes), narrow, 1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_the_one_call_of_a_gpu_gives_what_each_sequence_gives_alone(name, monkeypatch):
    monkeypatch.setattr(packing, "obstacle", lambda *_: None)
    monkeypatch.setattr(ragged.varlen, "varlen_attn", plain_varlen_attn)
    kind, changes = KINDS[name]
    assert_as_alone(sharp(kind, **changes).double(), True, 1e-12)


def test_narrow_rows_are_computed_at_the_wanted_positions_alone():
    model, at, seen = sharp("llama"), somewhere(count=7), []
    hooks = [
        layer.mlp.register_forward_hook(lambda m, i, out: seen.append(len(out[0]))) for layer in model.model.layers
    ]
    with packed(model):
        together(model, sequences(), at)
        together(model, sequences(), at, narrow=False)
    for hook in hooks:
        hook.remove()
    total = sum(LENGTHS)
    assert seen == [total, total, 7, total, total, total]


def test_positions_may_stand_in_any_order_and_twice():
    model, rows = sharp("qwen3"), sequences()
    with packed(model), torch.no_grad():
        expected = together(model, rows, torch.arange(sum(LENGTHS)))
        assert torch.allclose(together(model, rows, torch.tensor([9, 3, 9])), expected[[9, 3, 9]], atol=1e-6)


def test_a_changed_token_changes_nothing_in_other_sequences():
    model, rows = sharp("mistral", sliding_window=6), sequences()
    every = torch.arange(sum(LENGTHS))
    with packed(model), torch.no_grad():
        before = together(model, rows, every)
        rows[3] = rows[3].clone()
        rows[3][2] += 1
        changed = (together(model, rows, every) != before).any(-1).nonzero().flatten().tolist()
    first = sum(LENGTHS[:3])
    assert changed == list(range(first + 2, first + LENGTHS[3]))


def test_attention_drops_out_when_it_is_told_to():
    query, key, value = torch.randn(3, 1, 4, 6, 8).unbind()
    whole, _ = packed_attention(None, query, key, value, None, lengths=[6])
    torch.manual_seed(0)
    dropped, _ = packed_attention(None, query, key, value, None, dropout=0.5, lengths=[6])
    assert not torch.allclose(whole, dropped)


def test_without_lengths_a_row_is_one_sequence():
    model, row = sharp("llama"), sequences()[3][None]
    expected = model(input_ids=row).logits
    with packed(model):
        assert torch.allclose(model(input_ids=row, use_cache=False).logits, expected, atol=1e-5)


# --- the model afterwards ---


def assert_untouched(model, before, implementation="sdpa"):
    assert model.config._attn_implementation == implementation
    assert all("forward" not in vars(layer) for layer in model.get_decoder().layers)
    assert torch.equal(alone(model, sequences()), before)


@pytest.mark.parametrize("name", KINDS)
def test_the_model_is_afterwards_as_it_was(name):
    kind, changes = KINDS[name]
    model = sharp(kind, **changes)
    with torch.no_grad():
        before = alone(model, sequences())
        with packed(model):
            assert model.config._attn_implementation == packing.NAME
            together(model, sequences(), somewhere())
        assert_untouched(model, before)


def test_the_model_is_as_it_was_after_an_exception():
    model = sharp("llama")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        before = alone(model, sequences())
        with pytest.raises(ZeroDivisionError), packed(model):
            together(model, sequences(), somewhere()).div(1 // 0)
        assert_untouched(model, before, "eager")


@pytest.mark.parametrize("model", [None, "gemma2"])
def test_no_model_and_one_that_cannot_are_left_as_they_are(model):
    model = sharp(model) if model else None
    with packed(model):
        if model:
            assert_untouched(model, alone(model, sequences()))


@pytest.mark.parametrize("narrow", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(narrow):
    model, rows, at = sharp("qwen2").train(), sequences(), somewhere()
    with packed(model):
        expected = gradients(model, together(model, rows, at, narrow).logsumexp(-1).sum())
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        calls = []
        hook = model.model.layers[-1].self_attn.register_forward_hook(lambda *_: calls.append(1))
        grad = gradients(model, together(model, rows, at, narrow).logsumexp(-1).sum())
        hook.remove()
    assert len(calls) == 2, "the layer ran again"
    assert torch.allclose(grad, expected, rtol=1e-5, atol=1e-6)


# --- other models ---

OTHERS = {
    "gemma2": {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "sliding_window": 6},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
}


@pytest.mark.parametrize("anchor", [0.0, 0.7])
@pytest.mark.parametrize("kind", OTHERS)
def test_models_whose_logits_are_capped_or_scaled_have_the_naive_loss_too(kind, anchor):
    model, base = sharp(kind, **OTHERS[kind]), sharp(kind, seed=1, **OTHERS[kind])
    assert not packs(model)
    examples = random_examples(6, seed=3)
    slow = naive_loss(model, examples, anchor, base)
    expected = gradients(model, slow)
    with packed(model), packed(base):
        fast = fast_loss(MaskedModel(model, base), examples, anchor)
        grad = gradients(model, fast)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-6)
    assert float((grad - expected).abs().max()) < 2e-6 * max(1.0, float(expected.abs().max()))
