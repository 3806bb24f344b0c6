"""Runs and populations as processes of this machine."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

from srl.experiment.engines import Ended, Task, execute

#: Seconds that a run is given to end in order.
_GRACE = 10.0
#: Settings of the thread pools below torch and NumPy; they are read when those are imported.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def use_one_thread(n_threads: int = 1) -> None:
    """Limit the thread pools below torch and NumPy, here before they are imported and in child processes."""
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(n_threads)


def process_context() -> ForkServerContext:
    """Where a sweep's processes come from: forks of one process that has imported torch and nothing else."""
    use_one_thread()
    context = get_context("forkserver")
    context.set_forkserver_preload(["srl.population.train"])
    return context


class LocalEngine:
    """As many tasks at once as told, each an independent process with one thread.

    :param n_jobs: How many run at once.
    """

    def __init__(self, n_jobs: int):
        self._n_jobs = n_jobs
        self._processes: dict[int, tuple[BaseProcess, Task]] = {}

    @property
    def running(self) -> Sequence[Task]:
        """The tasks that are running now; after the engine was closed, those that it ended."""
        return [task for _, task in self._processes.values()]

    def run(self, tasks: Sequence[Task], command: str) -> Generator[Ended | None, None, None]:
        """Execute all tasks; see :class:`srl.experiment.engines.Engine`."""
        context = process_context()
        waiting = list(tasks)
        try:
            while waiting or self._processes:
                while waiting and len(self._processes) < self._n_jobs:
                    task = waiting.pop(0)
                    process: BaseProcess = context.Process(target=_work, args=(task, command))
                    process.start()
                    self._processes[process.sentinel] = (process, task)
                for sentinel in wait(list(self._processes), timeout=0.1):
                    assert isinstance(sentinel, int)
                    process, task = self._processes.pop(sentinel)
                    process.join()
                    yield Ended(task, killed=_why(process.exitcode))
                yield None
        finally:
            self._stop()

    def _stop(self) -> None:
        for process, _ in self._processes.values():
            process.terminate()
        for process, _ in self._processes.values():
            process.join(_GRACE)
            if process.is_alive():
                process.kill()
                process.join()


def _why(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return "" if exit_code in (0, 1) else f"its process ended with status {exit_code}"


def _stop_in_order(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _end_with_the_sweep() -> None:
    """End this run when the sweep is gone, however it went, so that the same command can train it again."""
    sweep = parent_process()
    if sweep is not None:
        wait([sweep.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _work(task: Task, command: str) -> None:
    """The process of a task: what it prints goes into the folder of its first run."""
    # Ctrl-C reaches the whole process group; the sweep ends its runs in order by SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop_in_order)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    task.log.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    raise SystemExit(execute(task, command))
