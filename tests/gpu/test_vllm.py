"""vLLM on a GPU: close to transformers, with an adapter, split over two, asleep, and nothing left behind."""

import gc

import pytest
import torch
from finetune_examples import sharp, with_adapters

from atlas_ray.engines import TransformersEngine
from atlas_ray.engines.vllm import VllmEngine
from atlas_ray.models.tiny import build_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.vllm]

PROMPTS = [[5, 6, 7], [9, 10, 11, 12], list(range(3, 40))]
OPTIONS = [[[token] for token in range(3, 30)] + [[6, 7, 8], [6, 9]]] * 3


@pytest.fixture(scope="module", autouse=True)
def _vllm():
    # not while tests are collected: then a run that leaves these out would show a skip
    pytest.importorskip("vllm", reason="vllm is not installed")


def model():
    sizes = {"hidden_size": 256, "head_dim": 64, "initializer_range": 0.05, "max_position_embeddings": 1024}
    return sharp("llama", seed=5, vocab_size=512, **sizes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model's directory, and that of an adapter over it that changes what it says."""
    folder = tmp_path_factory.mktemp("models")
    model().save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    with_adapters(model(), targets=layers).save_pretrained(folder / "adapter")
    return folder


def reference(made):
    return TransformersEngine(made.eval(), 3, build_tokenizer(), device=torch.device("cpu"))


def close_to(engine, other, most=0.1):
    """Log-probabilities apart by no more than half precision explains; returns the largest distance."""
    found = torch.cat(list(engine.score(PROMPTS, range(3), OPTIONS)))
    wanted = torch.cat(list(other.score(PROMPTS, range(3), OPTIONS)))
    assert float((found - wanted).abs().max()) < most
    return found


@pytest.mark.parametrize("gpus", [1, 2])
def test_it_scores_as_transformers_on_one_gpu_and_split_over_two(device, saved, gpus):
    if device.type == "cuda" and torch.cuda.device_count() < gpus:
        pytest.skip("needs two GPUs for vllm's tensor parallelism")
    if device.type == "cpu" and gpus > 1:
        pytest.skip("vllm splits no model over this CPU")
    engine = VllmEngine(str(saved / "base"), 3, context=256, gpu_memory=0.3, tensor_parallel=gpus)
    try:
        close_to(engine, reference(model()))
        assert [len(written) for written in engine.generate(PROMPTS, range(3), [], 6)] == [6] * 3
    finally:
        engine.close()


def test_an_adapter_by_name_changes_what_it_says_and_closing_gives_the_memory_back(device, saved):
    from peft import PeftModel

    merged = PeftModel.from_pretrained(model(), saved / "adapter").merge_and_unload()
    gc.collect()
    before = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    engine = VllmEngine(str(saved / "base"), 3, adapter=saved / "adapter", context=256, gpu_memory=0.3)
    try:
        found = close_to(engine, reference(merged))
    finally:
        engine.close()
    untuned = torch.cat(list(reference(model()).score(PROMPTS, range(3), OPTIONS)))
    assert float((found - untuned).abs().max()) > 0.2, "the adapter must do something"
    if device.type == "cuda":
        assert before - torch.cuda.mem_get_info(device)[0] < 1 << 30


def test_asleep_it_leaves_the_gpu_to_others_and_wakes_with_the_same_or_other_weights(device, saved):
    if device.type == "cpu":
        pytest.skip("vllm does not sleep on a CPU")
    from atlas_ray.models.loading import load_model

    changed = model()
    with torch.no_grad():
        changed.get_output_embeddings().weight.mul_(0.5)
    changed.save_pretrained(saved / "other")
    build_tokenizer().save_pretrained(saved / "other")
    engine = VllmEngine(str(saved / "base"), 3, context=256, gpu_memory=0.3, sleeps=True)
    try:
        asked = torch.cat(list(engine.score(PROMPTS, range(3), OPTIONS)))
        free, total = torch.cuda.mem_get_info(device)
        engine.sleep()
        freed = torch.cuda.mem_get_info(device)[0] - free
        assert freed > 0.2 * total, f"of 0.3 of {total >> 30} GiB it gave {freed >> 20} MiB back"
        taken = torch.empty(freed - (1 << 30), dtype=torch.uint8, device=device)  # (a training takes the place)
        del taken
        torch.cuda.empty_cache()
        again = torch.cat(list(engine.score(PROMPTS, range(3), OPTIONS)))
        assert torch.allclose(again, asked, atol=0.05)
        engine.sleep()
        engine.reload(str(saved / "other"))
        close_to(engine, reference(load_model(str(saved / "other"))))
    finally:
        engine.close()
