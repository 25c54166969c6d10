"""The slot cache against the plain way: recompute everything, one prompt at a time."""

import copy
import random

import pytest
import torch
from transformers import LlamaForCausalLM

from atlas_ray.engines import TransformersEngine
from atlas_ray.engines.tries import build_tries, choose
from atlas_ray.errors import ContextOverflowError
from atlas_ray.models.tiny import build_model, build_tokenizer


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
    assert engine.computed_tokens == [30]
    engine.score([list(range(3, 43))], [0], [[[5]]])
    assert engine.computed_tokens == [40]


def random_options(rng, count, alphabet=4):
    """Of 1 to 6 tokens; a small alphabet makes common beginnings, candidates that begin others, and doubles."""
    return [[rng.randrange(3, 3 + alphabet) for _ in range(rng.randint(1, 6))] for _ in range(count)]


@pytest.mark.parametrize(
    ("trie_tokens", "pass_tokens", "pass_numbers"),
    [(256, 1024, 2**25), (7, 1024, 2**25), (1, 1, 2**25), (12, 30, 2**25), (256, 1024, 5000), (256, 1024, 1)],
)
def test_candidates_score_as_recomputed_whatever_shares_a_pass(model, trie_tokens, pass_tokens, pass_numbers):
    """Rows with different numbers of candidates, in subsets of the slots, with every bound of a pass reached."""
    rng = random.Random(2)
    engine = TransformersEngine(model, slots=4, tokenizer=build_tokenizer())
    engine.trie_tokens, engine.pass_tokens, engine.pass_numbers = trie_tokens, pass_tokens, pass_numbers
    prompts = [[rng.randrange(3, 90) for _ in range(rng.randint(1, 30))] for _ in range(4)]
    for _ in range(8):
        slots = rng.sample(range(4), rng.randint(1, 4))
        options = [random_options(rng, rng.choice([1, 2, 6, 25])) for _ in slots]
        batch = [list(prompts[s]) for s in slots]
        for prompt, row, scores in zip(batch, options, engine.score(batch, slots, options), strict=True):
            assert scores.tolist() == pytest.approx([naive_score(model, prompt, o) for o in row], abs=2e-4)
        for slot, prompt in zip(slots, batch, strict=True):
            assert engine._kept[slot] == prompt
            columns = engine._cache.columns[slot]
            assert sorted(columns) == columns == engine._cache.valid[slot].nonzero().flatten().tolist()
            prompts[slot] += [rng.randrange(3, 90) for _ in range(rng.randint(0, 12))]


def test_a_long_list_of_candidates_takes_few_passes_of_bounded_size(model, monkeypatch):
    rng = random.Random(3)
    engine = TransformersEngine(model, slots=2, tokenizer=build_tokenizer())
    prompts = [[rng.randrange(3, 90) for _ in range(n)] for n in (150, 20)]
    options = [random_options(rng, 1500, alphabet=30), [[5, 6]]]
    passes, forward = [], model.forward

    def recorded(**given):
        passes.append(given["attention_mask"].shape)
        return forward(**given)

    monkeypatch.setattr(model, "forward", recorded)
    scores = engine.score(prompts, [0, 1], options)
    monkeypatch.undo()
    for k in [*range(0, 1500, 60), 1499]:
        assert float(scores[0][k]) == pytest.approx(naive_score(model, prompts[0], options[0][k]), abs=2e-4)
    assert float(scores[1][0]) == pytest.approx(naive_score(model, prompts[1], [5, 6]), abs=2e-4)
    tries = [shape for shape in passes if shape[2] > 150]
    assert len(passes) < 25
    assert tries and all(length <= engine.trie_tokens and seen <= 512 for _, _, length, seen in tries)
    # what is kept is the prompts: the next score feeds nothing of them but the last token, which gives the logits
    before = list(engine.computed_tokens)
    engine.score(prompts, [0, 1], [[[5]], [[6]]])
    assert engine.computed_tokens == [n + 1 for n in before]


def test_rows_share_a_pass_over_candidates_up_to_its_bound(model, monkeypatch):
    rng = random.Random(5)
    engine = TransformersEngine(model, slots=4, tokenizer=build_tokenizer())
    engine.trie_tokens, engine.pass_tokens = 100, 320
    passes, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda **given: passes.append(given["input_ids"].shape) or forward(**given))
    engine.score([[4, 5]] * 4, range(4), [random_options(rng, 60, alphabet=30) for _ in range(4)])
    assert passes[1][0] == 3, "four tries of nearly 100 do not fit"
    assert all(count * length <= 320 for count, length in passes)


def test_a_few_short_candidates_take_one_pass_more_for_all_rows(model, monkeypatch):
    calls, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda **given: calls.append(given) or forward(**given))
    engine = TransformersEngine(model, slots=5, tokenizer=build_tokenizer())
    engine.score([[4, 5, 6]] * 5, range(5), [[[7, k] for k in range(8, 14)]] * 5)
    assert len(calls) == 2
    # the six begin alike, so that one token more is fed
    assert engine.computed_tokens == [4] * 5
    engine.score([[4, 5, 6, 7]] * 5, range(5), [[[k] for k in range(8, 14)]] * 5)
    assert len(calls) == 3


def test_a_first_token_scores_the_same_whatever_longer_candidates_stand_beside_it(model):
    prompts = [[4, 5, 6], [7, 8]]
    alone, beside = (TransformersEngine(model, slots=3, tokenizer=build_tokenizer()) for _ in range(2))
    for _ in range(3):
        short = alone.score(prompts, [0, 2], [[[5], [6]], [[7]]])
        both = beside.score(prompts, [0, 2], [[[5], [6, 9, 9], [6]], [[7], [8, 8]]])
        assert torch.equal(short[0], both[0][[0, 2]])
        assert torch.equal(short[1], both[1][[0]])
        prompts = [[*p, 9, 10] for p in prompts]


def test_planted_trees_hold_every_candidate_once_with_beginnings_merged():
    rng = random.Random(4)
    options = random_options(rng, 200, alphabet=8)
    tries = build_tries(options, 20)
    held = {}
    for trie in tries:
        assert len(trie.tokens) <= 20
        paths = []
        for node, (token, depth, up) in enumerate(zip(trie.tokens, trie.depths, trie.up, strict=True)):
            paths.append([*(paths[node - up] if up else []), token])
            assert len(paths[node]) == depth + 1
        assert len({tuple(p) for p in paths}) == len(paths), "a beginning stands once in a trie"
        for k, node, token in trie.wanted:
            held.setdefault(k, []).append([*paths[node], token])
    for k, option in enumerate(options):
        assert held.get(k, []) == [option[: n + 1] for n in range(1, len(option))]
    assert build_tries([[4], [5]], 20) == []
    assert [len(t.tokens) for t in build_tries([[4, 5, 6, 7]], 2)] == [3], "a candidate is not cut"


def test_eager_attention_gives_what_sdpa_gives():
    model = build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=1)
    prompts, options = [[4, 5, 6], list(range(5, 25))], [[[5], [6, 7]], [[8, 9, 10]]]
    expected = TransformersEngine(model, 2, build_tokenizer()).score(prompts, [0, 1], options)
    model.set_attn_implementation("eager")
    for a, b in zip(
        TransformersEngine(model, 2, build_tokenizer()).score(prompts, [0, 1], options), expected, strict=True
    ):
        assert a.tolist() == pytest.approx(b.tolist(), abs=2e-4)


def test_heads_that_share_keys_attend_as_if_the_keys_were_copied():
    tokenizer, prompts = build_tokenizer(), [[4, 5, 6], list(range(5, 25)), [9, 8]]
    config = build_model(hidden=32, layers=2, heads=4, intermediate=64, seed=1).config
    config.num_key_value_heads = 2
    torch.manual_seed(0)
    plain = LlamaForCausalLM(config).eval()
    shared = copy.deepcopy(plain)
    engine = TransformersEngine(shared, 3, tokenizer)
    assert shared.config._attn_implementation == "atlas_grouped"
    assert plain.config._attn_implementation == "sdpa"
    options = [[5], [6, 7, 8], [6, 9]]
    for prompt, scores in zip(prompts, engine.score(prompts, range(3), [options] * 3), strict=True):
        assert scores.tolist() == pytest.approx([naive_score(plain, prompt, o) for o in options], abs=1e-4)
    assert engine.generate(prompts, range(3), [], 9) == [naive_generate(plain, p, [], 9) for p in prompts]
    padded = {
        "input_ids": torch.tensor([[1, 1, 4, 5], [6, 7, 8, 9]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
    }
    for there, here in zip(*(m(**padded).logits[:, 2:] for m in (plain, shared)), strict=True):
        assert torch.allclose(there, here, atol=1e-5), "whoever else uses the model sees no difference"


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
