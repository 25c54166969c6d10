"""Adapters and validation through the whole pipeline."""

import pytest
from finetune_examples import TOKENIZER, tiny
from safetensors import safe_open

from atlas_ray import pipeline
from atlas_ray.data.results import load_results
from atlas_ray.models.loading import load_model
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import jsonl_rows, read_json


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Adapters of a small model, an arm with and one without an anchor, played during training and scored."""
    root = tmp_path_factory.mktemp("adapters")
    tiny().save_pretrained(root / "base")
    TOKENIZER.save_pretrained(root / "base")
    recipe = Recipe.model_validate(
        {
            "name": "adapters",
            "workers": 0,
            "collect": {"levels": {"GoToLocalS5N2": 8}, "max_steps": 20},
            "select": {"selectors": ["random"]},
            "finetune": {
                "base": str(root / "base"),
                "lora": {"rank": 4, "alpha": 8},
                "arms": [{"selector": "random"}, {"selector": "random", "anchor": 0.5}],
                "epochs": 3,
                "batch_size": 4,
                "workers": 0,
                "validation": {"every": 2, "episodes": 4},
            },
            "evaluate": {"held_in": ["GoToLocalS5N2"], "episodes": 4, "max_steps": 6},
        }
    )
    pipeline.run(recipe, root / "run")
    return root / "run"


@pytest.mark.parametrize("arm", ["random", "random+anchor0.5"])
def test_a_checkpoint_is_an_adapter_of_its_base(run, arm):
    path = run / "checkpoints" / f"{arm}-s0"
    assert not (path / "model.safetensors").exists()
    with safe_open(path / "adapter_model.safetensors", framework="pt") as adapter:
        assert all("lora_" in name for name in adapter.keys())  # noqa: SIM118
    merged, base = load_model(str(path)).state_dict(), load_model(str(run.parent / "base")).state_dict()
    assert merged.keys() == base.keys()
    changed = {name for name in base if not bool((merged[name] == base[name]).all())}
    assert changed
    assert all(name.endswith("_proj.weight") for name in changed)


def test_adapters_are_played_and_scored(run):
    results = load_results(run / "results.json")
    assert results.atlas is not None
    kinds = [(arm.selector, arm.anchor or 0) for arm in results.atlas.arms]
    assert kinds == [("none", 0), ("random", 0), ("random", 0.5)]
    card = (run / "checkpoints" / "random-s0" / "README.md").read_text()
    score = results.atlas.arms[1].held_in
    assert f"| held-in success | {score.success:.2f} [" in card
    assert "library_name: peft" in card


def test_the_best_weights_on_held_in_episodes_are_kept(run):
    about = read_json(run / "checkpoints" / "random-s0" / "run.json")
    assert [step for step, _ in about["scores"]] == [2, 4, 6]
    best = max(score for _, score in about["scores"])
    assert about["best"] == next(step for step, score in about["scores"] if score == best)
    rows = [row for row in jsonl_rows(run / "metrics.jsonl") if "held_in_success" in row and row["arm"] == "random"]
    assert [row["held_in_success"] for row in rows] == [score for _, score in about["scores"]]


def test_the_report_says_how_the_models_were_trained(run):
    page = (run / "report.html").read_text()
    assert "How the models were trained" in page
    about = read_json(run / "checkpoints" / "random+anchor0.5-s0" / "run.json")
    assert about["anchored_tokens"] > 0
    for kind in ("trained", "anchored", "context"):
        assert f"{about[f'{kind}_tokens']:,}" in page
