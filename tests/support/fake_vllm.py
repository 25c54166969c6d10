"""A stand-in for vLLM's package with a real model behind it, for machines without vLLM: greedy, every token is fed.

What it computed for a prompt it keeps, as vLLM's prefix cache would, until it is told to forget it.
"""

import copy
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import torch
from peft import PeftModel

from atlas_ray.models.loading import load_model


class ClientError(Exception):
    pass


class Engine:
    def __init__(self, place):
        self.model, self.waiting, self.caches_reset, self.fails = load_model(place), {}, 0, None
        self.adapted, self.cache, self.stuck, self.asleep = {}, {}, False, False
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32))
        self.renderer = SimpleNamespace(render_cmpl=lambda prompts: prompts)
        self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def add_request(self, name, prompt, params, lora_request=None):
        if max(params.get("logprob_token_ids", [0])) >= self.model.config.vocab_size:
            raise ClientError("not in the vocabulary")
        self.waiting[name] = prompt["prompt_token_ids"], [], params, lora_request

    def logits(self, tokens, lora):
        key = (*tokens, lora)
        if key not in self.cache:
            with torch.inference_mode():
                self.cache[key] = self.network(lora)(torch.tensor([tokens])).logits[0, -1].float()
        return self.cache[key]

    def network(self, lora):
        if lora is None:
            return self.model
        if lora not in self.adapted:
            self.adapted[lora] = PeftModel.from_pretrained(copy.deepcopy(self.model), lora[2]).merge_and_unload()
        return self.adapted[lora]

    def step(self):
        assert not self.asleep, "vLLM waits for ever"
        if self.fails:
            raise self.fails
        done = []
        for name, (prompt, written, params, lora) in list(self.waiting.items()):
            logits = self.logits([*prompt, *written], lora)
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
        self.cache = self.cache if self.stuck else {}
        return not self.stuck


def install(monkeypatch, on_cpu=True, refuses=None, sleep_mode=True):
    """Put it where vLLM would be.

    ``asked`` of what is returned are the settings that an LLM was made with, ``made`` how many were, ``reloaded`` from
    where weights were reloaded, ``slept`` at which levels it slept; if it ``ignores`` reloads, weights stay what they
    were, and with ``no_room`` it cannot wake.
    """
    found = SimpleNamespace(asked={}, made=0, cleaned=0, reloaded=[], ignores=False, slept=[], no_room=False)

    class LLM:
        def __init__(self, model, **settings):
            found.asked = settings
            os.environ["LD_PRELOAD"] = "/lib/of/vllm.so"
            torch.rand(1)
            if refuses:
                raise ValueError(refuses)
            found.made += 1
            self.llm_engine = Engine(model)

        def sleep(self, level):
            found.slept.append(level)
            self.llm_engine.asleep = True

        def wake_up(self):
            if found.no_room:
                raise RuntimeError("CUDA out of memory")
            assert self.llm_engine.asleep
            self.llm_engine.asleep, self.llm_engine.cache = False, {}

        def collective_rpc(self, method, kwargs=None):
            if callable(method):
                return
            assert method == "reload_weights"
            found.reloaded.append(kwargs["weights_path"])
            if not found.ignores:
                self.llm_engine.model = load_model(kwargs["weights_path"])
                self.llm_engine.adapted = {}

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
        "vllm.platforms": {
            "current_platform": SimpleNamespace(is_cpu=lambda: on_cpu, is_sleep_mode_available=lambda: sleep_mode)
        },
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
