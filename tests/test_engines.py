"""The slot cache against the plain way: recompute everything, one prompt at a time."""

import random

import pytest
import torch

from atlas_ray.engines import TransformersEngine
from atlas_ray.engines.transformers import choose
from atlas_ray.errors import ContextOverflowError
from atlas_ray.tiny import build_model, build_tokenizer


@pytest.fixture(scope="module")
def model():
    return build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=1)


def naive_logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].float()


def naive_generate(model, prompt, stop, max_tokens):
    ids = list(prompt)
    for _ in range(max_tokens):
        token = int(naive_logits(model, ids)[-1].argmax())
        if token in stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


def naive_score(model, prompt, option):
    logprobs = naive_logits(model, [*prompt, *option]).log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(option))


def test_growing_rewound_and_restarted_episodes_equal_recomputation(model):
    """Random appends, rewinds, restarts and subsets of slots, long enough to close holes and to grow the buffer."""
    rng = random.Random(0)
    engine = TransformersEngine(model, slots=5, tokenizer=build_tokenizer())
    prompts = [[rng.randrange(3, 90) for _ in range(4)] for _ in range(5)]
    capacity = engine._cache.capacity
    for round_ in range(100):
        slots = rng.sample(range(5), rng.randint(1, 5))
        for slot in slots:
            kind = rng.random()
            if kind < 0.06:
                prompts[slot] = [rng.randrange(3, 90) for _ in range(rng.randint(1, 6))]
            elif kind < 0.15:
                del prompts[slot][rng.randint(1, len(prompts[slot])) :]
            else:
                prompts[slot] += [rng.randrange(3, 90) for _ in range(rng.randint(0, 25))]
        batch = [list(prompts[s]) for s in slots]
        if round_ % 2:
            options = [[[5], [6, 7], [8, 9, 10]] for _ in slots]
            for prompt, scores in zip(batch, engine.score(batch, slots, options), strict=True):
                expected = [naive_score(model, prompt, o) for o in options[0]]
                assert scores.tolist() == pytest.approx(expected, abs=2e-4)
        else:
            stop = list(range(40, 60))
            written = engine.generate(batch, slots, stop, 5)
            assert written == [naive_generate(model, p, stop, 5) for p in batch]
            for slot, tokens in zip(slots, written, strict=True):
                prompts[slot] += tokens
    assert engine._cache.capacity > capacity, "the test must reach the growing path"


def test_kept_prefix_is_not_fed_again(model):
    engine = TransformersEngine(model, slots=1, tokenizer=build_tokenizer())
    engine.score([list(range(3, 33))], [0], [[[5]]])
    assert engine.tokens_fed == [30]
    engine.score([list(range(3, 43))], [0], [[[5]]])
    assert engine.tokens_fed == [40]


def test_sampling_depends_on_the_seed_and_not_on_the_batch(model):
    tokenizer = build_tokenizer()
    prompts = [[4, 5, 6], [7, 8], [9]]
    engine = TransformersEngine(model, slots=3, tokenizer=tokenizer)
    together = engine.generate(prompts, [0, 1, 2], [], 8, temperature=1.0, seeds=[11, 12, 13])
    alone = [
        TransformersEngine(model, slots=1, tokenizer=tokenizer).generate([p], [0], [], 8, 1.0, [s])[0]
        for p, s in zip(prompts, [11, 12, 13], strict=True)
    ]
    assert together == alone
    assert engine.generate(prompts, [0, 1, 2], [], 8, temperature=1.0, seeds=[1, 2, 3]) != together


def test_samples_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    drawn = [choose(logits, 1.0, [torch.Generator().manual_seed(s)])[0] for s in range(3000)]
    shares = torch.bincount(torch.tensor(drawn), minlength=3) / 3000
    assert shares.tolist() == pytest.approx(logits.softmax(-1)[0].tolist(), abs=0.03)


def test_a_prompt_that_does_not_fit_is_an_error(model):
    engine = TransformersEngine(model, slots=1, tokenizer=build_tokenizer())
    with pytest.raises(ContextOverflowError, match="do not fit"):
        engine.generate([[5] * 2048], [0], [], 1)
