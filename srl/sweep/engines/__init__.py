"""Engines execute tasks: each is a file here, whose class ``Options`` (:class:`EngineOptions`) starts it.

An engine does not know which runs are finished, retried or hanging:
:func:`srl.sweep.execution.run_sweep` decides from the run directories what it starts and ends.
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
    """A run and its folder."""

    spec: RunSpec
    path: Path


@dataclass(frozen=True)
class Task:
    """The jobs of one process: a single run, or the runs of a population."""

    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        """Its name for users."""
        first = self.jobs[0].spec
        if len(self.jobs) == 1:
            return first.path
        algos = ", ".join(dict.fromkeys(job.spec.algo for job in self.jobs))
        return f"{len(self.jobs)} runs of {first.env}: {algos}, from seed {first.seed} {first.noise}"

    @property
    def log(self) -> Path:
        """The file of the process' output."""
        return self.jobs[0].path / LOG

    @property
    def needs_gpu(self) -> bool:
        """Whether it trains on a GPU."""
        return self.jobs[0].spec.device.startswith("cuda")


@dataclass(frozen=True)
class Order:
    """A task, and how to execute it."""

    task: Task
    #: The command line, for the record.
    command: str = ""
    #: Seconds between two checkpoints; with 0 there is one after each update.
    checkpoint_every: float = 180.0


@dataclass(frozen=True)
class Ended:
    """A task whose process has ended; the run directories say how the runs went."""

    task: Task
    #: Why the process was killed, in one line; empty if it was not.
    killed: str = ""


class Engine(Protocol):
    """Executes tasks independently of one another. Closing it ends running tasks."""

    @property
    def room(self) -> int:
        """The number of tasks that it accepts now."""
        ...

    def submit(self, orders: Sequence[Order]) -> None:
        """Start or queue tasks.

        :param orders: At most :attr:`room` orders.
        """
        ...

    def wait(self, seconds: float) -> list[Ended]:
        """Wait for tasks to end.

        :return: The tasks that have ended since the last call.
        """
        ...

    def end(self, task: Task) -> None:
        """Kill a submitted task, which first prints its stack; :meth:`wait` returns it later."""
        ...

    def close(self) -> None:
        """Terminate all tasks, and wait until they have ended."""
        ...


def option(default: Any, help: str) -> Any:
    """A field of :class:`EngineOptions` that is an option of ``srl sweep`` with a help text."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class EngineOptions(ABC):
    """The options of an engine, which start it.

    Fields that subclasses add with :func:`option` are options of ``srl sweep``, by their names; ``check``
    rejects invalid values.
    """

    #: The number of parallel tasks, ``--jobs``; None for the engine's default.
    n_jobs: int | None = None

    def __post_init__(self) -> None:
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"--jobs {self.n_jobs}: at least one run at a time is needed.")
        self.check()

    def check(self) -> None:  # noqa: B027 - not every engine has options
        """Check the options.

        :raises UserError: If one is invalid.
        """

    def capacity(self, *, on_gpus: bool = False) -> tuple[int, float | None]:
        """The available resources; by default those of this machine.

        :param on_gpus: Whether all tasks train on GPUs.
        :return: The number of parallel tasks, and the bytes of memory that they share; None if unknown.
        :raises UserError: If a cluster does not answer.
        """
        # The cores that this process may use, if the system provides them
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.n_jobs or cores, available_memory()

    @abstractmethod
    def start(self, root: Path, n_jobs: int) -> Engine:
        """Start the engine.

        :param n_jobs: The number of parallel tasks, from :meth:`capacity`.
        :raises UserError: If it cannot be used here.
        """


def execute(order: Order) -> int:
    """Execute a task in this process.

    :return: The process' exit status: 0 if all its runs are done, 1 if one failed.
    """
    jobs = order.task.jobs
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
    """Redirect the output of this process to the folder of the task's first run; SIGUSR1 prints the stack."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def why_ended(exit_code: int | None) -> str:
    """Why a process was killed, in one line; empty if it was not.

    :param exit_code: As :class:`multiprocessing.Process` has it: negative for a signal.
    """
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    return "" if exit_code in (0, 1) else f"its process ended with status {exit_code}"
