"""Budgets in tokens and money where models act in text: the worst case of a decision, and what an episode costs."""

import dying_env
import pytest

from atlas_ray.agents.chat_agent import ChatAgent
from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.agents.token_agent import Agent
from atlas_ray.engines import TransformersEngine
from atlas_ray.models.encoders import make_encoder
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.switching.baselines import Always, Random
from atlas_ray.switching.environment import SwitchingVectorEnv
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.text_game import TextGame

SPEC = EnvSpec("dying_env:Dying/Doors-v0", {"max_steps": 6})
PRICE = (2.0, 10.0)


class WatchedAgent(Agent):
    """Checks that no decision takes more than its worst case, and adds up what they take."""

    def act(self, slots, actions, seeds):
        worst = [self.worst_case(slot, offered) for slot, offered in zip(slots, actions, strict=True)]
        decisions = super().act(slots, actions, seeds)
        for slot, decision, most in zip(slots, decisions, worst, strict=True):
            took = self.tokens_of(slot, decision)
            assert took[0] <= most[0] and took[1] <= most[1], (took, most)
            assert took[0] >= len(self.prompt(slot))
        return decisions


def agents(style="action", decide="score", rows=4):
    engines = [TransformersEngine(build_model(16, 1, 2, 32, seed=s), rows, build_tokenizer()) for s in (0, 1)]
    return [
        WatchedAgent(e, style, decide=decide, price=p, thought_tokens=4, action_tokens=6)
        for e, p in zip(engines, [(0.0, 0.0), PRICE], strict=True)
    ]


@pytest.fixture(autouse=True)
def _no_deaths_left():
    dying_env.DEATHS.clear()
    yield
    dying_env.DEATHS.clear()


def play(policy, agents, seeds, **options):
    return evaluate_policy(policy, agents, [SPEC], seeds, bills=True, absorb_env_deaths=True, **options)


@pytest.mark.parametrize(("style", "decide"), [("action", "score"), ("react", "score"), ("react", "generate")])
@pytest.mark.parametrize("unit", ["tokens", "usd"])
def test_no_text_episode_exceeds_its_budget(style, decide, unit):
    dying_env.DEATHS.update({3: 2, 5: 1})
    rows = play(Random(0.7), agents(style, decide), range(6))
    most = max(row["spent"][unit] for row in rows)
    for share in (0.2, 0.6):
        budget = round(share * most, 7) if unit == "usd" else int(share * most)
        rows = play(Random(0.7), agents(style, decide), range(6), budget=budget, budget_unit=unit)
        assert max(row["spent"][unit] for row in rows) <= share * most + 1e-7
        assert {row["violations"] for row in rows} == {0}
    assert sum(row["calls"] for row in rows) > 0, "it is not too tight to be tested"


def test_an_episode_ends_where_its_tokens_do_and_money_of_a_free_quick_does_not():
    whole = {row["seed"]: row for row in play(Always(0), agents(), range(4))}
    long = max(whole.values(), key=lambda row: row["spent"]["tokens"])
    (row,) = play(Always(0), agents(), [long["seed"]], budget=long["spent"]["tokens"] - 1, budget_unit="tokens")
    assert (row["steps"], row["success"], row["lost"]) == (long["steps"] - 1, False, False)
    for row in play(Always(1), agents(), range(4), budget=0.0, budget_unit="usd"):
        assert (row["calls"], row["steps"], row["spent"]["usd"]) == (0, whole[row["seed"]]["steps"], 0)
        assert row["overrides"] == row["steps"]


def test_what_is_counted_is_what_the_models_took():
    """Every prompt counts whole, whatever a cache has kept, and money goes by the price."""
    (row,) = play(Always(1), agents(), [1], budget=1.0, budget_unit="usd")
    assert row["calls"] == row["steps"] > 1
    assert row["spent"]["usd"] == pytest.approx(row["spent"]["tokens"] * PRICE[0] / 1e6, rel=1e-12), (
        "nothing is written"
    )
    assert row["spent"]["tokens"] > sum(row["tokens"])


def test_training_sees_the_share_that_is_left_and_ends_there():
    budget = 100
    game = TextGame([SPEC], agents(), 4, make_encoder("hashing", 32), bills=True)
    env = SwitchingVectorEnv(game, 0, budget, unit="tokens")
    seen, _ = env.reset()
    assert (seen[:, -2] == 1).all()
    shares, ended = [seen[0, -2]], [False]
    while not ended[0]:
        seen, _, ended, truncated, _ = env.step([0] * 4)
        assert not truncated.any()
        shares.append(seen[0, -2])
    assert shares == sorted(shares, reverse=True) and 0 <= shares[-1] < shares[1] < 1
    assert game.episodes[0].over and len(game.episodes[0].steps) < 6
    assert game.episodes[0].spent.tokens <= budget


class Endpoint:
    """As much of a chat endpoint as counts here."""

    slots, retries, model, extra = 1, 2, "m", {}


def test_the_worst_case_of_an_endpoint_has_every_attempt_in_it():
    agent = ChatAgent(Endpoint(), "action", max_tokens=50, reasks=1)
    agent.start(0, "go to the red ball", [], "You see a wall é")
    size = len(agent.prompt(0).encode())
    prompt, written = agent.worst_case(0, ["turn left", "turn right"])
    assert written == 3 * 2 * 50
    assert prompt > 3 * (2 * size + 1000)
    agent.reasks, agent.engine.retries = 0, 0
    assert size < agent.worst_case(0, ["turn left", "turn right"])[0] < size + 600
