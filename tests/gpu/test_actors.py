"""Engines in Ray actors that have a GPU: what workers are answered is what the CPU would answer."""

import pytest
import torch
from finetune_examples import sharp

pytest.importorskip("ray", reason="ray is not installed")

from atlas_ray.engines import EnginePool, RemoteEngine, TransformersEngine
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Engine

pytestmark = pytest.mark.gpu


def test_an_engine_actor_answers_from_its_gpu_as_the_cpu_does(device, ray_session, tmp_path):
    model = sharp("llama", seed=5, hidden_size=128, head_dim=64, initializer_range=0.1, max_position_embeddings=1024)
    model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    prompts, options = [[5, 6, 7], [9, 10, 11, 12], list(range(3, 40))], [[[5], [6, 7, 8], [6, 9]]] * 3
    here = TransformersEngine(model, 3, build_tokenizer(), device=torch.device("cpu"))
    settings = Engine(actors=1, gpus=1.0 if device.type == "cuda" else 0.0)
    with EnginePool(settings, str(tmp_path), 2, 3) as pool:
        for remote in (RemoteEngine(lease) for lease in pool.leases):
            for one, other in zip(*(e.score(prompts, range(3), options) for e in (here, remote)), strict=True):
                assert other.tolist() == pytest.approx(one.tolist(), abs=2e-4)
            wanted = here.generate(prompts, range(3), [], 6)
            assert remote.generate(prompts, range(3), [], 6) == wanted
            assert torch.allclose(*(e.hidden(prompts, range(3)) for e in (here, remote)), atol=2e-4, rtol=1e-4)
