"""Rounds of switching and tuning: equal shares for all arms, the same episodes, kills, and when they end."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from killed_writes import Killed, killed_at_a_write
from round_runs import PLAYED, TERMS, call_after, put_switches, rounds_recipe, save_models

from atlas_ray import pipeline
from atlas_ray.agents.rollout import SWITCH_JUDGE, SWITCH_TEST, seed_block
from atlas_ray.cli import main
from atlas_ray.data.records import read_annotations, read_trajectories
from atlas_ray.data.results import ALWAYS_QUICK
from atlas_ray.data.rounds import load_rounds
from atlas_ray.recipe.loading import load
from atlas_ray.recipe.rounds import LESSON_ARMS
from atlas_ray.rundir.files import jsonl_rows, read_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.stages.round_parts import Chain

ARMS = ("calls", "random_calls", "all", "deepthink-equal-calls", "deepthink-equal-tokens")


pytestmark = pytest.mark.usefixtures("peak_is_known")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, peak_is_known):
    made = tmp_path_factory.mktemp("models")
    save_models(made)
    return made


def played(folder, run_dir, steps, switch=(), **rounds):
    """A run of rounds whose switches are there."""
    recipe = rounds_recipe(folder, switch, **rounds)
    pipeline.open_run(recipe, run_dir)
    put_switches(recipe, run_dir, steps)
    pipeline.run(recipe, run_dir, ("switch", "rounds"))
    return recipe


@pytest.fixture(scope="module")
def together(folder, tmp_path_factory):
    """Two rounds of all arms, for two seeds."""
    run_dir = tmp_path_factory.mktemp("rounds") / "run"
    recipe = played(folder, run_dir, (1, 1, 2), {"seeds": [0, 1]})
    made = load_rounds(RunLayout(run_dir).rounds)
    return SimpleNamespace(recipe=recipe, run_dir=run_dir, layout=RunLayout(run_dir), made=made)


def test_every_part_is_a_run_directory_and_the_first_arm_goes_on(together):
    layout = together.layout
    for seed in (0, 1):
        before = together.recipe.switch.models[0].model
        for number in (1, 2):
            for name in ("lesson", "tuned", "switch"):
                assert layout.round_part(number, seed, name).recipe.is_file()
            tuned = layout.round_part(number, seed, "tuned")
            assert {read_json(tuned.checkpoint_record(arm, seed))["base"]["name"] for arm in LESSON_ARMS} == {before}
            before = str(tuned.checkpoint("calls", seed))
            switch = read_json(layout.round_part(number, seed, "switch").recipe)["switch"]
            assert switch["models"][0]["model"] == before and switch["seeds"] == [seed]
            alone = read_json(layout.round_part(number, seed, "alone-all").recipe)["switch"]
            assert alone["models"][0]["model"] == str(tuned.checkpoint("all", seed))
    (lesson,) = {t.source for t in read_trajectories(layout.round_part(2, 0, "lesson").expert)}
    assert lesson.endswith(f"switch-{TERMS}-seed0")


def _lesson(together, number, seed):
    return read_trajectories(together.layout.round_part(number, seed, "lesson").expert)


def test_as_many_episodes_are_played_as_were_asked_for_and_new_ones_each_round(together):
    seen = set()
    for number in (1, 2):
        part = together.layout.round_part(number, 0, "lesson")
        found = read_trajectories(part.expert)
        assert Counter(t.env for t in found) == dict.fromkeys({t.env for t in found}, 2)
        assert not seen & {(t.env, t.seed) for t in found}
        seen |= {(t.env, t.seed) for t in found}
        (lesson,) = [r.lesson for r in together.made.rounds if r.round == number]
        wins = [sum(t.success for t in _lesson(together, number, seed)) for seed in (0, 1)]
        assert (lesson.episodes, lesson.kept) == (4, sum(wins) / 2) and lesson.calls >= 4
        assert sum(level.kept for level in lesson.levels.values()) == lesson.kept
    tests = {row["seed"] for row in jsonl_rows(together.layout.switch_episodes)}
    judged = {row["seed"] for row in jsonl_rows(together.layout.switch_judged)}
    assert tests == set(range(seed_block(0, SWITCH_TEST), seed_block(0, SWITCH_TEST) + PLAYED))
    assert judged == set(range(seed_block(0, SWITCH_JUDGE), seed_block(0, SWITCH_JUDGE) + PLAYED))
    assert not {seed for _, seed in seen} & (tests | judged)


def test_arms_of_a_lesson_have_equal_shares_of_its_steps(together):
    for number, seed in ((1, 0), (2, 1)):
        part = together.layout.round_part(number, seed, "tuned")
        lesson = {t.id: t for t in _lesson(together, number, seed) if t.success}
        assert [t.id for t in read_trajectories(part.expert)] == list(lesson)
        marks = {
            arm: {a.trajectory_id: a.critical for a in read_annotations(part.annotations(arm))} for arm in LESSON_ARMS
        }
        for key, t in lesson.items():
            assert list(marks["calls"][key]) == [i for i, s in enumerate(t.steps) if s.actor == "deepthink"]
            assert len(marks["random_calls"][key]) == len(marks["calls"][key])
            assert len(marks["all"][key]) == len(t.steps)


def pool(layout):
    """What DEEPTHINK has played alone, in the order in which it is spent: by batch, then level by level in turn."""
    found, batch = [], 0
    while layout.deepthink_episodes(batch).expert.is_file():
        rows = read_trajectories(layout.deepthink_episodes(batch).expert)
        by_level = [[t for t in rows if t.env == env] for env in dict.fromkeys(t.env for t in rows)]
        found += [t for turn in zip(*by_level, strict=True) for t in turn]
        batch += 1
    return found


def test_plain_distillation_has_as_many_calls_or_as_many_tokens(together):
    for seed in (0, 1):
        spent = tokens = 0
        for number in (1, 2):
            spent += read_json(together.layout.round_part(number, seed, "lesson").collecting_usage)["calls"]
            left, kept = spent, []
            for t in pool(together.layout):
                if (left := left - len(t.steps)) < 0:
                    break
                kept += [t.id] if t.success else []
            part = together.layout.round_part(number, seed, "deepthink-equal-calls")
            assert [t.id for t in read_trajectories(part.expert)] == kept
            assert read_json(part.collecting_usage)["calls"] == spent

            tuned = together.layout.round_part(number, seed, "tuned")
            tokens += read_json(tuned.checkpoint_record("calls", seed))["trained_tokens"]
            part = together.layout.round_part(number, seed, "deepthink-equal-tokens")
            record = read_json(part.checkpoint_record("all", seed))
            kept = read_trajectories(part.expert)
            largest = 2 * max(record["trained_tokens"] / 2 / len(t.steps) for t in kept)
            assert tokens - largest < record["trained_tokens"] <= tokens
            assert record["base"]["name"] == together.recipe.switch.models[0].model
            ids = [t.id for t in pool(together.layout)]
            assert [t.id for t in kept] == ids[: len(kept)], "the expert always succeeds"
            last = ids.index(kept[-1].id)
            assert read_json(part.collecting_usage)["calls"] == sum(
                len(t.steps) for t in pool(together.layout)[: last + 1]
            )
    for each in together.made.rounds[1:]:
        arms = {arm.arm: arm for arm in each.arms}
        assert tuple(arms) == ARMS
        assert len({arms[a].calls_spent for a in (*LESSON_ARMS, "deepthink-equal-calls")}) == 1
        assert arms["random_calls"].steps_share == arms["calls"].steps_share


def test_scores_are_means_of_the_same_test_episodes(together):
    for each in together.made.rounds[1:]:
        rows = []
        for seed in (0, 1):
            path = together.layout.round_part(each.round, seed, "switch").switch_episodes
            rows.append([row for row in jsonl_rows(path) if row["policy"] == together.made.term])
        first = seed_block(0, SWITCH_TEST)
        assert [sorted(r["seed"] for r in own) for own in rows] == [list(range(first, first + PLAYED))] * 2
        assert each.switch.success == sum(r["success"] for own in rows for r in own) / (2 * PLAYED)
        assert each.switch.calls == pytest.approx(sum(r["calls"] for own in rows for r in own) / (2 * PLAYED))
        for arm in each.arms[1:]:
            wins = []
            for seed in (0, 1):
                path = together.layout.round_part(each.round, seed, f"alone-{arm.arm}").switch_episodes
                wins += [row["success"] for row in jsonl_rows(path) if row["policy"] == ALWAYS_QUICK]
            assert arm.success == sum(wins) / (2 * PLAYED)
            assert arm.first_above.mean == pytest.approx(each.arms[0].success - arm.success)
    assert together.made.deepthink.success == 1.0 and together.made.kept == 0
    assert [each.policy for each in together.made.rounds] == [together.made.term] * 3


def test_a_second_start_and_a_moved_run_do_nothing_again(together, tmp_path, capsys):
    moved = tmp_path / "moved"
    together.run_dir.rename(moved)
    try:
        RunLayout(moved).rounds.unlink()
        before = {path: path.stat().st_mtime_ns for path in moved.rglob("*.safetensors")}
        episodes = {path: path.read_bytes() for path in moved.rglob("episodes.jsonl")}
        pipeline.run(together.recipe, moved, ("rounds",))
        assert {path: path.stat().st_mtime_ns for path in moved.rglob("*.safetensors")} == before
        assert {path: path.read_bytes() for path in moved.rglob("episodes.jsonl")} == episodes
        assert load_rounds(RunLayout(moved).rounds) == together.made
    finally:
        moved.rename(together.run_dir)


def test_rounds_end_where_a_round_gains_nothing(folder, tmp_path):
    played(folder, tmp_path / "run", (1, 2), stop=True, arms=["calls"])
    made = load_rounds(RunLayout(tmp_path / "run").rounds)
    assert [each.round for each in made.rounds] == [0, 1] and made.kept == 0
    assert "neither more success nor fewer calls" in made.why or "calls less" in made.why
    assert not RunLayout(tmp_path / "run").round_part(2, 0, "lesson").root.exists()


def test_no_round_begins_where_calls_are_of_no_use(folder, tmp_path):
    played(folder, tmp_path / "run", (11,), stop=True, margin=0.5)
    made = load_rounds(RunLayout(tmp_path / "run").rounds)
    assert [each.policy for each in made.rounds] == [ALWAYS_QUICK]
    assert "QUICK alone succeeds as often" in made.why and made.margin == 0.5


def test_from_the_start_all_lessons_are_read_again(folder, tmp_path):
    recipe = played(folder, tmp_path / "run", (1, 2, 1), tune_from="start", arms=["calls"])
    layout = RunLayout(tmp_path / "run")
    lessons = [read_trajectories(layout.round_part(n, 0, "lesson").expert) for n in (1, 2)]
    tuned = layout.round_part(2, 0, "tuned")
    assert read_trajectories(tuned.expert) == [t for t in (*lessons[0], *lessons[1]) if t.success]
    record = read_json(tuned.checkpoint_record("calls", 0))
    assert record["base"]["name"] == recipe.switch.models[0].model
    made = load_rounds(layout.rounds)
    assert made.rounds[2].arms[0].trained_tokens == record["trained_tokens"]
    assert made.rounds[2].arms[0].calls_spent == sum(each.lesson.calls for each in made.rounds[1:])


def test_a_switch_that_called_nothing_ends_the_rounds(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Chain, "was_taught", lambda self, number: False)
    played(folder, tmp_path / "run", (1,), arms=["calls"])
    made = load_rounds(RunLayout(tmp_path / "run").rounds)
    assert len(made.rounds) == 1 and made.kept == 0 and "called nothing" in made.why


def test_a_control_that_has_nothing_to_learn_from_stays_untuned_and_is_compared_all_the_same(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("atlas_ray.stages.round_parts.within_calls", lambda episodes, calls: ([], calls))
    played(folder, tmp_path / "run", (1, 2), count=1, arms=["calls", "deepthink-equal-calls"])
    made = load_rounds(RunLayout(tmp_path / "run").rounds)
    first, control = made.rounds[1].arms
    assert (control.trajectories, control.trained_tokens) == (0, 0) and control.calls_spent == first.calls_spent
    assert control.success == made.rounds[0].quick.success and control.first_above is not None
    (event,) = [row for row in jsonl_rows(RunLayout(tmp_path / "run").events) if row["event"] == "not tuned"]
    assert event["arm"] == "deepthink-equal-calls"


def test_the_switches_of_a_round_are_trained_together_and_once(folder, tmp_path, monkeypatch):
    trained = []

    def train(task, state):
        (seed,) = task.policy_spec.seeds
        switch = task.recipe.switch
        trained.append((Path(task.run_dir).parent.name, seed, switch.models[0].model, switch.steps))
        call_after(task.policy_spec.directory(seed), 2, 8, task.recipe.switch.features)
        yield Counter()

    monkeypatch.setattr("atlas_ray.switching.stage.train", train)
    switch, settings = {"seeds": [0, 1], "baselines": ["random"]}, {"arms": ["calls"], "switch_steps": 77}
    recipe = played(folder, tmp_path / "run", (1,), switch, count=1, **settings)
    assert not any(row["policy"].startswith("random") for row in jsonl_rows(_tested(tmp_path, 0)))
    tuned = [RunLayout(tmp_path / "run").round_part(1, k, "tuned").checkpoint("calls", k) for k in (0, 1)]
    assert trained == [(f"seed{k}", k, str(tuned[k].resolve()), 77) for k in (0, 1)]
    assert {row["training"] for k in (0, 1) for row in jsonl_rows(_tested(tmp_path, k))} == {None, 0, 1}
    pipeline.run(recipe, tmp_path / "run", ("rounds",))
    assert len(trained) == 2


def _tested(tmp_path, seed):
    return RunLayout(tmp_path / "run").round_part(1, seed, "switch").switch_episodes


def timeless(value):
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """One round that nobody has killed, and its recipe."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return played(folder, run_dir, (1, 2), count=1, arms=["calls", "all", "deepthink-equal-calls"]), run_dir


def test_killed_again_and_again_rounds_end_like_those_that_were_not(whole, tmp_path, monkeypatch):
    (recipe, unbroken), broken = whole, tmp_path / "broken"
    pipeline.open_run(recipe, broken)
    put_switches(recipe, broken, (1, 2))
    left, kills, parts = killed_at_a_write(monkeypatch), 0, set()
    while not RunLayout(broken).rounds.is_file():
        left[0] = 13 + kills % 5  # writes until it is killed
        there = {path for path in broken.rglob("*") if path.is_dir() and (path / "recipe.resolved.json").is_file()}
        try:
            pipeline.run(recipe, broken, ("switch", "rounds"))
        except Killed:
            kills += 1
            parts |= there
            assert kills < 60, "it gets nowhere"
    assert kills > 5 and len(parts) > 4
    assert timeless(read_json(RunLayout(broken).rounds)) == timeless(read_json(RunLayout(unbroken).rounds))
    for path in sorted(unbroken.rglob("*.safetensors")):
        assert (broken / path.relative_to(unbroken)).read_bytes() == path.read_bytes()
    for path in unbroken.rglob("*.jsonl"):
        if path.parent.name in ("trajectories", "annotations"):
            assert (broken / path.relative_to(unbroken)).read_bytes() == path.read_bytes(), path


def test_rounds_whose_machine_is_lost_go_on_from_their_storage(whole, tmp_path, monkeypatch):
    recipe, unbroken = whole
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    (tmp_path / "shared").mkdir()
    kept = recipe.model_copy(update={"storage": str(tmp_path / "shared")})
    pipeline.open_run(kept, one)
    put_switches(kept, one, (1, 2))
    tune = Chain.tune

    def killed(self, number):
        tune(self, number)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Chain, "tune", killed)
        with pytest.raises(Killed):
            pipeline.run(kept, one, ("switch", "rounds"))
    there = RunLayout(one).round_part(1, 0, "tuned").checkpoint_record("calls", 0).read_bytes()
    shutil.rmtree(one)
    pipeline.run(kept, two, ("switch", "rounds"))
    assert RunLayout(two).round_part(1, 0, "tuned").checkpoint_record("calls", 0).read_bytes() == there
    assert timeless(read_json(RunLayout(two).rounds)) == timeless(read_json(RunLayout(unbroken).rounds))


@pytest.mark.slow
def test_the_recipe_that_ships_plays_a_small_round(tmp_path, capsys):
    given = {"workers": "0", "rounds.arms": '["calls"]', "switch.levels": '["GoToLocalS5N2"]'}
    given["switch.models"] = '["tiny-quick", "expert"]'
    recipe, out = load("together", given, quick=True), tmp_path / "run"
    pipeline.open_run(recipe, out)
    put_switches(recipe, out, (1, 1))
    options = [f"--{key}={value}" for key, value in given.items()]
    assert main(["run", "together", "--quick", "--out", str(out), *options]) == 0
    made = load_rounds(RunLayout(out).rounds)
    assert [[a.arm for a in each.arms] for each in made.rounds] == [[], ["calls"]]
    said = capsys.readouterr().out
    assert "round 1 of 1, seed 0: lesson" in said and f"round {made.kept} is the one to use" in said
    assert "Rounds of switching and tuning" in RunLayout(out).report.read_text()


@pytest.mark.slow
def test_rounds_that_train_their_switches_go_on_after_kill_9_in_every_part(tmp_path):
    out, given = tmp_path / "run", {"workers": "1", "switch.seeds": "[0, 1]", "switch.updates_per_step": "0.5"}
    options = [f"--{key}={value}" for key, value in given.items()]
    command = [sys.executable, "-m", "atlas_ray", "run", "together", "--quick", "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    layout, recipe = RunLayout(out), load("together", given, quick=True)
    pipeline.open_run(recipe, out)
    put_switches(recipe, out, (3,))  # what 400 steps learn may call nothing; those of round 1 are trained
    wanted = [
        layout.switch_judged,
        layout.round_part(1, 0, "lesson").recipe,
        layout.round_part(1, 0, "tuned").annotations("calls"),
        layout.deepthink_episodes(0).recipe,
        layout.round_part(1, 1, "switch").metrics,  # both are trained at a time
        layout.round_part(1, 0, "switch").switch_episodes,
        layout.round_part(1, 0, "switch").switch_judged,
        layout.round_part(1, 1, "alone-all").switch_episodes,
    ]
    for path in wanted:
        driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while not path.exists() and driver.poll() is None:
            time.sleep(0.02)
        driver.kill()
        said, _ = driver.communicate()
        assert path.exists(), said
        time.sleep(3)  # what the driver started ends with it
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made = load_rounds(layout.rounds)
    assert [each.round for each in made.rounds] == [0, 1] and made.rounds[1].switch.episodes == 16
    assert [arm.arm for arm in made.rounds[1].arms[:3]] == list(LESSON_ARMS)
    first, again = layout.rounds.read_bytes(), subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and layout.rounds.read_bytes() == first
