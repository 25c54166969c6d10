"""The same act again: an answer that was lost is told again, pays nothing, and moves nothing."""

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_sessions import HOST, ask, begin, refused, serving, stubbed

from atlas_ray.serving import ActRequest, Answer
from atlas_ray.switching.baselines import Always, Random

GO = ["go left", "go right"]


def seen(observation, step=None, actions=GO, **more):
    return ActRequest(observation, actions, step, **more)


@pytest.mark.parametrize("numbered", [True, False])
def test_the_same_act_again_gets_the_same_answer_and_pays_nothing(numbered):
    sessions, (_, deepthink) = stubbed(Always(1), budget=2)
    key = sessions.open("go", 9)
    asked = seen("a", 0) if numbered else seen("a", may_repeat=True)
    first = sessions.act({key: asked})[key]
    for _ in range(5 if numbered else 1):
        assert sessions.act({key: asked})[key] == first
    about = sessions.about(key)
    assert (about["steps"], about["calls"], about["calls_left"]) == (0, 1, 1)
    assert len(deepthink.asked) == 1
    assert about["usage"][1]["calls"] == 1


def test_a_wall_is_walked_into_as_often_as_the_steps_are_numbered():
    sessions, (quick, _) = stubbed(Always(0))
    key = sessions.open("go", 9)
    for step in range(5):
        assert sessions.act({key: seen("a wall", step)})[key].step == step
        assert sessions.act({key: seen("a wall", step)})[key].step == step
    assert sessions.about(key)["steps"] == 4
    assert quick.seen[0] == ["go", *["a wall"] * 5] and quick.took[0] == ["go left"] * 4


def test_without_a_number_the_same_is_told_again_once_and_then_goes_on():
    sessions, _ = stubbed(Always(0))
    key = sessions.open("go", 9)
    said = ["a", "a", "a", "a", "b", "b", "a"]
    steps = [sessions.act({key: seen(text, may_repeat=True)})[key].step for text in said]
    assert steps == [0, 0, 1, 1, 2, 2, 3]
    others = [
        sessions.act({key: seen("a", actions=offered, may_repeat=True)})[key].step for offered in (GO[:1], GO[::-1])
    ]
    assert others == [4, 5], "other actions are another state"
    told = [sessions.act({key: seen("a")})[key].step for _ in range(2)]
    assert told == [6, 7], "whoever asks in Python loses no answer"


def test_a_step_that_is_not_the_next_is_refused_and_changes_nothing():
    sessions, _ = stubbed(Always(0))
    key = sessions.open("go", 4)
    assert refused(sessions.act({key: seen("a", 1)})[key]) == (409, "step: is 1, and the next one is 0")
    assert isinstance(sessions.act({key: seen("a", 0)})[key], Answer)
    other = "step: was answered for another observation or other actions; the next is 1"
    for wrong in (seen("b", 0), seen("a", 0, GO[::-1]), seen("a", 0, GO[:1])):
        assert refused(sessions.act({key: wrong})[key]) == (409, other)
    assert refused(sessions.act({key: seen("b", 2)})[key]) == (409, "step: is 2, and the next one is 1")
    assert sessions.about(key)["steps"] == 0
    assert sessions.act({key: seen("b", 1)})[key].step == 1
    assert refused(sessions.act({key: seen("a", 0)})[key]) == (409, "step: is 0, and the next one is 2")
    assert sessions.act({key: seen("c", 2)})[key].step == 2
    assert sessions.act({key: seen("d", 3)})[key].step == 3
    assert sessions.act({key: seen("d", 3)})[key].step == 3, "the last one too"
    for late in (seen("e", 4), seen("e"), seen("d", 3)):
        assert refused(sessions.act({key: late})[key]) == (409, "the episode has had its 4 steps")


def test_what_failed_is_no_answer_to_tell_again():
    sessions, (quick, _) = stubbed(Always(0))

    def fails(goals, actions):
        raise RuntimeError("gone")

    quick.does = fails
    key = sessions.open("go", 9)
    assert refused(sessions.act({key: seen("a", 0)})[key])[0] == 503
    assert refused(sessions.act({key: seen("a", 1)})[key]) == (409, "step: is 1, and the next one is 0")
    for other in (seen("b", 0), seen("a", 0, GO[:1])):
        assert refused(sessions.act({key: other})[key])[0] == 409
    quick.does = None
    assert sessions.act({key: seen("a", 0)})[key].step == 0
    assert len(quick.asked) == 1


# --- over HTTP ---


def test_the_same_request_again_over_http():
    sessions, _ = stubbed(Always(1), budget=3)
    with serving(sessions) as port:
        for extra in ({}, {"step": 0}):
            key = begin(port)
            body = {"observation": "a", "actions": GO, **extra}
            first = ask(port, "POST", f"/episodes/{key}/act", body)
            assert first[0] == 200
            assert ask(port, "POST", f"/episodes/{key}/act", body) == first
            about = ask(port, "GET", f"/episodes/{key}")[1]
            assert (about["steps"], about["calls"]) == (0, 1)
            status, told = ask(port, "POST", f"/episodes/{key}/act", {"observation": "a", "actions": GO, "step": 1})
            assert (status, told["step"]) == (200, 1), "a wall"
            status, told = ask(port, "POST", f"/episodes/{key}/act", {"observation": "b", "actions": GO, "step": 5})
            assert status == 409 and told["detail"][0]["loc"] == ["body", "step"]


def test_a_request_that_comes_again_while_it_is_answered_waits_for_the_same_answer():
    gate, at_work = threading.Event(), threading.Event()

    def slow(goals, actions):
        at_work.set()
        assert gate.wait(30)

    sessions, (quick, _) = stubbed(Always(0), does=slow)
    with serving(sessions) as port, ThreadPoolExecutor(4) as threads:
        key = begin(port)
        body = {"observation": "a", "actions": GO, "step": 0}
        first = threads.submit(ask, port, "POST", f"/episodes/{key}/act", body)
        assert at_work.wait(30)
        again = [threads.submit(ask, port, "POST", f"/episodes/{key}/act", body) for _ in range(2)]
        other = ask(port, "POST", f"/episodes/{key}/act", {**body, "observation": "b"})
        assert other == (409, {"detail": "this episode's step before is being answered"})
        gate.set()
        answers = [f.result(30) for f in (first, *again)]
        assert answers[0][0] == 200 and answers[1:] == answers[:1] * 2
        assert len(quick.asked) == 1
        # who has gone in the middle is told when he comes back
        gate.clear()
        at_work.clear()
        leave(port, f"/episodes/{key}/act", {"observation": "b", "actions": GO, "step": 1})
        assert at_work.wait(30)
        gate.set()
        status, told = ask(port, "POST", f"/episodes/{key}/act", {"observation": "b", "actions": GO, "step": 1})
        assert (status, told["step"]) == (200, 1)
        assert len(quick.asked) == 2


def leave(port, path, body):
    """Ask, and be gone before there is an answer."""
    import http.client

    line = http.client.HTTPConnection(HOST, port, timeout=60)
    data = json.dumps(body).encode()
    line.request("POST", path, data, {"Content-Type": "application/json"})
    line.close()


BUDGET, EPISODES, CLIENTS, LENGTH = 2, 2, 32, 6


def hostile(port, seed):
    """Play episodes with lost answers, doubles, wrong numbers and rubbish in between; what was truly done."""
    rng, done = random.Random(seed), []
    for episode in range(EPISODES):
        goal = f"goal {seed} {episode}"
        key = begin(port, goal, LENGTH)
        path, took, shown, calls = f"/episodes/{key}/act", [], [], 0
        for step in range(LENGTH):
            body = {"observation": f"wall {rng.randrange(2)}", "actions": rng.sample(GO, 2), "step": step}
            for _ in range(rng.randrange(3)):
                kind = rng.randrange(5)
                if kind == 0:
                    leave(port, path, body)
                elif kind == 1:
                    assert ask(port, "POST", path, {**body, "step": step + rng.choice([1, 7])})[0] == 409
                elif kind == 2:
                    assert ask(port, "POST", path, {**body, "actions": [" "]})[0] in (409, 422)
                elif kind == 3:
                    assert ask(port, "POST", path, b'{"observation": NaN}')[0] == 422
                else:
                    ask(port, "GET", f"/episodes/{key}")
            answers = [ask(port, "POST", path, body) for _ in range(rng.randrange(1, 4))]
            assert answers[0][0] == 200, answers
            assert all(answer == answers[0] for answer in answers)
            told = answers[0][1]
            calls += told["called"]
            assert (told["step"], told["calls"], told["calls_left"]) == (step, calls, BUDGET - calls)
            took.append(told["action"])
            shown.append(body["observation"])
        assert ask(port, "POST", path, {**body, "step": LENGTH})[0] == 409
        about = ask(port, "GET", f"/episodes/{key}")[1]
        assert (about["steps"], about["calls"]) == (LENGTH, calls) and calls <= BUDGET
        assert ask(port, "DELETE", f"/episodes/{key}")[0] == 204
        done.append((goal, shown, took, calls))
    return done


def test_no_budget_is_exceeded_and_no_step_is_lost_or_doubled_by_hostile_clients():
    sessions, (quick, deepthink) = stubbed(Random(0.7), budget=BUDGET, max_sessions=CLIENTS)
    begun = time.monotonic()
    with serving(sessions) as port, ThreadPoolExecutor(CLIENTS) as threads:
        played = [row for rows in threads.map(lambda seed: hostile(port, seed), range(CLIENTS)) for row in rows]
    assert len(played) == CLIENTS * EPISODES
    for goal, shown, _, calls in played:
        called = [o for g, o, _ in deepthink.asked if g == goal]
        answered = [o for g, o, _ in quick.asked if g == goal]
        assert len(called) == calls <= BUDGET
        assert sorted(map(len, called + answered)) == list(range(1, LENGTH + 1)), "each step was asked about once"
        assert max(called + answered, key=len) == tuple(shown), "and of the true history"
    assert any(calls == BUDGET for *_, calls in played)
    assert time.monotonic() - begun < 120
