"""Read the progress of the runs in a folder."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from srl.config.files import first_mistake
from srl.errors import UserError
from srl.report.folders import find_folders
from srl.rundir.checkpoints import last_checkpoint
from srl.rundir.directory import RunDirectory
from srl.rundir.files import read_bytes
from srl.rundir.names import EVALUATIONS, MODEL, SPEC, STATUS
from srl.rundir.plan import PlannedRun, read_plan
from srl.rundir.progress import Progress, RunProgress
from srl.rundir.records import has_final_evaluation
from srl.rundir.status import STATUS_TYPE, Status

T = TypeVar("T")


@dataclass(frozen=True)
class Overview(Progress):
    """The progress of all runs at or below a folder."""

    #: Lines on plans and folders that cannot be read.
    unreadable: list[str]


class Folder:
    """A folder with runs, whose progress can be read repeatedly.

    Specs and evaluations of finished runs are read again only if their file has changed.

    :param root: The folder of a sweep or of a run, or one above them.
    """

    def __init__(self, root: Path):
        self.root = root
        self._cache: dict[tuple[Path, str], tuple[tuple[int, ...], Any]] = {}
        #: The status of each running run, and the monotonic clock when it was first read.
        self._statuses: dict[str, tuple[Status, float]] = {}

    def read(self) -> Overview:
        """Read the progress of its runs.

        :raises UserError: If there is no such folder, or neither a run nor a plan in it.
        """
        if not self.root.is_dir():
            raise UserError(f"{self.root}: there is no such folder.")
        found = find_folders(self.root)
        unreadable = found.unreadable
        planned: dict[str, PlannedRun] = {}
        for folder in sorted(found.plans):
            try:
                entries = read_plan(self.root / folder)
            except UserError as error:
                unreadable.append(self._relative(error))
            else:
                planned |= {(Path(folder) / entry.path).as_posix(): entry for entry in entries}
        runs = [self._run(path, planned.get(path)) for path in dict.fromkeys([*planned, *found.runs])]
        if not runs:
            raise UserError("\n".join([f"{self.root} contains no runs.", *unreadable]))
        return Overview(runs, unreadable)

    def _run(self, path: str, planned: PlannedRun | None) -> RunProgress:
        directory = RunDirectory(self.root / path)
        spec = self._cached(directory.path / SPEC, lambda: _read_entry(directory))
        status, in_progress = _read_progress(directory)
        entry = planned if spec is None or isinstance(spec, UserError) else spec
        problem = self._problem(directory, spec, status, in_progress)
        if problem is not None:
            return RunProgress(path, entry, "damaged", reason=self._relative(problem))
        if isinstance(status, Status) and status.state != "running":
            minor = self._minor_damage(directory) if status.state == "done" else ()
            last = last_checkpoint(directory.path)
            return RunProgress(path, entry, status.state, status, status.reason, last, minor_damage=minor)
        if in_progress:
            known = status if isinstance(status, Status) else None
            return RunProgress(path, entry, "running", known, silence=self._silence(path, known))
        if not isinstance(status, Status) and self._is_finished(directory):
            return RunProgress(path, entry, "done", minor_damage=self._minor_damage(directory))
        if spec is None and status is None:
            return RunProgress(path, entry, "not started")
        return RunProgress(path, entry, "interrupted", checkpoint=last_checkpoint(directory.path))

    def _silence(self, path: str, status: Status | None) -> float:
        """Seconds since the last heartbeat of a running run, rounded down to whole minutes.

        For a run of another machine, whose clock may differ, they count from the first read of its status.
        """
        if status is None:
            return 0.0
        now = time.monotonic()
        if path not in self._statuses or self._statuses[path][0] != status:
            self._statuses[path] = (status, now)
        seconds = now - self._statuses[path][1] if status.silence is None else status.silence
        return seconds // 60 * 60

    def _problem(
        self,
        directory: RunDirectory,
        spec: PlannedRun | UserError | None,
        status: Status | UserError | None,
        in_progress: bool,
    ) -> UserError | None:
        """The first damage to a run's spec, status or results; None if there is none."""
        if isinstance(spec, UserError):
            return spec
        if isinstance(status, UserError):
            # A running run replaces its status soon; for others the results decide
            return None if in_progress or self._is_finished(directory) else status
        if status is None or status.state != "done":
            return None
        if spec is None:
            return UserError(f"{directory.path / SPEC}: missing.")
        n_timesteps, done = spec.n_timesteps, status
        damage = self._cached(
            directory.path / EVALUATIONS, lambda: _evaluation_damage(directory, n_timesteps)
        ) or self._cached(directory.path / MODEL, lambda: directory.model_damage(done))
        return UserError(damage[0]) if damage else None

    def _is_finished(self, directory: RunDirectory) -> bool:
        return self._cached(directory.path / MODEL, directory.is_finished, "finished")

    def _minor_damage(self, directory: RunDirectory) -> tuple[str, ...]:
        """Lines on other damaged files of a finished run, read again if its status has changed."""
        return self._cached(
            directory.path / STATUS,
            lambda: tuple(self._relative(line) for line in directory.minor_damage(thorough=False)),
        )

    def _cached(self, file: Path, read: Callable[[], T], what: str = "") -> T:
        """The result of a function that reads a file, called again if the file has changed.

        :param what: Distinguishes results from the same file.
        """
        try:
            found = file.stat()
            version: tuple[int, ...] = (found.st_mtime_ns, found.st_ino, found.st_size)
        except OSError:
            version = ()
        cached = self._cache.get((file, what))
        if cached is None or cached[0] != version:
            cached = self._cache[file, what] = (version, read())
        value: T = cached[1]
        return value

    def _relative(self, line: object) -> str:
        """A line with paths relative to the folder."""
        return re.sub(rf"(?<![\w./-]){re.escape(str(self.root))}/", "", str(line))


def _read_entry(directory: RunDirectory) -> PlannedRun | UserError | None:
    """The plan's entry of a run, from its spec; None if it has none."""
    try:
        found = directory.read_spec_leniently()
        if found is not None:
            directory.check_spec(found, directory.read_status())
    except UserError as error:
        return error
    return None if found is None else PlannedRun.of(found.spec)


def _read_progress(directory: RunDirectory) -> tuple[Status | UserError | None, bool]:
    """A run's status, and whether a process of this machine is training it."""
    status, in_progress = _read_status(directory), directory.in_progress
    if isinstance(status, Status) and status.state == "running" and not in_progress:
        status = _read_status(directory)  # it may have ended in between
    return status, in_progress


def _read_status(directory: RunDirectory) -> Status | UserError | None:
    file = directory.path / STATUS
    try:
        status = STATUS_TYPE.validate_json(read_bytes(file))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        keys, message = first_mistake(error)
        where = f" key {'.'.join(map(str, keys))}:" if keys else ""
        return UserError(f"{file}: not the status of a run:{where} {message}")
    except OSError as error:
        return UserError(f"{file}: cannot be read: {error.strerror}.")
    if directory.read_status() is None:
        return UserError(f"{file}: damaged: changed since it was written.")
    numbers = (status.steps_per_second, status.seconds, status.clock)
    if not all(map(math.isfinite, (*numbers, status.started, status.updated, status.ended))):
        return UserError(f"{file}: not the status of a run: a number in it is not finite.")
    return status


def _evaluation_damage(directory: RunDirectory, n_timesteps: int) -> list[str]:
    """Why a finished run has no score, in a line; empty if it has one."""
    try:
        if has_final_evaluation(directory.read_evaluations(), n_timesteps):
            return []
    except UserError as error:
        return [str(error)]
    return [f"{directory.path / EVALUATIONS}: the final evaluation is missing."]
