"""The report: complete, escaped, honest, the same bytes every time. All numbers here are made up."""

import json
import re

import pytest
from report_runs import ARMS, HOSTILE, POLICIES, arm, check, policy, score, write_run

from atlas_ray.data.results import Arm
from atlas_ray.errors import InputError
from atlas_ray.report import build_report, write_plots
from atlas_ray.report.reading import read_atlas
from atlas_ray.rundir.files import write_json


def test_everything_is_in_it_in_order(tmp_path):
    write_run(tmp_path)
    path = build_report(tmp_path)
    assert path == tmp_path / "report.html"
    page = path.read_text()
    checker, text = check(page)
    assert checker.tags.count("svg") == 5 and checker.tags.count("h1") == 1
    for label in ("untuned", "all", "random", "non-critical", "value", "value+anchor0.5"):
        assert f">{label}</td>" in page
    for label in ("always-quick", "londi(c=0.02)", "londi-b(n=6)", "random(p=0.35)", "cascade"):
        assert f">{label}</td>" in page
    order = [
        "atlas-ray: demo",
        "500 expert episodes of GoToLocalS6N4, PickupDist",
        "What came out",
        "When is the large model worth a call?",
        "Do critical steps teach more than random ones?",
        "Can they stand in for all steps?",
        "Pictures",
        "Tables",
        "LONDI: when to call the large model",
        "ATLaS: which steps to train on",
        "put the red ball next to the green box",
        "Why critical: value 0.2 before, 0.6 after",
        "pick up the red ball",
        "All comparisons",
        "critical (value) minus random",
        "What was dropped and retried",
        "How long it took",
        "Every setting of this run",
        "2503.02197",
        "2402.12061",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "0.64 [0.60, 0.68]" in text and "61,210" in text
    assert "2 of 7 steps are critical (at most 30%)" in text and "2 of 7 steps by DEEPTHINK" in text
    assert page.count('class="marked"') == 4
    assert re.search(r"collect</td>.*?dropped</td>.*?>6</td>", page)
    assert "10 min 21 s" in text
    assert not re.search(r"(src|href)=\"(?!https://arxiv\.org/abs/|#)", page)


def test_hostile_text_comes_out_as_text(tmp_path):
    hostile = [policy(HOSTILE, 0.5, 3.0), *POLICIES]
    arms = [{**ARMS[0], "held_in": {**ARMS[0]["held_in"], "levels": {HOSTILE: score(0.3, 0.1)}}}, *ARMS[1:]]
    write_run(tmp_path, text=HOSTILE, arms=arms, policies=hostile)
    path = tmp_path / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    write_json(path, {**recipe, "finetune": {**recipe["finetune"], "base": HOSTILE}})
    page = build_report(tmp_path).read_text()
    checker, text = check(page)
    assert "<script>alert" not in page
    shown = " ".join(HOSTILE.split())
    assert text.count(shown) > 30
    assert checker.tags.count("details") == 6


@pytest.mark.usefixtures("without_drawing")
def test_hostile_names(tmp_path):
    run_dir = tmp_path / "<script>alert('1')<"
    write_run(run_dir, name=HOSTILE)
    with pytest.raises(InputError, match="name"):
        build_report(run_dir)
    (run_dir / "recipe.resolved.json").unlink()
    page = build_report(run_dir).read_text()
    _, text = check(page)
    assert text.count("atlas-ray: <script>alert('1')<") == 2


@pytest.mark.usefixtures("without_drawing")
def test_a_lone_surrogate_does_not_stop_the_report(tmp_path):
    write_run(tmp_path)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"stage": "select", "event": "odd", "answer": "\\ud800"}\n')
    check(build_report(tmp_path).read_text())


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(tmp_path):
    write_run(tmp_path)
    first = build_report(tmp_path).read_bytes()
    pictures = [p.read_bytes() for p in write_plots(tmp_path)]
    assert build_report(tmp_path).read_bytes() == first
    assert [p.read_bytes() for p in write_plots(tmp_path)] == pictures
    assert [p[:4] for p in pictures] == [b"\x89PNG"] * 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("without_drawing")
@pytest.mark.parametrize(
    ("gone", "line"),
    [
        ("recipe.resolved.json", "recipe.resolved.json is missing"),
        ("trajectories/expert.jsonl", "trajectories/expert.jsonl is missing"),
        ("annotations/value.jsonl", "annotations/value.jsonl is missing"),
        ("switch/replay.json", "switch/replay.json is missing"),
        ("events.jsonl", "events.jsonl is missing"),
        ("metrics.jsonl", "metrics.jsonl holds no times of stages"),
    ],
)
def test_a_missing_input_leaves_out_its_part_only(tmp_path, gone, line):
    write_run(tmp_path)
    (tmp_path / gone).unlink()
    page = build_report(tmp_path).read_text()
    _, text = check(page)
    assert line in text
    assert page.count('class="missing"') == 1


@pytest.mark.usefixtures("without_drawing")
@pytest.mark.parametrize("part", ["atlas", "londi"])
def test_a_run_of_one_half(tmp_path, part):
    write_run(tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())
    write_json(tmp_path / "results.json", {part: rows[part]})
    checker, text = check(build_report(tmp_path).read_text())
    assert checker.tags.count("svg") == 3, "arms, tokens, marks; calls, compute, marks"
    assert ("this run trained no switch" if part == "atlas" else "this run tuned no model") in text
    assert [p.name for p in write_plots(tmp_path)] == [f"{part}.png"]


@pytest.mark.usefixtures("without_drawing")
@pytest.mark.parametrize(
    ("file", "content", "field"),
    [
        ("results.json", "{", None),
        ("results.json", '{"atlas": {"arms": [{}]}}', "atlas.arms.0.selector"),
        ("recipe.resolved.json", '{"name": "x", "colour": 1}', "colour"),
        ("switch/replay.json", '{"policy": 3}', "policy"),
        ("events.jsonl", '{"event": "x"}\n', "stage"),
        ("metrics.jsonl", '{"stage": "pipeline"}\n', None),
        ("trajectories/expert.jsonl", "{}\n", "id"),
    ],
)
def test_a_bad_input_is_named(tmp_path, file, content, field):
    write_run(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError) as caught:
        build_report(tmp_path)
    assert str(caught.value.path) == str(tmp_path / file) and caught.value.field == field
    assert not (tmp_path / "report.html").exists()


def test_without_results_there_is_no_report(tmp_path):
    with pytest.raises(InputError, match=r"results\.json"):
        build_report(tmp_path)


@pytest.mark.usefixtures("without_drawing")
def test_a_line_still_being_written_is_left_alone(tmp_path):
    write_run(tmp_path)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"stage": "sel')
    before = (tmp_path / "events.jsonl").read_bytes()
    build_report(tmp_path)
    assert (tmp_path / "events.jsonl").read_bytes() == before


def as_arms(*rows):
    return [Arm.model_validate(r) for r in rows]


def test_the_reading_names_a_winner_only_when_there_is_one():
    (close,) = read_atlas(as_arms(arm("random", 0.6, 0.3), arm("value", 0.62, 0.29)))
    assert close.startswith("critical (value) minus random: held-in +0.020 [")
    assert close.count("not distinguishable at this scale") == 2
    (won,) = read_atlas(as_arms(arm("random", 0.4, 0.5), arm("value", 0.7, 0.3)))
    assert "held-in +0.300" in won and "critical (value) is better; held-out" in won
    assert "\N{MINUS SIGN}0.200" in won and won.endswith("random is better.")
    (inside,) = read_atlas(as_arms(arm("random", 0.4, None), arm("value", 0.7, None)))
    assert "held-out" not in inside


def test_critical_is_compared_at_its_own_fraction_and_anchors_with_their_twin():
    rows = as_arms(
        arm("random", 0.5, 0.2, fraction=0.1),
        arm("random", 0.5, 0.2),
        arm("all", 0.5, 0.2),
        arm("value", 0.5, 0.2),
        arm("value", 0.5, 0.2, anchor=1.0),
        arm("value", 0.5, 0.2, anchor=0.5),
        arm("random", 0.5, 0.2, anchor=0.5),
    )
    starts = [s.split(":")[0] for s in read_atlas(rows)]
    assert starts == [
        "critical (value 30%) minus random 30%",
        "critical (value 30%) minus all",
        "value+anchor1 30% minus random 30%",
        "value+anchor1 30% minus all",
        "value+anchor1 30% minus value 30%",
        "value+anchor0.5 30% minus random 30%",
        "value+anchor0.5 30% minus all",
        "value+anchor0.5 30% minus value 30%",
        "value+anchor0.5 30% minus random+anchor0.5 30%",
        "random+anchor0.5 30% minus random 30%",
        "random+anchor0.5 30% minus all",
    ]
