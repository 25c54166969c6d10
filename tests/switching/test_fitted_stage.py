"""The stage where a switch is fitted, and none is learned."""

import pytest

from atlas_ray.rundir import files
from atlas_ray.switching.stage import switch_stage


def test_a_switch_is_fitted_where_none_is_learned(make, tmp_path):
    """Nothing is trained, and what is left is a run like any other."""
    recipe = make(costs=[], baselines=["random", "classifier"], rates=[0.3, 0.6], fit_episodes=6)
    said = []
    rows = switch_stage(recipe, tmp_path, said.append)
    kinds = ("random", "classifier")
    assert [row["name"] for row in rows[2:]] == [f"{kind}(p={rate})" for kind in kinds for rate in ("0.30", "0.60")]
    assert [row.get("checkpoint") for row in rows[2:]] == [None, None, "switch-classifier0.30", "switch-classifier0.60"]
    assert not any("training" in line and "switches" in line for line in said)
    replay = files.read_json(tmp_path / "switch" / "replay.json")
    assert replay["policy"] == "classifier(p=0.60)" and len(replay["steps"][0]["values"]) == 2
    again = []
    assert switch_stage(recipe, tmp_path, again.append)[2]["name"] == "random(p=0.30)"
    assert not any("is kept as" in line for line in again)


@pytest.mark.parametrize(
    "more",
    [{}, {"rates": [0.3]}, {"baselines": ["classifier"]}, {"rates": [0.3], "baselines": ["classifier"], "logs": "x"}],
)
def test_what_neither_learns_nor_fits_a_switch_is_refused(make, more):
    with pytest.raises(ValueError, match="costs: name at least one cost, budget or average"):
        make(costs=[], **more)
