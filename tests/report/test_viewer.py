"""What the page holds for its viewer of episodes; `test_browser.py` looks at the viewer itself."""

import json
import re

import pytest
from report_runs import HOSTILE, check, steps, write_run

from atlas_ray.errors import InputError
from atlas_ray.report import build_report
from atlas_ray.report.run import read_run
from atlas_ray.report.viewer_data import collect
from atlas_ray.rundir.files import append_jsonl, read_json, write_json

pytestmark = pytest.mark.usefixtures("without_drawing")


def played(model, level, seed, success=True, count=7, text=""):
    trajectory = {
        "id": f"{model}/{level}/{seed}",
        "env": f"BabyAIText/{level}-v0",
        "task": level,
        "seed": seed,
        "instruction": f"do {seed}",
        "steps": [{**step, "observation": step["observation"] + text} for step in steps()[:count]],
        "score": 0.5,
        "success": success,
        "source": model,
    }
    row = {"model": model, "level": level, "seed": seed, "success": success, "steps": count, "lost": False}
    return {**row, "trajectory": trajectory}


def evaluation(run_dir, *rows):
    append_jsonl(run_dir / "evaluation" / "episodes.jsonl", rows)


def test_recorded_then_marked_then_evaluation_episodes(tmp_path):
    write_run(tmp_path)
    models = [played(model, "PickupDist", seed) for model in ("none", "value/0") for seed in (11, 10)]
    evaluation(tmp_path, *models)
    found = collect(read_run(tmp_path))
    texts, episodes = found.value["texts"], found.value["episodes"]
    assert [e["kind"] for e in episodes] == ["switch", "expert", "expert", *["evaluation"] * 4]
    assert found.told == () and found.count == 7
    assert [(e["who"], e["seed"]) for e in episodes[3:]] == [
        ("none", 10),
        ("value/0", 10),
        ("none", 11),
        ("value/0", 11),
    ]
    assert len(set(texts)) == len(texts), "each text once"
    own, marked, bare, *_ = episodes
    assert own["budget"] == 4 and [s["by"] for s in own["steps"]].count("deepthink") == 2
    assert marked["marks"]["value"] == {
        "3": [*place(texts, "critical", "value 0.2 before, 0.6 after")],
        "4": [*place(texts, "critical action")],
    }
    assert bare["marks"] == {}, "annotated ones first"
    first = marked["steps"][0]
    assert (texts[first["o"]], texts[first["t"]], texts[first["a"]]) == tuple(
        steps()[0][k] for k in ("observation", "thought", "action")
    )
    assert "r" not in first and marked["steps"][6]["r"] == 0.82


def place(texts, *wanted):
    return [texts.index(text) for text in wanted]


def test_what_does_not_fit_is_left_out_and_counted(tmp_path):
    write_run(tmp_path)
    rows = [played("none", level, seed, text=f" {seed}{level}") for seed in range(50) for level in ("A", "B")]
    evaluation(tmp_path, *rows[::-1])
    small = collect(read_run(tmp_path), most_bytes=20_000)
    own = [(e["env"], e["seed"]) for e in small.value["episodes"] if e["kind"] == "evaluation"]
    assert 10 < len(own) < 90 and len(json.dumps(small.value, separators=(",", ":"))) < 21_000
    seeds = {level: sorted(s for env, s in own if level in env) for level in ("/A", "/B")}
    assert abs(len(seeds["/A"]) - len(seeds["/B"])) <= 1, "every level as far"
    assert all(found == list(range(len(found))) for found in seeds.values()), "the first seeds of each"
    assert small.told == (
        f"{100 - len(own)} of 100 episodes of the evaluation are left out, so that the page stays small: it has the "
        "first of every model and level. All are in evaluation/episodes.jsonl.",
    )
    assert small.told[0] not in check(build_report(tmp_path).read_text())[1], "all fit into a page"


def test_endless_episodes_and_texts_are_cut(tmp_path):
    write_run(tmp_path)
    long = played("none", "PickupDist", 3, text="w" * 5000)
    long["trajectory"]["steps"] = long["trajectory"]["steps"] * 40
    evaluation(tmp_path, long)
    found = collect(read_run(tmp_path)).value
    last = found["episodes"][-1]
    assert last["n"] == 280 and len(last["steps"]) == 200
    assert max(len(text) for text in found["texts"]) < 2100 and any("more characters" in t for t in found["texts"])


def test_values_of_the_switch_and_other_recorded_episodes_are_there(tmp_path):
    write_run(tmp_path)
    path = tmp_path / "switch" / "replay.json"
    one = read_json(path)
    told = [{**step, "values": [0.25, None if i > 4 else 0.512345]} for i, step in enumerate(one["steps"])]
    write_json(path, {**one, "steps": told, "others": [{**one, "success": False, "seed": 8}]})
    first, second, *_ = collect(read_run(tmp_path)).value["episodes"]
    assert first["steps"][0]["q"] == [0.25, 0.5123] and first["steps"][6]["q"] == [0.25, None]
    assert second["seed"] == 8 and second["ok"] is False and "q" not in second["steps"][0]
    write_json(path, {**one, "steps": [{**one["steps"][0], "values": [0.1]}]})
    with pytest.raises(InputError) as caught:
        build_report(tmp_path)
    assert caught.value.path == path and caught.value.field == "steps.0.values"


def test_who_acted_with_which_probability_is_there_where_a_trajectory_says_so(tmp_path):
    write_run(tmp_path)
    path = tmp_path / "trajectories" / "expert.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["steps"][2] |= {"actor": "deepthink", "probability": 0.75}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    marked = collect(read_run(tmp_path)).value["episodes"][1]
    assert (marked["steps"][2]["by"], marked["steps"][2]["p"]) == ("deepthink", 0.75) and "by" not in marked["steps"][1]


def test_no_text_ends_the_data_or_becomes_markup(tmp_path):
    write_run(tmp_path, text=HOSTILE + "\u2028</script><img src=x>")
    evaluation(tmp_path, played("none", HOSTILE, 1, text="<!--<script>"))
    page = build_report(tmp_path).read_text()
    checker, _ = check(page)
    assert "img" not in checker.tags and page.count("</script") == 2
    texts = json.loads(checker.scripts[0])["texts"]
    assert any(HOSTILE + "\u2028</script><img src=x>" in text for text in texts), "and it is all there"


def test_a_page_without_an_episode_has_no_script(tmp_path):
    write_run(tmp_path)
    for gone in ("trajectories/expert.jsonl", "switch/replay.json"):
        (tmp_path / gone).unlink()
    page = build_report(tmp_path).read_text()
    assert "<script" not in page and "script-src 'none'" in check(page)[0].policy


def test_the_lists_stand_in_the_page_for_those_who_run_no_script(tmp_path):
    write_run(tmp_path)
    page = build_report(tmp_path).read_text()
    static = page[page.index('id="static-episodes"') :]
    assert static.count('<ol class="steps">') == 2 and re.search(r'<section id="viewer" hidden=""', page)


def test_an_episode_that_ended_before_its_first_step_and_a_bad_one(tmp_path):
    write_run(tmp_path)
    evaluation(tmp_path, {**played("none", "A", 0), "trajectory": None}, played("none", "A", 1))
    found = collect(read_run(tmp_path))
    assert [e["seed"] for e in found.value["episodes"] if e["kind"] == "evaluation"] == [1]
    evaluation(tmp_path, {**played("none", "A", 2), "trajectory": {"id": "x"}})
    with pytest.raises(InputError) as caught:
        collect(read_run(tmp_path))
    assert caught.value.field == "trajectory.env"
