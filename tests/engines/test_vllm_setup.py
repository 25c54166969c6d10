"""The vLLM engine on a stand-in for vLLM: what it starts it with, and what it makes of its answers."""

import json
import os

import fake_vllm
import pytest
import torch

from atlas_ray.engines import TransformersEngine
from atlas_ray.engines.base import GenerateRequest, ScoreRequest
from atlas_ray.engines.vllm import VllmEngine
from atlas_ray.errors import AtlasError, InputError
from atlas_ray.models.tiny import build_model, build_tokenizer


@pytest.fixture
def vllm(monkeypatch):
    return fake_vllm.install(monkeypatch)


@pytest.fixture
def open_engine():
    opened = []

    def make(*args, **settings):
        opened.append(VllmEngine(*args, **settings))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def test_it_writes_and_scores_what_the_model_does(vllm, open_engine):
    engine, reference = open_engine("tiny-quick", 2), TransformersEngine("tiny-quick", 2)
    prompts, candidates = [[5, 6, 7], [8, 9]], [[[10], [11, 12], [11, 13]], [[14]]]
    written = engine.generate(prompts, [0, 1], [], 6)
    assert written == reference.generate(prompts, [0, 1], [], 6)
    assert engine.computed_tokens == [3 + 5, 2 + 5], "the last token is not fed"
    stop = written[0][2]
    assert engine.generate([prompts[0]], [0], [stop], 6) == [written[0][: written[0].index(stop)]]
    for ours, theirs in zip(engine.score(prompts, [0, 1], candidates), reference.score(prompts, [0, 1], candidates)):
        assert torch.allclose(ours, theirs, atol=1e-3)
    assert (engine.parameters, engine.context) == (reference.parameters, reference.context)


def test_on_a_cpu_and_on_gpus_it_is_started_with_their_settings(monkeypatch, open_engine):
    vllm = fake_vllm.install(monkeypatch)
    open_engine("tiny-quick", 1, kv_space_gib=0.5, context=100).close()
    assert (vllm.asked["dtype"], vllm.asked["kv_cache_memory_bytes"]) == ("float32", 2**29)
    assert vllm.asked["max_model_len"] == 100
    assert not {"gpu_memory_utilization", "distributed_executor_backend", "enable_lora"} & set(vllm.asked)
    vllm = fake_vllm.install(monkeypatch, on_cpu=False)
    engine = open_engine("tiny-quick", 1, gpu_memory=0.3, tensor_parallel=2)
    assert (vllm.asked["gpu_memory_utilization"], vllm.asked["distributed_executor_backend"]) == (0.3, "mp")
    assert "dtype" not in vllm.asked and vllm.asked["tensor_parallel_size"] == 2
    assert not engine.capabilities.seeds


def test_room_is_made_for_an_adapter(vllm, open_engine, tmp_path):
    with pytest.raises(InputError, match="adapter_config"):
        VllmEngine("tiny-quick", 1, adapter=tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    for rank, most in ((6, 8), (320, 320)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 1, "rank_pattern": {"q": rank}}))
        engine = open_engine("tiny-quick", 1, adapter=tmp_path)
        engine.close()
        assert (vllm.asked["max_lora_rank"], vllm.asked["enable_lora"]) == (most, True)
    for wrong in (513, "8"):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": wrong}))
        with pytest.raises(InputError, match="rank"):
            VllmEngine("tiny-quick", 1, adapter=tmp_path)


def test_what_cannot_run_is_an_error(monkeypatch, tmp_path):
    vllm = fake_vllm.install(monkeypatch, refuses="no room for the KV cache")
    with pytest.raises(InputError, match="KV cache"):
        VllmEngine("tiny-quick", 1)
    assert vllm.cleaned == 1
    build_model(hidden=32, layers=1, heads=2, intermediate=32, seed=0).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="heads of size 16"):
        VllmEngine(str(tmp_path), 1)


def test_the_process_is_left_as_it_was(vllm, open_engine, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    before = torch.get_rng_state().tolist()
    open_engine("tiny-quick", 1)
    assert "LD_PRELOAD" not in os.environ
    assert torch.get_rng_state().tolist() == before


def test_a_failed_pass_and_a_refused_request_leave_nothing_behind(vllm, open_engine):
    engine = open_engine("tiny-quick", 2)
    inner = engine._loaded.llm.llm_engine
    engine.submit(GenerateRequest([5, 6], 0, [], 9))
    assert engine.step() == []
    inner.fails = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.step()
    assert (inner.waiting, inner.caches_reset) == ({}, 1)
    inner.fails = None
    with pytest.raises(ValueError, match="refuses"):
        engine.submit(ScoreRequest([5], 0, [[5], [6, 10**6]]))
    assert inner.waiting == {} and engine.step() == []


def test_one_is_open_at_a_time_and_a_closed_one_answers_nothing(vllm, open_engine):
    engine = open_engine("tiny-quick", 1)
    with pytest.raises(InputError, match="is open"):
        VllmEngine("tiny-quick", 1)
    engine.close()
    engine.close()
    assert vllm.cleaned == 1
    with pytest.raises(AtlasError, match="closed"):
        engine.step()
