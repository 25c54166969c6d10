"""Adapters: over which model they lie, wherever one starts, and what is no adapter."""

import json
import shutil

import pytest
import torch
from model_files import model_dir

from atlas_ray.cluster import remote_rundir
from atlas_ray.errors import InputError
from atlas_ray.models.loading import (
    adapted,
    base_from,
    load_config,
    load_model,
    load_tokenizer,
    note_base,
    resolve,
    whole,
)
from atlas_ray.models.tiny import build_tokenizer


def adapter_of(path, base, noted=True, recorded=None, seed=0):
    """An adapter over ``base`` as a run of ours leaves it; ``recorded`` is another word for its base."""
    from peft import LoraConfig, get_peft_model

    model = load_model(base)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
        for name, p in made.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    made.save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    config = json.loads((path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = recorded or base_from(base, path)
    (path / "adapter_config.json").write_text(json.dumps(config))
    if noted is not None:
        (path / "run.json").write_text(json.dumps({"base": note_base(base)} if noted else {"seed": 0}))
    return path


def run_of(folder, **given):
    """A run over ``folder/m``, made in ``folder``, beside another folder that has an ``m`` of its own."""
    model_dir(folder / "m", seed=1)
    model_dir(folder / "other" / "m", seed=2)
    return adapter_of(folder / "runs" / "demo" / "checkpoints" / "all-s0", "m", **given)


def test_the_base_of_an_adapter_is_that_beside_it_wherever_one_starts(here, monkeypatch):
    path = run_of(here)
    assert json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"] == "../../../../m"
    wanted = load_model(str(path)).state_dict()
    monkeypatch.chdir(here / "other")
    assert adapted(str(path)) == str(here / "m")
    assert all(bool((wanted[name] == p).all()) for name, p in load_model(str(path)).state_dict().items())
    shutil.move(here / "runs", here / "other" / "elsewhere")
    shutil.move(here / "m", here / "other" / "elsewhere" / "m")
    shutil.rmtree(here / "other" / "m")
    moved = here / "other" / "elsewhere" / "demo" / "checkpoints" / "all-s0"
    assert adapted(str(moved)) == str(here / "other" / "elsewhere" / "m"), "above the run, with the same weights"
    load_model(str(moved))


def test_another_directory_of_the_base_s_name_is_never_merged(here, monkeypatch):
    path = run_of(here)
    monkeypatch.chdir(here / "other")
    shutil.rmtree(here / "m")
    with pytest.raises(InputError) as caught:
        load_model(str(path))
    says = str(caught.value)
    assert says.startswith(f"{path}/adapter_config.json: base_model_name_or_path: the base of this adapter")
    assert str(here / "m") in says and str(here / "other" / "m") in says and "holds another model" in says
    shutil.copytree(here / "other" / "m", here / "m")
    with pytest.raises(InputError, match=f"{here}/m holds another model"):
        resolve(str(path))
    shutil.rmtree(here / "m")
    model_dir(here / "other" / "m", seed=1)
    assert adapted(str(path)) == str(here / "other" / "m"), "the same weights under the recipe's name"


@pytest.mark.parametrize("noted", [False, None])
def test_what_older_adapters_and_those_of_others_name_is_not_looked_for_where_one_starts(here, monkeypatch, noted):
    path = run_of(here, noted=noted, recorded="m")
    monkeypatch.chdir(here / "other")
    if noted is None:
        with pytest.raises(InputError, match=f"the base of this adapter, m, is not here: looked for {path}/m"):
            adapted(str(path))
    else:
        assert adapted(str(path)) == str(here / "m"), "above the run of ours"
    shutil.copytree(here / "m", path / "m")
    assert adapted(str(path)) == str(path / "m")


def test_shipped_names_hub_ids_and_whole_paths_are_kept_as_they_are(here):
    path = here / "a"
    assert [base_from(name, path) for name in ("tiny-quick", "org/name", "smollm2-135m")] == [
        "tiny-quick",
        "org/name",
        "smollm2-135m",
    ]
    assert note_base("tiny-quick") == {"name": "tiny-quick"}
    model_dir(here / "m")
    assert base_from("m", here) == "./m"
    assert base_from(str(here / "m"), path) == "../m"
    adapter_of(path, "tiny-quick", noted=None)
    assert adapted(str(path)) == "tiny-quick" and whole(str(path)) == resolve("tiny-quick")
    for recorded, wanted in [
        ("org/name", "org/name"),
        (str(here / "m"), str(here / "m")),
        ("/gone/site-packages/atlas_ray/weights/tiny-deepthink", "tiny-deepthink"),
    ]:
        adapter_of(path, "tiny-quick", noted=None, recorded=recorded)
        assert adapted(str(path)) == wanted


def test_a_hub_id_is_not_taken_from_a_directory_that_stands_in_its_way(here):
    path = adapter_of(here / "a", "tiny-quick", noted=None, recorded="org/name")
    model_dir(here / "org" / "name")
    with pytest.raises(InputError, match="org/name is meant from the hub"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "adapter_config.json: is no JSON"),
        ("[]", "adapter_config.json: must be a JSON object"),
        ('"m"', "adapter_config.json: must be a JSON object"),
        ("{}", "adapter_config.json: base_model_name_or_path: is missing"),
        (
            '{"base_model_name_or_path": null}',
            "adapter_config.json: base_model_name_or_path: must name a model, is None",
        ),
        ('{"base_model_name_or_path": ""}', "adapter_config.json: base_model_name_or_path: must name a model"),
        ('{"base_model_name_or_path": 3}', "adapter_config.json: base_model_name_or_path: must name a model, is 3"),
        ('{"base_model_name_or_path": "gone"}', "base_model_name_or_path: the base of this adapter, gone, is not here"),
        ('{"base_model_name_or_path": "tiny-quick", "peft_type": "NONE"}', "a: is no adapter that can be merged into"),
    ],
)
def test_a_broken_adapter_names_its_file_and_field(here, content, says):
    (adapter_of(here / "a", "tiny-quick") / "adapter_config.json").write_text(content)
    with pytest.raises(InputError, match=says) as caught:
        load_model("a")
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_model_is_refused_in_one_line(here):
    path = adapter_of(here / "a", "tiny-quick", noted=None, recorded="tiny-deepthink")
    with pytest.raises(InputError, match="is no adapter that can be merged into tiny-deepthink: ") as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)


def test_an_adapter_over_an_adapter_is_merged_into_all_of_it(here):
    first = adapter_of(here / "first", "tiny-quick")
    second = adapter_of(here / "second", str(first), seed=1)
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == "../first"
    assert whole(str(second)) == resolve("tiny-quick") and load_config(str(second)).hidden_size == 128
    states = [load_model(name).state_dict() for name in ("tiny-quick", str(first), str(second))]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert len({float(state[name].sum()) for state in states}) == 3
    config = json.loads((first / "adapter_config.json").read_text()) | {"base_model_name_or_path": "../second"}
    (first / "adapter_config.json").write_text(json.dumps(config))
    (second / "run.json").unlink()
    (first / "run.json").unlink()
    with pytest.raises(InputError, match="is its own base"):
        load_model(str(second))


def test_an_adapter_without_a_tokenizer_has_its_base_s(here):
    path = adapter_of(here / "a", "tiny-quick")
    for file in path.glob("token*"):
        file.unlink()
    assert load_tokenizer(str(path)).encode("go forward") == build_tokenizer().encode("go forward")


def test_on_a_node_with_a_copy_the_base_is_found_from_the_run_s_home(here, monkeypatch):
    path = run_of(here)
    where = remote_rundir.RunDirHandle(str(here / "runs" / "demo"), "word", "node")
    monkeypatch.setattr(remote_rundir, "_handle", where)
    monkeypatch.setattr(remote_rundir.RunDirHandle, "copies", property(lambda self: here / "tmp" / "copy"))
    copy = here / "tmp" / "copy" / "checkpoints" / "all-s0"
    shutil.copytree(path, copy)
    monkeypatch.chdir("/")
    assert adapted(str(copy)) == str(here / "m")
    assert base_from(str(here / "m"), copy) == "../../../../m"
