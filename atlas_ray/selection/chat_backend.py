"""What answers the oracle: a chat endpoint as it is, or a local model behind its chat template."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from ..agents.chat_template import write
from ..engines import Engine
from ..engines.chat_endpoint import Completion
from ..errors import EndpointError, InputError


def tokens_of(text: str) -> int:
    """Tokens of a text where no tokenizer is at hand: one for two bytes, which is more than nearly all texts need."""
    return math.ceil(len(text.encode("utf-8", "replace")) / 2)


class ChatBackend(Protocol):
    """Completes chats: a :class:`atlas_ray.engines.chat_endpoint.ChatEndpoint` or an :class:`EngineBackend`."""

    model: str

    def complete(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        *,
        max_tokens: int,
        temperature: float | None = 0.0,
        seeds: Sequence[int] | None = None,
        stop: Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        return_exceptions: Literal[True],
    ) -> list[Completion | EndpointError]:
        """A completion, or why there is none, for each conversation in their order."""
        ...


class EngineBackend:
    """A :class:`ChatBackend` on a model in this process, or in an engine's actor.

    A conversation has the token ids that the tokenizer makes of it in its chat template. Where a message holds the text
    of a special token, each is tokenised alone, so that it stays text. A system message that the template refuses is
    joined with the first of the user, and templates that write the date get one day. An answer ends where the template
    ends one, or with the end of sequence. Without a template messages stand below each other, behind their roles. A
    schema is not enforced.

    Args:
        engine: the model; as many conversations as it has slots are written side by side.
        model: the name for annotations.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or its template loses messages.
    """

    def __init__(self, engine: Engine, model: str) -> None:
        if engine.tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-sequence token, which is needed to end an answer")
        self.engine, self.model = engine, model
        tokenizer = engine.tokenizer
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = added | set(tokenizer.all_special_ids)
        self.stops = list(dict.fromkeys([tokenizer.eos_token_id, *self._end_of_turn()]))

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._encode(text))

    def complete(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        *,
        max_tokens: int,
        temperature: float | None = 0.0,
        seeds: Sequence[int] | None = None,
        stop: Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        return_exceptions: bool = False,
    ) -> list[Completion | EndpointError]:
        """See :meth:`ChatBackend.complete`.

        Raises:
            EndpointError: a conversation does not fit the context, and errors are not to be returned.
        """
        prompts = [self.prompt(messages) for messages in conversations]
        done: dict[int, Completion | EndpointError] = {}
        for i, prompt in enumerate(prompts):
            if len(prompt) + max_tokens > self.engine.context:
                need = f"a prompt of {len(prompt)} tokens and {max_tokens} to write"
                done[i] = EndpointError(f"{self.model}: {need} do not fit the model's {self.engine.context}")
        if done and not return_exceptions:
            raise next(e for e in done.values() if isinstance(e, EndpointError))
        fitting = [i for i in range(len(prompts)) if i not in done]
        for at in range(0, len(fitting), self.engine.slots):
            rows = fitting[at : at + self.engine.slots]
            written = self.engine.generate(
                [prompts[i] for i in rows],
                range(len(rows)),
                self.stops,
                max_tokens,
                temperature or 0.0,
                None if seeds is None else [seeds[i] for i in rows],
            )
            for i, ids in zip(rows, written, strict=True):
                text = self.engine.tokenizer.decode(list(ids), skip_special_tokens=True)
                reason = "length" if len(ids) >= max_tokens else "stop"
                ends = [text.index(s) for s in stop or () if s in text]
                done[i] = Completion(text[: min(ends)] if ends else text, len(prompts[i]), len(ids), reason)
        return [done[i] for i in range(len(prompts))]

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the model answers.

        Raises:
            InputError: the chat template refuses or loses messages.
        """
        if self.engine.tokenizer.chat_template:
            try:
                return self._templated(messages)
            except InputError:
                raise
            except Exception as error:  # templates are programs; Gemma's and others' know no system message
                if messages[0]["role"] != "system" or len(messages) < 2:
                    why = " ".join(str(error).split())
                    raise InputError(f"the chat template of {self.model} takes no such messages: {why}") from None
                joined = "\n\n".join(m["content"] for m in messages[:2])
                return self.prompt([{"role": "user", "content": joined}, *messages[2:]])
        start = self.engine.tokenizer.bos_token_id
        plain = "".join(f"{m['role'].capitalize()}:\n{m['content']}\n\n" for m in messages)
        return ([] if start is None else [start]) + self._encode(f"{plain}Assistant:\n")

    def _templated(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of the whole, or of its pieces where a message would become special tokens in it."""
        pieces = self._in_pieces(messages, True)
        whole = self._with_specials(write(self.engine.tokenizer, [dict(m) for m in messages], True))
        return whole if self._specials_of(whole) == self._specials_of(pieces) else pieces

    def _in_pieces(self, messages: Sequence[Mapping[str, str]], ask: bool) -> list[int]:
        """The template's own text with its special tokens, and in its holes the messages without any."""
        ids = []
        for i, piece in enumerate(self._holes(messages, ask)):
            ids += self._encode(messages[i // 2]["content"]) if i % 2 else self._with_specials(piece) if piece else []
        return ids

    def _holes(self, messages: Sequence[Mapping[str, str]], ask: bool) -> list[str]:
        """What the template writes around messages, and between it their numbers."""
        hole = secrets.token_hex(8)
        holes = [{"role": m["role"], "content": f"{hole}-{i}-{hole}"} for i, m in enumerate(messages)]
        pieces = re.split(f"{hole}-([0-9]+)-{hole}", write(self.engine.tokenizer, holes, ask))
        shown, wanted = pieces[1::2], [str(i) for i in range(len(messages))]
        if shown != wanted and sorted(shown, key=int) == wanted:  # Mistral's move a system message to the last question
            raise ValueError("it shows the messages in another order")
        if shown != wanted:
            raise InputError(f"the chat template of {self.model} does not show every message once and in order")
        return pieces

    def _end_of_turn(self) -> list[int]:
        """The special token with which the template ends an answer; none where it has no such token."""
        if not self.engine.tokenizer.chat_template:
            return []
        try:
            pieces = self._holes([{"role": role, "content": ""} for role in ("user", "assistant", "user")], True)
        except Exception:  # it will be refused when it is to be used
            return []
        first = self._with_specials(pieces[4])[:1]
        return first if set(first) <= self._special else []

    def _specials_of(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._special]

    def _with_specials(self, text: str) -> list[int]:
        # tokenizers keep the flag as state, so that leaving it out would not do
        return self.engine.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]

    def _encode(self, text: str) -> list[int]:
        return self.engine.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
