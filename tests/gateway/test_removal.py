"""Old sessions are removed, open ones never, and what a key has spent on a day stays."""

import sqlalchemy as sa

from atlas_ray.gateway import removal
from atlas_ray.gateway.admission import Admitted
from atlas_ray.gateway.recording import Recorder
from atlas_ray.gateway.tables import reservations, sessions, steps
from tests.gateway.test_sessions import Talks

DAY = 86_400


def rows(talks):
    with talks.store.transaction() as tx:
        return [len(tx.rows(sa.select(table))) for table in (sessions, steps, reservations)]


def test_what_nobody_has_touched_for_long_is_removed(tmp_path):
    talks = Talks(tmp_path, keep_days=30, budget={"calls": 5})
    old = talks.turn("go", text="a")
    talks.turn("go", "a", "on", text="b")
    talks.now += 20 * DAY
    young = talks.turn("stay", text="c")
    talks.now += 11 * DAY
    assert talks.admission.remove_sessions() == 1 and rows(talks) == [1, 1, 1]
    assert talks.ask("stay", "c", "on").session == young.session
    begun = talks.ask("go", "a", "on", "b", "more")
    assert begun.session != old.session and begun.step == 0 and begun.left.calls == 4, "a session of its own"
    assert Talks(tmp_path).admission.remove_sessions() == 0, "without keep_days nothing is"


def test_a_session_with_an_open_reservation_stays_until_its_gateway_is_gone(tmp_path):
    talks = Talks(tmp_path, keep_days=1)
    held = talks.ask("go")
    assert isinstance(held, Admitted)
    talks.now += 9 * DAY
    other = Talks(tmp_path, keep_days=1)
    other.now = talks.now
    assert talks.admission.remove_sessions() == other.admission.remove_sessions() == 0
    talks.answer(held, "a")
    assert rows(talks) == [1, 1, 1]
    talks.ask("again")
    talks.store.close()  # killed
    other.now += 9 * DAY
    assert other.admission.remove_sessions() == 2 and rows(other) == [0, 0, 0]


def test_the_total_of_a_day_stays(tmp_path):
    talks = Talks(tmp_path, keep_days=0.001, daily={"calls": 2})
    for name in ("a", "b"):
        assert talks.turn(name).number == 1
    talks.now += 600
    assert talks.admission.remove_sessions() == 2
    assert talks.turn("c").number == 0, "the day's calls are spent"
    assert talks.admission.daily.calls == 2


def test_what_is_to_be_recorded_stays_until_it_is(tmp_path):
    talks = Talks(tmp_path, keep_days=1, record=str(tmp_path / "kept"))
    talks.turn("go")
    talks.now += 9 * DAY
    assert talks.admission.remove_sessions() == 0
    assert Recorder(talks.admission.settings, talks.store).write() == 1
    assert talks.admission.remove_sessions() == 1


def test_many_are_removed_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(removal, "AT_A_TIME", 3)
    monkeypatch.setattr(removal, "_OLD", removal._OLD.limit(3))
    talks = Talks(tmp_path, keep_days=1)
    for number in range(8):
        talks.turn(f"go {number}")
    held = talks.ask("open")
    talks.now += 9 * DAY
    assert talks.admission.remove_sessions() == 8 and rows(talks) == [1, 1, 1]
    assert talks.answer(held, "a") is not None
