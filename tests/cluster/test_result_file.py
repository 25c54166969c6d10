"""Results stand in their file before anything is made of them."""

import pytest

from atlas_ray.cluster.result_file import ResultFile, log_lost_workers
from atlas_ray.cluster.workers import ActorPool
from atlas_ray.rundir.files import RunLog, jsonl_rows


def squares(task, state):
    for n in task:
        yield n, n * n


def test_a_killed_run_goes_on_behind_what_stands_in_the_file(tmp_path):
    file = ResultFile(tmp_path / "below" / "results.jsonl")
    assert list(file.rows()) == []
    row = lambda task, result: [{"n": result[0], "square": result[1]}] if result[0] % 2 else []  # noqa: E731
    with ActorPool(0) as pool:
        stream = file.stream(pool, squares, [(1, 2, 3, 4, 5)], row)
        assert [next(stream)[1] for _ in range(3)] == [(1, 1), (2, 4), (3, 9)]
        assert list(jsonl_rows(file.path)) == [{"n": 1, "square": 1}, {"n": 3, "square": 9}]
    with file.path.open("a") as half:
        half.write('{"n": 5, "squ')
    assert [row["n"] for row in file.rows()] == [1, 3]
    assert file.path.read_text().endswith("9}\n"), "what the kill cut is gone"
    with ActorPool(0) as pool:
        assert [result for _, result in file.stream(pool, squares, [(5,)], row)] == [(5, 25)]
    assert [row["n"] for row in file.rows()] == [1, 3, 5]


def test_a_row_that_cannot_be_written_is_not_handed_on(tmp_path):
    file = ResultFile(tmp_path / "results.jsonl")
    with ActorPool(0) as pool, pytest.raises(ValueError, match="JSON compliant"):
        next(file.stream(pool, squares, [(1,)], lambda task, result: [{"n": float("nan")}]))


def test_a_lost_worker_is_an_event_of_the_run(tmp_path):
    log_lost_workers(RunLog(tmp_path), "stage", lambda task: {"task": task})("a", 2, "died")
    log_lost_workers(RunLog(tmp_path), "stage")("a", 1, "hung")
    told = {"stage": "stage", "event": "retried"}
    rows = [told | {"task": "a", "attempt": 2, "why": "died"}, told | {"attempt": 1, "why": "hung"}]
    assert list(jsonl_rows(tmp_path / "events.jsonl")) == rows
