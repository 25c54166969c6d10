"""A stand-in for vLLM's package with a real model behind it, for machines without vLLM: greedy, and without a cache."""

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import torch

from atlas_ray.models.loading import load_model


class ClientError(Exception):
    pass


class Engine:
    def __init__(self, model):
        self.model, self.waiting, self.caches_reset, self.fails = model, {}, 0, None
        self.renderer = SimpleNamespace(render_cmpl=lambda prompts: prompts)
        self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def add_request(self, name, prompt, params, lora_request=None):
        if max(params.get("logprob_token_ids", [0])) >= self.model.config.vocab_size:
            raise ClientError("not in the vocabulary")
        self.waiting[name] = prompt["prompt_token_ids"], [], params

    def step(self):
        if self.fails:
            raise self.fails
        done = []
        for name, (prompt, written, params) in list(self.waiting.items()):
            with torch.inference_mode():
                logits = self.model(torch.tensor([[*prompt, *written]])).logits[0, -1].float()
            token = int(logits.argmax())
            written.append(token)
            if len(written) < params["max_tokens"] and token not in params.get("stop_token_ids", ()):
                continue
            asked = params.get("logprob_token_ids", ())
            scores = {t: SimpleNamespace(logprob=float(logits.log_softmax(-1)[t])) for t in asked}
            text = SimpleNamespace(token_ids=written, logprobs=[scores])
            done.append(
                SimpleNamespace(request_id=name, outputs=[text], num_cached_tokens=None, prompt_token_ids=prompt)
            )
            del self.waiting[name]
        return done

    def abort_request(self, names):
        for name in names:
            self.waiting.pop(name, None)

    def reset_prefix_cache(self):
        self.caches_reset += 1


def install(monkeypatch, on_cpu=True, refuses=None):
    """Put it where vLLM would be; ``asked`` of what is returned are the settings that an LLM was made with."""
    found = SimpleNamespace(asked={}, cleaned=0)

    class LLM:
        def __init__(self, model, **settings):
            found.asked = settings
            os.environ["LD_PRELOAD"] = "/lib/of/vllm.so"
            torch.rand(1)
            if refuses:
                raise ValueError(refuses)
            self.llm_engine = Engine(load_model(model))

    def clean():
        found.cleaned += 1

    contents = {
        "vllm": {
            "LLM": LLM,
            "SamplingParams": dict,
            "sampling_params": SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY="final")),
            "exceptions": SimpleNamespace(VLLMClientError=ClientError),
        },
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lambda *given: given},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: on_cpu)},
        "vllm.distributed": {},
        "vllm.distributed.parallel_state": {"cleanup_dist_env_and_memory": clean},
    }
    backend = "vllm.v1.attention.backends.cpu_attn"
    contents |= {backend.rsplit(".", n)[0]: {} for n in (1, 2, 3)}
    sizes = SimpleNamespace(get_supported_head_sizes=lambda: [32, 64])
    contents[backend] = {"CPUAttentionBackend": sizes}
    for name, inside in contents.items():
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        vars(module).update(inside)
        monkeypatch.setitem(sys.modules, name, module)
    return found
