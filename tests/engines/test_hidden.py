"""Hidden states of an engine against a plain forward of the whole prompt, and what reading them costs."""

import random

import pytest
import torch
from finetune_examples import sharp

from atlas_ray.agents.token_agent import Agent
from atlas_ray.engines import TransformersEngine
from atlas_ray.engines.base import GenerateRequest, HiddenStateRequest, ScoreRequest
from atlas_ray.engines.vllm import VllmEngine
from atlas_ray.engines.vllm_setup import Loaded
from atlas_ray.errors import ContextOverflowError, InputError
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.trajectory import Step

# with tied heads, heads that share keys, a norm of its own kind, and logits that are scaled and capped behind the head
FAMILIES = {
    "llama": {},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 64},
    "granite": {"logits_scaling": 4.0},
}


def plain(model, prompt):
    """The last of the states that transformers gives of a forward of its own."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0, -1]


def close(states, expected):
    return torch.allclose(states, torch.stack(list(expected)), atol=1e-4)


def draw(rng, count):
    return [rng.randrange(3, 60) for _ in range(count)]


@pytest.mark.parametrize("kind", FAMILIES)
def test_states_are_those_of_a_plain_forward_whatever_was_kept_and_who_shares_the_batch(kind):
    """Prompts that grow, shrink and start anew in random subsets of the slots, with writing and scoring between."""
    model, rng = sharp(kind, **FAMILIES[kind]), random.Random(1)
    engine = TransformersEngine(model, slots=4, tokenizer=build_tokenizer())
    prompts = [draw(rng, 5) for _ in range(4)]
    for turn in range(24):
        slots = rng.sample(range(4), rng.randint(1, 4))
        for slot in slots:
            kept = rng.choice([0, rng.randint(0, len(prompts[slot])), len(prompts[slot]), len(prompts[slot])])
            prompts[slot] = [*prompts[slot][:kept], *draw(rng, rng.randint(kept == 0, 8))][:50]
        asked = [list(prompts[s]) for s in slots]
        states = engine.hidden(asked, slots)
        assert states.dtype == torch.float32
        assert states.shape == (len(slots), engine.capabilities.hidden) == (len(slots), 32)
        assert close(states, [plain(model, p) for p in asked])
        if turn % 3 == 0:
            engine.generate(asked, slots, [], 3)
        if turn % 3 == 1:
            engine.score(asked, slots, [[[5], [6, 7]]] * len(slots))


def test_a_state_is_what_the_head_makes_the_logits_of():
    model = sharp("llama")
    engine = TransformersEngine(model, slots=2, tokenizer=build_tokenizer())
    prompts = [[4, 5, 6, 7], [9, 8]]
    with torch.inference_mode():
        made = model.lm_head(engine.hidden(prompts, [1, 0])).log_softmax(-1)
    for scores, logprobs in zip(engine.score(prompts, [1, 0], [[[t] for t in range(9)]] * 2), made, strict=True):
        assert scores.tolist() == pytest.approx(logprobs[:9].tolist(), abs=1e-4)


def test_a_prompt_that_was_read_is_not_fed_again_but_for_its_last_token():
    model = build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=1)
    engine = TransformersEngine(model, slots=2, tokenizer=build_tokenizer())
    prompt = list(range(3, 33))
    engine.hidden([prompt], [1])
    assert engine.computed_tokens == [0, 30]
    engine.score([prompt], [1], [[[5], [6]]])
    assert engine.computed_tokens == [0, 31]
    engine.generate([prompt], [1], [], 1)
    assert engine.computed_tokens == [0, 32]
    engine.hidden([[*prompt, 7, 8]], [1])
    assert engine.computed_tokens == [0, 34]
    engine.forget(1)
    engine.hidden([prompt], [1])
    assert engine.computed_tokens == [0, 64]
    assert (engine.counters.prompt_tokens, engine.counters.cached_tokens, engine.counters.written_tokens) == (
        30 * 4 + 32,
        29 + 29 + 30,
        1,
    )


def test_reading_joins_what_others_ask():
    model, rng = sharp("llama"), random.Random(2)
    engine, fresh = (TransformersEngine(model, slots=3, tokenizer=build_tokenizer()) for _ in range(2))
    requests = [GenerateRequest(draw(rng, 6), 0, [], 9), ScoreRequest(draw(rng, 4), 1, [[5], [6, 7]])]
    requests += [HiddenStateRequest(draw(rng, n), slot) for n, slot in ((7, 2), (3, 0), (12, 1), (1, 2))]
    rng.shuffle(requests)
    left, answered = list(requests), []
    while len(answered) < len(requests):
        if left:
            engine.submit(left.pop())
        answered += engine.step()
    assert sorted(map(id, answered)) == sorted(map(id, requests))
    for request in requests:
        if isinstance(request, HiddenStateRequest):
            assert close(request.hidden[None], [plain(model, request.prompt)])
        elif isinstance(request, GenerateRequest):
            assert request.written == fresh.generate([request.prompt], [0], [], 9)[0]
        else:
            [expected] = fresh.score([request.prompt], [0], [request.candidates])
            assert request.scores.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_what_cannot_be_read_is_refused_and_nothing_is_nothing():
    engine = TransformersEngine(sharp("llama"), slots=1, tokenizer=build_tokenizer())
    with pytest.raises(ContextOverflowError, match="a prompt of 65 tokens"):
        engine.hidden([[5] * 65], [0])
    with pytest.raises(ValueError, match="empty prompt"):
        engine.hidden([[]], [0])
    assert engine.hidden([[5] * 64], [0]).shape == (1, 32)
    assert engine.hidden([], []).shape == (0, 32)


def test_vllm_says_that_it_has_none():
    engine = VllmEngine.__new__(VllmEngine)  # what is refused never reaches vLLM
    engine._loaded, engine.context = Loaded(None, None, None, True, "", {}, 0), 100
    with pytest.raises(InputError, match="vLLM gives no hidden states: .* hashed words or a sentence encoder"):
        engine.hidden([[5]], [0])


def test_an_agent_reads_its_present_prompts_and_then_acts_on_them():
    model = build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=1)
    agent = Agent(TransformersEngine(model, 3, build_tokenizer()), "action")
    agent.start(0, "go to the red ball", [], "You see a red ball 2 steps forward")
    agent.start(2, "pick up a key", [Step(observation="You see nothing", action="turn left")], "You see a wall")
    states = agent.hidden([2, 0])
    assert close(states, [plain(model, agent.prompt(s)) for s in (2, 0)])
    assert agent.engine.computed_tokens == [len(agent.prompt(0)), 0, len(agent.prompt(2))]
    agent.act([0, 2], [["turn left", "go forward"]] * 2, [0, 0])
    assert agent.engine.computed_tokens == [len(agent.prompt(0)) + 1, 0, len(agent.prompt(2)) + 1]
