"""Pairs as a run trains on them: token ids, the reference on disk, files of one's own, the checkpoint, bad input."""

import json

import numpy as np
import pytest
import torch
from finetune_examples import TOKENIZER, note, sharp, tiny, trajectory, with_adapters
from preference_examples import plain_logps
from pydantic import ValidationError

from atlas_ray import pipeline
from atlas_ray.agents.rendering import Renderer
from atlas_ray.errors import ContextOverflowError, EmptySelectionError, InputError
from atlas_ray.finetune import finetune, inputs, reference
from atlas_ray.finetune.pairs import PairExamples, build_pair_store
from atlas_ray.finetune.reference import reference_logps
from atlas_ray.recipe.loading import Pairs, Recipe
from atlas_ray.rundir.files import jsonl_rows, read_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.trajectory import Pair, Turn, read_pairs, write_annotations, write_pairs, write_trajectories


def pair(number=0, step=2, chosen="go forward", rejected="turn left", thought="explore"):
    """A pair at a step of the episode ``number``."""
    whole = trajectory(str(number), step + 1)
    return Pair(
        id=f"{number}/{step}",
        episode=whole.id,
        step=step,
        history=whole.steps[:step],
        observation=f"You see a grey key {number + 2} steps forward",
        chosen=Turn(thought=thought, action=chosen),
        rejected=Turn(thought="explore", action=rejected),
        **{name: getattr(whole, name) for name in ("env", "task", "seed", "instruction", "source")},
    )


def store_of(path, items, context=500, truncation="error", skip="error", style="react"):
    return build_pair_store(path / "s", items, Renderer(TOKENIZER, style), context, truncation, skip, "key")


def examples_of(store):
    return PairExamples(store, np.arange(len(store), dtype=np.float32).reshape(-1, 2))


# --- token ids ---


def test_an_example_is_the_history_and_a_trained_turn(tmp_path):
    items, renderer = [pair(0, 2), pair(1, 0)], Renderer(TOKENIZER)
    found = examples_of(store_of(tmp_path, items))
    assert len(found) == 2
    for number, (item, example) in enumerate(zip(items, found, strict=True)):
        prompt = renderer.prompt(item.instruction, item.history, item.observation)
        for side, turn in zip(example.parts, (item.chosen, item.rejected), strict=True):
            written = renderer.turn(item.trajectory("chosen").steps[-1].model_copy(update=turn.model_dump()))
            assert list(side.ids) == prompt + written, "what is trained is what is prompted"
            assert list(side.trained) == list(range(len(prompt), len(side.ids)))
        assert example.reference == (2 * number, 2 * number + 1)
        assert example.size == sum(len(side.ids) for side in example.parts)


def test_a_long_pair_loses_the_same_steps_of_both_sides(tmp_path):
    item = pair(0, 4, chosen="go forward", rejected="pick up the grey key")
    whole = examples_of(store_of(tmp_path / "whole", [item]))[0]
    longest = max(len(side.ids) for side in whole.parts)
    short = examples_of(store_of(tmp_path / "cut", [item], longest - 1, "drop_first_steps"))[0]
    renderer = Renderer(TOKENIZER)
    for side in short.parts:
        assert list(side.ids[: side.trained[0]]) == renderer.prompt(
            item.instruction, item.history[1:], item.observation
        ), "the shorter side too"


def test_a_pair_that_does_not_fit_is_refused_or_left_out(tmp_path):
    long, short = pair(0, 9), pair(1, 0)
    size = max(len(side.ids) for side in examples_of(store_of(tmp_path / "short", [short]))[0].parts)
    with pytest.raises(ContextOverflowError, match="pair '0/9' has .*drop_first_steps"):
        store_of(tmp_path / "a", [short, long], size)
    with pytest.raises(InputError, match="pair '0/9' is longer .* loses its turn"):
        store_of(tmp_path / "b", [short, long], size, "drop_last_steps")
    with pytest.raises(ContextOverflowError, match="not even its turn fits"):
        store_of(tmp_path / "c", [short, long], size - 1, "drop_first_steps")
    assert len(examples_of(store_of(tmp_path / "d", [short, long], size, "drop_last_steps", "skip"))) == 1
    with pytest.raises(EmptySelectionError, match="no pair fits"):
        store_of(tmp_path / "e", [long], size, "drop_last_steps", "skip")
    assert sorted(p.name for p in tmp_path.iterdir() if (p / "s").exists()) == ["d", "e", "short"]


def test_turns_that_are_the_same_tokens_are_refused(tmp_path):
    other_thoughts = pair(chosen="go forward", rejected="go forward", thought="go to the red ball")
    assert len(examples_of(store_of(tmp_path / "a", [other_thoughts]))) == 1
    with pytest.raises(InputError, match="'0/2': both turns are the same tokens to the model .actions only"):
        store_of(tmp_path / "b", [other_thoughts], style="action")
    unknown = pair(chosen="xylophone", rejected="zeppelin")
    with pytest.raises(InputError, match="words that the tokenizer does not know"):
        store_of(tmp_path / "c", [unknown])


# --- the reference ---


@pytest.mark.parametrize("micro_tokens", [1, 150, 10_000])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_reference_on_disk_is_the_base_computed_anew(tmp_path, monkeypatch, micro_tokens, adapted):
    base = sharp("llama", max_position_embeddings=500, attention_dropout=0.5)
    model = with_adapters(sharp("llama", max_position_embeddings=500)).train() if adapted else base.train()
    store = store_of(tmp_path, [pair(n, n % 3, rejected="pick up the grey key") for n in range(5)])
    path = tmp_path / "reference.npy"
    found = reference_logps(path, model, store, Pairs(), micro_tokens, False)
    assert model.training and found.shape == (5, 2)
    with torch.no_grad():
        expected = [[value.item() for value in plain_logps(base.eval(), e)] for e in examples_of(store)]
    assert np.abs(found - expected).max() < 1e-4
    monkeypatch.setattr(reference, "PreferenceModel", lambda *_: 1 / 0)
    assert np.array_equal(reference_logps(path, model, store, Pairs(), micro_tokens, False), found), "made once"


# --- a run ---


@pytest.fixture
def base(tmp_path):
    tiny().save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def recipe_of(base, arms=({"selector": "mine", "pairs": True},), **changes):
    file = {"files": {"mine": str(base.parent / "mine.jsonl")}}
    tuning = {"base": str(base), "arms": list(arms), "workers": 0, "batch_size": 2, "epochs": 3, "learning_rate": 1e-2}
    given = changes.pop("pairs", {})
    return Recipe.model_validate(
        {
            "name": "pairs",
            "workers": 0,
            "collect": {"file": "x"},
            "select": {"selectors": ["all"]},
            "finetune": {**tuning, **changes, "pairs": {**file, **given}},
        }
    )


@pytest.fixture
def run_dir(base, tmp_path):
    """A run whose collecting and selecting is done; the second pair is of an episode that it has not."""
    write_trajectories(RunLayout(tmp_path / "run").expert, [trajectory(name, 3) for name in "0123"])
    write_annotations(RunLayout(tmp_path / "run").annotations("all"), [note(name, 0, 1, 2) for name in "0123"])
    write_pairs(tmp_path / "mine.jsonl", [pair(0, 1), pair(9, 2), pair(1, 0), pair(2, 2), pair(3, 1)])
    return tmp_path / "run"


@pytest.mark.parametrize(("strategy", "here"), [("ddp", True), ("fsdp", False)])
def test_whoever_shares_a_base_out_keeps_its_word_of_pairs(base, run_dir, strategy, here):
    wanted = recipe_of(base, strategy=strategy, workers=2)
    write_pairs(RunLayout(run_dir).pairs("mine"), read_pairs(base.parent / "mine.jsonl"))
    (store,) = inputs.prepare(wanted, run_dir, torch.device("cpu"))
    assert inputs.reference_file(wanted, run_dir, store.key).exists() == here


def test_a_run_trains_on_steps_and_on_pairs_of_a_file(base, run_dir):
    wanted = recipe_of(
        base,
        [{"selector": "all"}, {"selector": "mine", "pairs": True}],
        pairs={"beta": 1.0, "sft": 0.1, "epochs": 8, "learning_rate": 3e-3},
    )
    made = finetune(wanted, run_dir)
    assert [path.name for path in made] == ["all-s0", "mine+pairs-s0"]
    assert read_pairs(RunLayout(run_dir).pairs("mine")) == read_pairs(base.parent / "mine.jsonl")
    steps, about = (read_json(path / "run.json") for path in made)
    assert (steps["steps"], about["steps"]) == (3 * 2, 8 * 3), "of 4 episodes and of 5 pairs"
    assert about["pairs"] == {"loss": "sigmoid", "beta": 1.0, "sft": 0.1} and "pairs" not in steps
    assert (about["examples"], about["trajectories"], about["emptied"], about["shortened"]) == (5, 5, 0, 0)
    assert about["steps_share"] == 4 / 12
    rows = [row for row in jsonl_rows(run_dir / "metrics.jsonl") if row.get("arm") == "mine+pairs"]
    assert len(rows) == 24 and max(row["learning_rate"] for row in rows) == pytest.approx(3e-3)
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-4), "the model begins as its reference"
    assert rows[0]["loss"] == pytest.approx(np.log(2) - 0.1 * rows[0]["logps/chosen"] / 5, rel=0.2)
    assert rows[-1]["rewards/accuracies"] == 1 and rows[-1]["rewards/margins"] > 0.5
    assert "rewards/margins" not in next(iter(jsonl_rows(run_dir / "metrics.jsonl")))
    card = (made[1] / "README.md").read_text()
    assert "pairs of `mine`: loss sigmoid, beta 1, with 0.1 times the cross entropy" in card and "DPO" in card
    assert not RunLayout(run_dir).training_scratch.exists()
    assert finetune(wanted, run_dir) == made


def test_pairs_alone_need_no_token_ids_of_trajectories(base, run_dir, monkeypatch):
    monkeypatch.setattr("atlas_ray.finetune.inputs.build_store", lambda *_: 1 / 0)
    (made,) = finetune(recipe_of(base, lora={"rank": 2}, pairs={"loss": "sigmoid_norm", "beta": 5.0}), run_dir)
    assert read_json(made / "run.json")["pairs"] == {"loss": "sigmoid_norm", "beta": 5.0, "sft": 0.0}
    assert (made / "adapter_config.json").exists()


def alone(base, **tuning):
    """A recipe of pairs of a file alone: nothing is collected or selected."""
    table = recipe_of(base, **tuning).finetune.model_dump(exclude_unset=True)
    scored = {"held_in": ["GoToLocalS5N2"], "episodes": 2, "max_steps": 2}
    return {"name": "alone", "workers": 0, "num_envs": 2, "style": "action", "finetune": table, "evaluate": scored}


def test_a_file_of_pairs_is_trained_scored_and_reported_without_trajectories(base, run_dir, monkeypatch):
    monkeypatch.setattr("atlas_ray.finetune.run.device_peak", lambda *given: 1e9)
    out = base.parent / "alone"
    done = pipeline.run(Recipe.model_validate(alone(base, epochs=1)), out)
    assert list(done) == ["finetune", "evaluate", "report"] and not RunLayout(out).trajectories_dir.exists()
    untuned, arm = read_json(RunLayout(out).results)["atlas"]["arms"]
    assert (untuned["selector"], arm["selector"], arm["pairs"]) == ("none", "mine", "sigmoid")
    assert arm["steps_share"] == 5 / 11, "of the steps up to the pairs"
    assert arm["compute"] == {"collect": None, "select": None, "select_steps": None, "train": arm["compute"]["train"]}
    assert arm["compute"]["train"] > 0 and "this run selected no steps" in RunLayout(out).report.read_text()


# --- bad input ---


def test_pairs_alone_are_refused_where_an_arm_needs_steps(base, run_dir):
    given = alone(base)
    given["finetune"]["arms"].append({"selector": "all"})
    with pytest.raises(ValidationError, match=r"finetune: needs a \[select\] table, or arms with pairs = true"):
        Recipe.model_validate(given)
    path, out = base.parent / "mine.jsonl", base.parent / "out"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[2]["chosen"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="chosen") as caught:
        pipeline.run(Recipe.model_validate(alone(base)), out)
    assert (caught.value.line, caught.value.field, caught.value.exit_code) == (3, "chosen", 2)
    assert not RunLayout(out).pairs_dir.exists() and not RunLayout(out).checkpoints.exists()


def test_a_selector_that_left_no_pairs_is_named(base, run_dir):
    wanted = recipe_of(base)
    without = wanted.finetune.model_copy(update={"pairs": Pairs()})
    with pytest.raises(InputError, match="mine has left no pairs") as caught:
        finetune(wanted.model_copy(update={"finetune": without}), run_dir)
    assert caught.value.field == "finetune.arms"
    (base.parent / "mine.jsonl").write_text("")
    with pytest.raises(InputError, match="mine.jsonl: holds no pair"):
        finetune(wanted, run_dir)
    assert not RunLayout(run_dir).pairs("mine").exists()


def test_a_bad_line_of_a_file_is_named_before_anything_is_trained(base, run_dir):
    path = base.parent / "mine.jsonl"
    row = {**json.loads(path.read_text().splitlines()[0]), "id": "b"}
    row["rejected"] = row["chosen"]
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(InputError, match="rejected") as caught:
        finetune(recipe_of(base), run_dir)
    assert (caught.value.line, caught.value.field) == (6, "rejected")
    assert not RunLayout(run_dir).pairs_dir.exists() and not RunLayout(run_dir).checkpoints.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": [{"selector": "all", "pairs": True}]}, "all makes no pairs"),
        ({"arms": [{"selector": "mine", "pairs": True, "anchor": 0.5}]}, "remove one of the two"),
        ({"arms": [{"selector": "mine"}]}, "select.selectors lacks mine"),
        ({"pairs": {"files": {"value": "x"}}}, "must be a new name"),
        ({"pairs": {"beta": 0.0}}, "greater than 0"),
        ({"pairs": {"loss": "hinge"}}, "sigmoid"),
        ({"scratch": {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 8}}, "scratch has none"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(base, changes, words):
    with pytest.raises(ValidationError, match=words):
        recipe_of(base, **changes)
