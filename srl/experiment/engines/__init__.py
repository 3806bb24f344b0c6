"""Engines execute runs: each is a file here with a class that has the methods of :class:`Engine`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from srl.experiment.spec import RunSpec
from srl.experiment.store import LOG


@dataclass(frozen=True)
class Job:
    """A run and the folder that it is to fill."""

    spec: RunSpec
    path: Path


@dataclass(frozen=True)
class Task:
    """Jobs that one process does: a single run, or the runs of a population."""

    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        """What a user sees it as."""
        first = self.jobs[0].spec
        if len(self.jobs) == 1:
            return first.path
        algos = ", ".join(dict.fromkeys(job.spec.algo for job in self.jobs))
        return f"{len(self.jobs)} runs of {first.env}: {algos}, from seed {first.seed} {first.noise}"

    @property
    def log(self) -> Path:
        """Where what the process prints goes."""
        return self.jobs[0].path / LOG


@dataclass(frozen=True)
class Ended:
    """A task whose process has ended; the run directories say how the runs went."""

    task: Task
    #: Why the process ended, if not by itself: one line, else empty.
    killed: str = ""


class Engine(Protocol):
    """Executes tasks independently of one another."""

    def run(self, tasks: Sequence[Task], command: str) -> Generator[Ended | None, None, None]:
        """Execute all tasks.

        :param tasks: What to run.
        :param command: The command that asked for it, for the record.
        :return: Each task as it ends, and None about every tenth of a second in between. Closing it ends what
            runs.
        """
        ...

    @property
    def running(self) -> Sequence[Task]:
        """The tasks that are running now; after the engine was closed, those that it ended."""
        ...


def execute(task: Task, command: str) -> int:
    """Do a task in this process.

    :param task: What to run.
    :param command: The command that asked for it, for the record.
    :return: The process' exit status: 0 if all its runs are done, 1 if one failed.
    """
    # An engine is chosen before anything heavy is loaded
    if task.jobs[0].spec.stacked:
        from srl.population.train import execute_population

        return execute_population([job.spec for job in task.jobs], [job.path for job in task.jobs], command)
    from srl.experiment.run import execute_run

    (job,) = task.jobs
    return execute_run(job.path, job.spec, command)
