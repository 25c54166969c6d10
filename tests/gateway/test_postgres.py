"""Sessions in PostgreSQL, of two gateways at once."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from gateway_parts import ask, chat, gateway, recipe, said

from atlas_ray.gateway import recording
from atlas_ray.gateway.owners import SessionOwner
from atlas_ray.gateway.past import inherit, note_turn, past_of
from atlas_ray.gateway.requests import read_request
from atlas_ray.gateway.sessions import begin
from atlas_ray.gateway.store import Store
from atlas_ray.gateway.tables import sessions
from atlas_ray.switching.spending import NOTHING, UNLIMITED
from tests.gateway.test_recording import fill

JSON = {"content-type": "application/json"}
BINARIES = [Path(p) for p in (shutil.which("initdb"),) if p] + sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.fixture(scope="module")
def database():
    """The URL of a PostgreSQL of these tests alone, which listens on a socket in its directory."""
    pytest.importorskip("psycopg", reason="PostgreSQL: needs the extra 'postgres'")
    found = [path.resolve() for path in BINARIES if (path.resolve().parent / "pg_ctl").exists()]
    if not found:
        pytest.skip("PostgreSQL is not installed")
    # not a directory of pytest's, above which another pytest closes what is opened here to another user
    folder, binaries, user = Path(tempfile.mkdtemp(prefix="pg")), found[-1].parent, {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if subprocess.run(["id", "nobody"], capture_output=True).returncode:
            pytest.skip("PostgreSQL does not run as root, and there is nobody else")
        user = {"user": "nobody", "group": None}
        shutil.chown(folder, "nobody")

    def run(*command):
        done = subprocess.run(
            command, capture_output=True, text=True, **({"user": "nobody"} if user else {}), cwd=folder
        )
        assert done.returncode == 0, done.stdout + done.stderr

    data = folder / "data"
    run(str(binaries / "initdb"), "-D", str(data), "-U", "atlas", "-A", "trust", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    run(str(binaries / "pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-w", "-o", options, "start")
    try:
        yield f"postgresql://atlas@/postgres?host={folder}"
    finally:
        run(str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder)


def side_by_side(ports, body, headers=()):
    """Ask gateways at the same time."""
    threads = [threading.Thread(target=ask, args=[port, body(n), headers]) for n, port in enumerate(ports)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_gateways_share_sessions_and_budgets(upstream, database, tmp_path):
    made = recipe(upstream.url, store=database, budget={"calls": 10, "tokens": 8000}, daily={"calls": 15})
    with gateway(made, tmp_path) as (one, _), gateway(made, tmp_path) as (two, _):
        status, headers, text = ask(one, chat("go"))
        assert status == 200, text
        _, after, _ = ask(two, chat("go", said(text), "on"))
        assert after["x-atlas-session"] == headers["x-atlas-session"] and after["x-atlas-step"] == "1"
        assert ask(two, chat("go", said(text), "on"))[1]["x-atlas-repeated"] == "true"
        upstream.pause, before = 0.4, len(upstream.ledger)
        side_by_side([one, two, two], lambda n: chat("both"))
        assert len(upstream.ledger) == before + 1, "who asks two gateways the same is answered once"
        upstream.pause = 0
        side_by_side([(one, two)[n % 2] for n in range(24)], lambda n: chat(f"more {n}"), {"x-session-id": "all"})
    assert upstream.spent("more", "large")[0] <= 10 and upstream.spent(model="large")[0] <= 15
    assert upstream.spent("more")[1] <= 8000


def test_the_past_of_a_session_is_that_of_all_gateways(database):
    stores, asked = [Store(database), Store(database)], read_request(json.dumps(chat("go")).encode(), JSON)
    with stores[0].transaction() as tx:
        ids = [begin(tx, asked, "local", UNLIMITED, NOTHING, 0.0, "go").id for _ in range(2)]
        for step, (model, seen) in enumerate([(0, "a"), (1, "b"), (0, "a"), (0, "c")]):
            note_turn(tx, ids[0], step, model, seen)
        note_turn(tx, ids[0], 2, 1, "a")
    with stores[1].transaction() as tx:
        inherit(tx, ids[1], ids[0], 2)
        note_turn(tx, ids[1], 3, 0, "d")
        assert past_of(tx, ids[1], 4, "a") == (("a", "b", "a", "d", "a"), (), (0, 1, 1, 0))
        assert past_of(tx, ids[0], 2, "z") == (("a", "b", "z"), (), (0, 1))
    for store in stores:
        store.close()


def test_the_recorder_reads_only_sessions_that_went_on(database, tmp_path):
    store = Store(database)
    with store.transaction() as tx:
        tx.do(sa.text("DROP INDEX ix_sessions_unrecorded"))  # as in a store from before it
    store.close()
    store = Store(database)
    fill(store, 2000)
    with store.transaction() as tx:
        tx.do(sa.update(sessions).values(recorded=sessions.c.touched))
        tx.do(sa.update(sessions).where(sessions.c.id == f"{1999:032}").values(touched=sessions.c.touched + 1))
        tx.do(sa.text("ANALYZE sessions"))
        said = str(recording._CHANGED.compile(store._engine, compile_kwargs={"literal_binds": True}))
        (plan,) = tx.row(sa.text(f"EXPLAIN (ANALYZE, FORMAT JSON) {said}"))[0]
    (read,) = plan["Plan"]["Plans"]
    assert (read["Index Name"], read["Actual Rows"]) == ("ix_sessions_unrecorded", 1)
    assert "Rows Removed by Filter" not in read
    store.close()


def test_a_gateway_lives_as_long_as_its_connection(database):
    store = Store(database)
    other = SessionOwner(store._engine)

    def lives():
        with store.transaction() as tx:
            return tx.lives(other.name)

    def until(expected):
        for _ in range(200):  # the server notices in a moment
            if lives() == expected:
                return True
            time.sleep(0.05)

    with store.transaction() as tx:
        assert tx.lives(store.owner.name) and not tx.lives("0" * 32)
    assert lives()
    end = sa.select(sa.func.pg_terminate_backend(sa.column("pid"))).select_from(sa.table("pg_locks", sa.column("pid")))
    number = int(other.name[:15], 16) & 0xFFFFFFFF
    with store.transaction() as tx:  # as when the server is started anew
        tx.connection.execute(end.where(sa.column("objid") == number))
    assert until(False)
    other.renew()
    assert lives()
    other.close()
    assert until(False)
    store.close()
