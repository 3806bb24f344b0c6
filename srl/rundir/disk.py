"""Full disks."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal

from srl.errors import OutOfSpace

#: Free bytes below which a file system counts as full: small files may still fit.
_NOTHING = 100_000
#: Error numbers and messages of a full disk: the recorded reason of a run is text.
_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_FULL = tuple(map(os.strerror, _FULL_NUMBERS))


def is_full(folder: Path, reason: str = "") -> bool:
    """Whether the disk of a folder is full.

    :param folder: An existing folder. Quotas are unknown until they are exceeded.
    :param reason: Why a run failed, which may be a full disk.
    """
    usage = shutil.disk_usage(folder)
    # Some network file systems report a size of 0
    return any(words in reason for words in _FULL) or (usage.total > 0 and usage.free < _NOTHING)


def out_of_space(folder: Path) -> OutOfSpace:
    """Return the exception for a full disk."""
    free = decimal(shutil.disk_usage(folder).free)
    return OutOfSpace(
        f"the disk of {folder} is full ({free} free). Finished runs and checkpoints are kept. Free up space "
        "and rerun the command to resume."
    )


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Raise :class:`~srl.errors.OutOfSpace` in place of the system's error for a full disk.

    :param folder: The folder that is written to; it must exist when an error occurs.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_NUMBERS:
            raise
        raise out_of_space(folder) from None
