"""Any causal LM of Hugging Face transformers, with the prefix of every episode kept between its steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch

from ..models.config import text_config
from ..models.loading import load_model, load_tokenizer
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
from .grouped_attention import use_grouped_attention
from .reach import added_mask, check_kept, reaches
from .slot_cache import SlotCache
from .tries import TRIE_TOKENS, TokenTrie, build_tries, choose


class TransformersEngine(Batches):
    """Implements :class:`atlas_ray.engines.base.Engine`.

    Args:
        model: shipped name, directory or Hugging Face id, or a loaded causal LM with ``tokenizer`` given.
        slots: episodes that can be kept at a time.
        context: most tokens of prompt and continuation; the model's own limit by default.
        device: where it computes; a GPU by default where there is one.

    Raises:
        InputError: the model takes fewer tokens than ``context`` or does not say how many, or nothing can be kept of a
            text for it, as of recurrent models.

    Attributes:
        trie_tokens: candidates of a row that share a pass, in tokens; each attends to all of them, masked or not.
        pass_tokens: most tokens of a pass over candidates.
        pass_numbers: most numbers in its largest arrays: the logits and, in eager attention, a layer's weights.
    """

    trie_tokens = TRIE_TOKENS
    pass_tokens = 1024
    pass_numbers = 2**25

    def __init__(
        self,
        model: str | Any,
        slots: int,
        tokenizer: Any = None,
        context: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load_model(model) if isinstance(model, str) else model
        self.model: Any = loaded.to(self.device).eval()
        use_grouped_attention(self.model)
        self.tokenizer = tokenizer if tokenizer is not None else load_tokenizer(str(model))
        self.slots = slots
        self.context = own_context(context, self.model.config)
        check_kept(self.model)
        shape = text_config(self.model.config)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.capabilities = Capabilities(hidden=int(self.model.get_output_embeddings().in_features))
        self.computed_tokens = [0] * slots
        self.counters = EngineCounters()
        self._kept: list[list[int]] = [[] for _ in range(slots)]
        self._cache = SlotCache(slots, shape.num_hidden_layers, self.device)
        self._reaches = reaches(self.model, self.context)
        self._widths = int(shape.vocab_size), int(shape.num_attention_heads)
        self._waiting: list[Request] = []
        self._active: dict[int, GenerateRequest] = {}
        self._generators: dict[int, torch.Generator] = {}

    def close(self) -> None:
        """Drop the weights and everything that was kept; other processes can then have a GPU's memory."""
        self._cache.layers.clear()  # they and the cache hold each other, and would wait for a garbage collection
        del self.model, self._cache
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def forget(self, slot: int) -> None:
        """See :meth:`Engine.forget`."""
        self._rewind(slot, 0)

    def answer(self, requests: Sequence[Request]) -> Sequence[Request]:
        """See :meth:`Batches.answer`."""
        return finish(self, requests)

    def submit(self, request: Request) -> None:
        """See :meth:`LocalEngine.submit`."""
        check(request, self.context)
        self._waiting.append(request)

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """See :meth:`LocalEngine.step`.

        Everything that writes gets one more token, in one pass; then what waits for a free slot is begun. A prompt
        therefore never waits for another's last token. After an error nothing is on its way any more.
        """
        try:
            answered = self._pass()
        except BaseException:
            self._waiting, self._active = [], {}
            raise
        for request in answered:
            request.computed_tokens += self.computed_tokens[request.slot]
        return answered

    def _pass(self) -> list[Request]:
        answered: list[Request] = []
        if self._active:
            writing = list(self._active.values())
            logits_RV, _ = self._feed([r.slot for r in writing], [[r.written[-1]] for r in writing])
            answered += self._write(writing, logits_RV)
        begun: list[Request] = []
        busy = set(self._active)
        for request in self._waiting:
            if request.slot not in busy:
                busy.add(request.slot)
                begun.append(request)
        if begun:
            self._waiting = [r for r in self._waiting if r not in begun]
            for request in begun:
                request.computed_tokens -= self.computed_tokens[request.slot]  # the count at its end is added then
            logits_RV, hidden_RH = self._feed_prompts(begun)
            new = {row: r for row, r in enumerate(begun) if isinstance(r, GenerateRequest)}
            self._active |= {r.slot: r for r in new.values()}
            self._generators |= {r.slot: torch.Generator().manual_seed(r.seed) for r in new.values()}
            if new:
                answered += self._write(list(new.values()), logits_RV[list(new)])
            scoring = {row: r for row, r in enumerate(begun) if isinstance(r, ScoreRequest)}
            if scoring:
                answered += self._score(list(scoring.values()), logits_RV[list(scoring)])
            for row, request in enumerate(begun):
                if isinstance(request, HiddenStateRequest):
                    request.hidden = hidden_RH[row].cpu().clone()  # a view would be pickled with the whole batch
                    answered.append(request)
        return answered

    def _write(self, requests: list[GenerateRequest], logits_RV: torch.Tensor) -> list[Request]:
        """Append the next token to each; those that are at their end."""
        answered: list[Request] = []
        for temperature in {r.temperature for r in requests}:
            rows = [row for row, r in enumerate(requests) if r.temperature == temperature]
            drawing = [self._generators[requests[row].slot] for row in rows]
            for row, token in zip(rows, choose(logits_RV[rows], temperature, drawing), strict=True):
                request = requests[row]
                if token not in request.stop:
                    request.written.append(token)
                if token in request.stop or len(request.written) == request.max_tokens:
                    answered.append(request)
                    del self._active[request.slot]
        return answered

    def _score(self, requests: list[ScoreRequest], logits_RV: torch.Tensor) -> list[Request]:
        """Score the candidates behind the prompts that were just fed, whose logits give the first tokens.

        Where there are more tokens, the candidates of a row follow as tries behind its prompt, many to a pass, and
        leave the slot as it was.
        """
        first_RV = logits_RV.log_softmax(-1).cpu()
        scores = [
            first_RV[row, torch.tensor([option[0] for option in request.candidates])]
            for row, request in enumerate(requests)
        ]
        context = self._cache.cursor + self.trie_tokens
        vocabulary, heads = self._widths
        numbers = vocabulary + heads * context
        most = max(1, min(self.pass_tokens, self.pass_numbers // numbers))
        for tries in zip_longest(*(build_tries(r.candidates, min(most, self.trie_tokens)) for r in requests)):
            by_size = sorted(((len(t.tokens), r, t) for r, t in enumerate(tries) if t is not None), reverse=True)
            while by_size:
                count = max(1, most // by_size[0][0])
                rows = {r: t for _, r, t in sorted(by_size[:count], key=lambda x: x[1])}
                del by_size[:count]
                taken = self._feed_tries([requests[r].slot for r in rows], list(rows.values()))
                for (row, trie), logprobs in zip(rows.items(), taken, strict=True):
                    scores[row].index_add_(0, torch.tensor([k for k, _, _ in trie.wanted]), logprobs)
        for request, found in zip(requests, scores, strict=True):
            request.scores = found
        return list(requests)

    def _rewind(self, slot: int, length: int) -> None:
        self._cache.rewind(slot, length)
        del self._kept[slot][length:]

    def _feed_prompts(self, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[R, V]`` and hidden state ``[R, H]`` behind each prompt.

        Only what is not yet kept goes through the model, and the last token of a prompt that is kept whole.
        """
        new = []
        for request in requests:
            prompt, kept = request.prompt, self._kept[request.slot]
            common = len(kept)
            if list(prompt[:common]) != kept:
                common = next((i for i, (a, b) in enumerate(zip(kept, prompt, strict=False)) if a != b), len(prompt))
            request.cached_tokens = 0 if request.ignore_cache else min(common, len(prompt) - 1)
            self._rewind(request.slot, request.cached_tokens)
            new.append(list(prompt[request.cached_tokens :]))
        return self._feed([r.slot for r in requests], new)

    def _feed(self, slots: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens to slots; logits ``[R, V]`` and hidden state ``[R, H]`` behind the last one."""
        rest = self._feed_heads(slots, tokens)
        longest = max(map(len, rest))
        self._cache.reserve(longest)
        known = [len(self._kept[s]) for s in slots]
        positions = [range(k, k + len(new)) for k, new in zip(known, rest, strict=True)]
        causal_1LL = torch.ones(1, longest, longest, dtype=torch.bool, device=self.device).tril()
        # a pass over all slots, with padding for the idle ones, is cheaper than copying the rows of a few out
        everyone = 2 * len(slots) > self.slots
        logits_R1V, hidden_R1H = self._forward(slots, rest, positions, causal_1LL, everyone, keep=True)
        return logits_R1V[:, 0], hidden_R1H[:, 0]

    def _feed_tries(self, slots: Sequence[int], tries: Sequence[TokenTrie]) -> list[torch.Tensor]:
        """Log-probabilities of what each trie wants, in its order; the slots stay as they are."""
        longest = max(len(t.tokens) for t in tries)
        self._cache.reserve(longest)
        # a node sees itself and what is found by going up from it; the way up from a root stays at the root
        up_RL = torch.arange(longest) - _right_aligned([t.up for t in tries], longest)
        seen_RLL = torch.eye(longest, dtype=torch.bool).repeat(len(tries), 1, 1)
        node_RL = up_RL
        for _ in range(max(max(t.depths) for t in tries)):
            seen_RLL.scatter_(2, node_RL[..., None], True)
            node_RL = up_RL.gather(1, node_RL)
        idle = self.slots - len(slots)
        logits_RLV, _ = self._forward(
            slots,
            [t.tokens for t in tries],
            [[len(self._kept[s]) + d for d in t.depths] for s, t in zip(slots, tries, strict=True)],
            seen_RLL.to(self.device),
            # copying a slot's keys out costs about as much as 16 tokens of padding
            idle * longest <= 16 * len(slots),
            keep=False,
        )
        where = [
            (row, longest - len(trie.tokens) + node, token)
            for row, trie in enumerate(tries)
            for _, node, token in trie.wanted
        ]
        row_N, node_N, token_N = torch.tensor(where, device=self.device).T
        logprobs_N = logits_RLV.log_softmax(-1)[row_N, node_N, token_N]
        return list(logprobs_N.cpu().split([len(t.wanted) for t in tries]))

    def _forward(
        self,
        slots: Sequence[int],
        tokens: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        seen_RLL: torch.Tensor,
        everyone: bool,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass over new tokens, right-aligned, for which the cache has room.

        Gives the logits and the hidden states that went into the LM head, float32.

        Args:
            slots: whose tokens they are.
            tokens: ids.
            positions: of each token in its text.
            seen_RLL: which new tokens a new token attends to, besides all that is kept; padding need not be left out.
            everyone: pass over all slots in order, idle ones too.
            keep: append the tokens to the slots and give logits and states of the last ones only, ``[R, 1, V]`` and
                ``[R, 1, H]``; else leave the slots as they are and give all of them, ``[R, L, V]`` and ``[R, L, H]``.
        """
        cache, longest = self._cache, seen_RLL.shape[-1]
        start, end = cache.cursor, cache.cursor + longest
        order = torch.tensor(slots, device=self.device)
        ids_RL = _right_aligned(tokens, longest).to(self.device)
        positions_RL = _right_aligned(positions, longest).to(self.device)
        lengths_R = torch.tensor([len(new) for new in tokens])
        real_RL = (torch.arange(longest) >= longest - lengths_R[:, None]).to(self.device)
        seen_RLL = seen_RLL & real_RL[:, None, :]
        if everyone:
            ids_RL, positions_RL, real_RL, seen_RLL = (
                x.new_zeros(self.slots, *x.shape[1:]).index_copy_(0, order, x)
                for x in (ids_RL, positions_RL, real_RL, seen_RLL)
            )
        # padding attends to itself, or its softmax over nothing would put NaN into the cache
        seen_RLL = seen_RLL | torch.eye(longest, dtype=torch.bool, device=self.device)
        rows = slice(None) if everyone else order
        past_RC, places_RC = cache.valid[rows, :start], cache.places[rows, :start]
        masks = {
            kind: added_mask(past_RC, seen_RLL, reach, places_RC, positions_RL, self.model.dtype)
            for kind, reach in self._reaches.items()
        }
        cache.rows = None if everyone else order
        heads: list[torch.Tensor] = []
        # families differ in what they do between the last layer and the head; a hook sees what comes of it
        hook = self.model.get_output_embeddings().register_forward_pre_hook(lambda _, given: heads.append(given[0]))
        try:
            logits_RLV = self.model(
                input_ids=ids_RL,
                position_ids=positions_RL,
                attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1 if keep else longest,
            ).logits
        finally:
            hook.remove()
        [hidden_RLH] = heads
        for slot, new in zip(slots, tokens, strict=True):
            self.computed_tokens[slot] += len(new)
            if keep:
                self._kept[slot].extend(new)
                cache.columns[slot].extend(range(end - len(new), end))
        if keep:
            cache.cursor = end
            cache.valid[rows, start:end], cache.places[rows, start:end] = real_RL, positions_RL
        if everyone and list(slots) != list(range(self.slots)):
            logits_RLV, hidden_RLH = logits_RLV[order], hidden_RLH[order]
        return logits_RLV.float(), hidden_RLH.float()

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


def _right_aligned(rows: Sequence[Sequence[int]], longest: int) -> torch.Tensor:
    return torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
