"""The teaching scripts: they compute what the package computes, and they run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atlas_ray.finetune import finetune
from atlas_ray.models import load_model, load_tokenizer
from atlas_ray.recipe import Recipe
from atlas_ray.rendering import Renderer
from atlas_ray.trajectory import (
    Annotation,
    cap,
    read_annotations,
    read_trajectories,
    write_annotations,
    write_trajectories,
)

SCRIPT = Path(__file__).parents[1] / "examples" / "atlas_loop.py"


@pytest.fixture(scope="module")
def loop():
    spec = importlib.util.spec_from_file_location("atlas_loop", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe(**tuning):
    return Recipe.model_validate(
        {
            "name": "examples",
            "workers": 0,
            "collect": {"levels": {"PickupDist": 10}, "max_steps": 40},
            "select": {"selectors": ["random"]},
            "finetune": {"base": "tiny-quick", "arms": [{"selector": "random"}], "workers": 0, **tuning},
        }
    )


@pytest.fixture(scope="module")
def prepared(loop, tmp_path_factory):
    """A run directory with episodes of which one has no critical step and one no annotation."""
    run_dir = tmp_path_factory.mktemp("examples") / "run"
    trajectories = loop.expert_episodes("PickupDist", 10, 0)
    critical = [tuple(range((k + len(t.steps)) % 2, len(t.steps), 2)) for k, t in enumerate(trajectories)]
    notes = [
        Annotation(trajectory_id=t.id, selector="random", fraction=0.5, critical=() if k == 4 else critical[k])
        for k, t in enumerate(trajectories)
        if k != 7
    ]
    write_trajectories(run_dir / "trajectories" / "expert.jsonl", trajectories)
    write_annotations(run_dir / "annotations" / "random.jsonl", notes)
    return run_dir


def losses_of(run_dir):
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["stage"] == "finetune" and "loss" in row]


def test_the_loop_trains_what_the_trainer_trains(loop, prepared):
    epochs, batch_size, seed = 4, 3, 5
    finetune(recipe(epochs=epochs, batch_size=batch_size, seeds=[seed]), prepared)

    trajectories = read_trajectories(prepared / "trajectories" / "expert.jsonl")
    annotations = read_annotations(prepared / "annotations" / "random.jsonl", trajectories)
    examples = loop.masked_examples(trajectories, annotations, Renderer(load_tokenizer("tiny-quick")))
    assert len(examples) == 8
    model, steps = load_model("tiny-quick"), epochs * 4
    losses = loop.train(model, examples, steps, seed, batch_size)

    expected = losses_of(prepared)
    assert len(expected) == steps
    assert losses == pytest.approx(expected, rel=1e-5)
    trained = load_file(prepared / "checkpoints" / f"random-s{seed}" / "model.safetensors")
    mine, start = model.state_dict(), load_model("tiny-quick").state_dict()
    assert max(float((mine[name] - trained[name]).abs().max()) for name in trained) < 1e-4
    assert max(float((start[name] - trained[name]).abs().max()) for name in trained) > 1e-3


def test_nothing_critical_is_an_error(loop):
    with pytest.raises(AssertionError, match="no step is critical"):
        loop.train(load_model("tiny-quick"), [], 3)


def test_the_loop_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 200


def test_the_expert_episodes_are_those_of_the_collect_stage(loop, tmp_path):
    from atlas_ray.collect import collect

    assert loop.expert_episodes("PickupDist", 10, 0) == collect(recipe(), tmp_path)


def test_the_loop_runs_and_trains_no_more_than_the_fraction(loop, monkeypatch, capsys):
    seen, masked = {}, loop.masked_examples

    def spy(trajectories, annotations, renderer):
        seen.update(trajectories=trajectories, annotations=annotations)
        seen["examples"] = masked(trajectories, annotations, renderer)
        return seen["examples"]

    monkeypatch.setattr(loop, "masked_examples", spy)
    options = {"episodes": 4, "rollouts": 1, "epochs": 2, "batch-size": 2, "plays": 4, "fraction": 0.2}
    loop.main([f"--{name}={value}" for name, value in options.items()])
    lengths = {t.id: len(t.steps) for t in seen["trajectories"]}
    assert len(lengths) == len(seen["annotations"]) == 4
    for note in seen["annotations"]:
        assert len(note.critical) <= cap(0.2, lengths[note.trajectory_id])
    spans = {t.id: Renderer(load_tokenizer("tiny-quick")).render(t).spans for t in seen["trajectories"]}
    wanted = sum(
        end - start for a in seen["annotations"] for start, end in (spans[a.trajectory_id][i] for i in a.critical)
    )
    assert sum(int((labels_L != -100).sum()) for _, labels_L in seen["examples"]) == wanted > 0
    said = capsys.readouterr().out
    assert "(3) 4 optimiser steps, loss" in said
    assert re.search(r"\(4\) success in 4 new episodes: [01]\.\d\d before, [01]\.\d\d after", said)


def test_the_loop_takes_trajectories_and_annotations(loop, prepared, capsys):
    files = [str(prepared / "trajectories" / "expert.jsonl"), str(prepared / "annotations" / "random.jsonl")]
    loop.main(["--file", files[0], "--annotations", files[1], "--epochs", "1", "--batch-size", "5", "--plays", "2"])
    said = capsys.readouterr().out
    assert "(1) 10 expert episodes" in said
    assert "(3) 2 optimiser steps" in said
