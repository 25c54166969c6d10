"""The run directory: one module names its files, and storage and stages agree on what says that something is done."""

import ast
from pathlib import Path

import pytest

from atlas_ray.rundir import layout
from atlas_ray.rundir.layout import (
    CHECKPOINT_RECORD,
    COMPLETION_MARKERS,
    RunLayout,
    is_commit_marker,
    is_of_this_machine,
    is_replaced_whole,
)


def test_paths_are_below_the_root_or_relative():
    assert RunLayout("runs/a").annotations("all") == Path("runs/a/annotations/all.jsonl")
    assert str(RunLayout().training_scratch) == "checkpoints/.training"
    assert RunLayout("a").trial(3).trial_result == Path("a/trials/0003/trial.json")
    assert RunLayout("a").checkpoint_record("all", 1) == RunLayout("a").checkpoint("all", 1) / "run.json"


@pytest.mark.parametrize("name", [marker.format("value") for marker in COMPLETION_MARKERS.values()])
def test_every_marker_commits_in_a_run_and_in_a_sweep(name):
    assert all(is_commit_marker(f"{before}{name}") for before in ("", "trials/0001/", "rounds/1/seed0/a/"))


def test_every_file_that_a_stage_looks_for_is_a_marker():
    made = RunLayout()
    looked_for = [
        *(made.expert, made.annotations("all"), made.start_after, made.checkpoint_record("all", 0)),
        *(made.switch_checkpoint("cost0.1", 0) / "config.json", made.atlas_scores, made.switch_policies),
        *(made.report, made.recipe, made.rounds, made.trial_result, made.tracking_state),
    ]
    assert [str(path) for path in looked_for if not is_commit_marker(str(path))] == []


@pytest.mark.parametrize(
    "name",
    [
        *("metrics.jsonl", "results.json", "trajectories/other.jsonl", "annotations/scores/value.jsonl"),
        *("checkpoints/all-s0/model.safetensors", "checkpoints/switch-cost0.1-seed0/last/config.json"),
        *("evaluation/episodes.jsonl", "switch/episodes.jsonl", "checkpoints/.a.state/000003/state.json"),
    ],
)
def test_other_files_do_not_commit(name):
    assert not is_commit_marker(name)


def test_what_is_replaced_as_a_whole_and_what_stays_on_this_machine():
    states = RunLayout().training_states("all", 0)
    assert is_replaced_whole(f"{states}/000003")
    assert is_replaced_whole(f"trials/0001/{states}/000003")
    assert is_replaced_whole(
        f"{RunLayout().round_part(1, 0, 'switch').root}/checkpoints/switch-cost0.1-seed0.train/state"
    )
    assert is_replaced_whole(f"{RunLayout().deepthink_episodes(0).root}/{states}/000003")
    assert not is_replaced_whole("rounds/1/seed0/switch/checkpoints/switch-cost0.1-seed0")
    assert is_replaced_whole(str(RunLayout().trial(1).trial_state))
    assert not is_replaced_whole(str(RunLayout().checkpoint("all", 0)))
    made = RunLayout()
    stays = [p.name for p in (made.sync_state, made.here, made.training_scratch)]
    assert all(is_of_this_machine(name) for name in (*stays, ".expert.jsonl.12ab.tmp"))
    assert not is_of_this_machine(made.expert_part.name)


def test_selectors_are_those_whose_annotations_are_there(tmp_path):
    made = RunLayout(tmp_path)
    assert made.selectors == []
    for name in ("value", "all", ".all.tmp"):
        made.annotations(name).parent.mkdir(exist_ok=True)
        made.annotations(name).touch()
    assert made.selectors == ["all", "value"]


def test_no_other_module_spells_these_names():
    made = RunLayout()
    paths = [value for name, value in vars(RunLayout).items() if isinstance(value, property)]
    found = [path for path in (each.fget(made) for each in paths) if isinstance(path, Path) and path.suffix]
    # (a checkpoint of a switch has a file of this name, too, and a model that was fetched)
    names = {CHECKPOINT_RECORD, *(path.name for path in found)} - {made.trial_history.name, made.source.name}
    assert len(names) > 15
    root = Path(layout.__file__).parents[1]
    spelt = [
        f"{path.relative_to(root)}:{node.lineno} {node.value}"
        for path in root.rglob("*.py")
        if path != Path(layout.__file__) and "envs" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]
    assert spelt == []
