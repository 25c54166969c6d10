"""A process that is killed at a write, without the process."""

from pathlib import Path

from atlas_ray.rundir import files


class Killed(BaseException):
    """The process is gone."""


def killed_at_a_write(monkeypatch):
    """How many writes there are before the next kill: a list of one number, which the test sets."""
    left = [0]

    def write(do):
        def counted(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return do(*arguments)

        return counted

    monkeypatch.setattr(files, "_append", write(files._append))
    monkeypatch.setattr(Path, "replace", write(Path.replace))
    return left
