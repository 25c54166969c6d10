"""The loss on pairs of turns: that of plain torch, under any packing, and a training that is resumed."""

from dataclasses import replace

import pytest
import torch
from finetune_examples import KilledError, config, gradients, killed_after, sharp, tiny, weights, with_adapters
from preference_examples import KINDS, plain_logps, plain_loss, random_pairs

from atlas_ray.finetune import packing, preference
from atlas_ray.finetune.counts import Counts
from atlas_ray.finetune.data import batches, share_out
from atlas_ray.finetune.loop import rate, train_run
from atlas_ray.finetune.packing import causal_lm, packed
from atlas_ray.finetune.preference import NOTED, PairScale, PreferenceModel, pair_scale
from atlas_ray.recipe.loading import Pairs

CONFIG = Pairs(beta=0.5, sft=0.3)


def of_package(model, pairs, kind, groups=None):
    """Loss with its gradient, and what is noted."""
    inner = causal_lm(model)
    with packed(inner):
        whole, scale = PreferenceModel(inner, kind), pair_scale(pairs, kind)
        said = sum(whole(group, scale) for group in groups or [pairs])
        return said[0].item(), gradients(model, said[0]), dict(zip(NOTED, said[1:].tolist(), strict=True))


@pytest.fixture(params=["packed", "one by one"])
def either_way(request, monkeypatch):
    """Families that are packed, and then as if they were not known."""
    if request.param == "one by one":
        monkeypatch.setattr(packing, "FAMILIES", frozenset())


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.loss}-{kind.sft}")
def test_the_loss_its_gradient_and_its_numbers_are_those_of_the_formulas(kind):
    model, pairs = sharp("llama"), random_pairs(7)
    loss, grad, noted = of_package(model, pairs, kind)
    expected, numbers = plain_loss(model, pairs, kind)
    expected_grad = gradients(model, expected)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert float((grad - expected_grad).abs().max()) < 1e-4 * float(expected_grad.abs().max())
    assert noted == pytest.approx(numbers, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.loss}-{kind.sft}")
def test_pairs_packed_together_are_pairs_alone(kind):
    model, pairs = sharp("qwen3"), random_pairs(8, seed=1)
    loss, grad, noted = of_package(model, pairs, kind)
    alone = of_package(model, pairs, kind, [[pair] for pair in pairs])
    halves = of_package(model, pairs, kind, [pairs[:3], pairs[3:]])
    for other_loss, other_grad, other_noted in (alone, halves):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert float((grad - other_grad).abs().max()) < 1e-5 * float(grad.abs().max())
        assert noted == pytest.approx(other_noted, rel=1e-5)


def test_logits_in_pieces_are_logits_at_once(monkeypatch):
    model, pairs = sharp("llama"), random_pairs(9, seed=2)
    once = of_package(model, pairs, CONFIG)
    monkeypatch.setattr(preference, "MOST_LOGITS", 1)
    assert PreferenceModel(model, CONFIG).rows == 16 < sum(len(side.trained) for p in pairs for side in p.parts)
    pieces = of_package(model, pairs, CONFIG)
    assert pieces[0] == pytest.approx(once[0], rel=1e-6)
    assert float((pieces[1] - once[1]).abs().max()) < 1e-6 * float(once[1].abs().max())


def test_only_the_turns_tokens_count():
    """Another token in the history changes what the model thinks, but no token of it is trained."""
    model, pairs = sharp("llama"), random_pairs(4, seed=3)
    with packed(model), torch.no_grad():
        logps = PreferenceModel(model, CONFIG).turn_logps([side for pair in pairs for side in pair.parts])
    expected = [value.item() for pair in pairs for value in plain_logps(model, pair)]
    assert logps.tolist() == pytest.approx(expected, rel=1e-5)


def test_where_the_model_is_its_reference_the_loss_is_log_two_and_pulls_as_dpo_says():
    model, pairs = sharp("llama"), random_pairs(5, seed=4)
    own = [replace(pair, reference=tuple(v.item() for v in plain_logps(model, pair))) for pair in pairs]
    loss, grad, noted = of_package(model, own, Pairs(beta=0.4))
    assert loss == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-6)
    assert noted["rewards/margins"] == pytest.approx(0, abs=1e-5)
    pull = sum(0.4 / 2 / len(own) * (rejected - chosen) for chosen, rejected in (plain_logps(model, p) for p in own))
    expected = gradients(model, pull)
    assert float((grad - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_adapters_alone_get_a_gradient():
    adapted = with_adapters(sharp("llama"))
    loss, grad, _ = of_package(adapted, random_pairs(5, seed=5), CONFIG)
    expected, _ = plain_loss(adapted, random_pairs(5, seed=5), CONFIG)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    expected_grad = gradients(adapted, expected)
    assert len(grad) == sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    assert float((grad - expected_grad).abs().max()) < 1e-4 * float(expected_grad.abs().max())


def test_a_worker_without_pairs_adds_nothing():
    model = tiny()
    with packed(model):
        said = PreferenceModel(model, CONFIG)(random_pairs(1), PairScale(0.0, 0.0))
    assert said.tolist() == [0.0] * (1 + len(NOTED))
    assert float(gradients(model, said[0]).abs().max()) == 0


# --- training ---


def trained(path, pairs, steps=6, model=None, kind=CONFIG, **given):
    """A model, its counts and the rows of its steps."""
    rows, model = [], model or tiny()
    on_step = given.pop("on_step", rows.append)
    counts = train_run(model, pairs, config(**given), steps, 0, path, pairs=kind, on_step=on_step)
    return model, counts, rows


def test_training_is_adamw_on_the_plain_loss(tmp_path):
    pairs, model, expected = random_pairs(10, seed=6), tiny(), []
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    for step, indices in enumerate(batches(10, 4, 6, seed=0)):
        optimizer.param_groups[0]["lr"] = rate(config(), step, 6)
        loss, noted = plain_loss(model, [pairs[i] for i in indices], CONFIG)
        expected.append({"loss": loss.item(), **noted})
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    rows = trained(tmp_path, pairs)[2]
    for row, said in zip(rows, expected, strict=True):
        assert {"loss": row.loss, **row.noted} == pytest.approx(said, rel=1e-4, abs=1e-6)


def test_training_prefers_the_chosen_turns_and_counts_both_sides(tmp_path):
    pairs = random_pairs(4, seed=7)
    _, counts, rows = trained(tmp_path, pairs, steps=25, kind=Pairs(beta=1.0), learning_rate=1e-2)
    assert rows[-1].noted["rewards/accuracies"] == 1
    assert rows[-1].noted["rewards/margins"] > rows[0].noted["rewards/margins"] + 1
    assert rows[-1].loss < 0.5 * rows[0].loss
    tokens = sum(len(side.trained) for pair in pairs for side in pair.parts)
    read = sum(len(side.ids) for pair in pairs for side in pair.parts)
    assert isinstance(counts, Counts)
    assert (counts.trained_tokens, counts.context_tokens) == (25 * tokens, 25 * (read - tokens))
    assert 0 < counts.flops < counts.plain_flops
    assert {row.trained_tokens for row in rows} == {tokens}


def test_a_pair_stays_together_in_a_micro_batch(tmp_path):
    pairs = random_pairs(8, seed=8)
    plan = share_out([pair.size for pair in pairs], 1, 50)
    assert sorted(i for micro in plan[0] for i in micro) == list(range(8))
    losses = [
        [row.loss for row in trained(tmp_path / str(n), pairs, steps=4, micro_tokens=n)[2]] for n in (1, 50, 10_000)
    ]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)


def test_a_training_that_was_killed_goes_on_as_if_it_had_not(tmp_path):
    pairs = random_pairs(9, seed=9)
    whole, counts, rows = trained(tmp_path / "whole", pairs)
    with pytest.raises(KilledError):
        trained(tmp_path / "cut", pairs, on_step=killed_after(5))
    again, counts_again, rows_again = trained(tmp_path / "cut", pairs)
    assert torch.equal(weights(again), weights(whole))
    assert replace(counts_again, seconds=0) == replace(counts, seconds=0)
    assert [row.step for row in rows_again] == [5, 6]
    assert [(row.loss, row.noted) for row in rows_again] == [(row.loss, row.noted) for row in rows[4:]]


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"precision": "bfloat16"}])
def test_checkpointing_changes_nothing_and_bfloat16_little(tmp_path, changes):
    pairs = random_pairs(8, seed=10)
    plain = [row.loss for row in trained(tmp_path / "plain", pairs, steps=4)[2]]
    other = [row.loss for row in trained(tmp_path / "other", pairs, steps=4, **changes)[2]]
    assert other == pytest.approx(plain, rel=1e-5 if "precision" not in changes else 0.05)
    assert all(loss == loss for loss in other)
