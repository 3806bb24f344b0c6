"""Atomic writes, locks, and checks of files."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import IO

from srl.errors import UserError

#: The random suffix that tempfile.mkstemp adds to the names of temporary files.
RANDOM = r"\.[a-z0-9_]{8}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically.

    :return: A context that yields a temporary path in the same folder, which is locked. At the end of the
        context its content is flushed to disk and moved to ``path``; on an exception nothing changes.
    :raises UserError: If ``path`` is a link, a folder or a device: srl replaces only regular files.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path} is {kind_of(path)}, and srl writes a file there. Move it away.")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes files that only their owner can read
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)  # a failing write does not name the file
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        # File names may contain undecodable bytes
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    :raises OSError: If it cannot be read, or is a pipe or a device, which could block.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def plain_files(folder: Path) -> dict[str, os.stat_result]:
    """The regular files in a folder by name; empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            states = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except OSError:
        return {}
    return {name: status for name, status in states.items() if S_ISREG(status.st_mode)}


def kind_of(path: Path) -> str:
    """Describe a path that is in the way of a file or folder of srl."""
    mode = path.lstat().st_mode
    if S_ISLNK(mode):
        return "a link"
    if S_ISDIR(mode):
        return "a folder"
    return "a file" if S_ISREG(mode) else "not a regular file"


def is_locked(file: Path) -> bool:
    """Whether another process has locked a file, if that is visible here; nothing is written."""
    try:
        # Opening a pipe would wait
        opened = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(opened)
    return False


def acquire(lock: IO[str]) -> bool:
    """Lock a file for this process until it is closed; return whether that succeeded."""
    # `is_locked` of another process holds the lock for an instant
    for _ in range(10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def check_writable(path: Path) -> None:
    """Check that a folder is writable or can be created.

    :raises UserError: If it is a file, is below a file, or is not writable.
    """
    try:
        nearest_existing = path
        while not nearest_existing.exists():
            nearest_existing = nearest_existing.parent
        if not nearest_existing.is_dir():
            raise UserError(f"{nearest_existing} is a file, and a folder is needed. Name another with --out.")
        # Permissions are not enough: the file system may be mounted read-only
        with tempfile.TemporaryFile(dir=nearest_existing):
            pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}. Name another folder with --out."
        ) from None
