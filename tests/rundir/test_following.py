"""What other processes write is seen while they work: whole lines, each once."""

import threading

import pytest

from atlas_ray.rundir.following import Tail, polling


def test_a_tail_gives_each_whole_line_once_and_begins_where_the_file_ended(tmp_path):
    path = tmp_path / "x.log"
    path.write_bytes(b"old\n")
    new, all_of_it = Tail(path), Tail(path, 0)
    with path.open("ab") as file:
        file.write(b"one\ntw")
    assert new.lines() == [b"one\n"]
    assert new.lines() == []
    with path.open("ab") as file:
        file.write(b"o\n")
    assert new.lines() == [b"two\n"]
    assert all_of_it.lines() == [b"old\n", b"one\n", b"two\n"]
    assert all_of_it.position == path.stat().st_size


def test_a_tail_waits_for_its_file_and_begins_again_with_one_that_took_its_place(tmp_path):
    path = tmp_path / "x.log"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_bytes(b"a long first line\n")
    assert tail.lines() == [b"a long first line\n"]
    path.replace(tmp_path / "x.log.1")
    path.write_bytes(b"short\n")
    assert tail.lines() == [b"short\n"]


def test_polling_looks_while_the_block_lasts_and_once_at_its_end():
    looked, twice = [], threading.Event()

    def look():
        looked.append(threading.current_thread())
        if len(looked) == 2:
            twice.set()

    with polling(look, 0.001):
        assert twice.wait(10)
    assert set(looked) != {threading.main_thread()}
    ended = len(looked)
    with pytest.raises(ValueError, match="ended"), polling(look, 100.0):
        raise ValueError("ended")
    assert len(looked) == ended + 1
