"""Rounds with engine actors: they stay, and load each round's QUICK."""

import re
import shutil

import pytest
import torch
from round_runs import put_switches, rounds_recipe

from atlas_ray import pipeline
from atlas_ray.data.rounds import load_rounds
from atlas_ray.engines.probe import TOLERANCE
from atlas_ray.models.loading import resolve
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.layout import RunLayout

KEPT = "took the weights of"


def played(folder, run_dir, **engine):
    shutil.copytree(resolve("tiny-quick"), folder / "quick", dirs_exist_ok=True)
    tuning = {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "workers": 0}
    made = rounds_recipe(folder, count=1, arms=["calls", "all"], finetune=tuning)
    tables = made.model_dump(exclude_unset=True) | {"workers": 1 if engine else 0, "engine": engine}
    recipe = Recipe.model_validate(tables)
    pipeline.open_run(recipe, run_dir)
    put_switches(recipe, run_dir, (1, 1))
    pipeline.run(recipe, run_dir, ("switch", "rounds"))
    return load_rounds(RunLayout(run_dir).rounds)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_engines_stay_and_take_the_weights_of_each_round(ray_session, tmp_path, capfd, monkeypatch, kind):
    if kind == "vllm":
        pytest.importorskip("vllm")
        if torch.cuda.is_available():
            pytest.skip("compares float32 on a CPU")
    monkeypatch.setattr("atlas_ray.finetune.run.device_peak", lambda *given: 1e9)
    alone = played(tmp_path, tmp_path / "alone")
    capfd.readouterr()
    kept = played(tmp_path, tmp_path / "kept", kind=kind, actors=1, context=2048, timeout=600.0)
    told = [line for line in "".join(capfd.readouterr()).splitlines() if KEPT in line]
    print(*told, sep="\n")
    assert len(told) == 2, "the QUICK of the round, and that of its control"
    if kind == "vllm":
        assert not any("anew" in line for line in told)
        for line in told:
            off, before = map(float, re.search(r"off by (\S+) per token \(with the old ones by (\S+)\)", line).groups())
            assert off < TOLERANCE["float32"] / 2 < before
    assert (kept.seeds, len(kept.rounds)) == (alone.seeds, len(alone.rounds))
    for ours, theirs in zip(kept.rounds, alone.rounds, strict=True):
        assert ours.quick.success == theirs.quick.success and ours.switch.calls == theirs.switch.calls
