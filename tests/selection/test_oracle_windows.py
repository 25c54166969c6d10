"""Trajectories that do not fit a context, what a run would cost, what is kept of it, and shares that stand out."""

import json
import math
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_script import RECORD, goal, good, mark, trajectory

from atlas_ray.engines.chat_endpoint import Completion
from atlas_ray.errors import InputError
from atlas_ray.selection.chat_backend import tokens_of
from atlas_ray.selection.oracle import (
    Estimate,
    Oracle,
    OracleConfig,
    OracleUsage,
    Prices,
    Unannotated,
    price,
    share_warnings,
)
from atlas_ray.selection.oracle_answer import Limits, OracleAnswer, OracleCache
from atlas_ray.selection.oracle_prompt import UnfitError, shares, windows
from atlas_ray.trajectory import Annotation, max_critical_steps


class Scripted:
    """A writer that answers in this process."""

    model = "m"

    def __init__(self, script=good):
        self.script, self.conversations = script, []

    def complete(self, conversations, *, seeds, json_schema, return_exceptions, **_):
        self.conversations += conversations
        assert json_schema is not None and len(seeds) == len(conversations)
        return [Completion(self.script({"messages": messages}), 100, 10, "stop") for messages in conversations]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=60),
    st.integers(1, 100),
    st.sets(st.integers(0, 60)),
    st.integers(1, 20),
    st.floats(0.05, 1),
    st.integers(1, 10),
)
def test_every_step_is_in_one_window_and_the_shares_add_up_to_no_more_than_the_cap(
    costs, budget, cuts, longest, fraction, each
):
    if max(costs) > budget:
        with pytest.raises(UnfitError, match="alone|needs"):
            windows(costs, budget, cuts, longest)
        return
    parts = windows(costs, budget, cuts, longest)
    assert [i for part in parts for i in part] == list(range(len(costs)))
    for part in parts:
        assert sum(costs[i] for i in part) <= budget and 1 <= len(part) <= longest
        could = part.stop < len(costs) and any(part.start < c <= part.stop for c in cuts)
        assert not could or part.stop in cuts, "ends where a sub-goal begins, if one begins in it"
    most = max_critical_steps(fraction, len(costs))
    if len(parts) <= most:
        given_ = shares([len(p) for p in parts], most, each)
        assert sum(given_) <= most
        assert all(1 <= n <= min(len(p), max(each, 1)) for n, p in zip(given_, parts, strict=True))
        if each >= len(costs):
            assert sum(given_) == most


def test_marks_go_where_most_steps_are():
    assert shares([10, 10, 10], 9, 99) == [3, 3, 3]
    assert shares([2, 18], 6, 99) == [1, 5]
    assert shares([1, 1, 30], 4, 99) == [1, 1, 2]
    assert shares([30], 9, 4) == [4]


def test_what_fits_is_asked_once():
    backend = Scripted()
    (made,) = Oracle(backend, OracleConfig()).annotate([trajectory(20)])
    assert len(backend.conversations) == 1
    assert made.critical == tuple(range(6))


def long_one(steps=60, words=40):
    return trajectory(steps, observation="You see a red ball and a grey key. " * (words // 8))


@pytest.mark.parametrize("context", [3200, 4000, 6000])
def test_a_long_trajectory_is_planned_first_and_then_marked_in_windows(context):
    backend, long = Scripted(), long_one()
    config = OracleConfig(context=context, max_tokens=1000)
    (made,) = Oracle(backend, config).annotate([long])
    plans = [t for t in backend.conversations if 'First "plan"' in t[1]["content"]]
    parts = [t for t in backend.conversations if t not in plans]
    assert len(plans) >= 1 and len(parts) >= 2
    assert backend.conversations[: len(plans)] == plans

    def record(messages):
        return RECORD.search(messages[1]["content"])[2]

    steps = [i for t in parts for i in map(int, re.findall(r"^step (\d+)$", record(t), re.MULTILINE))]
    assert steps == list(range(60)), "every step in exactly one window, in order"
    listed = [i for t in plans for i in map(int, re.findall(r"^step (\d+)$", record(t), re.MULTILINE))]
    assert listed == list(range(60))
    for i, step in enumerate(long.steps):
        assert sum(f"o| {step.observation}\n" in record(t) for t in parts) == 1
        assert sum(f"t| think {i}\na| act {i}\n" in record(t) + "\n" for t in plans) == 1
    assert not any("o| " in record(t) for t in plans)
    carried = [re.findall(r"^p\| .*$", record(t), re.MULTILINE) for t in parts]
    assert all(p == carried[0] for p in carried) and len(carried[0]) == 2 * len(plans)
    assert carried[0][0].startswith("p| steps 0 to ") and carried[0][-1].startswith("p| steps ")
    so_far = [len(re.findall(r"^p\| ", record(t), re.MULTILINE)) for t in plans]
    assert so_far == [2 * i for i in range(len(plans))], "a later part of the plan goes on from the earlier ones"
    allowed = [int(re.search(r"Mark at most (\d+);", t[1]["content"])[1]) for t in parts]
    assert sum(allowed) <= max_critical_steps(0.3, 60) and min(allowed) >= 1
    assert len(made.critical) == sum(allowed)
    for messages in backend.conversations:
        assert sum(tokens_of(m["content"]) for m in messages) + 1000 <= context


def test_windows_end_where_sub_goals_end():
    def plan(body):
        if 'First "plan"' not in body["messages"][1]["content"]:
            return good(body)
        return json.dumps({"plan": [goal(0, 9), goal(10, 16), goal(17, 33), goal(34, 59)]})

    backend = Scripted(plan)
    list(Oracle(backend, OracleConfig(context=5200, max_tokens=1000)).annotate([long_one()]))
    firsts = [int(re.match(r"Here are the steps (\d+)", t[1]["content"])[1]) for t in backend.conversations[1:]]
    assert firsts[:2] == [0, 17] and 34 in firsts


def test_marks_that_would_not_fit_an_answer_are_asked_in_windows_too():
    backend = Scripted()
    (made,) = Oracle(backend, OracleConfig(context=100_000, max_tokens=1000)).annotate([trajectory(40)])
    assert len(backend.conversations) == 3, "12 marks: a plan and two windows of at most 10"
    assert len(made.critical) == 12


@pytest.mark.parametrize(
    ("made", "config", "said"),
    [
        (trajectory(3, observation="x" * 9000), {"context": 4000, "max_tokens": 600}, "step 0 needs"),
        (trajectory(3, thought="x" * 9000), {"context": 4000, "max_tokens": 600}, "step 0 needs"),
        (trajectory(3, instruction="x" * 9000), {"context": 4000, "max_tokens": 600}, "and 0 are left"),
        (trajectory(20, observation="x" * 1500), {"context": 3600, "max_tokens": 600}, "windows, more than the 6"),
    ],
)
def test_what_no_window_holds_is_left_and_nothing_is_cut(made, config, said):
    backend = Scripted()
    oracle = Oracle(backend, OracleConfig(**config))
    (outcome,) = oracle.annotate([made])
    assert isinstance(outcome, Unannotated) and said in outcome.reason
    assert oracle.usage.unannotated == {"too long": 1}
    assert backend.conversations == [], "nothing is paid for what cannot succeed"
    assert oracle.estimate([made]).too_long == 1


def test_windows_without_any_mark_leave_the_trajectory_unannotated():
    def none(body):
        return good(body) if 'First "plan"' in body["messages"][1]["content"] else '{"critical": []}'

    oracle = Oracle(Scripted(none), OracleConfig(context=4000, max_tokens=1000))
    (outcome,) = oracle.annotate([long_one()])
    assert "holds a critical step" in outcome.reason
    assert oracle.usage.unannotated == {"nothing marked": 1} and oracle.usage.refused == {}


def test_a_single_window_must_have_a_mark_as_a_whole_trajectory_must():
    def none(body):
        return good(body) if 'First "plan"' in body["messages"][1]["content"] else '{"critical": []}'

    backend = Scripted(none)
    oracle = Oracle(backend, OracleConfig(max_tokens=1000))
    (outcome,) = oracle.annotate([trajectory(30)])
    assert "marks no step" in outcome.reason and len(backend.conversations) == 3
    assert "Mark at least one." in backend.conversations[1][1]["content"]


def test_an_estimate_asks_nothing_and_is_what_a_run_then_asks(tmp_path):
    items = [trajectory(id="a"), trajectory(8, id="b"), long_one(), trajectory(2, id="c", observation="x" * 9000)]
    for cut in ({}, {"context": 4000, "max_tokens": 1000}):
        backend = Scripted()
        oracle = Oracle(backend, OracleConfig(**cut), tmp_path / f"{len(cut)}.jsonl")
        guess = oracle.estimate(items)
        assert backend.conversations == [] and (guess.trajectories, guess.cache_hits) == (4, 0)
        list(oracle.annotate(items))
        sent = sum(tokens_of(m["content"]) for t in backend.conversations for m in t)
        assert guess.calls == pytest.approx(oracle.usage.requests, abs=2 if cut else 0)
        assert guess.prompt_tokens == pytest.approx(sent, rel=0.35 if cut else 0.02)
        assert guess.completion_tokens <= guess.calls * oracle.config.max_tokens
        again = oracle.estimate(items)
        assert (again.calls, again.prompt_tokens, again.too_long) == (0, 0, int(bool(cut)))
        assert again.cache_hits == oracle.usage.requests
    assert price(guess, Prices(2.0, 10.0)) == pytest.approx(guess.prompt_tokens * 2e-6 + guess.completion_tokens * 1e-5)


def test_a_better_count_is_used():
    few = Oracle(Scripted(), OracleConfig(), count=lambda text: len(text.split())).estimate([trajectory()])
    assert few.prompt_tokens < Oracle(Scripted(), OracleConfig()).estimate([trajectory()]).prompt_tokens
    assert tokens_of("é" * 10) == 10 and tokens_of("abc") == 2 and tokens_of("\ud800") == 1


def test_a_cache_survives_a_kill_and_trusts_nobody(tmp_path):
    path = tmp_path / "answers.jsonl"
    limits = Limits(0, 5, plan=False, most=2)
    cache = OracleCache(path)
    cache.put("a", json.dumps({"critical": [mark(1)]}), model="m")
    cache.put("b", json.dumps({"critical": [mark(i) for i in range(6)]}))
    cache.put("c", "[1, 2]")
    with path.open("a") as file:
        file.write('{"key": "d", "ans')
    again = OracleCache(path)
    assert [m.index for m in again.get("a", limits).critical_steps] == [1]
    assert again.get("b", limits) is again.get("c", limits) is again.get("d", limits) is None
    again.put("d", json.dumps({"critical": []}))
    assert OracleCache(path).get("d", limits).critical_steps == ()
    for wrong in ("[1]\n", '{"answer": "x"}\n', "no\n"):
        path.write_text(wrong)
        with pytest.raises(InputError, match=r"answers.jsonl"):
            OracleCache(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fraction", 0),
        ("fraction", 1.1),
        ("fraction", math.nan),
        ("max_tokens", 500),
        ("context", 4096),
        ("temperature", -1.0),
        ("max_reprompts", -1),
        ("batch", 0),
    ],
)
def test_a_config_that_cannot_work_is_refused(field, value):
    with pytest.raises(InputError) as caught:
        OracleConfig(**{field: value})
    assert caught.value.field == field


def test_what_goes_in_and_comes_out_can_cross_processes():
    usage = OracleUsage(refused={"too many": 2}, prompt_tokens=1_000_000, completion_tokens=500_000)
    for value in (OracleConfig(), usage, Unannotated("a", "b"), Prices(1, 2), Estimate(3), OracleAnswer((), ())):
        assert pickle.loads(pickle.dumps(value)) == value
    assert price(usage, Prices(2.5, 10)) == 7.5


def annotated(env, marked, steps=10, count=10):
    items = [trajectory(steps, id=f"{env}{i}", env=env) for i in range(count)]
    rows = [
        Annotation(trajectory_id=t.id, selector="oracle", fraction=0.3, critical=tuple(range(marked(i))))
        for i, t in enumerate(items)
    ]
    return items, rows


def warned(*groups):
    items, rows = [[x for part in parts for x in part] for parts in zip(*groups, strict=True)]
    return share_warnings(rows, items)


def test_an_environment_that_is_marked_far_less_than_the_others_is_named():
    usual = [annotated(env, lambda i: 2 + i % 2) for env in "BCD"]
    for marked, share in ((0, "0%"), (1, "10%")):
        (line,) = warned(annotated("A", lambda i: marked, count=200), *usual)
        assert line.startswith(f"A: {share} ") and "25%" in line and "83%" in line
    (line,) = warned(annotated("A", lambda i: 3), *(annotated(env, lambda i: 1 + i % 2) for env in "BCD"))
    assert line.startswith("A: 30%")
    assert [x[0] for x in warned(annotated("A", lambda i: 1), usual[0])] == ["A", "B"]


def test_small_samples_small_differences_and_roundings_are_not():
    assert warned(annotated("A", lambda i: 1, count=7), annotated("B", lambda i: 3, count=30)) == []
    full = annotated("B", lambda i: 3, count=200)
    assert warned(annotated("A", lambda i: 2 + (i % 10 < 6), count=200), full) == [], "certain, but small"
    assert warned(annotated("A", lambda i: 1 + 2 * (i % 10 > 2)), full) == [], "large, but uncertain"
    assert warned(annotated("A", lambda i: 2, steps=4), annotated("B", lambda i: 6, steps=20)) == []
    assert warned(annotated("A", lambda i: 1)) == []
    assert share_warnings([], []) == []
