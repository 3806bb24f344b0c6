"""Requirements of tasks that a cluster starts on other machines."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import replace

from srl.rundir.directory import RunDirectory
from srl.sweep.engines import Job, Order, Task, execute, log_to_file
from srl.sweep.engines.local import THREAD_VARIABLES

#: Seconds that a task waits for the locks of an earlier try at it: on NFS those of a node that has died are
#: held for 90.
_LOCKS = 120.0


def absolute(order: Order) -> Order:
    """The same order for a process with another working directory."""
    jobs = tuple(Job(job.spec, job.path.absolute()) for job in order.task.jobs)
    return replace(order, task=Task(jobs))


def thread_variables(order: Order) -> dict[str, str]:
    """What the environment of a task's process must say before torch and NumPy are imported."""
    return dict.fromkeys(THREAD_VARIABLES, str(order.task.jobs[0].spec.threads))


def execute_elsewhere(order: Order) -> int:
    """Do a task in this process, which a cluster has started, when no earlier try at it is left.

    :param order: What to run, its paths absolute.
    :return: As of :func:`srl.sweep.engines.execute`.
    """
    log_to_file(order.task)
    # Its cancellation is Ctrl-C, which what was begun in the background does not hear
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    deadline = time.monotonic() + _LOCKS
    # The process of a lost node ends some seconds after the cluster has given it up
    while in_progress(order.task.jobs) and time.monotonic() < deadline:
        time.sleep(0.5)
    return execute(order)


def in_progress(jobs: Iterable[Job]) -> bool:
    """Whether a process, as far as its lock is seen from here, is at one of some runs."""
    return any(RunDirectory(job.path).in_progress for job in jobs)
