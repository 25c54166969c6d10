"""What is kept of a run for the pages, and that their tables are what the files say."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import POLICIES
from swept_arm_runs import ARMS, SHARE, name_of, write_one_run, write_sweep

from atlas_ray.data.rounds import write_rounds
from atlas_ray.errors import InputError
from atlas_ray.rundir.files import read_json, write_json
from atlas_ray.sweep.table import refresh
from tests.report.test_rounds import rounds

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "evidence"


@pytest.fixture(scope="module")
def scripts():
    """The two scripts, as modules."""
    made = {}
    for name in ("tables", "keep"):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        made[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made[name])
    yield made
    for name in made:
        del sys.modules[name]


@pytest.fixture
def kept(tmp_path):
    """A finished sweep as it is kept, in a directory of evidence."""
    write_sweep(tmp_path / "run")
    refresh(tmp_path / "run")
    write_json(tmp_path / "kept" / "swept" / "sweep.json", read_json(tmp_path / "run" / "sweep.json"))
    about = {"command": "atlas-ray sweep swept", "commit": "0123456789abcdef", "date": "2026-01-02"}
    about |= {"machine": "two cores, no GPU", "trials": {"done": 14, "unfinished": 0, "failed": 0}}
    write_json(tmp_path / "kept" / "swept" / "about.json", about)
    return tmp_path / "kept"


def block(asked, body=""):
    return f"<!-- evidence: {asked} -->\n{body}\n<!-- end -->\n"


def made(scripts, kept, asked):
    """The lines of a block."""
    text = scripts["tables"].written(Path("page.md"), block(asked), kept)
    return text.splitlines()[1:-1]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def minus(number):
    return f"{round(number, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")


def test_the_curve_has_the_scores_of_the_trials(scripts, kept):
    rows = {(name_of(t["values"]), t["values"][SHARE]): t for t in read_json(kept / "swept" / "sweep.json")["trials"]}
    for split, score, ends in (("", "success", "ci95"), (" held-out", "held_out", "held_out_ci95")):
        head, _, untuned, *lines = made(scripts, kept, f"swept curve{split}")
        assert cells(head) == ["trained on", "habit_share = 0", "habit_share = 1"] and cells(untuned)[0] == "untuned"
        assert [cells(line)[0] for line in lines] == [name_of({"finetune.arms": arm}) for arm in ARMS]
        for line in lines:
            name, *told = cells(line)
            trials = [rows[name, share] for share in (0.0, 1.0)]
            assert told == [f"{t[score]:.2f} [{t[ends][0]:.2f}, {t[ends][1]:.2f}]" for t in trials]


def test_comparisons_and_forgetting_are_those_of_the_file(scripts, kept):
    rows = read_json(kept / "swept" / "sweep.json")["comparisons"]
    lines = made(scripts, kept, "swept compare all")
    own = [r for r in rows if r["question"] == "all" and r["split"] == "held_in"]
    assert len(lines) == 2 + len(own) == 6
    for line, row in zip(lines[2:], own, strict=True):
        told = f"{minus(row['mean'])} [{minus(row['low'])}, {minus(row['high'])}]"
        told = f"**{told}**" if row["low"] > 0 or row["high"] < 0 else told
        assert cells(line)[:4] == [f"habit_share = {row['values'][SHARE]:g}", row["first"], "all", told]
    text = "\n".join(made(scripts, kept, "swept arms"))
    lost = next(r for r in rows if (r["question"], r["first"], r["values"][SHARE]) == ("forgetting", "value", 1.0))
    line = next(line for line in text.split("habit_share = 1:")[1].splitlines() if line.startswith("| value |"))
    assert minus(lost["mean"]) in cells(line)[-1] and cells(line)[1:3] == ["30%", "3,000"]


def test_a_sentence_has_its_number_on_its_line(scripts, kept):
    row = next(r for r in read_json(kept / "swept" / "sweep.json")["trials"] if name_of(r["values"]) == "value")
    text = "It has <!-- evidence: swept score value 0 -->0.99<!-- end -->, which is\n"
    text += "<!-- evidence: swept less all value 0 --><!-- end --> of all.\n"
    said = scripts["tables"].written(Path("page.md"), text, kept)
    assert f"-->{row['success']:.2f} [" in said and said.count("\n") == 2
    assert re.search(r"value 0 -->[−+]0\.\d\d \[.*\]<!-- end --> of all", said)
    assert made(scripts, kept, "swept about") == [
        "`atlas-ray sweep swept` at 012345678, 2026-01-02, two cores, no GPU: 14 of 14 trials."
    ]
    assert made(scripts, kept, "swept answers non-critical") == [
        "- *Do they teach more than steps that are not critical?* At habit_share = 0 and 1 value teaches more."
    ]
    assert len(made(scripts, kept, "swept answers")) == 7


def test_a_check_fails_on_a_number_that_was_edited_and_writing_mends_it(scripts, kept, tmp_path, capsys):
    page, tables = tmp_path / "page.md", scripts["tables"]
    page.write_text(f"Text.\n\n{block('swept curve')}\nMore.\n")
    assert tables.main(["--check"], [page], kept) == 1
    assert tables.main([], [page], kept) == 0 and tables.main(["--check"], [page], kept) == 0
    right = page.read_text()
    assert right.startswith("Text.\n") and right.endswith("\nMore.\n")
    page.write_text(right.replace("0.6", "0.7", 1))
    capsys.readouterr()
    assert tables.main(["--check"], [page], kept) == 1
    assert "page.md has numbers that are not those of docs/evidence" in capsys.readouterr().err
    assert "0.7" in page.read_text(), "a check writes nothing"
    assert tables.main([], [page], kept) == 0 and page.read_text() == right


def test_what_was_not_kept_yet_is_said_to_be_so(scripts, kept):
    assert made(scripts, kept, "later curve") == ["*Not measured yet.*"]
    path = kept / "swept" / "sweep.json"
    made_of = read_json(path)
    write_json(path, {**made_of, "comparisons": [c for c in made_of["comparisons"] if c["question"] == "all"]})
    lines = made(scripts, kept, "swept compare random all")
    assert lines[:2] == ["*Not measured yet.*", ""] and len(lines) == 2 + 6, "of a sweep that is only begun"
    plain = "no block here: `<!-- evidence: NAME TABLE -->` and `<!-- end -->`\n"
    assert scripts["tables"].written(Path("page.md"), plain, kept) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (block("swept table"), "page.md:1: no table 'table'"),
        ("\n" + block("swept rounds"), "page.md:2: rounds: .*has no rounds.json"),
        (block("swept compare who"), "no question 'who'; there are random, random-cap"),
        (block("swept curve everywhere"), "'everywhere' is none of held-in"),
        (block("swept score value 7"), "was not swept at 7"),
        ("<!-- evidence: swept curve -->\n", "has no <!-- end -->"),
    ],
)
def test_a_block_that_cannot_be_is_named(scripts, kept, text, message):
    with pytest.raises(InputError, match=message):
        scripts["tables"].written(Path("page.md"), text, kept)


def test_the_pages_of_this_checkout_have_the_numbers_that_are_kept(scripts):
    assert scripts["tables"].main(["--check"]) == 0


def test_rounds_and_policies_have_tables(scripts, tmp_path):
    write_rounds(tmp_path / "two" / "rounds.json", rounds())
    _, _, deep, first, second = (cells(line) for line in made(scripts, tmp_path, "two rounds"))
    assert deep[1:5] == ["DEEPTHINK alone", "0.64 [0.59, 0.69]", "12.00", "2,000"]
    assert first[:4] == ["0", "londi(c=0.05)", "0.60 [0.55, 0.65]", "4.00"] and first[-2:] == ["–", "–"]
    less_success, fewer = "+0.00 [\N{MINUS SIGN}0.10, +0.10]", [f"\N{MINUS SIGN}{n}.00" for n in (2, 3, 1)]
    assert second[0] == "1, kept" and second[1] == "always-quick" and second[5] == "0.61 [0.56, 0.66]"
    assert second[-2:] == [less_success, "**{} [{}, {}]**".format(*fewer)]
    *_, calls, everything, deepthink = (cells(line) for line in made(scripts, tmp_path, "two round-arms"))
    assert calls[1:] == ["calls", "0.61 [0.56, 0.66]", "–", "500", "39,000", "31%", "120"]
    assert everything[3] == "**+0.10 [+0.05, +0.20]**" and deepthink[3] == less_success and deepthink[4] == "499"
    said = made(scripts, tmp_path, "two answers")
    assert len(said) == 2 and said[0].startswith("- *Does the small model learn what it had to ask for?* Yes: alone")
    write_json(tmp_path / "two" / "results.json", {"londi": {"policies": POLICIES}})
    lines = made(scripts, tmp_path, "two policies")
    assert len(lines) == 2 + len(POLICIES) and cells(lines[2])[:3] == ["always-quick", "0.41 [0.36, 0.46]", "0.00"]


# -- keeping


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit, made long before any run."""
    root = tmp_path / "repository"
    (root / "atlas_ray").mkdir(parents=True)
    (root / "atlas_ray" / "a.py").write_text("a = 1\n")
    commit(root, "2020-01-01T00:00:00Z")
    return root


def commit(root, date):
    given = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"]
    environment = {**os.environ, "GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date}
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run(["git", *given, *words], cwd=root, check=True, env=environment)
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True)
    return told.stdout.strip()


def keep(scripts, run_dir, checkout, *more):
    words = [str(run_dir), "mine", "--command", "atlas-ray sweep mine", "--machine", "two cores, no GPU"]
    return scripts["keep"].main([*words, "--out", str(checkout.parent / "kept"), *more], checkout)


def test_a_sweep_is_kept_with_where_it_is_from_and_without_this_machines_paths(scripts, checkout, tmp_path):
    trials = write_sweep(tmp_path / "run")
    trials[3].end("failed", 1.0, why="no file /home/me/runs/model.bin, see runs/x/log and https://x.org/a")
    assert keep(scripts, tmp_path / "run", checkout) == 0
    about = read_json(tmp_path / "kept" / "mine" / "about.json")
    assert re.fullmatch("[0-9a-f]{40}", about.pop("commit")) and re.fullmatch(r"20\d\d-\d\d-\d\d", about.pop("date"))
    assert about == {
        "command": "atlas-ray sweep mine",
        "machine": "two cores, no GPU",
        "trials": {"done": 13, "unfinished": 0, "failed": 1},
    }
    made = read_json(tmp_path / "kept" / "mine" / "sweep.json")
    assert made["trials"][3]["why"] == "no file …/model.bin, see runs/x/log and https://x.org/a"
    assert made["comparisons"] == read_json(tmp_path / "run" / "sweep.json")["comparisons"]
    assert str(tmp_path) not in json.dumps(made)


def test_an_unfinished_sweep_is_kept_only_when_told_to_and_says_how_many_trials_are_missing(
    scripts, checkout, tmp_path, capsys
):
    write_sweep(tmp_path / "run", unfinished={1, 2})
    assert keep(scripts, tmp_path / "run", checkout) == 2
    assert "2 trials are unfinished" in capsys.readouterr().err and not (tmp_path / "kept").exists()
    assert keep(scripts, tmp_path / "run", checkout, "--partial") == 0
    assert made(scripts, tmp_path / "kept", "mine about")[0].endswith("12 of 14 trials, 2 unfinished.")


def test_a_changed_tree_and_a_commit_that_is_younger_than_the_run_are_refused(scripts, checkout, tmp_path, capsys):
    write_sweep(tmp_path / "run")
    (checkout / "notes.txt").write_text("of no run")
    (checkout / "atlas_ray" / "b.py").write_text("b = 1\n")
    assert keep(scripts, tmp_path / "run", checkout) == 2
    assert "?? atlas_ray/b.py" in capsys.readouterr().err
    old = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True, text=True)
    new = commit(checkout, "2022-01-01T00:00:00Z")
    os.utime(tmp_path / "run" / "recipe.resolved.json", (1_609_459_200, 1_609_459_200))  # of 2021
    assert keep(scripts, tmp_path / "run", checkout) == 2
    assert f"was begun before {new[:9]} was made" in capsys.readouterr().err
    assert keep(scripts, tmp_path / "run", checkout, "--commit", "0" * 40) == 2
    assert "is no commit that this one comes from" in capsys.readouterr().err
    assert keep(scripts, tmp_path / "run", checkout, "--commit", old.stdout.strip()) == 0
    assert read_json(tmp_path / "kept" / "mine" / "about.json")["commit"] == old.stdout.strip()


def test_of_one_run_the_comparisons_are_kept_too(scripts, tmp_path):
    write_one_run(tmp_path / "one", 1.0)
    found = scripts["keep"].outcome_of(tmp_path / "one")
    write_sweep(tmp_path / "run")
    refresh(tmp_path / "run")
    of_sweep = [r for r in read_json(tmp_path / "run" / "sweep.json")["comparisons"] if r["values"] == {SHARE: 1.0}]
    assert [(r["first"], r["second"], r["split"], r["mean"]) for r in found["comparisons.json"]] == [
        (r["first"], r["second"], r["split"], r["mean"]) for r in of_sweep
    ]
    for name, value in found.items():
        write_json(tmp_path / "kept" / "one" / name, value)
    lines = made(scripts, tmp_path / "kept", "one curve")
    assert cells(lines[0]) == ["trained on", "success"] and len(lines) == 2 + 1 + len(ARMS)
    assert scripts["keep"].main([str(tmp_path / "no"), "x", "--command", "a", "--machine", "b"]) == 2
