"""The shape of a user's file: what holds records is read, and what does not is named, with what to do."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from exchange_records import BUY, broken, record, refused, three_steps, write

from atlas_ray.data.exchange import check_file, import_agenttraj, import_file, import_messages
from atlas_ray.trajectory import read_trajectories, write_trajectories

CHAT = [{"role": "user", "content": "o"}, {"role": "assistant", "content": "Action: x"}]
TWO = [record(item_id="a_1"), record(BUY, BUY, item_id="b_2")]
IDS = ["a_1", "b_2"]


def pretty(*rows):
    return "\n".join(json.dumps(row, indent=1) for row in rows)


def lines(*rows, end="\n"):
    return "".join(json.dumps(row) + end for row in rows)


SHAPES = {
    "an array": json.dumps(TWO),
    "a pretty array": json.dumps(TWO, indent=2),
    "lines": lines(*TWO),
    "lines without the last end": lines(*TWO)[:-1],
    "blank lines": "\n \n" + lines(*TWO, end="\n\n"),
    "pretty records one after another": pretty(*TWO),
    "records glued together": "".join(map(json.dumps, TWO)),
    "records on one line": " ".join(map(json.dumps, TWO)),
    "CRLF": lines(*TWO, end="\r\n"),
    "CR alone": lines(*TWO, end="\r"),
    "a pretty array in CRLF": json.dumps(TWO, indent=2).replace("\n", "\r\n"),
    "pretty records in CR": pretty(*TWO).replace("\n", "\r"),
    "rows under a key": json.dumps({"data": TWO, "version": 1}),
    "pretty rows under a key": json.dumps({"version": [1], "train": TWO}, indent=2),
    "rows as a viewer shows them": json.dumps({"rows": [{"row_idx": n, "row": r} for n, r in enumerate(TWO)]}),
    "lines of such rows": lines(*({"row_idx": n, "row": r} for n, r in enumerate(TWO))),
}


@pytest.mark.parametrize("form", ["plain", "with a mark", "gzip"])
@pytest.mark.parametrize("shape", SHAPES)
def test_records_are_found_in_a_file_of_any_shape(tmp_path, shape, form):
    data = SHAPES[shape].encode()
    data = b"\xef\xbb\xbf" + data if form == "with a mark" else gzip.compress(data) if form == "gzip" else data
    path = tmp_path / "a.json"
    path.write_bytes(data)
    assert [(t.id, len(t.steps)) for t in import_agenttraj(path)] == [("a_1", 1), ("b_2", 2)]
    assert check_file(path) == "AgentTraj-L"


@pytest.mark.parametrize(
    "text", [json.dumps(TWO[0]), pretty(TWO[0]), json.dumps([TWO[0]]), json.dumps({"items": [TWO[0]]})]
)
def test_a_file_may_hold_one_record(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert [t.id for t in import_agenttraj(tmp_path / "a.json")] == ["a_1"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (lines(CHAT, CHAT), 2),
        (json.dumps([CHAT, CHAT]), 2),
        (json.dumps(CHAT), 1),
        (json.dumps(CHAT, indent=1), 1),
        (json.dumps({"data": [CHAT, CHAT]}), 2),
    ],
)
def test_a_conversation_may_be_a_bare_list_of_turns(tmp_path, text, count):
    (tmp_path / "a.json").write_text(text)
    assert [len(t.steps) for t in import_messages(tmp_path / "a.json")] == [1] * count
    assert import_file(tmp_path / "a.json", tmp_path / "run") == count
    turns = (
        text.replace("role", "from").replace("content", "value").replace("user", "human").replace("assistant", "gpt")
    )
    (tmp_path / "b.json").write_text(turns)
    assert [t.id for t in import_agenttraj(tmp_path / "b.json")] == [f"conversations_{n}" for n in range(count)]


def test_parquet_is_read(tmp_path):
    rows = [*TWO, record(BUY, last="end", item_id="c_3")]
    for row in rows:
        row["success"], row["seen"] = row["item_id"] == "a_1", float("nan")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = import_agenttraj(tmp_path / "a.parquet")
    assert [(t.id, len(t.steps), t.success) for t in read] == [("a_1", 1, True), ("b_2", 2, False), ("c_3", 1, False)]
    assert check_file(tmp_path / "a.parquet") == "AgentTraj-L"
    texts = [{**row, "conversations": json.dumps(row["conversations"])} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts), tmp_path / "b.parquet")
    assert import_agenttraj(tmp_path / "b.parquet") == read, "turns as a text of JSON"
    chats = [{"messages": [*CHAT, {"role": "user", "content": None}][:n]} for n in (2, 3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), tmp_path / "c.parquet")
    error = refused(import_messages, tmp_path / "c.parquet")
    assert error.field == "[1].messages[2].content" and "is null" in error.message


def test_our_own_trajectories_may_be_packed_too(tmp_path):
    items = [three_steps(id="a", success=None, score=None), three_steps(id="b")]
    write_trajectories(tmp_path / "a.jsonl", items)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([t.row() for t in items]), tmp_path / "c.parquet")
    (tmp_path / "d.json").write_text(json.dumps([t.row() for t in items], indent=1))
    for name in ("b.jsonl.gz", "c.parquet", "d.json"):
        assert check_file(tmp_path / name) == "trajectories"
        import_file(tmp_path / name, tmp_path / f"run-{name}")
        assert read_trajectories(tmp_path / f"run-{name}" / "trajectories" / "expert.jsonl") == items
    (tmp_path / "d.json").write_text(json.dumps([t.row() for t in (*items, items[0])]))
    error = refused(import_file, tmp_path / "d.json", tmp_path / "run")
    assert error.field == "[2].id" and "stands already in [0]" in error.message


def test_a_folder_may_hold_all_of_them(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines(record(item_id="a_1")).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record(item_id="b_1")]), folder / "b.parquet")
    write(folder / "c.json", record(item_id="c_1"))
    (folder / "d.ndjson").write_text(lines({"messages": CHAT}))
    assert import_file(folder, tmp_path / "run") == 4
    found = read_trajectories(tmp_path / "run" / "trajectories" / "expert.jsonl")
    assert [t.id for t in found] == ["a_1", "b_1", "c_1", "messages_0"]
    assert check_file(folder) == "AgentTraj-L, messages"


PACKED = gzip.compress(lines(*TWO).encode())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x28\xb5\x2f\xfd rest", "zstd file that cannot be unpacked"),
        (b"\xfd7zXZ\x00 rest", "compressed by xz"),
        (b"BZh91AY", "compressed by bzip2"),
        (b"PK\x03\x04 rest", "a zip archive"),
        (PACKED[: len(PACKED) // 2], "gzip file that cannot be unpacked"),
        (b"PAR1 and no more", "parquet file that cannot be read"),
        (lines(*TWO).encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (json.dumps({"train": TWO, "test": TWO}).encode(), "records under train and test: keep one"),
        (json.dumps({"rows": []}).encode(), "the record has rows"),
        (json.dumps({"a_1": TWO[0], "b_2": TWO[1]}).encode(), "the record has a_1, b_2"),
        (json.dumps({"instruction": "a", "trajectory": []}).encode(), "the record has instruction, trajectory"),
        (json.dumps([TWO, TWO]).encode(), "this is a list"),
        (json.dumps({**TWO[0], "messages": CHAT}).encode(), "has conversations and messages"),
        (b'{"messages": [], "messages": []}', "has the key 'messages' twice"),
        (b'[{"conversations": [{"from": "human", "from": "gpt"}]}]', "has the key 'from' twice"),
        (b"Thought: x\nAction: y\n", "not JSON at column 1"),
    ],
)
def test_what_is_no_file_of_records_is_called_what_it_is(tmp_path, data, says):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    for call in (import_agenttraj, check_file, lambda p: import_file(p, tmp_path / "run")):
        error = refused(call, path)
        assert says in error.message and error.path == path
        assert "\n" not in str(error)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_packed_file_that_is_damaged_at_its_end_gives_nothing(tmp_path):
    (tmp_path / "a.json").write_bytes(PACKED[:-8] + b"12345678")
    assert "gzip file that cannot be unpacked" in refused(import_file, tmp_path / "a.json", tmp_path / "run").message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "\n \n", "[]", "[\n]"])
def test_an_empty_file_holds_no_record(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    for call in (import_agenttraj, import_messages, check_file, lambda p: import_file(p, tmp_path / "run")):
        assert "holds no record" in refused(call, tmp_path / "a.json").message


def test_line_numbers_are_those_of_the_file(tmp_path):
    bad = broken(["conversations", 3, "value"], "?")
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "a.jsonl").write_bytes(lines(TWO[0], TWO[1], bad, end=end).encode())
        assert refused(import_agenttraj, tmp_path / "a.jsonl").line == 3
    text = pretty(TWO[0], bad)
    (tmp_path / "a.jsonl").write_text(text)
    error = refused(import_agenttraj, tmp_path / "a.jsonl")
    assert (error.line, error.field) == (len(pretty(TWO[0]).splitlines()) + 1, "conversations[3].value")
    (tmp_path / "a.jsonl").write_text(json.dumps({"data": {"rows": 1}, "items": [TWO[0], bad]}))
    assert refused(import_agenttraj, tmp_path / "a.jsonl").field == "items[1].conversations[3].value"


def test_a_bad_line_among_good_ones_is_left_out_wherever_it_stands(tmp_path):
    good = json.dumps(TWO[0])
    for bad in ('{"item_id": "a_1"', '{"item_id": }', "[1, 2]", "{", '"x"', json.dumps({"a": 1}), '{"a": 1, "a": 2}'):
        for line, text in ((1, f"{bad}\n{good}\n{good}\n"), (2, f"{good}\n{bad}\n{good}\n")):
            (tmp_path / "a.jsonl").write_text(text)
            dropped = []
            read = import_agenttraj(tmp_path / "a.jsonl", on_error="skip", dropped=dropped)
            assert [t.id for t in read] == ["a_1", "a_1#2"] and len(dropped) == 1
            assert refused(import_agenttraj, tmp_path / "a.jsonl").line == dropped[0].line == line


def test_a_check_looks_at_the_first_record_only(tmp_path):
    path = write(tmp_path / "a.jsonl", TWO[0], broken(["conversations", 3, "value"], "?"))
    assert check_file(path) == "AgentTraj-L"
    path = write(tmp_path / "b.jsonl", broken(["conversations", 3, "value"], "?"), TWO[0])
    assert refused(check_file, path).field == "conversations[3].value"
    assert check_file(path, on_bad="skip") == "AgentTraj-L"
    assert refused(check_file, tmp_path / "none.json").message == "no such file"
