"""The schema of results.json, and the coverage of the intervals."""

import copy
import json

import numpy as np
import pytest

from atlas_ray.data.results import Cell, Policy, Results, combine, interval, load_results, wilson, write_results
from atlas_ray.errors import InputError

ROWS = {
    "atlas": {
        "arms": [
            {
                "selector": "none",
                "fraction": 0.0,
                "seeds": [],
                "steps_share": 0.0,
                "trained_tokens": 0,
                "context_tokens": 0,
                "train_seconds": 0.0,
                "held_in": {"success": 0.4, "ci95": [0.3, 0.5], "episodes": 100},
                "held_out": None,
            },
            {
                "selector": "value",
                "fraction": 0.3,
                "anchor": 0.5,
                "seeds": [0, 1],
                "steps_share": 0.29,
                "trained_tokens": 1000,
                "context_tokens": 9000,
                "train_seconds": 12.5,
                "held_in": {
                    "success": 0.6,
                    "ci95": [0.5, 0.7],
                    "episodes": 200,
                    "levels": {"GoToLocalS6N2": {"success": 0.6, "ci95": [0.5, 0.7], "episodes": 200}},
                },
                "held_out": {"success": 0.2, "ci95": [0.1, 0.3], "episodes": 200},
            },
        ]
    },
    "londi": {
        "policies": [
            {
                "name": "londi-b",
                "budget": 3,
                "success": 0.8,
                "return": 0.7,
                "ci95": [0.75, 0.85],
                "deepthink_share": 0.2,
                "deepthink_calls_per_episode": 2.5,
                "compute": 1.5e9,
                "compute_unit": "FLOPs",
                "budget_violations": 0,
                "episodes": 300,
            },
            {
                "name": "londi(c=measured)",
                "cost": "measured",
                "average": 1.5,
                "budget_fraction": 0.5,
                "of_use": 0.5,
                "success": 0.8,
                "return": 0.7,
                "ci95": [0.75, 0.85],
                "deepthink_share": 0.2,
                "deepthink_calls_per_episode": 2.5,
                "calls_by_model": [7.5, 1.0, 1.5],
                "called_at": [0.1] * 10,
                "compute": 1.5e9,
                "compute_unit": "FLOPs",
                "seconds_per_episode": 0.25,
                "budget_violations": 0,
                "episodes": 600,
                "seeds": [0, 1],
                "success_by_seed": [0.7, 0.9],
            },
        ]
    },
}

POLICY = ROWS["londi"]["policies"][0]
UNITS = [POLICY, {**POLICY, "name": "other", "compute_unit": "seconds"}]


def broken(*keys, value=None, drop=False):
    """A copy of ROWS in which the entry at ``keys`` has another value, or is gone."""
    rows = copy.deepcopy(ROWS)
    place = rows
    for key in keys[:-1]:
        place = place[key]
    if drop:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return rows


def test_an_arm_of_pairs_says_so_in_its_name_and_another_stays_as_it_was(tmp_path):
    path, given = tmp_path / "results.json", copy.deepcopy(ROWS)
    given["atlas"]["arms"].append({**given["atlas"]["arms"][1], "pairs": "sigmoid_norm"})
    del given["atlas"]["arms"][2]["anchor"]
    path.write_text(json.dumps(given))
    write_results(path, load_results(path))
    assert json.loads(path.read_text()) == given
    assert [a.name for a in load_results(path).atlas.arms] == ["none", "value+anchor0.5", "value+pairs"]
    given["atlas"]["arms"][2]["pairs"] = "hinge"
    path.write_text(json.dumps(given))
    with pytest.raises(InputError, match="pairs"):
        load_results(path)


def test_the_file_comes_back_byte_for_byte_and_keeps_the_contract_s_keys(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(ROWS))
    results = load_results(path)
    assert results.londi.policies[0].mean_return == 0.7
    assert [a.name for a in results.atlas.arms] == ["none", "value+anchor0.5"]
    write_results(path, results)
    assert json.loads(path.read_text()) == ROWS
    write_results(tmp_path / "again.json", load_results(path))
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.json", "results.json"]


def test_an_older_name_is_read_with_a_warning_and_written_for_one_release():
    row = {k: v for k, v in ROWS["londi"]["policies"][1].items() if k not in ("budget_fraction", "of_use")}
    with pytest.warns(DeprecationWarning, match="budget_fraction"):
        old = Policy.model_validate({**row, "of_use": 0.25})
    new = Policy.model_validate({**row, "budget_fraction": 0.25})
    assert old == new
    assert new.model_dump(by_alias=True)["of_use"] == 0.25


@pytest.mark.parametrize("part", ["atlas", "londi"])
def test_one_part_is_enough(tmp_path, part):
    path = tmp_path / "results.json"
    write_results(path, Results.model_validate({part: ROWS[part]}))
    assert list(json.loads(path.read_text())) == [part]
    load_results(path)


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        (broken("atlas", "arms", 1, "held_in", "success", value=1.2), "atlas.arms.1.held_in.success"),
        (broken("atlas", "arms", 1, "held_in", "success", value="0.6"), "atlas.arms.1.held_in.success"),
        (broken("atlas", "arms", 1, "held_in", "ci95", value=[0.1, 0.2]), "atlas.arms.1.held_in"),
        (broken("atlas", "arms", 1, "held_in", "ci95", value=[0.1]), "atlas.arms.1.held_in.ci95.1"),
        (broken("atlas", "arms", 1, "held_out", drop=True), "atlas.arms.1.held_out"),
        (broken("atlas", "arms", 1, "selector", value="no name"), "atlas.arms.1.selector"),
        (broken("atlas", "arms", 1, "seeds", value=[]), "atlas.arms.1"),
        (broken("atlas", "arms", 0, "steps_share", value=0.1), "atlas.arms.0"),
        (broken("atlas", "arms", 0, "colour", value="red"), "atlas.arms.0.colour"),
        (broken("atlas", "arms", value=[]), "atlas.arms"),
        (broken("atlas", "arms", value=[ROWS["atlas"]["arms"][0]] * 2), "atlas"),
        (broken("londi", "policies", 0, "return", drop=True), "londi.policies.0.return"),
        (broken("londi", "policies", 0, "compute_unit", drop=True), "londi.policies.0.compute_unit"),
        (broken("londi", "policies", 0, "budget", value=-1), "londi.policies.0.budget"),
        (broken("londi", "policies", 0, "cost", value=-1), "londi.policies.0.cost"),
        (broken("londi", "policies", 0, "cost", value="free"), "londi.policies.0.cost"),
        (broken("londi", "policies", 1, "budget_fraction", value=1.5), "londi.policies.1.budget_fraction"),
        (broken("londi", "policies", 1, "called_at", value=[0.5, 0.5]), "londi.policies.1.called_at"),
        (broken("londi", "policies", 1, "calls_by_model", value=[1.0, 2.0]), "londi.policies.1.calls_by_model"),
        (broken("londi", "policies", 1, "success_by_seed", value=[0.5]), "londi.policies.1"),
        (broken("londi", "policies", 0, "mean_return", value=0.1), "londi.policies.0.mean_return"),
        (broken("londi", "policies", 0, "episodes", value=1.5), "londi.policies.0.episodes"),
        (broken("londi", "policies", value=[ROWS["londi"]["policies"][0]] * 2), "londi"),
        (broken("londi", "policies", value=UNITS), "londi"),
        ({}, None),
        ([], None),
    ],
)
def test_errors_name_file_and_field(tmp_path, rows, field):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(InputError) as caught:
        load_results(path)
    assert caught.value.field == field
    assert str(caught.value).startswith(str(path))


def test_what_is_not_json_or_not_there_is_an_input_error(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(InputError, match="no such file"):
        load_results(path)
    for text in ("", '{"atlas": ', '{"londi": NaN}', "\udce4"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(InputError):
            load_results(path)


def test_wilson_equals_the_textbook():
    low, high = wilson(0.1, 10, 1.959964)
    assert (round(low, 4), round(high, 4)) == (0.0179, 0.4042)
    assert interval([[True] + [False] * 9]) == pytest.approx((0.1, low, high), abs=1e-6)


def test_intervals_stay_inside_and_hold_the_mean():
    rng = np.random.default_rng(0)
    for _ in range(400):
        seeds, episodes = rng.integers(1, 5), rng.integers(1, 12)
        rows = (rng.random((seeds, episodes)) < rng.choice([0, 0.03, 0.5, 0.97, 1])).tolist()
        mean, low, high = interval(rows)
        assert 0 <= low <= mean <= high <= 1
        assert mean == pytest.approx(np.mean(rows))
        assert low < high


def test_seeds_that_disagree_widen_the_interval_and_repeated_episodes_do_not_narrow_it():
    agree = [[True, False] * 50, [False, True] * 50, [True, True, False, False] * 25]
    disagree = [[True] * 90 + [False] * 10, [True] * 50 + [False] * 50, [True] * 10 + [False] * 90]
    width = {name: interval(rows)[2] - interval(rows)[1] for name, rows in (("a", agree), ("d", disagree))}
    assert width["d"] > 3 * width["a"]
    row = [True, False, False] * 20
    # three models that answer every episode alike tell no more than one of them
    assert interval([row] * 3)[1:] == pytest.approx(interval([row])[1:], abs=0.005)


@pytest.mark.parametrize("rows", [[], [[]], [[True], [True, False]]])
def test_rows_must_be_whole(rows):
    with pytest.raises(ValueError, match="successes_per_seed"):
        interval(rows)


@pytest.mark.parametrize(
    ("seeds", "rate", "seed_spread", "episode_spread", "least"),
    [(1, 0.5, 0.0, 0.0, 0.92), (3, 0.5, 0.0, 1.5, 0.93), (3, 0.9, 0.2, 0.0, 0.91), (3, 0.5, 0.2, 1.5, 0.91)],
)
def test_coverage(seeds, rate, seed_spread, episode_spread, least):
    """Spreads are standard deviations in log-odds; the truth is the mean over all seeds and episodes."""
    rng = np.random.default_rng(1)
    centre = np.log(rate / (1 - rate))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    truth = sigmoid(centre + rng.normal(size=200_000) * np.hypot(seed_spread, episode_spread)).mean()
    held, runs = 0, 400
    for _ in range(runs):
        odds = centre + rng.normal(size=(seeds, 1)) * seed_spread + rng.normal(size=(1, 80)) * episode_spread
        _, low, high = interval((rng.random((seeds, 80)) < sigmoid(odds)).tolist())
        held += low <= truth <= high
    assert held / runs >= least


def test_combine_covers_differences():
    rng = np.random.default_rng(2)
    held, runs = 0, 500
    for _ in range(runs):
        cells = []
        for rate in (0.7, 0.9):
            mean, low, high = interval([(rng.random(100) < rate).tolist()])
            cells.append(Cell(success=mean, ci95=(low, high), episodes=100))
        _, low, high = combine([(1, cells[0]), (-1, cells[1])])
        held += low <= -0.2 <= high
    assert 0.92 <= held / runs <= 0.98
    a = cells[0]
    mean, low, high = combine([(1, a), (-0.5, a), (-0.5, a)])
    assert mean == pytest.approx(0) and low < 0 < high


def test_replies_of_selectors_are_enough_and_known_by_stage_and_name(tmp_path):
    path = tmp_path / "results.json"
    given = {"replies": {"select": {"oracle": {"ok": 12, "not valid": 2}, "start-after": {"ok": 3}}}}
    for rows in (given, {**ROWS, **given}):
        path.write_text(json.dumps(rows))
        write_results(path, load_results(path))
        assert json.loads(path.read_text()) == rows
    for wrong in ({}, {"collect": {}}, {"select": {"random": {"ok": 1}}}, {"select": {"oracle": {"fine": 1}}}):
        path.write_text(json.dumps({"replies": wrong}))
        with pytest.raises(InputError, match="replies"):
            load_results(path)


@pytest.mark.parametrize(("part", "rows"), [("atlas", "arms"), ("londi", "policies")])
def test_replies_and_lost_episodes_are_optional_and_known_by_name(tmp_path, part, rows):
    path = tmp_path / "results.json"
    given = copy.deepcopy(ROWS)
    given[part][rows][0] |= {"replies": {"ok": 120, "cut off": 2, "lost": 1}, "lost_episodes": 1}
    path.write_text(json.dumps(given))
    write_results(path, load_results(path))
    assert json.loads(path.read_text()) == given
    for wrong in ({"fine": 1}, {"ok": -1}, {"ok": 1.5}):
        given[part][rows][0]["replies"] = wrong
        path.write_text(json.dumps(given))
        with pytest.raises(InputError, match="replies"):
            load_results(path)
