"""The table of how well marks are predicted, and its costs."""

import json

import pytest

from atlas_ray.errors import InputError
from atlas_ray.report.distilled import distilled_part
from atlas_ray.rundir.files import RunLog, write_json
from atlas_ray.rundir.layout import RunLayout

QUALITY = {
    "trajectories": 36,
    "steps": 216,
    "auc": 0.9012,
    "brier": 0.084,
    "brier_of_share": 0.183,
    "calibration_error": 0.055,
    "share": 0.23,
    "teacher_share": 0.24,
    "precision": 0.8,
    "recall": None,
    "kappa": -0.051,
    "kappa_ci95": [-0.1, 0.02],
}


@pytest.fixture
def layout(tmp_path):
    """A run with a head: its teacher took 2,000 environment steps for 100 trajectories."""
    layout = RunLayout(tmp_path)
    teacher = {"given": "runs/<b>/value", "trajectories": 100, "cost": {"seconds": 30.0, "rollout_steps": 2000}}
    about = {"encoder": "tiny-quick", "teacher": teacher, "held_out": QUALITY, "left_out": {**QUALITY, "auc": 0.5}}
    write_json(layout.head, about)
    log = RunLog(tmp_path)
    log.metric("select", selector="distilled", of="teacher", read=100, read_seconds=1.0, flops=1e10)
    log.metric("select", selector="distilled", of="own", read=300, read_seconds=3.0, flops=3e10)
    log.metric("select", selector="distilled", seconds=9.0)
    log.metric("select", selector="value", read=7, read_seconds=99.0)
    return layout


def test_both_tests_and_both_costs_are_there(layout):
    html = "".join(distilled_part(layout))
    for said in ("0.90", "0.50", "0.084 (0.183)", "23.0%", "24.0%", "\N{MINUS SIGN}0.05", "environments left out"):
        assert said in html, said
    assert "runs/&lt;b&gt;/value" in html and "<b>" not in html
    assert "300 s in all, 20,000 environment steps" in html
    assert "10.0 s to read, 1.0e11 FLOPs" in html, "400 trajectories were read in 4 s"
    assert html == "".join(distilled_part(layout))


def test_one_environment_has_one_row_and_an_unmeasured_cost_none(layout):
    about = json.loads(layout.head.read_bytes())
    write_json(layout.head, {**about, "left_out": None, "teacher": {**about["teacher"], "cost": {}}})
    layout.metrics.unlink()
    html = "".join(distilled_part(layout))
    assert html.count("<tr") == 2 and "cost of" not in html


def test_a_run_without_a_head_has_no_such_part(tmp_path):
    assert distilled_part(RunLayout(tmp_path)) == []


def test_a_damaged_file_is_named(layout):
    about = json.loads(layout.head.read_bytes())
    write_json(layout.head, {**about, "held_out": {**QUALITY, "auc": 7}})
    with pytest.raises(InputError) as caught:
        distilled_part(layout)
    assert (caught.value.field, caught.value.path) == ("held_out.auc", layout.head)
