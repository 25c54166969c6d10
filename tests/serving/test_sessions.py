"""Serving a switch: the same episodes as in play, budgets, faults, and what is refused."""

import re

import pytest
from serving_sessions import STEPS, Client, refused, rule, served, stubbed, switch
from switch_models import agents, specs

from atlas_ray.agents.token_agent import LostAnswer
from atlas_ray.errors import EndpointError
from atlas_ray.serving import ActRequest, Answer, Refused
from atlas_ray.serving.sessions import IDLE
from atlas_ray.switching.baselines import Always
from atlas_ray.switching.evaluate import evaluate_policy


def play_at(sessions, seeds):
    """All episodes, as many at a time as may be, each a step further in every round."""
    waiting, playing, done = list(seeds)[::-1], {}, {}
    while waiting or playing:
        while waiting and len(playing) < sessions.max_sessions:
            client = Client(seed := waiting.pop())
            playing[sessions.open(client.goal, STEPS)] = (seed, client)
        answers = sessions.act({key: client.now for key, (_, client) in playing.items()})
        for key, (seed, client) in list(playing.items()):
            client.take(answers[key].action, answers[key].called)
            if client.over:
                done[seed] = (client, sessions.about(key))
                sessions.close(key)
                del playing[key]
    return done


@pytest.mark.parametrize(
    ("budget", "policy"),
    [
        (None, switch(None, ("margin", "catch-up"))),
        (2, switch(2, ("margin",))),
        (2, switch(2, ("proposal", "visits", "unchanged", "since-call"))),
        (None, switch(None, ("visits", "classifier", "verifier"))),
        (None, rule()),
        (2, rule(budget=2)),
        (None, rule(signal="verifier")),
    ],
)
def test_episodes_go_as_they_do_in_play(budget, policy):
    seeds = range(11)
    expected = evaluate_policy(policy, agents(4), specs(STEPS), seeds, budget, record=True)
    done = play_at(served(policy, budget), seeds)
    assert any(row["calls"] for row in expected) and any(row["calls"] < row["steps"] for row in expected)
    for row in expected:
        client, about = done[row["seed"]]
        assert client.actions == [step["action"] for step in row["episode"]["steps"]]
        assert (client.called_at, client.success) == (row["called_at"], row["success"])
        assert [used["tokens"] for used in about["usage"]] == row["tokens"]
        assert (about["calls"], about["steps"]) == (row["calls"], row["steps"] - 1), "the last step led nowhere we know"


def test_a_budget_is_never_exceeded_and_what_is_left_is_told():
    sessions = served(Always(1), budget=2)
    client = Client(0)
    key = sessions.open(client.goal, STEPS)
    seen = []
    for _ in range(4):
        answer = sessions.act({key: client.now})[key]
        seen.append((answer.model, answer.called, answer.calls, answer.calls_left, answer.step))
        client.observation = f"step {answer.step}"
    assert seen == [
        ("deepthink", True, 1, 1, 0),
        ("deepthink", True, 2, 0, 1),
        ("quick", False, 2, 0, 2),
        ("quick", False, 2, 0, 3),
    ]


def test_what_cannot_be_answered_is_refused_and_others_are_answered():
    sessions = served(Always(0))
    fine, short, strange = (sessions.open("go to the red ball", limit) for limit in (9, 1, 9))
    now = ActRequest("you see a red ball", ["go forward", "turn left"])
    found = sessions.act({fine: now, strange: ActRequest("nothing", ()), "who": now, short: now})
    assert isinstance(found[fine], Answer) and found[fine].action in now.actions
    assert refused(found[strange])[0] == 422
    assert refused(found["who"])[0] == 404
    assert isinstance(found[short], Answer)
    assert refused(sessions.act({short: now})[short]) == (409, "the episode has had its 1 steps")
    assert refused(sessions.act({short: now})[short])[0] == 409
    assert sessions.about(short)["over"] == "the episode has had its 1 steps"
    long = ActRequest("word " * 3000, ["go forward"])
    assert "do not fit" in refused(sessions.act({strange: long})[strange])[1]
    assert "longer than the context" in refused(sessions.act({fine: long})[fine])[1]


def test_places_run_out_and_are_taken_from_the_idle():
    time = [0.0]
    of_two = served(Always(0), max_sessions=2, clock=lambda: time[0])
    now = ActRequest("x", ["go forward"])
    first, second = of_two.open("a", 5), of_two.open("b", 5)
    with pytest.raises(Refused, match="all 2 sessions"):
        of_two.open("c", 5)
    time[0] = IDLE - 1
    assert isinstance(of_two.act({second: now})[second], Answer)
    time[0] = IDLE + 1
    third = of_two.open("c", 5)
    assert refused(of_two.act({first: now})[first])[0] == 404
    assert of_two.act({third: now, second: now})[third].step == 0
    of_two.close(third)
    with pytest.raises(Refused, match="no episode of this id"):
        of_two.about(third)


def test_a_call_that_failed_is_paid_for_once_and_answered_by_the_same_model():
    sessions = served(Always(1), budget=1)
    deepthink, client = sessions._game.agents[1], Client(0)
    key, act = sessions.open(client.goal, STEPS), deepthink.act

    def fails(*arguments):
        deepthink.act = act
        raise RuntimeError("the server\nis gone")

    deepthink.act = fails
    assert refused(sessions.act({key: client.now})[key]) == (503, "no answer: the server is gone; ask again")
    other = sessions.act({key: ActRequest("something else", ["go forward"])})[key]
    assert refused(other)[0] == 409
    answer = sessions.act({key: client.now})[key]
    assert (answer.model, answer.calls, answer.calls_left, answer.step) == ("deepthink", 1, 0, 0)


# --- one client's fault is its own ---

FINE = ActRequest("you see a red ball", ["go forward", "turn left"])
SPOILT = {
    "blank": ("a", ["go forward", ""], "actions.1: is blank"),
    "white space": ("a", [" \t\n"], "actions.0: is blank"),
    "zero width": ("a", ["\u200b\ufeff"], "actions.0: is blank"),
    "nothing in it": ("a", ["go", "\u00a0"], "actions.1: is blank"),
    "NUL": ("a", ["go\0forward"], "actions.0: holds a control character"),
    "escape": ("a", ["go", "\x1b[2J"], "actions.1: holds a control character"),
    "long": ("a", ["x" * 1001], "actions.0: has 1001 characters, and may have 1000"),
    "many": ("a", ["go"] * 10_001, "actions: are 10001, and may be 10000"),
    "many words": ("a", ["go forward", "left " * 190], r"actions.1: is \d+ tokens long, and quick has room for \d+"),
    "half a pair": ("a", ["\ud83d"], "actions.0: holds half of a surrogate pair"),
    "half a pair seen": ("\udc00", ["go"], "observation: holds half of a surrogate pair"),
    "all too long": ("x" * 100_001, ["go"], "observation: has 100001 characters, and may have 100000"),
    "none": ("a", [], "actions: a model picks one of them, and there is none"),
}


@pytest.mark.parametrize(("observation", "actions", "said"), SPOILT.values(), ids=list(SPOILT))
def test_what_nobody_could_act_on_is_refused_to_whoever_sent_it(observation, actions, said):
    sessions = served(switch(2), budget=2)
    fine, spoilt = sessions.open("go to the red ball", 9), sessions.open("go to the red ball", 9)
    sessions._game.agents[0].engine.context = sessions._game.agents[1].engine.context = 150
    for _ in range(2):
        found = sessions.act({spoilt: ActRequest(observation, actions), fine: FINE})
        assert isinstance(found[fine], Answer)
        status, words = refused(found[spoilt])
        assert status == 422 and re.fullmatch(f"{said}.*", words), words
        assert len(words) < 150, "it is not sent back"
    about = sessions.about(spoilt)
    assert (about["steps"], about["calls"], about["over"]) == (0, 0, None)
    sent = (
        FINE._replace(observation=sessions._sessions[spoilt].env.request.observation)
        if sessions._sessions[spoilt].env
        else FINE
    )
    assert isinstance(sessions.act({spoilt: sent})[spoilt], Answer), "the episode is as good as before"


def test_an_action_that_a_tokenizer_drops_is_refused(monkeypatch):
    sessions = served(Always(0))
    renderer = sessions._game.agents[0].renderer
    action = renderer.action
    monkeypatch.setattr(renderer, "action", lambda text: [] if text == "hm" else action(text))
    key = sessions.open("go", 9)
    assert refused(sessions.act({key: ActRequest("a", ["go forward", "hm"])})[key]) == (
        422,
        "actions.1: is nothing to the tokenizer of quick",
    )
    assert isinstance(sessions.act({key: ActRequest("a", ["go forward"])})[key], Answer)


def test_texts_with_all_else_in_them_are_played():
    sessions = served(switch())
    for text in ("\0", "", " ", "\u200b", "\U0001f600 é \u0301", "</s><|im_end|>", "a\r\n\tb", "\x85\u2028"):
        key = sessions.open(text, 9)
        offered = ["go\tforward", "two\nlines", "\U0001f600", "-", "</s>", "a" * 1000]
        for observation in (text, text * 2):
            assert sessions.act({key: ActRequest(observation, offered)})[key].action in offered
        sessions.close(key)


def test_a_model_that_fails_at_one_episode_answers_the_others():
    def does(goals, actions):
        if "bad" in goals:
            raise ValueError("a row that no engine takes")

    sessions, (quick, _) = stubbed(Always(0), does=does)
    keys = {goal: sessions.open(goal, 9) for goal in ("one", "bad", "two")}
    found = sessions.act(dict.fromkeys(keys.values(), FINE))
    assert isinstance(found[keys["one"]], Answer) and isinstance(found[keys["two"]], Answer)
    assert refused(found[keys["bad"]]) == (503, "no answer: a row that no engine takes; ask again")
    assert quick.batches == [["one", "bad", "two"], ["one"], ["bad"], ["two"]]
    found = sessions.act({keys[goal]: ActRequest("next" if goal != "bad" else FINE[0], FINE.actions) for goal in keys})
    assert [isinstance(found[key], Answer) for key in keys.values()] == [True, False, True]
    assert quick.batches[4:] == [["one", "two"], ["bad"]], "it is asked about alone from then on"
    quick.does = None
    assert sessions.act({keys["bad"]: FINE})[keys["bad"]].step == 0
    assert sessions.about(keys["one"])["steps"] == 1


def test_a_policy_that_fails_at_one_episode_decides_the_others():
    class Picky(Always):
        def decide(self, situations):
            if any("bad" in s.text for s in situations):
                raise ValueError("no")
            return super().decide(situations)

    sessions, _ = stubbed(Picky(1), budget=1)
    fine, bad = sessions.open("fine", 9), sessions.open("bad", 9)
    found = sessions.act({bad: FINE, fine: FINE})
    assert (found[fine].model, found[fine].calls) == ("deepthink", 1)
    assert refused(found[bad])[0] == 503
    assert sessions.about(bad)["calls"] == 0


def test_an_endpoint_that_gives_no_answer_costs_its_own_episodes_only():
    class Mixed(Always):
        def decide(self, situations):
            return [int("deep" in s.text) for s in situations]

    sessions, (_, deepthink) = stubbed(Mixed(0), budget=1)

    def gone(goals, actions):
        raise EndpointError("http://it answers 502:\nbad gateway", 502)

    deepthink.does = gone
    deep, quick = sessions.open("deep", 9), sessions.open("shallow", 9)
    for _ in range(2):
        found = sessions.act({deep: FINE, quick: FINE._replace(step=0)})
        assert isinstance(found[quick], Answer)
        assert refused(found[deep]) == (502, "no answer: http://it answers 502: bad gateway; ask again")
    assert deepthink.batches == [["deep"], ["deep"]]
    deepthink.does = None
    answer = sessions.act({deep: FINE})[deep]
    assert (answer.model, answer.calls, answer.calls_left) == ("deepthink", 1, 0), "paid for once"


@pytest.mark.parametrize(
    ("kind", "status", "said", "over"),
    [
        ("", 502, "no answer: it says no; ask again", False),
        ("error", 502, "no answer: it says no; ask again", False),
        ("filtered", 502, "no answer: it says no", False),
        ("context", 409, "the episode is longer than the context of a model: it says no", True),
    ],
)
@pytest.mark.parametrize("raises", [True, False])
def test_why_an_endpoint_gave_no_answer_is_told(kind, status, said, over, raises, monkeypatch):
    sessions, _ = stubbed(Always(0))
    key, other = sessions.open("lost", 9), sessions.open("fine", 9)
    decisions = sessions._game.decisions

    def loses(choices):
        if raises:
            raise EndpointError("it says\nno", 400, kind)
        found = decisions({row: number for row, number in choices.items() if row})
        return found | {0: LostAnswer("it says no", kind)}

    monkeypatch.setattr(sessions._game, "decisions", loses)
    found = sessions.act({key: FINE, other: FINE})
    assert refused(found[key]) == (status, said)
    assert raises or isinstance(found[other], Answer)
    monkeypatch.undo()
    again = sessions.act({key: FINE})[key]
    assert refused(again)[0] == 409 if over else again.step == 0
    assert bool(sessions.about(key)["over"]) == over


def test_what_an_endpoint_refuses_of_one_episode_ends_that_one():
    def does(goals, actions):
        if "long" in goals:
            raise EndpointError("too long", 400, "context")

    sessions, (quick, _) = stubbed(Always(0), does=does)
    long, fine = sessions.open("long", 9), sessions.open("fine", 9)
    found = sessions.act({long: FINE, fine: FINE})
    assert refused(found[long])[0] == 409 and isinstance(found[fine], Answer)
    assert quick.batches == [["long", "fine"], ["long"], ["fine"]]


def test_an_episode_that_cannot_be_told_to_the_models_ends_alone():
    sessions, (quick, _) = stubbed(Always(0))
    start = quick.start

    def picky(slot, instruction, steps, observation):
        if instruction == "bad":
            raise TypeError("not of this tokenizer")
        start(slot, instruction, steps, observation)

    quick.start = picky
    bad, fine = sessions.open("bad", 9), sessions.open("fine", 9)
    found = sessions.act({bad: FINE, fine: FINE})
    assert refused(found[bad]) == (422, "the models cannot read it: not of this tokenizer")
    assert isinstance(found[fine], Answer)
    found = sessions.act({bad: FINE, fine: FINE})
    assert refused(found[bad])[0] == 409 and found[fine].step == 1
    assert "cannot read" in sessions.about(bad)["over"]


def test_an_episode_that_nobody_can_begin_takes_no_place():
    sessions, _ = stubbed(Always(0), max_sessions=1)
    for text, limit, field in (("\ud83d", 5, "instruction"), ("x" * 100_001, 5, "instruction"), ("go", 0, "max_steps")):
        with pytest.raises(Refused, match=f"^{field}: ") as error:
            sessions.open(text, limit)
        assert error.value.status == 422
    assert sessions.open("go", 5)
