"""The report on the switches: what it says of made-up numbers, and what its pictures show."""

import re
from types import SimpleNamespace

import pytest
from report_runs import POLICIES, check, policy, write_run

from atlas_ray.data.results import Policy, Results
from atlas_ray.report import build_report, write_plots
from atlas_ray.report.places import places_figure
from atlas_ray.report.run import Run
from atlas_ray.report.switch_plots import called_panels, londi_figure
from atlas_ray.report.switch_reading import above_line, read_londi, twins
from atlas_ray.report.switching import policies_part
from atlas_ray.rundir.files import write_json

EVENLY = [0.1] * 10
LATE = [0.0] * 9 + [1.0]


def as_policies(*rows):
    return [Policy.model_validate(r) for r in rows]


QUICK, DEEP = policy("always-quick", 0.4, 0.0, 0.02), policy("always-deepthink", 0.8, 10.0, 0.02)
FULL = [
    policy("always-quick", 0.41, 0.0, seconds_per_episode=0.3),
    policy("always-deepthink", 0.85, 12.0, called_at=EVENLY, seconds_per_episode=1.5),
    policy("londi(c=0.02)", 0.84, 4.2, cost=0.02, called_at=LATE, seeds=[0, 1], success_by_seed=[0.8, 0.88]),
    policy("londi(c=0.1)", 0.6, 1.2, cost=0.1, called_at=LATE, seeds=[0, 1], success_by_seed=[0.6, 0.6]),
    policy("londi(c=measured)", 0.77, 3.0, cost="measured", seeds=[0, 1], success_by_seed=[0.75, 0.79]),
    policy("londi-b(n=3)", 0.7, 2.4, budget=3, budget_fraction=0.5, seeds=[0, 1], success_by_seed=[0.7, 0.7]),
    policy("londi-l(calls=2)", 0.7, 2.05, average=2.0, seeds=[0, 1], success_by_seed=[0.7, 0.7]),
    policy("random(p=0.35)", 0.58, 4.2, called_at=EVENLY),
    policy("every(p=0.35)", 0.6, 4.2),
    policy("threshold(p=0.35)", 0.7, 4.6),
    policy("random(p=0.20, n=3)", 0.5, 2.3, budget=3),
    policy("oracle", 0.8, 3.6, called_at=EVENLY),
]


def test_a_switch_is_set_against_the_mixing_line():
    rows = as_policies(QUICK, DEEP, policy("londi(c=0.1)", 0.75, 5.0, 0.03, cost=0.1))
    mean, _, high = above_line(rows[2], rows[0], rows[1])
    assert mean == pytest.approx(0.15)
    assert high - mean == pytest.approx((0.03**2 + 2 * 0.01**2) ** 0.5)
    told = read_londi(rows)
    assert list(told) == ["All policies", "londi(c=0.1)"]
    assert "the large model is better" in told["All policies"][0]
    line = told["londi(c=0.1)"][0]
    assert line.startswith("Against random mixing at its 5.00 calls per episode: +0.150 [") and line.endswith("better.")
    worse = as_policies(QUICK, DEEP, policy("londi(c=0.1)", 0.45, 5.0, 0.03, cost=0.1))
    assert read_londi(worse)["londi(c=0.1)"][0].endswith("], worse.")
    unclear = read_londi(as_policies(QUICK, DEEP, policy("londi-b(n=6)", 0.62, 5.0, budget=6)))
    assert unclear["londi-b(n=6)"][0].endswith("], not distinguishable at this scale.")
    assert unclear["All policies"][1] == "Budgets were exceeded in 0 of 300 episodes."
    # more calls than always-deepthink makes: against its success, not an extrapolation
    assert above_line(as_policies(policy("x", 0.8, 20.0))[0], rows[0], rows[1])[0] == pytest.approx(0)


def test_a_switch_is_set_against_the_baselines_at_its_rate_and_under_its_budget():
    rows = as_policies(*FULL)
    by_name = {p.name: p for p in rows}
    assert [p.name for p in twins(by_name["londi(c=0.02)"], rows)] == [
        *("random(p=0.35)", "every(p=0.35)", "threshold(p=0.35)")
    ]
    assert [p.name for p in twins(by_name["londi-b(n=3)"], rows)] == ["random(p=0.20, n=3)"]
    assert twins(by_name["londi(c=0.1)"], rows) == []
    sentence = read_londi(rows)["londi(c=0.02)"][1]
    assert "random(p=0.35) +0.260 [" in sentence and "], better (4.20 calls per episode); every(p=0.35)" in sentence
    assert "threshold(p=0.35) +0.140 [+0.069, +0.211], better (4.60 calls per episode)." in sentence
    assert not any("baselines" in s for s in read_londi(rows)["londi(c=0.1)"])


def test_triggers_are_set_beside_a_switch_at_their_own_rate_and_its_budget():
    more = [
        policy("classifier(p=0.35)", 0.6, 4.0),
        policy("escalate(p=0.35)", 0.6, 4.0),
        policy("triggers", 0.6, 7.0),
        policy("triggers(n=3)", 0.5, 2.9, budget=3),
    ]
    rows = as_policies(*FULL, *more)
    by_name = {p.name: p for p in rows}
    names = [p.name for p in twins(by_name["londi(c=0.02)"], rows)]
    assert names[3:] == ["classifier(p=0.35)", "escalate(p=0.35)", "triggers"]
    assert [p.name for p in twins(by_name["londi-b(n=3)"], rows)][1:] == ["triggers(n=3)"]
    sentence = read_londi(rows)["londi(c=0.02)"][1]
    assert sentence.startswith("Against baselines at its rate of calls, and triggers at their own: random")


def test_a_rule_that_is_kept_is_read_like_a_switch_and_says_where_it_lies():
    rule = policy("classifier(p=0.40)", 0.6, 4.2, checkpoint="switch-classifier0.40")
    told = read_londi(as_policies(*FULL, rule))["classifier(p=0.40)"]
    assert told[0].startswith("Against random mixing at its 4.20 calls per episode: ")
    assert "random(p=0.35) " in told[1] and "classifier" not in told[1]
    assert told[-1].startswith("It was fitted to training episodes, not learned, and is kept as checkpoints/switch-")


def test_what_chose_a_switch_stands_beside_its_test():
    chosen = policy("londi(c=0.02)", 0.6, 4.2, cost=0.02, seeds=[0], success_by_seed=[0.6], chosen_success=0.69)
    rows = as_policies(*FULL[:2], chosen)
    assert read_londi(rows)["londi(c=0.02)"][-1] == (
        "In the episodes that chose it its success was 0.69, \N{MINUS SIGN}0.090 here."
    )
    _, part, note = policies_part(SimpleNamespace(policies=rows))
    assert ">success when chosen</th>" in part and ">0.69</td>" in part
    assert "Success when chosen" in note
    _, part, note = policies_part(SimpleNamespace(policies=rows[:2]))
    assert "when chosen" not in part + note


def test_what_it_takes_to_catch_up_is_a_share_of_the_compute():
    one = policy("londi(c=0.02)", 0.6, 4.2, cost=0.02, seeds=[0], success_by_seed=[0.6], run_length=2)
    one |= {"compute": 4e9, "catch_up": 1e9}
    rows = as_policies(*FULL[:2], one)
    _, part, note = policies_part(SimpleNamespace(policies=rows))
    assert ">catching up</th>" in part and ">25%</td>" in part
    assert "Catching up:" in note and "in runs of 2 steps" in note
    _, part, note = policies_part(SimpleNamespace(policies=as_policies(*FULL[:2])))
    assert "atching up" not in part + note and "in runs" not in note


def test_a_switch_is_set_against_the_large_model_with_what_it_saves():
    told = read_londi(as_policies(*FULL))
    compute = 1 - (4.1e8 + 3.3e8 * 4.2) / (4.1e8 + 3.3e8 * 12)
    assert told["londi(c=0.02)"][2] == (
        f"Against always-deepthink: 65% fewer calls and {compute:.0%} less compute, at a success that cannot be told "
        "apart at this scale: \N{MINUS SIGN}0.010 [\N{MINUS SIGN}0.081, +0.061]. It calls on 35% of its steps."
    )
    assert "90% fewer calls" in told["londi(c=0.1)"][1] and "at a lower success" in told["londi(c=0.1)"][1]
    dearer = policy("londi(c=0)", 0.99, 13.0, 0.01, cost=0.0)
    assert (
        "8% more calls and 8% more compute, at a higher success"
        in read_londi(as_policies(*FULL[:2], dearer))["londi(c=0)"][1]
    )


def test_the_spread_over_training_seeds_and_the_oracle_are_told():
    told = read_londi(as_policies(*FULL))
    assert told["londi(c=0.02)"][-1] == "Over 2 training seeds its success goes from 0.80 to 0.88 (0.80, 0.88)."
    assert told["All policies"][1].startswith("oracle, which calls wherever QUICK does not do what the expert would")
    assert "3.60 calls per episode, on 30% of the steps, and has success 0.80 [0.75, 0.85]" in told["All policies"][1]
    once = read_londi(
        as_policies(*FULL[:2], policy("londi(c=0)", 0.5, 3.0, cost=0.0, seeds=[0], success_by_seed=[0.5]))
    )
    assert not any("training seeds" in s for s in once["londi(c=0)"])


def test_a_large_model_that_is_no_better_is_said_to_be_so():
    rows = as_policies(policy("always-quick", 0.5, 0.0), policy("always-deepthink", 0.52, 10.0))
    assert "little that a switch could gain" in read_londi(rows)["All policies"][0]
    assert read_londi(rows[:1]) == {}


def test_the_page_has_all_of_it(tmp_path):
    write_run(tmp_path, policies=FULL)
    page = build_report(tmp_path).read_text()
    checker, text = check(page)
    assert checker.tags.count("svg") == 5, "calls, arms, tokens, compute, marks and calls"
    for name in ("londi(c=measured)", "londi-l(calls=2)", "every(p=0.35)", "oracle", "londi-b(n=3), 50% of use"):
        assert f">{name}</td>" in page
    assert "trained once" not in text
    assert "Where in an episode the marks of the selectors and the calls of the switches lie" in text
    assert "LONDI-B, under a budget" in text and "threshold on QUICK's margin" in text
    assert text.index("What came out") < text.index("Of use: ") < text.index("Against always-deepthink")
    assert [p.name for p in write_plots(tmp_path)] == ["atlas.png", "londi.png"]


@pytest.mark.usefixtures("without_drawing")
def test_switches_that_were_trained_once_have_a_note(tmp_path):
    write_run(tmp_path)
    assert "trained once" in build_report(tmp_path).read_text()
    assert called_panels(as_policies(*POLICIES)) == [], "nothing says where these policies called"


@pytest.mark.usefixtures("without_drawing")
def test_several_models_have_their_calls_apart_and_their_place_in_the_episode(tmp_path):
    three = [{**p, "calls_by_model": [7.0, 1.25, 3.5]} for p in FULL]
    write_run(tmp_path, policies=three)
    step = {"observation": "a wall", "action": "turn left", "reward": 0.0}
    write_json(
        tmp_path / "switch" / "replay.json",
        {
            "policy": "londi(c=0.02)",
            "env": "BabyAIText/PickupLoc-v0",
            "seed": 7,
            "instruction": "pick up the red ball",
            "success": True,
            "steps": [{**step, "actor": actor} for actor in ("quick", "model 1", "deepthink")],
        },
    )
    _, text = check(build_report(tmp_path).read_text())
    assert "7.00 / 1.25 / 3.50" in text and "calls of each model" in text
    assert "2 of 3 steps not by QUICK" in text and "MODEL 1" in text


def test_both_pictures_have_the_mixing_line_and_connect_switches_in_the_order_of_their_limits():
    rows = as_policies(*FULL)
    for against, x in (("calls", lambda p: p.deepthink_calls_per_episode), ("compute", lambda p: p.compute)):
        lines = [line.get_xydata().tolist() for line in londi_figure(rows, against).axes[0].get_lines()]
        assert [[x(p), p.success] for p in rows[:2]] in lines, "random mixing"
        assert [[x(p), p.success] for p in rows[2:4]] in lines, "over c, the measured cost apart"


def test_only_learned_switches_and_the_ends_are_labelled_and_baselines_have_a_legend():
    figure = londi_figure(as_policies(*FULL))
    labels = {t.get_text() for t in figure.axes[0].texts}
    assert labels == {p["name"] for p in FULL if p["name"].startswith(("always", "londi"))}
    (legend,) = figure.legends
    named = [t.get_text() for t in legend.get_texts()]
    assert {"random mixing", "random", "every k-th step", "oracle", "Lagrangian, on average"} <= set(named)
    assert len(set(named)) == len(named)


def test_the_histogram_shows_learned_switches_one_random_and_the_oracle():
    five = as_policies(*FULL, policy("londi(c=0.2)", 0.5, 1.0, cost=0.2, called_at=LATE))
    assert [a.get_visible() for a in places_figure(called_panels(five)).axes] == [True] * 5 + [False] * 3
    figure = places_figure(called_panels(as_policies(*FULL)))
    shown = {a.get_title(): [round(bar.get_height(), 6) for bar in a.patches] for a in figure.axes if a.get_visible()}
    assert shown == {
        "londi(c=0.02)": LATE,
        "londi(c=0.1)": LATE,
        "random(p=0.35)": EVENLY,
        "oracle": EVENLY,
    }


@pytest.mark.usefixtures("without_drawing")
def test_lost_episodes_and_replies_have_columns_where_there_are_any(tmp_path):
    def part(*rows):
        return policies_part(Run(tmp_path, None, Results.model_validate({"londi": {"policies": rows}})))

    _, quiet, *_ = part(QUICK, DEEP)
    assert "replies" not in quiet and "lost episodes" not in quiet
    deep = policy("always-deepthink", 0.8, 10.0, replies={"ok": 1200, "empty": 3, "lost": 3}, lost_episodes=3)
    _, table, note = part(QUICK, deep)
    assert "<th>lost episodes</th><th>replies</th>" in re.sub(r"<th[^>]*>", "<th>", table)
    assert "1,200 ok, 3 empty, 3 lost" in table
    assert "left out for all policies" in note
