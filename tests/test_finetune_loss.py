"""The masked loss against a naive one, the data plan, and training that goes on after a kill."""

import copy
import itertools
import math
import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from atlas_ray.errors import ContextOverflowError, EmptySelectionError, InputError
from atlas_ray.finetune.data import Example, batches, build_examples, micro_batches, steps_of
from atlas_ray.finetune.loop import train_run
from atlas_ray.finetune.loss import masked_loss
from atlas_ray.recipe import Arm, Finetune
from atlas_ray.rendering import Renderer
from atlas_ray.tiny import build_model, build_tokenizer, vocabulary
from atlas_ray.trajectory import Annotation, Step, Trajectory

TOKENIZER = build_tokenizer()
PAD = TOKENIZER.pad_token_id
SIZE = len(vocabulary())


def tiny(seed=0):
    return build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=seed)


def random_examples(count, seed=0, anchored=True, longest=30):
    """Examples of unlike length, with scattered positions; some have nothing anchored."""
    rng = random.Random(seed)
    examples = []
    for _ in range(count):
        length = rng.randint(4, longest)
        ids = tuple(rng.randrange(SIZE) for _ in range(length))
        positions = rng.sample(range(1, length), rng.randint(1, length - 1))
        split = rng.randint(1, len(positions))
        off = tuple(sorted(positions[split:])) if anchored else ()
        examples.append(Example(ids, tuple(sorted(positions[:split])), off, rng.randint(0, 9)))
    return examples


def counts(examples):
    return sum(len(e.trained) for e in examples), sum(len(e.anchored) for e in examples)


def naive_loss(model, examples, anchor_weight=0.0, base=None):
    """One sequence at a time, every logit, one position after the other, in float64."""
    trained, anchored = counts(examples)
    nll = torch.zeros((), dtype=torch.float64)
    divergence = torch.zeros((), dtype=torch.float64)
    for example in examples:
        ids = torch.tensor([example.ids])
        logp = model(input_ids=ids).logits[0].double().log_softmax(-1)
        for position in example.trained:
            nll = nll - logp[position - 1, example.ids[position]]
        if anchor_weight:
            with torch.no_grad():
                base_logp = base(input_ids=ids).logits[0].double().log_softmax(-1)
            for position in example.anchored:
                p, q = base_logp[position - 1], logp[position - 1]
                divergence = divergence + (p.exp() * (p - q)).sum()
    loss = nll / trained
    return loss + anchor_weight * divergence / anchored if anchor_weight and anchored else loss


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters()])


def fast_loss(model, examples, anchor_weight=0.0, base=None, groups=None):
    trained, anchored = counts(examples)
    return sum(masked_loss(model, group, trained, PAD, anchor_weight, anchored, base) for group in groups or [examples])


# --- the loss ---


@pytest.mark.parametrize("anchor_weight", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_the_naive_ones(seed, anchor_weight):
    model, base = tiny(seed), tiny(seed + 10)
    examples = random_examples(7, seed)
    assert len({len(e.ids) for e in examples}) > 3
    fast, slow = fast_loss(model, examples, anchor_weight, base), naive_loss(model, examples, anchor_weight, base)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-6)
    expected = gradients(model, slow)
    assert float((gradients(model, fast) - expected).abs().max()) < 1e-6
    assert float(expected.abs().max()) > 1e-3


def test_an_anchor_to_itself_is_zero_and_pulls_nowhere():
    model = tiny()
    examples = random_examples(5)
    plain, anchored = fast_loss(model, examples), fast_loss(model, examples, 5.0, copy.deepcopy(model))
    assert plain.item() == pytest.approx(anchored.item(), abs=1e-6)
    assert torch.allclose(gradients(model, plain), gradients(model, anchored), atol=1e-6)


def test_an_anchor_without_anchored_tokens_changes_nothing():
    model, base = tiny(0), tiny(1)
    examples = random_examples(4, anchored=False)
    assert fast_loss(model, examples, 1.0, base).item() == fast_loss(model, examples).item()


def test_the_base_gets_no_gradient():
    model, base = tiny(0), tiny(1)
    fast_loss(model, random_examples(4), 1.0, base).backward()
    assert all(p.grad is None for p in base.parameters())


@pytest.mark.parametrize("anchor_weight", [0.0, 0.7])
def test_one_batch_of_eight_equals_eight_batches_of_one(anchor_weight):
    model, base = tiny(0), tiny(1)
    examples = random_examples(8, seed=4)
    together = fast_loss(model, examples, anchor_weight, base)
    whole = gradients(model, together)
    model.zero_grad(set_to_none=True)
    trained, anchored = counts(examples)
    total = 0.0
    for example in examples:
        part = masked_loss(model, [example], trained, PAD, anchor_weight, anchored, base)
        part.backward()
        total += float(part.detach())
    pieces = torch.cat([p.grad.flatten().double() for p in model.parameters()])
    assert total == pytest.approx(together.item(), rel=1e-6)
    assert float((pieces - whole).abs().max()) < 1e-6


def test_what_the_padding_is_does_not_matter():
    model = tiny()
    examples = random_examples(6, seed=5)
    trained, _ = counts(examples)
    a, b = (masked_loss(model, examples, trained, pad) for pad in (PAD, 17))
    assert a.item() == pytest.approx(b.item(), rel=1e-7)


def test_cutting_behind_the_last_trained_token_is_exact():
    model = tiny()
    rng = random.Random(1)
    cut = random_examples(6, seed=6, anchored=False)
    cut = [Example(e.ids[: e.trained[-1] + 1], e.trained, (), 0) for e in cut]
    whole = [
        Example(e.ids + tuple(rng.randrange(SIZE) for _ in range(rng.randint(1, 20))), e.trained, (), 0) for e in cut
    ]
    a, b = fast_loss(model, cut), fast_loss(model, whole)
    assert a.item() == pytest.approx(b.item(), rel=1e-6)
    assert float((gradients(model, a) - gradients(model, b)).abs().max()) < 1e-6


class Table(torch.nn.Module):
    """A "model" whose logits are parameters: the gradient shows which of them the loss looks at."""

    def __init__(self, rows, length):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.randn(rows, length, SIZE, generator=torch.Generator().manual_seed(0)))

    def get_decoder(self):
        return lambda input_ids, use_cache: SimpleNamespace(last_hidden_state=self.logits)

    def get_output_embeddings(self):
        return lambda hidden: hidden


@pytest.mark.parametrize("anchor_weight", [0.0, 0.5])
def test_exactly_the_selected_positions_contribute(anchor_weight):
    examples = random_examples(6, seed=7)
    longest = max(len(e.ids) for e in examples)
    model, base = Table(6, longest), Table(6, longest)
    with torch.no_grad():
        base.logits.add_(torch.randn(base.logits.shape))
    fast_loss(model, examples, anchor_weight, base).backward()
    touched = {(int(r), int(c)) for r, c in model.logits.grad.abs().sum(-1).nonzero()}
    wanted = {(r, p - 1) for r, e in enumerate(examples) for p in e.trained}
    if anchor_weight:
        wanted |= {(r, p - 1) for r, e in enumerate(examples) for p in e.anchored}
    assert touched == wanted


def test_every_selected_target_matters_and_no_other():
    examples = random_examples(5, seed=8)
    model = Table(5, max(len(e.ids) for e in examples))
    before = fast_loss(model, examples).item()
    for row, example in enumerate(examples):
        for position in range(len(example.ids)):
            ids = list(example.ids)
            ids[position] = (ids[position] + 1) % SIZE
            changed = list(examples)
            changed[row] = Example(tuple(ids), example.trained, example.anchored, 0)
            assert (fast_loss(model, changed).item() != before) == (position in example.trained)


# --- examples ---


def trajectory(name, steps):
    return Trajectory(
        id=name,
        env="e",
        task="t",
        seed=0,
        instruction="go to the red ball",
        steps=tuple(
            Step(observation=f"You see a red ball {i + 2} steps forward", thought="explore", action="go forward")
            for i in range(steps)
        ),
        score=1,
        success=True,
        source="expert",
    )


def note(name, *critical):
    return Annotation(trajectory_id=name, selector="value", fraction=0.5, critical=critical)


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("critical", [(0,), (1,), (3,), (0, 2), (0, 1, 2, 3)])
def test_an_example_holds_the_spans_of_the_selected_steps(critical, anchored):
    renderer = Renderer(TOKENIZER)
    item = trajectory("a", 4)
    rendered = renderer.render(item)
    (example,) = build_examples([item], [note("a", *critical)], renderer, 500, anchored)
    spans = [set(range(*span)) for span in rendered.spans]
    assert set(example.trained) == set().union(*(spans[i] for i in critical))
    off = set().union(*(spans[i] for i in range(4) if i not in critical)) if anchored else set()
    assert set(example.anchored) == off
    last = rendered.spans[3 if anchored else max(critical)][1]
    assert example.ids == tuple(rendered.ids[:last])
    assert example.cut == len(rendered.ids) - last
    assert example.ids[max(example.trained)] == TOKENIZER.eos_token_id, "the end of the turn is trained"


def test_trajectories_without_a_critical_step_are_left_out_and_order_is_kept():
    items = [trajectory(name, 3) for name in "abcd"]
    examples = build_examples(items, [note("d", 0), note("a", 2), note("b")], Renderer(TOKENIZER), 500)
    assert [len(e.trained) for e in examples] == [4, 4]
    assert len(examples[0].ids) > len(examples[1].ids)


@pytest.mark.parametrize("notes", [[], [note("a")], [note("b", 0)]])
def test_nothing_selected_is_an_error(notes):
    with pytest.raises(EmptySelectionError):
        build_examples([trajectory("a", 3)], notes, Renderer(TOKENIZER), 500)


def test_an_episode_that_does_not_fit_is_an_error_and_never_cut():
    item = trajectory("long", 4)
    length = len(Renderer(TOKENIZER).render(item).ids)
    build_examples([item], [note("long", 0)], Renderer(TOKENIZER), length)
    with pytest.raises(ContextOverflowError, match=rf"'long' has {length} tokens, the model takes {length - 1}"):
        build_examples([item], [note("long", 0)], Renderer(TOKENIZER), length - 1)


@pytest.mark.parametrize(
    ("notes", "says"),
    [
        ([note("a", 3)], "no step 3"),
        ([note("a", 0, 99)], "no step 99"),
        ([note("a", 0), note("a", 1)], "two annotations"),
    ],
)
def test_annotations_that_do_not_fit_are_an_error(notes, says):
    with pytest.raises(InputError, match=says):
        build_examples([trajectory("a", 3)], notes, Renderer(TOKENIZER), 500)


# --- the plan ---


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs"), [(10, 3, 3), (7, 7, 2), (5, 8, 2), (1, 1, 4), (12, 4, 1)]
)
def test_every_epoch_takes_every_example_once(examples, batch_size, epochs):
    steps = steps_of(examples, batch_size, epochs)
    plan = list(batches(examples, batch_size, steps, seed=1))
    per_epoch = math.ceil(examples / batch_size)
    assert len(plan) == steps == per_epoch * epochs
    for epoch in range(epochs):
        part = plan[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(i for batch in part for i in batch) == list(range(examples))
        assert [len(b) for b in part[:-1]] == [batch_size] * (per_epoch - 1)


def test_the_order_depends_on_the_seed_alone():
    def plan(seed):
        return list(batches(20, 6, 12, seed))

    random.seed(1)
    first = plan(3)
    random.seed(2)
    torch.manual_seed(5)
    assert plan(3) == first
    assert plan(4) != first
    assert first[:4] != first[4:8], "every epoch is shuffled anew"
    assert list(batches(20, 6, 5, 3)) == first[:5], "fewer steps are the same steps"


@pytest.mark.parametrize("world", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("micro_tokens", [1, 64, 10_000])
def test_micro_batches_share_a_step_out_exactly(world, micro_tokens):
    examples = random_examples(25, seed=9)
    indices = random.Random(0).sample(range(25), 13)
    shares = [micro_batches(examples, indices, rank, world, micro_tokens) for rank in range(world)]
    got = Counter(id(e) for share in shares for group in share for e in group)
    assert got == Counter(id(examples[i]) for i in indices)
    for share in shares:
        for group in share:
            assert group
            assert len(group) == 1 or len(group) * max(len(e.ids) for e in group) <= micro_tokens
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_shares_of_all_workers_add_up_to_the_loss(world):
    model, base = tiny(0), tiny(1)
    examples = random_examples(9, seed=10)
    groups = [g for rank in range(world) for g in micro_batches(examples, range(9), rank, world, 60)]
    assert len(groups) > world
    loss = fast_loss(model, examples, 0.5, base, groups)
    assert loss.item() == pytest.approx(naive_loss(model, examples, 0.5, base).item(), rel=1e-6)


# --- training ---


def config(**changes):
    return Finetune(
        arms=[Arm(selector="all")],
        **{"batch_size": 4, "micro_tokens": 80, "learning_rate": 3e-3, "save_every": 2, **changes},
    )


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(path, examples, steps=9, seed=0, anchor=0.0, on_step=lambda progress: None, **changes):
    model = tiny()
    report = train_run(model, examples, config(**changes), steps, seed, anchor, PAD, path, on_step)
    return model, report


class KilledError(Exception):
    """Stands for a kill."""


def killed_after(step):
    def on_step(progress):
        if progress.step == step:
            raise KilledError

    return on_step


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
    del report["seconds"], whole_report["seconds"]
    assert report == whole_report


def test_a_run_killed_before_its_first_state_begins_again(tmp_path):
    examples = random_examples(8, seed=12)
    with pytest.raises(KilledError):
        trained(tmp_path / "cut", examples, on_step=killed_after(1))
    assert torch.equal(
        weights(trained(tmp_path / "cut", examples)[0]), weights(trained(tmp_path / "whole", examples)[0])
    )


def test_training_lowers_the_loss_and_counts_tokens(tmp_path):
    examples = random_examples(8, seed=13, anchored=False)
    rows = []
    model, report = trained(tmp_path, examples, steps=20, batch_size=8, on_step=rows.append)
    first = naive_loss(tiny(), examples).item()
    assert rows[0].loss == pytest.approx(first, rel=1e-5)
    assert naive_loss(model, examples).item() < 0.8 * first
    tokens, _ = counts(examples)
    assert [r.trained_tokens for r in rows] == [tokens] * 20
    assert report["steps"] == 20
    assert report["trained_tokens"] == 20 * tokens
    assert report["context_tokens"] == 20 * (sum(len(e.ids) for e in examples) - tokens)
    assert report["cut_tokens"] == 20 * sum(e.cut for e in examples)
    groups = micro_batches(examples, range(8), 0, 1, 80)
    padding = sum(max(len(e.ids) for e in g) * len(g) - sum(len(e.ids) for e in g) for g in groups)
    assert report["padded_tokens"] == 20 * padding
    rates = [r.learning_rate for r in rows]
    assert max(rates) == 3e-3
    assert rates[:2] == pytest.approx([1.5e-3, 3e-3])
    assert all(0 < b <= a for a, b in itertools.pairwise(rates[1:]))


def test_the_seed_and_only_the_seed_fixes_the_run(tmp_path):
    examples = random_examples(8, seed=14)
    torch.manual_seed(1)
    a, _ = trained(tmp_path / "a", examples, seed=1)
    torch.manual_seed(2)
    b, _ = trained(tmp_path / "b", examples, seed=1)
    c, _ = trained(tmp_path / "c", examples, seed=2)
    assert torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), weights(c))


def test_the_size_of_micro_batches_does_not_change_the_mathematics(tmp_path):
    examples = random_examples(8, seed=15)
    losses = []
    for micro_tokens in (1, 100_000):
        rows = []
        trained(tmp_path / str(micro_tokens), examples, steps=5, micro_tokens=micro_tokens, on_step=rows.append)
        losses.append([r.loss for r in rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_anchor_keeps_the_model_closer_to_its_base(tmp_path):
    examples = random_examples(10, seed=16)
    base = tiny()
    _, anchored = counts(examples)

    def divergence(model):
        with torch.no_grad():
            return (naive_loss(model, examples, 1.0, base) - naive_loss(model, examples)).item()

    plain, _ = trained(tmp_path / "plain", examples, steps=30, learning_rate=1e-2)
    held, _ = trained(tmp_path / "held", examples, steps=30, learning_rate=1e-2, anchor=20.0)
    assert anchored > 20
    assert divergence(tiny()) == pytest.approx(0, abs=1e-9)
    assert 0 < divergence(held) < 0.5 * divergence(plain)
    assert naive_loss(held, examples).item() < naive_loss(base, examples).item(), "and it still learns"


def test_a_step_without_trained_tokens_is_an_error_and_not_a_loss_of_zero(tmp_path):
    examples = [Example((1, 2, 3), (), (), 0) for _ in range(4)]
    with pytest.raises(EmptySelectionError, match="no token to train"):
        trained(tmp_path, examples)
