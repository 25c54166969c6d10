"""What a container, or an affinity mask, leaves of this machine."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def read_number(*names: str) -> int | None:
    """The number in the first of these files of the control group that exists; None for 'max' too."""
    for path in (CGROUP_ROOT / name for name in names):
        if path.is_file():
            text = path.read_text(encoding="ascii").split()[0]
            return int(text) if text.lstrip("-").isdigit() else None
    return None


def cgroup_cpu_quota() -> float | None:
    """CPUs that the control group allows (version 2, then 1); None without a limit."""
    both = CGROUP_ROOT / "cpu.max"
    if both.is_file():
        share, period = both.read_text(encoding="ascii").split()
        return None if share == "max" else int(share) / int(period)
    share_1, period_1 = read_number("cpu/cpu.cfs_quota_us"), read_number("cpu/cpu.cfs_period_us")
    return share_1 / period_1 if share_1 and period_1 and share_1 > 0 else None


def visible_cpus() -> int:
    """CPUs that the kernel lets this process run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cpus() -> int:
    """CPUs that this process may use, at least 1."""
    return max(1, min(visible_cpus(), int(cgroup_cpu_quota() or visible_cpus())))


def memory_limit() -> int | None:
    """Bytes that a control group allows."""
    limit = read_number("memory.max", "memory/memory.limit_in_bytes")
    return limit if limit and limit < 1 << 60 else None  # version 1 says "none" by a huge number
