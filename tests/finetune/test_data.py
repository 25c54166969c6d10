"""From episodes to examples: the store of token ids, what the context takes, and who trains what when."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from finetune_examples import TOKENIZER, note, trajectory
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.agents.rendering import Renderer
from atlas_ray.errors import ContextOverflowError, EmptySelectionError, InputError
from atlas_ray.finetune.data import Examples, batches, share_out, steps_of
from atlas_ray.finetune.store import Entry, TokenStore, build_store, fit, store_key

RENDERER = Renderer(TOKENIZER)


def store_of(path, items, context=500, truncation="error", key="key", renderer=RENDERER):
    return build_store(path / "tokens", items, renderer, context, truncation, key)


def examples_of(path, items, notes, anchored=False, context=500, truncation="error", on_all_truncated="error"):
    return Examples(store_of(path, items, context, truncation), notes, anchored, on_all_truncated=on_all_truncated)


def kept(item, first, count):
    """The rendering of ``count`` steps from ``first`` on."""
    return RENDERER.render(item.model_copy(update={"steps": item.steps[first : first + count]}))


# --- examples ---


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("critical", [(0,), (1,), (3,), (0, 2), (0, 1, 2, 3)])
def test_an_example_holds_the_spans_of_the_selected_steps(tmp_path, critical, anchored):
    item = trajectory("a", 4)
    rendered = RENDERER.render(item)
    (example,) = examples_of(tmp_path, [item], [note("a", *critical)], anchored)
    spans = [set(range(*span)) for span in rendered.spans]
    assert set(example.trained) == set().union(*(spans[i] for i in critical))
    off = set().union(*(spans[i] for i in range(4) if i not in critical)) if anchored else set()
    assert set(example.anchored) == off
    last = rendered.spans[3 if anchored else max(critical)][1]
    assert list(example.ids) == rendered.ids[:last]
    assert example.cut == len(rendered.ids) - last
    assert example.ids[max(example.trained)] == TOKENIZER.eos_token_id, "the end of the turn is trained"


def test_trajectories_without_a_critical_step_are_left_out_and_order_is_kept(tmp_path):
    items = [trajectory(name, 3) for name in "abcd"]
    examples = examples_of(tmp_path, items, [note("d", 0), note("a", 2), note("b")])
    assert [len(e.trained) for e in examples] == [4, 4]
    assert len(examples[0].ids) > len(examples[1].ids)
    assert (examples.lost, examples.all_truncated, len(examples.store)) == (0, 0, 4)


@pytest.mark.parametrize("notes", [[], [note("a")], [note("b", 0)]])
def test_nothing_selected_is_an_error(tmp_path, notes):
    with pytest.raises(EmptySelectionError, match="Likely the selector marked nothing"):
        examples_of(tmp_path, [trajectory("a", 3)], notes)


@pytest.mark.parametrize(
    ("notes", "says"),
    [
        ([note("a", 3)], "no step 3"),
        ([note("a", 0, 99)], "no step 99"),
        ([note("a", 0), note("a", 1)], "two annotations"),
    ],
)
def test_annotations_that_do_not_fit_are_an_error(tmp_path, notes, says):
    with pytest.raises(InputError, match=says):
        examples_of(tmp_path, [trajectory("a", 3)], notes)


def test_what_the_base_says_is_taken_from_the_rows_of_the_tokens(tmp_path):
    items = [trajectory("a", 2), trajectory("b", 3), trajectory("c", 1)]
    store = store_of(tmp_path, items)
    base = np.arange(store.turn_tokens, dtype=np.float32)[:, None]
    examples = Examples(store, [note("b", 1), note("c", 0)], True, base)
    assert store.turn_tokens == 6 * 4
    assert examples[0].base[:, 0].tolist() == [8, 9, 10, 11, 16, 17, 18, 19]
    assert len(examples[0].anchored) == 8
    assert examples[1].base is None and not examples[1].anchored


# --- what the context takes ---


def test_an_episode_that_does_not_fit_is_an_error_and_never_cut(tmp_path):
    item = trajectory("long", 4)
    length = len(RENDERER.render(item).ids)
    assert examples_of(tmp_path / "a", [item], [note("long", 0)], context=length)[0].cut > 0
    with pytest.raises(ContextOverflowError, match=rf"'long' has {length} tokens, the model takes {length - 1}"):
        examples_of(tmp_path / "b", [item], [note("long", 0)], context=length - 1)


def test_an_episode_that_fits_loses_nothing():
    item = trajectory("a", 4)
    whole = RENDERER.render(item)
    for truncation in ("error", "drop_last_steps", "drop_first_steps"):
        assert fit(item, RENDERER, len(whole.ids), truncation) == (0, whole)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("side", ["last", "first"])
def test_a_longer_one_loses_whole_steps_of_the_stated_side(side, spare, count):
    item = trajectory("a", 5)
    first = 5 - count if side == "first" else 0
    wanted = kept(item, first, count)
    context = len(wanted.ids) + spare
    assert context < len(kept(item, 0 if side == "last" else first - 1, count + 1).ids)
    assert fit(item, RENDERER, context, f"drop_{side}_steps") == (first, wanted)


@pytest.mark.parametrize("truncation", ["drop_last_steps", "drop_first_steps"])
def test_where_not_even_one_step_fits_is_an_error(truncation):
    item = trajectory("a", 5)
    with pytest.raises(ContextOverflowError, match="'a': not even one step fits"):
        fit(item, RENDERER, len(kept(item, 0, 1).ids) - 1, truncation)


@pytest.mark.parametrize(("truncation", "left"), [("drop_last_steps", [0, 2]), ("drop_first_steps", [0, 2])])
def test_critical_steps_move_with_what_is_kept_and_lost_ones_are_counted(tmp_path, truncation, left):
    item = trajectory("a", 6)
    first = 3 if truncation == "drop_first_steps" else 0
    rendered = kept(item, first, 3)
    examples = examples_of(
        tmp_path, [item], [note("a", 0, 2, 3, 5)], True, context=len(rendered.ids), truncation=truncation
    )
    spans = [set(range(*span)) for span in rendered.spans]
    assert examples.store.entries == [Entry("a", 6, first, 3)]
    assert (examples.lost, examples.all_truncated) == (2, 0)
    assert set(examples[0].trained) == set().union(*(spans[i] for i in left))
    assert set(examples[0].anchored) == spans[1]
    assert list(examples[0].ids) == rendered.ids


def test_an_episode_that_loses_all_critical_steps_is_an_error_or_counted(tmp_path):
    items = [trajectory("a", 6), trajectory("b", 2)]
    notes = [note("a", 4, 5), note("b", 1)]
    given = {"context": len(kept(items[0], 0, 3).ids), "truncation": "drop_last_steps"}
    with pytest.raises(InputError, match="'a' loses all its 2 critical steps.*finetune.on_all_truncated"):
        examples_of(tmp_path, items, notes, **given)
    examples = examples_of(tmp_path, items, notes, **given, on_all_truncated="skip")
    assert len(examples) == 1
    assert (examples.lost, examples.all_truncated) == (2, 1)
    with pytest.raises(EmptySelectionError, match="1 lost all of them to the context"):
        examples_of(tmp_path, items, notes[:1], **given, on_all_truncated="skip")


# --- the store ---


def test_the_store_holds_what_the_renderer_gives(tmp_path):
    items = [trajectory(name, steps) for name, steps in [("a", 3), ("b", 1), ("c", 7)]]
    store = store_of(tmp_path, items)
    assert [entry.id for entry in store.entries] == ["a", "b", "c"]
    for row, item in enumerate(items):
        rendered = RENDERER.render(item)
        assert store.ids(row).tolist() == rendered.ids
        assert store.spans(row) == rendered.spans
        assert store.turns_before(row) == sum(b - a for i in items[:row] for a, b in RENDERER.render(i).spans)
    assert isinstance(store.ids(0), np.memmap), "it is mapped and not read"


def test_a_store_is_used_again_under_its_key_and_made_anew_under_another(tmp_path):
    store_of(tmp_path, [trajectory("a", 3)], context=400, key="one")
    again = store_of(tmp_path, [trajectory("b", 3), trajectory("c", 2)], key="one")
    assert ([entry.id for entry in again.entries], again.context) == (["a"], 400)
    other = store_of(tmp_path, [trajectory("b", 3), trajectory("c", 2)], key="two")
    assert ([entry.id for entry in other.entries], other.context, other.key) == (["b", "c"], 500, "two")
    assert [entry.id for entry in TokenStore(tmp_path / "tokens").entries] == ["b", "c"]
    assert again.ids(0).tolist() == RENDERER.render(trajectory("a", 3)).ids, "who reads the old one goes on"


def test_the_key_tells_apart_all_that_matters():
    parts = {"data": "d", "tokenizer": "t", "renderer": ["react", "plain"], "context": 500, "too_long": "error"}
    changed = [{"data": "e"}, {"tokenizer": "u"}, {"renderer": ["react", "chat"]}, {"context": 501}]
    keys = {store_key(**parts)} | {store_key(**{**parts, **change}) for change in changed}
    assert len(keys) == 5
    assert store_key(**dict(reversed(parts.items()))) == store_key(**parts)


@pytest.mark.parametrize("there", [False, True])
def test_a_kill_while_building_leaves_what_was_there(tmp_path, there):
    def killed():
        yield trajectory("a", 3)
        raise KeyboardInterrupt

    if there:
        store_of(tmp_path, [trajectory("old", 3)], key="old")
    with pytest.raises(KeyboardInterrupt):
        store_of(tmp_path, killed())
    assert [p.name for p in tmp_path.iterdir()] == (["tokens"] if there else [])
    if there:
        assert TokenStore(tmp_path / "tokens").key == "old"


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


def test_fewer_examples_than_trajectories_take_as_many_steps():
    assert len(list(batches(3, 4, steps_of(10, 4, 2), seed=0))) == steps_of(10, 4, 2) == 6


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


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=25),
    world=st.integers(1, 5),
    micro_tokens=st.integers(1, 150),
)
def test_a_step_is_shared_out_exactly_and_evenly(lengths, world, micro_tokens):
    plan = share_out(lengths, world, micro_tokens)
    assert Counter(i for worker in plan for micro in worker for i in micro) == Counter(range(len(lengths)))
    assert len(plan) == world
    (rounds,) = {len(worker) for worker in plan}  # workers that pass together pass as often
    assert rounds <= math.ceil(len(lengths) / world), "no round is without work"
    loads = [[sum(lengths[i] for i in micro) for micro in worker] for worker in plan]
    for worker, load in zip(plan, loads, strict=True):
        assert all(tokens <= micro_tokens or len(micro) == 1 for micro, tokens in zip(worker, load, strict=True))
    flat = [tokens for load in loads for tokens in load]
    assert max(flat) - min(flat) <= max(lengths)


@pytest.mark.parametrize(
    ("lengths", "world", "micro_tokens", "rounds"),
    [([10] * 8, 2, 1000, 1), ([10] * 8, 2, 20, 2), ([10] * 8, 1, 10, 8), ([5], 3, 1, 1), ([90, 5, 5], 1, 50, 2)],
)
def test_there_are_no_more_micro_batches_than_needed(lengths, world, micro_tokens, rounds):
    assert [len(worker) for worker in share_out(lengths, world, micro_tokens)] == [rounds] * world


def test_the_longest_go_first_so_that_all_have_as_much():
    lengths = [1, 1, 1, 1, 4]
    assert [[sum(lengths[i] for i in micro) for micro in worker] for worker in share_out(lengths, 2, 100)] == [[4], [4]]
