"""The stage where a switch is fitted, and none is learned."""

from types import SimpleNamespace

import pytest

from atlas_ray.report.summary import summary
from atlas_ray.rundir import files
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.stage import switch_stage


def test_a_switch_is_fitted_where_none_is_learned(make, tmp_path):
    """Nothing is trained, and what is left is a run like any other."""
    recipe = make(costs=[], baselines=["random", "classifier"], rates=[0.3, 0.6], fit_episodes=6)
    said = []
    rows = switch_stage(recipe, tmp_path, said.append)
    kinds = ("random", "classifier")
    assert [row["name"] for row in rows[2:6]] == [f"{kind}(p={rate})" for kind in kinds for rate in ("0.30", "0.60")]
    kept = [None, None, "switch-classifier0.30", "switch-classifier0.60"]
    assert [row.get("checkpoint") for row in rows[2:6]] == kept
    shares = {f"{row['deepthink_share']:.2f}" for row in rows[4:6]} - {"0.00", "0.30", "0.60"}
    assert {row["name"] for row in rows[6:]} == {f"random(p={n})" for n in shares}, "at the rates that they have"
    assert shares and all(row["episodes"] == 16 for row in rows)
    assert not any("training" in line and "switches" in line for line in said)
    assert sum("classifier: fitted to " in line for line in said) == 1
    replay = files.read_json(tmp_path / "switch" / "replay.json")
    assert replay["policy"] == "classifier(p=0.60)" and len(replay["steps"][0]["values"]) == 2
    again = []
    assert switch_stage(recipe, tmp_path, again.append)[2]["name"] == "random(p=0.30)"
    assert not any("is kept as" in line for line in again)


def test_rules_call_in_runs(make, tmp_path):
    more = {"run_length": 2, "fit_episodes": 8}
    recipe = make(costs=[], baselines=["random", "classifier", "verifier"], rates=[0.5], **more)
    rows = {row["name"]: row for row in switch_stage(recipe, tmp_path, lambda line: None)}
    for kind in ("random", "classifier", "verifier"):
        row = rows[f"{kind}(p=0.50)"]
        assert row["run_length"] == 2 and row["deepthink_share"] > 0, kind
        for episode in files.jsonl_rows(tmp_path / "switch" / "episodes.jsonl"):
            if episode["policy"] == row["name"]:
                steps, called = episode["steps"], episode["called_at"]
                begun = [t for n, t in enumerate(called) if n == 0 or called[n - 1] != t - 1]
                assert all(t + 1 in called or t + 1 == steps for t in begun), "no call stands alone"
    for kind in ("classifier", "verifier"):
        assert SwitchPolicy.load(tmp_path / "checkpoints" / f"switch-{kind}0.50").config.run_length == 2


def test_a_report_says_how_many_were_fitted(make, tmp_path):
    for baselines, told in ((["classifier", "verifier"], "4 switches"), (["random", "verifier"], "2 switches")):
        recipe = make(costs=[], baselines=baselines, rates=[0.3, 0.6])
        run = SimpleNamespace(recipe=recipe, results=None, layout=RunLayout(tmp_path))
        assert summary(run).startswith(f"{told} fitted between ")


@pytest.mark.parametrize(
    "more",
    [{}, {"rates": [0.3]}, {"baselines": ["classifier"]}, {"rates": [0.3], "baselines": ["verifier"], "logs": "x"}],
)
def test_what_neither_learns_nor_fits_a_switch_is_refused(make, more):
    with pytest.raises(ValueError, match="costs: name at least one cost, budget or average"):
        make(costs=[], **more)
