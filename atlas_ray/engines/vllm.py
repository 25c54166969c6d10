"""vLLM in this process: the engine for models of more than a few million weights, on a GPU or a CPU.

vLLM is imported when an engine is made, not before. What it would leave behind in this process, namely environment
variables that subprocesses inherit (``LD_PRELOAD`` among them), the state of the random number generators and
``torch.set_num_threads``, is put back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..errors import AtlasError, InputError
from ..models.loading import load_config, load_tokenizer
from ..models.split import check_split
from .base import (
    Batches,
    Capabilities,
    EngineCounters,
    GenerateRequest,
    HiddenStateRequest,
    Request,
    ScoreRequest,
    check,
    finish,
    own_context,
)
from .probe import TOLERANCE, difference, given
from .reloading import CannotSleepError, Reloaded, StaleWeightsError
from .vllm_reload import check_reload, take_weights
from .vllm_setup import MOST_CHILDREN, Loaded, clean_up, load, model_shape, process_state_restored

_log = logging.getLogger(__name__)


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
        rank: highest rank of an adapter that :meth:`reload` may be given.
        sleeps: whether :meth:`sleep` will be called; a GPU's memory is then taken in another way.

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
        rank: int = 0,
        sleeps: bool = False,
    ) -> None:
        if VllmEngine._open:
            raise InputError("a vLLM engine is open in this process: close() it, or use another process or actor")
        self.tokenizer = load_tokenizer(model)
        config = load_config(model)
        check_split(config, tensor_parallel, model)
        self.parameters, head_size = model_shape(config)
        self.context = own_context(context, config)
        if threads is not None:
            torch.set_num_threads(threads)
        self._loaded: Loaded | None = load(
            model,
            None if adapter is None else Path(adapter),
            rank=rank,
            config=config,
            context=self.context,
            head_size=head_size,
            gpu_memory=gpu_memory,
            tensor_parallel=tensor_parallel,
            kv_space_gib=kv_space_gib,
            sleeps=sleeps,
        )
        VllmEngine._open = True
        # on a GPU the batch decides how its half-precision sums are rounded, which can turn a near tie
        self.capabilities = Capabilities(seeds=self._loaded.on_cpu, adapters=True)
        self.slots = slots
        self.computed_tokens = [0] * slots
        self.cached_tokens = [0] * slots
        """Prompt tokens that were found in the prefix cache instead, a count a slot."""
        self.counters = EngineCounters()
        self._taken: list[_Work] = []
        self._parts: dict[str, tuple[_Work, tuple[int, ...], list[int]]] = {}
        self._names = count()
        self._asleep = False

    def sleep(self) -> None:
        """Give a GPU's memory back, but for CUDA's own, until something is asked or :meth:`reload` is called.

        The weights wait in this machine's memory, what was cached is forgotten. Sleeping twice is fine.

        Raises:
            CannotSleepError: it was not started so that it can, or this platform has no such thing.
            AtlasError: the engine is closed, or a request is on its way.
        """
        loaded = self._model()
        if not loaded.sleeps:
            raise CannotSleepError("this vLLM keeps its memory until it is closed")
        if self._taken:
            raise AtlasError("vLLM cannot sleep while a request is on its way")
        if not self._asleep:
            loaded.llm.sleep(level=1)
            self._asleep = True

    def reload(self, model: str, adapter: str | Path | None = None, expected: Sequence[float] = ()) -> Reloaded:
        """Take other weights, without starting anew: all of a model of the same shape, or an adapter over it.

        What was cached under the old ones is forgotten. See :mod:`atlas_ray.engines.vllm_reload`.

        Args:
            model: shipped name, directory or Hugging Face id.
            adapter: directory of a LoRA adapter over it.
            expected: what :func:`atlas_ray.engines.probe.expected` gives for it; the engine must give it then.

        Raises:
            CannotReloadError: vLLM has to be started anew for it; nothing has changed.
            StaleWeightsError: the engine does not give what is expected. Close it.
            AtlasError: the engine is closed, or a request is on its way.
        """
        loaded = self._awake()
        if self._taken:
            raise AtlasError("weights cannot be replaced while a request is on its way")
        found = None if adapter is None else Path(adapter)
        check_reload(loaded, self.dtype, model, found)
        before = given(self) if expected else []
        with process_state_restored():
            self._loaded = take_weights(loaded, model, found)
        self.tokenizer = load_tokenizer(model)
        if not expected:
            return Reloaded()
        off, old = difference(given(self), expected), difference(before, expected)
        if off > TOLERANCE.get(self.dtype, 0.1):
            raise StaleWeightsError(
                f"vLLM was given {adapter or model} and does not compute with it: a probe text's log-probabilities are "
                f"off by {off:.3g} per token, with the old weights by {old:.3g}"
            )
        return Reloaded(off, old)

    @property
    def dtype(self) -> str:
        """Of the weights, a name of torch."""
        return str(self._model().llm.llm_engine.vllm_config.model_config.dtype).removeprefix("torch.")

    def forget(self, slot: int) -> None:
        """Does nothing: cached blocks are found by the tokens they hold, so nothing stale can be met."""

    def answer(self, requests: Sequence[Request]) -> Sequence[Request]:
        """See :meth:`Batches.answer`."""
        return finish(self, requests)

    def submit(self, request: Request) -> None:
        """See :meth:`LocalEngine.submit`. Requests of one slot do not wait for each other.

        What is to be scored becomes a request of one token for every inner node of the trie of its candidates.
        They share the prompt's cached blocks; asking for ``prompt_logprobs`` instead would bypass that cache.

        Raises:
            ContextOverflowError: it does not fit the model's context.
            ValueError: it is malformed, or vLLM refuses it.
            InputError: it asks for a hidden state.
            AtlasError: the engine is closed.
        """
        self._model()
        if isinstance(request, HiddenStateRequest):
            raise InputError("vLLM gives no hidden states: let the switch read hashed words or a sentence encoder")
        check(request, self.context)
        work, loaded = _Work(request), self._awake()
        engine = loaded.llm.llm_engine
        self._taken.append(work)
        try:
            for path, children, settings in _split(request):
                name = str(next(self._names))
                self._parts[name] = work, path, children
                work.left += 1
                [prompt] = engine.renderer.render_cmpl([{"prompt_token_ids": [*request.prompt, *path]}])
                engine.add_request(name, prompt, _sampling(loaded.vllm, settings), lora_request=loaded.lora)
        except BaseException as error:
            self._drop([work])
            if isinstance(error, loaded.vllm.exceptions.VLLMClientError):
                raise ValueError(f"vLLM refuses the request: {error}") from error
            raise

    def step(self) -> list[Request]:
        """See :meth:`LocalEngine.step`.

        If a pass fails, everything that was on its way is dropped and never answered.

        Raises:
            AtlasError: the engine is closed.
        """
        loaded = self._model()
        engine = loaded.llm.llm_engine
        if not self._taken:
            return []
        try:
            # on a CPU the first log-probability would compile a kernel that counts ranks for 20 s
            with torch.compiler.set_stance("force_eager") if loaded.on_cpu else nullcontext():
                outputs = engine.step()
        except BaseException:
            self._drop(self._taken)
            engine.reset_prefix_cache()  # vLLM takes blocks for cached before they are computed
            raise
        for output in outputs:
            work, path, children = self._parts.pop(output.request_id)
            completion, cached = output.outputs[0], output.num_cached_tokens or 0
            # the last token is written but not fed
            computed = len(output.prompt_token_ids) - cached + len(completion.token_ids) - 1
            self.cached_tokens[work.request.slot] += cached
            self.computed_tokens[work.request.slot] += computed
            work.cached_tokens.append(cached)
            work.request.computed_tokens += computed
            work.left -= 1
            if isinstance(work.request, GenerateRequest):
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
        if self._loaded is not None:
            try:
                self._awake()  # what is freed has to be there
            except Exception:
                _log.exception("vLLM did not wake before it was closed")
            self._loaded.llm.llm_engine.engine_core.shutdown()
            self._loaded = None
            self._taken, self._parts = [], {}
            VllmEngine._open = False
            clean_up()

    def _awake(self) -> Loaded:
        """The model, with all its memory."""
        loaded = self._model()
        if self._asleep:
            loaded.llm.wake_up()
            self._asleep = False
        return loaded

    def _model(self) -> Loaded:
        if self._loaded is None:
            raise AtlasError("the engine is closed")
        return self._loaded

    def _drop(self, dropped: Sequence[_Work]) -> None:
        """Let go of requests that will not be answered."""
        names = [name for name, (work, _, _) in self._parts.items() if work in dropped]
        self._taken = [work for work in self._taken if work not in dropped]
        for name in names:
            del self._parts[name]
        self._model().llm.llm_engine.abort_request(names)


@dataclass(eq=False)
class _Work:
    """A request on its way.

    Attributes:
        request: what was taken.
        left: its parts that vLLM still has.
        cached_tokens: tokens that were found in the cache, a count a part.
        logprobs: of the last token of every beginning of a candidate, after those before it.
    """

    request: Request
    left: int = 0
    cached_tokens: list[int] = field(default_factory=list)
    logprobs: dict[tuple[int, ...], float] = field(default_factory=dict)

    def answered(self) -> Request:
        """The request, whose parts are all answered."""
        request = self.request
        request.cached_tokens = min(
            self.cached_tokens, default=0
        )  # the other parts also find what the first has just computed
        if isinstance(request, ScoreRequest):
            request.scores = torch.tensor(
                [sum(self.logprobs[tuple(c[: i + 1])] for i in range(len(c))) for c in request.candidates]
            )
        return request


def _split(request: Request) -> Iterator[tuple[tuple[int, ...], list[int], dict[str, Any]]]:
    """The parts of a request: tokens behind its prompt, those to be scored behind them, and how to sample."""
    if isinstance(request, GenerateRequest):
        settings = {"max_tokens": request.max_tokens, "stop_token_ids": list(request.stop)}
        drawn = {"temperature": request.temperature, "seed": request.seed} if request.temperature else {}
        yield (), [], {**settings, **drawn}
        return
    assert isinstance(request, ScoreRequest)
    for path, children in _children_by_prefix(request.candidates).items():
        for i in range(0, len(children), MOST_CHILDREN):
            some = children[i : i + MOST_CHILDREN]
            yield path, some, {"max_tokens": 1, "logprob_token_ids": some}


def _children_by_prefix(options: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """The tokens that follow each beginning, shortest beginnings first."""
    children: dict[tuple[int, ...], dict[int, None]] = {}
    for option in options:
        for i, token in enumerate(option):
            children.setdefault(tuple(option[:i]), {})[token] = None
    return {path: list(children[path]) for path in sorted(children, key=len)}


def _sampling(vllm: Any, settings: dict[str, Any]) -> Any:
    final = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
    ours = {"temperature": 0.0, "detokenize": False, "ignore_eos": True, "output_kind": final}
    return vllm.SamplingParams(**{**ours, **settings})
