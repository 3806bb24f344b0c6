"""Engines execute tasks: each is a file here, whose class ``Options`` (:class:`EngineOptions`) starts it.

An engine knows nothing of runs that are finished, retried or hanging:
:func:`srl.sweep.execution.run_sweep` decides that from the run directories, and tells it what to start
and what to end.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.rundir.names import LOG
from srl.training.memory import available_memory


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

    @property
    def needs_gpu(self) -> bool:
        """Whether it trains on a GPU."""
        return self.jobs[0].spec.device.startswith("cuda")


@dataclass(frozen=True)
class Order:
    """A task, and how to execute it."""

    task: Task
    #: The command that asked for it, for the record.
    command: str = ""
    #: Seconds between two checkpoints; with 0 there is one after each update.
    checkpoint_every: float = 180.0


@dataclass(frozen=True)
class Ended:
    """A task whose process has ended; the run directories say how the runs went."""

    task: Task
    #: Why the process ended, if not by itself: one line, else empty.
    killed: str = ""


class Engine(Protocol):
    """Executes tasks independently of one another. Closing it ends those that run."""

    @property
    def room(self) -> int:
        """How many more tasks it takes now."""
        ...

    def submit(self, orders: Sequence[Order]) -> None:
        """Start tasks, or have them started when there is a place for them.

        :param orders: At most as many as there is room for.
        """
        ...

    def wait(self, seconds: float) -> list[Ended]:
        """Wait for tasks to end.

        :param seconds: How long at the most.
        :return: Those that have ended since the last call; each is returned once.
        """
        ...

    def end(self, task: Task) -> None:
        """End a task at once; :meth:`wait` returns it later.

        :param task: One that was submitted. What it prints last says where it was.
        """
        ...

    def close(self) -> None:
        """End all tasks in order, and wait until they have ended."""
        ...


def option(default: Any, help: str) -> Any:
    """A field of :class:`EngineOptions` that is an option of ``srl sweep``, with its help."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class EngineOptions(ABC):
    """What an engine is told, and how it is started.

    Fields that subclasses add with :func:`option` are options of ``srl sweep``, by their names; ``check``
    refuses values without a meaning.
    """

    #: How many tasks run at once, ``--jobs``; None for as many as there is room for.
    n_jobs: int | None = None

    def __post_init__(self) -> None:
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"--jobs {self.n_jobs}: at least one run at a time is needed.")
        self.check()

    def check(self) -> None:  # noqa: B027 - not every engine has options
        """See that the options have a meaning.

        :raises UserError: If one has none.
        """

    def capacity(self, *, on_gpus: bool = False) -> tuple[int, float | None]:
        """How much there is to divide a sweep among; here of this machine.

        :param on_gpus: Whether all tasks train on GPUs.
        :return: The number of tasks at once, and the bytes of memory that these share; None if not known.
        :raises UserError: If a cluster has to be asked and does not answer.
        """
        # Where the system tells, the cores that this process may use
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.n_jobs or cores, available_memory()

    @abstractmethod
    def start(self, root: Path, n_jobs: int) -> Engine:
        """Start the engine.

        :param root: The sweep's folder.
        :param n_jobs: Tasks at once, as :meth:`capacity` said.
        :raises UserError: If it cannot be used here.
        """


def execute(order: Order) -> int:
    """Do a task in this process.

    :param order: What to run.
    :return: The process' exit status: 0 if all its runs are done, 1 if one failed.
    """
    jobs = order.task.jobs
    # An engine is chosen before anything heavy is loaded
    if jobs[0].spec.stacked:
        from srl.training.stacked.train import execute_population

        return execute_population(
            [job.spec for job in jobs],
            [job.path for job in jobs],
            order.command,
            checkpoint_every=order.checkpoint_every,
        )
    from srl.training.run import execute_run

    (job,) = jobs
    return execute_run(job.path, job.spec, order.command, checkpoint_every=order.checkpoint_every)


def log_to_file(task: Task) -> None:
    """Send what this process prints into the folder of the task's first run, and where it is on SIGUSR1."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def why_ended(exit_code: int | None) -> str:
    """Why a process ended, if not by itself: one line, else empty.

    :param exit_code: As :class:`multiprocessing.Process` has it: negative for a signal.
    """
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return "" if exit_code in (0, 1) else f"its process ended with status {exit_code}"
