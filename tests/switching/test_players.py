"""The models of a recipe: local ones, at engine actors, behind an endpoint, and the environments' experts."""

import itertools
import json
import os
import random
import signal

import gymnasium as gym
import pytest
from chat_server import ChatServer, answer

from atlas_ray import envs
from atlas_ray.agents.chat_agent import ChatAgent
from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.agents.token_agent import Agent, Decision
from atlas_ray.cluster.worker_state import WorkerState
from atlas_ray.engines import RemoteEngine, TransformersEngine
from atlas_ray.engines.chat_endpoint import ChatEndpoint
from atlas_ray.envs.babyai_text import ACTIONS
from atlas_ray.errors import InputError
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.switching.baselines import Always, Random
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.players import (
    ExpertPlayer,
    OpenPlayers,
    check_players,
    close_players,
    engine_actors,
    lost,
    open_players,
)
from atlas_ray.switching.text_game import TextGame

SHAPES = {"quick": (16, 1), "deepthink": (32, 2)}
SPECS = [EnvSpec(level, {"max_steps": 6}) for level in ("GoToLocalS5N2", "GoToLocalS6N3")]


class Mute(envs.TextEnv):
    """Never ends well."""

    def variations(self, task, split):
        return range(9)

    def begin(self, variation):
        return "go", "room"

    def admissible(self):
        return ["go"]

    def do(self, action):
        return envs.Turn("room", 0.0)


gym.register("Mute/Room-v0", entry_point=f"{__name__}:Mute", kwargs={"task": "Room-v0"})
MUTE = f"{__name__}:Mute/Room-v0"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models on disk, by name."""
    made = {}
    for name, (hidden, layers) in SHAPES.items():
        made[name] = str(tmp_path_factory.mktemp("models") / name)
        build_model(hidden=hidden, layers=layers, heads=2, intermediate=32, seed=len(name)).save_pretrained(made[name])
        build_tokenizer().save_pretrained(made[name])
    return made


def recipe(models, levels=("GoToLocalS5N2",), switch=None, **more):
    table = {"models": list(models), "levels": list(levels), "costs": [0.05], "num_envs": 3, **(switch or {})}
    return Recipe.model_validate({"name": "x", "workers": 1, "style": "action", "switch": table, **more})


def quick(slots=2):
    hidden, layers = SHAPES["quick"]
    network = build_model(hidden=hidden, layers=layers, heads=2, intermediate=32, seed=5)
    return Agent(TransformersEngine(network, slots, build_tokenizer()), "action")


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_local_models_play_as_the_recipe_says_and_stay(folders):
    act = {"decide": "generate", "window": 3, "thought_tokens": 7, "action_tokens": 9}
    made = recipe([folders["quick"], folders["deepthink"], folders["quick"]], agent=act, style="react")
    state = WorkerState(0)
    players = open_players(made, state)
    assert players[0].engine is players[2].engine, "one engine for a model that stands there twice"
    assert players[0].engine is not players[1].engine
    for player in players:
        assert (player.decide, player.window, player.thought_tokens, player.action_tokens) == ("generate", 3, 7, 9)
        assert (player.renderer.style, player.temperature, player.engine.slots) == ("react", 0.0, 3)
    assert [p.name for p in players] == [folders["quick"], folders["deepthink"], folders["quick"]]
    assert open_players(made, state) is players
    others = open_players(recipe([folders["quick"], "expert"]), state)
    assert isinstance(others[1], ExpertPlayer)
    assert not hasattr(players[1].engine, "model"), "what was open before is closed"
    assert open_players(recipe([folders["quick"], "expert"]), state) is others
    close_players(state)
    assert state.find(OpenPlayers).players == ()
    assert state.index == 0
    close_players(state)


def test_an_endpoint_plays_as_the_recipe_says(folders, monkeypatch):
    monkeypatch.delenv("KEY", raising=False)
    served = {"model": "large", "base_url": "http://127.0.0.1:9/v1", "key_variable": "KEY", "max_tokens": 77}
    served |= {"context": 4000, "price_prompt": 2.0, "price_completion": 8.0}
    state = WorkerState()
    made = recipe([folders["quick"], served], switch={"unit": "money"}, agent={"window": 4}, style="react")
    _, large = open_players(made, state)
    assert isinstance(large, ChatAgent)
    assert (large.max_tokens, large.context, large.window, large.price) == (77, 4000, 4, (2.0, 8.0))
    assert (large.engine.model, large.engine.key_variable, large.engine.slots) == ("large", "KEY", 3)
    assert (large.style, large.temperature) == ("react", 0.0)
    close_players(state)


ENDPOINT = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}


@pytest.mark.parametrize(
    ("models", "more", "field"),
    [
        ([{"model": "expert", "base_url": "http://127.0.0.1:9"}], {}, "switch.models.1.base_url"),
        ([{"model": "m", "base_url": "ftp://x"}], {"switch": {"unit": "seconds"}}, "switch.models.1.base_url"),
        ([{**ENDPOINT, "key_variable": "BAD"}], {"switch": {"unit": "seconds"}}, "switch.models.1.key_variable"),
        ([{"model": "m", "context": 9}], {}, "switch.models.1.context"),
        ([{"model": "m", "key_variable": "KEY", "max_tokens": 9}], {}, "switch.models.1.key_variable"),
        ([ENDPOINT], {}, "switch.unit"),
        ([ENDPOINT], {"switch": {"unit": "money"}}, "switch.models.1"),
        (["expert"], {"levels": [MUTE]}, "switch.models.1.model"),
        (["m"], {"agent": {"decide": "generate"}, "switch": {"signals": ["catch-up", "margin"]}}, "agent.decide"),
        (["m"], {"agent": {"decide": "generate"}, "switch": {"baselines": ["threshold"]}}, "agent.decide"),
    ],
)
def test_what_cannot_play_is_refused_before_anything_is_opened(models, more, field, monkeypatch):
    monkeypatch.setenv("BAD", "a key with blanks")
    with pytest.raises(InputError) as caught:
        check_players(recipe(["quick-that-is-nowhere", *models], **more))
    assert caught.value.field == field


def test_a_game_without_an_expert_says_so_too():
    with pytest.raises(InputError, match="has no expert"):
        TextGame([EnvSpec(MUTE)], [quick(), ExpertPlayer(2)], 1).begin(0, 0)


LEVELS = ("GoToLocalS6N4", "PickupDist", "PutNextLocalS5N3", "UnlockPickup")


def test_the_expert_succeeds_in_every_episode():
    rows = evaluate_policy(Always(1), [quick(4), ExpertPlayer(4)], [EnvSpec(name) for name in LEVELS], range(16))
    assert all(row["success"] for row in rows)
    assert all(row["tokens"] == [0, 0] and row["flops"] == row["money"] == 0 < row["seconds"] for row in rows)


class Late:
    """QUICK for the first steps of an episode."""

    needs = frozenset()

    def __init__(self, steps):
        self.steps = steps

    def decide(self, situations):
        return [int(s.step >= self.steps) for s in situations]


MENDABLE = [*(a for a in ACTIONS if a != "toggle"), "sing"]


class Wild(ExpertPlayer):
    """Does anything that can be mended, also what is no action. A box that is opened is gone, and a goal with it."""

    def fork(self):
        return Wild(self.engine.slots)

    def act(self, slots, actions, seeds):
        return [Decision(None, random.Random(seed).choice(MENDABLE)) for seed in seeds]


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_the_expert_mends_what_others_did_before_it_was_asked(steps):
    rows = evaluate_policy(Late(steps), [Wild(4), ExpertPlayer(4)], [EnvSpec(name) for name in LEVELS], range(16))
    assert all(row["success"] for row in rows)
    mixed = evaluate_policy(Random(0.6), [Wild(4), ExpertPlayer(4)], [EnvSpec(name) for name in LEVELS[:2]], range(12))
    assert all(row["success"] for row in mixed)


def test_the_expert_says_nothing_where_it_gives_up_and_that_is_counted():
    game = TextGame([EnvSpec("KeyInBox", {"max_steps": 5})], [quick(), ExpertPlayer(1)], 1)
    game.begin(0, 0)
    while not game.episodes[0].over:
        game.advance({0: 1})
    said = [step.action for step in game.episodes[0].steps]
    assert "(no answer)" in said
    assert game.expert_failures == said.count("(no answer)")
    assert not game.episodes[0].success


def test_a_gold_path_holds_where_it_still_leads_to_the_goal():
    class Corridor(Mute):
        """Walk three times, open; "wait" is harmless and "fall" is not."""

        def begin(self, variation):
            self.place, self.fallen = 0, False
            return "open the door", "0"

        def do(self, action):
            self.place += action == "walk"
            self.fallen |= action == "fall"
            won = action == "open" and self.place == 3 and not self.fallen
            return envs.Turn(f"{self.place}", float(won), won, over=action == "open")

    def corridor():
        env = Corridor("Corridor-v0")
        env.reset(seed=0)
        return env, envs.GoldPath(["walk", "walk", "walk", "open"], env)

    def go(script):
        """``None`` asks the expert."""
        env, expert = corridor()
        for given in script:
            action = given or expert.act().action
            expert.follow(action)
            *_, info = env.step(action)
        return env.history, info["success"]

    assert go([None] * 4) == (["walk", "walk", "walk", "open"], True)
    assert go(["walk", None, "walk", None])[1], "others on the path"
    assert go(["wait", None, "look", None, None, None]) == (["wait", "walk", "look", "walk", "walk", "open"], True)
    with pytest.raises(envs.ExpertGaveUpError, match="somebody left the gold path"):
        go([None, "fall", None])
    with pytest.raises(envs.ExpertGaveUpError, match="somebody left"):
        go([None, None, None, "walk", None])
    blind = envs.GoldPath(["walk", "open"])
    blind.follow("wait")
    with pytest.raises(envs.ExpertGaveUpError, match="somebody left"):
        blind.act()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = ChatServer()
    yield made
    made.kill()


def test_an_endpoint_is_the_large_model_and_its_bill_is_the_servers(server):
    """A reply that is asked for again is paid for too."""
    replies = iter(["fly", "drop", "turn left", "turn right"])
    server.script = lambda body: answer(next(replies), usage=(100 * len(body["messages"]), 7))
    chat = ChatAgent(ChatEndpoint(server.url, "m", concurrency=1), "action", price=(2.0, 10.0))
    local = quick(1)
    local.price = (1.0, 3.0)
    game = TextGame([EnvSpec("GoToLocalS6N3", {"max_steps": 9})], [local, chat], 1, unit="money", mean_call=0.001)
    game.begin(0, 3)
    told = [game.advance({0: choice})[0].used for choice in (1, 0, 1, 1)]
    assert [s.action for s in game.episodes[0].steps][0::2] == ["drop", "turn left"]
    assert game.agents[1].messages(0)[-1]["content"].startswith("Observation:\n> ")
    tried = [len(body["messages"]) for _, body, _ in server.requests]
    assert tried == [2, 4, 6, 8], "asked again with two messages more; then it sees the other model's turn as its own"
    small, large = game.usage(0)
    assert (large.calls, large.tokens, large.flops) == (3, 100 * sum(tried) + 7 * 4, 0)
    assert large.money == pytest.approx((2.0 * 100 * sum(tried) + 10.0 * 7 * 4) / 1e6)
    assert small.money == pytest.approx(1.0 * small.tokens / 1e6), "an action of one token is read and not written"
    assert sum(told) * 0.001 == pytest.approx(small.money + large.money)
    assert small.seconds > 0
    assert large.seconds > 0
    with pytest.raises(InputError, match=r"switch\.unit"):
        TextGame([EnvSpec("GoToLocalS6N3")], [local, chat], 1, unit="flops", mean_call=1.0)
    TextGame([EnvSpec("GoToLocalS6N3")], [local, ExpertPlayer(1)], 1, unit="flops", mean_call=1.0)


def test_what_an_endpoint_has_yet_to_read_is_counted_in_characters(server):
    server.script = lambda body: answer("drop")
    chat = ChatAgent(ChatEndpoint(server.url, "m", concurrency=1), "action")
    game = TextGame([EnvSpec("GoToLocalS6N3")], [quick(1), chat], 1, signals=("catch-up",))
    game.begin(0, 3)
    assert game.observe([0]).tolist() == [[1]]
    game.advance({0: 1})
    game.advance({0: 0})
    read = json.dumps(server.requests[-1][1]["messages"], ensure_ascii=False)[1:-1]
    now = game.agents[1].prompt(0)
    assert now.startswith(read)
    assert game.observe([0]).tolist() == [[pytest.approx(1 - len(read) / len(now))]]


def test_money_is_not_guessed_where_a_server_counts_nothing(server):
    server.script = lambda body: answer("turn left", usage=None)
    for price in ((1.0, 0.0), (0.0, 0.0)):
        chat = ChatAgent(ChatEndpoint(server.url, "m", concurrency=1), "action", price=price)
        game = TextGame([EnvSpec("GoToLocalS6N3")], [quick(1), chat], 1)
        game.begin(0, 3)
        if any(price):
            with pytest.raises(InputError, match=r"switch\.models\.1: its server counts no tokens"):
                game.advance({0: 1})
        else:
            game.advance({0: 1})
            assert game.usage(0)[1].tokens == 0


def test_a_batch_shares_its_time_by_tokens(monkeypatch):
    game = TextGame(SPECS, [quick(2), ExpertPlayer(2)], 2)
    for row in range(2):
        game.begin(row, row)
    now = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    game.advance({0: 0, 1: 0})
    used = [game.usage(row)[0] for row in range(2)]
    taken, total = next(now) - 1, sum(u.tokens for u in used)
    assert used[0].tokens != used[1].tokens
    assert [u.seconds for u in used] == pytest.approx([taken * u.tokens / total for u in used])
    game.advance({0: 1, 1: 1})
    assert [game.usage(row)[1].seconds for row in range(2)] == [0.5, 0.5], "without tokens all alike"


@pytest.mark.slow
def test_a_killed_engine_actor_changes_no_row(ray_session, folders, monkeypatch):
    """It dies while an answer of a step is on its way."""
    import ray

    models = [folders["quick"], "expert"]
    made = recipe(models, engine={"actors": 1, "timeout": 60.0})
    policy, seeds = Random(0.5), range(30, 36)
    state = WorkerState()
    expected = timeless(evaluate_policy(policy, open_players(recipe(models), state), SPECS, seeds))
    close_players(state)
    with engine_actors(made) as leases:
        assert [len(s) for s in leases] == [1], "an expert has no engine"
        state = WorkerState(0)
        players = open_players(made, state, leases)
        assert isinstance(players[0].engine, RemoteEngine)
        assert lost(players) == 0
        engine, asked, wait = players[0].engine, [], ray.wait
        pid = ray.get(engine.lease.server.pid.remote())
        real = engine.answer

        def stop_then_answer(requests):
            asked.append(len(requests))
            if len(asked) == 3:
                os.kill(pid, signal.SIGSTOP)
                monkeypatch.setattr(ray, "wait", kill_then_wait)
            return real(requests)

        def kill_then_wait(*args, **kwargs):
            monkeypatch.setattr(ray, "wait", wait)
            os.kill(pid, signal.SIGKILL)
            return wait(*args, **kwargs)

        monkeypatch.setattr(engine, "answer", stop_then_answer)
        assert timeless(evaluate_policy(policy, players, SPECS, seeds)) == expected
        assert len(asked) > 3
        assert lost(players) == 1
        assert ray.get(engine.lease.server.pid.remote()) != pid
        assert sum(engine.computed_tokens) > sum(row["tokens"][0] for row in expected)


def test_without_actors_nobody_is_seated(folders):
    with engine_actors(recipe(folders.values())) as leases:
        assert leases == ()
