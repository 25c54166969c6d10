"""Other weights for a vLLM that runs, on a stand-in for it: what is in use then, and when it has to be started anew."""

import fake_vllm
import pytest
import torch
from adapters import save_adapter, save_tuned

from atlas_ray.engines import TransformersEngine, exchange, make_engine
from atlas_ray.engines.base import GenerateRequest
from atlas_ray.engines.probe import TOLERANCE, expected, given
from atlas_ray.engines.reloading import CannotReloadError, Reloaded, StaleWeightsError
from atlas_ray.errors import AtlasError, InputError
from atlas_ray.preflight import check
from atlas_ray.recipe.loading import Engine, Recipe

PROMPT, CANDIDATES = [5, 6, 7, 8], [[9], [10, 11], [12]]
SETTINGS = Engine(kind="vllm", context=256)


@pytest.fixture
def vllm(monkeypatch):
    return fake_vllm.install(monkeypatch)


@pytest.fixture
def engine(vllm):
    """One with tiny-quick and room for adapters, closed at the end, and so is what takes its place."""
    held = [make_engine(SETTINGS, "tiny-quick", 2, rank=8)]
    yield held[0]
    held[0].close()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """tiny-quick with other weights, whole and as two adapters over it."""
    folder = tmp_path_factory.mktemp("tuned")
    save_tuned(folder / "whole")
    for name, rank in (("one", 4), ("two", 8), ("large", 16)):
        save_adapter(folder / name, rank)
    return folder


def scores(engine):
    return engine.score([PROMPT], [0], [CANDIDATES])[0]


def like(engine, model):
    """Whether an engine scores as transformers does with a model."""
    return torch.allclose(scores(engine), scores(TransformersEngine(str(model), 1)), atol=1e-3)


def test_reloaded_weights_are_in_use_and_nothing_of_the_old_ones(vllm, engine, tuned):
    asked = scores(engine)
    counted, computed = engine.counters, list(engine.computed_tokens)
    whole = str(tuned / "whole")
    told = engine.reload(whole, expected=expected(whole, "float32", 256))
    assert told.off < TOLERANCE["float32"] < 0.05 < told.before
    assert engine.counters is counted and engine.computed_tokens == computed, "the probe is not counted"
    assert like(engine, whole) and not torch.allclose(scores(engine), asked, atol=0.01)
    engine.reload("tiny-quick")
    assert torch.equal(scores(engine), asked)
    assert vllm.made == 1 and len(vllm.reloaded) == 2


def test_adapters_are_taken_by_name_and_put_off_again(vllm, engine, tuned):
    for name in ("one", "two", "one"):
        place = str(tuned / name)
        told = engine.reload("tiny-quick", place, expected(place, "float32", 256))
        assert told.off < TOLERANCE["float32"] < told.before
        assert like(engine, place)
    whole = str(tuned / "whole")
    engine.reload(whole)
    assert like(engine, whole)
    assert (vllm.made, vllm.reloaded, vllm.asked["max_lora_rank"]) == (1, [whole], 8)


def test_what_vllm_cannot_take_changes_nothing(vllm, engine, tuned):
    with pytest.raises(CannotReloadError, match="another hidden_size"):
        engine.reload("tiny-deepthink")
    with pytest.raises(CannotReloadError, match="no room for an adapter"):
        engine.reload("tiny-quick", tuned / "large")
    with pytest.raises(InputError, match="no LoRA adapter"):
        engine.reload("tiny-quick", tuned / "whole")
    engine.submit(GenerateRequest([5, 6], 0, [], 9))
    with pytest.raises(AtlasError, match="on its way"):
        engine.reload(str(tuned / "whole"))
    while not engine.step():
        pass
    assert like(engine, "tiny-quick") and not vllm.reloaded


@pytest.mark.parametrize("fault", ["ignores", "stuck"])
def test_old_weights_that_stay_in_use_are_noticed(vllm, engine, tuned, fault):
    whole = str(tuned / "whole")
    scores(engine)
    if fault == "ignores":
        vllm.ignores, error = True, StaleWeightsError
    else:
        engine._loaded.llm.llm_engine.stuck, error = True, AtlasError
    with pytest.raises(error):
        engine.reload(whole, expected=expected(whole, "float32", 256))


@pytest.mark.parametrize("fault", [None, "ignores", "other shape", "more slots", "large"])
def test_an_engine_that_cannot_stay_is_started_anew(vllm, engine, tuned, fault):
    model = {"other shape": "tiny-deepthink", "large": str(tuned / "large")}.get(fault, str(tuned / "whole"))
    vllm.ignores = fault == "ignores"
    slots = 3 if fault == "more slots" else 2
    wanted = expected(model, "float32", 256)
    other, told = exchange(engine, SETTINGS, model, slots, 8, wanted)
    try:
        assert like(other, model) and other.slots == slots
        assert (vllm.made, told.anew, other is engine) == ((1, False, True) if fault is None else (2, True, False))
        assert told == Reloaded(anew=True) or told.off < TOLERANCE["float32"]
    finally:
        other.close()


def test_the_probe_of_transformers_is_that_of_a_plain_engine(engine):
    ours, theirs = given(engine), expected("tiny-quick", "float32", 256)
    assert len(ours) == len(theirs) > 20
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert expected("tiny-quick", "float32", 10) == pytest.approx(theirs[:9], abs=1e-5)


def test_a_worker_that_holds_the_model_keeps_its_engine(vllm, tuned):
    from atlas_ray.agents.spec import OpenAgent, agent_spec
    from atlas_ray.cluster.worker_state import WorkerState

    recipe = Recipe.model_validate({"name": "x", "num_envs": 2, "engine": {"kind": "vllm", "context": 256}})
    state, whole = WorkerState(0), str(tuned / "whole")
    try:
        first = agent_spec(recipe, "tiny-quick").open_engine(state)
        assert agent_spec(recipe, whole).open_engine(state) is first
        assert like(first, whole) and vllm.made == 1
        assert agent_spec(recipe, "tiny-deepthink").open_engine(state) is not first
    finally:
        state.get_or_create(OpenAgent).engine.close()


def test_adapters_that_would_lie_over_one_another_are_refused(vllm, tuned):
    lora = {"lora": {"rank": 4}}
    models = [{"model": "tiny-quick"}, {"model": "tiny-deepthink"}]
    switch = {"levels": ["GoToLocalS5N2"], "costs": [0.1], "models": models}
    engine = {"kind": "vllm", "actors": 1}

    def field(**tables):
        try:
            check(Recipe.model_validate({"name": "x", "engine": engine, **tables}))
        except InputError as error:
            return error.field
        return None

    over = {**switch, "models": [{"model": str(tuned / "one")}, {"model": "tiny-deepthink"}]}
    assert field(switch=switch, rounds={"count": 2, "finetune": lora}) == "rounds.tune_from"
    assert field(switch=switch, rounds={"count": 2, "tune_from": "start", "finetune": lora}) is None
    assert field(switch=switch, rounds={"count": 1, "finetune": lora}) is None
    assert field(switch=over, rounds={"count": 1, "finetune": lora}) == "rounds.finetune.lora"
    assert field(switch=over, rounds={"count": 1}) is None
