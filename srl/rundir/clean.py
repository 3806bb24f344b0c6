"""Find and remove files of runs and sweeps that are no longer needed."""

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

#: Number of checkpoints that an unfinished run keeps: the last one may be damaged.
_KEPT = 2
#: Age in seconds below which an unfinished file is kept even if no process has locked it: some file systems
#: have no locks.
YOUNG = 60.0

#: Unfinished files of the plan and of reports.
_TEMPORARY_OF_A_SWEEP = re.compile(
    rf"\.(?:{re.escape(PLAN)}|table[\w.-]*\.(?:md|csv|tex)|statistics\.json|report\.html"
    rf"|evaluations\.(?:json|parquet)|\.srl-report\.json){RANDOM}"
)
_UNFINISHED = "left unfinished by a process that was killed"


@dataclass(frozen=True)
class Garbage:
    """A file that can be removed."""

    path: Path
    n_bytes: int
    #: The reason in one line.
    why: str


def find_garbage(root: Path) -> list[Garbage]:
    """Find files at or below a folder that are no longer needed; nothing is written.

    These are checkpoints and empty output of finished runs; checkpoints before the last two of unfinished
    runs; and files that a killed process has left unfinished, a minute after their last change. Runs in
    progress, sweeps with such runs, runs whose spec cannot be read, and links are skipped.

    :param root: A run's folder, a sweep's, or one above those.
    :return: The files in the order of their paths.
    :raises UserError: If there is no such folder.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}. Name the folder of a run or a sweep.")
    folders = {Path(folder) for folder, _, files in walk(root) if SPEC in files or PLAN in files}
    return sorted((item for folder in folders for item in _garbage_of(folder)), key=lambda item: item.path)


def remove(garbage: Sequence[Garbage]) -> tuple[int, list[str]]:
    """Remove files, and folders of checkpoints that are empty then.

    Each is checked again first: a file that is needed now, because its run is trained again, is kept.

    :return: The number of bytes freed, and lines on files that could not be removed.
    """
    freed, problems = 0, []
    for item in garbage:
        try:
            if not os.path.lexists(item.path):
                continue
            in_checkpoints = item.path.parent.name == CHECKPOINTS
            folders = [item.path.parent, *([item.path.parent.parent] if in_checkpoints else [])]
            found = [each for folder in folders for each in _garbage_of(folder)]
            now = next((each for each in found if each.path == item.path), None)
            if now is None:
                problems.append(f"{shown(item.path)}: left, since it is in use now or has changed")
                continue
            item.path.unlink()
            freed += now.n_bytes
            if in_checkpoints and not any(item.path.parent.iterdir()):
                item.path.parent.rmdir()
        except OSError as error:
            problems.append(f"{shown(item.path)}: {error.strerror or error}")
    return freed, problems


def _garbage_of(folder: Path) -> list[Garbage]:
    return [*_garbage_of_run(RunDirectory(folder)), *_garbage_of_sweep(folder)]


def _garbage_of_run(run: RunDirectory) -> Iterator[Garbage]:
    files = plain_files(run.path)
    # Links lead elsewhere, and reading a pipe blocks
    if any(name not in files and os.path.lexists(run.path / name) for name in (SPEC, STATUS, LOCK)):
        return
    try:
        # Other programs may use this name, and a newer srl may need other files
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
    # Checking a run for damage reads its files
    if not empty and not checkpoints:
        return
    status = run.read_status()
    if status is not None and status.state == "done" and not run.damage():
        if empty:
            yield Garbage(run.path / LOG, 0, "the empty output of a finished run")
        why = "a checkpoint of a finished run"
    else:
        latest = sorted(checkpoints, key=lambda name: int(name.partition(".")[0]), reverse=True)
        checkpoints = {name: checkpoints[name] for name in latest[_KEPT:]}
        if not checkpoints or not all(_can_be_read(run.path, name) for name in latest[:_KEPT]):
            return
        why = f"a checkpoint before the last {_KEPT}"
    for name, stat in checkpoints.items():
        yield Garbage(run.path / CHECKPOINTS / name, stat.st_size, why)


def _garbage_of_sweep(folder: Path) -> Iterator[Garbage]:
    # Most folders have none, and checking many runs for progress takes a while
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

    The lock of a process on another machine may not be visible here, so that its status counts.
    """
    lock = run.path / LOCK
    if run.in_progress or (os.path.lexists(lock) and not os.access(lock, os.R_OK)):
        return True
    status = run.read_status()
    return status is not None and status.state == "running" and status.host != socket.gethostname()


def _can_be_read(folder: Path, name: str) -> bool:
    try:
        read_arrays(checkpoint_path(folder, int(name.partition(".")[0])))
    except UserError:
        return False
    return True


def shown(path: Path) -> str:
    """A path to print: names may contain line breaks and undecodable bytes."""
    text = str(path)
    return text if text.isprintable() else ascii(text)
