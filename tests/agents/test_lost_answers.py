"""Answers that are none: no decision, no score, nothing to learn from; counted, and too many of them stop a stage."""

import itertools
import json

import numpy as np
import pytest
from chat_server import DOWN, GOOD, answer, good_server, status
from switch_models import agents, specs

from atlas_ray.agents.chat_agent import ChatAgent
from atlas_ray.agents.rollout import EnvSpec, rollout, start_episode
from atlas_ray.agents.token_agent import Decision, LostAnswer
from atlas_ray.data.replies import Losses, Replies, summed
from atlas_ray.engines.chat_endpoint import ChatEndpoint
from atlas_ray.errors import AtlasError
from atlas_ray.switching.baselines import Always, Random
from atlas_ray.switching.decision_cache import DecisionCache
from atlas_ray.switching.environment import SwitchingVectorEnv
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.policies import PolicySpec, scorable_episodes, summarize_policy
from atlas_ray.switching.text_game import TextGame

SPEC = EnvSpec("GoToLocalS5N2", {"max_steps": 6})
MOVES = ["turn left", "go forward"]
server = pytest.fixture(good_server, name="server")


@pytest.fixture
def make(server):
    opened = []

    def start(slots=4, retries=0, **options):
        opened.append(ChatEndpoint(server.url, "m", concurrency=slots, retries=retries))
        return ChatAgent(opened[-1], **options)

    yield start
    for endpoint in opened:
        endpoint.close()


def every(n, fault):
    """Every n-th request gets this answer in place of a good one."""
    numbers = itertools.count(1)
    return lambda body: fault if next(numbers) % n == 0 else answer(GOOD)


def act(agent):
    agent.start(0, "go", [], "room")
    return agent.act([0], [MOVES], [7])[0]


THOUGHT = answer("<think>first I look at the", "length")
UNSEEN = answer(None, "length")
INSIDE = {
    "choices": [{"finish_reason": "error", "error": {"code": 502, "message": "down"}, "message": {"content": ""}}]
}
FILTERED = status(400, {"error": {"message": "not this", "code": "content_filter"}})
LONG = status(400, {"error": {"message": "maximum context length is 10 tokens", "code": "context_length_exceeded"}})
ODD = status(400, {"error": {"message": "'temperature' only 1", "param": "temperature"}})


@pytest.mark.parametrize(
    ("reply", "kind", "requests", "says", "replies"),
    [
        (DOWN, "", 1, "HTTP 502: down", {"lost": 1}),
        (INSIDE, "error", 1, "down", {"lost": 1}),
        (answer("", "content_filter"), "filtered", 1, "filter", {"lost": 1}),
        (FILTERED, "filtered", 1, "not this", {"lost": 1}),
        (LONG, "context", 1, "context", {"lost": 1}),
        (ODD, "refused", 1, "temperature", {"lost": 1}),
        (UNSEEN, "empty", 1, "max_tokens = 256", {"empty": 1, "lost": 1}),
        (THOUGHT, "empty", 1, "max_tokens = 256", {"empty": 1, "lost": 1}),
        (answer("  <|im_end|>", "length"), "empty", 1, "max_tokens = 256", {"empty": 1, "lost": 1}),
        (answer(" \n"), "blank", 2, "wrote nothing", {"empty": 2, "asked again": 1, "lost": 1}),
        (answer("<think>hm</think>"), "blank", 2, "wrote nothing", {"empty": 2, "asked again": 1, "lost": 1}),
    ],
)
def test_an_answer_that_is_none_is_no_decision(make, server, reply, kind, requests, says, replies):
    if callable(reply):
        server.faults = [reply]
    else:
        server.script = lambda body: reply
    agent = make()
    lost = act(agent)
    assert isinstance(lost, LostAnswer)
    assert (lost.kind, lost.replies, agent.lost, agent.decisions) == (kind, replies, 1, 0)
    assert lost.passing == (kind in ("", "error"))
    assert says in lost.reason
    assert "\n" not in lost.reason
    assert len(server.requests) == requests
    server.script = lambda body: answer(GOOD)
    assert act(agent) == Decision("on", "turn left"), "the next one is asked for as if nothing had been"


def test_what_went_wrong_before_an_answer_was_lost_is_counted_and_paid(make, server):
    server.script = lambda body: answer("Let us fly!", usage=(10, 2)) if len(body["messages"]) == 2 else THOUGHT
    lost = act(make())
    assert lost.replies == {"no action": 1, "empty": 1, "asked again": 1, "lost": 1}
    assert lost.token_cost.read >= 10
    assert Replies(lost.replies).answers == 1


@pytest.mark.parametrize(
    ("replies", "counts"),
    [
        (["Thought: a\nAction: fly", GOOD], {"ok": 1, "not admissible": 1, "asked again": 1}),
        (["Thought: a\nAction: fly"] * 2, {"not admissible": 2, "asked again": 1, "fallen back": 1}),
        ([answer("Thought: a\nAction: turn le", "length"), GOOD], {"ok": 1, "cut off": 1, "asked again": 1}),
        ([GOOD + "\nObservation: a door\nAction: go forward"], {"ok": 1, "invented": 1}),
        ([answer("<think>fly\nAction: fly</think>\n" + GOOD)], {"ok": 1}),
    ],
)
def test_replies_are_counted_with_the_decision_that_took_them(make, server, replies, counts):
    left = iter(replies)
    server.script = lambda body: next(left)
    decision = act(make())
    assert decision.replies == counts
    assert Replies(counts).answers == 1


def test_one_lost_answer_ends_one_episode_and_no_other(make, server):
    server.script = lambda body: THOUGHT if "red" in body["messages"][0]["content"] else answer(GOOD)
    ended = list(rollout(make(), ([start_episode(SPEC, seed)] for seed in range(30))))
    lost = [f for f in ended if f.lost]
    assert 0 < len(lost) < 30
    for finished in lost:
        assert (finished.score, finished.success, finished.retryable) == (0.0, False, False)
        assert "max_tokens" in finished.error
        assert finished.replies["lost"] == 1
    for finished in ended:
        assert finished.replies["ok"] == len(finished.steps)
    assert all(f.unanswered is None and f.error is None for f in ended if not f.lost)


def test_thoughts_of_a_local_model_that_use_up_its_tokens_are_no_decision():
    from tests.agents.test_token_agent import decided, writer

    agent = writer("<think> first I look at the door", thought_tokens=8, action_tokens=8)
    lost = decided(agent)
    assert isinstance(lost, LostAnswer)
    assert "agent.thought_tokens" in lost.reason
    assert lost.replies == {"empty": 1, "lost": 1}
    agent = writer("", thought_tokens=8, action_tokens=8)
    blank = decided(agent)
    assert blank.action == "(no answer)", "what a local model does not say is its own doing"
    assert blank.replies == {"empty": 1, "fallen back": 1}


def players(make, **options):
    """QUICK by its weights, DEEPTHINK behind the server."""
    return [agents()[0], make(style="react", **options)]


def test_the_game_ends_where_a_model_gave_no_answer_and_asks_it_anew(make, server):
    game = TextGame([SPEC], players(make), 2, decision_cache=(cache := DecisionCache()))
    for row in range(2):
        game.begin(row, row)
    server.faults = [DOWN, DOWN]
    asked = game.decisions({0: 1, 1: 0})
    assert isinstance(asked[0], LostAnswer) and isinstance(asked[1], Decision)
    assert len(cache) == 1
    outcomes = game.advance({0: 1, 1: 0})
    assert outcomes[0].lost is not None and outcomes[0].over and game.episodes[0].over
    assert (outcomes[0].replies, outcomes[0].reward, game.episodes[0].steps) == (({}, {"lost": 2}), 0.0, [])
    assert outcomes[1].lost is None and len(game.episodes[1].steps) == 1
    game.begin(0, 0)
    assert game.advance({0: 1})[0].lost is None
    assert len(cache) == 2


@pytest.mark.parametrize("retries", [0, 1])
def test_one_in_ten_that_fails_costs_its_episode_at_most(make, server, retries, monkeypatch):
    from atlas_ray.engines import retry

    monkeypatch.setattr(retry, "sleep", lambda stop, _: stop.is_set())
    quick, deep = players(make, max_tokens=64)
    deep.engine.retries = retries
    numbers = itertools.count(1)
    server.faults = [DOWN if next(numbers) % 10 == 0 else status(200, answer(GOOD)) for _ in range(3000)]
    rows = evaluate_policy(Always(1), [quick, deep], [SPEC], range(40), decision_cache=DecisionCache())
    lost = [row for row in rows if row["lost"]]
    answers = summed(c for row in rows for c in row["replies"])
    failed = sum(n % 10 == 0 for n in range(1, len(server.requests) + 1))
    if retries:
        assert not lost and "lost" not in answers
        assert failed > 0
        return
    assert answers["lost"] == failed > 0
    again = [row for row in rows if row.get("attempts")]
    assert again, "what may pass was played again"
    assert all(row["attempts"] <= 3 for row in again)
    assert all(row["attempts"] == 3 and row["lost_by"] == 1 and "502" in row["error"] for row in lost)
    made = summarize_policy(
        PolicySpec("always-deepthink", "always", action=1), [{**r, "training": None} for r in rows], "flops"
    )
    kept = [row for row in rows if not row["lost"]]
    assert made["episodes"] == len(kept)
    assert made["success"] == sum(r["success"] for r in kept) / len(kept)
    assert made.get("lost_episodes", 0) == len(lost)
    assert made["replies"] == answers.row()


def test_a_server_that_is_down_is_not_asked_for_ever(make, server):
    server.faults = [DOWN] * 1000
    rows = evaluate_policy(Always(1), players(make), [SPEC], range(24), max_lost_answers=0.2)
    assert all(row["lost"] and not row["steps"] for row in rows)
    assert len(server.requests) < 24 + 12
    with pytest.raises(AtlasError, match=r"^x: no episode is left to score.*HTTP 502"):
        scorable_episodes(rows, "x")


def test_what_a_filter_refuses_ends_one_episode_and_is_not_played_again(make, server):
    filtered = answer("", "content_filter")
    server.script = lambda body: filtered if "red" in body["messages"][0]["content"] else answer(GOOD)
    rows = evaluate_policy(Always(1), players(make), [SPEC], range(20), decision_cache=(cache := DecisionCache()))
    lost = [row for row in rows if row["lost"]]
    assert 0 < len(lost) < 20
    assert all("attempts" not in row and "filter" in row["error"] and not row["steps"] for row in lost)
    assert len(cache) <= sum(row["steps"] for row in rows)
    assert len(server.requests) == len(cache) + len(lost)


def test_episodes_that_one_policy_lost_are_left_out_for_all():
    def rows(policy, lost):
        each = {"return": 0.0, "calls": 1, "called_at": [0], "steps": 2, "flops": 1, "seconds": 0.1, "violations": 0}
        return [
            {**each, "policy": policy, "training": None, "seed": s, "success": s % 2 == 0, "lost": s in lost}
            for s in range(8)
        ]

    both = [*rows("a", {0, 2}), *rows("b", {5})]
    made = [
        summarize_policy(PolicySpec(n, "always"), [r for r in both if r["policy"] == n], "flops", without={0, 2, 5})
        for n in "ab"
    ]
    assert [m["success"] for m in made] == [2 / 5, 2 / 5]
    assert [(m["episodes"], m["lost_episodes"]) for m in made] == [(5, 2), (5, 1)]


def test_losses_are_by_model_and_by_share():
    def over(most, *told, early=False):
        losses = Losses(most)
        for who, replies in told:
            losses.note(who, replies, "it is down: raise max_tokens" if replies.get("lost") else None)
        try:
            losses.check(early)
        except AtlasError as error:
            return str(error)
        return ""

    assert not over(0.2, ("a", {"ok": 100}), ("b", {"ok": 8, "lost": 2}))
    assert over(0.2, ("a", {"ok": 1000}), ("b", {"ok": 5, "lost": 5})).startswith("b: 5 of 10 answers are none")
    assert not over(0.2, ("b", {"lost": 5}), early=True), "a few may be a server that is starting"
    told = over(0.2, ("b", {"lost": 10, "fallen back": 2, "not admissible": 2}), early=True)
    assert "10 of 12" in told and "max_lost_answers allows 20%" in told and told.endswith("raise max_tokens")
    assert not over(0.5, ("b", {"ok": 60, "lost": 40}))
    assert over(0.0, ("b", {"ok": 60, "lost": 1}))
    assert not over(1.0, ("b", {"lost": 100}))


def test_a_step_without_an_answer_is_not_learned_from(make, server):
    """The runner sees an episode that was cut; the buffer leaves out what was no step."""
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    from atlas_ray.switching.replay_buffer import TransitionBuffer

    game = TextGame([SPEC], players(make), 1)
    game.observe = lambda rows: np.full((len(rows), 3), len(game.episodes[0].steps), np.float32)
    game.width = 3
    env = SwitchingVectorEnv(game, 0, cost=0.5)
    seen, info = env.reset()
    episode = SingleAgentEpisode(observations=[seen[0]], infos=[{}], observation_space=env.single_observation_space)
    for step in range(3):
        if step == 2:
            server.faults = [DOWN]
        seen, rewards, ended, cut, info = env.step(np.array([1]))
        told = {k: v[0] for k, v in info.items() if k in ("lost", "replies") and info[f"_{k}"][0]}
        episode.add_env_step(seen[0], 1, float(rewards[0]), told, terminated=bool(ended[0]), truncated=bool(cut[0]))
    assert (ended[0], cut[0], rewards[0]) == (False, True, 0.0)
    assert "502" in info["lost"][0]
    buffer = TransitionBuffer(100, 5, 0)
    buffer.add([episode])
    assert (len(buffer), buffer.count, buffer.dropped, buffer.ended) == (2, 2, 1, 1)
    assert buffer.replies == {0: {}, 1: {"ok": 2, "lost": 1}}
    assert "502" in buffer.reasons[1]
    drawn = buffer.sample(50)
    assert set(drawn["rewards"].tolist()) == {-0.5}
    assert not drawn["terminateds"].any()
    assert set(drawn["new_obs"][:, 0].tolist()) == {1.0, 2.0}
    again = TransitionBuffer(100, 5, 0)
    again.set_state(buffer.get_state(False))
    assert (again.dropped, again.replies[1]) == (1, {"ok": 2, "lost": 1})
    seen, *_ = env.step(np.array([1]))
    assert game.episodes[0].seed == 1, "the next step begins another episode"


def test_answers_that_are_known_count_as_if_they_had_been_asked_for(make, server):
    replies = iter(["fly", *["Thought: a\nAction: turn left"] * 500])
    server.script = lambda body: answer(next(replies))
    cache, both = DecisionCache(), players(make)
    first = evaluate_policy(Random(0.5), both, [SPEC], range(5), decision_cache=cache)
    asked = len(server.requests)
    again = evaluate_policy(Random(0.5), both, [SPEC], range(5), decision_cache=cache)
    assert len(server.requests) == asked
    assert [row["replies"] for row in again] == [row["replies"] for row in first]
    assert json.loads(json.dumps(first[0]["replies"])) == first[0]["replies"]
    assert "replies" not in evaluate_policy(Always(0), agents(), specs(4), range(2))[0], "models that score write none"
