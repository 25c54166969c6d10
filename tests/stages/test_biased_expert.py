"""Experts with habits, noise and detours: what they do and say, that seeds decide it, and what a run keeps of it."""

import json
import shutil

import dying_env
import pytest

from atlas_ray import envs, pipeline, preflight
from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.cli import main
from atlas_ray.cluster import result_file
from atlas_ray.errors import AtlasError, InputError
from atlas_ray.recipe.loading import ExpertBias, Recipe
from atlas_ray.rundir.files import recover_jsonl
from atlas_ray.selection.replays import checkpoint_states
from atlas_ray.stages.biased_expert import BiasedExpert
from atlas_ray.stages.collect import collect
from atlas_ray.stages.experts import Biased, expert_episode
from atlas_ray.trajectory import export_agenttraj, import_agenttraj, read_trajectories

DOORS = "dying_env:Dying/Doors-v0"
LOOK = ["turn left"] * 4
LEVELS = {"PickupDist": 6, "PutNextLocalS5N3": 6}


class Script:
    """Thinks and does what a list says, one entry for each of its own moves; remembers what it was told."""

    def __init__(self, thoughts):
        self.left, self.told, self.asked = list(thoughts), [], False

    def act(self):
        if self.left[0] == "stuck":
            raise envs.ExpertGaveUpError("no plan")
        self.asked = True
        return envs.ExpertStep(self.left[0], "go")

    def follow(self, action):
        self.told.append(action)
        if action == "go":
            self.left.pop(0)


def played(thoughts, moves, seed="0", **bias):
    """(thought, action) of a number of moves, and the script."""
    script = Script(thoughts)
    expert = BiasedExpert(script, lambda: ["b", "a", "c"], ExpertBias(**bias), seed)
    found = []
    for _ in range(moves):
        move = expert.act()
        expert.follow(move.action)
        found.append((move.thought, move.action))
    return found, script


def test_a_habit_comes_once_at_each_thought_that_is_new_and_then_the_expert_goes_on():
    found, script = played(["one", "one", "two", "one", "two"], 9, habit=["x", "y"])
    assert found == [
        ("one", "x"),
        ("one", "y"),
        ("one", "go"),
        ("one", "go"),
        ("two", "x"),
        ("two", "y"),
        ("two", "go"),
        ("one", "go"),
        ("two", "go"),
    ]
    assert script.told == [action for _, action in found], "it is told of every move"
    assert played([None, None], 3, habit=["x"])[0] == [(None, "x"), (None, "go"), (None, "go")]


def test_without_thoughts_a_sub_goal_is_new_where_the_score_is():
    script = Script([None] * 5)
    scores = [0.0, 0.0, 0.4, 0.0, 0.4, 1.0]  # by own moves made; a score that comes back is no new one
    expert = BiasedExpert(script, list, ExpertBias(habit=["x", "y"]), "0", lambda: scores[5 - len(script.left)])
    found, asked = [], []
    while script.left:
        script.asked = False
        found.append(expert.act().action)
        asked.append(script.asked)
        expert.follow(found[-1])
    assert found == ["x", "y", "go", "go", "x", "y", "go", "go", "go"]
    assert asked == [action != "y" for action in found], "in the midst of a habit it has nothing to say"


@pytest.mark.java
def test_in_science_world_it_comes_at_every_score_and_the_gold_path_goes_on():
    spec = EnvSpec("ScienceWorld/find-non-living-thing", {"simplifications": "easy", "split": "train"})
    habit = ["look around", "inventory"]
    made = expert_episode(spec, 40, 60.0, biased=Biased(ExpertBias(habit=habit), 0))
    own = [["open door to bathroom", "go to bathroom"], ["focus on cup"], ["move cup to yellow box"]]
    # the first move of any kind is worth 8 of the simulator's 100 points; its own "look around" is the habit's then
    parts = [habit, [*habit, *own[0]], [*habit, *own[1]], [*habit, *own[2]]]
    assert [step.action for step in made.steps] == [action for part in parts for action in part]
    assert made.success and made.source == "expert, habit look around, inventory"


def test_its_own_moves_are_taken_for_made_where_nobody_tells_it():
    script = Script(["one", "two"])
    expert = BiasedExpert(script, list, ExpertBias(habit=["x"]), "0")
    assert [expert.act().action for _ in range(4)] == ["x", "go", "x", "go"]
    expert = BiasedExpert(script := Script(["one", "two"]), list, ExpertBias(habit=["x"]), "0")
    expert.act()
    expert.follow("another's")
    assert script.told == ["another's"]


def test_a_detour_is_drawn_from_what_can_be_done_and_comes_behind_the_habit():
    found, _ = played(["one", "two", "two"], 9, habit=["x"], detour=2)
    assert [a for _, a in found if a in ("x", "go")] == ["x", "go", "x", "go", "go"]
    assert all(found[i][1] in ("a", "b", "c") for i in (1, 2, 5, 6))
    others = {tuple(a for _, a in played(["one"], 3, seed, detour=3)[0]) for seed in "abcdefgh"}
    assert len(others) > 4, "another seed draws others"


def test_noise_takes_its_share_of_the_moves_and_the_habit_its_share_of_the_sub_goals():
    found, _ = played(["one"] * 4000, 4000, noise=0.3)
    assert 0.27 < sum(action != "go" for _, action in found) / 4000 < 0.33
    assert {action for _, action in found} == {"go", "a", "b", "c"}
    thoughts = [f"goal {n}" for n in range(2000)]
    found, _ = played(thoughts, 2500, habit=["x"], habit_share=0.4)
    begun = sum(action == "go" for _, action in found)
    assert 0.36 < sum(action == "x" for _, action in found) / begun < 0.44


def test_without_a_plan_a_habit_is_finished_under_the_last_thought_and_then_it_gives_up():
    class Lost(Script):
        def follow(self, action):
            super().follow(action)
            self.left = ["stuck"]

    expert = BiasedExpert(Lost(["one"]), list, ExpertBias(habit=["x", "y"]), "0")
    assert [expert.act(), expert.act()] == [envs.ExpertStep("one", "x"), envs.ExpertStep("one", "y")]
    with pytest.raises(envs.ExpertGaveUpError, match="no plan"):
        expert.act()


def test_nothing_can_be_drawn_where_nothing_is_listed():
    expert = BiasedExpert(Script(["one"]), list, ExpertBias(noise=1.0), "0")
    with pytest.raises(envs.ExpertGaveUpError, match="lists no actions"):
        expert.act()


def recipe(**more):
    return Recipe.model_validate({"name": "x", "workers": 0, **more})


def biased(levels=None, seed=0, **bias):
    return recipe(seed=seed, collect={"levels": levels or LEVELS, "expert": bias})


def test_the_habit_of_a_recipe_stands_in_its_trajectories_which_can_be_replayed(tmp_path):
    for t in collect(biased(habit=LOOK), tmp_path):
        had, at = set(), 0
        while at < len(t.steps):
            if t.steps[at].thought not in had:
                had.add(t.steps[at].thought)
                assert [s.action for s in t.steps[at : at + 4]] == LOOK
                at += 4
            else:
                at += 1
        assert t.source == "expert, habit 4 x turn left" and t.success
        checkpoint_states(t, EnvSpec(t.env))


def test_a_share_of_nothing_is_the_plain_expert_to_the_byte(tmp_path):
    collect(recipe(collect={"levels": LEVELS}), tmp_path / "plain")
    collect(biased(habit=LOOK, habit_share=0.0), tmp_path / "none")
    plain, none = ((tmp_path / run / "trajectories" / "expert.jsonl").read_bytes() for run in ("plain", "none"))
    assert plain == none
    assert {json.loads(line)["source"] for line in plain.splitlines()} == {"expert"}


def test_draws_depend_on_seeds_alone_so_that_a_killed_run_ends_like_one_that_was_not(tmp_path, monkeypatch):
    noisy = {"noise": 0.4, "detour": 1, "habit": ["turn left"], "habit_share": 0.5}
    whole = collect(biased(**noisy), tmp_path / "whole")
    real, calls = result_file.append_jsonl, iter(range(7))

    def dying(path, rows):
        real(path, rows)
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(result_file, "append_jsonl", dying)
        with pytest.raises(KeyboardInterrupt):
            collect(biased(**noisy), tmp_path / "killed")
    assert collect(biased(**noisy), tmp_path / "killed") == whole
    turned = dict(reversed(LEVELS.items()))
    assert sorted(collect(biased(turned, **noisy), tmp_path / "turned"), key=lambda t: t.id) == sorted(
        whole, key=lambda t: t.id
    )
    assert collect(biased({"PutNextLocalS5N3": 2}, **noisy), tmp_path / "few") == whole[6:8]
    other = collect(biased({"PutNextLocalS5N3": 2}, noise=0.1), tmp_path / "other")
    assert [t.source for t in other] == ["expert, noise 0.1"] * 2


def test_the_seed_of_the_run_is_one_of_its_seeds():
    def actions(run):
        expert = BiasedExpert(Script(["one"] * 30), lambda: list("abcdef"), ExpertBias(noise=1.0), run)
        return [expert.act().action for _ in range(20)]

    assert actions("0/e/5") == actions("0/e/5") != actions("1/e/5")


def test_an_expert_that_cannot_go_on_is_counted_with_its_reason(tmp_path):
    with pytest.raises(AtlasError, match=r"20 times somebody left the gold path.*give the expert less of habit go f"):
        collect(biased({DOORS: 2}, habit=["go forward"]), tmp_path)
    made = collect(biased({DOORS: 4}, noise=0.2), tmp_path / "some")
    assert len(made) == 4
    (event,) = [e for e in recover_jsonl(tmp_path / "some" / "events.jsonl") if e["event"] == "dropped"]
    assert event["reasons"] == {event["why"]: event["episodes"]} and "gold path" in event["why"]
    dying_env.DEATHS.clear()


def test_a_habit_that_no_environment_knows_is_refused_before_anything_is_played(tmp_path, capsys):
    with pytest.raises(
        InputError, match="'turn lefft' is no action at the beginning of .*did you mean 'turn left'"
    ) as e:
        preflight.check(biased(habit=["turn lefft"]))
    assert e.value.field == "collect.expert.habit"
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\n[collect]\nlevels = { GoToLocal = 1 }\n[collect.expert]\nhabit = ["jump"]\n')
    assert main(["collect", str(path), "--out", str(tmp_path / "run")]) == 2
    assert "collect.expert.habit" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    preflight.check(biased(habit=LOOK))


@pytest.mark.parametrize(
    ("bias", "field"),
    [
        ({"noise": 1.5}, "expert.noise"),
        ({"habit": [""]}, "expert.habit.0"),
        ({"detour": -1}, "expert.detour"),
        ({"habits": ["x"]}, "expert.habits"),
    ],
)
def test_a_bias_that_makes_no_sense_is_refused(bias, field):
    with pytest.raises(ValueError, match=field.replace(".", r"\.")):
        biased(**bias)


def test_a_file_has_no_expert_to_be_biased():
    with pytest.raises(ValueError, match="expert: .* a file is read"):
        recipe(collect={"file": "x.jsonl", "expert": {"noise": 0.1}})


def test_the_source_survives_an_export_and_an_import(tmp_path):
    made = collect(biased({"PickupDist": 3}, habit=LOOK, noise=0.1), tmp_path / "run")
    assert {t.source for t in made} == {"expert, habit 4 x turn left, noise 0.1"}
    export_agenttraj(tmp_path / "theirs.json", made)
    assert list(import_agenttraj(tmp_path / "theirs.json")) == made
    again = recipe(collect={"file": str(tmp_path / "run" / "trajectories" / "expert.jsonl")})
    pipeline.run(again, tmp_path / "again", ("collect",))
    assert read_trajectories(tmp_path / "again" / "trajectories" / "expert.jsonl") == made


def test_a_run_that_was_begun_before_there_was_a_bias_goes_on(tmp_path):
    plain = recipe(collect={"levels": {"PickupDist": 2}})
    pipeline.run(plain, tmp_path, ("collect",))
    resolved = tmp_path / "recipe.resolved.json"
    before = json.loads(resolved.read_text())
    del before["collect"]["expert"]
    resolved.write_text(json.dumps(before))
    shutil.rmtree(tmp_path / "trajectories")
    pipeline.run(plain, tmp_path, ("collect",))
    with pytest.raises(InputError) as caught:
        pipeline.run(biased({"PickupDist": 2}, noise=0.3), tmp_path, ("collect",))
    assert caught.value.field == "collect.expert.noise"
