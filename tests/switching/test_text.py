"""Several models in text episodes: who acts, what each of them has read, what a switch is told, and what it costs."""

import math

import dying_env
import numpy as np
import pytest
import torch
from switch_models import LEVELS, SHAPES, agents, model, specs

from atlas_ray.agents.rollout import EnvSpec, start_episode
from atlas_ray.agents.token_agent import Agent, confidence
from atlas_ray.engines import TransformersEngine
from atlas_ray.errors import InputError
from atlas_ray.models.encoders import make_encoder, normalized
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.switching.baselines import Always, Random
from atlas_ray.switching.environment import SwitchingVectorEnv
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.players import ExpertPlayer
from atlas_ray.switching.text_game import OVER, TextGame


def game(rows=4, max_steps=6):
    return TextGame(specs(max_steps), agents(rows), rows, make_encoder("hashing", 32))


def test_each_model_is_asked_once_a_step_and_for_its_rows_alone(monkeypatch):
    playing = game()
    env = SwitchingVectorEnv(playing, 0)
    asked = []
    for name, agent in zip(SHAPES, playing.agents, strict=True):
        act = agent.act
        monkeypatch.setattr(agent, "act", lambda s, o, e, n=name, act=act: asked.append((n, list(s))) or act(s, o, e))
    env.reset(seed=0)
    env.step(np.array([0, 1, 1, 0]))
    assert asked == [("quick", [0, 3]), ("deepthink", [1, 2])]


def test_all_models_hold_the_true_history():
    third = Agent(TransformersEngine(model("deepthink"), 4, build_tokenizer()), "react")
    playing = TextGame(specs(8), [*agents(), third], 4, make_encoder("hashing", 32))
    env = SwitchingVectorEnv(playing, 0, cost=0.05)
    env.reset(seed=0)
    rng, acted = np.random.default_rng(0), set()
    for _ in range(30):
        env.step(rng.integers(0, 3, 4))
        for row, episode in playing.episodes.items():
            acted |= set(episode.acted)
            for agent in playing.agents:
                expected = agent.renderer.prompt(episode.goal, episode.steps, episode.observation)
                assert agent.prompt(row) == expected
    assert acted == {0, 1, 2}


def test_games_that_share_players_do_not_see_each_other():
    """As in training, whose episodes go on after those of an evaluation."""

    def steps(playing, rounds):
        for _ in range(rounds):
            playing.advance({row: row % 2 for row, e in playing.episodes.items() if not e.over})

    def begun(players, first):
        playing = TextGame(specs(8), players, 4)
        for row in range(4):
            playing.begin(row, first + row)
        return playing

    def outcome(playing):
        return [(e.steps, [u.tokens for u in playing.usage(r)]) for r, e in playing.episodes.items()]

    alone = begun(agents(), 0)
    steps(alone, 6)
    players = agents()
    first = begun(players, 0)
    steps(first, 2)
    steps(begun(players, 50), 3)
    steps(first, 4)
    assert outcome(first) == outcome(alone)


def test_episodes_take_levels_in_turn_and_end_at_the_limit():
    playing = game(max_steps=3)
    env = SwitchingVectorEnv(playing, 0)
    observations, _ = env.reset(seed=10)
    assert [e.spec.name for e in playing.episodes.values()] == [LEVELS[0], LEVELS[1], LEVELS[0], LEVELS[1]]
    assert observations[:, -1].tolist() == [0, 0, 0, 0]
    for _ in range(3):
        observations, _rewards, terminated, truncated, _info = env.step(np.zeros(4, int))
    ended = terminated | (observations[:, -1] < 0.5)
    assert ended.all(), "the step limit is an end for learning: the policy sees how near it is"
    assert not truncated.any()


def test_a_full_context_cuts_the_episode():
    small = [
        Agent(TransformersEngine(build_model(16, 1, 2, 32, seed=1, context=c), 1, build_tokenizer()), "action")
        for c in (2048, 170)
    ]
    env = SwitchingVectorEnv(TextGame(specs(40), small, 1, make_encoder("hashing", 32)), 0)
    env.reset(seed=0)
    for _ in range(40):
        _, _, terminated, truncated, _ = env.step(np.zeros(1, int))
        if terminated[0] or truncated[0]:
            break
    assert truncated[0]
    assert not terminated[0]


def test_playing_is_reproducible_and_counts_what_it_cost():
    def play(policy, slots, **more):
        return evaluate_policy(policy, agents(slots), specs(6), range(100, 107), **more)

    mixed, again = (play(Random(0.5), 4, budget=2, cost=0.1, record=True) for _ in range(2))
    assert [{**r, "seconds": 0} for r in mixed] == [{**r, "seconds": 0} for r in again]
    assert all(r["seconds"] > 0 for r in mixed)
    assert [r["seed"] for r in mixed] == list(range(100, 107))
    for row in mixed:
        assert row["calls"] == sum(step["actor"] == "deepthink" for step in row["episode"]["steps"]) <= 2
        assert row["steps"] == len(row["episode"]["steps"]) <= 6
        assert row["objective"] == pytest.approx(row["return"] - 0.1 * row["calls"])
    assert sum(r["overrides"] for r in mixed) > 0
    assert sum(r["violations"] for r in mixed) == 0
    sizes = [sum(p.numel() for p in model(n).parameters()) for n in SHAPES]
    for row in play(Always(1), 2):
        assert row["tokens"][0] == 0
        assert row["calls"] == row["steps"]
        assert row["flops"] == 2 * sizes[1] * row["tokens"][1]


def tokens(playing, row):
    return [u.tokens for u in playing.usage(row)]


def test_a_call_after_steps_of_the_other_reads_all_that_was_missed():
    playing = game(rows=1, max_steps=20)
    playing.begin(0, 4)
    for _ in range(3):
        playing.advance({0: 0})
    assert tokens(playing, 0)[1] == 0
    prompt = playing.agents[1].prompt(0)
    playing.advance({0: 1})
    assert tokens(playing, 0)[1] == len(prompt), "an action of one token is scored without feeding it"


def test_confidence_is_that_of_the_softmax_over_the_actions():
    assert confidence([-3.0]) == (0.0, 1.0)
    assert confidence([-7.0] * 4) == pytest.approx((1.0, 0.0))
    entropy, margin = confidence([math.log(x) - 5 for x in (0.1, 0.6, 0.3)])
    by_hand = -(0.1 * math.log(0.1) + 0.6 * math.log(0.6) + 0.3 * math.log(0.3)) / math.log(3)
    assert (entropy, margin) == pytest.approx((by_hand, 0.3))
    assert confidence([0.0, -1e5]) == (0.0, 1.0), "what is impossible is left out, and is no NaN"

    quick = agents(1)[0]
    quick.start(0, "go to the red ball", [], "You see nothing")
    offered = ["turn left", "turn right", "go forward"]
    [decision] = quick.act([0], [offered], [0])
    [scores] = quick.engine.score([quick.prompt(0)], [0], [[quick.renderer.action(a) for a in offered]])
    shares = scores.double().softmax(-1)
    first, second, _ = shares.sort(descending=True).values.tolist()
    assert decision.margin == pytest.approx(first - second, abs=1e-6)
    entropy = torch.special.entr(shares).sum() / math.log(3)
    assert decision.entropy == pytest.approx(entropy.item(), abs=1e-6)
    assert decision.action == offered[int(scores.argmax())]


def test_quick_is_asked_once_a_state_and_that_is_its_answer(monkeypatch):
    looked, blind = game(rows=2, max_steps=6), game(rows=2, max_steps=6)
    asked = []
    act = looked.agents[0].act
    monkeypatch.setattr(looked.agents[0], "act", lambda *a: asked.append(list(a[0])) or act(*a))
    for playing in (looked, blind):
        for row in range(2):
            playing.begin(row, row)
    for _ in range(3):
        sure = looked.confidence([0, 1])
        assert looked.confidence([0, 1]) == sure
        assert all(0 <= c.entropy <= 1 and 0 <= c.margin <= 1 for c in sure)
        assert looked.advance({0: 0, 1: 1}).keys() == blind.advance({0: 0, 1: 1}).keys()
    assert asked == [[0, 1]] * 3
    assert [e.steps for e in looked.episodes.values()] == [e.steps for e in blind.episodes.values()]
    assert tokens(looked, 0) == tokens(blind, 0)
    assert tokens(blind, 1)[0] == 0 < tokens(looked, 1)[0], "being looked at costs QUICK what it takes"
    assert [u.calls for u in looked.usage(1)] == [3, 3]


def test_signals_stand_behind_the_text_in_their_order():
    playing = TextGame(specs(4), agents(2), 2, make_encoder("hashing", 32), ("catch-up", "margin", "entropy"))
    assert playing.width == 35
    for row in range(2):
        playing.begin(row, row)
    seen = playing.observe([0, 1])
    sure = playing.confidence([0, 1])
    assert seen.dtype == np.float32
    assert seen[:, :32].tolist() == playing.encoder([e.text for e in playing.episodes.values()]).tolist()
    assert seen[:, 32].tolist() == [1, 1]
    assert seen[:, 33].tolist() == pytest.approx([c.margin for c in sure])
    assert seen[:, 34].tolist() == pytest.approx([c.entropy for c in sure])
    before = len(playing.agents[1].prompt(0))
    playing.advance({0: 1, 1: 0})
    read, total = before, len(playing.agents[1].prompt(0))
    assert playing.observe([0, 1])[:, 32].tolist() == pytest.approx([1 - read / total, 1])
    while not playing.episodes[0].over:
        playing.advance({0: 0})
    assert playing.observe([0])[0, 33:].tolist() == [OVER.margin, OVER.entropy], "nobody is asked when all is over"


def test_a_model_that_has_read_everything_has_nothing_to_catch_up():
    playing = TextGame(specs(4), agents(1), 1, signals=("catch-up",))
    playing.begin(0, 0)
    playing._query(1, [0])
    assert playing.observe([0]).tolist() == [[0]]


def test_the_hidden_state_of_quick_is_read_and_paid_for():
    players = agents(2)
    playing = TextGame(specs(6), players, 2, "hidden", ("margin",))
    assert playing.width == 17
    for row in range(2):
        playing.begin(row, row)
    before = list(players[0].engine.computed_tokens)
    seen = playing.observe([0, 1])
    direct = players[0].engine.hidden([playing.agents[0].prompt(r) for r in range(2)], [0, 1])
    assert np.allclose(seen[:, :16], normalized(direct.numpy()), atol=1e-5)
    assert np.square(seen[:, :16]).mean(-1) == pytest.approx([1, 1], rel=1e-4)
    prompts = [len(playing.agents[0].prompt(r)) for r in range(2)]
    assert [tokens(playing, r)[0] for r in range(2)] == [n + 1 for n in prompts], "read once; its last token again"
    assert [n - b for n, b in zip(players[0].engine.computed_tokens, before, strict=True)] == [n + 2 for n in prompts]
    with pytest.raises(InputError, match=r"switch\.encoder"):
        TextGame(specs(6), [ExpertPlayer(1), players[0]], 1, "hidden")


def test_a_step_is_charged_what_all_models_did_in_it_over_a_mean_call():
    playing = TextGame(specs(6), agents(1), 1, unit="flops", mean_call=1000.0)
    playing.begin(0, 4)
    told = []
    for choice in (0, 1, 1):
        if choice:
            playing.confidence([0])
        told.append(playing.advance({0: choice})[0].used * 1000)
        assert sum(told) == pytest.approx(sum(u.flops for u in playing.usage(0)))
    sizes = [a.engine.parameters for a in playing.agents]
    assert [u.flops for u in playing.usage(0)] == [2 * n * t for n, t in zip(sizes, tokens(playing, 0), strict=True)]
    assert [u.calls for u in playing.usage(0)] == [3, 2]
    unmeasured = game(rows=1)
    unmeasured.begin(0, 3)
    assert unmeasured.advance({0: 1})[0].used == 0


def test_a_switch_may_ask_whether_the_expert_would_do_the_same():
    quick, judged = Agent(TransformersEngine("tiny-quick", 1)), set()
    spec = EnvSpec("PickupDist", {"max_steps": 16})
    playing = TextGame([spec], [quick, quick], 1)
    for seed in range(4):
        playing.begin(0, seed)
        twin = start_episode(spec, seed).env
        expert = twin.expert()
        while not playing.episodes[0].over:
            wanted = expert.act().action
            # asked late, the expert is shown what happened so far
            agrees = playing.agrees([0])[0] if seed % 2 or playing.episodes[0].steps else None
            playing.advance({0: 0})
            taken = playing.episodes[0].steps[-1].action
            expert.follow(taken)
            twin.step(taken)
            assert agrees in (None, taken == wanted)
            judged.add(agrees)
    assert judged == {None, True, False}


def test_an_environment_that_dies_is_replayed_and_no_answer_is_lost(monkeypatch):
    def play(deaths):
        monkeypatch.setattr(dying_env, "DEATHS", dict.fromkeys(range(60), deaths))
        players = [agents(1)[0], ExpertPlayer(1)]
        playing = TextGame([EnvSpec("dying_env:Dying/Doors-v0", {"max_steps": 9})], players, 1)
        playing.begin(0, 44)
        while not playing.episodes[0].over:
            playing.advance({0: 1})
        return playing.episodes[0], tokens(playing, 0)

    whole, fed = play(0)
    died, fed_then = play(1)
    assert died.deaths == 1
    assert whole.success
    assert (died.steps, died.success, fed_then) == (whole.steps, whole.success, fed)
