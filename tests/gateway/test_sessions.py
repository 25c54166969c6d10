"""Which session a request belongs to, who acts, and that a step asked twice is one."""

import json
from collections import Counter

import pytest
import sqlalchemy as sa
from gateway_parts import chat, recipe

from atlas_ray.gateway.admission import Admission, Admitted, Known
from atlas_ray.gateway.deciding import Decider
from atlas_ray.gateway.replies import ApiError
from atlas_ray.gateway.requests import read_request
from atlas_ray.gateway.store import Store
from atlas_ray.switching.spending import Usage


def request(body, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_request(json.dumps(body).encode(), {"content-type": "application/json", **named})


class Talks:
    """An admission, and what a model answers."""

    def __init__(self, folder, **more):
        made = recipe("http://127.0.0.1:1/v1", **more)
        self.now = 1_000_000.0
        self.store = Store(folder / "s.sqlite")
        decider = Decider(made.gateway, 0)
        counters = [None] * len(made.gateway.models)
        self.admission = Admission(made.gateway, self.store, decider, counters, lambda: self.now)

    def ask(self, *said, key="local", headers=None, **more):
        self.now += 1
        return self.admission.admit(request(chat(*said, **more), **(headers or {})), key)

    def answer(self, admitted, text, usage=Usage(10, 2)):
        message = {"role": "assistant", "content": text}
        return self.admission.answered(admitted, usage, message, text.encode())

    def turn(self, *said, text="ok", **more):
        admitted = self.ask(*said, **more)
        assert isinstance(admitted, Admitted)
        self.answer(admitted, text)
        return admitted


@pytest.fixture
def talks(tmp_path):
    made = Talks(tmp_path, budget={"calls": 5, "tokens": 100_000})
    yield made
    made.store.close()


def test_a_conversation_that_goes_on_is_one_session(talks):
    first = talks.turn("go", text="a")
    second = talks.turn("go", "a", "seen", text="b")
    third = talks.ask("go", "a", "seen", "b", "more")
    assert [t.step for t in (first, second, third)] == [0, 1, 2]
    assert len({t.session for t in (first, second, third)}) == 1
    spent, summed = talks.admission.spending(first.session)
    assert spent == summed and spent.calls == 3
    assert third.left.calls == 2


def test_conversations_that_begin_alike_and_part_are_two_sessions(talks):
    first = talks.turn("go", text="a")
    again = talks.ask("go")
    assert isinstance(again, Known) and again.answer == b"a", "the same request gets the same answer"
    one = talks.turn("go", "a", "left", text="x")
    other = talks.turn("go", "a", "right", text="x")
    assert one.session == first.session != other.session
    assert talks.ask("go", "a", "left", "x", "on").session == one.session
    there = talks.ask("go", "a", "right", "x", "on")
    assert there.session == other.session and (other.step, there.step) == (1, 2), "it goes on counting"
    assert there.left.calls == 5 - 3, "it has spent what was spent until they parted"


def test_the_same_task_begun_anew_is_another_session(talks):
    first = talks.turn("go", text="a")
    talks.turn("go", "a", "on")
    second = talks.turn("go", text="a")
    assert second.session != first.session and second.left.calls == 4
    assert talks.turn("other").session not in (first.session, second.session)
    assert talks.ask("go", key="another").session not in (first.session, second.session)


def test_parallel_conversations_with_other_answers_are_told_apart(talks):
    one = talks.turn("go", text="a", headers={"idempotency_key": "1"})
    two = talks.turn("go", text="b", headers={"idempotency_key": "2"})
    assert one.session != two.session
    assert talks.ask("go", "b", "x").session == two.session
    assert talks.ask("go", "a", "x").session == one.session


def test_an_answer_that_the_client_rewrote_still_goes_on(talks):
    first = talks.turn("go", text="Action: left, since ...")
    assert talks.turn("go", "left", "seen").session == first.session
    one = talks.turn("play", text="a", headers={"idempotency_key": "1"})
    two = talks.turn("play", text="b", headers={"idempotency_key": "2"})
    assert talks.ask("play", "c", "x").session not in (one.session, two.session), "it may be either's"


def test_headers_name_sessions_whatever_is_said(talks):
    first = talks.turn("go", headers={"x_session_id": "one"})
    other = talks.turn("go", headers={"x_session_id": "two"})
    second = talks.turn("something else", headers={"x_litellm_trace_id": "one"})
    assert second.session == first.session != other.session and second.step == 1
    assert talks.turn("go", headers={"x_session_id": "one"}).step == 2, "an older request is a new step"
    assert talks.turn("go").session not in (first.session, other.session)


def test_a_step_that_is_being_answered_is_waited_for_and_a_lost_one_is_paid_again(talks, tmp_path):
    begun = talks.ask("go", headers={"x_atlas_session": "s"})
    again = talks.ask("go", headers={"x_atlas_session": "s"})
    assert isinstance(again, Known) and again.answer is None and again.step == begun.step
    other = Talks(tmp_path, budget={"calls": 5})
    there = other.ask("go", headers={"x_atlas_session": "s"})
    assert isinstance(there, Known) and there.owner == talks.admission.owner != other.admission.owner
    talks.store.owner.close()
    restarted = Talks(tmp_path, budget={"calls": 5})
    after = restarted.ask("go", headers={"x_atlas_session": "s"})
    assert isinstance(after, Admitted) and (after.session, after.step) == (begun.session, 0)
    assert after.left.calls == 3, "what was reserved by the process that is gone stays spent"


def test_an_idempotency_key_is_answered_once_and_is_of_one_request(talks):
    first = talks.turn("go", text="a", headers={"idempotency_key": "k"})
    talks.turn("go", "a", "on")
    assert talks.ask("go", headers={"idempotency_key": "k"}).answer == b"a", "also when the session has gone on"
    with pytest.raises(ApiError) as error:
        talks.ask("stay", headers={"idempotency_key": "k"})
    assert error.value.reason == "idempotency_key_reused"
    fresh = talks.turn("go", headers={"idempotency_key": "k"}, key="somebody else's")
    assert fresh.session != first.session


def test_answers_are_forgotten_after_a_while(talks):
    talks.turn("go", text="a")
    talks.now += 4000
    talks.admission.forget_answers()
    assert isinstance(talks.ask("go"), Admitted)


def test_a_failed_step_is_tried_again_by_the_same_model(tmp_path):
    talks = Talks(tmp_path, switch="random", share=0.5, budget={"calls": 50})
    for n in range(8):
        first = talks.ask(f"go {n}")
        talks.admission.failed(first, free=True)
        again = talks.ask(f"go {n}")
        assert (again.step, again.number, again.probability) == (0, first.number, first.probability)
        assert talks.admission.spending(first.session)[0].calls == again.number


def test_after_a_failure_another_request_goes_on_in_the_session(talks):
    first = talks.turn("go", text="a")
    talks.admission.failed(talks.ask("go", "a", "on", stream=True), free=False)
    other = talks.turn("go", "a", "on", text="b")
    assert (other.session, other.step) == (first.session, 2) and other.left.calls == 5 - 3, "the failed one is paid for"
    assert talks.ask("go", "a", "on", "b", "more").session == first.session
    assert talks.ask("go", "a", "on", seed=1).session != first.session, "it has gone on"


def test_limits_are_made_tighter_and_stay_so(talks):
    talks.turn("go", headers={"x_session_id": "s"}, model="londi@calls=2", text="a")
    assert talks.turn("b", headers={"x_session_id": "s"}, model="londi@calls=9").left.calls == 0
    assert talks.turn("c", headers={"x_session_id": "s"}).number == 0, "QUICK acts when no call is left"


def test_an_empty_budget_is_refused_where_the_recipe_says_so(tmp_path):
    talks = Talks(tmp_path, budget={"calls": 1}, on_empty="refuse")
    talks.turn("go", text="a")
    with pytest.raises(ApiError) as error:
        talks.ask("go", "a", "on")
    assert (error.value.status, error.value.reason) == (402, "budget_exceeded")
    assert talks.ask("go", "a", "on", model="quick").number == 0


def test_quick_is_refused_too_once_tokens_are_used_up(tmp_path):
    talks = Talks(tmp_path, budget={"tokens": 900})
    first = talks.turn("go", text="a")
    assert first.reserved.tokens <= 900
    talks.answer(talks.ask("go", "a", "x"), "b", usage=None)
    with pytest.raises(ApiError) as error:
        talks.ask("go", "a", "x", "b", "y")
    assert error.value.status == 402


def test_one_of_three_models_is_drawn_of_those_that_fit(tmp_path):
    three = [
        {"model": m, "base_url": "http://127.0.0.1:1/v1", "key_variable": ""} for m in ("small", "middle", "large")
    ]
    three[2] |= {"price_completion": 10.0}
    talks = Talks(tmp_path, models=three, switch="quick", explore=0.6, budget={"usd": 0.05, "calls": 1})
    drawn = Counter((a.number, round(a.probability, 6)) for a in (talks.ask(f"go {n}") for n in range(60)))
    assert set(drawn) == {(0, 0.6), (1, 0.2), (2, 0.2)}
    few = {
        (a.number, round(a.probability, 6)) for a in (talks.ask(f"on {n}", model="londi@usd=0.01") for n in range(40))
    }
    assert few == {(0, 0.7), (1, 0.3)}, "the largest does not fit"
    assert talks.ask("which", model="deepthink").number == 2


def test_no_statement_of_a_step_goes_through_all_sessions(talks):
    engine, told = talks.store._engine, []
    sa.event.listen(engine, "before_cursor_execute", lambda *a: told.append((a[2], a[3])))
    talks.turn("go", text="a")
    talks.turn("go", "a", "on")
    talks.turn("go", "rewritten", "on", "and", "on")
    talks.turn("go", headers={"x_session_id": "s", "idempotency_key": "k"})
    talks.admission.forget_answers()
    with engine.connect() as line:
        explained = [s for s in told if s[0].startswith(("SELECT", "UPDATE"))]
        plans = [row[3] for s, values in explained for row in line.exec_driver_sql(f"EXPLAIN QUERY PLAN {s}", values)]
    assert len(plans) > 20 and not [plan for plan in plans if plan.startswith("SCAN")]
    unnamed = [s for s, _ in told if "coalesce(sessions.name" in s]
    assert unnamed and any("ix_steps_same (fingerprint=?)" in plan for plan in plans), "not by the key"


def test_a_key_has_a_total_for_a_day(tmp_path):
    talks = Talks(tmp_path, daily={"calls": 2})
    assert [talks.turn(f"go {n}").number for n in range(3)] == [1, 1, 0]
    assert talks.turn("go", key="another").number == 1
    talks.now += 86_400
    assert talks.turn("tomorrow").number == 1


def test_the_probability_is_the_share_with_which_a_model_acts(tmp_path):
    talks = Talks(tmp_path, switch="random", share=0.3, explore=0.2)
    seen = Counter((a.number, round(a.probability, 6)) for a in (talks.ask(f"go {n}") for n in range(400)))
    assert set(seen) == {(0, 0.66), (1, 0.34)}
    assert abs(seen[1, 0.34] / 400 - 0.34) < 0.1
    assert {talks.ask(f"only {n}", model="quick").probability for n in range(5)} == {1.0}
    empty = {talks.ask(f"none {n}", model="londi@calls=0") for n in range(5)}
    assert {(a.number, a.probability, a.reserved.calls) for a in empty} == {(0, 1.0, 0)}
