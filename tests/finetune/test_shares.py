"""Models whose weights each worker reads for its own share; what two workers make of one: test_process_group.py."""

import pytest
import torch
import torch.distributed as dist
from finetune_group import config, model
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from atlas_ray.errors import AtlasError, InputError
from atlas_ray.finetune.adapters import add_adapters
from atlas_ray.finetune.process_group import ProcessGroup
from atlas_ray.finetune.shares import read_shares, unread_model
from atlas_ray.models.loading import load_model

TWO = ProcessGroup(size=2)


@pytest.fixture
def base(tmp_path):
    """A model in several files, with generation settings of its own."""
    plain = model(lora=False)
    plain.generation_config.temperature, plain.generation_config.do_sample = 0.25, True
    plain.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    return tmp_path / "base"


@pytest.fixture
def mesh(tmp_path):
    """Of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def one_file(base):
    return sorted(base.glob("*.safetensors"))[1]


def test_parameters_come_from_the_files_and_what_no_file_holds_is_made(base, mesh):
    empty, directory = unread_model(config("fsdp", base=str(base)), TWO, 0)
    assert directory == base and all(p.is_meta for p in empty.parameters())
    assert empty.generation_config.temperature == 0.25
    for layer in empty.model.layers:
        fully_shard(layer, mesh=mesh)
    read_shares(fully_shard(empty, mesh=mesh), [empty], directory, ProcessGroup(mesh=mesh))
    whole = load_model(str(base))
    assert empty.lm_head.weight is empty.model.embed_tokens.weight, "tied as they were"
    for (name, mine), theirs in zip(empty.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine.full_tensor(), theirs), name
    for (name, mine), theirs in zip(empty.named_buffers(), whole.buffers(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_matrix_of_another_shape_is_named(base, mesh):
    held = load_file(one_file(base))
    name = sorted(held)[0]
    save_file({**held, name: held[name][:-1].contiguous()}, one_file(base), metadata={"format": "pt"})
    empty, directory = unread_model(config("fsdp", base=str(base)), TWO, 0)
    with pytest.raises(InputError, match=f"{base}: .*Size mismatch.*{name}"):
        read_shares(fully_shard(empty, mesh=mesh), [empty], directory, ProcessGroup(mesh=mesh))


def test_a_file_that_is_none_is_named(base):
    one_file(base).write_bytes(b"no weights")
    with pytest.raises(InputError, match=f"{one_file(base)}: cannot be read"):
        unread_model(config("fsdp", base=str(base)), TWO, 0)


@pytest.mark.parametrize(
    ("changes", "size"),
    [({"strategy": "ddp"}, 2), ({}, 1), ({"strategy": "ddp", "lora": {"rank": 4}}, 2)],
    ids=["DDP", "one worker", "adapters under DDP"],
)
def test_who_holds_all_of_it_loads_it_whole(base, changes, size):
    assert (
        unread_model(config(**{"strategy": "fsdp", "base": str(base), **changes}), ProcessGroup(size=size), 0) is None
    )


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_adapters_on_a_base_without_storage_are_those_on_one_that_has_some(base):
    adapters = config("fsdp", base=str(base), lora={"rank": 4, "targets": ["q_proj", "embed_tokens"]})
    empty, _ = unread_model(adapters, TWO, 5)
    whole, state = add_adapters(load_model(str(base)), adapters, 5), torch.random.get_rng_state()
    given, theirs = dict(empty.named_parameters()), dict(whole.named_parameters())
    assert given.keys() == theirs.keys()
    for name, p in given.items():
        assert p.requires_grad == theirs[name].requires_grad, name
        assert torch.equal(p, theirs[name]) if "lora_" in name else p.is_meta, name
    inner = empty.get_base_model()
    assert inner.lm_head.weight is inner.model.embed_tokens.base_layer.weight, "tied as they were"
    unread_model(adapters, TWO, 5)
    assert torch.equal(torch.random.get_rng_state(), state), "whoever draws afterwards draws the same"


def test_a_target_that_the_model_has_not_is_named(base):
    with pytest.raises(AtlasError, match="finetune.lora.targets: .*nowhere"):
        unread_model(config("fsdp", base=str(base), lora={"targets": ["nowhere"]}), TWO, 0)


def test_a_base_that_is_an_adapter_is_loaded_whole(base, tmp_path):
    add_adapters(load_model(str(base)), config("fsdp", base=str(base), lora={"rank": 2}), 0).save_pretrained(
        tmp_path / "adapter"
    )
    assert unread_model(config("fsdp", base=str(tmp_path / "adapter")), TWO, 0) is None


def test_a_base_with_other_names_is_loaded_whole(base):
    held = load_file(one_file(base))
    name = sorted(held)[0]
    held[f"{name}.of_old"] = held.pop(name)
    save_file(held, one_file(base), metadata={"format": "pt"})
    assert unread_model(config("fsdp", base=str(base)), TWO, 0) is None
