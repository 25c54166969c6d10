"""Engine actors: what they answer, what happens when they die or hang, and where Ray puts them."""

import asyncio
import os
import random
import signal
import threading
import time
from dataclasses import replace
from unittest.mock import Mock, call

import pytest
import torch

from atlas_ray.cluster.workers import worker_pool
from atlas_ray.engines import EnginePool, RemoteEngine, TransformersEngine
from atlas_ray.engines.server import EngineServer
from atlas_ray.errors import ContextOverflowError, InputError, WorkerFailedError
from atlas_ray.models.loading import load_model
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.recipe.loading import Engine, Recipe

SETTINGS = Engine(actors=1, timeout=60.0)
STOP = [0]


@pytest.fixture(scope="module")
def leases(ray_session):
    """Two workers' shares of one actor with tiny-quick, three slots each; it is started once for all tests here."""
    with EnginePool(SETTINGS, "tiny-quick", 2, 3) as pool:
        yield pool.leases


def prompts(rng, count):
    return [[rng.randrange(3, 90) for _ in range(rng.randrange(5, 40))] for _ in range(count)]


def play(engine, seed, rounds=6):
    """Growing prompts in three slots, written, sampled and scored: everything that came back."""
    rng, found = random.Random(seed), []
    texts = prompts(rng, 3)
    for turn in range(rounds):
        rows = rng.sample(range(3), 2 + turn % 2)
        asked = [texts[r] for r in rows]
        found.append(engine.generate(asked, rows, STOP, 6))
        found.append(engine.generate(asked, rows, STOP, 4, temperature=1.3, seeds=[seed + turn + r for r in rows]))
        options = [[[7, 8], [9], [7, 10, 11]][: 2 + r % 2] for r in rows]
        found.append([[round(x, 3) for x in s.tolist()] for s in engine.score(asked, rows, options)])
        for row in rows:
            texts[row] += [rng.randrange(3, 90) for _ in range(5)]
    return found


def test_an_actor_answers_as_an_engine_in_this_process(leases):
    remote, local = RemoteEngine(leases[0]), TransformersEngine("tiny-quick", 3)
    assert play(remote, 1) == play(local, 1)
    assert remote.computed_tokens == local.computed_tokens, "the prefix of a slot is kept there too"
    assert (remote.context, remote.parameters, remote.slots) == (local.context, local.parameters, 3)
    for engine in (remote, local):
        engine.forget(1)
        engine.score([[4, 5, 6]], [1], [[[7], [8]]])
        engine.score([[4, 5, 6, 7]], [1], [[[7], [8]]])
        engine.forget(1)
        engine.score([[4, 5, 6, 7]], [1], [[[7], [8]]])
    assert remote.computed_tokens == local.computed_tokens
    assert remote.counters.cached_tokens == local.counters.cached_tokens > 0


def test_an_actor_takes_the_model_that_it_is_asked_for(leases):
    other = [replace(lease, model="tiny-deepthink") for lease in leases]
    assert play(RemoteEngine(other[0]), 4, rounds=2) == play(TransformersEngine("tiny-deepthink", 3), 4, rounds=2)
    assert play(RemoteEngine(leases[1]), 4, rounds=2) == play(TransformersEngine("tiny-quick", 3), 4, rounds=2)
    with pytest.raises(InputError, match="no model of that name"):
        RemoteEngine(replace(leases[0], model="nothing"))
    assert RemoteEngine(leases[0]).parameters == TransformersEngine("tiny-quick", 3).parameters


def test_workers_that_share_an_actor_do_not_see_each_other(leases):
    found = {}

    def work(worker):
        found[worker] = play(RemoteEngine(leases[worker]), 10 + worker)

    threads = [threading.Thread(target=work, args=(w,)) for w in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {w: play(TransformersEngine("tiny-quick", 3), 10 + w) for w in range(2)}


def test_requests_that_join_others_are_answered_as_if_alone():
    from atlas_ray.engines.base import GenerateRequest, ScoreRequest

    def requests():
        rng = random.Random(3)
        made = [GenerateRequest(p, row % 3, STOP, 12, (row % 2) * 1.1, row) for row, p in enumerate(prompts(rng, 8))]
        return made + [ScoreRequest(p, row % 3, [[5, 6], [7]]) for row, p in enumerate(prompts(rng, 4))]

    alone = []
    for request in requests():
        engine = TransformersEngine("tiny-quick", 3)
        engine.submit(request)
        while not (answered := engine.step()):
            pass
        alone.append(answered[0])
    engine, together = TransformersEngine("tiny-quick", 3), requests()
    random.Random(0).shuffle(order := list(range(len(together))))
    answered = []
    while len(answered) < len(together):
        if order:  # one joins at every pass; those whose slot is busy wait for it
            engine.submit(together[order.pop()])
        answered += engine.step()
    assert sorted(map(id, answered)) == sorted(map(id, together))
    for mine, his in zip(together, alone, strict=True):
        if isinstance(mine, GenerateRequest):
            assert mine.written == his.written
        else:
            assert mine.scores.tolist() == pytest.approx(his.scores.tolist(), abs=1e-4)


def test_an_error_reaches_the_one_who_asked_and_the_others_go_on(leases):
    remote = RemoteEngine(leases[0])
    with pytest.raises(ContextOverflowError, match="do not fit the model's 2048"):
        remote.generate([[5] * 2048], [0], STOP, 1)
    with pytest.raises(ValueError, match="without tokens"):
        remote.score([[5]], [0], [[[5], []]])
    assert play(remote, 2) == play(TransformersEngine("tiny-quick", 3), 2)


def test_hidden_states_of_an_actor_are_those_of_a_plain_forward(leases):
    rng, found = random.Random(3), {}
    asked = [[[rng.randrange(3, 60) for _ in range(rng.randint(1, 30))] for _ in range(3)] for _ in range(8)]

    def work(worker):
        remote = RemoteEngine(leases[worker])
        states = [remote.hidden(p, range(3)) for p in asked[worker::2]]
        found[worker] = remote.capabilities.hidden, remote.computed_tokens, states

    threads = [threading.Thread(target=work, args=(w,)) for w in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model = load_model("tiny-quick").eval()
    for worker in range(2):
        width, computed, states = found[worker]
        local = TransformersEngine("tiny-quick", 3)
        for prompts_, got in zip(asked[worker::2], states, strict=True):
            with torch.inference_mode():
                plain = [model(torch.tensor([p]), output_hidden_states=True).hidden_states[-1][0, -1] for p in prompts_]
            assert torch.allclose(got, torch.stack(plain), atol=1e-4)
            local.hidden(prompts_, range(3))
        assert (width, computed) == (local.capabilities.hidden, local.computed_tokens)


def test_a_model_that_cannot_be_loaded_is_an_input_error(tmp_path):
    def info(settings):
        return asyncio.run(EngineServer(settings).info(str(tmp_path), 1))

    threads = torch.get_num_threads()
    with pytest.raises(InputError, match=r"config\.json"):
        info(SETTINGS)
    build_model(hidden=32, layers=1, heads=2, intermediate=32, seed=0).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="at most"):
        info(Engine(actors=1, context=100_000))
    torch.set_num_threads(threads)


def test_workers_are_seated_evenly_and_no_slot_twice(monkeypatch):
    monkeypatch.setattr("atlas_ray.engines.pool.spawn", lambda *_: Mock())
    pool = EnginePool(Engine(actors=3), "tiny-quick", 7, 4)
    asked = [server.load.remote.call_args for server in pool.servers]
    assert asked == [call("tiny-quick", slots) for slots in (12, 8, 8)]
    assert {s.server: s.all_slots for s in pool.leases} == dict(zip(pool.servers, (12, 8, 8), strict=True))
    taken = [(id(s.server), slot) for s in pool.leases for slot in range(s.first, s.first + s.slots)]
    assert len(set(taken)) == len(taken) == 28
    assert len(EnginePool(Engine(actors=3), "tiny-quick", 2, 4).servers) == 2, "no engine without a worker"
    assert EnginePool(Engine(), "tiny-quick", 2, 4).leases == ()


def test_what_ray_does_not_have_is_refused_instead_of_waited_for(ray_session):
    recipe = Recipe.model_validate({"name": "x", "workers": 1, "engine": {"actors": 1, "gpus": 1.0}})
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=r"engine\.gpus: workers and engines ask for 1 GPUs, Ray has 0"):
        worker_pool(recipe, lambda *_: None)
    recipe = Recipe.model_validate({"name": "x", "workers": 1, "engine": {"cpus": 4000.0}})
    with pytest.raises(InputError, match=r"engine\.cpus: .* 4000 CPUs"):
        worker_pool(recipe, lambda *_: None)


@pytest.mark.slow  # (tests/test_faults.py kills one in a run)
def test_what_a_killed_actor_was_asked_is_asked_again(leases):
    import ray

    server = leases[0].server
    RemoteEngine(replace(leases[0], model="tiny-deepthink"))
    remote, done = RemoteEngine(leases[0]), []  # (a restarted one has to load what it was asked for last)
    pid = ray.get(server.pid.remote())
    worker = threading.Thread(target=lambda: done.append(play(remote, 6, rounds=30)))
    worker.start()
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    worker.join()
    assert done == [play(TransformersEngine("tiny-quick", 3), 6, rounds=30)]
    assert remote.lost == 1
    assert ray.get(server.pid.remote()) != pid


@pytest.mark.slow
def test_an_actor_that_hangs_or_is_gone(leases):
    import ray

    server = leases[0].server
    impatient = RemoteEngine(replace(leases[1], timeout=2.0))
    os.kill(ray.get(server.pid.remote()), signal.SIGSTOP)
    assert play(impatient, 5, rounds=1) == play(TransformersEngine("tiny-quick", 3), 5, rounds=1)
    assert impatient.lost >= 1

    ray.kill(server)
    with pytest.raises(WorkerFailedError, match="tiny-quick was lost"):
        RemoteEngine(leases[0]).generate([[5, 6]], [0], STOP, 2)
