"""What the driver counts of the results that come in."""

import pytest

from atlas_ray.agents import throughput as module
from atlas_ray.agents.throughput import CounterSample, ThroughputMeter
from atlas_ray.engines.base import EngineCounters
from atlas_ray.rundir.files import RunLog
from atlas_ray.rundir.progress import Tracker


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def sample_counters(engine, answered, busy=0.0, worker="1/1", lost=0):
    return CounterSample(
        EngineCounters(engine, busy, answered, 10 * answered, 6 * answered, 4 * answered),
        worker,
        lost,
        {"ok": answered},
    )


def test_totals_are_the_last_word_of_every_engine_whatever_the_order(tmp_path, clock):
    flow = ThroughputMeter("evaluate", RunLog(tmp_path), Tracker("episodes", 9, 0, None), 2)
    # two workers of one engine: the second tells of an earlier moment; the third has an engine of its own
    for seen in (
        sample_counters("a", 7, 2.0),
        sample_counters("a", 5, 1.5, "2/1", 1),
        sample_counters("b", 3, 1.0, "3/1"),
        sample_counters("a", 9, 2.5),
    ):
        flow.add(seen, 4)
    totals = flow.totals()
    assert {k: totals[k] for k in ("episodes", "steps", "prompt_tokens", "cached_tokens", "fed_tokens")} == {
        "episodes": 4,
        "steps": 16,
        "prompt_tokens": 120,
        "cached_tokens": 72,
        "fed_tokens": 48,
    }
    assert (totals["busy_seconds"], totals["answers_asked_again"], totals["replies_ok"]) == (3.5, 1, 9 + 5 + 3)


def test_rates_are_of_the_last_half_minute_and_the_memory_of_them_does_not_grow_with_the_episodes(tmp_path, clock):
    flow = ThroughputMeter("evaluate", RunLog(tmp_path), Tracker("episodes", 9, 0, None), 1)
    for number in range(1, 20_001):  # 200 a second, and four times as many in the second half
        clock[0] += 0.005 if number <= 10_000 else 0.00125
        flow.add(sample_counters("a", number, number / 1000), 3)
    assert len(flow._past) < 200
    # 12.5 s of 800 a second, and 17.5 s of 200 before
    rates = flow.rates()
    assert rates["steps_per_second"] == pytest.approx((10_000 + 3_500) * 3 / 30, rel=0.02)
    assert rates["tokens_per_second"] == pytest.approx((10_000 + 3_500) * 4 / 30, rel=0.02)
    assert rates["engine_busy"] == pytest.approx(13.5 / 30, rel=0.02)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 6, "one each ten seconds"
