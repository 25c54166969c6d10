"""Workers that train together: DDP and FSDP2 equal one process, a state fits any number of them, all stop at once."""

import socket
import subprocess
import sys
from pathlib import Path

import finetune_group
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from atlas_ray.finetune.process_group import ProcessGroup

CASES = [
    "ddp:ddp:full:2:99:",
    "fsdp:fsdp:full:2:99:",
    "lora-ddp:ddp:lora:2:99:",
    "lora-fsdp:fsdp:lora:2:99:",
    "apart:ddp:full:1:99:",
    "moved@cut:fsdp:full:2:5:",
    "whole:fsdp:whole:2:99:",
    "whole-moved@cut:fsdp:whole:2:5:",
    "whole-moved:fsdp:whole:2:99:",
    "pairs-ddp:ddp:pairs:2:99:",
    "pairs-fsdp:fsdp:pairs:2:99:",
    "lora-pairs-ddp:ddp:lora-pairs:2:99:",
    "lora-pairs-fsdp:fsdp:lora-pairs:2:99:",
    "reference:fsdp:reference:2:99:",
    "unread:fsdp:unread:2:99:",
    "lora-unread:fsdp:unread-lora:2:99:",
    "full-ddp:ddp:full:2:99:0",
    "full-fsdp:fsdp:full:2:99:1",
]


def spawn(out, world, cases):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(finetune_group.__file__)
    done = subprocess.run(
        [sys.executable, str(script), str(out), str(port), str(world), *cases],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one process and what two make of the same runs."""
    out = tmp_path_factory.mktemp("groups")
    kinds = {"one": "full", "lora-one": "lora", "pairs-one": "pairs", "lora-pairs-one": "lora-pairs"}
    for name, kind in kinds.items():
        finetune_group.train(out, name, "ddp", kind, ProcessGroup())
    finetune_group.model(lora=False).save_pretrained(out / "base", max_shard_size="20KB")
    spawn(out, 2, CASES)
    return out


def assert_same(one, other, losses=slice(None), most=2e-6):
    assert one.keys() - {"scatters"} == other.keys() - {"scatters"}
    assert one["losses"][losses] == pytest.approx(other["losses"], rel=1e-6)
    for name in one.keys() & other.keys() - {"losses", "noted", "scatters"}:
        assert float((one[name] - other[name]).abs().max()) < most, name


@pytest.mark.parametrize("kind", ["", "lora-"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_train_what_one_process_does(runs, strategy, kind):
    one, two = load_file(runs / f"{kind}one-0.safetensors"), load_file(runs / f"{kind}{strategy}-0.safetensors")
    assert len(one["losses"]) == finetune_group.STEPS
    assert one["losses"][-1] < one["losses"][0]
    assert_same(one, two)


def test_weights_read_share_by_share_are_those_that_were_loaded_whole(runs):
    assert len(list((runs / "base").glob("*.safetensors"))) > 2
    one, two = load_file(runs / "one-0.safetensors"), load_file(runs / "unread-0.safetensors")
    assert_same(one, two)


def test_adapters_on_a_base_read_share_by_share_are_those_on_one_loaded_whole(runs):
    whole, read = load_file(runs / "lora-fsdp-0.safetensors"), load_file(runs / "lora-unread-0.safetensors")
    assert_same(load_file(runs / "lora-one-0.safetensors"), read)
    assert whole.keys() == read.keys() and any("lora_A" in name for name in read)
    assert all(torch.equal(whole[name], read[name]) for name in whole), "to the bit"


def test_gradients_kept_whole_between_passes_train_what_scattered_ones_do(runs):
    scattered, whole = load_file(runs / "fsdp-0.safetensors"), load_file(runs / "whole-0.safetensors")
    assert_same(load_file(runs / "one-0.safetensors"), whole)
    assert_same(scattered, whole)
    groups = 3  # two layers, and what is around them
    a_pass = scattered["scatters"][:groups].sum()
    assert len(whole["scatters"]) == groups * finetune_group.STEPS, "once an optimiser step"
    assert whole["scatters"].sum() == a_pass * finetune_group.STEPS
    assert scattered["scatters"].sum() == a_pass * (len(scattered["scatters"]) // groups)
    assert len(scattered["scatters"]) > len(whole["scatters"]), "some steps take several passes"


def test_a_run_that_keeps_gradients_whole_goes_on_as_if_it_had_not_been_cut(runs):
    whole, cut = load_file(runs / "whole-0.safetensors"), load_file(runs / "whole-moved-0.safetensors")
    assert (runs / "whole-moved@cut-0.error").read_text() == "AtlasError: stopped"
    assert torch.equal(whole["losses"][4:], cut["losses"])
    assert all(torch.equal(whole[name], cut[name]) for name in whole.keys() - {"losses", "scatters"})


@pytest.mark.parametrize("kind", ["pairs", "lora-pairs"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_train_on_pairs_as_one_process_does(runs, strategy, kind):
    one, two = load_file(runs / f"{kind}-one-0.safetensors"), load_file(runs / f"{kind}-{strategy}-0.safetensors")
    # the first gradients of an adapter's half are as good as zero, and AdamW divides by them
    assert_same(one, two, most=1e-5 if kind == "lora-pairs" else 2e-6)
    assert one["noted"].shape == (finetune_group.STEPS, 6)
    assert float((one["noted"] - two["noted"]).abs().max()) < 1e-5 * float(one["noted"].abs().max())


def test_the_reference_of_a_base_that_is_shared_out_is_that_of_one_process(runs):
    found, wanted = np.load(runs / "reference.npy"), finetune_group.reference()
    assert found.dtype == wanted.dtype and found.shape == (17, 2)
    assert np.array_equal(found, wanted), "to the bit"
    assert len(set(found.flatten().tolist())) == found.size


@pytest.mark.slow
def test_four_workers_train_what_one_process_does(runs, tmp_path):
    spawn(tmp_path, 4, ["four:fsdp:full:4:99:", "four-lora:fsdp:lora:4:99:", "pairs:fsdp:full:2:99:"])
    one = load_file(runs / "one-0.safetensors")
    for name in ("four-0", "pairs-0", "pairs-1"):
        assert_same(one, load_file(tmp_path / f"{name}.safetensors"))
    assert_same(load_file(runs / "lora-one-0.safetensors"), load_file(tmp_path / "four-lora-0.safetensors"))


def test_groups_side_by_side_train_each_its_own(runs):
    one = load_file(runs / "one-0.safetensors")
    for number in (0, 1):
        alone = load_file(runs / f"apart-{number}.safetensors")
        assert alone["losses"] == pytest.approx(one["losses"], rel=1e-6)


def test_a_run_of_two_sharing_workers_goes_on_with_another_number_of_them(runs):
    for rank in (0, 1):
        assert (runs / f"moved@cut-{rank}.error").read_text() == "AtlasError: stopped"
    one = load_file(runs / "one-0.safetensors")
    (cut,) = (runs / "moved-0").glob("[0-9]*")
    assert cut.name == "00000004"
    assert len(list(cut.glob("*.safetensors"))) == 2, "each worker writes its share"
    finetune_group.train(runs, "moved", "ddp", "full", ProcessGroup())
    assert_same(one, load_file(runs / "moved-0.safetensors"), slice(4, None))


@pytest.mark.parametrize("name", ["full-ddp", "full-fsdp"])
def test_a_full_disk_of_one_worker_is_one_clear_error_of_all(runs, name):
    for rank in (0, 1):
        said = (runs / f"{name}-{rank}.error").read_text()
        assert said.startswith("StorageError: ")
        assert "No space left on device" in said
        assert "run the same command again" in said
    assert not list((runs / f"{name}-0").glob("[0-9]*")), "nothing half-written is taken for a state"
