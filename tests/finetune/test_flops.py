"""FLOPs: what the formulas say is what torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from atlas_ray.finetune.flops import (
    Shape,
    device_peak,
    forward_flops,
    parameters,
    plain_flops,
    shape_of,
    training_flops,
)

ROWS, LENGTH = 2, 16
TOKENS = ROWS * LENGTH
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
SHAPE = Shape(layers=3, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=48, vocab=97)
LLAMA_8B = Shape(layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocab=128256)
KINDS = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "granite", "olmo2", "gemma", "gemma2", "gemma3_text"]
KINDS += ["phi", "starcoder2"]


def llama():
    # eager, because torch does not count the fused attention of a CPU
    return LlamaForCausalLM._from_config(LlamaConfig(**SIZES), attn_implementation="eager").train()


def counted(model, backward=True):
    """FLOPs of linear layers and of attention, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(ROWS, LENGTH, dtype=torch.long), use_cache=False).logits
        if backward:
            logits.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    assert set(counts) == {torch.ops.aten.mm, torch.ops.aten.bmm}
    return counts[torch.ops.aten.mm], counts[torch.ops.aten.bmm]


def parts(flops, attention_passes):
    """The linear layers of our count, and attention at all pairs, as torch computes it."""
    attention = 4 * SHAPE.layers * SHAPE.heads * SHAPE.head_dim * ROWS
    causal = attention * LENGTH * (LENGTH + 1) // 2 * attention_passes
    return flops - causal, attention * LENGTH**2 * attention_passes


def adapters(rank):
    """FLOPs of adapters on every matrix of the layers, forward and backward; no input gradient at the first layer."""
    per_layer = 4 * SHAPE.hidden + 2 * (SHAPE.heads + SHAPE.kv_heads) * SHAPE.head_dim
    per_layer += 3 * (SHAPE.hidden + SHAPE.intermediate)
    return 2 * TOKENS * rank * (3 * SHAPE.layers * per_layer - 3 * SHAPE.hidden)


def test_a_forward_pass_costs_what_torch_counts():
    assert counted(llama(), backward=False) == parts(forward_flops(SHAPE, [LENGTH] * ROWS, TOKENS), 1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_full_training_costs_what_torch_counts(checkpointing):
    model = llama()
    if checkpointing:
        model.gradient_checkpointing_enable()
    flops = training_flops(SHAPE, [LENGTH] * ROWS, TOKENS, checkpointing=checkpointing)
    assert counted(model) == parts(flops, 3 + checkpointing)


def test_training_adapters_costs_what_torch_counts_but_for_the_adapters():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    linear, attention = parts(training_flops(SHAPE, [LENGTH] * ROWS, TOKENS, lora=True), 3)
    assert counted(model) == (linear + adapters(4), attention)


def test_full_training_is_three_forward_passes():
    lengths = [900, 1500, 40]
    assert training_flops(LLAMA_8B, lengths, 300, 310) == 3 * forward_flops(LLAMA_8B, lengths, 300, 310)


def test_sequences_do_not_see_each_other():
    apart = forward_flops(SHAPE, [10], 3) + forward_flops(SHAPE, [20], 4)
    assert forward_flops(SHAPE, [10, 20], 7) == apart
    assert forward_flops(SHAPE, [30], 7) - apart == 4 * 3 * 4 * 8 * 10 * 20


def test_the_last_mlp_and_the_head_cost_only_where_they_are_computed():
    every = forward_flops(SHAPE, [100], 100)
    assert every - forward_flops(SHAPE, [100], 100, last=30) == 70 * 3 * 2 * 32 * 48
    assert every - forward_flops(SHAPE, [100], 30) == 70 * 2 * 32 * 97
    assert forward_flops(SHAPE, [100], 100, last=100) == every


def test_plain_masking_computes_everything_everywhere():
    assert plain_flops(LLAMA_8B, [1500, 700]) == training_flops(LLAMA_8B, [1500, 700], 2200, last=2200)
    assert plain_flops(LLAMA_8B, [1500], lora=True) < plain_flops(LLAMA_8B, [1500])
    assert plain_flops(LLAMA_8B, [1500], checkpointing=True) > plain_flops(LLAMA_8B, [1500])


def test_llama_8b_has_as_many_weights_as_its_name_says():
    assert parameters(LLAMA_8B, tied=False) == 8_030_261_248
    assert parameters(LLAMA_8B, tied=True) == 8_030_261_248 - 128256 * 4096


@pytest.mark.parametrize("kind", KINDS)
def test_the_shape_of_a_config_gives_the_weights_of_its_model(kind):
    # wide enough that biases and norms are a small share
    config = AutoConfig.for_model(
        kind,
        **SIZES | {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "head_dim": 64},
        pad_token_id=0,
    )
    shape = shape_of(config)
    assert shape is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    really = sum(p.numel() for p in model.parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert parameters(shape, tied) == pytest.approx(really, rel=0 if kind == "llama" else 5e-3)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "qwen3_moe", "deepseek_v3", "t5", "mamba"])
def test_other_kinds_of_models_have_no_shape(kind):
    assert shape_of(AutoConfig.for_model(kind)) is None
    assert shape_of(object()) is None


def test_the_peak_of_this_machine_is_measured_and_its_threads_stay():
    before = torch.get_num_threads()
    peak = device_peak("cpu", torch.float32, 1)
    assert 1e8 < peak < 1e14
    assert torch.get_num_threads() == before
