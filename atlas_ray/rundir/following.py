"""Looking again and again at what other processes write, while a block lasts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def polling(look: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call ``look`` in a thread, every so many seconds while the block lasts and once more at its end."""
    over = threading.Event()

    def run() -> None:
        last = False
        while not last:
            last = over.wait(seconds)
            look()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Tail:
    """What a file gains, in whole lines.

    Args:
        path: of the file, which need not be there yet.
        position: byte to begin at; by default where the file ends now.
    """

    def __init__(self, path: Path, position: int | None = None) -> None:
        self.path = path
        self.position = (path.stat().st_size if path.exists() else 0) if position is None else position

    def lines(self) -> list[bytes]:
        """Lines that were ended since the last call, with their ends."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            if self.path.stat().st_size < self.position:  # another file has taken the place of a full one
                self.position = 0
            file.seek(self.position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.position += len(whole)
        return whole.splitlines(keepends=True)
