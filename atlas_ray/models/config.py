"""What the configuration of a model says of its text part: how long, how wide, how many words."""

from __future__ import annotations

from typing import Any

from ..errors import InputError

_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""As transformers calls the longest text now, or once did: GPT-2's, MPT's, BLOOM's."""


def read_config(place: str) -> Any:
    """The configuration of a model, as ``from_pretrained`` takes its name.

    transformers takes no null where a number is wanted. A longest text of null is kept as unknown, rather than replaced
    by what is usual for models of the kind.
    """
    from transformers import AutoConfig, PretrainedConfig

    given, _ = PretrainedConfig.get_config_dict(place)
    if not isinstance(given, dict):
        raise ValueError("its config.json is no JSON object")
    parts = [given, given.get("text_config")]
    if not any(part[name] is None for part in parts if isinstance(part, dict) for name in _LIMITS if name in part):
        return AutoConfig.from_pretrained(place)
    for part in parts:
        if isinstance(part, dict):
            for name in _LIMITS:
                if name in part and part[name] is None:
                    del part[name]
    config = type(AutoConfig.for_model(given["model_type"])).from_dict(given)
    text = text_config(config)
    name = text.attribute_map.get(_LIMITS[0], _LIMITS[0])
    if name in vars(text):
        vars(text)[name] = None  # (past the check of its type)
    return config


def text_config(config: Any) -> Any:
    """The part that describes the language model; of a model of text alone all of it."""
    return config.get_text_config(decoder=True)


def limit_of(config: Any) -> int | None:
    """Most tokens that a configuration states; None where it states none, as those of recurrent models."""
    for part in (text_config(config), config):
        for name in _LIMITS:
            value = getattr(part, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def longest(config: Any, asked: int | None, field: str) -> int:
    """Most tokens that a model takes, or ``asked`` where its configuration states none.

    Raises:
        InputError: neither is known; names ``field`` of the recipe.
    """
    limit = limit_of(config) or asked
    if limit is None:
        raise InputError(
            f"the configuration of this {config.model_type} model states no longest text: say here how many tokens it "
            "shall take",
            field=field,
        )
    return limit
