"""Runs and populations as processes of this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from srl.errors import UserError
from srl.sweep.engines import Ended, EngineOptions, Order, Task, execute, log_to_file, why_ended

#: Seconds that a run is given to end in order.
_GRACE = 10.0
#: Seconds that a process which is ended at once has to say where it is.
_LAST_WORDS = 1.0
#: What the process that others are forked from imports. The first optimizer of a process imports
#: torch._dynamo, which takes more than a second.
PRELOADED = ["srl.training.stacked.train", "torch._dynamo"]
#: How often a process is restarted if the one that it is forked from is killed.
_STARTS = 5
#: Settings of the thread pools below torch and NumPy; they are read when those are imported.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def use_one_thread(n_threads: int = 1) -> None:
    """Limit the thread pools below torch and NumPy, here before they are imported and in child processes."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(n_threads)


def process_context() -> ForkServerContext:
    """Where a sweep's processes come from: forks of one process that has imported torch and nothing else."""
    use_one_thread()
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # It must outlive a closed terminal until its runs have ended, as it does Ctrl-C
    handler = None
    if threading.current_thread() is threading.main_thread():
        handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        if handler is not None:
            signal.signal(signal.SIGHUP, handler)
    return context


def start_process(make: Callable[[], BaseProcess]) -> BaseProcess:
    """Start a process of :func:`process_context`, also when the one that they come from was just killed.

    :param make: Makes it.
    :raises UserError: If that is killed again and again.
    """
    for _ in range(_STARTS):
        process = make()
        try:
            process.start()
        except (EOFError, ConnectionError):
            time.sleep(0.5)  # until the system has noticed; then the next call begins another
        else:
            return process
    raise UserError("no process can be started: the one that they are forked from is killed each time.")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


@dataclass
class _Running:
    process: BaseProcess
    task: Task
    #: The GPU that it was given; None for none, or one that its runs name themselves.
    gpu: str | None


class LocalEngine:
    """As many tasks at once as told, each an independent process with one thread.

    Tasks for ``cuda`` are spread over the GPUs that are visible, the next to the one that has the fewest.

    :param n_jobs: How many run at once.
    """

    def __init__(self, n_jobs: int):
        self._n_jobs = n_jobs
        self._running: list[_Running] = []
        self._context = process_context()
        self._gpus: list[str] | None = None

    @property
    def room(self) -> int:
        """How many more tasks it takes now."""
        return self._n_jobs - len(self._running)

    def submit(self, orders: Sequence[Order]) -> None:
        """Start tasks; see :class:`srl.sweep.engines.Engine`."""
        for order in orders:
            gpu = self._free_gpu(order.task)
            process = start_process(partial(self._context.Process, target=_work, args=(order, gpu)))
            self._running.append(_Running(process, order.task, gpu))

    def wait(self, seconds: float) -> list[Ended]:
        """Wait for tasks to end; see :class:`srl.sweep.engines.Engine`."""
        if not self._running:
            time.sleep(seconds)
            return []
        ready = wait([running.process.sentinel for running in self._running], timeout=seconds)
        ended = []
        for running in [running for running in self._running if running.process.sentinel in ready]:
            self._running.remove(running)
            running.process.join()
            ended.append(Ended(running.task, killed=why_ended(running.process.exitcode)))
        return ended

    def end(self, task: Task) -> None:
        """End a task at once; see :class:`srl.sweep.engines.Engine`."""
        for running in self._running:
            if running.task is task and running.process.pid is not None:
                if running.process.is_alive():
                    os.kill(running.process.pid, signal.SIGUSR1)
                    running.process.join(_LAST_WORDS)
                running.process.kill()

    def close(self) -> None:
        """End all tasks in order."""
        for running in self._running:
            running.process.terminate()
        deadline = time.monotonic() + _GRACE
        for running in self._running:
            running.process.join(max(deadline - time.monotonic(), 0))
            if running.process.is_alive():
                running.process.kill()
                running.process.join()
        self._running.clear()

    def _free_gpu(self, task: Task) -> str | None:
        # cuda:N is a GPU that the user has chosen
        if task.jobs[0].spec.device != "cuda":
            return None
        if self._gpus is None:
            self._gpus = visible_gpus()
        if len(self._gpus) < 2:
            return None
        taken = Counter(running.gpu for running in self._running)
        return min(self._gpus, key=lambda gpu: taken[gpu])


class Options(EngineOptions):
    """Processes of this machine."""

    def start(self, root: Path, n_jobs: int) -> LocalEngine:
        """Start the engine; see :class:`srl.sweep.engines.EngineOptions`."""
        return LocalEngine(n_jobs)


def _stop_in_order(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _end_with_the_sweep() -> None:
    """End this run when the sweep is gone, however it went, so that the same command can resume it."""
    sweep = parent_process()
    if sweep is not None:
        wait([sweep.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os.kill(os.getpid(), signal.SIGKILL)  # it hangs where no signal is heard


def _work(order: Order, gpu: str | None) -> None:
    """The process of a task: what it prints goes into the folder of its first run."""
    # Ctrl-C and a closed terminal reach the whole process group; the sweep ends its runs in order by SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop_in_order)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    log_to_file(order.task)
    status = execute(order)
    # A thread that an environment has left behind must not keep the process
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
