"""Classifiers from a gateway's record: what they are fitted to, what is written, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe, load
from atlas_ray.recipe.of_run import only_switch, policy_of, switch_policies
from atlas_ray.report.summary import summary
from atlas_ray.rundir import files
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.logged_rules import fit_to_logs
from atlas_ray.switching.logistic import chance, fit, read
from atlas_ray.switching.logs import read_logs
from atlas_ray.switching.past import Past
from atlas_ray.switching.policy import Situation
from atlas_ray.switching.stage import switch_stage

ROOMS = {"a hall": True, "a maze": False, "a door": True}
"""Whether QUICK would do there what DEEPTHINK does."""


def session(record, number, rooms, deepthink, success=True, first=0, shadow=True):
    """A session through rooms: DEEPTHINK acts at the steps ``deepthink`` with a chance of 0.5."""
    name, steps, taken = f"{number:032x}", [], []
    for n, room in enumerate(rooms):
        called = n in deepthink
        who = "deepthink" if called else "quick"
        step = {"observation": room, "action": f"Thought: {n}\nAction: on {n}", "actor": who, "probability": 0.5}
        steps.append(step)
        beside = {"same": ROOMS[room], "action": "on", "prompt_tokens": 1, "completion_tokens": 1, "usd": "0.25"}
        about = {"step": first + n, "model": who, "begun": 1.0, "seconds": 0.1, "usd": "1"}
        about |= {"prompt_tokens": 9, "completion_tokens": 1}
        taken.append(about | ({"shadow": beside} if called and shadow else {}))
    line = {"id": name, "env": "gateway", "task": "random", "seed": 0, "instruction": "out", "steps": steps}
    line |= {"score": None, "success": success, "source": "gateway"}
    prices = [{"model": m, "price_prompt": 1.0, "price_completion": 1.0} for m in ("quick", "deepthink")]
    beside = 0.25 * len(deepthink) * shadow
    spent = {"calls": len(deepthink), "tokens": 9, "usd": f"{len(rooms) + beside}"}
    usage = {"id": name, "session": None, "models": prices, "spent": spent, "steps": taken}
    files.write_text(record / "trajectories" / f"{name}.jsonl", json.dumps(line) + "\n")
    files.write_json(record / "usage" / f"{name}.json", usage)


@pytest.fixture
def record(tmp_path):
    """A hundred sessions by chance, of which those that never called in the maze failed."""
    where, rng = tmp_path / "record", np.random.default_rng(0)
    for n in range(100):
        rooms = [list(ROOMS)[i] for i in rng.integers(0, 3, 6)]
        deepthink = {n for n in range(6) if rng.random() < 0.5}
        session(where, n, rooms, deepthink, any(rooms[n] == "a maze" for n in deepthink))
    return where


def recipe(record, **switch):
    terms = {"baselines": ["classifier"], "rates": [0.3], "features": 32, **switch}
    return Recipe.model_validate({"name": "x", "workers": 0, "switch": {"logs": str(record), "max_steps": 6, **terms}})


def test_it_is_fitted_to_the_steps_of_successes_at_which_both_were_asked(record):
    said, logs = [], read_logs([record], 2, style="react")
    calibration = fit_to_logs(logs.episodes, said.append)
    features, labels, seen = [], [], []
    for episode in sorted((record / "trajectories").iterdir()):
        row = json.loads(episode.read_text())
        rooms = [step["observation"] for step in row["steps"]]
        for n, step in enumerate(row["steps"]):
            past = Past(tuple(f"out\n{room}" for room in rooms[: n + 1]), tuple(f"on {i}" for i in range(n)), ())
            seen.append(read(f"out\n{rooms[n]}", past))
            if row["success"] and step["actor"] == "deepthink":
                features.append(seen[-1])
                labels.append(ROOMS[rooms[n]])
    doubt = calibration.doubts["classifier"]
    assert doubt.weights == fit(features, labels)
    assert doubt.chances == np.array([chance(doubt.weights, x) for x in seen], np.float32).tolist()
    wins = sum(e.success for e in logs.episodes)
    same = sum(labels) / len(labels)
    assert said == [
        f"  classifier: fitted to {len(labels):,} steps of {wins} of 100 logged episodes; QUICK says the same at "
        f"{same:.0%} of them"
    ]


def test_the_stage_keeps_it_as_a_switch_that_calls_where_quick_errs(record, tmp_path):
    layout, said, made = RunLayout(tmp_path / "run"), [], recipe(record)
    files.write_json(layout.recipe, made.model_dump(mode="json"))
    assert switch_stage(made, layout.root, said.append) == []
    assert "  classifier(p=0.30) is kept as checkpoints/switch-classifier0.30" in said
    assert only_switch(switch_policies(made, layout.root).values()) == "switch-classifier0.30"
    switch = SwitchPolicy.load(policy_of(str(layout.root / "switch-classifier0.30"), "gateway.switch").directory)
    calls = {}
    for room in ROOMS:
        past = Past((room,), (), ())
        calls[room] = switch.decide([Situation(f"out\n{room}", None, 0.0, "e", 0, past=past)])[0]
    assert calls == {"a hall": 0, "a maze": 1, "a door": 0}
    rows = files.read_json(layout.switch_estimates)
    assert [row["policy"] for row in rows] == ["as logged", "always-quick", "always-deepthink", "classifier(p=0.30)"]
    rule = rows[-1]["weighted"]
    assert rule["success"]["mean"] > rows[0]["plain"]["success"]["mean"], "it calls in the maze, and wins"
    assert rule["success"]["mean"] > 0.85 and 1 < rule["calls"]["mean"] < 3
    assert rows[0]["plain"]["money"]["mean"] == 6, "what QUICK was asked besides is no step's"
    run = SimpleNamespace(recipe=made, results=None, layout=layout)
    assert summary(run) == "1 switch fitted from logged episodes of tiny-quick and tiny-deepthink."
    again = []
    before = layout.switch_estimates.read_bytes()
    switch_stage(made, layout.root, again.append)
    assert layout.switch_estimates.read_bytes() == before and not any("kept as" in line for line in again)


def test_sessions_without_their_past_teach_nothing_but_are_estimated_for_others(record, tmp_path):
    whole = fit_to_logs(read_logs([record], 2).episodes, lambda line: None)
    for n in range(100, 120):  # in which QUICK always errs
        session(record, n, ["a maze"] * 6, set(range(6)), first=3)
    read_again = read_logs([record], 2).episodes
    assert len(read_again) == 120
    assert fit_to_logs([e for e in read_again if e.is_whole], lambda line: None) == whole
    layout = RunLayout(tmp_path / "run")
    switch_stage(recipe(record), layout.root, lambda line: None)
    rows = files.read_json(layout.switch_estimates)
    assert rows[0]["episodes"] == 36 > rows[-1]["episodes"]


def test_a_classifier_stands_beside_learned_switches_and_is_left_out_where_logs_do_not_teach_it(
    record, tmp_path, monkeypatch
):
    from atlas_ray.switching import logged_stage

    monkeypatch.setattr(logged_stage, "_train", lambda *a: None)
    monkeypatch.setattr(logged_stage, "_decider", lambda policy: lambda features: np.zeros(len(features), int))
    monkeypatch.setattr(logged_stage.SwitchPolicy, "load", lambda directory: None)
    names = []
    for shadow in (True, False):
        for n in range(100):
            session(record, n, ["a hall", "a maze"], {n % 2}, shadow=shadow)
        layout = RunLayout(tmp_path / str(shadow))
        switch_stage(recipe(record, costs=[0.05]), layout.root, lambda line: None)
        names.append([row["policy"] for row in files.read_json(layout.switch_estimates)][3:])
    assert names == [["londi(c=0.05)", "classifier(p=0.30)"], ["londi(c=0.05)"]]


def test_logs_that_say_nothing_of_quick_are_refused(record, tmp_path, capsys):
    toml = tmp_path / "x.toml"
    table = f'logs = "{record}"\nmax_steps = 6\nbaselines = ["classifier"]\nrates = [0.3]'
    toml.write_text(f'name = "x"\nworkers = 0\n[switch]\n{table}\n')
    assert load(toml).switch.learns is False
    for n in range(100):
        session(record, n, ["a hall"], {0}, shadow=False)
    out = tmp_path / "out"
    assert main(["switch", str(toml), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "switch.logs" in told and "`shadow`" in told and "Traceback" not in told
    assert not RunLayout(out).checkpoints.exists() and not RunLayout(out).switch_estimates.exists()


def test_other_labels_than_at_first_are_refused(record, tmp_path):
    layout = RunLayout(tmp_path / "run")
    switch_stage(recipe(record), layout.root, lambda line: None)
    path = sorted((record / "usage").iterdir())[0]
    row = files.read_json(path)
    step = next(step for step in row["steps"] if "shadow" in step)
    step["shadow"]["same"] = not step["shadow"]["same"]
    files.write_json(path, row)
    with pytest.raises(InputError, match="others than when the run began"):
        switch_stage(recipe(record), layout.root, lambda line: None)


@pytest.mark.parametrize("table", [{"baselines": ["verifier"]}, {"rates": []}, {"baselines": ["random"]}])
def test_without_learning_logs_fit_a_classifier_at_rates(table):
    with pytest.raises(ValueError, match="costs: name at least one .*rates for the baseline classifier"):
        recipe("x", **table)
