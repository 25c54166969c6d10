"""Any causal LM of Hugging Face transformers, with the prefix of every episode kept between its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import ContextOverflowError
from ..models import load_model, load_tokenizer
from .base import Capabilities
from .slot_cache import SlotCache


class TransformersEngine:
    """Implements :class:`atlas_ray.engines.base.Engine`.

    Args:
        model: shipped name, directory or Hugging Face id, or a loaded causal LM with ``tokenizer`` given.
        slots: episodes that can be kept at a time.
    """

    capabilities = Capabilities()

    def __init__(self, model: str | Any, slots: int, tokenizer: Any = None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load_model(model) if isinstance(model, str) else model
        self.model: Any = loaded.to(self.device).eval()
        self.tokenizer = tokenizer if tokenizer is not None else load_tokenizer(str(model))
        self.slots = slots
        self.context = int(self.model.config.max_position_embeddings)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.tokens_fed = [0] * slots
        self._kept: list[list[int]] = [[] for _ in range(slots)]
        self._cache = SlotCache(slots, self.model.config.num_hidden_layers, self.device)

    @torch.inference_mode()
    def forget(self, slot: int) -> None:
        """See :meth:`Engine.forget`."""
        self._rewind(slot, 0)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        slots: Sequence[int],
        stop: Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """See :meth:`Engine.generate`.

        Raises:
            ContextOverflowError: a prompt leaves no room for ``max_tokens``.
        """
        for prompt in prompts:
            if len(prompt) + max_tokens > self.context:
                raise ContextOverflowError(
                    f"a prompt of {len(prompt)} tokens and {max_tokens} to write do not fit the model's {self.context}"
                )
        generators = [torch.Generator().manual_seed(s) for s in seeds] if temperature and seeds else None
        written: list[list[int]] = [[] for _ in prompts]
        active = list(range(len(prompts)))
        logits_RV = self._feed_prompts(prompts, slots)
        while active:
            chosen = choose(logits_RV, temperature, [generators[i] for i in active] if generators else None)
            going = []
            for i, token in zip(active, chosen, strict=True):
                if token not in stop:
                    written[i].append(token)
                    if len(written[i]) < max_tokens:
                        going.append(i)
            active = going
            if active:
                logits_RV = self._feed([slots[i] for i in active], [[written[i][-1]] for i in active])[:, -1]
        return written

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[Sequence[int]], slots: Sequence[int], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> list[torch.Tensor]:
        """See :meth:`Engine.score`. One-token candidates cost one forward pass, longer ones one more each."""
        for prompt, options in zip(prompts, candidates, strict=True):
            if not all(options):
                raise ValueError("a candidate without tokens has no probability")
            if len(prompt) + max(map(len, options)) > self.context:
                raise ContextOverflowError(f"a prompt of {len(prompt)} tokens does not fit the model's {self.context}")
        first_RV = self._feed_prompts(prompts, slots).log_softmax(-1).cpu()
        scores = [
            first_RV[row, torch.tensor([option[0] for option in options])] for row, options in enumerate(candidates)
        ]
        for k in range(max(map(len, candidates))):
            rows = [r for r, options in enumerate(candidates) if k < len(options) and len(options[k]) > 1]
            if not rows:
                continue
            tails = [list(candidates[r][k]) for r in rows]
            chunk_RLV = self._feed([slots[r] for r in rows], [t[:-1] for t in tails], last=False).log_softmax(-1).cpu()
            for i, r in enumerate(rows):
                steps = len(tails[i]) - 1
                taken = chunk_RLV[i, -steps:].gather(1, torch.tensor(tails[i][1:])[:, None])
                scores[r][k] += taken.sum()
                self._rewind(slots[r], len(prompts[r]))
        return scores

    def _rewind(self, slot: int, length: int) -> None:
        self._cache.rewind(slot, length)
        del self._kept[slot][length:]

    def _feed_prompts(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> torch.Tensor:
        """Logits behind each prompt, ``[R, V]``; only what is not yet kept goes through the model."""
        if len(set(slots)) != len(slots):
            raise ValueError("a slot stands twice in one batch")
        new = []
        for prompt, slot in zip(prompts, slots, strict=True):
            kept = self._kept[slot]
            common = len(kept)
            if list(prompt[:common]) != kept:
                common = next((i for i, (a, b) in enumerate(zip(kept, prompt, strict=False)) if a != b), len(prompt))
            common = min(common, len(prompt) - 1)
            self._rewind(slot, common)
            new.append(list(prompt[common:]))
        return self._feed(slots, new)[:, -1]

    def _feed(self, slots: Sequence[int], tokens: Sequence[Sequence[int]], last: bool = True) -> torch.Tensor:
        """Append tokens to slots, right-aligned; logits of the last position ``[R, 1, V]``, or of all ``[R, L, V]``."""
        cache = self._cache
        if last:
            slots, tokens = list(slots), self._feed_heads(slots, tokens)
        longest = max(map(len, tokens))
        if 2 * len(slots) > self.slots:
            # a pass over all slots, with padding for the idle ones, is cheaper than copying the rows of a few out
            given = dict(zip(slots, tokens, strict=True))
            slots, tokens = range(self.slots), [given.get(s, ()) for s in range(self.slots)]
            order = torch.tensor(list(given), device=self.device)
        else:
            order = None
        count = len(slots)
        cache.reserve(longest)
        start, end = cache.cursor, cache.cursor + longest
        ids_RL = torch.zeros(count, longest, dtype=torch.long)
        positions_RL = torch.zeros(count, longest, dtype=torch.long)
        real_RL = torch.zeros(count, longest, dtype=torch.bool)
        for row, (slot, new) in enumerate(zip(slots, tokens, strict=True)):
            known, pad = len(self._kept[slot]), longest - len(new)
            ids_RL[row, pad:] = torch.tensor(new, dtype=torch.long)
            positions_RL[row, pad:] = torch.arange(known, known + len(new))
            real_RL[row, pad:] = True
        ids_RL, positions_RL, real_RL = (x.to(self.device) for x in (ids_RL, positions_RL, real_RL))

        rows = torch.tensor(slots, device=self.device) if order is None else None
        past_RC = cache.valid[:, :start] if rows is None else cache.valid[rows, :start]
        causal_LL = torch.ones(longest, longest, dtype=torch.bool, device=self.device).tril()
        # padding attends to itself, or its softmax over nothing would put NaN into the cache
        self_LL = torch.eye(longest, dtype=torch.bool, device=self.device)
        new_RLL = (causal_LL & real_RL[:, None, :]) | self_LL
        mask_R1LC = torch.cat([past_RC[:, None, :].expand(count, longest, start), new_RLL], dim=-1)[:, None]

        cache.rows = rows
        logits_RLV = self.model(
            input_ids=ids_RL,
            position_ids=positions_RL,
            attention_mask=mask_R1LC,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1 if last else longest,
        ).logits
        cache.cursor = end
        cache.valid[slice(None) if rows is None else rows, start:end] = real_RL
        for slot, new in zip(slots, tokens, strict=True):
            self._kept[slot].extend(new)
            cache.columns[slot].extend(range(end - len(new), end))
            self.tokens_fed[slot] += len(new)
        return (logits_RLV if order is None else logits_RLV[order]).float()

    def _feed_heads(self, slots: Sequence[int], tokens: Sequence[Sequence[int]]) -> list[list[int]]:
        """Feed what makes a few rows much longer than the rest on its own; what is left to feed for each row.

        One long row would pad all others to its length.
        """
        rest = [list(t) for t in tokens]
        typical = sorted(map(len, rest))[int(0.75 * len(rest))]
        long = [r for r, t in enumerate(rest) if len(t) > typical + 8]
        if long:
            self._feed([slots[r] for r in long], [rest[r][: len(rest[r]) - typical] for r in long])
            for r in long:
                rest[r] = rest[r][len(rest[r]) - typical :]
        return rest


def choose(logits_RV: torch.Tensor, temperature: float, generators: Sequence[torch.Generator] | None) -> list[int]:
    """Greedy choice, or a sample by the Gumbel trick in which every row has a generator of its own."""
    if not temperature:
        return [int(i) for i in logits_RV.argmax(-1)]
    if generators is None:
        raise ValueError("sampling at a temperature needs a seed for every row")
    uniform_RV = torch.stack([torch.rand(logits_RV.shape[-1], generator=g) for g in generators])
    gumbel_RV = -torch.log(-torch.log(uniform_RV.clamp(1e-20, 1 - 1e-7)))
    return [int(i) for i in (logits_RV.cpu() / temperature + gumbel_RV).argmax(-1)]
