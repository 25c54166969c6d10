"""Reading logs: what is taken, counted and refused, and that a switch sees in them what it sees at play."""

import json

import numpy as np
import pytest
import switch_logs
import switch_mdps
from switch_logs import CodeEncoder
from switch_mdps import MDPS
from switch_models import agents, both, specs

from atlas_ray.errors import InputError
from atlas_ray.models.encoders import HashingEncoder
from atlas_ray.switching.budget import BudgetGuard
from atlas_ray.switching.features import BUDGET_ENTRY
from atlas_ray.switching.logs import read_logs
from atlas_ray.switching.policy import Situation
from atlas_ray.switching.text_game import TextGame
from atlas_ray.switching.transitions import Transitions, split, uncertainty


def line(number=0, actors=("quick", "deepthink"), **more):
    steps = [
        {"observation": f"You see {n}", "action": "a", "actor": a, "probability": 0.5} for n, a in enumerate(actors)
    ]
    about = {"id": f"e{number}", "env": "x", "task": "x", "seed": 0, "instruction": "go", "steps": steps}
    return {**about, "score": None, "success": True, "source": "x", **more}


def usage(name, spent, known):
    models = [{"model": m, "price_prompt": 1.0, "price_completion": 1.0} for m in ("small", "large")]
    taken = [
        {"step": n, "model": "small", "prompt_tokens": 1, "completion_tokens": 1, "usd": u, "begun": 0.0, "seconds": 1}
        for n, u in enumerate(known)
    ]
    spent = {"calls": 1, "tokens": 2, "usd": spent}
    return json.dumps({"id": name, "session": None, "models": models, "spent": spent, "steps": taken})


def test_what_was_logged_comes_back(tmp_path):
    played = switch_logs.play("chain-6", 30, seed=1, call=0.3, budget=1)
    switch_logs.write(tmp_path / "log.jsonl", [switch_logs.trajectory(e) for e in played])
    assert read_logs([tmp_path], 2).episodes == tuple(played)
    assert read_logs([tmp_path / "log.jsonl"], 2).episodes == tuple(played)
    forced = [p for e in played for p, c in zip(e.probabilities, np.cumsum((0, *e.actors)), strict=False) if c]
    assert forced and set(forced) == {1.0}


def test_a_gateways_record_has_its_money_to_the_last_cent(tmp_path):
    for name, spent, known in (("a", "0.06", ["0.01", None]), ("b", "0.035", ["0.01", "0.02"])):
        switch_logs.write(tmp_path / "trajectories" / f"{name}.jsonl", [line(id=name)])
        (tmp_path / "usage").mkdir(exist_ok=True)
        (tmp_path / "usage" / f"{name}.json").write_text(usage(name, spent, known))
    found = read_logs([str(tmp_path)], 2).episodes
    assert found[0].money == pytest.approx((0.01, 0.05)), "what no usage came of"
    assert found[1].money == pytest.approx((0.01, 0.025)), "a reservation that was kept"
    (tmp_path / "usage" / "a.json").unlink()
    assert read_logs([tmp_path], 2).episodes[0].money is None


def test_usage_that_tells_of_fewer_steps_than_were_taken_is_refused(tmp_path):
    switch_logs.write(tmp_path / "trajectories" / "a.jsonl", [line(id="a")])
    (tmp_path / "usage").mkdir()
    (tmp_path / "usage" / "a.json").write_text(usage("a", "0.01", ["0.01"]))
    with pytest.raises(InputError, match=r"usage/a\.json: steps: tells of 1 steps, and .*a\.jsonl holds 2") as error:
        read_logs([tmp_path], 2)
    assert error.value.exit_code == 2


def test_outcomes_are_never_guessed(tmp_path):
    rows = [line(0, success=None), line(1, success=None, score=0.4), line(2, success=False), line(3, score=1.0)]
    rows += [line(4, success=None, score=0.0)]
    found = read_logs([switch_logs.write(tmp_path / "log.jsonl", rows)], 2)
    assert [(e.id, e.outcome, e.success) for e in found.episodes] == [
        ("e1", 0.4, None),
        ("e2", 0.0, False),
        ("e3", 1.0, True),
        ("e4", 0.0, False),
    ]
    assert found.dropped == {"without an outcome": 1}
    assert found.words() == "4 logged episodes, 8 steps; left out: 1 without an outcome"


def test_a_record_without_content_says_nothing_to_a_switch(tmp_path):
    bare = line(0, instruction="")
    for step in bare["steps"]:
        step["observation"] = ""
    path = switch_logs.write(tmp_path / "log.jsonl", [bare])
    with pytest.raises(InputError, match="record_content"):
        read_logs([path], 2)
    switch_logs.write(path, [bare, line(1)])
    assert sum(read_logs([path], 2).dropped.values()) == 1


def without(row, step, name):
    del row["steps"][step][name]
    return row


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (without(line(1), 1, "probability"), "steps.1.probability"),
        (without(line(1), 0, "actor"), "steps.0.actor"),
        (line(1, actors=("quick", "model 1")), "steps.1.actor"),
        (line(1, steps=[{**line()["steps"][0], "probability": 0.0}]), "steps.0.probability"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_by_file_line_and_field(tmp_path, row, field):
    path = switch_logs.write(tmp_path / "log.jsonl", [line(0), row])
    with pytest.raises(InputError) as error:
        read_logs([tmp_path], 2)
    assert (error.value.path, error.value.line, error.value.field) == (path, 2, field)


def test_a_stated_behaviour_takes_the_place_of_probabilities_that_are_not_there(tmp_path):
    row = line(0, actors=("quick", "deepthink", "quick"))
    for step in row["steps"][:2]:
        del step["probability"]
    path = switch_logs.write(tmp_path / "log.jsonl", [row])
    assert read_logs([path], 2, behaviour=0.2).episodes[0].probabilities == pytest.approx((0.8, 0.2, 0.5))
    assert read_logs([path], 3, behaviour=0.2).episodes[0].probabilities == pytest.approx((0.8, 0.1, 0.5))


def test_places_without_logs_and_logs_that_would_count_twice_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(InputError) as error:
            read_logs([place], 2)
        assert error.value.field == "switch.logs"
    path = switch_logs.write(tmp_path / "log.jsonl", [line(0)])
    with pytest.raises(InputError, match="twice"):
        read_logs([path, tmp_path], 2)


@pytest.mark.parametrize("budget", [None, 0, 3])
def test_a_switch_decides_on_a_log_as_it_does_at_play(budget):
    """Features are those of a decision, with what the episode had left."""
    _, switch = both(features=32, hidden=(8,), models=2, budget=budget, seed=3)
    episodes = []
    for n in range(3):
        texts = tuple(f"go to {n}\nYou see {n}, {t}" for t in range(8))
        episodes.append(switch_logs.LoggedEpisode(f"e{n}", texts, (1, 0) * 4, (1.0,) * 8, 1.0, True, None))
    logs = Transitions.of(episodes, HashingEncoder(32), max_steps=10)
    share = 1.0 if budget is None else np.maximum(0, budget - logs.calls_before()) / budget if budget else 0.0
    expected = []
    for episode in episodes:
        left = budget
        for t, (text, who) in enumerate(zip(episode.texts, episode.actors, strict=True)):
            situation = Situation(text, left, t / 10, episode.id, t)
            expected.append(switch.values([situation])[0])
            left = None if left is None else max(0, left - who)
    numbers = switch.numbers(logs.features(share))
    assert np.allclose(numbers, np.array(expected), atol=1e-5)
    assert numbers.argmax(1).tolist() == np.array(expected).argmax(1).tolist()


SIGNALS = ("since-call", "visits", "unchanged")


def test_signals_of_the_past_are_those_of_play():
    """Two models take turns in a game, and the switch reads the same of its log, to the bit."""
    game, rng = TextGame(specs(9), agents(2), 2, HashingEncoder(32), SIGNALS), np.random.default_rng(0)
    played, shown = [], []
    for seed in range(0, 6, 2):
        texts, seen, actors = [[], []], [[], []], [[], []]
        for row in (0, 1):
            game.begin(row, seed + row)
        while live := [row for row in (0, 1) if not game.episodes[row].over]:
            drawn = {row: int(rng.random() < 0.4) for row in live}
            for row, features in zip(live, game.observe(live), strict=True):
                texts[row].append(game.episodes[row].text)
                seen[row].append(features)
                actors[row].append(drawn[row])
            game.advance(drawn)
        for row in (0, 1):
            name, count = f"e{seed + row}", len(actors[row])
            about = (tuple(texts[row]), tuple(actors[row]), (0.5,) * count, 1.0, True, None)
            played.append(switch_logs.LoggedEpisode(name, *about))
            shown += seen[row]
    logs = Transitions.of(played, HashingEncoder(32), 9, SIGNALS)
    assert logs.encoded.tobytes() == np.array(shown).tobytes()
    assert all(0 < np.count_nonzero(column) < len(column) for column in logs.encoded[:, 32:].T)


def test_sessions_that_went_on_from_another_are_shown_their_own_steps_and_no_past(tmp_path):
    for name, first in (("a", 0), ("b", 3)):
        switch_logs.write(tmp_path / "trajectories" / f"{name}.jsonl", [line(id=name)])
        (tmp_path / "usage").mkdir(exist_ok=True)
        told = json.loads(usage(name, "0.02", ["0.01", "0.01"]))
        told["steps"][0]["step"], told["steps"][1]["step"] = first, first + 2  # the one between was not answered
        (tmp_path / "usage" / f"{name}.json").write_text(json.dumps(told))
    found = read_logs([tmp_path], 2).episodes
    assert [e.numbers for e in found] == [(0, 2), (3, 5)]
    assert Transitions.of(found, HashingEncoder(8), 4).step_share.tolist() == [0, 0.5, 0.75, 1]
    whole = read_logs([tmp_path], 2, whole=True)
    assert [e.id for e in whole.episodes] == ["a"]
    assert whole.words().endswith("left out: 1 that went on from another session (signals ask for their past)")


def test_transitions_are_those_of_the_environment():
    """The same episodes, as the environment of training shows them: states, models, rewards and ends."""
    mdp = MDPS["dead-ends-12"]
    env, rng = switch_mdps.maker(mdp.name, budget=2, rows=1)(0), np.random.default_rng(0)
    observations, _ = env.reset(seed=0)
    played, shown = [], []
    for number in range(40):
        guard, texts, actors, over = BudgetGuard(2, 1), [], [], False
        while not over:
            wanted = int(rng.random() < 0.5)
            who = guard.grant(0, wanted)
            texts.append(f"x\nstate {env.game.states[0]}")
            following, rewards, ended, _, _ = env.step(np.array([who]))
            actors.append(who)
            shown.append((observations[0], following[0], who, rewards[0], ended[0]))
            observations, over = following, bool(ended[0])
        played.append(
            switch_logs.LoggedEpisode(
                str(number), tuple(texts), tuple(actors), (0.5,) * len(actors), rewards[0], rewards[0] > 0, None
            )
        )
        observations, *_ = env.step(np.array([0]))  # begins the next
    logs = Transitions.of(played, CodeEncoder(mdp), mdp.longest)
    columns = logs.columns(2)
    columns["obs"][:, BUDGET_ENTRY] = np.maximum(0, 2 - logs.calls_before()) / 2
    obs, following, actions, rewards, ended = map(np.array, zip(*shown, strict=True))
    assert np.array_equal(columns["obs"], obs)
    assert np.array_equal(columns["actions"], actions)
    assert np.array_equal(columns["rewards"], rewards.astype(np.float32))
    assert np.array_equal(columns["terminateds"], ended)
    told, seen = columns["new_obs"][~ended], following[~ended]
    assert np.array_equal(np.delete(told, BUDGET_ENTRY, 1), np.delete(seen, BUDGET_ENTRY, 1))


@pytest.mark.parametrize("name", ["chain-6", "dead-ends-12", "tree-4"])
def test_a_log_of_one_budget_says_of_every_budget_what_the_game_does(name):
    """What follows a state and a model has the same chances whatever was left, so relabelling changes no expectation.

    A log of budget 1, with forced steps, shows each model's branches in each state; here their chances are exact: every
    branch of the game is weighted by its probability. Value iteration over the relabelled steps is the optimum.
    """
    mdp = MDPS[name]
    for budget in (1, 2, 4):
        values = np.zeros((mdp.states + 1, budget + 1))  # the last row is the end
        for state in reversed(range(mdp.states)):
            aims = np.full((2, budget + 1), -np.inf)
            for model in (0, 1):
                for left in range(model, budget + 1):  # as the replay buffer and the fit draw them
                    aims[model, left] = sum(
                        b.probability * (b.reward + 0.98 * values[b.to, left - model])
                        for b in mdp.branches[state][model]
                    )
            values[state] = aims.max(0)
        assert np.allclose(values[:-1], switch_mdps.optimum(mdp, 0.98, budget=budget), atol=1e-12)
    relabelled = {b: conditional(switch_logs.play(name, 6000, seed=5, budget=b)) for b in (1, None)}
    both_there = relabelled[1].keys() & relabelled[None].keys()
    assert len(both_there) > mdp.states / 2
    for place in both_there:
        (count, rate), (other, whole) = relabelled[1][place], relabelled[None][place]
        assert abs(rate - whole) <= 4.5 * (0.25 / count + 0.25 / other) ** 0.5, place


def conditional(episodes):
    """Of every (state, model) that was seen often: how often, and how often the next state was the one above."""
    found = {}
    for episode in episodes:
        states = [int(text.split()[-1]) for text in episode.texts]
        for state, who, following in zip(states, episode.actors, [*states[1:], None], strict=True):
            found.setdefault((state, who), []).append(following == state + 1)
    return {place: (len(went), float(np.mean(went))) for place, went in found.items() if len(went) >= 50}


def test_uncertainty_counts_where_states_share_nothing():
    states = np.eye(3, dtype=np.float32) * 5
    logged, actions = states[[0, 0, 0, 1]], np.array([0, 0, 1, 1])
    found = uncertainty(states, logged, actions, 2)
    assert found == pytest.approx(np.array([[1 / 3, 1 / 2], [1, 1 / 2], [1, 1]]))


def test_arrays_of_a_game_are_those_of_its_episodes():
    mdp = MDPS["tree-4"]
    read = Transitions.of(switch_logs.play("tree-4", 50, 3, 0.3, 1), CodeEncoder(mdp), mdp.longest)
    for name, column in vars(switch_logs.arrays("tree-4", 50, 3, 0.3, 1)).items():
        assert np.array_equal(getattr(read, name), column, equal_nan=column.dtype.kind == "f"), name


def test_a_split_is_of_ids_and_loses_nothing():
    played = switch_logs.play("tree-4", 100, seed=0)
    learned, held = split(played, 0.3)
    assert (len(learned), len(held)) == (70, 30)
    assert sorted(e.id for e in (*learned, *held)) == sorted(e.id for e in played)
    again = split(list(reversed(played)), 0.3)
    assert {e.id for e in again[1]} == {e.id for e in held}
    assert split(played, 0.0) == (played, [])
