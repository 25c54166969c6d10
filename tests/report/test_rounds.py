"""The report on rounds: its sentence, its tables and its picture, from made-up rounds."""

import pytest

from atlas_ray.data.paired import Difference
from atlas_ray.data.rounds import (
    Collected,
    Comparison,
    LevelCollected,
    Round,
    Rounds,
    System,
    TunedArm,
    load_rounds,
    write_rounds,
)
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.report import build_report, write_plots
from atlas_ray.report.round_plots import arms_figure, lessons_figure, rounds_figure
from atlas_ray.report.rounds import rounds_headlines, rounds_part
from atlas_ray.report.run import Run
from atlas_ray.rundir.files import write_json
from atlas_ray.rundir.layout import RunLayout
from tests.report.test_report import check

TERM = "londi(c=0.05)"
WHY = "round 1 calls less than round 0, but <b>"
UP, DOWN, NONE = Difference(0.1, 0.05, 0.2, 80), Difference(-2.0, -3.0, -1.0, 80), Difference(0.0, -0.1, 0.1, 80)
SAME = Difference(0.01, -0.04, 0.06, 80)


def system(name, success, calls, money=0.0):
    ci95 = (success - 0.05, success + 0.05)
    return System(name=name, success=success, ci95=ci95, calls=calls, flops=2e9, seconds=0.5, money=money, episodes=80)


def arm(name, success, above, spent=500.0):
    ci95 = (success - 0.05, success + 0.05)
    about = {"trajectories": 120.0, "steps_share": 0.31, "trained_tokens": 39000.0, "calls_spent": spent}
    return TunedArm(arm=name, success=success, ci95=ci95, first_above=above, first_above_all=above, **about)


ARMS = (arm("calls", 0.61, None), arm("all", 0.5, UP), arm("deepthink-equal-calls", 0.6, NONE, 499.0))


def rounds(kept=1, money=0.0, success=NONE, learned=UP, arms=ARMS, seeds=(0, 1)):
    apart = Comparison(success=success, calls=DOWN)
    none = {"over": None, "gained": None, "on_test": None, "against_first": None, "learned": None}
    first = Round(
        round=0,
        quick=system("always-quick", 0.4, 0),
        switch=system(TERM, 0.6, 4.0, money),
        policy=TERM,
        alone=Comparison(success=DOWN, calls=DOWN),
        kept=True,
        against_deepthink=apart,
        **none,
    )
    second = Round(
        round=1,
        quick=system("always-quick", 0.61, 0),
        switch=system(TERM, 0.62, 2.0),
        policy="always-quick",
        alone=Comparison(success=SAME, calls=DOWN),
        over=0,
        gained=apart,
        on_test=apart,
        kept=kept == 1,
        against_first=apart,
        learned=learned,
        against_deepthink=apart,
        lesson=Collected(
            episodes=300, kept=120, calls=500, levels={"PickupDist": LevelCollected(episodes=300, kept=120)}
        ),
        arms=arms,
    )
    deepthink = system("always-deepthink", 0.64, 12.0)
    about = {"seeds": seeds, "term": TERM, "tune_from": "before", "kept": kept, "margin": 0.05, "why": WHY}
    return Rounds(deepthink=deepthink, rounds=(first, second), **about)


def run_of(tmp_path, made):
    write_rounds(RunLayout(tmp_path).rounds, made)
    return Run(tmp_path, None, None)


def headlines(tmp_path, *given, **made):
    return rounds_headlines(run_of(tmp_path, rounds(*given, **made)))


def test_the_first_headline_says_what_was_learned_and_what_it_did_for_the_system(tmp_path):
    first, _ = headlines(tmp_path)
    assert first.answer.startswith(
        "Yes: alone, the small model succeeds more often than before it learned (0.40 before, 0.61 after one round)."
    )
    assert "100\N{NO-BREAK SPACE}% fewer calls per episode (4.00 before, 0.00 now)" in first.answer
    assert "cannot be told whether it is the same within 0.05 (0.60 before, 0.61 now)" in first.answer
    assert "[" not in first.answer, "intervals stand below"
    assert "QUICK alone, after one round less untuned: +0.10 [+0.05, +0.20]" in first.numbers[0]
    assert "round 1 less round 0, on the test episodes: success +0.00 [" in first.numbers[2]
    assert "<svg" in first.picture and not first.caveat
    assert "the same success, within 0.05" in headlines(tmp_path, success=SAME)[0].answer
    assert "has less success" in headlines(tmp_path, success=DOWN)[0].answer
    unsure = headlines(tmp_path, learned=NONE, seeds=(0,))[0]
    assert unsure.answer.startswith("Whether the small model alone succeeds more") and "Trained once" in unsure.caveat


def test_the_second_headline_answers_at_equal_calls_and_at_equal_tokens(tmp_path):
    _, lessons = headlines(tmp_path, arms=(*ARMS, arm("deepthink-equal-tokens", 0.7, DOWN, 900.0)))
    assert lessons.answer == (
        "At equal calls spent the switch's calls cannot be told from the large model's own episodes (0.61 "
        "against 0.60). At equal trained tokens the switch's calls teach less than the large model's own "
        "episodes (0.61 against 0.70). Within the same episodes the switch's calls teach more than all steps "
        "(0.61 against 0.50)."
    )
    assert "tuned on calls (500 calls spent, 39,000 tokens) less all (500, 39,000): +0.10 [+0" in lessons.numbers[0]
    assert len(headlines(tmp_path, arms=ARMS[:1])) == 1, "nothing to compare with"


def test_where_no_round_is_kept_it_says_so_in_words_and_why(tmp_path):
    first, lessons = headlines(tmp_path, kept=0)
    assert "What was there before the rounds stays in use, as round 1 calls less than round 0, but" in first.answer
    assert "[" not in first.answer and "alone, the small model succeeds more often" in first.answer
    assert "At equal calls spent" in lessons.answer
    assert any(line.startswith("round 1 less round 0, on the episodes that judge: success") for line in first.numbers)
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


def test_the_picture_of_the_lessons_names_every_arm_with_what_it_took():
    made = rounds()
    axes = arms_figure(made, made.rounds[1]).axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names[2] == "deepthink-equal-calls\n499 calls, 39,000 tokens"
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"] == [0.61, 0.5, 0.6]


def test_several_rounds_are_a_curve_of_success_against_calls_spent():
    made = rounds()
    again = made.rounds[1].model_copy(
        update={"round": 2, "arms": tuple(a.model_copy(update={"calls_spent": 1000.0}) for a in ARMS)}
    )
    figure = lessons_figure(made.model_copy(update={"rounds": (*made.rounds, again)}))
    lines = {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}
    assert list(lines) == ["untuned", "calls", "all", "deepthink-equal-calls"]
    assert list(lines["calls"].get_ydata()) == [0.61, 0.61]
    assert lines["calls"].get_xdata()[1] == pytest.approx(1000, rel=0.05)


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
    assert [path.name for path in write_plots(tmp_path)] == ["londi.png", "rounds.png"]


def test_the_file_comes_back_as_it_was_and_a_wrong_one_names_its_field(tmp_path):
    made, path = rounds(), RunLayout(tmp_path).rounds
    write_rounds(path, made)
    assert load_rounds(path) == made
    path.write_text(path.read_text().replace('"kept": 1', '"kept": -1'))
    with pytest.raises(InputError, match="kept"):
        load_rounds(path)
