"""What a run leaves: directories that transformers and peft load, the model card, and clear words about a full disk."""

import json
import re

import pytest
import torch
import yaml
from finetune_examples import (
    TOKENIZER,
    tiny,
    trajectory,
    weights,
)
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from atlas_ray.errors import AtlasError
from atlas_ray.finetune import inputs, output, run
from atlas_ray.finetune.card import card
from atlas_ray.finetune.packing import causal_lm
from atlas_ray.finetune.process_group import ProcessGroup
from atlas_ray.finetune.shares import empty_model
from atlas_ray.models.loading import load_model
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import read_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.trajectory import Annotation, write_annotations, write_trajectories

CPU = torch.device("cpu")
ABOUT = {
    "selector": "value",
    "anchor": 0.5,
    "seed": 3,
    "steps": 1200,
    "best": 900,
    "steps_share": 0.304,
    "examples": 19,
    "trajectories": 20,
    "data_sha256": "ab" * 32,
    "trained_tokens": 123456,
    "context_tokens": 7,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The directory of a small base model."""
    path = tmp_path_factory.mktemp("base") / "small base"
    tiny().save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return path


def recipe(base, **changes):
    tuning = {"base": str(base), "arms": [{"selector": "value", "anchor": 0.5}], "workers": 0, **changes}
    return Recipe.model_validate(
        {
            "name": "out put",
            "collect": {"levels": {"GoToLocalS5N2": 3}, "max_steps": 20},
            "select": {"selectors": ["value"]},
            "finetune": tuning,
        }
    )


def changed(wanted):
    """Model and tokenizer of a recipe, trained as it were."""
    model, tokenizer = output.make_model(wanted, CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model.eval(), tokenizer


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(40)[None]).logits[0].float()


def files(path):
    return sorted(p.name for p in path.rglob("*"))


# --- directories ---


def test_a_model_loads_as_transformers_and_the_engines_load_it(tmp_path, base):
    wanted = recipe(base)
    model, tokenizer = changed(wanted)
    expected = logits(model)
    output.write_model(tmp_path / "model", model, tokenizer, wanted, ABOUT)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), expected)
    assert torch.equal(logits(load_model(str(tmp_path / "model"))), expected)
    text = "Goal: go to the red ball"
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text).input_ids == TOKENIZER(text).input_ids
    assert not torch.equal(logits(tiny()), expected)
    assert read_json(tmp_path / "model" / "run.json") == ABOUT


def test_adapters_load_as_peft_loads_them_and_merged(tmp_path, base):
    wanted = recipe(base, lora={"rank": 4, "alpha": 8})
    model, tokenizer = changed(wanted)
    expected = logits(model)
    output.write_model(tmp_path / "model", model, tokenizer, wanted, ABOUT)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "model")
    assert torch.equal(logits(loaded), expected)
    assert torch.allclose(logits(load_model(str(tmp_path / "model"))), expected, atol=1e-5)
    assert float((logits(tiny()) - expected).abs().max()) > 1e-2
    held = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert held and all("lora_" in name for name in held), "nothing of the base"


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_only_safetensors_hold_weights(tmp_path, base, lora):
    wanted = recipe(base, lora=lora)
    output.write_model(tmp_path / "model", *changed(wanted), wanted, ABOUT)
    found = files(tmp_path / "model")
    weight = "adapter_model" if lora else "model"
    assert {f"{weight}.safetensors", "run.json", "README.md", "tokenizer.json"} <= set(found)
    assert {name.rsplit(".", 1)[-1] for name in found} <= {"safetensors", "json", "md", "jinja"}
    assert files(tmp_path) == sorted(["model", *found]), "nothing is left beside it"


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_weights_are_saved_in_the_format_of_the_recipe(tmp_path, base, name, lora):
    wanted = recipe(base, lora=lora, save_dtype=name)
    output.write_model(tmp_path / "model", *changed(wanted), wanted, ABOUT)
    (path,) = (tmp_path / "model").glob("*.safetensors")
    assert {value.dtype for value in load_file(path).values()} == {getattr(torch, name)}
    if not lora:
        assert read_json(path.with_name("config.json"))["dtype"] == name
    rounded = logits(load_model(str(path.parent)))
    assert torch.allclose(rounded, logits(changed(wanted)[0]), atol={"float32": 1e-5, "float16": 1e-2}.get(name, 5e-2))


# --- models to begin with ---


def test_adapters_begin_alike_for_one_seed_and_change_nothing_at_first(base):
    wanted = recipe(base, lora={"rank": 4})
    torch.manual_seed(1)
    model, _ = output.make_model(wanted, CPU)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1)), "the caller's random numbers are left alone"
    other, _ = output.make_model(wanted.model_copy(update={"seed": 1}), CPU)
    assert torch.equal(weights(model), weights(output.make_model(wanted, CPU)[0]))
    assert not torch.equal(weights(model), weights(other))
    assert torch.equal(logits(model.eval()), logits(tiny()))
    assert all(("lora_" in name) == p.requires_grad for name, p in model.named_parameters())


@pytest.mark.parametrize(("precision", "kind"), [("bfloat16", torch.bfloat16), ("auto", torch.float32)])
def test_a_base_that_stays_as_it_is_may_be_half_as_large_and_adapters_are_not(base, precision, kind):
    model, _ = output.make_model(recipe(base, lora={"rank": 4}, precision=precision), CPU)
    assert {p.dtype for name, p in model.named_parameters() if "lora_" not in name} == {kind}
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}
    whole, _ = output.make_model(recipe(base, precision=precision), CPU)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


def test_targets_that_the_model_lacks_are_an_error_of_the_recipe(base):
    with pytest.raises(AtlasError, match="finetune.lora.targets: .*nowhere_proj"):
        output.make_model(recipe(base, lora={"targets": ["nowhere_proj"]}), CPU)


def test_a_new_model_has_the_shape_of_the_recipe(base):
    shape = {"hidden": 16, "layers": 3, "heads": 2, "intermediate": 24}
    model, tokenizer = output.make_model(recipe(base, scratch=shape), CPU)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (16, 3)
    assert len(tokenizer) == model.config.vocab_size
    assert torch.equal(weights(model), weights(output.make_model(recipe(base, scratch=shape), CPU)[0]))


def test_the_context_is_the_models_unless_the_recipe_has_a_smaller_one(base):
    model = tiny()
    assert [output.context(recipe(base, context=n), model) for n in (None, 100, 5000)] == [2048, 100, 2048]


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_weights_are_taken_out_and_put_back(base, lora):
    wanted = recipe(base, lora=lora)
    (one, _), (other, _) = changed(wanted), output.make_model(wanted, CPU)
    values = output.weights(one, ProcessGroup())
    assert set(values) == {name for name, p in one.named_parameters() if p.requires_grad}
    output.put(other, values)
    assert torch.equal(logits(other.eval()), logits(one))
    next(iter(values.values())).zero_()
    assert torch.equal(logits(other), logits(one)), "they are copies"


# --- the card ---


def front_matter(text):
    return yaml.safe_load(re.fullmatch(r"---\n(.*?)\n---\n.*", text, re.DOTALL)[1])


def test_the_card_says_what_was_trained_on_what(tmp_path, base):
    wanted = recipe(base)
    text = card(wanted, ABOUT)
    head = front_matter(text)
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["atlas-ray", "atlas"],
    }
    for part in ("`value`, anchored to the base with weight 0.5", "30.4%", "19 of 20", f"`{'ab' * 32}`", "1,200"):
        assert part in text
    assert "| weights of step | 900 of 1200, the best on held-in episodes |" in text
    assert "123,456" in text and "not measured yet" in text
    assert Recipe.model_validate(json.loads(text.split("```json\n")[1].split("```")[0])) == wanted


def test_the_card_names_no_directory_as_the_base_model_on_the_hub(base):
    assert "small base, all weights tuned" in card(recipe(base), ABOUT)
    text = card(recipe("some-org/Some-1B", lora={"rank": 8}), ABOUT)
    head = front_matter(text)
    assert (head["base_model"], head["library_name"]) == ("some-org/Some-1B", "peft")
    assert "lora" in head["tags"]
    assert "LoRA adapter of rank 8 for some-org/Some-1B" in text
    scratch = card(recipe("x", scratch={"hidden": 16, "layers": 1, "heads": 2, "intermediate": 8}), ABOUT)
    assert "a new model" in scratch and "base_model" not in front_matter(scratch)


def test_the_card_has_the_scores_once_there_are_some(base):
    text = card(recipe(base), {**ABOUT, "best": None, "anchor": 0.0}, {"held-in success": "0.81 (0.75 to 0.86)"})
    assert "| held-in success | 0.81 (0.75 to 0.86) |" in text
    assert "not measured" not in text and "anchored" not in text and "weights of step" not in text


# --- a whole arm ---


@pytest.mark.parametrize("scores", [[0.1, 0.9, 0.3], [0.1, 0.2, 0.3]])
def test_the_checkpoint_of_an_arm_holds_the_weights_of_its_best_step(tmp_path, base, monkeypatch, scores):
    wanted = recipe(base, epochs=3, batch_size=4, validation={"every": 1}, learning_rate=1e-2)
    (arm,) = wanted.finetune.arms
    seen, given = [], iter(scores)

    def success(recipe, model, tokenizer, group, replies):
        seen.append(weights(model).clone())
        replies.add({"ok": 7, "lost": len(seen) - 1})
        return next(given)

    monkeypatch.setattr(run, "success", success)
    write_trajectories(RunLayout(tmp_path).expert, [trajectory(str(i), 3) for i in range(4)])
    notes = [Annotation(trajectory_id=str(i), selector="value", fraction=0.5, critical=(i % 3,)) for i in range(4)]
    write_annotations(tmp_path / "annotations" / "value.jsonl", notes)
    inputs.prepare(wanted, tmp_path, CPU)
    run.train_arm(wanted, tmp_path, arm, 0, ProcessGroup(), 0)
    target = run.checkpoint_dir(tmp_path, arm, 0)
    about = read_json(target / "run.json")
    best = scores.index(max(scores))
    assert (about["steps"], about["best"]) == (3, best + 1)
    assert torch.equal(weights(load_model(str(target))), seen[best])
    assert (about["steps_share"], about["examples"], about["shortened"]) == (4 / 12, 4, 0)
    assert [p.name for p in target.parent.iterdir() if p.name.startswith(".")] == [".training"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["held_in_success"] for row in rows if "held_in_success" in row] == scores
    told = [row["replies"] for row in rows if "replies" in row]
    assert told == [{"ok": 7}, {"ok": 7, "lost": 1}, {"ok": 7, "lost": 2}]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]


def assert_same_files(one, other):
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        mine, theirs = ((kind / name).read_bytes() for kind in (one, other))
        assert (json.loads(mine) == json.loads(theirs)) if name.endswith(".json") else (mine == theirs), name


def test_a_checkpoint_is_the_same_whether_the_model_holds_its_weights_or_not(base, tmp_path):
    wanted = recipe(base, save_dtype="bfloat16")
    model, tokenizer = changed(wanted)
    values = output.weights(model, ProcessGroup(), torch.bfloat16)
    output.write_model(tmp_path / "given", empty_model(wanted.finetune, base, 0), tokenizer, wanted, ABOUT, values)
    output.write_model(tmp_path / "whole", model, tokenizer, wanted, ABOUT)
    assert (tmp_path / "whole" / "model.safetensors").exists()
    assert_same_files(tmp_path / "whole", tmp_path / "given")


def test_adapters_are_the_same_whether_their_base_holds_its_weights_or_not(base, tmp_path):
    wanted = recipe(base, save_dtype="bfloat16", lora={"rank": 4})
    model, tokenizer = changed(wanted)
    empty = empty_model(wanted.finetune, base, 0)
    output.put(causal_lm(empty), output.weights(causal_lm(model), ProcessGroup(), torch.bfloat16))
    output.write_model(tmp_path / "given", empty, tokenizer, wanted, ABOUT)
    output.write_model(tmp_path / "whole", model, tokenizer, wanted, ABOUT)
    assert (tmp_path / "whole" / "adapter_model.safetensors").exists()
    assert_same_files(tmp_path / "whole", tmp_path / "given")
