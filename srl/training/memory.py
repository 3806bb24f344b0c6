"""Memory: available memory, and allocator settings of training processes."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

# Names and numbers of glibc's mallopt(3); its maximum for a threshold of single blocks is 32 MiB
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20))


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of freed memory for later allocations.

    An update allocates and frees the same few arrays thousands of times. At the end of the heap, glibc
    returns them to the system each time, and mapping their pages again takes longer than the arithmetic on
    them. Other C libraries are not changed.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in _SETTINGS:
            mallopt(setting, value)


def available_memory() -> int | None:
    """Memory in bytes that is available to new processes; None if the system does not report it."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        limits.append(limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no limit, or no control groups
    return max(min(limits), 0) if limits else None
