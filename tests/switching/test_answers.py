"""Answers that are kept, and the ledger: what is reported does not depend on what any cache holds."""

import json

import pytest
from chat_server import ChatServer, answer

from atlas_ray.agents.chat_agent import ChatAgent
from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.agents.token_agent import Agent, Decision, digest
from atlas_ray.engines import TransformersEngine
from atlas_ray.engines.chat_endpoint import ChatEndpoint
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.switching.baselines import Always, Random
from atlas_ray.switching.decision_cache import Answer, Answers
from atlas_ray.switching.evaluate import play_switching
from atlas_ray.switching.text_game import TextGame

SHAPES = {"quick": (16, 1), "deepthink": (32, 2)}
SPECS = [EnvSpec(level, {"max_steps": 7}) for level in ("GoToLocalS5N2", "PickupDist")]
WAYS = {
    "action": {"style": "action"},
    "react": {"style": "react", "thought_tokens": 5},
    "react, windowed": {"style": "react", "thought_tokens": 5, "window": 2},
    "action, windowed to nothing": {"style": "action", "window": 0},
    "generate": {"style": "react", "decide": "generate", "thought_tokens": 4, "action_tokens": 6},
    "chat": {"style": "react", "prompt": "chat", "thought_tokens": 5},
}


def models(way, slots=4, **more):
    made = []
    for name, (hidden, layers) in SHAPES.items():
        network = build_model(hidden=hidden, layers=layers, heads=2, intermediate=32, seed=len(name))
        tokenizer = build_tokenizer()
        if way.get("prompt") == "chat":
            tokenizer.chat_template = (
                "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}"
                "{% if add_generation_prompt %}[assistant]{% endif %}"
            )
        made.append(Agent(TransformersEngine(network, slots, tokenizer), **way, **more))
    return made


def rows(policy, agents, seeds=range(40, 52), **more):
    played = play_switching(policy, agents, SPECS, seeds, record=True, **more)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in played]


def fed(agents):
    return [sum(agent.engine.tokens_fed) for agent in agents]


@pytest.mark.parametrize("way", WAYS)
def test_the_ledger_is_what_the_engines_feed(way):
    agents = models(WAYS[way])
    played = rows(Random(0.5), agents)
    assert [sum(row["tokens"][number] for row in played) for number in range(2)] == fed(agents)
    assert min(fed(agents)) > 0


def test_the_ledger_holds_to_the_token_where_quick_is_looked_at_and_its_state_read():
    agents = models(WAYS["react"])
    game = TextGame(SPECS, agents, 4, "hidden", ("entropy", "catch-up"))
    for row in range(4):
        game.begin(row, row)
    for turn in range(5):
        live = [row for row in range(4) if not game.episodes[row].over]
        game.observe(range(4))
        game.advance({row: (row + turn) % 2 for row in live})
        for number, agent in enumerate(agents):
            assert [game.usage(row)[number].tokens for row in range(4)] == agent.engine.tokens_fed


@pytest.mark.parametrize("way", WAYS)
def test_known_answers_change_nothing_that_is_reported(way):
    """Another policy has filled a part of the cache, so hits and misses mix within an episode."""
    kept = Answers()
    agents = models(WAYS[way])
    rows(Random(0.5, seed=1), agents, answers=kept)
    asked, mixed = kept.misses, kept.hits
    with_cache = rows(Random(0.5, seed=2), agents, answers=kept)
    assert with_cache == rows(Random(0.5, seed=2), models(WAYS[way]))
    assert kept.hits > mixed
    assert kept.misses > asked

    asked, before = kept.misses, fed(agents)
    assert rows(Random(0.5, seed=2), agents, answers=kept) == with_cache
    assert (kept.misses, fed(agents)) == (asked, before), "everything was known"


def test_known_answers_are_as_sure_as_new_ones_and_take_as_long():
    agents, kept = models(WAYS["action"], slots=1), Answers()

    def play():
        game, seen = TextGame(SPECS, agents, 1, signals=("margin", "entropy", "catch-up"), answers=kept), []
        game.begin(0, 3)
        while not game.episodes[0].over:
            seen.append(game.observe([0]).tolist())
            game.advance({0: len(seen) % 2})
        return seen, game.usage(0)

    first = play()
    assert kept.hits == 0
    assert play() == first, "seconds are those of the first time"
    assert kept.hits == kept.misses > 0
    assert all(usage.seconds > 0 for usage in first[1])


def test_samples_are_not_kept():
    kept = Answers()
    agents = models(WAYS["action"], temperature=1.0)
    assert rows(Random(0.5), agents, answers=kept) == rows(Random(0.5), models(WAYS["action"], temperature=1.0))
    assert (len(kept), kept.hits, kept.misses) == (0, 0, 0)


def test_what_an_answer_depends_on_tells_answers_apart():
    engine = models(WAYS["action"], slots=2)[0].engine
    same = {"name": "m"}

    def key(style="action", goal="go to the red ball", offered=("turn left",), slot=0, **more):
        agent = Agent(engine, style, **{**same, **more})
        agent.start(slot, goal, [], "You see nothing")
        return agent.key(slot, offered)

    first = key()
    assert first == key() == key(slot=1)
    assert len(first) == 16
    others = [
        key(name="n"),
        key(name=None),
        key(style="react"),
        key(decide="generate"),
        key(goal="go to the blue ball"),
        key(offered=("turn left", "turn right")),
        key(action_tokens=3),
        key(thought_tokens=3),
    ]
    assert len({first, *others}) == 9
    assert digest("ab", "c") != digest("a", "bc")


def test_the_least_recently_used_answer_makes_room():
    kept = Answers(entries=2)
    answers = {name: Answer(Decision(None, name), 1.0) for name in "abc"}
    for name in "ab":
        kept.put(name.encode(), answers[name])
    assert kept.get(b"a") == answers["a"]
    kept.put(b"c", answers["c"])
    assert kept.get(b"b") is None
    assert [kept.get(b"a"), kept.get(b"c")] == [answers["a"], answers["c"]]
    assert (len(kept), kept.hits, kept.misses) == (2, 3, 1)
    with pytest.raises(ValueError, match="one answer"):
        Answers(0)


def test_a_small_cache_changes_nothing_either():
    kept = Answers(entries=3)
    agents = models(WAYS["react"])
    for _ in range(2):
        assert rows(Random(0.5), agents, answers=kept) == rows(Random(0.5), models(WAYS["react"]))
    assert len(kept) == 3


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = ChatServer(reply)
    yield made
    made.kill()


def reply(body):
    """Depends on the conversation alone, is wrong now and then, and counts every word."""
    text = json.dumps(body["messages"])
    written = ("turn left", "turn right", "go forward", "pick up", "fly")[len(text) % 5]
    return answer(f"Thought: on\nAction: {written}", usage=(len(text.split()), len(written)))


@pytest.mark.parametrize("context", [None, 420])
def test_known_answers_of_an_endpoint_change_neither_actions_nor_the_bill(server, context):
    quick = models(WAYS["react"], slots=1)[0]

    def endpoint():
        made = ChatEndpoint(server.url, "m", concurrency=1)
        return ChatAgent(made, context=context, max_tokens=16, price=(3.0, 15.0))

    def play(seed, kept=None):
        return rows(Random(0.6, seed=seed), [quick, endpoint()], range(60, 66), answers=kept)

    plain, kept = [play(1), play(2)], Answers()
    assert play(1, kept) == plain[0]
    requests, hits = len(server.requests), kept.hits
    assert play(2, kept) == plain[1]
    mixed = len(server.requests) - requests
    assert kept.hits > hits
    assert mixed > 0, "some were asked"
    requests = len(server.requests)
    assert play(2, kept) == plain[1]
    assert len(server.requests) == requests
    asked = [body["messages"] for _, body, _ in server.requests]
    assert any("cannot be used" in talk[-1]["content"] for talk in asked), "some were asked again"
    assert all(row["money"] > 0 for row in plain[0] if row["calls"])
    if context:
        assert any(row["steps"] < 7 and not row["success"] for row in plain[0]), "estimates cut episodes alike"


def test_the_large_model_alone_is_known_throughout_the_second_time():
    agents, kept = models(WAYS["action"]), Answers()
    first = rows(Always(1), agents, answers=kept)
    before = fed(agents)
    assert rows(Always(1), agents, answers=kept) == first
    assert fed(agents) == before
