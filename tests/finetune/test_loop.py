"""Training one model: what it counts, what fixes it, how it is killed and goes on, and when it is given up."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from finetune_examples import (
    KilledError,
    config,
    counts,
    killed_after,
    naive_loss,
    random_examples,
    sharp,
    tiny,
    trained,
    weights,
    with_adapters,
)

from atlas_ray.errors import DivergedError, EmptySelectionError, InputError
from atlas_ray.finetune.data import Example, batches
from atlas_ray.finetune.loop import rate
from atlas_ray.finetune.process_group import ProcessGroup


def losses(path, examples, **given):
    rows = []
    trained(path, examples, on_step=rows.append, **given)
    return [row.loss for row in rows]


def without_seconds(report):
    return replace(report, seconds=0.0)


# --- what is trained ---


def test_training_is_adamw_on_the_naive_loss(tmp_path):
    examples, model, base, expected = random_examples(10, seed=17), tiny(), tiny(), []
    given = {"learning_rate": 1e-2, "weight_decay": 0.1, "clip": 0.5, "warmup": 0.25, "batch_size": 3}
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1)
    for step, indices in enumerate(batches(10, 3, 8, seed=5)):
        optimizer.param_groups[0]["lr"] = rate(config(**given), step, 8)
        loss = naive_loss(model, [examples[i] for i in indices], 0.3, base)
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert losses(tmp_path, examples, steps=8, seed=5, anchor=0.3, **given) == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0] - 0.1


def test_training_lowers_the_loss_and_counts_tokens(tmp_path):
    examples = random_examples(8, seed=13, anchored=False)
    rows = []
    model, report = trained(tmp_path, examples, steps=20, batch_size=8, on_step=rows.append)
    first = naive_loss(tiny(), examples).item()
    assert rows[0].loss == pytest.approx(first, rel=1e-5)
    assert naive_loss(model, examples).item() < 0.8 * first
    tokens, _ = counts(examples)
    assert [(r.step, r.steps, r.trained_tokens) for r in rows] == [(i, 20, tokens) for i in range(1, 21)]
    assert all(r.grad_norm > 0 for r in rows)
    assert report.steps == 20
    assert report.trained_tokens == 20 * tokens
    assert report.anchored_tokens == report.idle_tokens == 0
    assert report.context_tokens == 20 * (sum(len(e.ids) for e in examples) - tokens)
    assert report.cut_tokens == 20 * sum(e.cut for e in examples)
    assert 0 < report.flops < report.plain_flops
    assert rows[-1].seconds > rows[0].seconds > 0 and report.seconds > 0
    assert not model.training


def test_anchored_tokens_are_counted_apart(tmp_path):
    examples = random_examples(4, seed=13)
    _, report = trained(tmp_path, examples, steps=3, anchor=0.5)
    tokens, anchored = counts(examples)
    assert (report.trained_tokens, report.anchored_tokens) == (3 * tokens, 3 * anchored)
    assert report.context_tokens == 3 * (sum(len(e.ids) for e in examples) - tokens - anchored)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0.2, [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("linear", 0.0, [1, 1, 8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9]),
        ("constant", 0.4, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1]),
        ("cosine", 0.6, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, (2 + 2**0.5) / 4, 1 / 2, (2 - 2**0.5) / 4]),
    ],
)
def test_the_learning_rate_warms_up_and_then_goes_its_way(tmp_path, schedule, warmup, expected):
    given, rows = {"schedule": schedule, "warmup": warmup, "learning_rate": 0.02}, []
    assert [rate(config(**given), step, 10) / 0.02 for step in range(10)] == pytest.approx(expected)
    trained(tmp_path, random_examples(2), steps=10, on_step=rows.append, **given)
    assert [row.learning_rate / 0.02 for row in rows] == pytest.approx(expected)


def test_the_seed_and_only_the_seed_fixes_the_run(tmp_path):
    examples = random_examples(8, seed=14)
    torch.manual_seed(1)
    a, _ = trained(tmp_path / "a", examples, seed=1)
    torch.manual_seed(2)
    b, _ = trained(tmp_path / "b", examples, seed=1)
    c, _ = trained(tmp_path / "c", examples, seed=2)
    assert torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), weights(c))


@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_the_size_of_micro_batches_does_not_change_the_mathematics(tmp_path, anchor):
    examples = random_examples(8, seed=15)
    one, other = (losses(tmp_path / str(n), examples, steps=5, anchor=anchor, micro_tokens=n) for n in (1, 100_000))
    assert one == pytest.approx(other, rel=1e-5)


def test_an_anchor_keeps_the_model_closer_to_its_base(tmp_path):
    examples = random_examples(10, seed=16)
    base = tiny()

    @torch.no_grad()
    def divergence(model):
        return (naive_loss(model, examples, 1.0, base) - naive_loss(model, examples)).item()

    plain, _ = trained(tmp_path / "plain", examples, steps=30, learning_rate=1e-2)
    held, _ = trained(tmp_path / "held", examples, steps=30, learning_rate=1e-2, anchor=20.0)
    assert counts(examples)[1] > 20
    assert divergence(tiny()) == pytest.approx(0, abs=1e-9)
    assert 0 < divergence(held) < 0.5 * divergence(plain)
    assert naive_loss(held, examples).item() < naive_loss(base, examples).item(), "and it still learns"


def test_gradient_checkpointing_changes_nothing(tmp_path):
    examples = random_examples(8, seed=18)
    given = {"steps": 6, "anchor": 0.4}
    again = losses(tmp_path / "again", examples, gradient_checkpointing=True, **given)
    assert again == pytest.approx(losses(tmp_path / "kept", examples, **given), rel=1e-5)


def test_bfloat16_is_close_and_keeps_the_weights_in_float32(tmp_path):
    examples = random_examples(8, seed=19)
    given = {"steps": 8, "anchor": 0.4}
    exact, auto = (losses(tmp_path / p, examples, precision=p, **given) for p in ("float32", "auto"))
    rows = []
    model, _ = trained(tmp_path / "half", examples, precision="bfloat16", on_step=rows.append, **given)
    half = [row.loss for row in rows]
    assert auto == exact, "a CPU computes in float32 unless it is told otherwise"
    assert half != exact
    assert half == pytest.approx(exact, rel=2e-2)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# --- adapters ---


def adapted(dropout=0.0, targets="all-linear"):
    model = sharp("llama", tie_word_embeddings=False) if "lm_head" in targets else tiny()
    return with_adapters(model, dropout=dropout, targets=targets)


@pytest.mark.parametrize("targets", ["all-linear", ["lm_head", "v_proj"]])
@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_only_adapters_are_trained(tmp_path, targets, anchor):
    examples = random_examples(8, seed=20)
    before = {name: p.detach().clone() for name, p in adapted(targets=targets).named_parameters()}
    rows = []
    model, _ = trained(
        tmp_path, examples, steps=12, batch_size=8, model=adapted(targets=targets), anchor=anchor, on_step=rows.append
    )
    assert rows[-1].loss < rows[0].loss
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}


@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_adapters_around_a_base_in_bfloat16_learn_as_they_do_around_one_in_float32(tmp_path, anchor):
    examples = random_examples(8, seed=22)
    given = {"steps": 12, "anchor": anchor, "learning_rate": 3e-2, "batch_size": 8}
    exact = losses(tmp_path / "float32", examples, model=adapted(), **given)
    rows, model = [], with_adapters(tiny().bfloat16())
    trained(tmp_path / "half", examples, model=model, precision="bfloat16", on_step=rows.append, **given)
    assert [row.loss for row in rows] == pytest.approx(exact, rel=1e-2)
    assert exact[-1] < 0.97 * exact[0], "which is far more than the difference"
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert torch.isfinite(model(input_ids=torch.arange(9)[None]).logits).all(), "it plays outside of autocast too"


def test_adapters_that_drop_out_go_on_exactly_after_a_kill(tmp_path):
    examples = random_examples(10, seed=21)
    whole, report = trained(tmp_path / "whole", examples, model=adapted(0.3), anchor=0.5)
    sure, _ = trained(tmp_path / "sure", examples, model=adapted(0.0), anchor=0.5)
    with pytest.raises(KilledError):
        trained(tmp_path / "cut", examples, model=adapted(0.3), anchor=0.5, on_step=killed_after(5))
    resumed, again = trained(tmp_path / "cut", examples, model=adapted(0.3), anchor=0.5)
    assert torch.equal(weights(resumed), weights(whole))
    assert without_seconds(again) == without_seconds(report)
    assert not torch.equal(weights(sure), weights(whole)), "something did drop out"


# --- kills ---


@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_a_killed_run_goes_on_to_exactly_the_same_weights(tmp_path, anchor):
    examples = random_examples(14, seed=11)
    whole, whole_report = trained(tmp_path / "whole", examples, anchor=anchor)
    for step in (3, 7):
        with pytest.raises(KilledError):
            trained(tmp_path / "cut", examples, anchor=anchor, on_step=killed_after(step))
    seen = []
    resumed, report = trained(tmp_path / "cut", examples, anchor=anchor, on_step=lambda p: seen.append(p.step))
    assert seen == [7, 8, 9], "from the state of step 6"
    assert torch.equal(weights(resumed), weights(whole))
    assert without_seconds(report) == without_seconds(whole_report)


def test_a_run_killed_before_its_first_state_begins_again(tmp_path):
    examples = random_examples(8, seed=12)
    with pytest.raises(KilledError):
        trained(tmp_path / "cut", examples, on_step=killed_after(1))
    assert not (tmp_path / "cut").exists()
    assert torch.equal(
        weights(trained(tmp_path / "cut", examples)[0]), weights(trained(tmp_path / "whole", examples)[0])
    )


def stopped(path, examples, step):
    """A state directory as a kill leaves it behind; the names of what lies in it."""
    with pytest.raises(KilledError):
        trained(path, examples, on_step=killed_after(step))
    return [p.name for p in path.iterdir()]


def test_seconds_add_up_over_a_kill(tmp_path):
    examples = random_examples(8, seed=12)
    assert stopped(tmp_path / "cut", examples, 5) == ["00000004"]
    about = tmp_path / "cut" / "00000004" / "state.json"
    saved = json.loads(about.read_text())
    saved["counts"]["seconds"] += 1000
    about.write_text(json.dumps(saved))
    _, report = trained(tmp_path / "cut", examples)
    assert 1000 < report.seconds < 2000


def test_of_two_states_the_newer_is_taken(tmp_path):
    examples, seen = random_examples(8, seed=12), []
    assert stopped(tmp_path / "cut", examples, 3) == ["00000002"]
    shutil.copytree(tmp_path / "cut" / "00000002", tmp_path / "older")
    assert stopped(tmp_path / "cut", examples, 5) == ["00000004"]
    shutil.move(tmp_path / "older", tmp_path / "cut" / "00000002")
    trained(tmp_path / "cut", examples, on_step=lambda p: seen.append(p.step))
    assert seen == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("name", [".00000004.tmp", "00000004"])
def test_a_half_written_state_is_never_taken_and_never_in_the_way(tmp_path, name):
    examples, seen, path = random_examples(8, seed=12), [], tmp_path / "cut"
    stopped(path, examples, 3)
    (path / name).mkdir()
    shutil.copy(path / "00000002" / "0-of-1.safetensors", path / name)
    with pytest.raises(KilledError):
        trained(path, examples, on_step=lambda p: (seen.append(p.step), killed_after(5)(p)))
    assert seen == [3, 4, 5]
    model, _ = trained(path, examples, on_step=lambda p: seen.append(p.step))
    assert seen == [3, 4, 5, 5, 6, 7, 8, 9]
    assert torch.equal(weights(model), weights(trained(tmp_path / "whole", examples)[0]))


# --- runs that are given up ---


def test_a_step_without_trained_tokens_is_an_error_and_not_a_loss_of_zero(tmp_path):
    examples = [Example((1, 2, 3), (), (), 0) for _ in range(4)]
    with pytest.raises(EmptySelectionError, match="no token to train"):
        trained(tmp_path, examples)


def test_nan_in_the_base_is_found_in_the_first_step_and_said_to_be_there(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(
        DivergedError, match=r"optimiser step 1: the loss is nan.*the base's weights hold NaN"
    ) as caught:
        trained(tmp_path, random_examples(8), model=model)
    assert "learning_rate" not in str(caught.value)


def test_a_learning_rate_that_is_too_high_is_named(tmp_path):
    seen = []
    with pytest.raises(DivergedError, match=r"step [2-9]: .*learning rate is too high.*it is 1e\+30") as caught:
        trained(tmp_path, random_examples(8), learning_rate=1e30, on_step=lambda p: seen.append(p.step))
    assert seen and f"step {seen[-1] + 1}:" in str(caught.value)


def test_fsdp_refuses_a_model_that_is_trained_one_sequence_at_a_time(tmp_path):
    adapted = with_adapters(tiny(), targets=["lm_head"])
    with pytest.raises(InputError, match='use finetune.strategy = "ddp"'):
        trained(tmp_path, random_examples(4), model=adapted, strategy="fsdp", workers=2, group=ProcessGroup(size=2))
