"""A GPU that is full while a model is trained."""

import pytest
import torch
from finetune_examples import random_examples, trained

from atlas_ray.errors import AtlasError
from atlas_ray.finetune.process_group import ProcessGroup


@pytest.mark.parametrize(("size", "kind"), [(1, AtlasError), (2, torch.OutOfMemoryError)])
def test_a_full_gpu_names_the_settings_that_take_less(tmp_path, monkeypatch, size, kind):
    """One worker of several must not be taken for all of them: only its own kind of error ends the others, too."""

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr("atlas_ray.finetune.trainer.Trainer.step", full)
    monkeypatch.setattr("atlas_ray.finetune.trainer.share_model", lambda module, *_: module)
    with pytest.raises(kind, match="CUDA out of memory. What takes less") as caught:
        trained(tmp_path, random_examples(8), group=ProcessGroup(size=size))
    order = ["gradient_checkpointing", "micro_tokens (it is 80", "finetune.lora", "fsdp"]
    assert sorted(order, key=str(caught.value).index) == order
    assert getattr(caught.value, "code", "no_memory") == "no_memory"
    with pytest.raises(kind) as caught:
        trained(tmp_path, random_examples(8), group=ProcessGroup(size=size), gradient_checkpointing=True)
    assert "gradient_checkpointing" not in str(caught.value)
