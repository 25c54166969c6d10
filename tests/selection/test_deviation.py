"""What a base's own moves cost, against exact ends; who plays on; what is lost; and a stage that was killed."""

import random

import pytest
from rooms_env import ACTIONS, END, GOAL, LIMIT, Rooms, doors

from atlas_ray import envs, pipeline
from atlas_ray.agents.token_agent import Decision, LostAnswer
from atlas_ray.cluster import result_file
from atlas_ray.cluster.resources import resource_requests
from atlas_ray.errors import AtlasError
from atlas_ray.recipe.loading import Collect, Recipe
from atlas_ray.rundir.files import recover_jsonl
from atlas_ray.selection.deviation import Deviation, Ending, Found, select_by_deviation
from atlas_ray.selection.reply_counts import replies_of
from atlas_ray.selection.scored_stage import saved_scores, step_scores
from atlas_ray.selection.stage import select
from atlas_ray.stages.table import models
from atlas_ray.trajectory import Step, Trajectory, max_critical_steps, read_annotations, read_trajectories
from tests.agents.test_rollout import Fixed

ROOMS = "rooms_env:Rooms/Rooms-v0"
LOST: set[str] = set()
"""Observations at which a model gives no answer."""


class ByTable(Fixed):
    """Always does the same in a room, drawn by the name of the model."""

    def __init__(self, name):
        super().__init__(4)
        self.name, self.seen = name, {}

    def start(self, slot, instruction, steps, observation):
        self.seen[slot] = observation

    def advance(self, slot, step, observation):
        self.seen[slot] = observation

    def act(self, slots, offered, seeds):
        return [
            LostAnswer("no", replies={"lost": 1})
            if self.seen[s] in LOST
            else Decision("I think", habit(self.name, self.seen[s]), replies={"ok": 1})
            for s in slots
        ]


def habit(name, observation):
    return random.Random(f"{name}/{observation}").choice(ACTIONS)


@pytest.fixture(autouse=True)
def _tables(monkeypatch):
    LOST.clear()
    made = {}
    monkeypatch.setattr(
        "atlas_ray.agents.spec.AgentSpec.agent",
        lambda self, state: made.setdefault(self.model, ByTable(self.model)),
    )


def recipe(count=20, bias=None, **select):
    return Recipe.model_validate(
        {
            "name": "x",
            "workers": 0,
            "max_lost_answers": 1.0,
            "collect": {"levels": {ROOMS: count}, "expert": bias or {}},
            "select": {"selectors": ["deviation"], "model": "tiny-quick", **select},
        }
    )


def run(made, run_dir):
    pipeline.run(made, run_dir, ("collect",))
    select(made, run_dir)
    trajectories = read_trajectories(run_dir / "trajectories" / "expert.jsonl")
    rows = {row["id"]: row for row in recover_jsonl(run_dir / "annotations" / "scores" / "deviation.jsonl")}
    annotated = read_annotations(run_dir / "annotations" / "deviation.jsonl", trajectories)
    return trajectories, rows, {a.trajectory_id: a for a in annotated}


def away(leads):
    """Moves from each room to the goal, by value iteration."""
    found = {room: 0 if room == GOAL else 10**6 for room in range(len(leads))}
    for _ in leads:
        for room in found:
            if room not in (GOAL, END):
                found[room] = min(found[room], 1 + min(found[to] for to in leads[room]))
    return found


def best_end(leads, room, steps):
    total = steps + away(leads)[room]
    return (True, total) if room != END and total <= LIMIT else (False, 0)


def table_end(leads, room, steps, variation, name):
    while room not in (GOAL, END) and steps < LIMIT:
        room = leads[room][ACTIONS.index(habit(name, f"room {room} of {variation}"))]
        steps += 1
    return room == GOAL, steps


def expected(t, end, on_alone=True, slips=False):
    """(cost, base's end) of each step, ``end`` being how an episode ends from a room after so many steps.

    With ``slips`` a recorded move that is worse than the best is not learnt. Without ``on_alone`` it is so only where
    the base's move does not end the episode; else the recorded rest counts.
    """
    leads, room, _ = doors(t.seed)
    found = []
    for n, step in enumerate(t.steps):
        own = habit("tiny-quick", f"room {room} of {t.seed}")
        theirs, mine = (end(leads, leads[room][ACTIONS.index(a)], n + 1, t.seed) for a in (step.action, own))
        if not on_alone and leads[room][ACTIONS.index(own)] in (GOAL, END):
            theirs = True, len(t.steps)
        cost = (mine[1] - theirs[1]) / LIMIT if mine[0] and theirs[0] else float(theirs[0]) - float(mine[0])
        best = end(leads, room, n, t.seed)
        if slips and best[0] and (not theirs[0] or best[1] < theirs[1]):
            cost = min(0.0, cost)
        found.append((0.0, None) if own == step.action else (cost, mine))
        room = leads[room][ACTIONS.index(step.action)]
    return found


@pytest.mark.parametrize("bias", [None, {"noise": 0.5}, {"habit": ["red", "blue"]}])
def test_costs_are_those_of_the_best_way_from_there_however_biased_the_recorded_expert_was(tmp_path, bias):
    trajectories, rows, annotated = run(recipe(bias=bias), tmp_path)
    kinds, slipped = set(), 0
    for t in trajectories:
        wanted = expected(t, lambda leads, room, n, _: best_end(leads, room, n), slips=True)
        slipped += wanted != expected(t, lambda leads, room, n, _: best_end(leads, room, n))
        assert rows[t.id]["scores"] == pytest.approx([cost for cost, _ in wanted])
        deviations = {int(n): made for n, made in rows[t.id]["deviations"].items()}
        ends = {n: made["base"] for n, made in deviations.items()}
        assert {n: (end["success"], end["success"] * end["steps"]) for n, end in ends.items()} == {
            n: end for n, (_, end) in enumerate(wanted) if end
        }
        kinds |= {(cost > 0) - (cost < 0) if cost not in (1, -1) else "lost" for cost, _ in wanted}
        most = max_critical_steps(0.3, len(t.steps))
        best = sorted(range(len(wanted)), key=lambda n: (-wanted[n][0], n))[:most]
        assert annotated[t.id].critical == tuple(sorted(n for n in best if wanted[n][0] > 0))
    assert kinds >= ({0, 1, "lost"} if bias is None else {0, 1, -1, "lost"}), "all that can happen did"
    assert (slipped > 0) == (bias is not None), "a slip is not marked, however much worse the base would do"
    assert {made["by"] for row in rows.values() for made in row["deviations"].values()} == {"expert"}


@pytest.mark.parametrize("play_on", [None, "tiny-deepthink"])
def test_where_the_expert_cannot_go_on_a_model_plays_both_branches(tmp_path, monkeypatch, play_on):
    monkeypatch.setattr(Rooms, "guide", "path")
    trajectories, rows, annotated = run(recipe(play_on=play_on), tmp_path)
    name = play_on or "tiny-quick"
    for t in trajectories:
        wanted = expected(t, lambda leads, room, n, seed: table_end(leads, room, n, seed, name), on_alone=False)
        assert rows[t.id]["scores"] == pytest.approx([cost for cost, _ in wanted])
        for n, made in rows[t.id]["deviations"].items():
            ended = made["base"]["steps"] == int(n) + 1
            assert made["by"] == ("expert" if ended else name), "nobody has to play on where the move ends it"
    assert any(a.critical for a in annotated.values())


def test_an_environment_without_an_expert_is_begun_no_more_often_than_it_has_to_be(tmp_path, monkeypatch):
    made, real, begun = recipe(count=5), Rooms.begin, []
    pipeline.run(made, tmp_path, ("collect",))
    monkeypatch.setattr(Rooms, "expert", envs.TextEnv.expert)
    monkeypatch.setattr(Rooms, "begin", lambda self, variation: begun.append(variation) or real(self, variation))
    trajectories, rows, _ = run(made, tmp_path)
    for t in trajectories:
        wanted = expected(t, lambda leads, room, n, seed: table_end(leads, room, n, seed, "tiny-quick"))
        assert rows[t.id]["scores"] == pytest.approx([cost for cost, _ in wanted])
    assert {made["by"] for row in rows.values() for made in row["deviations"].values()} == {"tiny-quick"}
    assert max(map(begun.count, range(5))) == 3, "two replays, and a look for its expert"


def test_steps_beyond_the_context_of_the_base_are_counted_and_not_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(ByTable, "start", lambda self, slot, i, steps, o: self.seen.update({slot: o, -slot - 9: steps}))
    monkeypatch.setattr(ByTable, "fits", lambda self, slot: len(self.seen[-slot - 9]) < 2)
    trajectories, rows, annotated = run(recipe(count=5), tmp_path)
    for t in trajectories:
        wanted = expected(t, lambda leads, room, n, _: best_end(leads, room, n))
        scores = [cost if n < 2 else 0.0 for n, (cost, _) in enumerate(wanted)]
        assert (rows[t.id]["scores"], rows[t.id]["beyond"]) == (pytest.approx(scores), len(t.steps) - 2)
        assert all(n < 2 for n in annotated[t.id].critical)
    (told,) = [row for row in recover_jsonl(tmp_path / "metrics.jsonl") if "replayed_steps" in row]
    assert told["beyond_context"] == sum(len(t.steps) - 2 for t in trajectories) > 0


def test_a_base_that_does_as_the_expert_marks_nothing_which_ends_the_stage_with_its_name(tmp_path, monkeypatch):
    class AsExpert(ByTable):
        def act(self, slots, offered, seeds):
            places = [tuple(map(int, self.seen[s].removeprefix("room ").split(" of "))) for s in slots]
            return [Decision(None, min(ACTIONS, key=lambda a: best(*place, a))) for place in places]

    def best(room, variation, action):
        leads, _, to_goal = doors(variation)
        return to_goal.get(leads[room][ACTIONS.index(action)], 99)

    monkeypatch.setattr("atlas_ray.agents.spec.AgentSpec.agent", lambda self, state: AsExpert("x"))
    made = recipe(count=5)
    pipeline.run(made, tmp_path, ("collect",))
    with pytest.raises(AtlasError, match="selector deviation marked no step in any of 5"):
        select(made, tmp_path)
    rows = list(recover_jsonl(tmp_path / "annotations" / "scores" / "deviation.jsonl"))
    assert [row["deviations"] for row in rows] == [{}] * 5
    (told,) = [row for row in recover_jsonl(tmp_path / "metrics.jsonl") if "replayed_steps" in row]
    steps = sum(len(row["scores"]) for row in rows)
    assert (told["rollout_steps"], told["replayed_steps"], told["deviations"]) == (steps, steps, 0)


def test_a_mark_says_what_the_base_would_have_done_and_what_it_costs(tmp_path):
    trajectories, rows, annotated = run(recipe(), tmp_path)
    for t in trajectories:
        for n, why in (annotated[t.id].reasons or {}).items():
            made = rows[t.id]["deviations"][str(n)]
            assert why.startswith(f"tiny-quick would {made['action']}: ")
            assert str(made["expert"]["steps"]) in why
            assert ("no success" in why) == (not made["base"]["success"])
    assert annotated[trajectories[0].id].model == "tiny-quick"


def test_a_success_outweighs_any_number_of_steps_and_the_earlier_wins_ties():
    steps = tuple(Step(observation="o", action="y") for _ in range(10))
    about = {"env": "e", "task": "t", "seed": 0, "instruction": "i", "score": 1.0, "success": True, "source": "s"}
    t = Trajectory(id="a", steps=steps, **about)
    lost, slow, won = (
        Deviation("x", None, Ending(True, 10), Ending(False, 12)),
        Deviation("x", None, Ending(True, 10), Ending(True, 99)),
        Deviation("x", None, Ending(False, 10), Ending(True, 3)),
    )
    none = Deviation("x", None, Ending(False, 100), Ending(False, 50))
    found = Found({1: slow, 3: lost, 5: slow, 6: lost, 7: won, 8: none}, 100)
    assert found.costs(10) == [0, 0.89, 0, 1, 0, 0.89, 1, -1, 0, 0]
    assert select_by_deviation(t, found, 0.2, "m").critical == (3, 6)
    assert select_by_deviation(t, found, 0.3, "m").critical == (1, 3, 6)
    assert select_by_deviation(t, found, 1.0, "m").critical == (1, 3, 5, 6)
    assert Found.from_row(found.row()) == found


@pytest.mark.parametrize("guide", ["knowing", "path"])
def test_a_stage_that_was_killed_in_either_pass_ends_like_one_that_was_not(tmp_path, monkeypatch, guide):
    monkeypatch.setattr(Rooms, "guide", guide)
    made = recipe(play_on="tiny-deepthink")
    _, whole, _ = run(made, tmp_path / "whole")
    pipeline.run(made, tmp_path / "killed", ("collect",))
    real, file = result_file.append_jsonl, tmp_path / "killed" / "annotations" / "scores" / "deviation.jsonl"
    passes = 6 if guide == "path" else 3
    for _ in range(passes):
        with monkeypatch.context() as patch:

            def dying(path, rows):
                real(path, rows)
                raise KeyboardInterrupt

            patch.setattr(result_file, "append_jsonl", dying)
            with pytest.raises(KeyboardInterrupt):
                select(made, tmp_path / "killed")
        with file.open("a") as opened:
            opened.write('{"cut')
    _, again, _ = run(made, tmp_path / "killed")
    assert again == whole
    first, second = (tmp_path / name / "annotations" / "deviation.jsonl" for name in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes()
    twice = sum(any(d["by"] != "expert" for d in row["deviations"].values()) for row in whole.values())
    assert len(list(recover_jsonl(file))) == 20 + twice, "nothing was played twice"
    assert (twice > 0) == (guide == "path")
    assert replies_of(tmp_path / "killed") == replies_of(tmp_path / "whole")


def test_scores_join_an_ensemble_and_marks_leave_a_rest(tmp_path):
    made = recipe(selectors=["deviation", "last", "rank-mean_deviation_last", "non-critical"], rest_of="deviation")
    trajectories, rows, marked = run(made, tmp_path)
    scores = step_scores(tmp_path, "deviation", trajectories)
    assert scores == {t.id: rows[t.id]["scores"] for t in trajectories} == saved_scores(tmp_path, "deviation")
    rest = read_annotations(tmp_path / "annotations" / "non-critical.jsonl", trajectories)
    assert len(rest) == len(trajectories)
    assert not any(set(a.critical) & set(marked[a.trajectory_id].critical) for a in rest)
    joined = read_annotations(tmp_path / "annotations" / "rank-mean_deviation_last.jsonl", trajectories)
    assert len(joined) == len(trajectories)


@pytest.mark.parametrize("guide", ["knowing", "path"])
def test_what_a_model_does_not_answer_is_no_cost_of_0_and_is_asked_again(tmp_path, monkeypatch, guide):
    monkeypatch.setattr(Rooms, "guide", guide)
    _, whole, _ = run(recipe(), tmp_path / "whole")
    made = recipe()
    pipeline.run(made, tmp_path / "run", ("collect",))
    trajectories = read_trajectories(tmp_path / "run" / "trajectories" / "expert.jsonl")
    LOST.add(trajectories[3].steps[1].observation)
    if guide == "path":  # in the second pass: a room that no recorded step shows, but the model comes to
        shown = {s.observation for t in trajectories for s in t.steps}
        LOST.clear()
        LOST.update({f"room {room} of {t.seed}" for t in trajectories for room in range(9)} - shown)
    _, _, annotated = run(made, tmp_path / "run")
    missing = {t.id for t in trajectories} - set(annotated)
    assert missing == {trajectories[3].id} if guide == "knowing" else 0 < len(missing) < len(trajectories)
    events = [row for row in recover_jsonl(tmp_path / "run" / "events.jsonl") if row["event"] == "left out"]
    assert {row["trajectory"] for row in events} == missing
    LOST.clear()
    (tmp_path / "run" / "annotations" / "deviation.jsonl").unlink()
    _, again, annotated = run(made, tmp_path / "run")
    assert list(annotated) == [t.id for t in trajectories]
    assert {name: row["scores"] for name, row in again.items()} == {n: row["scores"] for n, row in whole.items()}


def test_an_environment_that_dies_as_the_expert_plays_on_is_tried_again_and_then_left_out(tmp_path, monkeypatch):
    made, real, left = recipe(count=6), Rooms.do, {"deaths": 0}
    _, whole, _ = run(made, tmp_path / "whole")

    def dying(self, action):
        # no recorded step of an expert that knows the way leads there
        if self.variation == 3 and left["deaths"] and self.away.get(self.room, 99) > self.away[doors(3)[1]]:
            left["deaths"] -= 1
            raise envs.EnvironmentDiedError("the process is gone")
        return real(self, action)

    monkeypatch.setattr(Rooms, "do", dying)
    for deaths, lost in ((2, set()), (99, {f"{ROOMS}/3"})):
        left["deaths"] = deaths
        _, rows, annotated = run(made, tmp_path / str(deaths))
        assert left["deaths"] < deaths, "it died"
        assert {n: row["scores"] for n, row in rows.items() if "scores" in row} == {
            n: row["scores"] for n, row in whole.items() if n not in lost
        }
        assert set(whole) - set(annotated) == lost


def test_the_babyai_bot_plays_on_from_what_a_base_that_only_turns_does(tmp_path, monkeypatch):
    monkeypatch.setattr("atlas_ray.agents.spec.AgentSpec.agent", lambda self, state: Fixed(4))
    made = recipe().model_copy(update={"collect": Collect(levels={"GoToLocalS5N2": 6, "PickupDist": 6})})
    trajectories, rows, annotated = run(made, tmp_path)
    for t in trajectories:
        deviations = rows[t.id]["deviations"]
        assert [int(n) for n in deviations] == [n for n, s in enumerate(t.steps) if s.action != "turn left"]
        for made in deviations.values():
            assert made["action"] == "turn left" and made["by"] == "expert"
            assert made["expert"] == {"success": True, "steps": len(t.steps)}, "its own rest is what it recorded"
            assert made["base"]["success"]
        # a turn in the place of the last step, which ends the episode, is turned back and done again
        last = deviations.get(str(len(t.steps) - 1))
        assert last is None or last["base"]["steps"] == len(t.steps) + 2
    assert sum(len(a.critical) for a in annotated.values()) > 6


def test_its_models_are_looked_for_and_its_actors_asked_for_before_it_begins():
    made = recipe(selectors=["deviation"], play_on="tiny-deepthink").model_copy(update={"workers": 2})
    assert list(models(made)) == [("select.model", "tiny-quick"), ("select.play_on", "tiny-deepthink")]
    assert list(models(recipe(selectors=["last"], play_on="tiny-deepthink"))) == []
    assert any(r.part == "deviation" and r.count == 2 for r in resource_requests(made))
