"""The transformers engine on a device: it writes and scores what it does on the CPU, and gives its memory back."""

import copy
import gc
import random
import weakref

import pytest
import torch
from finetune_examples import random_examples, sharp, trained, with_adapters

from atlas_ray.engines import TransformersEngine
from atlas_ray.engines.base import GenerateRequest, HiddenStateRequest, ScoreRequest
from atlas_ray.finetune.output import put, weights
from atlas_ray.finetune.packing import causal_lm
from atlas_ray.finetune.process_group import ProcessGroup
from atlas_ray.models.tiny import build_tokenizer

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
STOP = list(range(40, 60))
KINDS = {
    "llama": ("llama", {}),
    "llama, every head has keys": ("llama", {"num_key_value_heads": 4}),
    "mistral, sliding window": ("mistral", {"sliding_window": 9}),
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "gemma2, whose logits are capped": ("gemma2", {"sliding_window": 11}),
}
FAR = 1e-3
"""How far the two best of what is chosen from must lie apart, or rounding could turn the choice."""


def model(kind="llama", **changes):
    sizes = {"max_position_embeddings": 1024, "head_dim": 64, "hidden_size": 128, "initializer_range": 0.1}
    return sharp(kind, seed=5, **{**sizes, **changes})


def engines(made, device, slots=4):
    """The same model on the CPU and on the device."""
    return tuple(TransformersEngine(copy.deepcopy(made), slots, build_tokenizer(), device=at) for at in (CPU, device))


def play(pair, rounds=45, seed=0):
    """Both through random appends, rewinds, restarts and subsets of slots; they must answer alike."""
    rng, slots = random.Random(seed), pair[0].slots
    prompts = [[rng.randrange(3, 90) for _ in range(4)] for _ in range(slots)]
    for round_ in range(rounds):
        chosen = rng.sample(range(slots), rng.randint(1, slots))
        for slot in chosen:
            kind = rng.random()
            if kind < 0.02:
                prompts[slot] = [rng.randrange(3, 90) for _ in range(rng.randint(1, 6))]
            elif kind < 0.2:
                del prompts[slot][max(1, len(prompts[slot]) - rng.randint(1, 30)) :]
            else:
                prompts[slot] += [rng.randrange(3, 90) for _ in range(rng.randint(0, 30))]
        batch = [list(prompts[s]) for s in chosen]
        if round_ % 3 == 0:
            options = [[[rng.randrange(3, 9) for _ in range(rng.randint(1, 5))] for _ in range(12)] for _ in chosen]
            for one, other in zip(*(engine.score(batch, chosen, options) for engine in pair), strict=True):
                assert other.device == CPU
                assert other.tolist() == pytest.approx(one.tolist(), abs=2e-4)
        elif round_ % 3 == 1:
            one, other = (engine.hidden(batch, chosen) for engine in pair)
            assert other.device == CPU
            assert torch.allclose(one, other, atol=2e-4, rtol=1e-4)
        else:
            one, other = (engine.generate(batch, chosen, STOP, 5) for engine in pair)
            for prompt, slot, written, there in zip(batch, chosen, one, other, strict=True):
                same = next((i for i, (a, b) in enumerate(zip(written, there, strict=False)) if a != b), None)
                if same is None and len(written) == len(there):
                    prompts[slot] += written
                else:  # only where two tokens were as good
                    begun = min(len(written), len(there)) if same is None else same
                    assert margin(pair[0].model, [*prompt, *written[:begun]]) < FAR
        assert pair[0]._cache.columns == pair[1]._cache.columns
    assert pair[0].computed_tokens == pair[1].computed_tokens


@torch.inference_mode()
def margin(made, ids):
    best = made(input_ids=torch.tensor([ids])).logits[0, -1].float().topk(2).values
    return float(best[0] - best[1])


@pytest.mark.parametrize("name", KINDS)
def test_it_answers_as_on_the_cpu_whatever_the_slots_went_through(device, name):
    kind, changes = KINDS[name]
    pair = engines(model(kind, **changes), device)
    assert pair[1].model.device.type == device.type
    capacity = pair[1]._cache.capacity
    play(pair)
    assert pair[1]._cache.capacity > capacity, "the test must reach the growing path"


@pytest.mark.parametrize(("trie_tokens", "pass_tokens"), [(256, 1024), (7, 1024), (12, 30), (1, 1)])
def test_many_candidates_in_tries_score_as_on_the_cpu(device, trie_tokens, pass_tokens):
    rng, pair = random.Random(2), engines(model(), device)
    for engine in pair:
        engine.trie_tokens, engine.pass_tokens = trie_tokens, pass_tokens
    prompts = [[rng.randrange(3, 90) for _ in range(n)] for n in (150, 20, 3)]
    options = [[[rng.randrange(3, 12) for _ in range(rng.randint(1, 6))] for _ in range(n)] for n in (200, 40, 1)]
    for one, other in zip(*(engine.score(prompts, [2, 0, 1], options) for engine in pair), strict=True):
        assert other.tolist() == pytest.approx(one.tolist(), abs=2e-4)


def test_requests_that_join_others_are_answered_as_on_the_cpu(device):
    def requests():
        prompts = [[5, 6, 7], [9, 10, 11, 12], list(range(3, 40))]
        return [
            GenerateRequest(prompts[0], 0, [], 12),
            ScoreRequest(prompts[1], 1, [[5], [6, 7, 8], [6, 9]]),
            HiddenStateRequest(prompts[2], 2),
            GenerateRequest(prompts[1], 1, [], 6, temperature=0.8, seed=4),
            ScoreRequest(prompts[0], 0, [[token] for token in range(3, 60)]),
        ]

    answers = []
    for engine in engines(model(), device, slots=3):
        asked, answered = requests(), []
        for request in asked:
            engine.submit(request)
            answered += engine.step()
        while len(answered) < len(asked):
            answered += engine.step()
        answers.append(asked)
    for one, other in zip(*answers, strict=True):
        if isinstance(one, GenerateRequest):
            assert one.written == other.written
        elif isinstance(one, ScoreRequest):
            assert other.scores.tolist() == pytest.approx(one.scores.tolist(), abs=2e-4)
        else:
            assert torch.allclose(one.hidden, other.hidden, atol=2e-4, rtol=1e-4)


def test_a_model_in_bfloat16_scores_close_to_float32(device):
    """Log-probabilities within 5 % of a nat on average, and 0.3 at most."""
    made, prompts = model(), [[5, 6, 7], list(range(3, 60))]
    options = [[[token] for token in range(3, 60)]] * 2
    exact = TransformersEngine(copy.deepcopy(made), 2, build_tokenizer(), device=device)
    half = TransformersEngine(made.bfloat16(), 2, build_tokenizer(), device=device)
    for one, other in zip(exact.score(prompts, [0, 1], options), half.score(prompts, [0, 1], options), strict=True):
        gap = (one - other).abs()
        assert 0 < float(gap.mean()) < 0.05 and float(gap.max()) < 0.3
    assert half.hidden(prompts, [0, 1]).dtype == torch.float32


def test_what_was_trained_here_plays_here_and_on_the_cpu(device, tmp_path):
    """Validation: an engine around the very model that is being trained, which trains on afterwards."""
    made, group, rows = model().to(device), ProcessGroup(device=device), []
    played = []

    def validate(now):
        engine = TransformersEngine(now, 2, build_tokenizer(), device=device)
        played.append(engine.generate([[5, 6], [7, 8, 9]], [0, 1], [], 4))
        engine.close()
        return float(len(played))

    trained(
        tmp_path,
        random_examples(6, seed=1),
        steps=4,
        model=made,
        group=group,
        validate=validate,
        validation={"every": 2, "episodes": 1},
        on_step=rows.append,
        precision="float32",
    )
    assert len(played) == 2 and len(rows) == 4
    values = weights(causal_lm(made), group)
    assert {value.device for value in values.values()} == {CPU}
    other = model()
    put(other, values)
    prompts = [[5, 6], [7, 8, 9]]
    there = TransformersEngine(other, 2, build_tokenizer(), device=CPU).generate(prompts, [0, 1], [], 4)
    assert there == played[-1]


# --- memory ---


def held(device):
    """Bytes on the device that something still refers to."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def test_closing_gives_all_memory_back_at_once(device):
    """Without waiting for a garbage collection: caches and models are not to hold each other."""
    gc.collect()
    gc.disable()
    try:
        before = held(device)
        engine = TransformersEngine(model(), 4, build_tokenizer(), device=device)
        engine.score([[5, 6, 7]] * 4, range(4), [[[5], [6, 7]]] * 4)
        engine.generate([[5, 6, 7, 8]] * 4, range(4), [], 3)
        kept = [weakref.ref(engine.model), weakref.ref(engine._cache), weakref.ref(engine._cache.layers[0])]
        used = held(device)
        engine.close()
        assert [ref() for ref in kept] == [None] * 3
        if device.type == "cuda":
            assert used > before
            assert held(device) == before
            reserved = torch.cuda.memory_reserved(device)
            assert reserved < used or reserved <= 4 << 20
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [model, lambda: with_adapters(model())])
def test_a_run_leaves_nothing_behind(device, tmp_path, make):
    before, group = held(device), ProcessGroup(device=device)
    made, _ = trained(
        tmp_path,
        random_examples(6, seed=2),
        steps=3,
        anchor=0.5,
        model=make().to(device),
        group=group,
        gradient_checkpointing=True,
    )
    ref = weakref.ref(causal_lm(made))
    del made
    gc.collect()
    assert ref() is None
    # (cuBLAS keeps a workspace from its first product on)
    assert held(device) - before < 64 << 20
