"""Real vLLM: weights that are reloaded, sleep, one model over two processes, and engine actors side by side."""

import re
import threading
from dataclasses import replace

import pytest
import torch
from adapters import save_adapter, save_tuned

from atlas_ray.engines import EnginePool, RemoteEngine, TransformersEngine, engines_kept
from atlas_ray.engines.probe import TOLERANCE, expected
from atlas_ray.engines.vllm import VllmEngine
from atlas_ray.recipe.loading import Engine

PROMPTS, CANDIDATES = [[5, 6, 7, 8], [9, 10]], [[[9], [10, 11], [12]], [[5], [6, 7]]]


@pytest.fixture(autouse=True)
def _on_a_cpu():
    pytest.importorskip("vllm")
    if torch.cuda.is_available():
        pytest.skip("compares float32 on a CPU")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    save_tuned(folder / "whole")
    save_adapter(folder / "adapter", rank=4)
    return folder


def like(engine, reference):
    """Whether an engine writes and scores as another does."""
    written = [e.generate(PROMPTS, [0, 1], [], 12) for e in (engine, reference)]
    scored = [torch.cat(e.score(PROMPTS, [0, 1], CANDIDATES)) for e in (engine, reference)]
    return written[0] == written[1] and torch.allclose(*scored, atol=0.005)


@pytest.mark.vllm
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_weights_are_reloaded_and_adapters_taken_by_name(tuned, processes):
    engine = VllmEngine("tiny-quick", 2, context=256, kv_space_gib=0.25, rank=4, tensor_parallel=processes)
    try:
        assert like(engine, TransformersEngine("tiny-quick", 2))
        whole, adapter = str(tuned / "whole"), str(tuned / "adapter")
        for base, over in ((whole, None), ("tiny-quick", adapter), (whole, None), ("tiny-quick", None)):
            told = engine.reload(base, over, expected(over or base, "float32", 256))
            print(f"{processes} processes, {over or base}: {told}")
            assert told.off < TOLERANCE["float32"] / 2 < 0.05 < told.before
            assert like(engine, TransformersEngine(over or base, 2))
    finally:
        engine.close()


@pytest.mark.vllm
def test_one_that_slept_answers_as_before_and_takes_other_weights(tuned):
    engine = VllmEngine("tiny-quick", 2, context=256, kv_space_gib=0.25)
    engine._loaded = replace(engine._loaded, sleeps=True)  # (a CPU frees nothing; the scheduler stops and goes on)
    try:
        for model in ("tiny-quick", str(tuned / "whole")):
            engine.sleep()
            assert engine._loaded.llm.llm_engine.is_sleeping()
            if model != "tiny-quick":
                engine.reload(model, expected=expected(model, "float32", 256))
            assert like(engine, TransformersEngine(model, 2))
    finally:
        engine.close()


@pytest.mark.vllm
@pytest.mark.slow
def test_engine_actors_share_the_workers_and_take_other_weights(ray_session, tuned, capfd):
    import ray

    settings = Engine(kind="vllm", actors=2, context=256, cache_gib=0.25, timeout=600.0)
    with engines_kept():
        seen = []
        for model in ("tiny-quick", str(tuned / "whole"), "tiny-deepthink"):
            reference = TransformersEngine(model, 2)
            with EnginePool(settings, model, 3, 2) as pool:
                found, engines = {}, [RemoteEngine(lease) for lease in pool.leases]

                def work(worker, engines=engines, found=found):
                    written = engines[worker].generate(PROMPTS, [0, 1], [], 12)
                    scores = torch.cat(engines[worker].score(PROMPTS, [0, 1], CANDIDATES))
                    found[worker] = written, scores, engines[worker].counters

                threads = [threading.Thread(target=work, args=(w,)) for w in range(3)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                written = reference.generate(PROMPTS, [0, 1], [], 12)
                scores = torch.cat(reference.score(PROMPTS, [0, 1], CANDIDATES))
                assert [found[w][0] for w in range(3)] == [written] * 3
                assert all(torch.allclose(found[w][1], scores, atol=0.005) for w in range(3))
                assert len({found[w][2].id for w in range(3)}) == 2, "two engines answered"
                seen.append([ray.get(server.pid.remote()) for server in pool.servers])
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0])) == 2
    said = capfd.readouterr()
    told = [line for line in (said.out + said.err).splitlines() if "took the weights" in line]
    print(*told, sep="\n")
    off, before = map(float, re.search(r"off by (\S+) per token \(with the old ones by (\S+)\)", told[0]).groups())
    assert off < TOLERANCE["float32"] / 2 < 0.05 < before and "anew" not in told[0]
    assert "2 of them started anew" in told[1], "another shape"
