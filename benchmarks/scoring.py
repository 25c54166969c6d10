"""Decisions a second of the transformers engine, on one thread.

    python benchmarks/scoring.py [ROUNDS]

First candidates of several tokens: all of a row in few passes, as the engine scores them, beside one pass a candidate,
on random Llama-shaped models; the two alternate, and medians of the rounds are printed. Then whole episodes with
tiny-quick, whose actions are one token each, with 16 environments in flight and with one.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from atlas_ray.agents.rollout import EVALUATE, EnvSpec, rollout, seed_block, start_episode
from atlas_ray.agents.token_agent import Agent
from atlas_ray.engines import TransformersEngine
from atlas_ray.engines.transformers import build_tries

Options = list[list[int]]
SHAPES = {"1M": (128, 4, 4, 344, 512), "30M": (448, 8, 7, 1216, 32000)}
WORDS = range(3, 500)
PROMPT, TURN = 300, 20
"""Tokens of the first prompt, and by how much it grows between two decisions."""


class OneByOne(TransformersEngine):
    """The plain way: behind the first tokens, one pass for each candidate, for all rows together."""

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[Sequence[int]], slots: Sequence[int], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> list[torch.Tensor]:
        first_RV = self._feed_prompts(prompts, slots).log_softmax(-1).cpu()
        scores = [first_RV[row, [option[0] for option in options]] for row, options in enumerate(candidates)]
        for k in range(max(map(len, candidates))):
            rows = [r for r, options in enumerate(candidates) if k < len(options) and len(options[k]) > 1]
            chains = [build_tries([candidates[r][k]], sys.maxsize)[0] for r in rows]
            for r, logprobs in zip(rows, self._feed_tries([slots[r] for r in rows], chains), strict=True):
                scores[r][k] += logprobs.sum()
        return scores


def llama(hidden: int, layers: int, heads: int, intermediate: int, vocabulary: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def unlike(rng: random.Random, count: int, length: int) -> Options:
    return [rng.choices(WORDS, k=length) for _ in range(count)]


def sentences(rng: random.Random, count: int) -> Options:
    """Of eight tokens like "connect the red wire to the green battery": two for the verb, three for either object."""
    verbs, things = unlike(rng, 10, 2), unlike(rng, 40, 3)
    return [rng.choice(verbs) + rng.choice(things) + rng.choice(things) for _ in range(count)]


def decide(engine: TransformersEngine, prompts: Options, candidates: list[Options]) -> tuple[float, list[torch.Tensor]]:
    """Decisions a second, and the scores."""
    start = time.perf_counter()
    scores = engine.score(prompts, range(len(prompts)), candidates)
    return len(prompts) / (time.perf_counter() - start), scores


def compare(rounds: int) -> None:
    print("| model | candidates | rows | one by one, decisions/s | together, decisions/s | factor | differ by |")
    print("|---|---|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        model = llama(*shape)
        for title, make, rows in (
            ("6 of 2 tokens", lambda rng: unlike(rng, 6, 2), 1),
            ("6 of 2 tokens", lambda rng: unlike(rng, 6, 2), 16),
            ("400 of 8, sentences", lambda rng: sentences(rng, 400), 1),
            ("400 of 8, nothing in common", lambda rng: unlike(rng, 400, 8), 1),
        ):
            rng = random.Random(0)
            engines = [OneByOne(model, rows, tokenizer=object()), TransformersEngine(model, rows, tokenizer=object())]
            rates: list[list[float]] = [[], []]
            prompts, worst = unlike(rng, rows, PROMPT), 0.0
            for engine in engines:
                engine.score(prompts, range(rows), [[[5, 6]]] * rows)
            for number in range(rounds):
                prompts = [prompt + turn for prompt, turn in zip(prompts, unlike(rng, rows, TURN), strict=True)]
                candidates = [make(rng) for _ in range(rows)]
                found = {}
                for which in (0, 1) if number % 2 else (1, 0):
                    rate, found[which] = decide(engines[which], prompts, candidates)
                    rates[which].append(rate)
                worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(found[0], found[1], strict=True)))
            old, new = map(statistics.median, rates)
            print(f"| {name} | {title} | {rows} | {old:.2f} | {new:.2f} | {new / old:.1f} | {worst:.0e} |", flush=True)


def episodes(rounds: int) -> None:
    print("\n| tiny-quick, GoToLocalS6N4, thoughts and actions | decisions/s |\n|---|---|")
    agents = {slots: Agent(TransformersEngine("tiny-quick", slots=slots)) for slots in (1, 16)}
    rates: dict[int, list[float]] = {slots: [] for slots in agents}
    first = seed_block(1, EVALUATE)
    for number in range(rounds + 1):
        for slots, agent in agents.items():
            prefix_groups = (
                [start_episode(EnvSpec("GoToLocalS6N4", {"max_steps": 20}), first + i)] for i in range(3 * slots)
            )
            start = time.perf_counter()
            decisions = sum(len(finished.steps) for finished in rollout(agent, prefix_groups))
            if number:  # the first round warms up
                rates[slots].append(decisions / (time.perf_counter() - start))
    for slots, found in rates.items():
        print(f"| {slots} in flight | {statistics.median(found):.0f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    compare(count)
    episodes(count)
