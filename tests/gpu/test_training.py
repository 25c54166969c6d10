"""Training on a device: the losses, gradients and states of the CPU, and bfloat16 close to float32."""

import copy
import shutil

import pytest
import torch
from finetune_examples import (
    KilledError,
    config,
    fast_loss,
    gradients,
    killed_after,
    naive_loss,
    random_examples,
    scale_of,
    sharp,
    trained,
    weights,
    with_adapters,
)
from preference_examples import random_pairs

from atlas_ray.finetune.loop import train_run
from atlas_ray.finetune.loss import MaskedModel
from atlas_ray.finetune.packing import FAMILIES, packed
from atlas_ray.finetune.process_group import ProcessGroup, use_bf16
from atlas_ray.recipe.loading import Pairs

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
SIZES = {"hidden_size": 128, "head_dim": 64, "intermediate_size": 256, "initializer_range": 0.1}
"""Heads as wide as those of real models, which have other kernels than narrow ones."""
KINDS = {
    **{kind: (kind, {}) for kind in sorted(FAMILIES)},
    "mistral, sliding window": ("mistral", {"sliding_window": 7}),
    "qwen3, the last layers slide": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "smollm3, no rope in a layer": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "llama, one key-value head": ("llama", {"num_key_value_heads": 1}),
}
EXAMPLES = random_examples(8, seed=40, longest=60)


def model(kind="llama", **changes):
    return sharp(kind, seed=3, **{**SIZES, **changes})


def adapted(**changes):
    return with_adapters(model(**changes))


def apart(one, other):
    """Distance of two rows of numbers, over the length of the second."""
    one, other = one.cpu(), other.cpu()
    return float((one - other).norm() / other.norm())


def step_of(made, examples=EXAMPLES, anchor=0.0, base=None, bf16=False):
    """Loss and gradient of one optimiser step, in two micro-batches, as the trainer takes it."""
    masked, at = MaskedModel(made, base), next(made.parameters()).device
    groups = [examples[:5], examples[5:]]
    with packed(made), packed(masked.base):
        with torch.autocast(at.type, torch.bfloat16, enabled=bf16):
            loss = fast_loss(masked, examples, anchor, groups)
        return loss.item(), gradients(made, loss)


def losses(path, device, made=None, examples=EXAMPLES, **given):
    """Losses of a run on a device, and its weights at the end."""
    rows, group = [], ProcessGroup(device=device)
    made, _ = trained(path, examples, model=(made or model()).to(device), group=group, on_step=rows.append, **given)
    return [row.loss for row in rows], weights(made).cpu()


@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_loss_and_gradient_in_float32_are_those_of_the_cpu(device, anchor):
    made, base = model(), model(initializer_range=0.12)
    expected, expected_gradient = step_of(made, anchor=anchor, base=base)
    plain = naive_loss(made, EXAMPLES, anchor, base).item()
    assert expected == pytest.approx(plain, rel=1e-5)
    found, gradient = step_of(copy.deepcopy(made).to(device), anchor=anchor, base=copy.deepcopy(base).to(device))
    assert found == pytest.approx(expected, rel=1e-4)
    assert apart(gradient, expected_gradient) < 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_packed_rows_are_what_each_sequence_is_alone_in_float32(device, name):
    kind, changes = KINDS[name]
    made = model(kind, **changes).to(device)
    alone = naive_loss(made, EXAMPLES)
    expected = gradients(made, alone)
    found, gradient = step_of(made)
    assert found == pytest.approx(alone.item(), rel=1e-5)
    assert apart(gradient, expected) < 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_packed_rows_in_bfloat16_stay_close_to_float32(device, name):
    """Within 0.5 % of the loss and 5 % of the gradient (2.4 % at most on a CPU): a bfloat16 has eight bits, 0.4 %."""
    kind, changes = KINDS[name]
    made = model(kind, **changes).to(device)
    expected, expected_gradient = step_of(made)
    found, gradient = step_of(made, bf16=True)
    assert found != expected, "it must have computed in bfloat16"
    assert found == pytest.approx(expected, rel=5e-3)
    assert apart(gradient, expected_gradient) < 5e-2


def test_a_micro_batch_of_one_length_and_one_token_beside_long_ones(device):
    """What goes through the kernel together differs, the loss does not."""
    made = model().to(device)
    rows = [e for e in EXAMPLES if len(e.ids) > 8]
    same = [rows[0]] * 4
    assert fast_loss_of(made, same) == pytest.approx(naive_loss(made, same).item(), rel=1e-5)
    assert fast_loss_of(made, [*same, *rows]) == pytest.approx(naive_loss(made, [*same, *rows]).item(), rel=1e-5)


def fast_loss_of(made, examples):
    with packed(made):
        return MaskedModel(made)(examples, scale_of(examples)).item()


@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_a_run_in_float32_goes_as_it_does_on_the_cpu(device, tmp_path, anchor):
    given = {"steps": 8, "anchor": anchor, "precision": "float32"}
    expected, _ = losses(tmp_path / "cpu", CPU, **given)
    found, _ = losses(tmp_path / "device", device, **given)
    assert expected[-1] < 0.9 * expected[0], "it learns"
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_run_in_bfloat16_learns_as_one_in_float32_and_keeps_its_weights_in_float32(device, tmp_path):
    exact, _ = losses(tmp_path / "exact", device, steps=8, anchor=0.4, precision="float32")
    made = model().to(device)
    half, _ = losses(tmp_path / "half", device, made, steps=8, anchor=0.4, precision="bfloat16")
    assert half != exact
    assert half == pytest.approx(exact, rel=3e-2)
    assert {p.dtype for p in made.parameters()} == {torch.float32}


def test_auto_is_bfloat16_where_the_device_has_it(device, tmp_path):
    auto, _ = losses(tmp_path / "auto", device, steps=2, precision="auto")
    kind = "bfloat16" if use_bf16("auto", device) else "float32"
    assert auto == losses(tmp_path / kind, device, steps=2, precision=kind)[0]


@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_adapters_learn_as_they_do_on_the_cpu(device, tmp_path, anchor):
    given = {"steps": 6, "anchor": anchor, "precision": "float32", "learning_rate": 1e-2}
    expected, _ = losses(tmp_path / "cpu", CPU, adapted(), **given)
    found, _ = losses(tmp_path / "device", device, adapted(), **given)
    assert expected[-1] < expected[0]
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_adapters_around_a_base_in_bfloat16_learn_as_around_one_in_float32(device, tmp_path, anchor):
    given = {"steps": 6, "anchor": anchor, "learning_rate": 1e-2}
    exact, _ = losses(tmp_path / "exact", device, adapted(), precision="float32", **given)
    base = adapted()
    for p in base.parameters():
        if not p.requires_grad:
            p.data = p.data.bfloat16()
    half, _ = losses(tmp_path / "half", device, base, precision="bfloat16", **given)
    assert half == pytest.approx(exact, rel=3e-2)
    assert {p.dtype for p in base.parameters() if p.requires_grad} == {torch.float32}


def test_adapters_on_the_lm_head_are_trained_one_sequence_at_a_time(device, tmp_path):
    def made():
        return with_adapters(model(tie_word_embeddings=False), targets=["lm_head", "v_proj"])

    given = {"steps": 3, "anchor": 0.3, "precision": "float32"}
    expected, _ = losses(tmp_path / "cpu", CPU, made(), **given)
    assert losses(tmp_path / "device", device, made(), **given)[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradient_checkpointing_changes_nothing(device, tmp_path, precision):
    given = {"steps": 5, "anchor": 0.4, "precision": precision}
    kept, _ = losses(tmp_path / "kept", device, **given)
    again, _ = losses(tmp_path / "again", device, gradient_checkpointing=True, **given)
    assert again == pytest.approx(kept, rel=1e-5 if precision == "float32" else 1e-2)


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm"])
def test_pairs_are_trained_as_on_the_cpu(device, tmp_path, loss):
    pairs, found = Pairs(loss=loss, beta=0.5, sft=0.3), {}
    for name, at, precision in (("cpu", CPU, "float32"), ("device", device, "float32"), ("half", device, "bfloat16")):
        rows = []
        train_run(
            model().to(at),
            random_pairs(8),
            config(precision=precision),
            5,
            seed=3,
            state_dir=tmp_path / name,
            pairs=pairs,
            group=ProcessGroup(device=at),
            on_step=rows.append,
        )
        found[name] = [row.loss for row in rows]
        assert set(rows[0].noted) >= {"rewards/margins", "logps/chosen"}
    assert found["device"] == pytest.approx(found["cpu"], rel=1e-3)
    assert found["half"] == pytest.approx(found["cpu"], rel=0.1)


def killed(path, device, made, after=5, **given):
    """A run that is killed behind the state of its fourth step."""
    group = ProcessGroup(device=device)
    with pytest.raises(KilledError):
        trained(path, EXAMPLES, model=made.to(device), group=group, on_step=killed_after(after), **given)


@pytest.mark.parametrize("make", [model, adapted])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_that_was_killed_ends_as_one_that_was_not(device, tmp_path, precision, make):
    given = {"steps": 8, "anchor": 0.3, "precision": precision, "gradient_checkpointing": True}
    expected, at_its_end = losses(tmp_path / "whole", device, make(), **given)
    killed(tmp_path / "killed", device, make(), **given)
    rest, found = losses(tmp_path / "killed", device, make(), **given)
    assert len(rest) == 4
    assert rest == pytest.approx(expected[4:], rel=1e-5 if precision == "float32" else 1e-3)
    assert apart(found, at_its_end) < 1e-4


@pytest.mark.parametrize("begun_on_the_device", [True, False])
def test_a_state_goes_on_elsewhere(device, tmp_path, begun_on_the_device):
    """From the CPU to the device, and back."""
    given = {"steps": 8, "precision": "float32"}
    expected, at_its_end = losses(tmp_path / "whole", CPU, **given)
    first, then = (device, CPU) if begun_on_the_device else (CPU, device)
    killed(tmp_path / "moved", first, model(), **given)
    shutil.copytree(tmp_path / "moved", tmp_path / "here")
    rest, found = losses(tmp_path / "here", then, **given)
    assert rest == pytest.approx(expected[4:], rel=1e-3)
    assert apart(found, at_its_end) < 1e-2
