"""What the report says of episodes that a switch has collected."""

import re

import pytest
from collecting_runs import collects

from atlas_ray.errors import InputError
from atlas_ray.report import build_report
from atlas_ray.report.collected import collected_part, read_collecting_usage
from atlas_ray.rundir.files import append_jsonl, read_json, write_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.stages.report import write_report
from atlas_ray.trajectory import Annotation, Step, Trajectory, write_annotations, write_trajectories

USAGE = {
    "policy": "demo/switch-cost0.05-seed0",
    "models": ["tiny-quick", "<b>deep</b>"],
    "episodes": 1234,
    "kept": 40,
    "successes": 40,
    "lost": 0,
    "steps": 5000,
    "calls": 777,
    "calls_by_model": [4223, 777],
    "tokens": [1000, 2500],
    "flops": 7_200_000_000,
    "seconds": 12.5,
    "money": 0.0,
    "levels": {},
}


@pytest.fixture
def run(tmp_path):
    """A run whose two steps were taken by different models."""
    steps = [Step(observation="o", action=a, actor=who) for a, who in (("left", "quick"), ("right", "deepthink"))]
    about = {"env": "e", "task": "t", "seed": 0, "instruction": "i", "score": 1, "success": True, "source": "demo/x"}
    write_trajectories(tmp_path / "trajectories/expert.jsonl", [Trajectory(id="a", steps=tuple(steps), **about)])
    marks = Annotation(trajectory_id="a", selector="calls", fraction=1.0, critical=(1,))
    write_annotations(tmp_path / "annotations/calls.jsonl", [marks])
    recipe = collects("runs/demo/switch-cost0.05-seed0", tables={"select": {"selectors": ["calls"]}})
    write_json(tmp_path / "recipe.resolved.json", recipe.model_dump(mode="json"))
    write_json(tmp_path / "trajectories/usage.json", USAGE)
    return tmp_path


def test_the_report_says_what_collecting_took_and_who_acted(run):
    page = build_report(run).read_text()
    assert "8 episodes of GoToLocalS5N2, GoToLocalS6N3 played by runs/demo/switch-cost0.05-seed0" in page
    for text in ("1,234", "777", "3,500", "7.2", "tiny-quick 4,223, &lt;b&gt;deep&lt;/b&gt; 777", "step 2 · deepthink"):
        assert text in page, text
    assert "<b>deep" not in page and ">lost<" not in page and ">money<" not in page


def test_what_was_lost_or_paid_is_said_where_there_is_any(run):
    write_json(run / "trajectories/usage.json", {**USAGE, "lost": 3, "money": 1.5})
    told = "".join(collected_part(RunLayout(run)))
    assert ">lost<" in told and ">1.50<" in told


def test_other_runs_say_nothing_of_it_and_a_wrong_file_is_an_error(run):
    (run / "trajectories/usage.json").unlink()
    assert collected_part(RunLayout(run)) == []
    write_json(run / "trajectories/usage.json", {**USAGE, "calls": -1})
    with pytest.raises(InputError) as caught:
        read_collecting_usage(RunLayout(run))
    assert caught.value.field == "calls"


def test_how_episodes_ended_is_told_where_not_all_are_successes(run):
    write_json(run / "trajectories/usage.json", {**USAGE, "models": ["m"], "calls_by_model": [5000], "calls": 0})
    append_jsonl(run / "annotations/scores/oracle.jsonl", [{"id": "a", "replies": {"ok": 1}}])
    page = write_report(run).read_text()
    assert "How the collected episodes ended" not in page and ">calls</th>" not in page.split("It took")[0]
    assert "collected" not in read_json(run / "results.json")
    about = {"env": "e", "task": "t", "seed": 0, "instruction": "i", "source": "m"}
    steps = tuple(Step(observation="o", action=str(n)) for n in range(4))
    outcomes = {"a": True, "b": False, "c": False, "d": None}
    made = [Trajectory(id=name, steps=steps, score=None, success=ended, **about) for name, ended in outcomes.items()]
    write_trajectories(run / "trajectories/expert.jsonl", made)
    marks = {"a": (0, 1), "b": (2,)}
    write_annotations(
        run / "annotations/calls.jsonl",
        [Annotation(trajectory_id=name, selector="calls", fraction=1.0, critical=at) for name, at in marks.items()],
    )
    page = write_report(run).read_text()
    part = page[page.index("How the collected episodes ended") :]
    cells = [
        re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", part[: part.index("</table>")])
    ]
    assert [row for row in cells if row] == [
        ["successes", "1", "4", "50.0%"],
        ["failures", "2", "8", "25.0%"],
        ["unknown outcome", "1", "4", "\N{EN DASH}"],
    ]
    assert read_json(run / "results.json")["collected"] == {"successes": 1, "failures": 2, "unknown": 1}
