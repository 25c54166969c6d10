"""The anchor: the divergence from the base, however what the base says of a token comes to the loss."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from finetune_examples import (
    TOKENIZER,
    fast_loss,
    gradients,
    naive_loss,
    note,
    random_examples,
    sharp,
    tiny,
    trajectory,
    with_adapters,
)

from atlas_ray.agents.rendering import Renderer
from atlas_ray.finetune import base_logps as kept
from atlas_ray.finetune import packing
from atlas_ray.finetune.data import Examples
from atlas_ray.finetune.loss import MaskedModel
from atlas_ray.finetune.packing import causal_lm, packed
from atlas_ray.finetune.store import build_store


def anchored_loss(model, base, examples, anchor):
    """Loss and gradient; ``base`` is a model, a peft model, or None where the examples bring what it says."""
    with packed(model), packed(base if base is not None and not hasattr(base, "disable_adapter") else None):
        loss = fast_loss(MaskedModel(model, base), examples, anchor)
        return loss.item(), gradients(model, loss)


@torch.no_grad()
def with_kept(examples, base):
    """The same examples with the base's log-probabilities, from its own forward pass."""
    made = []
    for e in examples:
        logp = base(input_ids=torch.tensor([e.ids])).logits[0].log_softmax(-1)
        made.append(replace(e, base=logp[[p - 1 for p in e.anchored]].numpy() if e.anchored else None))
    return made


@pytest.fixture(params=["packed", "one by one"])
def either_way(request, monkeypatch):
    """Families that are packed, and then as if they were not known."""
    if request.param == "one by one":
        monkeypatch.setattr(packing, "FAMILIES", frozenset())


@pytest.mark.usefixtures("either_way")
def test_an_anchor_to_itself_is_zero_and_pulls_nowhere():
    model = tiny()
    examples = random_examples(5)
    plain, pull = anchored_loss(model, None, examples, 0.0)
    anchored, pull_too = anchored_loss(model, copy.deepcopy(model), examples, 5.0)
    assert plain == pytest.approx(anchored, abs=1e-6)
    assert torch.allclose(pull, pull_too, atol=1e-6)


@pytest.mark.usefixtures("either_way")
def test_an_anchor_without_anchored_tokens_changes_nothing():
    model, base = tiny(0), tiny(1)
    examples = random_examples(4, anchored=False)
    assert anchored_loss(model, base, examples, 1.0)[0] == anchored_loss(model, None, examples, 0.0)[0]


@pytest.mark.usefixtures("either_way")
def test_the_base_gets_no_gradient():
    model, base, keeps = tiny(0), tiny(1), []
    base.get_decoder().register_forward_hook(lambda *_: keeps.append(torch.is_grad_enabled()))
    anchored_loss(model, base, random_examples(4), 1.0)
    assert all(p.grad is None for p in base.parameters())
    assert keeps and not any(keeps), "and keeps nothing for one"
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.usefixtures("either_way")
def test_what_was_kept_of_the_base_equals_its_passing_each_time():
    model, base = tiny(0), tiny(1)
    examples = [*random_examples(5, seed=2), *random_examples(2, seed=3, anchored=False)]
    loss, grad = anchored_loss(model, base, examples, 2.0)
    kept_loss, kept_grad = anchored_loss(model, None, with_kept(examples, base), 2.0)
    assert kept_loss == pytest.approx(loss, rel=1e-6)
    assert float((kept_grad - grad).abs().max()) < 1e-6
    assert loss > anchored_loss(model, None, examples, 0.0)[0] + 1e-2


@pytest.mark.usefixtures("either_way")
def test_a_token_that_the_base_thinks_impossible_adds_nothing_and_no_nan():
    model = tiny(0)
    examples, impossible = with_kept(random_examples(5, seed=4), tiny(1)), 7
    expected = torch.zeros((), dtype=torch.float64)
    rows = sum(len(e.anchored) for e in examples)
    for i, e in enumerate(examples):
        if not e.anchored:
            continue
        logp = torch.as_tensor(e.base).double()
        logp[:, impossible] = -torch.inf
        logp = logp.log_softmax(-1)
        examples[i] = replace(e, base=logp.float().numpy())
        mine = model(input_ids=torch.tensor([e.ids])).logits[0].double().log_softmax(-1)[[p - 1 for p in e.anchored]]
        possible = [v for v in range(logp.shape[1]) if v != impossible]
        p, q = logp[:, possible], mine[:, possible]
        expected = expected + 0.5 * (p.exp() * (p - q)).sum() / rows
    expected = expected + naive_loss(model, examples)
    expected_grad = gradients(model, expected)
    loss, grad = anchored_loss(model, None, examples, 0.5)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert float((grad - expected_grad).abs().max()) < 1e-6


@pytest.mark.usefixtures("either_way")
def test_adapters_switched_off_are_the_base_and_on_again_afterwards():
    adapted = with_adapters(tiny())
    inner, examples = causal_lm(adapted), random_examples(6, seed=5)
    loss, grad = anchored_loss(inner, adapted, examples, 0.8)
    copy_loss, copy_grad = anchored_loss(inner, tiny(), examples, 0.8)
    assert loss == pytest.approx(copy_loss, rel=1e-6)
    assert float((grad - copy_grad).abs().max()) < 1e-6
    assert len(grad) == sum(p.numel() for name, p in inner.named_parameters() if "lora_" in name)
    on, off = naive_loss(inner, examples).item(), naive_loss(tiny(), examples).item()
    assert anchored_loss(inner, None, examples, 0.0)[0] == pytest.approx(on, rel=1e-6)
    assert abs(on - off) > 1e-3


# --- what is kept on disk ---


@pytest.fixture
def store(tmp_path):
    items = [trajectory(str(i), steps) for i, steps in enumerate([3, 1, 5, 2])]
    return build_store(tmp_path / "tokens", items, Renderer(TOKENIZER), 500, "error", "key")


@pytest.mark.parametrize("micro_tokens", [1, 70, 10_000])
def test_the_file_holds_a_row_for_each_token_of_each_turn(tmp_path, store, micro_tokens):
    base = sharp("llama", attention_dropout=0.5, max_position_embeddings=500).train()
    rows = kept.base_logps(tmp_path / "base.npy", base, store, micro_tokens)
    assert base.training
    base.eval()
    assert rows.shape[0] == store.turn_tokens == sum(b - a for i in range(4) for a, b in store.spans(i))
    expected = []
    for i in range(4):
        logp = base(input_ids=torch.tensor(np.array(store.ids(i)))[None].long()).logits[0].log_softmax(-1)
        expected += [logp[p - 1].detach().numpy() for a, b in store.spans(i) for p in range(a, b)]
    assert np.abs(rows - np.stack(expected)).max() < 1e-5


def test_examples_find_their_rows_and_the_loss_is_that_of_a_passing_base(tmp_path, store):
    model, base = tiny(0), tiny(1)
    notes = [note("0", 1), note("1", 0), note("2", 0, 3)]
    rows = kept.base_logps(tmp_path / "base.npy", base, store, 100)
    with_rows, without = Examples(store, notes, True, rows), Examples(store, notes, True)
    assert [e.base is None for e in with_rows] == [False, True, False], "the second has nothing anchored"
    kept_loss, kept_grad = anchored_loss(model, None, list(with_rows), 0.5)
    loss, grad = anchored_loss(model, base, list(without), 0.5)
    assert kept_loss == pytest.approx(loss, rel=1e-6)
    assert float((kept_grad - grad).abs().max()) < 1e-6


def test_the_file_is_made_once_and_not_by_a_pass_that_was_killed(tmp_path, store, monkeypatch):
    path, base = tmp_path / "base.npy", tiny(1)
    monkeypatch.setattr(kept, "hidden_at", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kept.base_logps(path, base, store, 100)
    assert [p.name for p in tmp_path.iterdir()] == ["tokens"]
    monkeypatch.undo()
    first = np.array(kept.base_logps(path, base, store, 100))
    monkeypatch.setattr(kept, "hidden_at", lambda *_: 1 / 0)
    assert np.array_equal(kept.base_logps(path, base, store, 100), first)


def test_only_what_is_little_enough_is_kept(store, monkeypatch):
    size = 4 * store.turn_tokens * tiny().config.vocab_size
    monkeypatch.setattr(kept, "MOST_BYTES", size)
    assert kept.worth_keeping(tiny(), store)
    monkeypatch.setattr(kept, "MOST_BYTES", size - 1)
    assert not kept.worth_keeping(tiny(), store)
