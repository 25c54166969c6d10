"""Folders of files in the neighbours' formats, and what an import of many records holds in memory."""

import json
import random
import subprocess
import sys

import pytest
from exchange_records import BUY, ODD, annotation, broken, record, refused, three_steps, write

from atlas_ray import pipeline
from atlas_ray.data.exchange import (
    export_agenttraj,
    export_messages,
    export_run,
    import_agenttraj,
    import_annotations,
    import_file,
    import_messages,
)
from atlas_ray.data.exchange.reading import read_records
from atlas_ray.recipe.loading import Recipe
from atlas_ray.trajectory import read_annotations, read_trajectories, write_trajectories


def expert(run):
    return run / "trajectories" / "expert.jsonl"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "AgentTraj-L"
    made.mkdir()
    return made


def by_recipe(path, run):
    """Import and select as a recipe does."""
    select = {"selectors": ["random"], "fraction": 0.3}
    made = Recipe.model_validate({"name": "x", "collect": {"file": str(path)}, "select": select})
    pipeline.run(made, run, ("collect", "select"))


# --- a folder ---


def test_a_folder_is_its_files_one_after_another(folder, tmp_path):
    write(folder / "b.json", record("Action:look", BUY, last="", acknowledgement="Yes"), record(item_id="sciworld_3"))
    write(folder / "a.jsonl", record(item_id="maze_1"))
    export_messages(folder / "c.jsonl", [three_steps(id="m")])
    write_trajectories(folder / "d.jsonl", [three_steps(id="own")])
    (folder / "README.md").write_text("not read")
    (folder / ".hidden.json").write_text("not read")
    (folder / "inner.json").mkdir()
    assert import_file(folder, tmp_path / "run") == 5
    alone = []
    for name in ("a.jsonl", "b.json", "c.jsonl"):
        import_file(folder / name, tmp_path / name)
        alone += read_trajectories(expert(tmp_path / name))
    assert read_trajectories(expert(tmp_path / "run")) == [*alone, three_steps(id="own")]


def test_equal_ids_are_numbered_across_files(folder, tmp_path):
    write(folder / "a.json", record(BUY, BUY, losses=[True, False]), record(BUY, losses=[True]))
    write(folder / "b.jsonl", *(record(BUY, BUY, losses=[False, True], item_id=i) for i in ("webshop_6", "b_1")))
    export_messages(folder / "c.jsonl", [three_steps(id="b_1")], [annotation("b_1", 2, selector="imported")])
    import_file(folder, tmp_path / "run")
    items = read_trajectories(expert(tmp_path / "run"))
    assert [t.id for t in items] == ["webshop_6", "webshop_6#2", "webshop_6#3", "b_1", "b_1#2"]
    marks = read_annotations(tmp_path / "run" / "annotations" / "imported.jsonl", items)
    assert [(a.trajectory_id, a.critical) for a in marks] == [
        ("webshop_6", (0,)),
        ("webshop_6#2", (0,)),
        ("webshop_6#3", (1,)),
        ("b_1", (1,)),
        ("b_1#2", (2,)),
    ]
    write_trajectories(folder / "d.jsonl", [three_steps(id="b_1")])
    assert refused(import_file, folder, tmp_path / "again").path == folder / "d.jsonl", "it has no flags"
    for name in ("a.json", "b.jsonl", "c.jsonl"):
        (folder / name).unlink()
    write_trajectories(folder / "e.jsonl", [three_steps(id="b_1")])
    import_file(folder, tmp_path / "again")
    assert [t.id for t in read_trajectories(expert(tmp_path / "again"))] == ["b_1", "b_1#2"]


def test_flags_of_a_folder_count_together(folder, tmp_path):
    bare = record(BUY, BUY, item_id="b_1")
    for turn in bare["conversations"]:
        del turn["loss"]
    write(folder / "a.json", record(BUY, BUY, item_id="a_1"))
    write(folder / "b.json", record(item_id="b_0"), bare)
    import_file(folder, tmp_path / "run")
    assert not (tmp_path / "run" / "annotations").exists(), "all steps or no flags, none marked in part"
    write(folder / "c.json", record(BUY, BUY, item_id="c_1", losses=[True, False]))
    error = refused(import_file, folder, tmp_path / "other")
    assert (error.path, error.field, error.message) == (
        folder / "b.json",
        "[1].conversations",
        "no turn has a flag",
    )
    (folder / "b.json").unlink()
    import_file(folder, tmp_path / "other")
    marks = read_annotations(tmp_path / "other" / "annotations" / "imported.jsonl")
    assert [a.critical for a in marks] == [(0, 1), (0,)]
    export_agenttraj(folder / "d.json", [three_steps()], [annotation(three_steps().id, 0)])
    assert "several selectors" in refused(import_file, folder, tmp_path / "third").message


@pytest.mark.parametrize(
    ("name", "text", "line", "field"),
    [
        ("c.jsonl", json.dumps(record(item_id="c_1")) + '\n{"item_id": ', 2, ""),
        ("c.json", '[\n{"a": 1},\n{]', 3, ""),
        ("c.json", json.dumps([{"game": "chess"}]), None, "[0].conversations"),
        ("c.jsonl", json.dumps(record()) + "\n" + json.dumps({"game": "chess"}), 2, "conversations"),
        ("c.json", "", None, ""),
        (
            "c.json",
            json.dumps([record(), broken(["conversations", 5, "value"], "?")]),
            None,
            "[1].conversations[5].value",
        ),
        ("c.jsonl", '{"steps": []}\n', 1, "id"),
    ],
)
def test_a_wrong_file_of_a_folder_is_named_and_leaves_nothing(folder, tmp_path, name, text, line, field):
    write(folder / "a.json", *ODD)
    (folder / name).write_text(text)
    error = refused(import_file, folder, tmp_path / "run")
    assert (error.path, error.line, error.field or "") == (folder / name, line, field)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_a_folder_without_files_is_refused(folder, tmp_path):
    (folder / "a.txt").write_text("[]")
    error = refused(import_file, folder, tmp_path / "run")
    assert error.path == folder and ".jsonl" in error.message
    assert not (tmp_path / "run").exists()


# --- word by word ---


def test_a_folder_comes_back_word_by_word(folder, tmp_path):
    files = {"a.json": ODD[:2], "b.jsonl": [ODD[2], ODD[0]]}
    for name, rows in files.items():
        write(folder / name, *rows)
    run = tmp_path / "run"
    by_recipe(folder, run)
    for file in folder.iterdir():
        file.unlink()
    export_run(run, "random", "agenttraj", None, tmp_path / "out.json")
    back, read = json.loads((tmp_path / "out.json").read_text()), [r for rows in files.values() for r in rows]
    assert [[t["value"] for t in r["conversations"]] for r in back] == [
        [t["value"] for t in r["conversations"]] for r in read
    ]
    marks = {a.trajectory_id: a.critical for a in read_annotations(run / "annotations" / "random.jsonl")}
    assert {a.trajectory_id: a.critical for a in import_annotations(tmp_path / "out.json")} == marks
    assert import_agenttraj(tmp_path / "out.json") == read_trajectories(expert(run))
    assert (run / "imported-words.jsonl").is_file()
    assert sorted(p.name for p in run.glob("trajectories/*")) == ["expert.jsonl", "source.json"]


def test_what_we_would_write_alike_needs_no_words(folder, tmp_path):
    export_agenttraj(folder / "a.json", [three_steps()])
    import_file(folder, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").rglob("*.jsonl")] == ["expert.jsonl"]
    export_run(tmp_path / "run", None, "agenttraj", None, tmp_path / "b.json")
    assert (tmp_path / "b.json").read_bytes() == (folder / "a.json").read_bytes()


def test_words_do_not_undo_a_change_of_the_trajectories(tmp_path):
    run, last = tmp_path / "run", "The end."
    strange = "thought: so\nACTION: look"
    import_file(write(tmp_path / "a.json", record(BUY, strange, BUY, last=last, acknowledgement="Yes")), run)
    (item,) = read_trajectories(expert(run))
    for steps, ends in (
        (item.steps, [strange, "page 2", BUY, last]),
        (item.steps[:1], [BUY]),
        (item.steps[:2], ["Thought:\nso\n\nAction:\nlook"]),
        ((*item.steps, item.steps[0]), ["page 0", BUY]),
        ((item.steps[0], item.steps[1].model_copy(update={"action": "go"}), item.steps[2]), ["page 2", BUY]),
    ):
        write_trajectories(expert(run), [item.model_copy(update={"steps": steps})])
        export_run(run, None, "agenttraj", None, tmp_path / "b.json")
        turns = [t["value"] for t in json.loads((tmp_path / "b.json").read_text())[0]["conversations"]]
        assert turns[-len(ends) :] == ends
        assert [(s.thought, s.action) for s in import_agenttraj(tmp_path / "b.json")[0].steps] == [
            (s.thought, s.action) for s in steps
        ]


# --- arrays ---


def test_a_key_that_stands_twice_is_told_of_its_own_record(tmp_path):
    good = json.dumps(record())
    bad = '{"a": [{"b": 1, "b": 2}], "steps": []}', '{"c": 1, "c": 1}'
    (tmp_path / "a.json").write_text(f"[{good},\n{bad[0]}, {good}, {bad[1]}]")
    dropped = []
    assert len(list(read_records(tmp_path / "a.json", "skip", dropped))) == 2
    assert [(e.field, e.message.split()[3]) for e in dropped] == [("[1]", "'b'"), ("[3]", "'c'")]


@pytest.mark.parametrize(
    "text", ["[{},]", "[{}", "[{} {}]", "[{}]]", "[{}],", "\u00a0[{}]", "[", '[{}, {"a": ]', "[{},"]
)
def test_a_broken_array_gives_no_record_and_the_place(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    given, found = read_records(tmp_path / "a.json", "skip", []), []
    error = refused(lambda: found.extend(given))
    assert error.message == f"not JSON at column {caught.value.colno}: {caught.value.msg}" and not found


def test_a_file_that_is_not_utf8_at_its_end_gives_no_record(tmp_path):
    good = json.dumps(record()).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(good + b'{"\xff"}')
    dropped = []
    error = refused(import_agenttraj, tmp_path / "a.jsonl", on_error="skip", dropped=dropped)
    assert (error.line, error.message, dropped) == (2, f"not UTF-8 at byte {len(good) + 2}", [])


# --- many records ---

MANY = """
import resource, sys
from pathlib import Path
from atlas_ray.data.exchange import export_run, import_file

for name in sys.argv[1:]:
    run = Path(name + "-run")
    import_file(name, run)
    export_run(run, None, "agenttraj", None, name + "-out.json")
    export_run(run, None, "messages", None, name + "-out.jsonl")
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10))
"""


def many(path, count):
    """An array of records of four steps whose observations have 12,000 characters."""
    text = " ".join(random.Random(0).choices(["door", "box", "key", "the", "red", "go", "12"], k=60_000))
    with path.open("w") as file:
        for number in range(count):
            made = record(*[BUY] * 4, item_id=f"house_{number}", acknowledgement="Yes.", last="You did it.")
            for turn in range(2, 10, 2):
                made["conversations"][turn]["value"] = text[number * turn :][:12_000]
            file.write((",\n" if number else "[") + json.dumps(made))
        file.write("]\n")


def test_many_records_are_held_at_most_twice(tmp_path):
    """24 MB of JSON: as bytes and text, as text and records, or as records and trajectories."""
    few, lots = tmp_path / "few.json", tmp_path / "lots.json"
    many(few, 20)
    many(lots, 500)
    # a process inherits the peak of the one that starts it, so a small one stands between
    between = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
    command = [sys.executable, "-c", between, sys.executable, "-c", MANY, str(few), str(lots)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    first, second = (int(line.split()[1]) for line in told if line.startswith("peak"))
    assert (second - first) * 2**20 < 3.5 * (lots.stat().st_size - few.stat().st_size)
    assert len(import_messages(tmp_path / "lots.json-out.jsonl")) == 500
