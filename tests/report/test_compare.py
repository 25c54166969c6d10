"""Two runs side by side: paired where they played the same, silent where they did not. All numbers here are made up."""

import html
import json
import re

import pytest
from report_runs import ARMS, HOSTILE, POLICIES, arm, check, policy, write_run

from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.report import compare
from atlas_ray.report.compare import build_comparison, flat
from atlas_ray.report.page import Html
from atlas_ray.rundir.files import append_jsonl, read_json, write_json


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(compare, "svg", lambda figure, name, description: Html("<svg></svg>"))


def cells(page, first):
    (row,) = re.findall(rf'<tr><td class="text">{re.escape(first)}</td>.*?</tr>', page)
    return [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall("<td.*?>(.*?)</td>", row)]


def test_both_stand_side_by_side_and_what_differs_is_said(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    better = [arm("value", 0.9, 0.34) if row["selector"] == "value" and "anchor" not in row else row for row in ARMS]
    write_run(a)
    write_run(b, arms=better[1:], policies=[policy("always-quick", 0.1, 0.0), *POLICIES[1:]])
    path = build_comparison(a, b)
    assert path == a / "compare-b.html"
    page = path.read_text()
    checker, text = check(page)
    assert checker.tags.count("svg") == 3 and "script" not in checker.tags
    assert "Better in B is value; of all steps, random, non-critical and value+anchor0.5 it cannot be told." in text
    assert "Worse is always-quick; of " in text
    assert cells(page, "value")[1:4] == ["0.64 [0.60, 0.68]", "0.90 [0.86, 0.94]", "+0.26 [+0.20, +0.32]"]
    assert cells(page, "untuned")[1:4] == ["0.31 [0.27, 0.35]", "\N{EN DASH}", "\N{EN DASH}"]
    same = "0.84 [0.79, 0.89]"
    assert cells(page, "londi(c=0.02)")[1:6] == [same, same, "+0.00 [\N{MINUS SIGN}0.07, +0.07]", "4.20", "4.20"]
    assert "None: the two have the same recipe." in text
    assert path.read_bytes() == build_comparison(a, b).read_bytes()
    assert not (b / "report.html").exists() and not (a / "report.html").exists(), "nothing else is written"


@pytest.mark.usefixtures("undrawn")
def test_the_same_episodes_are_paired(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    hard = [i % 2 == 0 for i in range(200)]
    for root, wins in ((a, hard), (b, [w or i % 20 == 1 for i, w in enumerate(hard)])):
        write_run(root, arms=[arm("value", 0.55, 0.2, 0.1)], policies=POLICIES[:2])
        rows = [{"model": "value/0", "level": "PickupDist", "seed": i, "success": w} for i, w in enumerate(wins)]
        append_jsonl(root / "evaluation" / "episodes.jsonl", rows)
    text = check(build_comparison(a, b).read_text())[1]
    assert "Better in B is value." in text and "value: +0.05 [+0.0" in text and "200 shared episodes" in text
    rows = [{"model": "value/0", "level": "PickupDist", "seed": i + 900, "success": True} for i in range(200)]
    (b / "evaluation" / "episodes.jsonl").unlink()
    append_jsonl(b / "evaluation" / "episodes.jsonl", rows)
    text = check(build_comparison(a, b).read_text())[1]
    assert "They cannot be told apart." in text and "no shared episodes" in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("seeds", [1, 2])
def test_calls_are_compared_on_the_same_episodes(tmp_path, seeds):
    a, b = tmp_path / "a", tmp_path / "b"
    for root, fewer, trained in ((a, 0, 1), (b, 2, seeds)):
        write_run(root)
        rows = [
            {"policy": "londi(c=0.02)", "training": k, "level": "PickupLoc", "seed": i, "success": True, "lost": False}
            | {"calls": 3 + i % 5 - fewer * (i % 2)}
            for k in range(trained)
            for i in range(100)
        ]
        append_jsonl(root / "switch" / "episodes.jsonl", rows)
    page = build_comparison(a, b).read_text()
    said = cells(page, "londi(c=0.02)")[6]
    minus = "\N{MINUS SIGN}"
    assert re.fullmatch(rf"{minus}1.00 \[{minus}1.2\d, {minus}0.[78]\d\]", said), said
    assert cells(page, "londi(c=0.05)")[6] == "\N{EN DASH}"


@pytest.mark.usefixtures("undrawn")
def test_success_on_other_levels_is_not_compared(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write_run(a)
    other = [json.loads(json.dumps(row).replace("PickupDist", "Unlock")) for row in ARMS]
    write_run(b, arms=other)
    recipe = read_json(b / "recipe.resolved.json")
    recipe["switch"]["levels"] = ["GoToLocal"]
    write_json(b / "recipe.resolved.json", recipe)
    page = build_comparison(a, b).read_text()
    text = check(page)[1]
    assert "arms, as the two were scored on other levels" in text and "switch policies, as the two" in text
    assert cells(page, "value")[1:4] == ["0.64 [0.60, 0.68]", "0.64 [0.60, 0.68]", "\N{EN DASH}"]
    assert cells(page, "value")[6] != "\N{EN DASH}", "the held-out levels are the same"
    assert cells(page, "always-quick")[3] == "\N{EN DASH}"
    assert cells(page, "switch.levels")[1:] == ['["PickupLoc"]', '["GoToLocal"]']


@pytest.mark.usefixtures("undrawn")
def test_hostile_names_and_settings_stay_text(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b<script>"
    write_run(a, policies=[policy(HOSTILE, 0.5, 3.0), *POLICIES])
    write_run(b, policies=[policy(HOSTILE, 0.9, 3.0), *POLICIES])
    recipe = read_json(b / "recipe.resolved.json")
    write_json(b / "recipe.resolved.json", {**recipe, "finetune": {**recipe["finetune"], "base": HOSTILE}})
    text = check(build_comparison(a, b).read_text())[1]
    assert text.count(" ".join(HOSTILE.split())) >= 4


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_where_it_is_told(tmp_path, capsys):
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "both.html"
    write_run(a)
    write_run(b)
    assert main(["report", str(a), str(b), "--out", str(out)]) == 0
    assert out.is_file() and str(out) in capsys.readouterr().out
    assert main(["report", str(a), str(b)]) == 0 and (a / "compare-b.html").is_file()
    assert main(["report", str(a), "--out", str(out)]) == 2
    assert "out" in capsys.readouterr().err
    assert main(["report", str(a), str(tmp_path / "c")]) == 2
    assert "no such run directory" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_what_cannot_be_compared_is_named(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write_run(a)
    write_run(b)
    (b / "results.json").unlink()
    with pytest.raises(InputError, match=r"results\.json") as caught:
        build_comparison(a, b)
    assert caught.value.path == b and not (a / "compare-b.html").exists()
    write_json(b / "results.json", {"londi": {"policies": [policy("cascade2", 0.5, 1.0)]}})
    (b / "recipe.resolved.json").unlink()
    text = check(build_comparison(a, b).read_text())[1]
    assert "no arm and no policy in common" in text and "cannot be compared by its settings" in text


def test_settings_are_laid_flat():
    assert flat({"a": {"b": [1, "x"], "c": {}}, "d": None}) == {"a.b": '[1, "x"]', "a.c": "{}", "d": "null"}
