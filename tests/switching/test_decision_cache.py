"""Cached decisions, and the accountant: what is reported does not depend on what any cache holds."""

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
from atlas_ray.switching.decision_cache import CachedDecision, DecisionCache
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.text_game import TextGame

SHAPES = {"quick": (16, 1), "deepthink": (32, 2)}
SPECS = [EnvSpec(level, {"max_steps": 7}) for level in ("GoToLocalS5N2", "PickupDist")]
WAYS = {
    "action": {"style": "action"},
    "react": {"style": "react", "thought_tokens": 5},
    "react, windowed": {"style": "react", "thought_tokens": 5, "window": 2},
    "react, catching up one": {"style": "react", "thought_tokens": 5, "catch_up": 1},
    "action, windowed to nothing": {"style": "action", "window": 0},
    "generate": {"style": "react", "decide": "generate", "thought_tokens": 4, "action_tokens": 6},
    "chat": {"style": "react", "prompt": "chat", "thought_tokens": 5},
}

SLOW = ["action", "react", "action, windowed to nothing"]  # where the cache is held to it


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


def rows(policy, agents, seeds=range(40, 46), **more):
    played = evaluate_policy(policy, agents, SPECS, seeds, record=True, **more)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in played]


def fed(agents):
    return [sum(agent.engine.computed_tokens) for agent in agents]


@pytest.mark.parametrize("way", WAYS)
def test_the_accountant_counts_what_the_engines_feed(way):
    agents = models(WAYS[way])
    played = rows(Random(0.5), agents)
    assert [sum(row["tokens"][number] for row in played) for number in range(2)] == fed(agents)
    assert min(fed(agents)) > 0


def test_the_accountant_is_right_to_the_token_where_quick_is_looked_at_and_its_state_read():
    agents = models(WAYS["react"])
    game = TextGame(SPECS, agents, 4, "hidden", ("entropy", "catch-up"))
    for row in range(4):
        game.begin(row, row)
    for turn in range(5):
        live = [row for row in range(4) if not game.episodes[row].over]
        game.observe(range(4))
        game.advance({row: (row + turn) % 2 for row in live})
        for number, agent in enumerate(agents):
            assert [game.usage(row)[number].tokens for row in range(4)] == agent.engine.computed_tokens


@pytest.mark.parametrize(
    "way", ["react, windowed", "generate", "chat", *(pytest.param(way, marks=pytest.mark.slow) for way in SLOW)]
)
def test_cached_decisions_change_nothing_that_is_reported(way):
    """Another policy has filled a part of the cache, so hits and misses mix within an episode."""
    cache = DecisionCache()
    agents = models(WAYS[way])
    rows(Random(0.5, seed=1), agents, decision_cache=cache)
    asked, mixed = cache.misses, cache.hits
    with_cache = rows(Random(0.5, seed=2), agents, decision_cache=cache)
    assert with_cache == rows(Random(0.5, seed=2), models(WAYS[way]))
    assert cache.hits > mixed
    assert cache.misses > asked

    asked, before = cache.misses, fed(agents)
    assert rows(Random(0.5, seed=2), agents, decision_cache=cache) == with_cache
    assert (cache.misses, fed(agents)) == (asked, before), "everything was known"


def test_cached_decisions_are_as_sure_as_new_ones_and_take_as_long():
    agents, cache = models(WAYS["action"], slots=1), DecisionCache()

    def play():
        game, seen = TextGame(SPECS, agents, 1, signals=("margin", "entropy", "catch-up"), decision_cache=cache), []
        game.begin(0, 3)
        while not game.episodes[0].over:
            seen.append(game.observe([0]).tolist())
            game.advance({0: len(seen) % 2})
        return seen, game.usage(0)

    first = play()
    assert cache.hits == 0
    assert play() == first, "seconds are those of the first time"
    assert cache.hits == cache.misses > 0
    assert all(usage.seconds > 0 for usage in first[1])


def test_samples_are_not_cached():
    cache = DecisionCache()
    agents = models(WAYS["action"], temperature=1.0)
    assert rows(Random(0.5), agents, decision_cache=cache) == rows(Random(0.5), models(WAYS["action"], temperature=1.0))
    assert (len(cache), cache.hits, cache.misses) == (0, 0, 0)


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


def test_the_least_recently_used_decision_makes_room():
    cache = DecisionCache(max_entries=2)
    answers = {name: CachedDecision(Decision(None, name), 1.0) for name in "abc"}
    for name in "ab":
        cache.put(name.encode(), answers[name])
    assert cache.get(b"a") == answers["a"]
    cache.put(b"c", answers["c"])
    assert cache.get(b"b") is None
    assert [cache.get(b"a"), cache.get(b"c")] == [answers["a"], answers["c"]]
    assert (len(cache), cache.hits, cache.misses) == (2, 3, 1)
    with pytest.raises(ValueError, match="max_entries"):
        DecisionCache(0)


@pytest.mark.slow
def test_a_small_cache_changes_nothing_either():
    cache = DecisionCache(max_entries=3)
    agents = models(WAYS["react"])
    for _ in range(2):
        assert rows(Random(0.5), agents, decision_cache=cache) == rows(Random(0.5), models(WAYS["react"]))
    assert len(cache) == 3


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
def test_cached_decisions_of_an_endpoint_change_neither_actions_nor_the_bill(server, context):
    quick = models(WAYS["react"], slots=1)[0]

    def endpoint():
        made = ChatEndpoint(server.url, "m", concurrency=1)
        return ChatAgent(made, context=context, max_tokens=16, price=(3.0, 15.0))

    def play(seed, cache=None):
        return rows(Random(0.6, seed=seed), [quick, endpoint()], range(60, 66), decision_cache=cache)

    plain, cache = [play(1), play(2)], DecisionCache()
    assert play(1, cache) == plain[0]
    requests, hits = len(server.requests), cache.hits
    assert play(2, cache) == plain[1]
    mixed = len(server.requests) - requests
    assert cache.hits > hits
    assert mixed > 0, "some were asked"
    requests = len(server.requests)
    assert play(2, cache) == plain[1]
    assert len(server.requests) == requests
    asked = [body["messages"] for _, body, _ in server.requests]
    assert any("cannot be used" in talk[-1]["content"] for talk in asked), "some were asked again"
    assert all(row["money"] > 0 for row in plain[0] if row["calls"])
    if context:
        assert any(row["steps"] < 7 and not row["success"] for row in plain[0]), "estimates cut episodes alike"


def test_the_large_model_alone_is_known_throughout_the_second_time():
    agents, cache = models(WAYS["action"]), DecisionCache()
    first = rows(Always(1), agents, decision_cache=cache)
    before = fed(agents)
    assert rows(Always(1), agents, decision_cache=cache) == first
    assert fed(agents) == before
