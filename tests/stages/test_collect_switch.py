"""Collecting with a policy of another run: which episodes are kept, who acted in them, what they took."""

import dying_env
import pytest
from collecting_runs import collects, finished_run, random_switch, save_model
from serving_sessions import rule
from switch_models import LEVELS

from atlas_ray import envs, pipeline
from atlas_ray.agents.rollout import TRAIN, EnvSpec, seed_block
from atlas_ray.cluster import result_file
from atlas_ray.cluster.worker_state import WorkerState
from atlas_ray.cluster.workers import ActorPool
from atlas_ray.errors import AtlasError, EnvironmentGoneError, InputError
from atlas_ray.models.loading import fingerprint
from atlas_ray.recipe.collect import Collect
from atlas_ray.recipe.of_run import policy_of, recipe_of
from atlas_ray.rundir.files import jsonl_rows, read_json, write_json
from atlas_ray.stages.collect import collect
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.baselines import Always
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.players import close_players, open_players
from atlas_ray.trajectory import read_trajectories

SWITCH, DYING = "switch-cost0.05-seed0", "dying_env:Dying/Doors-v0"
RULE = "switch-classifier0.30"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run whose small model knows nothing and whose large one is the expert."""
    folder = tmp_path_factory.mktemp("finished")
    made = finished_run(folder / "run", [save_model("quick", folder), "expert"])
    rule(0.65).save(made / "checkpoints" / RULE)
    return made


def played(run, policy, spec, seeds, budget=None):
    """Every episode of these seeds, played here and now without the stage."""
    state, recipe = WorkerState(0), recipe_of(run)
    try:
        players = open_players(recipe, state)
        return evaluate_policy(policy, players, [spec], seeds, budget, record=True)
    finally:
        close_players(state)


def content(run_dir):
    """What a run has collected, but for the time it took."""
    usage = read_json(run_dir / "trajectories" / "usage.json")
    return (run_dir / "trajectories" / "expert.jsonl").read_bytes(), {**usage, "seconds": 0}


@pytest.mark.parametrize(
    ("name", "budget", "levels"),
    [(SWITCH, None, LEVELS), ("switch-budget2-seed0", 2, LEVELS[:1]), (RULE, None, LEVELS)],
)
def test_the_first_successes_are_kept_with_who_acted_and_everything_played_is_counted(
    run, tmp_path, name, budget, levels
):
    made = collect(collects(run / name, dict.fromkeys(levels, 4)), tmp_path)
    assert made == read_trajectories(tmp_path / "trajectories" / "expert.jsonl")
    usage, first = read_json(tmp_path / "trajectories" / "usage.json"), seed_block(0, TRAIN)
    wanted, counted = [], []
    for level in levels:
        spec = EnvSpec(level, {"max_steps": 20})
        seeds = range(first, first + usage["levels"][level]["episodes"])
        rows = played(run, SwitchPolicy.load(run / "checkpoints" / name), spec, seeds, budget)
        solved = [row for row in rows if row["success"]]
        assert len(solved) == 4 and solved[-1] == rows[-1], "no more is played than is needed"
        wanted += [(spec.id, row) for row in solved]
        counted += rows
    assert [(t.env, t.seed) for t in made] == [(env, row["seed"]) for env, row in wanted]
    for t, (_, row) in zip(made, wanted, strict=True):
        assert [(s.observation, s.action, s.actor) for s in t.steps] == [
            (s["observation"], s["action"], s["actor"]) for s in row["episode"]["steps"]
        ]
        assert {s.probability for s in t.steps} == {1.0}
        assert (t.success, t.score, t.source, t.id) == (True, row["score"], f"lesson/{name}", f"{t.env}/{t.seed}")
    acted = {s.actor for t in made for s in t.steps}
    assert acted == {"quick", "deepthink"} or name == RULE, "which wins only where it calls throughout"
    assert all(usage["calls_by_model"])
    for field in ("steps", "calls", "flops"):
        assert usage[field] == sum(row[field] for row in counted), field
    for field in ("calls_by_model", "tokens"):
        assert usage[field] == [sum(row[field][m] for row in counted) for m in (0, 1)], field
    assert (usage["episodes"], usage["kept"], usage["lost"]) == (len(counted), 4 * len(levels), 0)
    assert usage["successes"] == 4 * len(levels) < usage["episodes"]
    assert usage["policy"] == f"lesson/{name}" and usage["models"][1] == "expert"
    assert sum(level["episodes"] for level in usage["levels"].values()) == usage["episodes"]


@pytest.mark.parametrize(("name", "actor"), [("always-quick", "quick"), ("always-deepthink", "deepthink")])
def test_one_model_throughout_is_plain_distillation(run, tmp_path, name, actor):
    made = collect(collects(run / name, {LEVELS[0]: 3}, keep="all"), tmp_path)
    usage = read_json(tmp_path / "trajectories" / "usage.json")
    assert {s.actor for t in made for s in t.steps} == {actor} and len(made) == 3
    own = int(actor == "deepthink")
    assert usage["calls"] == own * usage["steps"]
    assert usage["calls_by_model"][own] == usage["steps"] and usage["calls_by_model"][1 - own] == 0
    assert usage["tokens"][1] == 0 and (usage["tokens"][0] > 0) == (actor == "quick")
    if actor == "deepthink":
        first, spec = seed_block(0, TRAIN), EnvSpec(LEVELS[0], {"max_steps": 20})
        rows = played(run, Always(1), spec, range(first, first + 3))
        assert [[s.action for s in t.steps] for t in made] == [
            [s["action"] for s in r["episode"]["steps"]] for r in rows
        ]


def test_all_episodes_are_kept_where_that_is_asked_for(run, tmp_path):
    made = collect(collects(run / SWITCH, {LEVELS[0]: 9}, keep="all"), tmp_path)
    assert [t.seed for t in made] == list(range(seed_block(0, TRAIN), seed_block(0, TRAIN) + 9))
    assert {t.success for t in made} == {True, False}
    usage = read_json(tmp_path / "trajectories" / "usage.json")
    assert usage["episodes"] == usage["kept"] == 9 > usage["successes"] == sum(t.success for t in made)


@pytest.mark.parametrize("after", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 13))])
def test_a_run_that_is_killed_collects_what_one_does_that_is_not(run, tmp_path, monkeypatch, after):
    recipe, real, count = collects(run / SWITCH), result_file.append_jsonl, iter(range(after))
    collect(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:

        def dying(path, rows):
            real(path, rows)
            if next(count, None) is None:
                raise KeyboardInterrupt

        patch.setattr(result_file, "append_jsonl", dying)
        with pytest.raises(KeyboardInterrupt):
            collect(recipe, tmp_path / "killed")
    (part,) = (tmp_path / "killed" / "trajectories").glob(".*.jsonl")
    assert len(list(jsonl_rows(part))) == after + 1
    with part.open("a") as file:
        file.write('{"cut')
    collect(recipe, tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not part.exists()


def test_who_ends_first_does_not_matter(run, tmp_path, monkeypatch):
    recipe, stream = collects(run / SWITCH), ActorPool.stream
    collect(recipe, tmp_path / "one")

    def late(self, job, tasks, *more):
        return iter(list(stream(self, job, list(tasks)[::-1], *more))[::-1])

    monkeypatch.setattr(ActorPool, "stream", late)
    collect(recipe.model_copy(update={"num_envs": 3}), tmp_path / "other")
    assert content(tmp_path / "other") == content(tmp_path / "one")


def test_too_few_successes_say_why_and_what_helps(tmp_path):
    run = finished_run(tmp_path / "run", [save_model("quick", tmp_path), "expert"], max_steps=1)
    with pytest.raises(
        AtlasError, match=r"lesson/always-quick succeeded in 0 of 111 episodes of .*collect.keep"
    ) as told:
        collect(collects(run / "always-quick", {LEVELS[0]: 1}, max_steps=1), tmp_path / "x")
    assert not isinstance(told.value, InputError)
    assert not (tmp_path / "x" / "trajectories" / "expert.jsonl").exists()


# --- environments that die ---


@pytest.fixture
def dying(tmp_path):
    dying_env.DEATHS.clear()
    yield finished_run(tmp_path / "run", ["expert", "expert"], [DYING], max_steps=None)
    dying_env.DEATHS.clear()


def lost_events(run_dir):
    return [row for row in jsonl_rows(run_dir / "events.jsonl") if row["event"] == "lost episode"]


def test_a_lost_episode_is_no_failure_and_another_takes_its_place(dying, tmp_path):
    dying_env.DEATHS.update({1: 10**6, 2: 3})
    recipe = collects(dying / "always-quick", {DYING: 4}, max_steps=None)
    made = collect(recipe, tmp_path / "x")
    assert [t.seed for t in made] == [0, 2, 3, 4]
    usage = read_json(tmp_path / "x" / "trajectories" / "usage.json")
    assert (usage["episodes"], usage["successes"], usage["lost"]) == (4, 4, 1)
    told = {row["seed"]: row for row in lost_events(tmp_path / "x")}
    assert {seed: (row["attempts"], row["dropped"]) for seed, row in told.items()} == {1: (3, True), 2: (2, False)}
    assert "the process is gone" in told[1]["why"]
    # each attempt that was lost had taken one step
    steps = sum(len(t.steps) for t in made)
    assert usage["steps"] == steps + 3 * 1 + 1 * 1 == sum(usage["calls_by_model"])


def test_an_environment_that_is_gone_ends_it_and_the_same_command_plays_what_was_lost(dying, tmp_path, monkeypatch):
    begin, gone = dying_env.Doors.begin, set(range(2, 20))

    def failing(self, variation):
        if variation in gone:
            raise envs.EnvironmentDiedError("connection refused")
        return begin(self, variation)

    monkeypatch.setattr(dying_env.Doors, "begin", failing)
    recipe = collects(dying / "always-quick", {DYING: 8}, max_steps=None)
    with pytest.raises(EnvironmentGoneError, match="connection refused"):
        collect(recipe, tmp_path / "x")
    gone.clear()
    assert [t.seed for t in collect(recipe, tmp_path / "x")] == list(range(8))


def test_an_environment_without_enough_episodes_is_refused(dying, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"collect.levels.*21 episodes are asked for.*20"):
        pipeline.run(collects(dying / "always-quick", {DYING: 21}, max_steps=None), tmp_path / "x")
    dying_env.DEATHS.update(dict.fromkeys(range(20), 10**6))
    with pytest.raises(AtlasError, match=r"0 of 20 episodes .* 20 were lost: 20 times .*the process is gone"):
        collect(collects(dying / "always-quick", {DYING: 2}, max_steps=None), tmp_path / "x")


# --- what is refused ---


def refused(recipe, run_dir):
    with pytest.raises(InputError) as caught:
        pipeline.run(recipe, run_dir, ("collect",))
    assert not run_dir.exists(), "nothing is written"
    return caught.value


def test_what_is_not_there_is_refused_before_anything_runs(run, tmp_path):
    for policy, says in (
        (tmp_path / "nowhere" / SWITCH, "is no run directory"),
        (run / "switch-cost0.5-seed0", f"did you mean '{SWITCH}'"),
        (
            run / "checkpoints" / "all-s0",
            f"it has switch-budget2-seed0, {SWITCH}, {RULE}, always-quick",
        ),
        ("switch", "RUN/switch-cost0.05-seed0"),
    ):
        error = refused(collects(policy), tmp_path / "x")
        assert (error.field, error.exit_code) == ("collect.switch", 2) and says in str(error), str(error)
    for policy in (run / SWITCH, run / "checkpoints" / SWITCH):
        assert policy_of(str(policy), "f").directory == run / "checkpoints" / SWITCH


def test_a_relative_run_counts_from_the_working_directory(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert policy_of(f"run/{SWITCH}", "f").name == SWITCH
    monkeypatch.chdir(run)
    assert policy_of("always-quick", "f").number == 0
    assert policy_of(f"checkpoints/{SWITCH}", "f").directory.is_dir()


def test_other_terms_than_the_switch_learned_under_are_refused(run, tmp_path):
    settings = {"ScienceWorld/boil": {"simplifications": "easy"}}
    theirs = finished_run(tmp_path / "run", ["expert", "expert"], environments=settings, levels=["ScienceWorld/boil"])
    for recipe, field in (
        (collects(run / SWITCH, style="react"), "style"),
        (collects(run / SWITCH, tables={"prompt": "chat"}), "prompt"),
        (collects(run / SWITCH, max_steps=30), "collect.max_steps"),
        (collects(theirs / "always-quick", {"ScienceWorld/boil": 1}), "environments.ScienceWorld/boil"),
    ):
        error = refused(recipe, tmp_path / "x")
        assert error.field == field and "collect.switch" in str(error), str(error)
    assert collect(collects(run / "always-deepthink", {LEVELS[0]: 1}, max_steps=30), tmp_path / "y"), "no limit is read"


def test_a_model_that_has_changed_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model("quick", tmp_path)
    run = finished_run(tmp_path / "run", ["quick", "expert"])
    write_json(run / "models.json", {"quick": fingerprint(tmp_path / "quick")})
    recipe = collects("run/" + SWITCH, {LEVELS[0]: 1})
    pipeline.run(recipe, tmp_path / "good", ("collect",))
    assert read_json(tmp_path / "good" / "models.json") == read_json(run / "models.json")
    save_model("deepthink", tmp_path)
    (tmp_path / "deepthink").rename(tmp_path / "other")
    for file in (tmp_path / "quick").iterdir():
        file.write_bytes((tmp_path / "other" / file.name).read_bytes())
    error = refused(recipe, tmp_path / "x")
    assert (error.field, error.code) == ("collect.switch", "other_model") and "switch.models.0.model" in str(error)


def test_a_switch_that_was_trained_again_meanwhile_is_refused(tmp_path, monkeypatch):
    run = finished_run(tmp_path / "run", [save_model("quick", tmp_path), "expert"])
    recipe, real = collects(run / SWITCH, {LEVELS[0]: 3}), result_file.append_jsonl
    with monkeypatch.context() as patch:
        patch.setattr(result_file, "append_jsonl", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(recipe, tmp_path / "x")
    assert real is result_file.append_jsonl
    random_switch(5, cost=0.05).save(run / "checkpoints" / SWITCH)
    with pytest.raises(InputError, match="another switch") as caught:
        collect(recipe, tmp_path / "x")
    assert (caught.value.field, caught.value.code) == ("collect.switch", "other_model")
    random_switch(8, cost=0.05).save(run / "checkpoints" / SWITCH)
    assert len(collect(recipe, tmp_path / "x")) == 3


@pytest.mark.parametrize(
    ("collect_table", "says"),
    [
        ({"switch": "a/b", "file": "x.jsonl", "levels": {}}, "switch: plays levels, and a file is read"),
        ({"switch": "a/b", "file": "x.jsonl"}, "give either levels to play or a file"),
        ({"switch": "a/b", "levels": {}}, "give either levels"),
        ({"switch": None, "keep": "all"}, "keep: says what is kept of the episodes of a switch"),
        ({"cpu_seconds": 1.0}, "cpu_seconds: is of the environments' experts"),
        ({"expert": {"noise": 0.5}}, "expert: is of the environments' experts"),
        ({"success": True}, "success: says how a file is read"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(collect_table, says):
    given = {"switch": "a/b", "levels": {"GoToLocal": 1}, **collect_table}
    with pytest.raises(ValueError, match=says):
        Collect.model_validate(given)


def test_calls_of_experts_are_refused_before_they_play(tmp_path):
    own = {"switch": None, "tables": {"select": {"selectors": ["calls"]}}}
    recipe = collects("", **own)
    error = refused(recipe, tmp_path / "x")
    assert error.field == "select.selectors" and "collect.switch" in str(error)
