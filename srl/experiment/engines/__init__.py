"""Engines execute runs: each is a file here with a class that has the methods of :class:`Engine`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from srl.experiment.spec import RunSpec


@dataclass(frozen=True)
class Job:
    """A run and the folder that it is to fill."""

    spec: RunSpec
    path: Path


@dataclass(frozen=True)
class Ended:
    """A job whose process has ended; the run directory says how the run went."""

    job: Job
    #: Why the process ended, if not by itself: one line, else empty.
    killed: str = ""


class Engine(Protocol):
    """Executes jobs independently of one another."""

    def run(self, jobs: Sequence[Job], command: str) -> Generator[Ended | None, None, None]:
        """Execute all jobs.

        :param jobs: What to run.
        :param command: The command that asked for it, for the record.
        :return: Each job as it ends, and None about every tenth of a second in between. Closing it ends what
            runs.
        """
        ...

    @property
    def running(self) -> Sequence[Job]:
        """The jobs that are running now; after the engine was closed, those that it ended."""
        ...
