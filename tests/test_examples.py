"""The teaching scripts: they compute what the package computes, and they run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import switch_mdps
import torch
from safetensors.torch import load_file

from atlas_ray.agents.rendering import Renderer
from atlas_ray.finetune import finetune
from atlas_ray.models.loading import load_model, load_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.trajectory import (
    Annotation,
    max_critical_steps,
    read_annotations,
    read_trajectories,
    write_annotations,
    write_trajectories,
)

EXAMPLES = Path(__file__).parents[1] / "examples"


def script(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loop():
    return script("atlas_loop")


@pytest.fixture(scope="module")
def londi():
    return script("londi_loop")


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


@pytest.mark.parametrize("name", ["atlas_loop", "londi_loop"])
def test_the_loop_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 200


def test_the_expert_episodes_are_those_of_the_collect_stage(loop, tmp_path):
    from atlas_ray.stages.collect import collect

    assert loop.expert_episodes("PickupDist", 10, 0) == collect(recipe(), tmp_path)


@pytest.mark.slow
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
        assert len(note.critical) <= max_critical_steps(0.2, lengths[note.trajectory_id])
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


def test_the_londi_loop_stands_alone():
    code = (EXAMPLES / "londi_loop.py").read_text()
    assert set(re.findall(r"^(?:import|from) (\w+)", code, re.M)) == {"argparse", "copy", "time", "torch"}


@pytest.mark.parametrize(("cost", "budget"), [(0.0, None), (0.05, None), (0.2, None), (0.0, 0), (0.0, 2), (0.0, 4)])
def test_the_londi_loop_solves_the_chain_of_the_tests(londi, cost, budget):
    chain = switch_mdps.MDPS["chain-12"]
    values, calls = londi.solve(cost, budget)
    best = switch_mdps.best_table(chain, londi.GAMMA, cost, budget)
    assert values[:12].numpy() == pytest.approx(switch_mdps.optimum(chain, londi.GAMMA, cost, budget), rel=1e-5)
    assert calls.numpy().tolist() == best.tolist()
    assert londi.switch_set(calls, budget) == [state for state, _ in switch_mdps.switch_set(chain, best, budget)]
    torch.manual_seed(0)
    mean, _, most, turned_down = londi.play(calls, 20_000, cost, budget)
    assert mean == pytest.approx(values[0, -1].item(), abs=0.02)
    assert most == len(londi.switch_set(calls, budget))
    assert turned_down == 0


@pytest.mark.parametrize(
    ("cost", "budget", "steps", "seed"),
    [
        (0.05, None, 2_000, 0),
        pytest.param(0.0, 2, 5_000, 0, marks=pytest.mark.slow),
        *(pytest.param(0.05, None, 6_000, seed, marks=pytest.mark.slow) for seed in (0, 1)),
        *(pytest.param(0.0, 2, 12_000, seed, marks=pytest.mark.slow) for seed in (0, 1)),
    ],
)
def test_the_londi_loop_learns_the_best_switch(londi, cost, budget, steps, seed):
    switch, worth = londi.learn(cost, budget, steps, seed)
    values, _ = londi.solve(cost, budget)
    assert 0.99 * values[0, -1] <= worth <= values[0, -1] + 1e-6
    assert worth == londi.solve(cost, budget, switch.calls())[0][0, -1].item()


def test_the_londi_loop_keeps_any_budget_and_says_what_it_did(londi, capsys):
    londi.main(["--budget", "1", "--steps", "700", "--episodes", "500"])
    said = capsys.readouterr().out
    assert "(1) the best switch calls in 5: 0.0865" in said
    assert re.search(r"\(3\) the learnt switch calls in .*: 0\.\d{4}, [\d.]+% of the best", said)
    assert re.search(r"\(4\) 500 episodes: return 0\.\d+, \d\.\d+ calls an episode, at most [01]\n", said)
    assert re.search(r"\(5\) asked to call in every step: at most 1 calls, [1-9]\d* requests turned down", said)
