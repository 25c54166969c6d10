"""The pool of actors: nothing that was finished is lost, nothing is done twice, and errors arrive as they are."""

import os
import signal
import time

import pytest

from atlas_ray.cluster.workers import ActorPool
from atlas_ray.errors import InputError, WorkerFailedError


def test_a_killed_actor_costs_only_its_task(ray_session):
    def slow_square(task, state):  # local, so that it reaches the actors by value
        time.sleep(0.3)
        yield task * task

    retried = []
    with ActorPool(2, on_retry=lambda task, n, why: retried.append(task)) as pool:
        results = {}
        for task, result in pool.stream(slow_square, range(8)):
            if not results:
                os.kill(pool.pids()[0], signal.SIGKILL)
            assert task not in results
            results[task] = result
    assert results == {n: n * n for n in range(8)}
    assert len(retried) == 1


def test_a_task_that_always_kills_its_actor_is_an_error(ray_session):
    def suicide(task, state):
        os.kill(os.getpid(), signal.SIGKILL)
        yield

    with ActorPool(1, retries=1) as pool, pytest.raises(WorkerFailedError, match="died 2 times"):
        list(pool.stream(suicide, [1]))


def test_an_error_of_the_job_arrives_as_itself(ray_session):
    def bad_input(task, state):
        yield 1
        raise InputError("wrong", "file.jsonl", 3, "field")

    with ActorPool(1) as pool, pytest.raises(InputError, match="file.jsonl:3: field: wrong"):
        list(pool.stream(bad_input, [1]))


def test_results_come_as_they_are_made_and_a_killed_actor_costs_only_what_it_had_not_given(ray_session):
    def count(task, state):
        for n in range(*task):
            time.sleep(0.05)
            yield n, os.getpid()

    def rest(task, got):
        return (task[0] + len(got), task[1]) if task[0] + len(got) < task[1] else None

    retried, seen = [], []
    with ActorPool(2, on_retry=lambda task, n, why: retried.append((task, n))) as pool:
        for _, (n, pid) in pool.stream(count, [(0, 30), (100, 130)], rest):
            seen.append(n)
            if not retried and len(seen) >= 8 and max(seen) >= 100 > min(seen):
                os.kill(pid, signal.SIGKILL)  # both tasks have given results, and neither is done
                retried.append(None)
    assert sorted(seen) == [*range(30), *range(100, 130)], "each once: it goes on where it was"
    assert len(retried) == 2


@pytest.mark.slow
def test_of_a_long_task_the_driver_keeps_a_bounded_number_of_results(ray_session):
    def count(task, state):
        for n in range(*task):
            yield n, os.getpid()

    asked, retried, seen = [], [], []

    def rest(task, got):
        asked.append(len(got))
        return (task[0] + len(got), task[1]) if task[0] + len(got) < task[1] else None

    with ActorPool(1, retries=1, on_retry=lambda task, n, why: retried.append(task)) as pool:
        for task, (n, pid) in pool.stream(count, [(0, 500)], rest):
            seen.append(n)
            assert task[1] == 500
            if n in (100, 333):
                os.kill(pid, signal.SIGKILL)
    assert seen == list(range(500))
    assert max(asked) <= 64
    assert len(retried) == 2


@pytest.mark.slow
def test_a_task_that_gets_on_may_lose_more_actors_than_one_that_does_not(ray_session):
    def one_and_die(task, state):
        yield task[0]
        time.sleep(0.2)
        if len(task) > 1:
            os.kill(os.getpid(), signal.SIGKILL)

    with ActorPool(1, retries=1) as pool:
        found = [n for _, n in pool.stream(one_and_die, [(1, 2, 3)], lambda task, got: task[len(got) :] or None)]
    assert found == [1, 2, 3]


def test_a_silent_actor_is_replaced(ray_session, tmp_path):
    mark = tmp_path / "hung"

    def hang_once(task, state):
        yield "first"
        if task == "hang" and not mark.exists():
            mark.touch()
            time.sleep(600)
        yield "second"

    retried = []

    def on_retry(task, attempt, why):
        retried.append(why)
        pool.timeout = 60.0  # the actor that takes its place has to begin first

    with ActorPool(1, on_retry=on_retry) as pool:
        assert [r for _, r in pool.stream(hang_once, ["go"], lambda task, got: task)] == ["first", "second"]
        pool.timeout = 2.0
        found = [r for _, r in pool.stream(hang_once, ["hang"], lambda task, got: task)]
    assert found == ["first", "first", "second"]
    assert retried == ["no result for 2 s: taken for hung"]


def _devices(task, state):
    yield os.environ.get("CUDA_VISIBLE_DEVICES")


def test_an_actor_that_asks_for_no_gpu_sees_none(ray_session):
    with ActorPool(1, cpus=0.5) as pool:
        assert [seen for _, seen in pool.stream(_devices, [0])] == [""]
