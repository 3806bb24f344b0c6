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

#: Seconds that a run has to terminate.
_GRACE = 10.0
#: Seconds that a process has to print its stack before it is killed.
_TRACEBACK = 1.0
#: Imports of the fork server. The first optimizer of a process imports
#: torch._dynamo, which takes more than a second.
PRELOADED = ["srl.training.stacked.train", "torch._dynamo"]
#: How often the start of a process is tried while the fork server is killed.
_STARTS = 5
#: Settings of the thread pools below torch and NumPy; they are read when those are imported.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def use_one_thread(n_threads: int = 1) -> None:
    """Limit the thread pools below torch and NumPy, here before they are imported and in child processes."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(n_threads)


def process_context() -> ForkServerContext:
    """The fork server of a sweep's processes, which has imported torch."""
    use_one_thread()
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # It must survive a closed terminal until its runs have ended, as it survives Ctrl-C
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
    """Start a process of :func:`process_context`, also if the fork server was just killed.

    :raises UserError: If the fork server is killed again and again.
    """
    for _ in range(_STARTS):
        process = make()
        try:
            process.start()
        except (EOFError, ConnectionError):
            time.sleep(0.5)  # then the next call starts another fork server
        else:
            return process
    raise UserError("no process can be started: the fork server is killed each time.")


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
    #: Its GPU; None for none, or if its runs name their GPU.
    gpu: str | None


class LocalEngine:
    """Independent processes with one thread each.

    A task for ``cuda`` gets the visible GPU with the fewest tasks.
    """

    def __init__(self, n_jobs: int):
        self._n_jobs = n_jobs
        self._running: list[_Running] = []
        self._context = process_context()
        self._gpus: list[str] | None = None

    @property
    def room(self) -> int:
        """The number of tasks that it accepts now."""
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
        """Kill a task; see :class:`srl.sweep.engines.Engine`."""
        for running in self._running:
            if running.task is task and running.process.pid is not None:
                if running.process.is_alive():
                    os.kill(running.process.pid, signal.SIGUSR1)
                    running.process.join(_TRACEBACK)
                running.process.kill()

    def close(self) -> None:
        """Terminate all tasks; see :class:`srl.sweep.engines.Engine`."""
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
        # With cuda:N the user has chosen the GPU
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


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _end_with_the_sweep() -> None:
    """End this process when the sweep has ended, so that the same command can resume its runs."""
    sweep = parent_process()
    if sweep is not None:
        wait([sweep.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os.kill(os.getpid(), signal.SIGKILL)  # Python does not handle signals while it hangs


def _work(order: Order, gpu: str | None) -> None:
    """Execute a task in a new process."""
    # Ctrl-C and a closed terminal reach the whole process group; the sweep terminates its runs by SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminate)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    log_to_file(order.task)
    status = execute(order)
    # A remaining thread of an environment must not keep the process alive
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
