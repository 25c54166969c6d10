"""The report on a sweep: what it shows of made-up trials, and that nothing in them gets into the page as markup."""

from copy import deepcopy

import pytest
from report_runs import check

from atlas_ray.errors import InputError
from atlas_ray.report import build_report
from atlas_ray.report.sweep_plots import axis_of, label, ranked_figure, score_figure, switches_figure
from atlas_ray.rundir.files import write_json


def switch_trial(number, field, value, success, calls, **more):
    row = {"trial": number, "status": "done", "values": {field: value}, "seconds": 61.4, "success": success}
    row |= {"ci95": [success - 0.05, success + 0.05], "calls": calls, "share": calls / 10, "return": success}
    row |= {"objective": success, "compute": 1e6, "compute_unit": "FLOPs/episode", "budget_violations": 0}
    return {**row, "episodes": 50, "steps": 6000, "metric": success, **more}


def end(name, success, calls):
    return {"name": name, "success": success, "deepthink_calls_per_episode": calls}


def of_switch(*trials, front=(0, 1, 3), best=3, ends=()):
    fields = ["switch.costs", "switch.budgets"]
    about = {"name": "x", "kind": "switch", "metric": "success", "mode": "max", "scheduler": "asha", "fields": fields}
    return {**about, "best": best, "front": list(front), "trials": deepcopy(list(trials)), "ends": list(ends)}


TRIALS = (
    switch_trial(0, "switch.costs", 0.05, 0.5, 1.0),
    switch_trial(1, "switch.costs", 0.02, 0.6, 3.0),
    switch_trial(2, "switch.budgets", 4, 0.55, 3.5, status="stopped"),
    switch_trial(3, "switch.costs", 0.01, 0.7, 5.0),
    {"trial": 4, "status": "failed", "values": {"switch.budgets": 1}, "seconds": 0.0, "why": "boom </li><b>x</b>"},
)
ENDS = (end("always-quick", 0.4, 0.0), end("always-deepthink", 0.75, 12.0))


def of_atlas(*points, fields=("select.fraction", "finetune.arms")):
    trials = []
    for number, (values, success) in enumerate(points):
        row = {"trial": number, "status": "done", "values": dict(zip(fields, values, strict=True)), "seconds": 9.0}
        row |= {"success": success, "ci95": [success - 0.1, success + 0.1], "held_out": 0.2, "metric": success}
        trials.append({**row, "held_out_ci95": [0.1, 0.3], "share": 0.3, "trained_tokens": 12345, "episodes": 40})
    about = {"name": "x", "kind": "atlas", "metric": "held_in", "mode": "max", "scheduler": "none", "front": []}
    return {**about, "fields": list(fields), "best": 1, "trials": trials, "ends": []}


def page_of(tmp_path, made):
    write_json(tmp_path / "sweep.json", made)
    return build_report(tmp_path).read_text()


def test_a_page_of_a_sweep_of_the_switch(tmp_path):
    page = page_of(tmp_path, of_switch(*TRIALS, ends=ENDS))
    checker, text = check(page)
    assert checker.tags.count("svg") == 1
    assert "5 trials over switch.costs, switch.budgets: 3 done, 1 stopped early by asha, 1 failed." in text
    assert "The largest success has trial 3 (c = 0.01): 0.700." in text
    assert "best, front" in text and "Dashed: random mixing" in text
    assert "Trials that failed" in text and "this run tuned no model" not in text


def test_what_a_trial_says_is_no_markup(tmp_path):
    evil = "<script>alert(1)</script>$\\frac{1}{0}$"
    made = of_switch(*TRIALS, ends=ENDS)
    made["fields"].append("switch.encoder")
    for row in made["trials"]:
        row["values"]["switch.encoder"] = evil
    made["trials"][4]["why"] = evil
    page = page_of(tmp_path, made)
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    check(page)
    lines = [((0.1, {"selector": evil}), 0.4), ((0.3, {"selector": evil}), 0.5), ((0.3, "b$a$"), 0.5)]
    page = page_of(tmp_path, of_atlas(*lines))
    assert "<script" not in page
    check(page)


def test_the_front_is_connected_and_filled(tmp_path):
    (axes,) = switches_figure(of_switch(*TRIALS, ends=ENDS)).axes
    lines = [line.get_xydata().tolist() for line in axes.get_lines()]
    assert [[1.0, 0.5], [3.0, 0.6], [5.0, 0.7]] in lines, "the front, in the order of the calls"
    assert [[0.0, 0.4], [12.0, 0.75]] in lines, "random mixing"
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "#fdfdfc"]
    assert [line.get_xydata().tolist() for line in hollow] == [[[3.5, 0.55]]]
    named = {text.get_text() for text in axes.texts}
    assert named == {"c = 0.05", "c = 0.02", "c = 0.01", "always-quick", "always-deepthink"}


def test_a_score_over_m_has_a_line_a_selector():
    points = [((m, [{"selector": s, "anchor": 0.0}]), m / 2) for m in (0.5, 0.1) for s in ("random", "value")]
    made = of_atlas(*points)
    assert axis_of(made) == "select.fraction"
    (axes,) = score_figure(made, "select.fraction").axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines() if line.get_marker() != "None"}
    assert lines == {f"arms = {s}": [[0.1, 0.05], [0.5, 0.25]] for s in ("random", "value")}
    assert axes.get_xlabel() == "select.fraction (m)" and axes.get_xscale() == "linear"


def test_numbers_of_several_magnitudes_get_a_logarithmic_axis_and_names_no_axis():
    rates = of_atlas(
        *(((rate, 32), 0.5) for rate in (1e-4, 1e-2)), fields=("finetune.learning_rate", "finetune.epochs")
    )
    assert axis_of(rates) == "finetune.learning_rate"
    assert score_figure(rates, "finetune.learning_rate").axes[0].get_xscale() == "log"
    named = of_atlas((("random",), 0.4), (("value",), 0.5), fields=("finetune.arms",))
    assert axis_of(named) is None
    labels = [t.get_text() for t in ranked_figure(named).axes[0].get_yticklabels()]
    assert labels == ["arms = random", "arms = value"]


def test_a_page_of_a_sweep_of_atlas_has_both_scores(tmp_path):
    page = page_of(tmp_path, of_atlas(((0.1, "random"), 0.4), ((0.3, "random"), 0.5)))
    text = check(page)[1]
    assert "held-in success" in text and "held-out success" in text and "12,345" in text
    assert "The largest held-in success has trial 1 (m = 0.3, arms = random): 0.500." in text


def test_trials_that_all_failed_leave_a_table_without_a_picture(tmp_path):
    page = page_of(tmp_path, of_switch(TRIALS[4], front=(), best=None))
    assert check(page)[0].tags.count("svg") == 0
    assert "1 trials over" in page


def test_a_directory_without_a_sweep_or_results_is_refused(tmp_path):
    with pytest.raises(InputError, match="results.json"):
        build_report(tmp_path)


def test_values_are_shown_short():
    values = {
        "switch.costs": [0.0123456],
        "finetune.arms": [{"selector": "value", "anchor": 0.5}],
        "switch.encoder": "hashing",
    }
    assert label(values, list(values)) == "c = 0.01235, arms = value+anchor0.5, encoder = hashing"
    assert label(values, ["switch.budgets"]) == ""
