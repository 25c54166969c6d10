"""The kernel for ragged sequences, which runs on CUDA devices only: its wiring, by plain attention in its place.

The same plain attention takes every packed family through it in test_packing.py.
"""

import logging

import pytest
import torch
from finetune_examples import random_examples, sharp, trained
from ragged_kernel import plain_varlen_attn
from torch._subclasses.fake_tensor import FakeTensorMode

from atlas_ray.finetune import packing, ragged
from atlas_ray.finetune.packing import packed_attention

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LENGTHS = [5, 1, 9, 5]


@pytest.fixture
def calls(monkeypatch):
    """What the kernel is called with, on a machine that can."""
    found = []

    def noted(*args, **kwargs):
        found.append((args, kwargs))
        return plain_varlen_attn(*args, **kwargs)

    monkeypatch.setattr(ragged.varlen, "varlen_attn", noted)
    monkeypatch.setattr(packing, "obstacle", lambda *_: None)
    return found


def rows(seed=0, shared=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, heads, sum(LENGTHS), 8, generator=generator) for heads in (4, shared, shared)]


# --- one call in place of one per length ---


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("shared", [1, 2, 4])
def test_one_call_gives_what_a_call_per_length_gives(monkeypatch, calls, shared, window):
    query, key, value = (x.requires_grad_() for x in rows(shared=shared))
    given = {"lengths": LENGTHS, "sliding_window": window, "scaling": 0.3}
    out, _ = packed_attention(None, query, key, value, None, **given)
    grads = torch.autograd.grad(out.square().sum(), (query, key, value))
    ((args, _),) = calls
    assert args[3].tolist() == [0, 5, 6, 15, 20] and args[3].dtype == torch.int32
    monkeypatch.undo()
    expected, _ = packed_attention(None, query, key, value, None, **given)
    expected_grads = torch.autograd.grad(expected.square().sum(), (query, key, value))
    assert len(calls) == 1 and out.shape == expected.shape
    assert torch.allclose(out, expected, atol=1e-6)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert torch.allclose(grad, wanted, atol=1e-5)


def test_without_lengths_the_row_is_one_sequence(calls):
    packed_attention(None, *rows(), None)
    assert calls[0][0][3].tolist() == [0, sum(LENGTHS)]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_which_does_not_know_the_kernel_is_heeded(calls, half):
    with torch.autocast("cpu", half):
        out, _ = packed_attention(None, *rows(), None, lengths=LENGTHS)
    assert [x.dtype for x in calls[0][0][:3]] == [half] * 3
    assert out.dtype == half


def test_all_layers_of_a_pass_take_the_same_starts(calls):
    packed_attention(None, *rows(), None, lengths=LENGTHS)
    packed_attention(None, *rows(), None, lengths=list(LENGTHS))
    assert calls[0][0][3] is calls[1][0][3]


def test_the_kernel_itself_takes_what_it_is_given(monkeypatch):
    monkeypatch.setattr(packing, "obstacle", lambda *_: None)
    with FakeTensorMode():  # PyTorch's own function, its shapes and types alone
        query, key, value = (
            torch.empty(1, heads, 20, 64, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2)
        )
        out, _ = packed_attention(None, query, key, value, None, lengths=(13, 7), sliding_window=4, scaling=0.5)
        grads = torch.autograd.grad(out.sum(), (query, key, value))
    ragged._starts.cache_clear()
    assert (out.shape, out.dtype) == ((1, 20, 4, 64), torch.bfloat16)
    assert [grad.shape for grad in grads] == [query.shape, key.shape, value.shape]


# --- where it is taken ---


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ((CPU, torch.bfloat16, 64), "CUDA devices only"),
        ((CUDA, torch.float32, 64), "float32"),
        ((CUDA, torch.bfloat16, 36), "width 36"),
        ((CUDA, torch.bfloat16, 256), "width 256"),
        ((CUDA, torch.bfloat16, 64, 0.1), "no dropout"),
    ],
)
def test_what_the_kernel_does_not_do_is_said(given, why):
    assert why in ragged.obstacle(*given)


@pytest.mark.parametrize(
    ("built", "capability", "why"), [(True, (8, 0), None), (True, (7, 5), "too old"), (False, (9, 0), "built without")]
)
def test_the_gpu_and_this_pytorch_are_asked(monkeypatch, built, capability, why):
    ragged._missing.cache_clear()
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    said = ragged.obstacle(CUDA, torch.bfloat16, 128)
    ragged._missing.cache_clear()
    assert said is None if why is None else why in said


def test_an_older_pytorch_without_shared_keys_is_not_asked(monkeypatch):
    ragged._missing.cache_clear()
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(ragged.varlen, "varlen_attn", lambda query, key, value, scale=None: None)
    said = ragged.obstacle(CUDA, torch.bfloat16, 128)
    ragged._missing.cache_clear()
    assert "shared keys" in said


# --- what a training says ---


def test_a_training_says_once_how_its_sequences_attend(caplog, tmp_path):
    with caplog.at_level(logging.INFO, "atlas_ray.finetune.loop"):
        trained(tmp_path, random_examples(4), steps=2)
    (record,) = caplog.records
    assert record.getMessage().startswith("attention: scaled_dot_product_attention, ")
    assert "CUDA devices only" in record.getMessage()


@pytest.mark.parametrize(("kind", "says"), [("llama", "varlen_attn, one call"), ("gemma2", "one sequence at a time")])
def test_what_is_said_of_a_model_on_a_gpu(monkeypatch, kind, says):
    monkeypatch.setattr(packing, "obstacle", lambda *_: None)
    assert says in packing.attention_of(sharp(kind), CUDA, torch.bfloat16)


def test_dropout_of_attention_is_known_beforehand():
    said = packing.attention_of(sharp("llama", attention_dropout=0.1), CUDA, torch.bfloat16)
    assert "no dropout" in said
