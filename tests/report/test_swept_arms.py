"""Arms of a sweep: compared like those of one run, half-done or not, and what is said of them."""

import json
from itertools import pairwise

import pytest
from report_runs import arm, check
from sweep_recipes import switch_recipe
from swept_arm_runs import ARMS, EPISODES, SHARE, episodes_of, name_of, sweep_recipe, write_one_run, write_sweep

from atlas_ray.cli import main
from atlas_ray.data.paired import level_for, paired_difference
from atlas_ray.data.results import Arm
from atlas_ray.errors import InputError
from atlas_ray.report import build_report
from atlas_ray.report.arm_headlines import arm_headlines
from atlas_ray.report.arm_pairs import QUESTIONS, apart
from atlas_ray.report.forgetting import forgotten
from atlas_ray.report.labels import _spread
from atlas_ray.report.run import read_run
from atlas_ray.report.sweep_curves import curve_figure, differences_figure, panels_of
from atlas_ray.report.sweep_headlines import sweep_headlines
from atlas_ray.report.swept_arms import comparisons_of, groups_of
from atlas_ray.rundir.files import read_json, write_json
from atlas_ray.sweep.table import refresh
from atlas_ray.sweep.trials import trials_of

HELD_IN = ["PickupDist", "PutNextLocalS5N3"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep over two shares of bias."""
    run_dir = tmp_path_factory.mktemp("swept")
    write_sweep(run_dir)
    refresh(run_dir)
    return run_dir


def compared(run_dir):
    return comparisons_of(read_json(run_dir / "sweep.json"))


def rows_of(name, share, levels):
    by_model = {}
    for row in episodes_of(name, share):
        if row["level"] in levels:
            by_model.setdefault(row["model"], []).append(row["success"])
    return list(by_model.values())


def test_every_question_has_the_pairs_that_it_is_about(swept):
    found = {(c.question, c.first, c.second) for c in compared(swept)}
    assert found - {f for f in found if f[0] == "forgetting"} == {
        ("random", "value", "random_value"),
        ("random", "value+anchor0.5", "random_value+anchor0.5"),
        ("random-cap", "value", "random"),
        ("non-critical", "value", "non-critical_value"),
        ("all", "value", "all"),
        ("all", "value+anchor0.5", "all"),
        ("anchor", "value+anchor0.5", "value"),
        ("anchor", "random_value+anchor0.5", "random_value"),
    }
    assert {f[1] for f in found if f[0] == "forgetting"} == {name_of({"finetune.arms": arm}) for arm in ARMS}


def test_differences_are_those_of_the_episodes_corrected_for_all_that_a_question_shows(swept):
    rows = [c for c in compared(swept) if c.question == "random" and c.split == "held_in"]
    assert len(rows) == 4, "two pairs at two shares of bias"
    for c in rows:
        a, b = (rows_of(name, c.values[SHARE], HELD_IN) for name in (c.first, c.second))
        assert c.difference == paired_difference(a, b, level_for(4)) and c.level == level_for(4)
        assert (c.difference.episodes, c.seeds) == (2 * EPISODES, 3)
    held_out = [c for c in compared(swept) if c.question == "random" and c.split == "held_out"]
    assert [c.difference.episodes for c in held_out] == [EPISODES] * 4


@pytest.mark.usefixtures("without_drawing")
def test_comparisons_of_a_sweep_equal_those_of_one_run_with_the_same_arms_and_episodes(tmp_path):
    write_sweep(tmp_path / "sweep", sweep_recipe({SHARE: {"grid": [1.0]}}))
    refresh(tmp_path / "sweep")
    write_one_run(tmp_path / "one", 1.0)
    one = read_run(tmp_path / "one")
    expected = [
        (q.name, a.name, b.name, split, apart(one, a, b, split, level_for(len(q.pairs(one.arms)))))
        for q in QUESTIONS
        for split in ("held_in", "held_out")
        for a, b in q.pairs(one.arms)
    ]
    trained = [arm for arm in one.arms if arm.seeds]
    lost = [(arm, forgotten(one, arm, level_for(len(trained)))) for arm in trained]
    expected += [("forgetting", arm.name, "none", "known", row.change) for arm, row in lost]
    found = compared(tmp_path / "sweep")
    assert [(c.question, c.first, c.second, c.split, c.difference) for c in found] == expected
    assert len({e[0] for e in expected}) == 6 and all(e[4].episodes for e in expected)
    # and what the report of one run says stands in the sweep's too
    said = {line for h in arm_headlines(one) for line in h.numbers if "less all" in line}
    assert said == {line.replace("habit_share = 1: ", "").replace(" less all", " less all:").partition(", with")[0]
                    for h in sweep_headlines(read_run(tmp_path / "sweep")) if h.name == "sweep-all"
                    for line in h.numbers[1:]}  # fmt: skip


def test_a_trials_row_has_what_its_arm_forgot(swept, tmp_path):
    made = read_json(swept / "sweep.json")
    write_one_run(tmp_path, 1.0)
    one = read_run(tmp_path)
    for row in made["trials"][len(ARMS) :]:
        (arm,) = (a for a in one.arms if a.name == name_of(row["values"]))
        change = forgotten(one, arm).change
        assert (row["forgetting"], row["forgetting_ci95"]) == (change.mean, [change.low, change.high])
    heads, first = (line.split(",") for line in (swept / "sweep.csv").read_text().splitlines()[:2])
    assert heads[-5:-2] == ["forgetting", "forgetting_ci95_low", "forgetting_ci95_high"] and float(first[-5]) > 0


@pytest.mark.usefixtures("without_drawing")
def test_a_sweep_that_is_half_done_is_reported_without_what_is_unfinished(tmp_path, capsys, swept):
    trials = write_sweep(tmp_path / "run", unfinished={9, 10})
    assert not (tmp_path / "run" / "sweep.json").exists()
    assert main(["report", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "(1) Which arm has most success as the expert's bias grows? Most success has all steps at habit" in said
    assert "Can critical steps stand in for all steps?" in said and "report: " in said
    made = read_json(tmp_path / "run" / "sweep.json")
    assert [row["status"] for row in made["trials"]].count("unfinished") == 2
    assert [(len(g["trials"]), g["unfinished"]) for g in made["groups"]] == [(7, 0), (5, 2)]
    assert {name_of(trials[n].values) for n in (9, 10)} == {"value", "random_value"}
    here = [c for c in compared(tmp_path / "run") if c.values[SHARE] == 1.0]
    assert not {"value", "random_value"} & {name for c in here for name in (c.first, c.second)}
    rows = [c for c in compared(tmp_path / "run") if c.question == "random" and c.split == "held_in"]
    assert [c.level for c in rows] == [level_for(3)] * 3, "corrected for what is shown"
    _, text = check((tmp_path / "run" / "report.html").read_text())
    assert "14 trials over collect.expert.habit_share, finetune.arms: 12 done, 2 not finished and left out." in text
    assert "Of 14 trials 2 unfinished: left out." in text
    # once they are done, it is as if it had never been stopped
    write_sweep(tmp_path / "whole")
    for number in (9, 10):
        done = tmp_path / "whole" / "trials" / f"{number:04d}"
        done.rename(tmp_path / "run" / "moved")
        here = tmp_path / "run" / "trials" / f"{number:04d}"
        here.rename(tmp_path / f"old{number}")
        (tmp_path / "run" / "moved").rename(here)
    refresh(tmp_path / "run")
    assert read_json(tmp_path / "run" / "sweep.json") == read_json(swept / "sweep.json")


@pytest.mark.usefixtures("without_drawing")
def test_a_sweep_of_which_nothing_is_done_has_a_report_that_says_so(tmp_path):
    write_sweep(tmp_path, unfinished=range(14))
    assert main(["report", str(tmp_path)]) == 0
    _, text = check((tmp_path / "report.html").read_text())
    assert "14 not finished and left out." in text and "What came out" not in text


@pytest.mark.usefixtures("without_drawing")
def test_files_without_their_trials_stay_as_they_are(tmp_path, swept):
    for name in ("sweep.json", "recipe.resolved.json"):
        (tmp_path / name).write_bytes((swept / name).read_bytes())
    before = (tmp_path / "sweep.json").read_bytes()
    refresh(tmp_path)
    assert (tmp_path / "sweep.json").read_bytes() == before
    assert len(sweep_headlines(read_run(tmp_path))) == 7, "and all can be said from them"


def test_a_sweep_of_the_switch_that_was_stopped_is_refused_with_the_way_out(tmp_path):
    recipe = switch_recipe(tmp_path / "models", {"switch.costs": {"grid": [0.01, 0.02]}})
    for path in (tmp_path, trials_of(recipe, tmp_path)[0].directory):
        write_json(path / "recipe.resolved.json", recipe.model_dump(mode="json"))
    with pytest.raises(InputError, match="sweep it to the end first"):
        refresh(tmp_path)


@pytest.mark.usefixtures("without_drawing")
def test_the_answers_follow_from_the_intervals(swept):
    said = {h.name: h for h in sweep_headlines(read_run(swept))}
    assert said["sweep-leaders"].question == "Which arm has most success as the expert's bias grows?"
    assert (
        said["sweep-leaders"].answer
        == "Most success has all steps at habit_share = 0 (0.62); value+anchor0.5 at 1 (0.64)."
    )
    assert said["sweep-random"].answer == (
        "At habit_share = 0 it cannot be told; at 1 value+anchor0.5 teaches more, of value it cannot be told."
    )
    assert said["sweep-non-critical"].answer == "At habit_share = 0 and 1 value teaches more."
    assert said["sweep-anchor"].answer == (
        "At habit_share = 0 it cannot be told; at 1 it helps value, of random_value it cannot be told."
    )
    assert said["sweep-random"].numbers[0].startswith("On levels that were never trained on: at habit_share = 0")
    assert said["sweep-all"].numbers[1].endswith(", with 67\N{NO-BREAK SPACE}% fewer trained tokens")
    for h in said.values():
        assert h.picture is not None and not h.caveat.endswith("between trainings.")


def test_a_page_has_the_curve_first_and_every_comparison_folded_away(swept):
    page = build_report(swept).read_text()
    checker, text = check(page)
    assert page.index('id="sweep-leaders"') < page.index("The sweep")
    assert checker.tags.count("svg") == 7 + 1 + 2, "one per question, held-out success, tokens at both shares"
    assert "All comparisons of arms" in text
    assert "Experts with a bias: that cloning copies it is ATLaS's claim" in text and "Arms of a sweep: that" in text
    assert page.count('<td class="text">random_value+anchor0.5</td><td class="text">random_value</td>') == 2


def test_the_curve_has_a_line_for_critical_steps_and_for_what_they_are_set_against(swept):
    groups = groups_of(read_json(swept / "sweep.json"), swept)
    panels = panels_of(groups, SHARE)
    assert [(p.title, list(p.looks)) for p in panels] == [
        ("without an anchor", ["value", "random_value", "non-critical_value", "all"]),
        ("with the anchor", ["value+anchor0.5", "random_value+anchor0.5", "all"]),
    ]
    (arm,) = (a for a in groups[1].arms if a.name == "value+anchor0.5")
    assert panels[1].points["value+anchor0.5"][1] == (1.0, arm)
    first, second = curve_figure(panels, SHARE, "held_in").axes
    lines = [line for line in second.get_lines() if line.get_marker() == "o"]
    assert lines[0].get_ydata()[1] == arm.held_in.success and abs(lines[0].get_xdata()[1] - 1) < 0.05
    assert [t.get_text() for t in second.texts] == ["untuned", "value", "random_value", "all steps, no anchor"]
    assert first.get_ylim() == second.get_ylim()


def test_differences_are_drawn_over_the_axis_or_one_below_the_other(swept):
    rows = [c for c in compared(swept) if c.question == "all" and c.split == "held_in"]
    (axes,) = differences_figure(rows, SHARE).axes
    drawn = [line.get_ydata().tolist() for line in axes.get_lines() if line.get_marker() not in ("None", None)]
    assert drawn == [[c.difference.mean for c in rows if c.first == name] for name in ("value", "value+anchor0.5")]
    (axes,) = differences_figure(rows, None).axes
    assert next(iter(axes.get_yticklabels())).get_text() == "value, habit_share = 0"


def test_names_that_would_cover_each_other_are_moved_apart_and_stay_in_order():
    assert _spread([0.0, 50.0], 10) == [0.0, 50.0]
    assert _spread([10.0, 10.0, 10.0], 10) == [0.0, 10.0, 20.0]
    made = _spread([0.0, 4.0, 12.0, 40.0], 10)
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(made)) and made[-1] == 40.0


@pytest.mark.usefixtures("without_drawing")
def test_a_sweep_over_arms_alone_has_no_axis(tmp_path):
    recipe = sweep_recipe()
    space = {"space": {"finetune.arms": {"grid": ARMS}}}
    write_sweep(
        tmp_path, type(recipe).model_validate({**recipe.model_dump(mode="json", exclude_unset=True), "sweep": space})
    )
    refresh(tmp_path)
    first, *_ = sweep_headlines(read_run(tmp_path))
    assert (first.question, first.answer) == ("Which arm has most success?", "Most success has value+anchor0.5 (0.64).")
    assert json.loads((tmp_path / "sweep.json").read_text())["groups"][0]["values"] == {}


def test_an_arm_of_pairs_is_set_against_steps_and_is_nobodys_control():
    rows = [arm("all", 0.5, None), arm("mine", 0.5, None, fraction=1.0), arm("random_mine", 0.4, None, fraction=1.0)]
    rows += [{**arm(name, 0.6, None, fraction=1.0), "pairs": "sigmoid"} for name in ("mine", "verified")]
    arms = [Arm.model_validate_json(json.dumps(row)) for row in rows]
    assert [a.name for a in arms][-2:] == ["mine+pairs", "verified+pairs"]
    found = {q.name: [(first.name, second.name) for first, second in q.pairs(arms)] for q in QUESTIONS}
    assert found["pairs"] == [("mine+pairs", "mine"), ("verified+pairs", "all")]
    assert found["random"] == [("mine", "random_mine")] and found["all"] == [("mine", "all")]


def test_what_is_selected_of_a_models_own_runs_is_set_against_its_successes():
    rows = [arm(name, 0.5, None, fraction=1.0) for name in ("all", "successes", "advised", "entropy", "random_entropy")]
    rows.append({**arm("verified", 0.6, None, fraction=1.0), "pairs": "sigmoid"})
    arms = [Arm.model_validate_json(json.dumps(row)) for row in rows]
    found = {q.name: [(first.name, second.name) for first, second in q.pairs(arms)] for q in QUESTIONS}
    names = ("advised", "entropy", "verified+pairs")
    assert found["successes"] == [(name, "successes") for name in names]


def test_predicted_marks_are_set_against_those_that_were_made_under_the_same_terms():
    names = ("value", "distilled", "random_distilled", "all")
    rows = [arm(name, 0.5, None, anchor=anchor) for anchor in (0.0, 0.5) for name in names]
    rows.append(arm("deviation", 0.5, None, fraction=0.1))
    arms = [Arm.model_validate_json(json.dumps(row)) for row in rows]
    found = {q.name: [(first.name, second.name) for first, second in q.pairs(arms)] for q in QUESTIONS}
    assert found["distilled"] == [("distilled", "value"), ("distilled+anchor0.5", "value+anchor0.5")]
