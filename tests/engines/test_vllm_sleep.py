"""Engines that give a GPU's memory back for a while, on a stand-in for vLLM: who sleeps, and what wakes them."""

import asyncio
from unittest.mock import Mock

import fake_vllm
import pytest
import ray
import torch
from adapters import save_tuned

from atlas_ray.engines import EnginePool, TransformersEngine, engines_kept, make_engine
from atlas_ray.engines.base import GenerateRequest, ScoreRequest
from atlas_ray.engines.reloading import CannotSleepError
from atlas_ray.engines.server import EngineServer
from atlas_ray.errors import AtlasError
from atlas_ray.recipe.loading import Engine, Recipe

PROMPT, CANDIDATES = [5, 6, 7, 8], [[9], [10, 11], [12]]
SETTINGS = Engine(kind="vllm", context=256)


@pytest.fixture
def gpu(monkeypatch):
    """A vLLM as on a GPU."""
    return fake_vllm.install(monkeypatch, on_cpu=False)


@pytest.fixture
def engine(gpu):
    opened = make_engine(SETTINGS, "tiny-quick", 2, sleeps=True)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    save_tuned(folder := tmp_path_factory.mktemp("tuned") / "whole")
    return str(folder)


def scores(engine):
    return engine.score([PROMPT], [0], [CANDIDATES])[0]


def test_a_question_wakes_it_and_is_answered_as_before(gpu, engine):
    asked = scores(engine)
    engine.sleep()
    engine.sleep()
    assert engine._loaded.llm.llm_engine.asleep and gpu.slept == [1], "weights are kept; the second time is nothing new"
    assert torch.equal(scores(engine), asked)
    engine.sleep()
    assert torch.equal(scores(engine), asked) and gpu.made == 1


def test_weights_are_reloaded_from_sleep(gpu, engine, whole):
    engine.sleep()
    engine.reload(whole)
    assert torch.allclose(scores(engine), scores(TransformersEngine(whole, 1)), atol=1e-3)
    assert gpu.reloaded == [whole]


def test_it_does_not_sleep_over_a_request(gpu, engine):
    engine.submit(GenerateRequest([5, 6], 0, [], 3))
    with pytest.raises(AtlasError, match="on its way"):
        engine.sleep()
    while not engine.step():
        pass
    engine.sleep()


@pytest.mark.parametrize("about", [{"sleep_mode": False}, {"on_cpu": True, "sleep_mode": False}, {"asked": False}])
def test_one_that_was_not_started_so_says_that_it_cannot(monkeypatch, about):
    asked = about.pop("asked", True)
    seen = fake_vllm.install(monkeypatch, **{"on_cpu": False, **about})
    engine = make_engine(SETTINGS, "tiny-quick", 1, sleeps=asked)
    try:
        assert "enable_sleep_mode" not in seen.asked
        with pytest.raises(CannotSleepError):
            engine.sleep()
        assert len(scores(engine)) == 3
    finally:
        engine.close()


def test_it_can_be_closed_asleep_and_where_it_cannot_wake(gpu):
    for room in (True, False):
        engine = make_engine(SETTINGS, "tiny-quick", 1, sleeps=True)
        engine.sleep()
        gpu.no_room = not room
        engine.close()
    gpu.no_room = False
    make_engine(SETTINGS, "tiny-quick", 1).close()


def served(settings, ask, **options):
    """What ``ask`` of a server gives."""

    async def run():
        server = EngineServer(settings, **options)
        try:
            return await ask(server)
        finally:
            if server._engine:
                server._engine.close()

    return asyncio.run(run())


@pytest.mark.parametrize("no_room", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_a_server_goes_on_with_the_same_model_or_another_and_starts_anew_where_it_cannot_wake(
    gpu, whole, no_room, other
):
    model = whole if other else "tiny-quick"

    async def ask(server):
        first = ScoreRequest(list(PROMPT), 0, CANDIDATES)
        [before], _ = await server.answer("tiny-quick", 1, [first])
        assert await server.sleep()
        gpu.no_room = no_room
        [after], _ = await server.answer(model, 1, [ScoreRequest(list(PROMPT), 0, CANDIDATES)])
        return before.scores, after.scores, await server.reloaded(model, 1)

    before, after, how = served(SETTINGS, ask, sleeps=True)
    assert torch.allclose(after, scores(TransformersEngine(model, 1)), atol=1e-3)
    assert torch.equal(before, after) != other
    assert (how.anew, gpu.made) == ((True, 2) if no_room else (False, 1))


def test_a_server_says_that_its_engine_cannot(gpu):
    async def ask(server):
        await server.info("tiny-quick", 1)
        return await server.sleep()

    assert not served(SETTINGS, ask)
    assert not served(Engine(), ask, sleeps=True), "transformers holds its memory"


@pytest.mark.parametrize(
    ("kind", "sleep", "answers", "stays"),
    [
        ("vllm", True, [True, True], True),
        ("vllm", True, [True, False], False),
        ("vllm", True, None, False),  # one is lost
        ("vllm", False, [True, True], False),
        ("transformers", True, [True, True], False),
    ],
)
def test_where_this_process_trains_they_sleep_or_end(monkeypatch, capsys, kind, sleep, answers, stays):
    made, ended = [], []

    def spawn(settings, resources, name, rank, sleeps):
        assert sleeps == sleep
        made.append(Mock())
        return made[-1]

    def get(what, timeout):
        if answers is None:
            raise ray.exceptions.RayActorError
        return answers

    monkeypatch.setattr("atlas_ray.engines.pool.spawn", spawn)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", ended.append)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}])
    tables = {"collect": {"levels": {"GoToLocal": 1}}, "select": {"selectors": ["all"]}}
    tables |= {"finetune": {"arms": [{"selector": "all"}], "workers": 0}}
    with engines_kept(sleep=sleep) as kept:
        with EnginePool(Engine(kind=kind, actors=2, gpus=1.0), "a", 2, 4):
            pass
        kept.make_room(Recipe.model_validate({"name": "x", **tables}), ("finetune",))
        assert (len(kept.idle), len(ended)) == ((2, 0) if stays else (0, 2))
    said = capsys.readouterr()
    assert ("engines sleep" in said.out + said.err) == stays
