"""Serving a switch whose budget is in tokens: reserved before a model is asked, settled by what it took."""

import pytest
from serving_sessions import STEPS, Client, refused, served
from switch_models import agents, specs

from atlas_ray.agents.token_agent import Agent, LostAnswer
from atlas_ray.serving import Answer
from atlas_ray.switching.baselines import Always
from atlas_ray.switching.evaluate import evaluate_policy

BUDGET = 300


def test_an_episode_spends_as_in_play_and_ends_with_its_budget():
    options = {"budget": BUDGET, "budget_unit": "tokens", "bills": True, "record": True}
    rows = evaluate_policy(Always(1), agents(4), specs(STEPS), range(8), **options)
    row = next(row for row in rows if not row["success"] and 1 < row["steps"] < STEPS)
    sessions = served(Always(1), BUDGET, unit="tokens")
    client = Client(row["seed"])
    key, answers = sessions.open(client.goal, STEPS), []
    while not client.over:
        answer = sessions.act({key: client.now})[key]
        if not isinstance(answer, Answer):
            assert refused(answer) == (409, "the episode's budget allows no further step")
            break
        answers.append(answer)
        client.take(answer.action, answer.called)
    assert client.actions == [step["action"] for step in row["episode"]["steps"]]
    assert client.called_at == row["called_at"] and row["violations"] == 0
    about = sessions.about(key)
    assert about["budget_left"] == {"tokens": BUDGET - row["spent"]["tokens"]}
    assert (sessions.budget, sessions.calls, about["calls_left"]) == ({"tokens": BUDGET}, None, None)
    assert {a.calls_left for a in answers} == {None} and len(answers) == row["steps"]


def test_an_attempt_without_an_answer_stays_paid_and_the_next_pays_again(monkeypatch):
    sessions = served(Always(1), BUDGET, unit="tokens")
    client = Client(3)
    key = sessions.open(client.goal, STEPS)
    acts = Agent.act
    monkeypatch.setattr(Agent, "act", lambda self, slots, *_: [LostAnswer("it broke") for _ in slots])
    assert refused(sessions.act({key: client.now})[key])[0] == 502
    once = BUDGET - sessions.about(key)["budget_left"]["tokens"]
    assert refused(sessions.act({key: client.now})[key])[0] == 502
    assert sessions.about(key)["budget_left"] == {"tokens": BUDGET - 2 * once}
    for _ in range(BUDGET // once - 2):
        assert refused(sessions.act({key: client.now})[key])[0] == 502
    assert refused(sessions.act({key: client.now})[key]) == (409, "the episode's budget allows no further step")
    assert sessions.about(key)["calls"] == 1
    monkeypatch.setattr(Agent, "act", acts)
    assert sessions.about(key)["budget_left"]["tokens"] == pytest.approx(BUDGET % once)
