"""What a switch sees besides the text: QUICK's answer and the episode's own past."""

from typing import get_args

import numpy as np
import pytest
import signs_env
from switch_models import agents, specs

from atlas_ray.agents.decisions import Decision
from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.models.encoders import make_encoder
from atlas_ray.models.hashed_words import encode
from atlas_ray.recipe import switch as recipe_switch
from atlas_ray.recipe.loading import Switch
from atlas_ray.recipe.switch import Signal
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.baselines import Triggers
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.features import EXTRA
from atlas_ray.switching.past import Past
from atlas_ray.switching.players import ExpertPlayer
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.signals import CLASSIFIER, PAST, SCORED, VERIFIER, WIDTHS, of_past, of_proposal, total_width
from atlas_ray.switching.text_game import TextGame

ROADS = [EnvSpec("signs_env:Signs/Roads-v0", {"split": "test"})]
ALL = tuple(name for name in WIDTHS if name not in (CLASSIFIER, VERIFIER))


def test_signals_of_the_past_by_hand():
    def told(observations, acted):
        past = Past(tuple(observations), ("x",) * len(acted), tuple(acted))
        return [of_past(name, past) for name in ("visits", "unchanged", "since-call")]

    assert told("a", []) == [0, 0, 0]
    assert told("aba", [0, 1]) == [1 / 2, 0, 1]
    assert told("baaa", [1, 0, 0]) == [2 / 3, 2 / 3, 1 / 3]
    assert told("ab", [0]) == [0, 0, 0]


def test_a_recipe_names_the_signals_that_there_are():
    """The recipe's lists stand by themselves, since what a signal is takes long to import there."""
    assert set(get_args(Signal)) == set(WIDTHS)
    assert set(recipe_switch.SCORED) == SCORED and set(recipe_switch.PAST) == PAST


def test_a_proposal_is_its_words_and_what_they_are_to_the_goal():
    ball, key = (of_proposal(f"take the {it}", Decision(None, f"take {it}")) for it in ("red ball", "grey key"))
    assert ball.shape == key.shape == (WIDTHS["proposal"],)
    assert ball[32:].tolist() == key[32:].tolist(), "it takes what is wanted"
    assert ball[:32].tolist() != key[:32].tolist()
    thought = of_proposal("take the red ball", Decision("it is\nhere", "take red ball"))
    assert thought.tolist() == encode("take the red ball\nit is here. take red ball", 64)[16:].tolist()
    assert not of_proposal("take the red ball", None).any()


def test_quick_is_asked_once_for_all_that_is_said_of_its_answer_and_acts_by_it(monkeypatch):
    playing = TextGame(specs(6), agents(2), 2, make_encoder("hashing", 32), ALL)
    assert playing.width == 32 + total_width(ALL) == 32 + 6 + 48
    asked, act = [], playing.agents[0].act
    monkeypatch.setattr(playing.agents[0], "act", lambda *a: asked.append(list(a[0])) or act(*a))
    for row in range(2):
        playing.begin(row, row)
    for _ in range(3):
        seen = playing.observe([0, 1])
        proposals = playing.proposals([0, 1])
        for row, proposal in enumerate(proposals):
            said = of_proposal(playing.episodes[row].goal, proposal)
            assert seen[row, -48:].tolist() == said.tolist()
            visits, unchanged, since = (of_past(name, playing.episodes[row].past) for name in ALL[3:6])
            assert seen[row, -51:-48].tolist() == pytest.approx([visits, unchanged, since])
        playing.advance({0: 0, 1: 1})
        assert playing.episodes[0].steps[-1].action == proposals[0].action
    assert asked == [[0, 1]] * 3
    assert [used.calls for used in playing.usage(1)] == [3, 3], "QUICK is paid for where DEEPTHINK acts too"
    while not playing.episodes[0].over:
        playing.advance({0: 0})
    assert playing.proposals([0]) == [None] and not playing.observe([0])[0, -48:].any()


def test_a_proposal_costs_what_quick_reads_and_writes_at_every_step():
    def play(signals):
        policy = SwitchPolicy(
            SwitchConfig(total_width(signals), (), signals=signals), zeros(total_width(signals), call=1.0)
        )
        return evaluate_policy(policy, agents(), specs(6), range(4))

    for blind, looked in zip(play(("visits",)), play(("proposal",)), strict=True):
        assert blind["calls"] == blind["steps"] and blind["tokens"][0] == 0
        assert looked["calls"] == looked["steps"] and looked["tokens"][0] > 0
        assert looked["tokens"][1] == blind["tokens"][1] and looked["flops"] > blind["flops"]


def zeros(features, **weights):
    """A linear switch: the advantage of a call is a bias ``call``, and weights by entry ``w0``, ``w1``, ..."""
    weight = np.zeros((2, features + EXTRA), np.float32)
    for name, value in weights.items():
        if name != "call":
            weight[1, int(name[1:])] = value
    return {"layers.0.weight": weight, "layers.0.bias": np.array([0, weights.get("call", 0)], np.float32)}


def test_a_switch_that_reads_visits_can_play_as_the_trigger_does():
    players = [signs_env.AlwaysLeft(8), ExpertPlayer(8)]
    learned = SwitchPolicy(SwitchConfig(1, (), signals=("visits",)), zeros(1, w0=1.0, call=-0.25))
    for budget in (None, 1):
        by_hand, by_network = (
            evaluate_policy(policy, players, ROADS, range(40), budget) for policy in (Triggers(), learned)
        )
        assert [r["called_at"] for r in by_hand] == [r["called_at"] for r in by_network]
        assert any(r["calls"] for r in by_hand)


def test_a_saved_switch_keeps_its_signals_and_cannot_read_them_from_text(tmp_path):
    signals = ("proposal", "since-call")
    SwitchPolicy(SwitchConfig(49, (), signals=signals), zeros(49, w48=1.0)).save(tmp_path / "switch")
    loaded = SwitchPolicy.load(tmp_path / "switch")
    assert loaded.config.signals == signals
    encoded = np.zeros(49, np.float32)
    assert (loaded("goal\nseen", encoded=encoded), loaded("goal\nseen", encoded=encoded + 1)) == (0, 1)
    with pytest.raises(Exception, match="proposal and since-call"):
        loaded("goal\nseen")


def test_only_what_needs_probabilities_is_refused_of_models_without():
    def recipe(*signals):
        return {"models": ["expert", "tiny-deepthink"], "levels": ["GoToLocal"], "costs": [0], "signals": list(signals)}

    assert Switch.model_validate(recipe("proposal", "visits", "unchanged", "since-call", "catch-up"))
    with pytest.raises(ValueError, match="margin needs a first model"):
        Switch.model_validate(recipe("proposal", "margin"))


def test_since_call_follows_who_acted():
    playing = TextGame(specs(6), agents(1), 1, signals=("since-call",))
    playing.begin(0, 0)
    seen = []
    for number in (0, 1, 0, 0):
        seen.append(playing.observe([0]).item())
        playing.advance({0: number})
    assert seen == [0, 0, 1, 0.5]
