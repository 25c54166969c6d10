"""The stage on logs: what it writes and says, what it refuses, and that what it leaves plays and is served."""

import json
from itertools import pairwise

import numpy as np
import pytest
import switch_logs

from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe, load
from atlas_ray.recipe.of_run import policy_of
from atlas_ray.report.estimates import estimates_part
from atlas_ray.rundir import files
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.features import EXTRA
from atlas_ray.switching.policy import Situation, SwitchConfig
from atlas_ray.switching.stage import switch_stage

WIDTH = 32


@pytest.fixture
def logs(tmp_path):
    """A game's log, and a session whose end nobody reported."""
    rows = [switch_logs.trajectory(e) for e in switch_logs.play("chain-6", 300, 0)]
    rows.append({**rows[0], "id": "open", "score": None, "success": None})
    return switch_logs.write(tmp_path / "record" / "trajectories" / "log.jsonl", rows).parents[1]


def recipe(logs, **switch):
    terms = {"costs": [0.05], "budgets": [1], "features": WIDTH, "steps": 60}
    table = {"logs": str(logs), "max_steps": 6, **terms, **switch}
    return Recipe.model_validate({"name": "x", "workers": 0, "switch": table})


def save_switch(directory, seed, **terms):
    """What a training would leave: the stage trains no switch that is there."""
    rng, widths = np.random.default_rng(seed), [WIDTH + EXTRA, 8, 2]
    tensors = {}
    for i, (before, after) in enumerate(pairwise(widths)):
        tensors[f"layers.{2 * i}.weight"] = rng.normal(size=(after, before)).astype(np.float32)
        tensors[f"layers.{2 * i}.bias"] = np.zeros(after, np.float32)
    SwitchPolicy(SwitchConfig(WIDTH, (8,), **terms), tensors).save(directory)


@pytest.fixture
def trained(tmp_path):
    """A run directory with both switches."""
    layout = RunLayout(tmp_path / "run")
    save_switch(layout.switch_checkpoint("cost0.05", 0), 0, cost=0.05)
    save_switch(layout.switch_checkpoint("budget1", 0), 1, budget=1)
    return layout


def test_estimates_are_written_and_said_and_nothing_is_played(logs, trained):
    said = []
    assert switch_stage(recipe(logs), trained.root, said.append) == []
    rows = files.read_json(trained.switch_estimates)
    assert [row["policy"] for row in rows] == [
        *("as logged", "always-quick", "always-deepthink", "londi(c=0.05)", "londi-b(n=1)")
    ]
    assert {row["episodes"] for row in rows} == {90}, "three tenths of the episodes with an outcome"
    for row in rows[1:]:
        for kind in ("weighted", "doubly_robust"):
            assert set(row[kind]) == {"success", "return", "calls"}, "no money is known"
            assert all(t is None or t["low"] <= t["mean"] <= t["high"] for t in row[kind].values())
    assert rows[1]["weighted"]["calls"]["mean"] == 0
    steps = files.read_json(trained.switch_logs_note)["steps"]
    assert said[0] == f"  300 logged episodes, {steps:,} steps; left out: 1 without an outcome"
    assert sum("by the logs" in line for line in said) == len(rows)
    assert sum("warning: " in line for line in said) == sum(len(row.get("warnings", ())) for row in rows)
    assert files.read_json(trained.switch_policies) == []
    again = []
    switch_stage(recipe(logs), trained.root, again.append)
    assert again == []


def test_other_logs_than_at_first_are_refused(logs, trained):
    switch_stage(recipe(logs), trained.root, lambda line: None)
    trained.switch_estimates.unlink()
    path = logs / "trajectories" / "log.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(InputError, match="others than when the run began") as error:
        switch_stage(recipe(logs), trained.root, lambda line: None)
    assert error.value.field == "switch.logs"


def test_the_report_shows_them_with_their_warnings(logs, trained):
    switch_stage(recipe(logs), trained.root, lambda line: None)
    rows = files.read_json(trained.switch_estimates)
    rows[1]["warnings"] = ["<b>careful"]
    files.write_json(trained.switch_estimates, rows)
    page = "".join(map(str, estimates_part(trained)))
    assert page.count("<tr>") == len(rows) + 1
    assert "always-quick: &lt;b&gt;careful" in page
    assert f"{rows[0]['ess']:.1f} of 90" in page
    assert estimates_part(RunLayout(trained.root / "nowhere")) == []


def test_a_command_writes_the_report_and_refuses_logs_without_probabilities(logs, trained, tmp_path, capsys):
    toml = tmp_path / "x.toml"
    table = f'logs = "{logs}"\nmax_steps = 6\nfeatures = {WIDTH}\ncosts = [0.05]\nbudgets = [1]'
    toml.write_text(f'name = "x"\nworkers = 0\n[switch]\n{table}\n')
    files.write_json(trained.recipe, load(toml).model_dump(mode="json"))
    assert main(["switch", str(toml), "--out", str(trained.root)]) == 0
    assert main(["report", str(trained.root)]) == 0
    assert "What the logs say of the switches" in trained.report.read_text()
    capsys.readouterr()
    path = logs / "trajectories" / "log.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[3]["steps"][0]["probability"]
    switch_logs.write(path, rows)
    other = tmp_path / "other"
    assert main(["switch", str(toml), "--out", str(other)]) == 2
    told = capsys.readouterr().err
    assert "log.jsonl" in told and "steps.0.probability" in told and "4" in told and "Traceback" not in told
    assert not RunLayout(other).switch_estimates.exists() and not RunLayout(other).checkpoints.exists()


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"levels": []}, "levels"),
        ({"logs": "x"}, "max_steps"),
        ({"logs": "x", "max_steps": 5, "algorithm": "sac"}, "algorithm"),
        ({"logs": "x", "max_steps": 5, "averages": [1.0]}, "averages"),
        ({"logs": "x", "max_steps": 5, "signals": ["visits", "margin"]}, "signals"),
        ({"logs": "x", "max_steps": 5, "signals": ["catch-up"]}, "signals"),
        ({"logs": "x", "max_steps": 5, "encoder": "hidden"}, "encoder"),
        ({"logs": "x", "max_steps": 5, "costs": ["measured"]}, "costs"),
        ({"logs": "x", "max_steps": 5, "budgets": ["50%"]}, "budgets"),
        ({"logs": "x", "max_steps": 5, "budgets": [{"tokens": 2000}]}, "budgets"),
        ({"logs": "x", "max_steps": 5, "boundary_episodes": 5}, "boundary_episodes"),
        ({"logs": "x", "max_steps": 5, "playoff_episodes": 5}, "playoff_episodes"),
    ],
)
def test_what_logs_cannot_teach_is_refused_by_its_field(table, field):
    with pytest.raises(ValueError, match=f"{field}: "):
        Recipe.model_validate({"name": "x", "switch": {"costs": [0.1], **table}})


def test_switches_are_trained_from_logs_and_are_policies_of_the_run(ray_session, logs, tmp_path):
    layout, said = RunLayout(tmp_path / "run"), []
    made = recipe(logs, seeds=[0, 1], costs=[], signals=["since-call"])
    files.write_json(layout.recipe, made.model_dump(mode="json"))
    switch_stage(made, layout.root, said.append)
    assert sum("about" in line for line in said) == 2
    weights = []
    for seed in (0, 1):
        policy = policy_of(str(layout.root / f"switch-budget1-seed{seed}"), "gateway.switch")
        switch = SwitchPolicy.load(policy.directory)
        assert (switch.config.budget, switch.config.signals) == (1, ("since-call",))
        seen = np.append(switch.encoder(["play\nstate 2"])[0], np.float32(1))
        assert not switch.decide([Situation("play\nstate 2", 0, 0.5, "e", 1, encoded=seen)])[0], "none is left"
        weights.append(switch.tensors["layers.0.weight"])
    assert not np.array_equal(*weights)
    rows = files.read_json(layout.switch_estimates)
    assert [(row["policy"], row.get("training")) for row in rows[3:]] == [("londi-b(n=1)", 0), ("londi-b(n=1)", 1)]
