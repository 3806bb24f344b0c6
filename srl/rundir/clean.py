"""Find and remove files that interrupted runs and sweeps have left behind."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from srl.errors import UserError
from srl.rundir.checkpoints import checkpoint_path, read_arrays
from srl.rundir.directory import RunDirectory
from srl.rundir.files import RANDOM, is_locked, plain_files
from srl.rundir.find import find_runs, walk
from srl.rundir.names import CHECKPOINT, CHECKPOINTS, LOCK, LOG, SPEC, STATUS, TEMPORARY, TEMPORARY_CHECKPOINT
from srl.rundir.plan import PLAN, read_plan

#: Checkpoints that an unfinished run needs: the last, and the one before if that is damaged.
_KEPT = 2
#: Seconds of age below which an unfinished file stays even if no process has locked it: file systems without
#: locks exist. More than that the wall clock, which may jump, does not decide.
YOUNG = 60.0

#: The plan, and what reports write beside it.
_TEMPORARY_OF_A_SWEEP = re.compile(
    rf"\.(?:{re.escape(PLAN)}|table[\w.-]*\.(?:md|csv|tex)|statistics\.json|report\.html"
    rf"|evaluations\.(?:json|parquet)|\.srl-report\.json){RANDOM}"
)
_UNFINISHED = "not written to its end by a process that was killed"


@dataclass(frozen=True)
class Garbage:
    """A file that can go."""

    path: Path
    n_bytes: int
    #: Why nothing needs it, in one line.
    why: str


def find_garbage(root: Path) -> list[Garbage]:
    """Files at or below a folder that nothing needs any more; nothing is written.

    Of finished runs: their checkpoints, and an empty output. Of others that nothing trains now: checkpoints
    before the last two. Of both, and of sweeps none of whose runs is trained now: files that a killed process
    had not finished writing, a minute after their last change. Folders that hold neither, runs whose spec
    cannot be read, and whatever is a link or lies behind one, are left alone.

    :param root: A run's folder, a sweep's, or one above those.
    :return: In the order of their paths.
    :raises UserError: If there is no such folder.
    """
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}. Name the folder of a run or a sweep.")
    folders = {Path(folder) for folder, _, files in walk(root) if SPEC in files or PLAN in files}
    return sorted((item for folder in folders for item in _garbage_of(folder)), key=lambda item: item.path)


def remove(garbage: Sequence[Garbage]) -> tuple[int, list[str]]:
    """Remove files, and folders of checkpoints that are empty then.

    Each is looked at once more just before: what has become of use, because its run is trained again, stays.

    :param garbage: What :func:`find_garbage` has found.
    :return: The bytes that were freed, and lines on what could not be removed.
    """
    freed, problems = 0, []
    for item in garbage:
        try:
            if not os.path.lexists(item.path):
                continue
            now = next((found for found in _garbage_near(item.path) if found.path == item.path), None)
            if now is None:
                problems.append(f"{shown(item.path)}: left, since it is in use now or has changed")
                continue
            item.path.unlink()
            freed += now.n_bytes
            if item.path.parent.name == CHECKPOINTS and not any(item.path.parent.iterdir()):
                item.path.parent.rmdir()
        except OSError as error:
            problems.append(f"{shown(item.path)}: {error.strerror or error}")
    return freed, problems


def _garbage_near(path: Path) -> Iterator[Garbage]:
    """What can go now in the folder of the run or sweep that a file belongs to."""
    yield from _garbage_of(path.parent)
    if path.parent.name == CHECKPOINTS:
        yield from _garbage_of(path.parent.parent)


def _garbage_of(folder: Path) -> list[Garbage]:
    """What can go in a folder itself, that of a run, of a sweep, or of both."""
    return [*_garbage_of_run(RunDirectory(folder)), *_garbage_of_sweep(folder)]


def _garbage_of_run(run: RunDirectory) -> Iterator[Garbage]:
    files = plain_files(run.path)
    # A link leads elsewhere, and a pipe would keep whoever reads it waiting
    if any(name not in files and os.path.lexists(run.path / name) for name in (SPEC, STATUS, LOCK)):
        return
    try:
        # Others may call a file so, too, and a newer srl may need what this one does not
        found = run.read_spec_leniently()
        if found is None or found.unknown:
            return
    except UserError:
        return
    if _in_progress(run):
        return
    kept = {} if (run.path / CHECKPOINTS).is_symlink() else plain_files(run.path / CHECKPOINTS)
    yield from _temporary(run.path, files, TEMPORARY)
    yield from _temporary(run.path / CHECKPOINTS, kept, TEMPORARY_CHECKPOINT)
    checkpoints = {name: status for name, status in kept.items() if CHECKPOINT.fullmatch(name)}
    output = files.get(LOG)
    empty = output is not None and output.st_size == 0
    # To see whether a run is whole takes reading it
    if not empty and not checkpoints:
        return
    if _finished(run):
        if empty:
            yield Garbage(run.path / LOG, 0, "the empty output of a finished run")
        why = "a checkpoint of a finished run"
    else:
        latest = sorted(checkpoints, key=lambda name: int(name.partition(".")[0]), reverse=True)
        checkpoints = {name: checkpoints[name] for name in latest[_KEPT:]}
        if not checkpoints or not all(_can_be_read(run.path, name) for name in latest[:_KEPT]):
            return
        why = f"a checkpoint before the last {_KEPT}"
    for name, status in checkpoints.items():
        yield Garbage(run.path / CHECKPOINTS / name, status.st_size, why)


def _garbage_of_sweep(folder: Path) -> Iterator[Garbage]:
    # Most folders have none, and to see whether one of many runs is in progress takes a while
    files = plain_files(folder)
    found = list(_temporary(folder, files, _TEMPORARY_OF_A_SWEEP))
    try:
        if not found or PLAN not in files or not read_plan(folder):
            return
    except UserError:
        return
    if not any(_in_progress(run) for run in find_runs(folder)):
        yield from found


def _temporary(folder: Path, files: dict[str, os.stat_result], pattern: re.Pattern[str]) -> Iterator[Garbage]:
    now = time.time()
    for name, status in files.items():
        if pattern.fullmatch(name) and status.st_mtime < now - YOUNG and not is_locked(folder / name):
            yield Garbage(folder / name, status.st_size, _UNFINISHED)


def _in_progress(run: RunDirectory) -> bool:
    """Whether a process may be training a run now, on this machine or on another.

    The lock of a process on another machine may not be visible here, and nothing but its next heartbeat tells
    whether it is alive.
    """
    lock = run.path / LOCK
    if run.in_progress or (os.path.lexists(lock) and not os.access(lock, os.R_OK)):
        return True
    status = run.read_status()
    return status is not None and status.state == "running" and status.host != socket.gethostname()


def _finished(run: RunDirectory) -> bool:
    """Whether a run is done and whole; one that is damaged since may resume from its checkpoints."""
    status = run.read_status()
    return status is not None and status.state == "done" and not run.damage()


def _can_be_read(folder: Path, name: str) -> bool:
    try:
        read_arrays(checkpoint_path(folder, int(name.partition(".")[0])))
    except UserError:
        return False
    return True


def shown(path: Path) -> str:
    """A path to print: names may hold line ends, and bytes that are no text."""
    text = str(path)
    return text if text.isprintable() else ascii(text)
