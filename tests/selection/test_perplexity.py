"""Perplexities of whole trajectories in one pass, against one turn at a time behind its prompt."""

import math
import random

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from atlas_ray.agents.rendering import Renderer
from atlas_ray.engines import TransformersEngine
from atlas_ray.models.loading import load_model, load_tokenizer
from atlas_ray.models.tiny import build_model, build_tokenizer, vocabulary
from atlas_ray.selection.perplexity import select_by_perplexity, step_perplexities
from atlas_ray.trajectory import Step, Trajectory

WORDS = ["turn left", "go forward", "pick up the red ball", "You see a wall 2 steps left", "nothing known here", "done"]


def episode(name, steps, seed=0, long=1):
    rng = random.Random(f"{seed}/{name}")

    def text():
        return ", ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 3)))

    made = tuple(
        Step(observation=", ".join(text() for _ in range(long)), thought=rng.choice([None, text()]), action=text())
        for _ in range(steps)
    )
    return Trajectory(
        id=name, env="e", task="t", seed=0, instruction=text(), steps=made, score=1, success=True, source="expert"
    )


EPISODES = [episode(f"t{n}", n, long=1 + n % 3) for n in (1, 7, 3, 12, 2, 5)]
# as long as t7, so that the two stand side by side in every pass
EPISODES.append(EPISODES[1].model_copy(update={"id": "twin", "steps": EPISODES[1].steps[::-1]}))


@pytest.fixture(scope="module")
def model():
    return build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=1).eval()


def capped():
    """A model whose logits are more than the head's output: scaled embeddings, capped logits."""
    config = Gemma2Config(
        vocab_size=len(vocabulary()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        final_logit_softcapping=2.0,
        initializer_range=0.3,
        sliding_window=16,
        pad_token_id=0,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma2ForCausalLM(config).eval()


def engine_score(model, tokenizer):
    engine = TransformersEngine(model, slots=1, tokenizer=tokenizer)
    return lambda prompt, turn: float(engine.score([prompt], [0], [[turn]])[0][0])


def naive_score(model):
    def score(prompt, turn):
        with torch.inference_mode():
            logp = model(input_ids=torch.tensor([[*prompt, *turn]])).logits[0].double().log_softmax(-1)
        return sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(turn))

    return score


def one_turn_at_a_time(renderer, score, trajectory):
    found = []
    for t, step in enumerate(trajectory.steps):
        turn = renderer.turn(step)
        assert turn[-1] == renderer.end_of_turn
        prompt = renderer.prompt(trajectory.instruction, trajectory.steps[:t], step.observation)
        found.append(math.exp(-score(prompt, turn) / len(turn)))
    return found


@pytest.mark.parametrize("style", ["react", "action"])
@pytest.mark.parametrize("name", [None, "tiny-quick"])
def test_equals_the_engines_score_of_each_turn_behind_its_prompt(model, style, name):
    used, tokenizer = (model, build_tokenizer()) if name is None else (load_model(name), load_tokenizer(name))
    renderer = Renderer(tokenizer, style)
    found, problems = step_perplexities(used, renderer, EPISODES)
    assert problems == [] and list(found) == [t.id for t in EPISODES]
    score = engine_score(used, tokenizer)
    for trajectory in EPISODES:
        expected = one_turn_at_a_time(renderer, score, trajectory)
        assert found[trajectory.id] == pytest.approx(expected, rel=1e-4)


def test_logits_that_are_more_than_the_heads_output():
    used, renderer = capped(), Renderer(build_tokenizer())
    found, _ = step_perplexities(used, renderer, EPISODES[:4])
    for trajectory in EPISODES[:4]:
        expected = one_turn_at_a_time(renderer, naive_score(used), trajectory)
        assert found[trajectory.id] == pytest.approx(expected, rel=1e-4)
    used.config.final_logit_softcapping = None
    plain, _ = step_perplexities(used, renderer, EPISODES[:4])
    assert plain["t7"] != pytest.approx(found["t7"], rel=1e-2), "the test must see the capping"


def test_order_padding_and_who_shares_a_pass_change_nothing(model):
    renderer = Renderer(build_tokenizer())
    whole, _ = step_perplexities(model, renderer, EPISODES)
    shuffled = random.Random(3).sample(EPISODES, len(EPISODES))
    for order, micro_tokens in ((shuffled, 4096), (EPISODES, 1), (shuffled, 300)):
        found, _ = step_perplexities(model, renderer, order, micro_tokens)
        assert list(found) == [t.id for t in order]
        for name, perplexities in found.items():
            assert perplexities == pytest.approx(whole[name], rel=1e-5)
    alone, _ = step_perplexities(model, renderer, EPISODES[-1:])
    assert alone["twin"] == pytest.approx(whole["twin"], rel=1e-5) and whole["twin"] != whole["t7"]
    assert step_perplexities(model, renderer, []) == ({}, [])


def test_passes_are_few_and_of_bounded_size_and_leave_the_model_as_it_was(model, monkeypatch):
    passes, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda **given: passes.append(given["input_ids"].shape) or forward(**given))
    renderer = Renderer(build_tokenizer())
    step_perplexities(model, renderer, EPISODES)
    assert [rows for rows, _ in passes] == [len(EPISODES)], "one pass, not one a step"
    passes.clear()
    step_perplexities(model, renderer, EPISODES, micro_tokens=300)
    assert sum(rows for rows, _ in passes) == len(EPISODES) and len(passes) > 1
    assert all(rows == 1 or rows * length <= 300 for rows, length in passes)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_trajectory_longer_than_the_context_is_named_and_not_cut(model):
    renderer = Renderer(build_tokenizer())
    sizes = sorted(len(renderer.render(t).ids) for t in EPISODES)
    small = build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=1, context=sizes[-2]).eval()
    found, problems = step_perplexities(small, renderer, EPISODES)
    assert problems == [f"t12: has {sizes[-1]} tokens, the model takes {sizes[-2]}, so it has no perplexities"]
    whole, _ = step_perplexities(model, renderer, EPISODES)
    assert set(found) == set(whole) - {"t12"}
    assert found["t1"] == pytest.approx(whole["t1"], rel=1e-5)


def test_perplexities_that_are_no_numbers_are_a_problem():
    broken = build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=1).eval()
    with torch.no_grad():
        broken.get_input_embeddings().weight[vocabulary().index("done")] = torch.nan
    renderer = Renderer(build_tokenizer())
    found, problems = step_perplexities(broken, renderer, EPISODES[:2])
    # the embeddings are tied, so every logit row has a NaN
    assert found == {}
    assert problems == [f"{name}: the model gives step 0 no finite perplexity" for name in ("t1", "t7")]


def test_selection_takes_the_highest_and_the_earlier_of_equals():
    made = select_by_perplexity(episode("t", 5), [2.0, 7.0, 12.34, 7.0, 1.0], 0.4, "m")
    assert made.critical == (1, 2) and made.selector == "perplexity" and made.model == "m" and made.fraction == 0.4
    assert made.reasons == {1: "perplexity 7.0", 2: "perplexity 12.3"}
    assert select_by_perplexity(episode("t", 5), [3.0] * 5, 0.4, "m").critical == (0, 1)
    assert select_by_perplexity(episode("t", 1), [1.0], 0.3, "m").critical == (0,)
