"""The kernel for ragged sequences: within each it is plain attention, and models train through it."""

import inspect

import pytest
import torch
from finetune_examples import naive_loss, random_examples, scale_of, sharp
from ragged_kernel import plain_varlen_attn

from atlas_ray.finetune import packing, ragged
from atlas_ray.finetune.loss import MaskedModel
from atlas_ray.finetune.packing import packed, packed_attention

pytestmark = pytest.mark.gpu

LENGTHS = (5, 1, 300, 64, 5, 129)


@pytest.fixture
def calls(device, monkeypatch):
    """Calls of the kernel; on a CPU, which has none, plain attention stands in for it."""
    if "enable_gqa" not in inspect.signature(ragged.varlen.varlen_attn).parameters:
        pytest.skip(f"the kernel of PyTorch {torch.__version__} takes no shared keys, so it is not used")
    if device.type == "cpu":
        kernel = plain_varlen_attn
        monkeypatch.setattr(packing, "obstacle", lambda *_: None)
    elif why := ragged.obstacle(device, torch.bfloat16, 64):
        pytest.skip(f"no kernel for ragged sequences: {why}")
    else:
        kernel = ragged.varlen.varlen_attn
    found = []

    def noted(query, *args, **kwargs):
        found.append(query.dtype)
        return kernel(query, *args, **kwargs)

    noted.__signature__ = inspect.signature(ragged.varlen.varlen_attn)
    monkeypatch.setattr(ragged.varlen, "varlen_attn", noted)
    return found


def plain(query, key, value, window):
    """Attention of each sequence alone, in float64."""
    outs, start = [], 0
    for length in LENGTHS:
        span = slice(start, start := start + length)
        q, k, v = (x[0, :, span].double() for x in (query, key, value))
        k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
        at = torch.arange(length, device=q.device)
        ago = at[:, None] - at
        seen = (ago >= 0) & (ago < (window or length))
        scores = (q @ k.transpose(1, 2) * 0.125).masked_fill(~seen, float("-inf"))
        outs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outs)[None]


@pytest.mark.parametrize("window", [None, 7, 100])
@pytest.mark.parametrize("shared", [1, 2, 8])
def test_each_sequence_attends_to_itself_alone(device, calls, shared, window):
    """Within 2 % of float64, gradients too: bfloat16 has eight bits."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randn(1, heads, sum(LENGTHS), 64, generator=generator).to(device, torch.bfloat16).requires_grad_()
        for heads in (8, shared, shared)
    ]
    weight = torch.randn(1, sum(LENGTHS), 8, 64, generator=generator).to(device)
    wanted = plain(*rows, window)
    wanted_grads = torch.autograd.grad((wanted * weight).sum(), rows)
    out, _ = packed_attention(None, *rows, None, lengths=LENGTHS, scaling=0.125, sliding_window=window)
    grads = torch.autograd.grad((out * weight).sum(), rows)
    assert calls == [torch.bfloat16]
    for found, expected in zip((out.detach(), *grads), (wanted.detach(), *wanted_grads), strict=True):
        assert float((found.double() - expected.double()).norm() / expected.double().norm()) < 2e-2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_layer_of_a_pass_in_bfloat16_makes_one_call(device, calls, checkpointing):
    model = sharp("qwen3", seed=3, hidden_size=128, head_dim=64, initializer_range=0.1).to(device).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    examples, layers = random_examples(8, seed=40, longest=60), model.config.num_hidden_layers
    exact = naive_loss(model, examples).item()
    calls.clear()
    with packed(model):
        with torch.autocast(device.type, torch.bfloat16):
            loss = MaskedModel(model)(examples, scale_of(examples))
        loss.backward()
    assert calls == [torch.bfloat16] * layers * (2 if checkpointing else 1)
    assert loss.item() == pytest.approx(exact, rel=5e-3)
