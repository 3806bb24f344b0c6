"""Memory: available memory, and allocator settings of training processes."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

# Names and numbers of glibc's mallopt(3); 32 MiB is the most that it takes for a threshold of single blocks
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20))


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, up to 1 GiB, for what it needs next.

    An update allocates and frees the same few arrays thousands of times. Where they lie at the end of the
    heap, glibc gives them back to the system each time, and each time the system hands out every page anew,
    which takes longer than the arithmetic on them. Other C libraries are left as they are.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in _SETTINGS:
            mallopt(setting, value)


def available_memory() -> int | None:
    """Bytes that new processes can take here; None where the system does not tell."""
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
