"""Models by name: what is a path, what a hub id, where an adapter's base is found, and how long a text may be."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from model_files import model_dir
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from atlas_ray.engines import TransformersEngine
from atlas_ray.errors import InputError
from atlas_ray.finetune import output
from atlas_ray.finetune.flops import shape_of
from atlas_ray.models import loading as models
from atlas_ray.models.config import limit_of
from atlas_ray.models.encoders import encoder_width
from atlas_ray.models.loading import (
    load_config,
    load_model,
    load_tokenizer,
    look,
    resolve,
)
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.preflight import check
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import atomic_directory
from atlas_ray.selection.perplexity import step_perplexities

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
TEXT = {**SIZES, "vocab_size": 97, "intermediate_size": 48, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": 2}
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GEMMA3 = {"text_config": {**TEXT, "max_position_embeddings": 64, "sliding_window": 64}, "vision_config": VISION}


# --- names ---


@pytest.mark.parametrize("name", ["./x", "../x", "~/nope-x", "/nope/x", "runs/demo/checkpoints/all-s0", "org/x/", "."])
def test_what_looks_like_a_path_is_never_a_hub_id(here, name):
    with pytest.raises(InputError, match="no such directory|is no model directory") as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_a_name_below_a_folder_that_is_here_is_a_path(here, monkeypatch):
    assert resolve("runs/demo") == "runs/demo"
    (here / "runs").mkdir()
    with pytest.raises(InputError, match=f"^runs/demo: there is no such directory in {here}/runs; if the hub's"):
        resolve("runs/demo")
    model_dir(here / "runs" / "demo")
    assert resolve("runs/demo") == "runs/demo"
    assert load_model("runs/demo").config.hidden_size == 16


def test_a_hub_id_that_was_fetched_stays_one_beside_a_folder(here, monkeypatch):
    (here / "org").mkdir()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda hub_id, file: f"/cache/{hub_id}/{file}")
    assert resolve("org/name") == "org/name"


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda p: p.write_text("x"), "is a file"),
        (lambda p: p.mkdir(), "has no config.json"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("{}")), r"has no \*.safetensors"),
    ],
)
def test_a_path_without_a_model_says_what_is_missing(here, made, says):
    made(here / "m")
    with pytest.raises(InputError, match=f"^m: .*{says}"):
        resolve("m")


def test_names_that_nothing_has(here):
    with pytest.raises(InputError, match=f"tiny-quick, tiny-deepthink, .*looked for {here}/tiny-quik"):
        resolve("tiny-quik")
    with pytest.raises(InputError, match="^finetune.base: tiny-quik: no model of that name"):
        look("tiny-quik", "finetune.base")
    for load in (load_config, load_model, load_tokenizer):
        with pytest.raises(InputError, match="^no/such: cannot be loaded: .*was asked of the hub") as caught:
            load("no/such")
        assert "\n" not in str(caught.value)
    look("tiny-quick", "finetune.base")


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no-such"}', '{"model_type": "vit"}'])
def test_a_broken_configuration_is_one_line_that_names_the_model(here, content):
    (model_dir(here / "m") / "config.json").write_text(content)
    with pytest.raises(InputError, match="^m: cannot be loaded: ") as caught:
        load_model("m")
    assert "\n" not in str(caught.value)


# --- how long a text may be ---


def stated(kind, **given):
    return AutoConfig.for_model(kind, **given)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (stated("llama", max_position_embeddings=77), 77),
        (stated("gpt2", n_positions=78), 78),
        (stated("mpt", max_seq_len=79), 79),
        (stated("bloom", seq_length=80), 80),
        (stated("gemma3", **GEMMA3), 64),
        (stated("qwen3_5", text_config={"max_position_embeddings": 81}), 81),
        (stated("llama4", text_config={"max_position_embeddings": 82}), 82),
        (stated("mistral3", text_config={"model_type": "mistral", "max_position_embeddings": 83}), 83),
        (stated("bloom"), None),
        (stated("mamba"), None),
        (stated("recurrent_gemma"), None),
        (stated("xlnet"), None),  # says -1
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_the_longest_text_is_what_the_configuration_states_under_its_own_name(config, limit):
    assert limit_of(config) == limit
    if limit is None:
        with pytest.raises(InputError, match=f"^finetune.context: .* this {config.model_type} model states no longest"):
            models.longest(config, None, "finetune.context")
    assert models.longest(config, 50, "finetune.context") == (limit or 50)


def null_model(path):
    """tiny-quick, whose longest text is null."""
    shutil.copytree(resolve("tiny-quick"), path)
    config = json.loads((path / "config.json").read_text()) | {"max_position_embeddings": None}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_a_model_that_states_no_longest_text_works_with_one_from_the_recipe(tmp_path):
    name = null_model(tmp_path / "m")
    with pytest.raises(InputError, match="^engine.context: the configuration of this llama model states no longest"):
        TransformersEngine(name, 1)
    engine = TransformersEngine(name, 1, context=50)
    assert engine.context == 50
    prompt, options = [[5, 6, 7]], [[[8, 9], [10]]]
    assert torch.equal(
        engine.score(prompt, [0], options)[0], TransformersEngine("tiny-quick", 1).score(prompt, [0], options)[0]
    )
    arms = {"name": "r", "collect": {"file": "x"}, "select": {"selectors": ["all"]}}
    for given, wanted in (({}, None), ({"context": 40}, 40)):
        raw = {**arms, "finetune": {"base": name, "arms": [{"selector": "all"}], **given}}
        recipe = Recipe.model_validate(raw)
        outline, _ = output.outline(recipe)
        if wanted:
            assert output.context(recipe, outline) == wanted
        else:
            with pytest.raises(InputError, match=r"^finetune\.context: "):
                output.context(recipe, outline)
    with pytest.raises(InputError, match=r"^finetune\.context: "):
        step_perplexities(load_model(name), None, [])
    assert step_perplexities(load_model(name), None, [], asked=40) == ({}, [])


def test_a_model_that_cannot_be_had_or_measured_is_found_before_anything_is_collected(here):
    name = null_model(here / "m")

    def recipe(base="tiny-quick", **changes):
        tuning = {"base": base, "arms": [{"selector": "all"}], **changes.pop("finetune", {})}
        raw = {"name": "r", "collect": {"levels": {"GoToLocalS5N2": 1}}, "select": {"selectors": ["all"]}}
        return Recipe.model_validate({**raw, "finetune": tuning, **changes})

    check(recipe())
    with pytest.raises(InputError, match="^finetune.base: no/such: cannot be loaded"):
        check(recipe("no/such"))
    with pytest.raises(InputError, match="^finetune.context: "):
        check(recipe(name))
    played = {"evaluate": {"held_in": ["GoToLocalS5N2"]}, "finetune": {"context": 99}}
    with pytest.raises(InputError, match="^engine.context: "):
        check(recipe(name, **played))
    check(recipe(name, **played, engine={"context": 99}))


def test_more_than_a_model_takes_is_an_error_that_names_the_field():
    with pytest.raises(InputError, match="^engine.context: the model takes at most 2048 tokens"):
        TransformersEngine("tiny-quick", 1, context=4096)


def test_a_model_with_a_part_for_images_is_played_trained_and_measured_by_its_text(tmp_path):
    config = stated("gemma3", **GEMMA3)
    model = AutoModelForCausalLM.from_config(config).eval()
    engine = TransformersEngine(model, 2, build_tokenizer())
    assert engine.context == 64
    prompts, options = [[5, 9, 12, 7], [6, 10]], [[[15, 16], [4]], [[20, 21]]]
    for prompt, candidates, scores in zip(prompts, options, engine.score(prompts, [0, 1], options), strict=True):
        for candidate, score in zip(candidates, scores, strict=True):
            logps = model(input_ids=torch.tensor([prompt + candidate])).logits[0].log_softmax(-1)
            wanted = sum(logps[len(prompt) + i - 1, token] for i, token in enumerate(candidate))
            assert score == pytest.approx(float(wanted), abs=1e-4)
    model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    assert encoder_width("hidden", 8, str(tmp_path)) == engine.capabilities.hidden == 32
    shape = shape_of(config)
    assert (shape.layers, shape.hidden, shape.vocab) == (2, 32, 97)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("bloom", {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
        ("mpt", {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4}),
        ("mamba", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
        ("recurrent_gemma", {**SIZES, "vocab_size": 97, "num_hidden_layers": 3, "lru_width": 32}),
        (
            "falcon",
            {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
        ),
        ("qwen3_5_text", {**TEXT, "layer_types": ["linear_attention", "full_attention"]}),
    ],
)
def test_models_of_which_nothing_can_be_kept_are_refused_rather_than_played_wrongly(kind, given):
    model = AutoModelForCausalLM.from_config(stated(kind, **given))
    with pytest.raises(InputError, match=f"a {kind} model has no keys and values with places of their own"):
        TransformersEngine(model, 1, build_tokenizer(), context=40)


# --- who may read the files ---


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_can_be_read_by_whom_the_umask_allows(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with atomic_directory(tmp_path / "made") as directory:
            save_file({"a": torch.ones(3)}, directory / "model.safetensors")
            (directory / "below").mkdir()
            save_file({"a": torch.ones(3)}, directory / "below" / "model.safetensors")
            script = directory / "run.sh"
            script.write_text("")
            script.chmod(0o700)
    finally:
        os.umask(before)
    found = {str(p.relative_to(tmp_path)): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {
        "made/model.safetensors": mode,
        "made/below/model.safetensors": mode,
        "made/run.sh": mode | 0o700,
    }
    assert load_file(Path(tmp_path / "made" / "model.safetensors"))["a"].tolist() == [1, 1, 1]
