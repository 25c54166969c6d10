"""The tiny base models: a tokenizer of phrases for BabyAI-Text and Llama-shaped networks (ours).

A phrase such as ``and 2 steps forward`` or ``You see a`` is one token, which makes an episode a third as long as
words would. Words outside the vocabulary become ``[UNK]``: the shipped models are for BabyAI-Text and for tests; a new
model for another environment is given that environment's words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

END = "<|end|>"
PAD = "<|pad|>"
UNKNOWN = "[UNK]"

_COLORS = ["red", "green", "blue", "purple", "yellow", "grey"]
_KINDS = ["ball", "box", "key", "door", "wall", "object", "goal", "lava", "floor"]
_STEPS = [
    f"{before}{n} step{'s' if n > 1 else ''} {where}"
    for n in range(1, 7)
    for before, where in (("", "forward"), ("", "left"), ("", "right"), ("and ", "forward"))
]
_PHRASES = [
    ", You see a wall",
    "You see a wall",
    ", You see a",
    "You see a",
    "You see nothing",
    "You carry a",
    "turn left",
    "turn right",
    "go forward",
    "pick up the",
    "pick up a",
    "pick up",
    "pick it up",
    "put it down",
    "put down the",
    "go to the",
    "go to a",
    "carry it to the",
    "next to the",
    "next to a",
    "make way",
    "look around",
    "open the door",
    "open the",
    "open a",
    "in front of you",
    "behind you",
    "on your left",
    "on your right",
    "after you",
    "Goal:",
    "Observation:",
    "Thought:",
    "Action:",
]
_WORDS = ["drop", "toggle", "put", "the", "a", "and", "then", "open", "closed", "locked", "explore", "done", ","]


def _pattern() -> str:
    """What a token is made of: a phrase, a word or a sign."""
    phrases = sorted([*_PHRASES, *_STEPS], key=len, reverse=True)
    # a phrase must end where a word ends, or "pick up a" would eat the start of "pick up apples"
    return "|".join(re.escape(p) + (r"\b" if p[-1].isalnum() else "") for p in phrases) + r"|\w+|[^\w\s]"


def vocabulary(words: Sequence[str] = ()) -> list[str]:
    """All tokens, in the order of their ids: BabyAI's, then ``words``."""
    known = [UNKNOWN, PAD, END, *_PHRASES, *_STEPS, *_COLORS, *_KINDS, *_WORDS, *[str(d) for d in range(10)]]
    return known + [word for word in words if word not in known]


def frequent_words(texts: Iterable[str], most: int) -> list[str]:
    """The ``most`` frequent words of the texts that are no tokens yet, the more frequent first."""
    counts, pattern = Counter[str](), re.compile(_pattern())
    for text in texts:
        counts.update(pattern.findall(text))
    known = set(vocabulary())
    return sorted(counts.keys() - known, key=lambda word: (-counts[word], word))[:most]


def build_tokenizer(words: Sequence[str] = ()) -> Any:
    """A fast tokenizer over :func:`vocabulary`; runs anywhere, needs no download."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary(words))}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_pattern()), behavior="removed", invert=True)
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token=UNKNOWN, pad_token=PAD, eos_token=END)


def build_model(
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int,
    seed: int,
    context: int = 2048,
    words: Sequence[str] = (),
) -> Any:
    """A freshly initialised Llama-shaped causal LM over :func:`vocabulary`, float32, embeddings tied."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = len(vocabulary(words))
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocabulary().index(END),
        pad_token_id=vocabulary().index(PAD),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
