"""The status of a run, ``status.json``."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

#: Maximum number of notes; older ones are dropped.
_MAX_NOTES = 50
State = Literal["running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class Status:
    """The status of a run."""

    state: State
    timesteps: int = 0
    n_timesteps: int = 0
    #: The progress of the evaluation that is running, such as "3/10 episodes, 12,300 steps"; empty for none.
    evaluation: str = ""
    #: Mean return of the last 100 training episodes, and the loss of the latest update; None for not yet.
    #: Runs of a population do not report them.
    mean_return: float | None = None
    loss: float | None = None
    #: Training steps per second of the latest attempt, evaluations included, from its first step on.
    steps_per_second: float = 0.0
    #: Seconds over which this speed is averaged, by the monotonic clock.
    seconds: float = 0.0
    #: Seconds since 1970; 0 for not yet.
    started: float = 0.0
    updated: float = 0.0
    ended: float = 0.0
    #: Why it failed or was interrupted, in one line.
    reason: str = ""
    #: Whether it would fail again from the same checkpoint.
    lasting: bool = False
    pid: int = 0
    host: str = ""
    #: The machine's monotonic clock at the last heartbeat, and the boot that it counts from.
    clock: float = 0.0
    boot: str = ""
    #: Training steps of the checkpoint that it last resumed from; 0 for none.
    resumed_from: int = 0
    #: How often it was started or resumed.
    attempts: int = 1
    #: Seconds that compiling the update took; 0 if nothing was compiled.
    compile_seconds: float = 0.0
    #: Why earlier attempts ended, and why it could not resume from a checkpoint, in lines.
    notes: tuple[str, ...] = ()
    #: Size, modification time in nanoseconds and SHA-256 of each file of a finished run.
    files: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def noted(self, note: str) -> Status:
        """This status with one more note."""
        return replace(self, notes=(*self.notes, note)[-_MAX_NOTES:])

    def ended_as(self, state: State, now: float, reason: str = "") -> Status:
        """This status with an end."""
        return replace(self, state=state, updated=now, ended=now, reason=reason)

    @property
    def silence(self) -> float | None:
        """Seconds since the last heartbeat; None for a run of another machine or boot, as clocks differ."""
        known = self.boot != "" and self.boot == boot_id()
        return max(time.monotonic() - self.clock, 0.0) if known else None


@cache
def boot_id() -> str:
    """The latest boot of this machine, from which the monotonic clock of all its processes counts.

    :return: Different for each boot of each machine; empty if the system does not provide it.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


STATUS_TYPE = TypeAdapter(Status)


def digest_of(values: dict[str, Any]) -> str:
    """The checksum of the values of a status file."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
