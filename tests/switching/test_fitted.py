"""Rules that look back, hand-written and fitted, on roads where it is known at which steps QUICK fails."""

import math
from itertools import pairwise

import numpy as np
import pytest
import signs_env
from scipy.optimize import minimize

from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.errors import InputError
from atlas_ray.recipe.switch import DOUBTS
from atlas_ray.switching.baselines import Always, Shadowed, Triggers, calibrate
from atlas_ray.switching.calibration import Calibration, weights_of
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.fitted import Branch, EscalateOnce, calibrate_escalation, doubting_switch
from atlas_ray.switching.logistic import BLANK, WIDTH, chance, fit, read, read_answer
from atlas_ray.switching.past import Past
from atlas_ray.switching.players import ExpertPlayer
from atlas_ray.switching.policy import Situation, SwitchConfig, SwitchPolicy
from atlas_ray.switching.signals import of_verifier

TRAINING, TEST = range(62), range(1000, 1062)


def play(policy, seeds, split, **more):
    players = [signs_env.AlwaysLeft(8), ExpertPlayer(8)]
    return evaluate_policy(policy, players, [EnvSpec("signs_env:Signs/Roads-v0", {"split": split})], seeds, **more)


def shown(row):
    return [step["observation"] for step in row["episode"]["steps"]]


def past(observations, actions=None, acted=None):
    n = len(observations) - 1
    return Past(tuple(observations), tuple(actions or "x" * n), tuple(acted or [0] * n))


def test_the_past_says_what_was_seen_what_had_no_effect_and_what_was_refused():
    assert [past("a").visits, past("aba").visits, past("aaba").visits] == [0, 1, 2]
    assert [past("a").unchanged, past("aba").unchanged, past("baaa").unchanged] == [0, 0, 2]
    assert [past("abc", acted=a).since_call for a in ([0, 0], [1, 0], [0, 2])] == [None, 2, 1]
    assert past(["a room", "You can't do that."]).refused
    assert not past(["You can't do that."]).refused, "nothing was done yet"
    assert not past(["a room", "a cantina"]).refused
    assert past("abcd", "xyz", [0, 1, 0]).until(1) == past("ab", "x", [0])


def test_triggers_call_where_something_repeats_or_is_refused_or_critical():
    def decided(rule, **told):
        return rule.decide([Situation("", None, 0.0, "e", 0, **told)])[0]

    assert decided(Triggers(), past=past("aba")) == 1
    assert decided(Triggers(action=2), past=past(["a", "Nothing happens."])) == 2
    assert decided(Triggers(), past=past("abc")) == 0
    assert Triggers().needs == {"past"} and Triggers(("focus on",)).needs == {"past", "proposal"}
    rows = play(Triggers(("left",)), TEST, "test")
    assert all(row["calls"] == row["steps"] for row in rows), "QUICK always wants what is critical"
    with pytest.raises(ValueError, match="past"):
        decided(Triggers())


def test_triggers_call_one_step_after_each_failure_of_quick():
    rows = play(Triggers(), TEST, "test", record=True)
    for row in rows:
        seen = shown(row)
        assert row["called_at"] == [t + 1 for t, (a, b) in enumerate(pairwise(seen)) if a == b]
        assert row["success"] and row["calls"] == sum("red" in s for s in set(seen))
        assert row["calls_by_model"][0] == signs_env.JUNCTIONS
    bounded = play(Triggers(), TEST, "test", budget=1)
    assert max(row["calls"] for row in bounded) == 1
    assert {row["success"] for row in bounded} == {True, False}


def test_weights_are_those_of_the_penalised_likelihood():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 5)), rng.random(40) < 0.4

    def loss(w):
        return np.logaddexp(0, np.where(labels, -1, 1) * (x @ w)).sum() + 0.5 * w @ w

    assert fit(x, labels) == pytest.approx(minimize(loss, np.zeros(5), tol=1e-10).x, abs=1e-4)
    same = fit(x, [True] * 40)
    assert all(map(math.isfinite, same)) and chance(same, x[0]) > 0.5
    with pytest.raises(ValueError, match="none to fit"):
        fit([], [])


@pytest.fixture(scope="module")
def calibration():
    """Of training roads, as the stage does it."""
    quick, shadowed = (play(p, TRAINING, "train", record=True) for p in (Always(0), Shadowed(1)))
    assert all(set(row["proposed"]) == {"left"} and len(row["proposed"]) == row["steps"] for row in shadowed)
    escalated = play(EscalateOnce(BLANK, math.inf, 2), TRAINING, "train")
    made = Calibration().with_escalation(quick, escalated, 2)
    for kind in DOUBTS:
        made = made.with_doubt(kind, quick, weights_of(kind, shadowed))
    return made


@pytest.fixture(params=DOUBTS)
def kind(request):
    return request.param


@pytest.fixture
def doubt(calibration, kind):
    return calibration.doubts[kind]


def test_a_rule_that_doubts_quick_calls_where_it_fails_and_nowhere_else(calibration, kind, doubt):
    rule = doubting_switch(kind, doubt.weights, 0.5)
    for row in play(rule, TEST, "test", record=True):
        assert row["called_at"] == [t for t, s in enumerate(shown(row)) if "red" in s]
        assert row["success"] and row["steps"] == signs_env.JUNCTIONS
    assert calibration.terms(kind, 0.25, None) == {"tau": calibrate(doubt.chances, 0.25), "weights": doubt.weights}
    quick = play(Always(0), TRAINING, "train")
    assert len(doubt.chances) == sum(row["steps"] for row in quick), "of QUICK's own steps on training roads"


@pytest.mark.parametrize("budget", [None, 1])
def test_a_rule_is_a_switch_that_decides_by_its_chance(kind, doubt, tmp_path, budget):
    """Saved and loaded it is the same; from Python it reads an episode's past by itself, and is told an answer."""
    tau = calibrate(doubt.chances, 0.25)
    doubting_switch(kind, doubt.weights, tau, budget=budget).save(tmp_path / "switch")
    rule = SwitchPolicy.load(tmp_path / "switch")
    assert rule.config.signals == (kind,) and rule.config.budget == budget
    made = 0
    for row in play(rule, TEST, "test", budget=budget, record=True):
        observations, actions = shown(row), [step["action"] for step in row["episode"]["steps"]]
        called = []
        for t, observation in enumerate(observations):
            so_far = past(observations[: t + 1], actions[:t])
            text = f"{row['episode']['instruction']}\n{observation}"
            features = read(text, so_far) if kind == "classifier" else read_answer(text, so_far, "left")
            own = np.float32(chance(doubt.weights, features))
            left = None if budget is None else budget - len(called)
            called += [t] if float(own) < tau and left != 0 else []
            told = {"past": so_far} if kind == "classifier" else {"encoded": [own]}
            assert rule(text, left, **told) == (t in called)
        assert row["called_at"] == called
        made += len(called)
    assert made
    how = "`past`, or as `encoded`" if kind == "classifier" else "`encoded`"
    with pytest.raises(InputError, match=f"{kind}: give them as {how}"):
        rule("go to the end\na red road")
    for wrong in (("a",), Past((), (), ())):
        with pytest.raises(InputError, match="a Past that ends with the present observation") as error:
            rule("go to the end\na red road", past=wrong)
        assert error.value.field == "past"


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 1.0])
def test_a_rule_calls_at_the_states_below_its_threshold_in_the_precision_in_which_it_reads(kind, doubt, rate):
    """Also where the threshold is one of the chances, or lies above all of them."""
    tau = calibrate(doubt.chances, rate)
    rule = doubting_switch(kind, doubt.weights, tau, action=2)
    features = np.array([[c, 1, 0] for c in doubt.chances], np.float32)
    wanted = [2 * (c < tau) for c in doubt.chances]
    assert rule.greedy(features) == wanted and rule.config.models == 3
    assert {0.0: {0}, 1.0: {2}}.get(rate, {0, 2}) == set(wanted)


def test_an_answer_is_read_with_the_state_that_it_is_given_in():
    """The goal's words are the same in every answer; what is right in one state may be wrong in another."""
    ball, key = (read_answer(f"take the {it}\na door", past("a"), f"take {it}") for it in ("red ball", "grey key"))
    assert ball[WIDTH:].tolist() != key[WIDTH:].tolist(), "the words of their states differ"
    assert ball[-32:].tolist() == key[-32:].tolist()
    assert ball[-32:].tolist() != read_answer("take the red ball\na door", past("a"), "take key")[-32:].tolist()
    assert ball.tolist() == read_answer("take the red ball\na door", past("a"), "Take [red ball]")[:].tolist()
    assert ball[:WIDTH].tolist() == read("take the red ball\na door", past("a")).tolist()
    states, answers = ["go\na wall", "go\na hall"] * 20, ["turn", "turn", "on", "on"] * 10
    features = [read_answer(s, past("a"), a) for s, a in zip(states, answers, strict=True)]
    labels = [("wall" in s) == (a == "turn") for s, a in zip(states, answers, strict=True)]
    weights = fit(features, labels)
    assert [chance(weights, x) > 0.5 for x in features] == labels, "which no sum of words and answers could tell"
    assert of_verifier(weights, "go\na wall", past("a"), None) == 0, "no answer is doubted most"


@pytest.mark.parametrize(
    ("signals", "classifier"),
    [(("classifier",), ()), (("classifier",), BLANK[1:]), ((), BLANK), (("classifier",), (math.nan, *BLANK[1:]))],
)
def test_weights_of_the_classifier_that_do_not_fit_its_signal_are_refused(signals, classifier):
    width = len(signals)
    tensors = {"layers.0.weight": np.zeros((2, width + 2), np.float32), "layers.0.bias": np.zeros(2, np.float32)}
    with pytest.raises(InputError, match="classifier"):
        SwitchPolicy(SwitchConfig(width, (), signals=signals, classifier=classifier), tensors)


def test_escalation_is_decided_once_by_the_first_steps(calibration):
    hard = [row["episode"]["instruction"] for row in play(Always(1), TEST[:1], "test", record=True)]
    assert hard == ["go to the end"]
    rule = EscalateOnce(calibration.escalation, 0.5, 2)
    for row in play(rule, TEST, "test", record=True):
        roads = {s.partition(",")[0] for s in shown(row)}
        wanted = list(range(2, row["steps"])) if roads == {"a hard road"} else []
        assert row["called_at"] == wanted and row["success"]
    assert not any(row["calls"] for row in play(EscalateOnce(BLANK, 0.5, 2), TEST, "test")), "0.5 is not below 0.5"


def test_escalation_meets_the_rate_that_is_nearest(calibration):
    rng = np.random.default_rng(1)
    branches = [Branch(float(rng.integers(12)), *map(int, rng.integers([5, 3, 1], [20, 9, 3]))) for _ in range(40)]

    def off(tau, rate, budget):
        calls = sum(min(b.calls, budget or b.calls) for b in branches if b.value < tau)
        steps = 30 + sum(b.escalated_steps if b.value < tau else b.steps for b in branches)
        return abs(calls / steps - rate)

    for budget in (None, 1):
        for rate in (0.0, 0.03, 0.1, 0.2, 1.0):
            found = calibrate_escalation(branches, rate, budget, 30)
            assert off(found, rate, budget) == min(off(t, rate, budget) for t in (*range(13), math.inf))
    with pytest.raises(ValueError, match="none to calibrate"):
        calibrate_escalation([], 0.5, None)
    assert calibration.terms("escalate", 0.99, None)["tau"] == math.inf
    assert calibration.terms("random", 0.5, 2) == {}
    with pytest.raises(InputError, match="escalate_after"):
        Calibration().with_escalation([{"steps": 2, "seed": 0}], [{"steps": 2, "seed": 0, "calls": 0}], 2)


def test_a_state_is_read_the_same_whoever_acted():
    assert read("g\nb", past("ab")).tolist() == read("g\nb", past("ab", acted=[1])).tolist()
    assert read("g\na", past("aa")).tolist() != read("g\na", past("ba")).tolist()
    assert read("g\na", past("aa")).tolist() == read("g\na", past("xx")).tolist(), "digests will do"
