"""The run directory: the only record of a run; :mod:`srl.rundir.names` lists its files.

Logs grow line by line; every other file is written atomically. Files of other names are never changed.

A run is finished if its results are complete: spec, evaluations, model and, if it normalizes observations or
rewards, ``vecnormalize.pkl``, which the model needs. Damage to other files is reported only.
Before a finished run is retrained, its files are moved to ``damaged-N``, which is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import IO, Literal

from srl.config.difference import describe_difference, differs_only_in_length
from srl.config.lenient import spec_text
from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.rundir.files import acquire, check_writable, kind_of, plain_files, read_bytes, write_text
from srl.rundir.names import (
    ASIDE,
    CHECKPOINTS,
    LANGUAGE_MODEL,
    LOCK,
    LOG,
    MODEL,
    MODELS,
    MONITOR,
    OUTPUTS,
    PROGRESS,
    RESULTS,
    SAMPLES,
    SPEC,
    STATUS,
    STOP,
    TEMPORARY,
    VERSIONS,
    checkpoint_files,
    growing_logs,
    language_model_files,
)
from srl.rundir.plan import newer_version_error
from srl.rundir.records import RunRecords
from srl.rundir.status import Status, digest_of


def request_stop(path: Path, reason: str) -> None:
    """Ask the process that trains a run to end it at its next heartbeat, and not to retry it."""
    write_text(path / STOP, reason + "\n")


class RunDirectory(RunRecords):
    """A run's folder: its records, and attempts at the run.

    :param path: The folder; it need not exist.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        #: The open lock file while this object holds the lock.
        self._lock: IO[str] | None = None

    def requested_stop(self) -> str:
        """Why the run was asked to stop, see :func:`request_stop`; empty if it was not."""
        try:
            return read_bytes(self.path / STOP).decode(errors="replace").strip() or "told to stop"
        except OSError:
            return ""

    def write_status(self, status: Status) -> None:
        """Replace the status."""
        values = asdict(status)
        values["checksum"] = digest_of(values)
        write_text(self.path / STATUS, json.dumps(values, indent=1) + "\n")

    def seal(self, names: Collection[str] | None = None) -> dict[str, tuple[int, int, str]]:
        """Size, time of change and digest of files, for the run's status: see :attr:`Status.files`.

        :param names: The files; None for all files of a finished run.
        """
        if names is None:
            logs = [file.relative_to(self.path).as_posix() for file in growing_logs(self.path)]
            model = [f"{LANGUAGE_MODEL}/{name}" for name in plain_files(self.path / LANGUAGE_MODEL)]
            names = [*RESULTS, *MODELS, VERSIONS, PROGRESS, SAMPLES, *model, *logs]
        sealed = {}
        for name in sorted(set(names)):
            file = self.path / name
            if file.is_file():
                content = read_bytes(file)
                sealed[name] = (len(content), file.stat().st_mtime_ns, hashlib.sha256(content).hexdigest())
        return sealed

    def restore_status(self, spec: RunSpec) -> None:
        """Rewrite the status of a finished run if it is damaged or missing.

        :raises UserError: If another process trains it, or it is not a finished run of this spec.
        """
        if self.read_status() is None:
            with self.claimed(spec):
                pass

    def _write_status_from_results(self, spec: RunSpec) -> None:
        (problem,) = self.status_problem() or [f"{self.path / STATUS}: missing."]
        ended = (self.path / MODEL).stat().st_mtime
        steps = spec.n_timesteps
        status = Status("done", steps, steps, started=ended, updated=ended, ended=ended, files=self.seal())
        self.write_status(status.noted(f"{problem} It was restored from the evaluations and the model."))

    def compare(self, spec: RunSpec) -> Literal["new", "unfinished", "done"]:
        """Compare the folder with a spec; nothing is written.

        :raises UserError: If the folder is a file, cannot be written to, belongs to another spec or to a
            newer srl, contains other files, or has a folder or link in the place of a run's file.
        """
        check_writable(self.path)
        if not os.path.lexists(self.path):
            return "new"
        status = self.read_status()
        found, problem = self.find_spec()
        is_damaged = self.spec_is_damaged(found, status)
        if found is not None and found.unknown and not is_damaged:
            raise newer_version_error(self.path / SPEC, found.unknown)
        if found is None and problem is None and not (status is not None and SPEC in status.files):
            self._check_no_other_files()
            self._check_kinds()
            return "new"
        # Alone or in a population, it is the same experiment
        if found is None or found.spec.model_copy(update={"stacked": spec.stacked}) != spec:
            if found is None or is_damaged:
                if not (is_damaged and self.was_for(spec, status)):
                    raise UserError(
                        f"{problem or self.path / SPEC} Whether {self.path} contains this run is unknown. "
                        "Name another folder with --out, or move that one away; nothing was written."
                    )
            else:
                raise UserError(
                    f"{self.path} holds a run of another spec: {describe_difference(found.spec, spec)}. Name "
                    "another folder with --out, or move that one away; nothing was written."
                )
        elif self.is_finished():
            return "done"
        self._check_kinds()
        return "unfinished"

    def keep_compilation(self, spec: RunSpec) -> RunSpec:
        """The spec, with the ``compile_update`` of the run in the folder if they differ in nothing else."""
        there = self.readable_spec()
        if there is None:
            return spec
        kept = spec.model_copy(update={"compile_update": there.compile_update})
        return kept if differs_only_in_length(there, kept) else spec

    def shorter(self, spec: RunSpec) -> RunSpec | None:
        """The spec of the run in the folder if it only has fewer training steps than a spec, else None."""
        there = self.readable_spec()
        if there is None or there.n_timesteps >= spec.n_timesteps:
            return None
        return there if differs_only_in_length(there, spec) else None

    def _check_no_other_files(self) -> None:
        """Check that a folder without a spec contains only files that a run writes before its spec."""
        ours = {LOCK, LOG}
        try:
            # Other programs may use this name; only srl's file has a checksum
            if "checksum" in json.loads(read_bytes(self.path / STATUS)) and self.read_status() is not None:
                ours.add(STATUS)
        except (OSError, ValueError, TypeError):
            pass
        foreign = [
            file.name
            for file in self.path.glob("[!.]*")
            if file.name not in ours and not ASIDE.fullmatch(file.name)
        ]
        if foreign:
            raise UserError(
                f"{self.path} contains {', '.join(sorted(foreign)[:3])} and is not a run directory. Name "
                "another folder, or move these files away; nothing was written."
            )

    def _check_kinds(self) -> None:
        """Check that a run can write its files: srl replaces no links, and no folder by a file."""
        for name in (*RESULTS, *OUTPUTS, STATUS, LOG, LOCK, MONITOR, CHECKPOINTS):
            file = self.path / name
            is_folder = name in (MONITOR, CHECKPOINTS)
            if os.path.lexists(file) and not (S_ISDIR if is_folder else S_ISREG)(file.lstat().st_mode):
                what = "folder" if is_folder else "file"
                raise UserError(
                    f"{file} is {kind_of(file)}, and the run writes a {what} there. Move it away; nothing "
                    "was written."
                )

    def was_for(self, spec: RunSpec, status: Status | None) -> bool:
        """Whether the latest attempt in the folder was at this run, according to its status."""
        texts = [spec_text(spec.model_copy(update={"stacked": stacked})) for stacked in (False, True)]
        sealed = status.files[SPEC][2] if status is not None and SPEC in status.files else None
        return sealed in [hashlib.sha256(text.encode()).hexdigest() for text in texts]

    @contextmanager
    def claimed(self, spec: RunSpec, *, keep: bool = False) -> Iterator[Literal["new", "unfinished", "done"]]:
        """Lock the folder for one attempt at a run, and remove the files of earlier attempts.

        The files of a damaged finished run are moved to ``damaged-N``. The files of a finished run are kept;
        only a damaged status is restored.

        :param keep: Keep the files of earlier attempts, to resume from their checkpoint.
        :return: A context that yields the result of :meth:`compare`.
        :raises UserError: If another process trains the run, or the folder does not fit the spec.
        """
        self.compare(spec)
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("a+") as lock:
            if not acquire(lock):
                status = self.read_status()
                who = f" (process {status.pid} on {status.host})" if status and status.pid else ""
                raise UserError(
                    f"{self.path}: another process{who} is training this run. Wait for it, or end it."
                )
            there = self.compare(spec)
            if there == "done" and self.read_status() is None:
                self._write_status_from_results(spec)
            if there == "unfinished" and self._was_finished():
                self._set_aside()
            if there != "done":
                write_text(self.path / SPEC, spec_text(spec))
            if there == "unfinished" and not keep:
                self.clear()
            self._lock = lock
            try:
                yield there
            finally:
                self._lock = None

    def _was_finished(self) -> bool:
        """Whether an unfinished run was finished before it was damaged."""
        status = self.read_status()
        if status is None:
            return (self.path / MODEL).exists()
        return status.state == "done" or (status.state == "failed" and MODEL in status.files)

    def _set_aside(self) -> None:
        """Move the files of the run, and copy its spec and status, to a new folder inside it."""
        number = 1
        while os.path.lexists(aside := self.path / f"damaged-{number}"):
            number += 1
        aside.mkdir()
        for name in plain_files(self.path).keys() & {SPEC, STATUS}:
            shutil.copy2(self.path / name, aside / name)
        for file in self._outputs():
            moved = aside / file.relative_to(self.path)
            moved.parent.mkdir(exist_ok=True)
            file.rename(moved)
        now = time.time()
        status = replace(self.read_status() or Status("failed"), files={})
        self.write_status(status.ended_as("failed", now, f"it was damaged; its files are in {aside.name}"))

    @property
    def is_held(self) -> bool:
        """Whether this object still holds the lock of the folder."""
        try:
            there = (self.path / LOCK).stat()
        except OSError:
            return False
        return self._lock is not None and os.path.samestat(there, os.fstat(self._lock.fileno()))

    def clear(self) -> None:
        """Remove the files that attempts at the run have written, and no others."""
        for file in self._outputs():
            file.unlink(missing_ok=True)
        for folder in (MONITOR, CHECKPOINTS):
            with suppress(OSError):  # it does not exist, or contains other files
                (self.path / folder).rmdir()

    def _outputs(self) -> list[Path]:
        """The files that attempts at the run have written, by their names."""
        here, status = plain_files(self.path), self.read_status()
        names = [name for name in here if name in OUTPUTS or TEMPORARY.fullmatch(name)]
        model = [] if status is None else language_model_files(status)
        return [
            *(self.path / name for name in names),
            *(self.path / name for name in model if (self.path / name).is_file()),
            *growing_logs(self.path),
            *checkpoint_files(self.path),
        ]
