"""Tasks that a cluster starts on other machines."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import replace

from srl.rundir.directory import RunDirectory
from srl.sweep.engines import Job, Order, Task, execute, log_to_file
from srl.sweep.engines.local import THREAD_VARIABLES

#: Seconds that a task waits for the locks of an earlier attempt: NFS holds those of a dead node for 90 s.
_LOCKS = 120.0


def absolute(order: Order) -> Order:
    """The same order for a process with another working directory."""
    jobs = tuple(Job(job.spec, job.path.absolute()) for job in order.task.jobs)
    return replace(order, task=Task(jobs))


def thread_variables(order: Order) -> dict[str, str]:
    """Environment variables that must be set before torch and NumPy are imported."""
    return dict.fromkeys(THREAD_VARIABLES, str(order.task.jobs[0].spec.threads))


def execute_elsewhere(order: Order) -> int:
    """Execute a task in this process, which a cluster has started, after earlier attempts have ended.

    :return: See :func:`srl.sweep.engines.execute`.
    """
    log_to_file(order.task)
    # A cluster cancels it by SIGINT, which background processes ignore
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    deadline = time.monotonic() + _LOCKS
    # The process of a lost node ends some seconds after the cluster has restarted its task
    while in_progress(order.task.jobs) and time.monotonic() < deadline:
        time.sleep(0.5)
    return execute(order)


def in_progress(jobs: Iterable[Job]) -> bool:
    """Whether a process trains one of these runs, if its lock is visible here."""
    return any(RunDirectory(job.path).in_progress for job in jobs)
