"""The report on selectors: how far they agree, their marks side by side, what the model does behind them."""

import json
import re

import pytest
from report_runs import HOSTILE, check, steps, write_run

from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.report import build_report
from atlas_ray.report.claims import claims
from atlas_ray.report.plots import agreement_figure, svg
from atlas_ray.report.selection import number, read_marks
from atlas_ray.report.starts import read_starts
from atlas_ray.rundir.files import append_jsonl, write_json
from atlas_ray.selection.agreement import agreement
from atlas_ray.trajectory import Annotation, Step, Trajectory, read_trajectories, write_annotations, write_trajectories

ENVS = ("BabyAIText/PickupDist-v0", "BabyAIText/GoToLocal-v0")
MARKS = {
    "all": (0, 1, 2, 3, 4, 5, 6),
    "random": (1, 5),
    "value": (3, 4),
    "oracle": (0, 4, 6),
    "union_value_oracle": (0, 3, 4, 6),
}


def note(selector, i, critical, **more):
    fraction = 1.0 if selector == "all" else 0.3
    return Annotation(trajectory_id=f"episode/{i}", selector=selector, fraction=fraction, critical=critical, **more)


def write_selected(run_dir, marks=MARKS, episodes=8, text="", **select):
    """A run of collect and select alone: the same marks in every episode, but none at all in the last one."""
    chosen = {"selectors": list(marks), "rest_of": "value", **select}
    recipe = {"name": "picked", "collect": {"levels": {"PickupDist": episodes}}, "select": chosen}
    write_json(run_dir / "recipe.resolved.json", recipe)
    rows = [
        Trajectory(
            id=f"episode/{i}",
            env=ENVS[i >= 6],
            task="t",
            seed=i,
            instruction=f"instruction number {i}{text}",
            steps=tuple(Step(**s) for s in steps(text)),
            score=1.0,
            success=i != 0,
            source="expert",
        )
        for i in range(episodes)
    ]
    write_trajectories(run_dir / "trajectories" / "expert.jsonl", rows)
    for name, critical in marks.items():
        more = {"categories": {4: "critical action" + text}, "reasons": {4: "it decides" + text}}
        made = [note(name, i, critical, **(more if name == "oracle" else {})) for i in range(episodes - 1)]
        last = note(name, episodes - 1, ())
        write_annotations(run_dir / "annotations" / f"{name}.jsonl", [*made, last])


def start(selector, ci95, place=0.4, trajectories=9):
    return {
        "selector": selector,
        "trajectories": trajectories,
        "starts": 20,
        "success": 0.55,
        "place": place,
        "random": {"success": 0.45, "place": 0.5},
        "beginning": {"success": 0.25, "place": 0.0},
        "difference": sum(ci95) / 2,
        "ci95": ci95,
    }


def render(run_dir):
    page = build_report(run_dir).read_text()
    return page, *check(page)


def cells(page, first):
    """Texts of the one table row that begins with ``first``."""
    (row,) = re.findall(rf'<tr><td class="text">{re.escape(first)}</td>.*?</tr>', page)
    return [re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?>(.*?)</td>", row)]


def test_every_pair_of_selectors_has_the_kappa_of_the_comparison(tmp_path):
    write_selected(tmp_path)
    page, checker, text = render(tmp_path)
    marks = read_marks(tmp_path, Recipe.model_validate_json((tmp_path / "recipe.resolved.json").read_bytes()))
    names = ["random", "value", "oracle", "union_value_oracle"]
    assert list(marks.found) == names and marks.shown == ("oracle", "value")
    trajectories = read_trajectories(tmp_path / "trajectories" / "expert.jsonl")
    for first in names:
        row = cells(page, first)
        assert row[:3] == [first, "8 of 8", f"{7 * len(MARKS[first]) / 56:.1%}"]
        for second, shown in zip(names, row[3:], strict=True):
            a, b = (marks.found[name].values() for name in (first, second))
            exact = agreement(trajectories, a, b, (first, second)).total.kappa
            assert shown == ("" if first == second else number(exact))
    assert cells(page, "random")[4].startswith("\N{MINUS SIGN}")
    result = agreement(trajectories, marks.found["oracle"].values(), marks.found["value"].values(), ("oracle", "value"))
    low, high = result.kappa_ci95
    assert f"Cohen's kappa {number(result.total.kappa)} [{number(low)}, {number(high)}]" in text
    assert f"Overlap {result.total.overlap:.2f}" in text and "7 steps are marked by both" in text
    assert cells(page, "critical action") == ["critical action", "100.0%", "\N{EN DASH}"]
    assert checker.tags.count("svg") == 2 and f"{ENVS[0]}</text>" in page


def test_the_figure_draws_both_shares_and_leaves_out_parts_without_steps():
    two = (Step(observation="", action=""),) * 2
    about = {"env": "$x$ " + "y" * 99, "task": "t", "seed": 0, "instruction": "i", "source": "expert"}
    few = [Trajectory(id="a", steps=two, score=1, success=True, **about)]
    marks = [[Annotation(trajectory_id="a", selector=n, fraction=1, critical=c)] for n, c in (("p", (0,)), ("q", ()))]
    result = agreement(few, *marks, ("p", "q"))
    figure = agreement_figure(result)
    (axes,) = figure.axes
    first, second = (line.get_xydata().tolist() for line in axes.lines[:2])
    # rows: all steps, five parts of the episode of which two hold a step, one environment
    assert [x for x, _ in first] == [0.5, 1, 0, 0.5] and [x for x, _ in second] == [0, 0, 0, 0]
    assert [round(y) for _, y in first] == [round(y) for _, y in second] == [0, 2, 4, 6]
    drawn = svg(figure, "agreement", "shares")
    assert drawn == svg(agreement_figure(result), "agreement", "shares")
    assert ">p<" in drawn and ">q<" in drawn and ">$x$ " in drawn and "y" * 50 not in drawn


@pytest.mark.usefixtures("without_drawing")
def test_marks_of_two_selectors_stand_side_by_side(tmp_path):
    write_selected(tmp_path)
    page, checker, text = render(tmp_path)
    assert "4 of 7 episodes, left the marks of oracle, right value" in text
    episodes = page.split('<ol class="steps">')[1:]
    assert len(episodes) == 4 and checker.tags.count("details") == 3 + 4, "all but the first are folded"
    order = [page.index(f"</strong>instruction number {i}<") for i in (1, 6, 2, 3)]
    assert order == sorted(order), "each environment in turn, successful ones first"
    rows = episodes[0].split("</ol>")[0].split("<li ")[1:]
    assert [r.startswith('class="marked"') for r in rows] == [True, False, False, True, True, False, True]
    assert "oracle: critical<" in rows[0] and "value: \N{EN DASH}" in rows[0]
    assert "oracle: \N{EN DASH}" in rows[3] and "value: critical<" in rows[3]
    assert (
        rows[4].index("oracle: critical action<") < rows[4].index("Why critical: it decides") < rows[4].index("value")
    )
    assert (
        "oracle: 3 of 7 steps are critical (at most 30%); value: 2 of 7 steps are critical (at most 30%); 1 by" in text
    )


def test_hostile_and_endless_text_is_escaped_and_cut(tmp_path):
    write_selected(tmp_path, text=HOSTILE + "w" * 5000)
    page, _, text = render(tmp_path)
    assert "<script>alert" not in page and "w" * 2001 not in page
    assert text.count(" ".join(HOSTILE.split())) > 50
    observation = len(steps()[1]["observation"]) + len(HOSTILE) + 5000
    assert f"({observation - 600:,} more characters)" in page


@pytest.mark.usefixtures("without_drawing")
def test_a_run_that_scored_nothing_has_a_report(tmp_path):
    write_selected(tmp_path)
    _, _, text = render(tmp_path)
    assert "this run scored no model" in text and "What came out" not in text
    without = build_report(tmp_path).read_bytes()
    for empty in ({}, {"atlas": None, "londi": None}):
        write_json(tmp_path / "results.json", empty)
        assert build_report(tmp_path).read_bytes() == without
    told = {"oracle": {"ok": 1200, "not valid": 3}, "value": {"ok": 7, "lost": 1}}
    write_json(tmp_path / "results.json", {"replies": {"select": told}})
    _, _, text = render(tmp_path)
    assert "this run scored no model" in text
    assert "asked byoknot validlostoracle1,20030value701 Of models that write" in text
    write_json(tmp_path / "results.json", {"colour": None})
    with pytest.raises(InputError, match="colour"):
        build_report(tmp_path)
    (tmp_path / "results.json").unlink()
    (tmp_path / "recipe.resolved.json").unlink()
    _, _, text = render(tmp_path)
    assert "No models were scored" in text and "left the marks of oracle, right value" in text


@pytest.mark.usefixtures("without_drawing")
def test_what_is_not_annotated_is_said(tmp_path):
    write_selected(tmp_path)
    folder = tmp_path / "annotations"
    write_annotations(folder / "oracle.jsonl", [note("oracle", i, (0,)) for i in range(3)])
    page, _, text = render(tmp_path)
    assert cells(page, "oracle")[1] == "3 of 8" and "0 trajectories of oracle, 5 of value" in text
    assert "3 of 3 episodes" in text
    write_annotations(folder / "value.jsonl", [note("value", i, (0,)) for i in range(4, 8)])
    page, _, text = render(tmp_path)
    assert cells(page, "oracle")[4] == "\N{EN DASH}" and "No trajectory is annotated by both" in text
    assert "no episode that oracle and value annotated has a critical step" in text
    (folder / "value.jsonl").write_text("")
    (folder / "random.jsonl").unlink()
    _, _, text = render(tmp_path)
    assert "Without annotations, and so left out: random, value." in text
    assert "left the marks of oracle, right union_value_oracle" in text
    for path in folder.glob("*.jsonl"):
        path.unlink()
    with pytest.raises(InputError, match=r"results\.json"):
        build_report(tmp_path)


@pytest.mark.usefixtures("without_drawing")
def test_a_scored_run_without_annotations_still_has_its_report(tmp_path):
    write_run(tmp_path)
    (tmp_path / "annotations" / "value.jsonl").unlink()
    _, _, text = render(tmp_path)
    assert "there are annotations by no selector" in text and "annotations/value.jsonl is missing" in text
    (tmp_path / "recipe.resolved.json").unlink()
    assert "this run selected no steps" in render(tmp_path)[2]


def test_one_selector_is_shown_alone_and_a_mere_draw_is_not(tmp_path):
    write_selected(tmp_path, {name: MARKS[name] for name in ("all", "value")})
    page, checker, text = render(tmp_path)
    assert "there are annotations by value" in text and "their marks beside each step" in text
    assert checker.tags.count("svg") == 1 and page.count("value: critical<") == 8
    write_selected(tmp_path / "drawn", {name: MARKS[name] for name in ("all", "random")})
    assert "this run has no selector but all, random, non-critical" in render(tmp_path / "drawn")[2]


@pytest.mark.usefixtures("without_drawing")
def test_the_matrix_holds_at_most_eight_and_always_the_pair(tmp_path):
    own = {f"own-{i}": (i % 7,) for i in range(8)}
    write_selected(tmp_path, {**own, **MARKS}, files={name: "x" for name in own})
    page, _, text = render(tmp_path)
    assert len(cells(page, "oracle")) == 3 + 8 and cells(page, "own-5")
    assert "Left out for want of room: own-6, own-7, random, union_value_oracle." in text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{}", r"value\.jsonl:1: trajectory_id"),
        (json.dumps(note("value", 0, (7,)).row()), r"value\.jsonl:1: critical: step 7"),
        ("\n".join([json.dumps(note("value", 0, (1,)).row())] * 2), r"value\.jsonl: .* has two annotations"),
    ],
)
def test_bad_annotations_are_named(tmp_path, line, says):
    write_selected(tmp_path)
    (tmp_path / "annotations" / "value.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=says):
        build_report(tmp_path)


@pytest.mark.usefixtures("without_drawing")
def test_starts_are_judged_by_their_interval(tmp_path):
    write_selected(tmp_path, start_after=["value", "oracle", "random"])
    assert "start-after.json is missing" in render(tmp_path)[2]
    rows = [start("value", [0.01, 0.19]), start("oracle", [-0.3, -0.1], place=0.75), start("random", [-0.1, 0.1])]
    rows.append(start("last", [0.2, 0.2], trajectories=1))
    path = tmp_path / "annotations" / "scores" / "start-after.json"
    write_json(path, rows)
    page, _, text = render(tmp_path)
    judged = [row.verdict for row in read_starts(tmp_path)]
    assert judged == ["better", "worse", "not distinguishable at this scale", "too few trajectories to tell"]
    table = page.split("What the untuned model does behind marked steps")[1]
    for row, word in zip(rows, judged, strict=True):
        assert cells(table, row["selector"])[6] == word
    shown = ["value", "20", "0.55", "0.45", "0.25", "+0.100 [+0.010, +0.190]", "better", "0.40", "0.50"]
    assert cells(table, "value") == shown
    assert "A later start is easier" in text and "Here they lie later for oracle." in text
    rows[0]["random"] = {"success": 2.0, "place": 0.5}
    write_json(path, rows)
    with pytest.raises(InputError, match=r"start-after\.json: 0\.random\.success"):
        build_report(tmp_path)


def test_what_is_ours_is_said_of_what_was_used():
    def said(**select):
        recipe = {"name": "x", "collect": {"levels": {"PickupDist": 1}}, "select": select}
        return "".join(claims(Recipe.model_validate(recipe)))

    lines = {
        "Oracle selector": "oracle",
        "Perplexity selector": "perplexity",
        "Uniform selector": "uniform",
        "Last selector": "last",
        "Ensembles (union_value_last)": "union_value_last",
        "user&#x27;s own (mine)": "mine",
    }
    both = said(selectors=["value", *lines.values()], files={"mine": "x"}, start_after=["value"])
    few = said(selectors=["all", "value"])
    for line in (*lines, "Starts behind marked steps", "Agreement of selectors"):
        assert line in both and line not in few
    assert "Oracle selector" not in "".join(claims(None))


@pytest.mark.usefixtures("without_drawing")
def test_events_of_a_selection_are_shown_too(tmp_path):
    write_selected(tmp_path)
    append_jsonl(tmp_path / "events.jsonl", [{"stage": "select", "event": "unannotated", "trajectory": HOSTILE}])
    assert "unannotated" in render(tmp_path)[2]
