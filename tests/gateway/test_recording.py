"""Sessions as trajectories, and how they ended."""

import json

import sqlalchemy as sa
from gateway_parts import ask, chat, gateway, recipe, said

from atlas_ray.data.records import read_trajectories
from atlas_ray.gateway.recording import Recorder
from atlas_ray.gateway.tables import sessions
from atlas_ray.rundir.files import read_json
from tests.gateway.test_sessions import Talks


def play(port, headers=()):
    """Two steps; the session's id."""
    status, told, text = ask(port, chat("find the ball"), headers)
    assert status == 200
    ask(port, chat("find the ball", said(text), "a wall"), headers)
    return told["x-atlas-session"]


def post(port, session, value):
    return ask(port, value, path=f"/v1/atlas/sessions/{session}/outcome")[0]


def test_sessions_are_written_as_trajectories_with_who_acted_and_what_it_took(upstream, tmp_path):
    record = tmp_path / "record"
    made = recipe(upstream.url, switch="random", share=0.5, record=str(record), budget={"calls": 1})
    with gateway(made, tmp_path) as (port, _):
        ids = [play(port), play(port, {"X-Session-Id": "mine"})]
        assert post(port, ids[0], {"score": 0.25, "success": False}) == 204
        assert post(port, "mine", {"success": True}) == 204
        assert post(port, "nobody's", {"success": True}) == 404
        for bad in ({"score": 2}, {"score": True}, {"success": 1}, {"won": True}):
            assert post(port, ids[0], bad) == 400
        assert ask(port, {"score": 2}, path="/v1/atlas/sessions/x/outcome")[2].endswith(b'"code": "invalid_value"}}')
    found = [read_trajectories(record / "trajectories" / f"{i}.jsonl")[0] for i in ids]
    assert [(t.id, t.score, t.success, t.instruction) for t in found] == [
        (ids[0], 0.25, False, "find the ball"),
        (ids[1], None, True, "find the ball"),
    ]
    for trajectory in found:
        one, two = trajectory.steps
        assert (one.observation, one.action) == ("find the ball", "to find the ball I say yes")
        assert (two.observation, two.action) == ("a wall", "to a wall I say yes")
        assert one.actor in ("quick", "deepthink") and one.probability == 0.5
        assert two.probability == (1.0 if one.actor == "deepthink" else 0.5), "no call was left"
        usage = read_json(record / "usage" / f"{trajectory.id}.json")
        assert [s["model"] for s in usage["steps"]] == [
            {"quick": "small"}.get(s.actor, "large") for s in trajectory.steps
        ]
        assert all(s["prompt_tokens"] > 0 and s["seconds"] > 0 for s in usage["steps"])
        assert usage["spent"]["calls"] == sum(s.actor == "deepthink" for s in trajectory.steps)


def test_content_stays_out_where_the_recipe_says_so(upstream, tmp_path):
    made = recipe(upstream.url, record=str(tmp_path / "record"), record_content=False)
    with gateway(made, tmp_path) as (port, _):
        session = play(port)
    written = [path.read_text() for path in (tmp_path / "record").rglob("*.json*")]
    assert len(written) == 2 and not any("ball" in text or "wall" in text for text in written)
    (trajectory,) = read_trajectories(tmp_path / "record" / "trajectories" / f"{session}.jsonl")
    assert [(s.observation, s.action, s.actor) for s in trajectory.steps] == [("", "", "deepthink")] * 2


def test_tool_calls_are_actions(upstream, tmp_path):
    from gateway_parts import answer_of

    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": 3}'}}
    upstream.script = lambda body: answer_of(body, {"role": "assistant", "content": "hm", "tool_calls": [call]}, 3)
    made = recipe(upstream.url, record=str(tmp_path / "record"))
    with gateway(made, tmp_path) as (port, _):
        for stream in (False, True):
            ask(port, chat("go", stream=stream))
    for path in (tmp_path / "record" / "trajectories").iterdir():
        assert json.loads(path.read_text())["steps"][0]["action"] == 'hm\nlook({"at": 3})'


def fill(store, number):
    """Sessions that have been written down."""
    spent = {f"{prefix}_{name}": 0 for prefix in ("base", "spent") for name in ("calls", "tokens", "usd")}
    about = {"key": "local", "goal": "", "created": 1.0, "touched": 2.0, "recorded": 2.0, "steps": 3, **spent}
    with store.transaction() as tx:
        for _ in range(number):
            had = tx.row(sa.select(sa.func.count()).select_from(sessions))[0]
            tx.put(sessions, id=f"{had:032}", **about)


def test_only_sessions_that_went_on_are_read(tmp_path):
    """Counts what SQLite does: each row that it looks at is some instructions of its machine."""
    talks = Talks(tmp_path, record=str(tmp_path / "record"))
    recorder, counts = Recorder(talks.admission.settings, talks.store), []
    for more in (10, 300):
        fill(talks.store, more)
        recorder.write()
        own, done = talks.store._engine.raw_connection(), []
        own.driver_connection.set_progress_handler(lambda done=done: done.append(1), 1)
        own.close()
        talks.turn(f"go {more}")
        assert recorder.write() == 1 and recorder.write() == 0
        counts.append(len(done))
    assert counts[1] < counts[0] + 50, "one of 310 sessions costs as much as one of 10"


def test_a_store_from_before_an_index_or_a_table_gets_it(tmp_path):
    def indices(store):
        with store.transaction() as tx:
            return {row.name for row in tx.rows(sa.text("SELECT name FROM sqlite_master WHERE type = 'index'"))}

    talks = Talks(tmp_path)
    whole = indices(talks.store)
    talks.turn("go", text="a")
    with talks.store.transaction() as tx:
        for name in ("ix_sessions_unrecorded", "ix_steps_same"):
            tx.do(sa.text(f"DROP INDEX {name}"))
        tx.do(sa.text("DROP TABLE shadows"))
    assert len(indices(talks.store)) == len(whole) - 3, "the table has one of its own"
    talks.store.close()
    again = Talks(tmp_path, record=str(tmp_path / "record"))
    assert indices(again.store) == whole and again.turn("go", "a", "on").step == 1
    assert Recorder(again.admission.settings, again.store).write() == 1
    again.store.close()
