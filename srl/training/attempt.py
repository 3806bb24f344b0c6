"""One attempt at a run: its lock, status, heartbeat, and how it ended."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from srl.config.spec import RunSpec
from srl.envs.finite import NonFiniteError
from srl.errors import UserError
from srl.own_algorithms import own_package
from srl.rundir.checkpoints import checkpoint_steps, last_checkpoint, remove_checkpoints
from srl.rundir.directory import RunDirectory
from srl.rundir.files import write_text
from srl.rundir.names import ERROR, PROGRESS, SPEC, VERSIONS
from srl.rundir.status import State, Status, boot_id
from srl.training.checkpoint import read_checkpoint
from srl.training.logs import cut_logs, progress_is_intact
from srl.training.versions import checkpoint_origin, package_version, versions


class RunFailed(Exception):
    """A run ended before its last step; its message is the reason in one line."""


class Attempt:
    """One attempt at a run, and its record in the run directory. A context: an exception fails the attempt.

    :param spec: The run.
    :param path: Its folder, new or of an unfinished run of the same spec.
    :param command: The command line, for the record.
    :param tell: Called with the status about once a second.
    :param packages: Packages to record besides :data:`~srl.training.versions.RECORDED_PACKAGES`.
    :raises UserError: On entering, if the folder belongs to another run or process.
    """

    status: Status

    def __init__(
        self,
        spec: RunSpec,
        path: Path,
        *,
        command: str = "",
        tell: Callable[[Status], None] | None = None,
        packages: Sequence[str] = (),
    ):
        self.spec = spec
        self.path = path
        #: The exception that ended it.
        self.error: Exception | None = None
        self._directory = RunDirectory(path)
        self._command = command
        self._tell = tell
        self._packages = packages
        #: Monotonic time and training steps at the first heartbeat.
        self._first_beat: tuple[float, int] | None = None
        self._claim = self._directory.claimed(spec, keep=True)

    def run(self, train: Callable[[], int]) -> Status:
        """Run the attempt.

        :param train: Trains the run and returns its training steps.
        :return: The status at the end.
        :raises RunFailed: If training failed; the directory says why.
        :raises UserError: If the folder belongs to another run or process.
        """
        try:
            with self:
                if self.running:  # otherwise another process has finished it since the plan was made
                    self.finish(train())
        except Exception as error:
            if error is not self.error:
                raise  # the folder belongs to another run or process
        if self.status.state == "failed":
            raise RunFailed(self.status.reason) from self.error
        return self.status

    @property
    def running(self) -> bool:
        """Whether the run is not finished."""
        return self.status.state == "running"

    def __enter__(self) -> Attempt:
        damage = self._directory.damage() + self._directory.minor_damage()
        earlier_spec = self._directory.readable_spec()
        there = self._claim.__enter__()
        try:
            earlier = self._directory.read_status()
            if there == "done" and earlier is not None:
                self.status = earlier
                remove_checkpoints(self.path)  # left by a process that was killed at its end
                return self
            started = time.time()
            self.status = Status(
                state="running",
                timesteps=last_checkpoint(self.path),
                n_timesteps=self.spec.n_timesteps,
                started=started,
                updated=started,
                pid=os.getpid(),
                host=socket.gethostname(),
                clock=time.monotonic(),
                boot=boot_id(),
                attempts=1 if earlier is None else earlier.attempts + 1,
                notes=() if earlier is None else earlier.notes,
                files=self._directory.seal([SPEC]),
            )
            if there != "new":
                if earlier is not None and earlier.state != "done":
                    self.note(f"attempt {earlier.attempts} ended: {earlier.reason or 'reason unknown'}")
                for problem in damage:
                    self.note(problem)
            is_moved = earlier_spec is not None and earlier_spec.stacked != self.spec.stacked
            if is_moved and checkpoint_steps(self.path):
                self.note(
                    "started in a population and resumed alone, or vice versa; where a stacked network "
                    "rounds differently, the result differs in the last bits"
                )
            self._directory.write_status(self.status)
            try:
                self._write_versions()
            except Exception as error:
                self.fail(error)
        except BaseException:
            self._claim.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and self.running:
                self.fail(error)
        finally:
            self._claim.__exit__(None, None, None)

    def _write_versions(self) -> None:
        more = own_package(self.spec.algo) if self.spec.algorithm.is_own else {}
        more |= {name: package_version(name) for name in self._packages}
        write_text(self.path / VERSIONS, json.dumps(versions(self._command, more), indent=1) + "\n")

    def note(self, text: str) -> None:
        """Print a note and record it in the status."""
        print(f"{self.path}: {text}", file=sys.stderr)
        self.status = self.status.noted(text)

    def resume_from(self, steps: int) -> dict[str, Any]:
        """Restore the folder to a checkpoint.

        :param steps: Training steps of the checkpoint.
        :return: The state in the checkpoint.
        :raises UserError: If the checkpoint or one of its logs is damaged, or was written with other
            package versions, which would change the result.
        """
        state = read_checkpoint(self.path, steps)
        origin = checkpoint_origin(self.spec)
        different = [key for key in origin if state["origin"].get(key) != origin[key]]
        if different:
            raise UserError(f"its checkpoint was made with another {' and '.join(different)}.")
        if not progress_is_intact(self.path, state["logs"]):
            self.note(f"{self.path / PROGRESS}: damaged; it is restored from the checkpoint")
        cut_logs(self.path, state["logs"])
        (self.path / ERROR).unlink(missing_ok=True)
        self.status = replace(self.status, timesteps=steps, resumed_from=steps)
        if self.spec.device.startswith("cuda"):
            self.note(f"resumed from step {steps:,} on a GPU, where results are not bitwise reproducible")
        return state

    def restart(self) -> None:
        """Remove the files of earlier attempts."""
        self._directory.clear()
        self._write_versions()
        self.status = replace(self.status, timesteps=0, resumed_from=0)

    def beat(
        self,
        timesteps: int,
        evaluation: str = "",
        mean_return: float | None = None,
        loss: float | None = None,
    ) -> None:
        """Record the progress of training.

        :param timesteps: Training steps so far.
        :param evaluation: The progress of the running evaluation in words; empty for none.
        :param mean_return: Mean return of the last training episodes; None if unknown.
        :param loss: The loss of the latest update; None if unknown.
        :raises RunFailed: If the folder was removed, and may have been replaced.
        :raises UserError: If the user requested a stop.
        """
        if not self._directory.is_held:
            raise RunFailed(f"{self.path}: removed while it trained.")
        if timesteps < self.spec.n_timesteps and (reason := self._directory.requested_stop()):
            raise UserError(reason)
        now = time.monotonic()
        if self._first_beat is None:
            self._first_beat = now, timesteps
        first_time, first_steps = self._first_beat
        seconds = now - first_time
        self.status = replace(
            self.status,
            timesteps=min(timesteps, self.spec.n_timesteps),
            evaluation=evaluation,
            mean_return=mean_return,
            loss=loss,
            updated=time.time(),
            clock=now,
            seconds=seconds,
            steps_per_second=(timesteps - first_steps) / seconds if seconds > 0 else 0.0,
        )
        self._directory.write_status(self.status)
        if self._tell is not None:
            self._tell(self.status)

    def finish(self, timesteps: int) -> None:
        """Record that the run is done, and seal its files."""
        self.beat(timesteps)
        self.status = replace(self.status.ended_as("done", time.time()), files=self._directory.seal())
        self._directory.write_status(self.status)
        remove_checkpoints(self.path)

    def fail(self, error: BaseException) -> None:
        """Record why the run has failed or was interrupted."""
        if isinstance(error, Exception):
            self.error = error
        # Ctrl-C and SIGTERM are not failures of the run
        state: State = "failed" if isinstance(error, Exception) else "interrupted"
        self.status = self.status.ended_as(state, time.time(), in_one_line(error))
        # A retry would compute the same numbers
        cause = error.__cause__ if isinstance(error, RunFailed) else error
        self.status = replace(self.status, lasting=isinstance(cause, (FloatingPointError, UserError)))
        if not self._directory.is_held:
            print(f"{self.path}: {self.status.reason}", file=sys.stderr)
            return  # the folder may belong to another process
        # A full disk must not hide the reason itself
        try:
            self._directory.write_status(self.status)
            if state == "failed":
                write_text(self.path / ERROR, "".join(traceback.format_exception(error)))
        except OSError as problem:
            reason = f"{self.status.reason}; and that could not be written: {problem}"
            print(f"{self.path}: {reason}", file=sys.stderr)


def in_one_line(error: BaseException) -> str:
    """The reason in one line, from the exception that ended a run."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by the user"
    if isinstance(error, SystemExit):
        return "stopped by a signal"
    text = " ".join(str(error).split())
    if isinstance(error, (RunFailed, UserError, NonFiniteError)):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not text:
        # An assertion often has no text
        last = frames[-1]
        text = f"{last.line or last.name} ({Path(last.filename).name}, line {last.lineno})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
