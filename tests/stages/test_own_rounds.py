"""Rounds of a model's own runs: who plays and learns in each, the same episodes, kills, and when they end."""

import shutil
from types import SimpleNamespace

import pytest
from killed_writes import Killed, killed_at_a_write
from own_round_runs import own_rounds_recipe, save_own_model

from atlas_ray import pipeline
from atlas_ray.agents.rollout import EVALUATE, SWITCH_JUDGE, TRAIN, seed_block
from atlas_ray.cli import main
from atlas_ray.data.own_rounds import load_own_rounds
from atlas_ray.data.records import read_annotations, read_trajectories
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import load
from atlas_ray.report import answers
from atlas_ray.rundir.files import jsonl_rows, read_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.stages.own_round_parts import OwnChain
from atlas_ray.stages.own_rounds import play_own_rounds
from atlas_ray.stages.round_parts import STRIDE

pytestmark = pytest.mark.usefixtures("peak_is_known")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, peak_is_known):
    made = tmp_path_factory.mktemp("models") / "own"
    save_own_model(made)
    return made


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Two rounds for two seeds that nobody has killed."""
    run_dir = tmp_path_factory.mktemp("own") / "run"
    recipe = own_rounds_recipe(folder)
    pipeline.run(recipe, run_dir)
    layout = RunLayout(run_dir)
    return SimpleNamespace(recipe=recipe, layout=layout, run_dir=run_dir, made=load_own_rounds(layout.own_rounds))


def test_what_was_tuned_plays_the_next_round_and_is_tuned_again(whole):
    for seed in (0, 1):
        first = str(whole.layout.checkpoint("all", seed).resolve())
        lesson, tuned = (whole.layout.round_part(2, seed, name) for name in ("lesson", "tuned"))
        (source,) = {t.source for t in read_trajectories(lesson.expert)}
        assert source == f"{first}, temperature 20"
        for arm in ("all", "successes"):
            assert read_json(tuned.checkpoint_record(arm, seed))["base"]["name"] == first
        assert read_json(lesson.recipe)["select"]["model"] == first
        assert read_trajectories(tuned.expert) == read_trajectories(lesson.expert)


def test_episodes_that_teach_judge_and_test_are_never_the_same(whole):
    seen = {t.seed for t in read_trajectories(whole.layout.expert)}
    taught = {t.seed for t in read_trajectories(whole.layout.round_part(2, 0, "lesson").expert)}
    assert seen == set(range(seed_block(0, TRAIN), seed_block(0, TRAIN) + 6))
    assert taught == set(range(seed_block(STRIDE, TRAIN), seed_block(STRIDE, TRAIN) + 6))
    parts = [whole.layout, *(whole.layout.round_part(2, seed, "tuned") for seed in (0, 1))]
    for part in parts:
        assert {row["seed"] for row in jsonl_rows(part.evaluation_episodes)} == set(
            range(seed_block(0, EVALUATE), seed_block(0, EVALUATE) + 4)
        )
        assert {(row["seed"], row["level"]) for row in jsonl_rows(part.evaluation_judged)} == {
            (seed, "GoToLocalS5N2") for seed in range(seed_block(0, SWITCH_JUDGE), seed_block(0, SWITCH_JUDGE) + 3)
        }


def test_scores_are_means_of_the_same_episodes_and_the_model_before_plays_none_again(whole):
    assert [each.round for each in whole.made.rounds] == [0, 1, 2] and whole.made.seeds == (0, 1)
    for number, each in enumerate(whole.made.rounds[1:], start=1):
        for arm in each.arms:
            wins = []
            for seed in (0, 1):
                part = whole.layout if number == 1 else whole.layout.round_part(2, seed, "tuned")
                rows = [r for r in jsonl_rows(part.evaluation_episodes) if r["model"] == f"{arm.arm}/{seed}"]
                wins += [row["success"] for row in rows if row["level"] == "GoToLocalS5N2"]
            assert arm.held_in.success == sum(wins) / 8 and arm.held_in.episodes == 8
        assert each.held_in == each.arms[0].held_in and each.held_out == each.arms[0].held_out
        assert each.against_first.mean == pytest.approx(each.held_in.success - whole.made.rounds[0].held_in.success)
    again = {
        (r["level"], r["seed"]): (r["success"], r["steps"])
        for r in jsonl_rows(whole.layout.evaluation_episodes)
        if r["model"] == "all/1"
    }
    part = whole.layout.round_part(2, 1, "tuned")
    untuned = [r for r in jsonl_rows(part.evaluation_episodes) if r["model"] == "none"]
    assert {(r["level"], r["seed"]): (r["success"], r["steps"]) for r in untuned} == again


def test_tokens_and_flops_add_up_over_the_rounds(whole):
    one, two = ({arm.arm: arm for arm in each.arms} for each in whole.made.rounds[1:])
    for name in ("all", "successes"):
        own = [read_json(whole.layout.round_part(2, seed, "tuned").checkpoint_record(name, seed)) for seed in (0, 1)]
        assert two[name].trained_tokens == one["all"].trained_tokens + sum(r["trained_tokens"] for r in own) / 2
        played = [read_json(whole.layout.round_part(2, k, "lesson").collecting_usage)["flops"] for k in (0, 1)]
        assert two[name].flops == pytest.approx(
            one["all"].flops + sum(played) / 2 + sum(record["flops"] for record in own) / 2
        )
    collected = read_json(whole.layout.collecting_usage)["flops"]
    trained = [read_json(whole.layout.checkpoint_record("all", seed))["flops"] for seed in (0, 1)]
    assert one["all"].flops == pytest.approx(collected + sum(trained) / 2), "to mark all steps or successes is free"
    scored = {arm["selector"]: arm for arm in read_json(whole.layout.atlas_scores)["arms"]}
    assert scored["all"]["compute"] == {
        "collect": collected,
        "select": 0,
        "select_steps": 0,
        "train": pytest.approx(sum(trained) / 2),
    }
    assert "compute" not in scored["none"]


def test_the_report_has_the_curve_and_what_each_arm_took(whole):
    page = whole.layout.report.read_text()
    assert (
        "Does the model learn from its own runs?" in page
        and "Rounds of the model's own runs".replace("'", "&#x27;") in page
    )
    assert "FLOPs to collect" in page and "expert iteration" in page
    assert any(told.startswith("Does the model learn from its own runs?") for told in answers(whole.run_dir))


def test_a_second_start_and_a_moved_run_do_nothing_again(whole, tmp_path):
    moved = tmp_path / "moved"
    whole.run_dir.rename(moved)
    try:
        RunLayout(moved).own_rounds.unlink()
        before = {path: path.stat().st_mtime_ns for path in moved.rglob("*.safetensors")}
        episodes = {path: path.read_bytes() for path in moved.rglob("*.jsonl") if path.parent.name == "evaluation"}
        pipeline.run(whole.recipe, moved, ("rounds",))
        assert {path: path.stat().st_mtime_ns for path in moved.rglob("*.safetensors")} == before
        assert {path: path.read_bytes() for path in episodes} == episodes
        assert load_own_rounds(RunLayout(moved).own_rounds) == whole.made
    finally:
        moved.rename(whole.run_dir)


@pytest.mark.slow
def test_killed_again_and_again_rounds_end_like_those_that_were_not(whole, tmp_path, monkeypatch):
    broken, left, kills, parts = tmp_path / "broken", killed_at_a_write(monkeypatch), 0, set()
    while not RunLayout(broken).own_rounds.is_file():
        left[0] = 23 + kills % 7  # writes until it is killed
        there = {path for path in broken.rglob("*") if path.is_dir() and (path / "recipe.resolved.json").is_file()}
        try:
            pipeline.run(whole.recipe, broken, ("collect", "select", "finetune", "evaluate", "rounds"))
        except Killed:
            kills += 1
            parts |= there
            assert kills < 60, "it gets nowhere"
    assert kills > 5 and len(parts) == 4
    assert load_own_rounds(RunLayout(broken).own_rounds) == whole.made
    unbroken = whole.run_dir
    for path in sorted(unbroken.rglob("*.safetensors")):
        assert (broken / path.relative_to(unbroken)).read_bytes() == path.read_bytes()
    for path in unbroken.rglob("*.jsonl"):
        if path.parent.name in ("trajectories", "annotations"):
            told = path.read_text().replace(str(unbroken), str(broken))
            assert (broken / path.relative_to(unbroken)).read_text() == told, path


@pytest.mark.slow
def test_from_the_start_all_lessons_are_read_again(folder, whole, tmp_path):
    recipe = own_rounds_recipe(folder, {"finetune": {"seeds": [0]}}, tune_from="start")
    pipeline.run(recipe, tmp_path / "run", ("collect", "select", "finetune", "evaluate", "rounds"))
    layout = RunLayout(tmp_path / "run")
    tuned, lesson = layout.round_part(2, 0, "tuned"), layout.round_part(2, 0, "lesson")
    both = [*read_trajectories(layout.expert), *read_trajectories(lesson.expert)]
    assert read_trajectories(tuned.expert) == both and len(both) == 12
    marks = read_annotations(tuned.annotations("successes"), both)
    assert [a.trajectory_id for a in marks] == [t.id for t in both if t.success]
    record = read_json(tuned.checkpoint_record("all", 0))
    assert record["base"]["name"] == str(folder) and record["trajectories"] == 12
    made = load_own_rounds(layout.own_rounds)
    assert made.rounds[2].arms[0].trained_tokens == record["trained_tokens"]
    untuned = [r["success"] for r in jsonl_rows(tuned.evaluation_episodes) if r["model"] == "none"]
    assert untuned == [r["success"] for r in jsonl_rows(layout.evaluation_episodes) if r["model"] == "none"]


@pytest.fixture
def one_round(whole, tmp_path):
    """A copy of that run, in which the rounds behind the first are not played."""
    run_dir = tmp_path / "run"
    shutil.copytree(whole.run_dir, run_dir)
    shutil.rmtree(run_dir / "rounds")
    RunLayout(run_dir).own_rounds.unlink()
    return run_dir


def test_rounds_end_where_a_round_gains_nothing(folder, one_round):
    made = play_own_rounds(own_rounds_recipe(folder, stop=True), one_round)
    assert [each.kept for each in made.rounds] == [True, False] and made.kept == 0
    assert "more success than in round 0 cannot be told of round 1 from 3 episodes" in made.why
    assert not (one_round / "rounds").exists() and load_own_rounds(RunLayout(one_round).own_rounds) == made


def test_rounds_end_where_nothing_can_be_learned(folder, one_round, monkeypatch):
    def marks_nothing(recipe, layout, stages):
        assert stages == ("collect", "select")
        raise InputError("the selector all marked no step", code="empty_selection")

    monkeypatch.setattr("atlas_ray.stages.own_round_parts.run_stages", marks_nothing)
    made = play_own_rounds(own_rounds_recipe(folder), one_round)
    assert [each.round for each in made.rounds] == [0, 1]
    assert "in round 2 of seed 0, 1 there was nothing to learn from: the selector all marked no step" in made.why

    def other_fault(recipe, layout, stages):
        raise InputError("there is no such file", code="bad_input")

    RunLayout(one_round).own_rounds.unlink()
    monkeypatch.setattr("atlas_ray.stages.own_round_parts.run_stages", other_fault)
    with pytest.raises(InputError, match="no such file"):
        play_own_rounds(own_rounds_recipe(folder), one_round)
    assert not RunLayout(one_round).own_rounds.exists()


def test_the_first_round_has_to_be_there(folder, tmp_path):
    with pytest.raises(InputError, match="needs the stage evaluate") as caught:
        pipeline.run(own_rounds_recipe(folder), tmp_path / "run", ("rounds",))
    assert caught.value.code == "missing_stage"


def test_what_names_the_model_of_the_start_names_the_present_one_in_every_part(folder, tmp_path):
    select = {"selectors": ["all", "successes", "value"], "start_after": ["value"]}
    chain = OwnChain(own_rounds_recipe(folder, {"select": select}), tmp_path, 1)
    lesson, tuned = chain.lesson_recipe(3), chain.tuned_recipe(3)
    present = str(RunLayout(tmp_path.resolve()).round_part(2, 1, "tuned").checkpoint("all", 1))
    for made in (lesson, tuned):
        assert {made.collect.agent.model, made.select.model, made.finetune.base} == {present}
        assert made.select.start_after == [] and made.finetune.seeds == [1] and made.rounds is None
    assert (lesson.seed, tuned.seed) == (2 * STRIDE, 0)
    other = OwnChain(own_rounds_recipe(folder, {"select": {**select, "model": "tiny-deepthink"}}), tmp_path, 1)
    assert other.lesson_recipe(3).select.model == "tiny-deepthink"


@pytest.mark.slow
def test_the_recipe_that_ships_plays_verified_pairs_in_rounds(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", "own-rounds", "--quick", "--out", str(out)]) == 0
    made = load_own_rounds(RunLayout(out).own_rounds)
    assert [[arm.arm for arm in each.arms] for each in made.rounds] == [[], *[["verified+pairs", "successes"]] * 2]
    assert all(arm.flops for each in made.rounds for arm in each.arms)
    assert made.arm == "verified+pairs" and load("own-rounds", {}, quick=True).rounds.count == 2
    assert f"round {made.kept} is the one to use" in capsys.readouterr().out
