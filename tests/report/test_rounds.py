"""The report on rounds: its sentence, its tables and its picture, from made-up rounds."""

import pytest

from atlas_ray.data.resampling import MeanDifference
from atlas_ray.data.rounds import Collected, Comparison, Round, Rounds, System, TunedArm, load_rounds, write_rounds
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.report import build_report
from atlas_ray.report.rounds import rounds_figure, rounds_headlines, rounds_part
from atlas_ray.report.run import Run
from atlas_ray.rundir.files import write_json
from atlas_ray.rundir.layout import RunLayout
from tests.report.test_report import check

TERM = "londi(c=0.05)"
UP, DOWN, NONE = MeanDifference(0.1, 0.05, 0.2), MeanDifference(-2.0, -3.0, -1.0), MeanDifference(0.0, -0.1, 0.1)


def system(name, success, calls, money=0.0):
    ci95 = (success - 0.05, success + 0.05)
    return System(name=name, success=success, ci95=ci95, calls=calls, flops=2e9, seconds=0.5, money=money, episodes=80)


def arm(name, success, above, spent=500.0):
    ci95 = (success - 0.05, success + 0.05)
    about = {"trajectories": 120.0, "steps_share": 0.31, "trained_tokens": 39000.0, "calls_spent": spent}
    return TunedArm(arm=name, success=success, ci95=ci95, first_above=above, **about)


def rounds(kept=1, money=0.0, why="its QUICK does as well without calls (switch less QUICK alone: success -0.010)"):
    apart = Comparison(success=NONE, calls=DOWN, objective=None)
    first = Round(
        round=0,
        quick=system("always-quick", 0.4, 0),
        switch=system(TERM, 0.6, 4.0, money),
        policy=TERM,
        of_use=Comparison(success=UP, calls=UP, objective=UP),
        gained=None,
        on_test=None,
        against_first=None,
        against_deepthink=apart,
    )
    second = Round(
        round=1,
        quick=system("always-quick", 0.61, 0),
        switch=system(TERM, 0.62, 2.0),
        policy="always-quick",
        of_use=Comparison(success=NONE, calls=UP, objective=DOWN),
        gained=apart,
        on_test=apart,
        against_first=apart,
        against_deepthink=apart,
        lesson=Collected(episodes=300, kept=120, calls=500),
        arms=(arm("calls", 0.61, None), arm("all", 0.5, UP), arm("deepthink-equal-calls", 0.6, NONE, 499.0)),
    )
    deepthink = system("always-deepthink", 0.64, 12.0)
    about = {"seeds": (0, 1), "term": TERM, "tune_from": "before", "kept": kept, "why": why}
    return Rounds(deepthink=deepthink, rounds=(first, second), **about)


def run_of(tmp_path, made):
    write_rounds(RunLayout(tmp_path).rounds, made)
    return Run(tmp_path, None, None)


def test_the_headline_says_what_the_calls_became(tmp_path):
    (headline,) = rounds_headlines(run_of(tmp_path, rounds()))
    assert "After one round" in headline.answer and "100\N{NO-BREAK SPACE}% fewer calls" in headline.answer
    assert "4.00 before, 0.00 now" in headline.answer and "cannot be told apart" in headline.answer
    assert "from 0.40 to 0.61" in headline.answer
    assert any("less all (500 calls): +0.10 [+0.05, +0.20]" in line for line in headline.numbers)
    assert any(
        "deepthink-equal-calls (499 calls)" in line and "not distinguishable" in line for line in headline.numbers
    )
    assert "<svg" in headline.picture


def test_where_no_round_is_kept_it_says_so_and_why(tmp_path):
    (headline,) = rounds_headlines(run_of(tmp_path, rounds(kept=0, why="round 1 gained nothing over it: <b>")))
    assert headline.answer.startswith("No round is kept: round 1 gained nothing")
    assert "<b>" not in "".join(rounds_part(Run(tmp_path, None, None)))


def test_tables_mark_what_acts_and_show_money_only_where_it_was_paid(tmp_path):
    text = "".join(rounds_part(run_of(tmp_path, rounds())))
    assert text.count("acts, kept") == 1 and text.count(">acts<") == 1
    assert "money" not in text and "0.61 " in text and "31.0%" in text
    assert "money" in "".join(rounds_part(run_of(tmp_path, rounds(money=0.25))))


def test_the_picture_has_every_round_and_hollow_ones_that_are_not_kept():
    figure = rounds_figure(rounds(kept=0))
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.texts] == ["round 1", "round 0"], "from left to right"
    squares = [line for line in axes.lines if line.get_marker() == "s"]
    assert [line.get_markerfacecolor() == line.get_color() for line in squares] == [True, False]


def test_a_page_with_rounds_is_whole_and_one_without_has_no_word_of_them(tmp_path):
    policy = {"name": "always-quick", "success": 0.4, "return": 0.4, "ci95": [0.3, 0.5], "deepthink_share": 0.0}
    policy |= {"deepthink_calls_per_episode": 0.0, "compute": 1.0, "compute_unit": "FLOPs/episode"}
    policy |= {"budget_violations": 0, "episodes": 80}
    write_json(tmp_path / "results.json", {"londi": {"policies": [policy]}})
    assert "Rounds of switching" not in build_report(tmp_path).read_text()
    write_rounds(RunLayout(tmp_path).rounds, rounds())
    recipe = {"name": "r", "switch": {"levels": ["GoToLocalS5N2"], "costs": [0.05]}, "rounds": {"count": 1}}
    write_json(RunLayout(tmp_path).recipe, Recipe.model_validate(recipe).model_dump(mode="json"))
    page = build_report(tmp_path).read_text()
    check(page)
    assert "at most 1 round of tuning tiny-quick on its calls" in page and "which neither paper does" in page
    assert "Rounds of switching and tuning" in page and "What QUICK learned from" in page


def test_the_file_comes_back_as_it_was_and_a_wrong_one_names_its_field(tmp_path):
    made, path = rounds(), RunLayout(tmp_path).rounds
    write_rounds(path, made)
    assert load_rounds(path) == made
    path.write_text(path.read_text().replace('"kept": 1', '"kept": -1'))
    with pytest.raises(InputError, match="kept"):
        load_rounds(path)
