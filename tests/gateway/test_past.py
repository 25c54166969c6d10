"""A switch that reads the past is shown it from a session's own turns."""

import shutil
from urllib.parse import quote

import numpy as np
import pytest
from gateway_parts import ask, gateway
from serving_sessions import rule, switch
from switch_models import LEVELS, SHAPES, model, specs

from atlas_ray.agents.token_agent import Agent
from atlas_ray.cluster.worker_state import WorkerState
from atlas_ray.engines import TransformersEngine
from atlas_ray.errors import InputError
from atlas_ray.gateway.opening import check_gateway, recipe_of_gateway
from atlas_ray.gateway.past import actions_of
from atlas_ray.models.encoders import make_encoder
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import read_json, write_json
from atlas_ray.switching.baselines import Shadowed
from atlas_ray.switching.calibration import weights_of
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.logged_rules import fit_to_logs
from atlas_ray.switching.logs import read_logs
from atlas_ray.switching.players import open_players
from atlas_ray.switching.policy import SwitchPolicy
from atlas_ray.switching.transitions import Transitions
from tests.gateway.test_learned import STEPS, Player, play, run
from tests.gateway.test_sessions import Talks, request

SIGNALS, WIDTH = ("unchanged", "visits", "since-call"), 32
NAME, SEEDS = "switch-budget2-seed1", range(3)
__all__ = ["run"]
of_actions = pytest.mark.parametrize("run", ["action"], indirect=True)


def a_switch():
    return switch(2, SIGNALS, WIDTH)


class Follows(SwitchPolicy):
    """Reads what the switch reads, and lets act whom it is told."""

    def decide(self, situations):
        super().decide(situations)
        return [self.acted[s.step] for s in situations]


@pytest.fixture
def shown(monkeypatch):
    """The features of every decision."""
    found, numbers = [], SwitchPolicy.numbers
    monkeypatch.setattr(SwitchPolicy, "numbers", lambda self, x: found.extend(x.copy()) or numbers(self, x))
    return found


@of_actions
@pytest.mark.parametrize("explore", [0.0, 0.5])
def test_a_session_is_shown_what_an_episode_of_the_same_turns_is_shown(run, tmp_path, shown, explore):
    a_switch().save(run / "checkpoints" / NAME)
    made = recipe_of_gateway(run, NAME)
    made = made.model_copy(update={"gateway": made.gateway.model_copy(update={"explore": explore})})
    players, seen = [Player(seed) for seed in range(4)], {}
    for steps in (3, STEPS):  # the second gateway goes on where the first has ended
        with gateway(made, tmp_path) as (port, _):
            for seed, player in enumerate(players):
                while not player.over and len(player.actions) < steps:
                    player.step(port)
                seen[seed] = [*seen.get(seed, ()), *shown]
                shown.clear()
    own = [Agent(TransformersEngine(model(name), 1, build_tokenizer()), "action") for name in SHAPES]
    policy = Follows(a_switch().config, a_switch().tensors)
    for seed, player in enumerate(players):
        policy.acted = [int(n in player.called_at) for n in range(len(player.actions))]
        (row,) = evaluate_policy(policy, own, specs(STEPS), [seed], 2)
        assert row["called_at"] == player.called_at and row["steps"] == len(player.actions)
        assert [x.tobytes() for x in seen[seed]] == [x.tobytes() for x in shown], "equal to the bit"
        shown.clear()
    signals = np.concatenate(list(seen.values()))[:, WIDTH : WIDTH + len(SIGNALS)]
    assert all(0 < np.count_nonzero(column) < len(column) for column in signals.T)
    if not explore:
        rows = evaluate_policy(a_switch(), own, specs(STEPS), range(4), 2, record=True)
        assert [r["called_at"] for r in rows] == [p.called_at for p in players]
        assert [[s["action"] for s in r["episode"]["steps"]] for r in rows] == [p.actions for p in players]


@of_actions
def test_a_record_shows_a_switch_that_learns_from_it_what_its_sessions_were_shown(run, tmp_path, shown):
    a_switch().save(run / "checkpoints" / NAME)
    made, record = recipe_of_gateway(run, NAME), tmp_path / "record"
    about = {"explore": 0.5, "record": str(record)}
    made = made.model_copy(update={"gateway": made.gateway.model_copy(update=about)})
    seen = {}
    with gateway(made, tmp_path) as (port, _):
        for seed in range(4):
            session = play(port, seed).session
            assert ask(port, {"success": True}, path=f"/v1/atlas/sessions/{quote(session)}/outcome")[0] == 204
            seen[session] = np.array(shown)
            shown.clear()
    told = {i: usage["session"] for i, usage in ((p.stem, read_json(p)) for p in (record / "usage").iterdir())}
    for episode in read_logs([record], 2, whole=True).episodes:
        logged = Transitions.of([episode], make_encoder("hashing", WIDTH), made.gateway.max_steps, SIGNALS)
        left = np.maximum(0, 2 - logged.calls_before()) / 2
        assert logged.features(left).tobytes() == seen.pop(told[episode.id]).tobytes(), "equal to the bit"
    assert not seen


@pytest.mark.parametrize("budget", [None, 2])
def test_a_rule_of_a_classifier_goes_as_in_play(run, tmp_path, shown, budget):
    """It reads what was done, too: from the conversation, as the models of a run do."""
    policy = rule(0.766, budget=budget)  # of its chances here
    policy.save(run / "checkpoints" / "switch-classifier0.30")
    made = recipe_of_gateway(run, "switch-classifier0.30")
    with gateway(made, tmp_path) as (port, answering):
        assert answering.admission.limits.calls == budget
        clients = [play(port, seed) for seed in SEEDS]
    seen = sorted(x.tobytes() for x in shown)
    shown.clear()
    own = [Agent(TransformersEngine(model(name), 1, build_tokenizer()), made.style) for name in SHAPES]
    rows = evaluate_policy(policy, own, specs(STEPS), SEEDS, budget, record=True)
    assert [row["called_at"] for row in rows] == [client.called_at for client in clients]
    assert [[step["action"] for step in row["episode"]["steps"]] for row in rows] == [c.actions for c in clients]
    assert sorted(x.tobytes() for x in shown) == seen and len(set(seen)) > 6
    assert 0 < sum(row["calls"] for row in rows) < sum(row["steps"] for row in rows)
    shutil.rmtree(run / "checkpoints" / "switch-classifier0.30")


def test_a_record_teaches_a_classifier_what_play_teaches_it(tmp_path):
    """DEEPTHINK plays, and QUICK is asked too: in its shadow behind the gateway, as `shadowed` in the switch stage."""
    table = {"models": ["tiny-quick", "tiny-deepthink"], "levels": LEVELS, "max_steps": STEPS, "costs": [0.1]}
    own = Recipe.model_validate({"name": "r", "num_envs": 1, "switch": {**table, "num_envs": 1}})
    write_json(tmp_path / "recipe.resolved.json", own.model_dump(mode="json"))
    rows = evaluate_policy(Shadowed(1), open_players(own, WorkerState()), specs(STEPS), range(8), record=True)
    made, record = recipe_of_gateway(tmp_path, "always-deepthink"), tmp_path / "record"
    about = {"record": str(record), "shadow": 1.0}
    made = made.model_copy(update={"gateway": made.gateway.model_copy(update=about)})
    with gateway(made, tmp_path) as (port, _):
        for seed, row in enumerate(rows):
            client = play(port, seed)
            assert client.actions == [step["action"] for step in row["episode"]["steps"]]
            told = {"success": row["success"]}
            assert ask(port, told, path=f"/v1/atlas/sessions/{quote(client.session)}/outcome")[0] == 204
    episodes = read_logs([record], 2, style=made.style).episodes
    (doubt,) = fit_to_logs(episodes, lambda line: None).doubts.values()
    np.testing.assert_allclose(doubt.weights, weights_of("classifier", rows), rtol=0, atol=1e-9)
    steps = [[*zip(row["proposed"], row["episode"]["steps"], strict=True)] for row in rows]
    same = [proposed == step["action"] for row in steps for proposed, step in row]
    assert 0 < sum(same) < len(same) and 0 < sum(row["success"] for row in rows) < len(rows)
    assert sorted(same) == sorted(one for episode in episodes for one in episode.same)


def test_actions_are_those_of_the_sessions_own_turns_with_tool_calls_as_they_are_recorded():
    call = {"function": {"name": "open", "arguments": '{"door": 1}'}}
    talk = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "Thought:\nan example\n\nAction:\nlook"},
        {"role": "user", "content": "a room"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "open"},
        {"role": "assistant", "content": [{"type": "text", "text": "Thought:\nso\n\nAction:\ngo in"}]},
    ]
    assert actions_of(talk, "react") == ("look", 'open({"door": 1})', "go in")
    assert actions_of([{"role": "assistant", "content": "I do not know"}], "react") == ("I do not know",)


@of_actions
def test_examples_before_a_session_are_no_actions_of_its_past(run, tmp_path):
    rule().save(run / "checkpoints" / "switch-classifier0.30")
    talks = Talks(tmp_path, switch=f"{run}/switch-classifier0.30")
    pasts, choose = [], talks.admission._decider.choose
    talks.admission._decider.choose = lambda *a: pasts.append(a[-1].past) or choose(*a)
    talk = ["go", "an example", "a room"]
    talks.turn(*talk, text="x")
    talks.turn(*talk, "x", "a hall", text="y")
    talks.turn(*talk, "x", "a hall", "y", "a hall")
    assert [past.actions for past in pasts] == [(), ("x",), ("x", "y")]
    assert [past.unchanged for past in pasts] == [0, 0, 1]
    talks.store.close()
    shutil.rmtree(run / "checkpoints" / "switch-classifier0.30")


class Watched(Talks):
    """What the switch is shown of the past: visits, unchanged, since the last call, and who acted."""

    def __init__(self, folder, run, **more):
        a_switch().save(run / "checkpoints" / NAME)
        super().__init__(folder, switch=f"{run}/{NAME}", **more)
        self.pasts, choose = [], self.admission._decider.choose
        self.admission._decider.choose = lambda *a: self.pasts.append(a[-1].past) or choose(*a)

    def past(self, *said, **more):
        self.turn(*said, **more)
        past = self.pasts[-1]
        return past.visits, past.unchanged, past.since_call, past.acted


@pytest.fixture
def watched(tmp_path, run):
    made = Watched(tmp_path, run)
    yield made
    made.store.close()


@of_actions
def test_the_past_is_that_of_answered_turns_and_outlives_a_gateway(watched, run, tmp_path):
    name = {"headers": {"x_session_id": "s"}}
    assert watched.past("go", model="deepthink", text="a", **name) == (0, 0, None, ())
    assert watched.past("go", "a", "wall", model="quick", text="b", **name) == (0, 0, 1, (1,))
    talk = ["go", "a", "wall", "b", "wall"]
    failed = watched.ask(*talk, model="quick", **name)
    watched.admission.failed(failed, free=True)
    lost = watched.ask(*talk, model="deepthink", **name)  # its gateway ends first
    assert (failed.step, lost.step) == (2, 3)
    watched.store.close()
    after = Watched(tmp_path, run)
    assert after.past(*talk, model="quick", text="c", **name) == (1, 1, 2, (1, 0)), "what got no answer is no turn"
    assert after.past(*talk, "c", "wall", text="d", **name) == (2, 2, 3, (1, 0, 0))
    after.store.close()


@of_actions
def test_a_session_that_parts_from_another_has_the_past_until_then(watched):
    watched.past("go", model="deepthink", text="a")
    watched.past("go", "a", "left", model="quick", text="x")
    watched.past("go", "a", "left", "x", "left", model="quick", text="y")
    assert watched.past("go", "a", "right", model="quick", text="x") == (0, 0, 1, (1,))
    assert watched.past("go", "a", "right", "x", "right", model="quick", text="y") == (1, 1, 2, (1, 0))
    assert watched.past("go", "a", "right", "x", "on", model="quick") == (0, 0, 2, (1, 0)), "parted twice"
    assert watched.past("go", text="z", headers={"idempotency_key": "anew"}) == (0, 0, None, ())


@of_actions
def test_tools_and_content_parts_are_what_was_seen(watched):
    def told(*messages):
        body = {"model": "quick", "messages": [{"role": "user", "content": "go"}, *messages]}
        admitted = watched.admission.admit(request(body, x_session_id="s"), "local")
        watched.answer(admitted, "on")
        return watched.pasts[-1].visits, watched.pasts[-1].unchanged

    turn = {"role": "assistant", "content": "on"}
    shot = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{n}"}} for n in "AB"]
    assert told({"role": "tool", "content": "a wall", "tool_call_id": "1"}) == (0, 0)
    assert told(turn, {"role": "tool", "content": [{"type": "text", "text": "a wall"}], "tool_call_id": "2"}) == (1, 1)
    assert told(turn, {"role": "user", "content": "a wall"}) == (2, 2)
    assert told(turn, {"role": "tool", "content": "a"}, {"role": "tool", "content": "wall"}) == (0, 0)
    assert told(turn, {"role": "user", "content": "a\nwall"}) == (1, 1)
    assert told(turn, {"role": "user", "content": shot[:1]}) == (0, 0)
    assert told(turn, {"role": "user", "content": shot[1:]}) == (0, 0), "another picture is another state"
    assert told(turn, {"role": "user", "content": shot[:1]}) == (1, 0)


@of_actions
def test_what_quick_would_have_to_be_asked_for_is_refused_at_the_start(run):
    for signal in ("proposal", "catch-up", "entropy", "verifier"):
        switch(2, ("visits", signal), WIDTH).save(run / "checkpoints" / "switch-budget2-seed2")
        with pytest.raises(InputError, match=f"reads {signal}, which") as error:
            check_gateway(recipe_of_gateway(run, "switch-budget2-seed2"))
        assert error.value.field == "gateway.switch"
