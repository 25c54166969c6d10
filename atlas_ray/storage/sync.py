"""Keeps a run directory and its copy on storage the same while a run goes on, for one driver at a time.

What decides that something is done is pushed after everything that was there when it was found, so that whatever is on
the storage at any moment is a run that can go on. Training states travel as one archive each.
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
from .snapshot import Piece, Sign, is_archive, pieces, whole_lines

LEASE = ".driver.json"
_RECIPE = str(RunLayout().recipe)
EVERY, BEAT = 30.0, 10.0
"""Seconds between two pushes, and between two signs of life of a driver."""
_WATCH = 2.5  # beats without which a driver is taken for dead
_LONG_AGO = 600.0  # seconds; clocks of two machines do not differ by more
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before another try
_INTERRUPT = signal.SIGUSR2  # not SIGINT: a shell lets what it starts in the background ignore that one
_LARGE = 8 << 20  # bytes; a file that grows is pushed again when it is an eighth larger


class Keeper:
    """The tie between a run directory and its storage; make one with :func:`stored`."""

    def __init__(self, place: str, run_dir: Path) -> None:
        self.storage, self.run_dir, self.log = Storage(place, run_dir.resolve().name), run_dir, RunLog(run_dir)
        if self.storage.local == run_dir.resolve():
            raise InputError(f"{place}: is where the run directory lies already", None, None, "storage")
        self.me = uuid.uuid4().hex
        self.begun = False
        self.failures = 0
        self._beats = 0
        self._writer: str | None = None  # who pushed last
        self._taken: str | None = None
        self._in_main = threading.current_thread() is threading.main_thread()
        self._before: Any = signal.SIG_DFL
        self._enough, self._ended = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._pusher = threading.Thread(target=self._push_on, daemon=True)
        self._beater = threading.Thread(target=self._beat, daemon=True)
        self._state = RunLayout(run_dir).sync_state
        memory = read_json(self._state) if self._state.exists() else {}
        self._sent: dict[str, Sign] = memory.get("sent", {})
        self._holders: list[str] = memory.get("holders", [])
        self._halfway: bool = memory.get("halfway", False)

    # -- one driver at a time

    def acquire(self, check: Callable[[dict[str, Any], str], None]) -> None:
        """Become the driver of the run.

        Raises:
            InputError: the storage cannot be used, another driver is at work, or ``check`` refuses the run's recipe.
        """
        try:
            lease = self._lease()
            if lease and not lease["ended"]:
                self._watch(lease)
            recipe = self.storage.read(_RECIPE)
            if recipe:
                check(json.loads(recipe), self.storage.where)
                self._writer = lease["writer"] if lease else "somebody"
            self._announce()
        except StorageError as error:
            raise InputError(str(error), None, None, "storage") from None
        if self._in_main:
            self._before = signal.signal(_INTERRUPT, signal.default_int_handler)
        self._beater.start()

    def _lease(self) -> dict[str, Any] | None:
        content = self.storage.read(LEASE)
        return json.loads(content) if content else None

    def _announce(self, ended: bool = False) -> None:
        self._beats += 1
        about = {"holder": self.me, "host": socket.gethostname(), "pid": os.getpid()}
        about |= {"writer": self._writer, "beat": self._beats, "at": time.time(), "ended": ended}
        self.storage.write(LEASE, json.dumps(about).encode())

    def _watch(self, lease: dict[str, Any]) -> None:
        """Wait until it is clear that the last driver is dead.

        Raises:
            InputError: it is not.
        """
        if time.time() - lease["at"] > _LONG_AGO:
            return
        who = f"process {lease['pid']} on {lease['host']}"
        say(f"storage: {who} has not said that it ended; waiting {_WATCH * BEAT:g} s for a sign of life")
        until = time.monotonic() + _WATCH * BEAT
        while time.monotonic() < until:
            time.sleep(min(1.0, BEAT / 4))
            now = self._lease()
            if now and (now["holder"], now["beat"]) != (lease["holder"], lease["beat"]):
                raise InputError(f"{self.storage.where}: {who} is at work on this run", None, None, "storage")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(StorageError):
                lease = self._lease()
                if lease and lease["holder"] != self.me:
                    self._taken = f"process {lease['pid']} on {lease['host']}"
                    self._enough.set()
                    if self._in_main:  # (a real signal: what the main thread waits for is to end too)
                        signal.pthread_kill(threading.main_thread().ident or 0, _INTERRUPT)
                    return
                else:
                    self._announce()

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
            )
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self._sent, self._holders, self._halfway = {}, [], True
        self._remember()
        try:
            count = self._fetch_all()
        except StorageError as error:
            raise InputError(str(error), None, None, "storage") from None
        self._holders, self._halfway = [self._writer], False
        self._sent = {piece.name: piece.sign for piece in pieces(self.run_dir)}
        self._remember()
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

    def _changed(self) -> list[Piece]:
        return [piece for piece in pieces(self.run_dir) if self._sent.get(piece.name) != piece.sign]

    def begin(self) -> None:
        """From now on the run is this driver's, and what is new is pushed every now and then."""
        self.begun = True
        self._holders = [*([self._writer] if self._writer else []), self.me]
        self._remember()
        self._writer = self.me
        with suppress(StorageError):  # (the next beat says it)
            self._announce()
        self._pusher.start()

    def push(self, all_of_it: bool = True) -> None:
        """Push what is new or changed, and remove there what was removed here.

        Args:
            all_of_it: also large files that grew little.

        Raises:
            StorageError: it failed; another push goes on from there.
        """
        if self._taken:
            raise StorageError(f"{self.storage.where}: {self._taken} has taken the run over")
        with self._lock, ExitStack() as opened:
            before, deciding = dict(self._sent), []
            # removed there is only what was gone before this looked for what took its place
            there = {piece.name for piece in pieces(self.run_dir)}
            for piece in self._changed():
                if piece.decides:
                    with suppress(FileNotFoundError):
                        deciding.append((piece, opened.enter_context(piece.path.open("rb"))))
            complete = True
            # in the order of writing, but a state after the rows of its steps (or they are missing if this ends between
            # them), and nothing that decides before what was there when it was found
            for piece in sorted(self._changed(), key=lambda p: (p.directory, p.sign[1])):
                if not piece.decides and (all_of_it or self._grew(piece)):
                    complete = self._send(piece) and complete
            for piece, file in sorted(deciding, key=lambda each: (each[0].name != _RECIPE, each[0].sign[1])):
                self.storage.put(piece.name, file, os.fstat(file.fileno()).st_size)
                self._sent[piece.name] = piece.sign
            for name in [name for name in before if name not in there] if complete else ():
                self.storage.delete(name)
                del self._sent[name]
            if self._sent != before:
                self._remember()

    def _grew(self, piece: Piece) -> bool:
        before = self._sent.get(piece.name)
        if not before or not piece.name.endswith(".jsonl"):
            return True
        return piece.sign[2] < _LARGE or piece.sign[2] > before[2] * 9 // 8

    def _send(self, piece: Piece) -> bool:
        """Push it; False where it is gone, or not whole."""
        if piece.directory:
            unfinished = piece.path.parent.name.endswith(".state") and not (piece.path / "state.json").exists()
            if unfinished or not self.storage.put_directory(piece.name, piece.path):
                return False
            self._sent[piece.name] = piece.sign
            return True
        with suppress(FileNotFoundError), piece.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if piece.name.endswith(".jsonl"):
                size = whole_lines(file, size)
                file.seek(0)
            self.storage.put(piece.name, file, size)
            self._sent[piece.name] = piece.sign
            return True
        return False

    def _remember(self) -> None:
        write_json(self._state, {"holders": self._holders, "halfway": self._halfway, "sent": self._sent})

    def _push_on(self) -> None:
        wait = EVERY
        while not self._enough.wait(wait):
            wait = EVERY if self.attempt(all_of_it=False) else min(2 * wait, 10 * EVERY)

    def attempt(self, all_of_it: bool = True) -> bool:
        """Push; a failure is noted, and the run goes on."""
        try:
            self.push(all_of_it)
        except OSError as error:
            self._failed(error)
            return False
        return True

    def _failed(self, error: OSError) -> None:
        if not self.failures:
            say("  storage: a push failed and will be tried again (events.jsonl says why)")
        self.failures += 1
        self.log.event("storage", "push failed", failures=self.failures, why=str(error))

    # -- the end

    def finish(self) -> None:
        """The last push of a run that ended well.

        Raises:
            AtlasError: it failed again and again; the run directory is whole.
        """
        self._halt()
        for wait in (*_WAITS, None):
            try:
                self.push()
                return
            except OSError as error:
                self._failed(error)
                if wait is None or self._taken:
                    raise AtlasError(
                        f"the run ended well, and {self.run_dir} is complete, but the last push failed: {error}"
                    ) from error
                time.sleep(wait)

    def give_up(self) -> None:
        """Push once what is there of a run that ends early."""
        self._halt()
        if not self._taken and not self.attempt():
            say(f"storage: the last push failed (events.jsonl says why); {self.run_dir} has all of it")

    def taken(self) -> AtlasError | None:
        """Why this driver has to end, if it has to."""
        if self._taken is None:
            return None
        return AtlasError(f"{self._taken} has taken the run on {self.storage.where} over; this one has ended")

    def _halt(self) -> None:
        self._enough.set()
        self._pusher.join()

    def release(self) -> None:
        """Say that this driver has ended."""
        self._ended.set()
        self._beater.join()
        if self._in_main:
            signal.signal(_INTERRUPT, self._before)
        if not self._taken:
            with suppress(StorageError):
                self._announce(ended=True)


@contextmanager
def stored(recipe: Recipe, run_dir: Path, check: Callable[[dict[str, Any], str], None]) -> Iterator[Keeper | None]:
    """Tie a run directory to the storage of a recipe for as long as the block lasts; None where it has none.

    The run is fetched before the block. Call :meth:`Keeper.begin` in it when the directory is known to be this run's.

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
    keeper = Keeper(recipe.storage, run_dir)
    keeper.acquire(check)
    try:
        keeper.fetch()
        try:
            yield keeper
        except BaseException as error:
            if keeper.begun:
                keeper.give_up()
            if isinstance(error, KeyboardInterrupt | SystemExit) and (taken := keeper.taken()):
                raise taken from None
            raise
        if keeper.begun:
            keeper.finish()
    finally:
        keeper.release()
