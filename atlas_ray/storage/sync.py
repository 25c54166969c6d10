"""Sync of a run directory with its copy on storage while a run goes on, for one driver at a time.

A driver holds a lease, which it renews by heartbeats. Files that say that something is complete are pushed after
everything that was there when they were found, so that the storage holds a run that can go on at any moment. Training
states travel as one archive each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import AtlasError, InputError, StorageError
from ..recipe.loading import Recipe
from ..rundir.files import RunLog, read_json, write_json
from ..rundir.layout import RunLayout
from ..rundir.progress import say
from .object_store import Storage
from .snapshot import Fingerprint, SnapshotEntry, is_archive, snapshot, whole_lines

LEASE = ".driver.json"
_RECIPE = str(RunLayout().recipe)
PUSH_SECONDS, HEARTBEAT_SECONDS = 30.0, 10.0
"""Seconds between two pushes, and between two heartbeats of a driver."""
_MISSED_HEARTBEATS = 2.5  # without which a driver is taken for dead
_STALE_SECONDS = 600.0  # seconds; clocks of two machines do not differ by more
_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before another try
_LEASE_READS = 3
_INTERRUPT = signal.SIGUSR2  # not SIGINT: a shell lets what it starts in the background ignore that one
_LARGE_BYTES = 8 << 20  # bytes; a file that grows is pushed again when it is an eighth larger


class RunSync:
    """Pushes a run directory to its storage and fetches it, as the only driver that does; :func:`synced` makes one."""

    def __init__(self, place: str, run_dir: Path) -> None:
        self.storage, self.run_dir, self.log = Storage(place, run_dir.resolve().name), run_dir, RunLog(run_dir)
        if self.storage.local == run_dir.resolve():
            raise InputError(
                f"{place}: is where the run directory lies already", field="storage", code="storage_unusable"
            )
        self.id = uuid.uuid4().hex
        self.begun = False
        self.failures = 0
        self._heartbeats = 0
        self._writer: str | None = None  # who pushed last
        self._taken_by: str | None = None
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._previous_handler: Any = signal.SIG_DFL
        self._stop_pushing, self._stop_heartbeat = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._push_thread = threading.Thread(target=self._push_loop, daemon=True)
        self._heartbeat_thread = threading.Thread(target=self._heartbeat_loop, daemon=True)
        self._state = RunLayout(run_dir).sync_state
        state = read_json(self._state) if self._state.exists() else {}
        self._pushed: dict[str, Fingerprint] = state.get("sent", {})
        self._holders: list[str] = state.get("holders", [])
        self._halfway: bool = state.get("halfway", False)

    # -- one driver at a time

    def acquire(self, check: Callable[[dict[str, Any], str], None]) -> None:
        """Become the driver of the run.

        Raises:
            InputError: the storage cannot be used, another driver is at work, or ``check`` refuses the run's recipe.
        """
        try:
            lease = self._read_lease()
            if lease and not lease["ended"]:
                self._refuse_living(lease)
            recipe = self.storage.read(_RECIPE)
            if recipe:
                check(json.loads(recipe), self.storage.where)
                self._writer = lease["writer"] if lease else "somebody"
            self._write_lease()
        except StorageError as error:
            raise InputError(str(error), field="storage", code="storage_unusable") from None
        if self._in_main_thread:
            self._previous_handler = signal.signal(_INTERRUPT, signal.default_int_handler)
        self._heartbeat_thread.start()

    def _read_lease(self) -> dict[str, Any] | None:
        """The lease on the storage, if there is one.

        Raises:
            StorageError: it cannot be read, or is no JSON.
        """
        for _ in range(_LEASE_READS):
            content = self.storage.read(LEASE)
            with suppress(ValueError):  # what is replaced while it is read may come cut
                return json.loads(content) if content else None
        raise StorageError(f"{self.storage.where}/{LEASE}: is not JSON")

    def _write_lease(self, ended: bool = False) -> None:
        self._heartbeats += 1
        about = {"holder": self.id, "host": socket.gethostname(), "pid": os.getpid()}
        about |= {"writer": self._writer, "beat": self._heartbeats, "at": time.time(), "ended": ended}
        self.storage.write(LEASE, json.dumps(about).encode())

    def _refuse_living(self, lease: dict[str, Any]) -> None:
        """Wait until it is clear that the driver of a lease is dead.

        Raises:
            InputError: it is not.
        """
        if time.time() - lease["at"] > _STALE_SECONDS:
            return
        who = f"process {lease['pid']} on {lease['host']}"
        wait = _MISSED_HEARTBEATS * HEARTBEAT_SECONDS
        say(f"storage: {who} has not said that it ended; waiting {wait:g} s for a sign of life")
        until = time.monotonic() + wait
        while time.monotonic() < until:
            time.sleep(min(1.0, HEARTBEAT_SECONDS / 4))
            now = self._read_lease()
            if now and (now["holder"], now["beat"]) != (lease["holder"], lease["beat"]):
                raise InputError(
                    f"{self.storage.where}: {who} is at work on this run", field="storage", code="run_in_use"
                )

    def _heartbeat_loop(self) -> None:
        while not self._stop_heartbeat.wait(HEARTBEAT_SECONDS):
            with suppress(StorageError):
                lease = self._read_lease()
                if lease and lease["holder"] != self.id:
                    self._taken_by = f"process {lease['pid']} on {lease['host']}"
                    self._stop_pushing.set()
                    if self._in_main_thread:  # (a real signal: what the main thread waits for is to end too)
                        signal.pthread_kill(threading.main_thread().ident or 0, _INTERRUPT)
                    return
                else:
                    self._write_lease()

    # -- from there to here

    def fetch(self) -> None:
        """Bring the run here, unless what is here is what this machine pushed itself, or more.

        Raises:
            InputError: the run went on elsewhere, and here too; or the storage fails.
        """
        if self._writer is None or (self._writer in self._holders and not self._halfway):
            return
        entries = list(self.run_dir.iterdir()) if self.run_dir.is_dir() else []
        if entries and not self._halfway and self._changed():
            raise InputError(
                f"the run on {self.storage.where} went on elsewhere, and this directory holds work of its own: "
                "name another --out, or delete the one that is not wanted",
                self.run_dir,
                code="runs_differ",
            )
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self._pushed, self._holders, self._halfway = {}, [], True
        self._save_state()
        try:
            count = self._fetch_all()
        except StorageError as error:
            raise InputError(str(error), field="storage", code="storage_unusable") from None
        self._holders, self._halfway = [self._writer], False
        self._pushed = {entry.name: entry.fingerprint for entry in snapshot(self.run_dir)}
        self._save_state()
        self.log.event("storage", "fetched", files=count)
        say(f"storage: fetched {count} files from {self.storage.where}")

    def _fetch_all(self) -> int:
        names = [name for name in self.storage.listing() if name != LEASE]
        for name in names:
            target = self.run_dir / name
            if not is_archive(name):
                self.storage.get(name, target)
            elif not self.storage.get_directory(name, target.with_suffix("")):
                self.log.event("storage", "dropped", name=name, why="it is not whole")
        return len(names)

    # -- from here to there

    def _changed(self) -> list[SnapshotEntry]:
        return [entry for entry in snapshot(self.run_dir) if self._pushed.get(entry.name) != entry.fingerprint]

    def begin(self) -> None:
        """From now on the run is this driver's, and what is new is pushed every now and then."""
        self.begun = True
        self._holders = [*([self._writer] if self._writer else []), self.id]
        self._save_state()
        self._writer = self.id
        with suppress(StorageError):  # (the next heartbeat says it)
            self._write_lease()
        self._push_thread.start()

    def push(self, everything: bool = True) -> None:
        """Push what is new or changed, and remove there what was removed here.

        Args:
            everything: also large files that grew little.

        Raises:
            StorageError: it failed; another push goes on from there.
        """
        if self._taken_by:
            raise StorageError(f"{self.storage.where}: {self._taken_by} has taken the run over")
        with self._lock, ExitStack() as opened:
            before, deciding = dict(self._pushed), []
            # removed there is only what was gone before this looked for what took its place
            there = {entry.name for entry in snapshot(self.run_dir)}
            for entry in self._changed():
                if entry.is_commit_marker:
                    with suppress(FileNotFoundError):
                        deciding.append((entry, opened.enter_context(entry.path.open("rb"))))
            complete = True
            # in the order of writing, but a state after the rows of its steps (or they are missing if this ends between
            # them), and nothing that decides before what was there when it was found
            for entry in sorted(self._changed(), key=lambda e: (e.is_directory, e.fingerprint[1])):
                if not entry.is_commit_marker and (everything or self._grew(entry)):
                    complete = self._send(entry) and complete
            for entry, file in sorted(deciding, key=lambda each: (each[0].name != _RECIPE, each[0].fingerprint[1])):
                self.storage.put(entry.name, file, os.fstat(file.fileno()).st_size)
                self._pushed[entry.name] = entry.fingerprint
            for name in [name for name in before if name not in there] if complete else ():
                self.storage.delete(name)
                del self._pushed[name]
            if self._pushed != before:
                self._save_state()

    def _grew(self, entry: SnapshotEntry) -> bool:
        before = self._pushed.get(entry.name)
        if not before or not entry.name.endswith(".jsonl"):
            return True
        return entry.fingerprint[2] < _LARGE_BYTES or entry.fingerprint[2] > before[2] * 9 // 8

    def _send(self, entry: SnapshotEntry) -> bool:
        """Push it; False where it is gone, or not whole."""
        if entry.is_directory:
            unfinished = entry.path.parent.name.endswith(".state") and not (entry.path / "state.json").exists()
            if unfinished or not self.storage.put_directory(entry.name, entry.path):
                return False
            self._pushed[entry.name] = entry.fingerprint
            return True
        with suppress(FileNotFoundError), entry.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if entry.name.endswith(".jsonl"):
                size = whole_lines(file, size)
                file.seek(0)
            self.storage.put(entry.name, file, size)
            self._pushed[entry.name] = entry.fingerprint
            return True
        return False

    def _save_state(self) -> None:
        write_json(self._state, {"holders": self._holders, "halfway": self._halfway, "sent": self._pushed})

    def _push_loop(self) -> None:
        wait = PUSH_SECONDS
        while not self._stop_pushing.wait(wait):
            wait = PUSH_SECONDS if self.try_push(everything=False) else min(2 * wait, 10 * PUSH_SECONDS)

    def try_push(self, everything: bool = True) -> bool:
        """Push; a failure is noted, and the run goes on."""
        try:
            self.push(everything)
        except OSError as error:
            self._note_failure(error)
            return False
        return True

    def _note_failure(self, error: OSError) -> None:
        if not self.failures:
            say("  storage: a push failed and will be tried again (events.jsonl says why)")
        self.failures += 1
        self.log.event(
            "storage", "push failed", failures=self.failures, code=getattr(error, "code", "failed"), why=str(error)
        )

    # -- the end

    def finish(self) -> None:
        """The last push of a run that ended well.

        Raises:
            AtlasError: it failed again and again; the run directory is whole.
        """
        self._stop_pusher()
        for wait in (*_RETRY_SECONDS, None):
            try:
                self.push()
                return
            except OSError as error:
                self._note_failure(error)
                if wait is None or self._taken_by:
                    raise AtlasError(
                        f"the run ended well, and {self.run_dir} is complete, but the last push failed: {error}",
                        code="push_failed",
                    ) from error
                time.sleep(wait)

    def give_up(self) -> None:
        """Push once what is there of a run that ends early."""
        self._stop_pusher()
        if not self._taken_by and not self.try_push():
            say(f"storage: the last push failed (events.jsonl says why); {self.run_dir} has all of it")

    def takeover_error(self) -> AtlasError | None:
        """Why this driver has to end, if it has to."""
        if self._taken_by is None:
            return None
        return AtlasError(
            f"{self._taken_by} has taken the run on {self.storage.where} over; this one has ended",
            code="run_taken_over",
        )

    def _stop_pusher(self) -> None:
        self._stop_pushing.set()
        self._push_thread.join()

    def release(self) -> None:
        """Say that this driver has ended."""
        self._stop_heartbeat.set()
        self._heartbeat_thread.join()
        if self._in_main_thread:
            signal.signal(_INTERRUPT, self._previous_handler)
        if not self._taken_by:
            with suppress(StorageError):
                self._write_lease(ended=True)


@contextmanager
def synced(recipe: Recipe, run_dir: Path, check: Callable[[dict[str, Any], str], None]) -> Iterator[RunSync | None]:
    """Tie a run directory to the storage of a recipe for as long as the block lasts; None where it has none.

    The run is fetched before the block. Call :meth:`RunSync.begin` in it when the directory is known to be this run's.

    Args:
        recipe: of the run.
        run_dir: its directory on this machine.
        check: refuses a run on the storage by its recipe and its name.

    Raises:
        InputError: the storage cannot be used, or the run on it is another one's.
        AtlasError: another driver has taken the run over, or the last push failed.
    """
    if recipe.storage is None:
        yield None
        return
    sync = RunSync(recipe.storage, run_dir)
    sync.acquire(check)
    try:
        sync.fetch()
        try:
            yield sync
        except BaseException as error:
            if sync.begun:
                sync.give_up()
            if isinstance(error, KeyboardInterrupt | SystemExit) and (taken := sync.takeover_error()):
                raise taken from None
            raise
        if sync.begun:
            sync.finish()
    finally:
        sync.release()
