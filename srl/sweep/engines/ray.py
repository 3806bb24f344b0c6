"""Runs and populations as tasks of a Ray cluster, which restarts the tasks of a lost node on another."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srl.errors import UserError
from srl.sweep.engines import Ended, EngineOptions, Order, Task, option, why_ended
from srl.sweep.engines.remote import absolute, execute_elsewhere, in_progress, thread_variables

#: Ray queues tasks that it cannot run yet.
_ROOM = 100_000
#: Seconds that a node has to answer, and that tasks have to terminate.
_ANSWER, _GRACE = 5.0, 10.0


class RayEngine:
    """Tasks of a Ray cluster, each in its own process.

    Run directories must be in storage that all nodes mount at the same path, and srl must be installed on
    all nodes. If this process dies, Ray ends its tasks.

    :param address: ``"auto"`` for the cluster of this machine, ``HOST:PORT`` of its head, or ``"local"`` for
        a cluster of this machine alone that ends with the engine.
    :param n_jobs: The maximum number of submitted tasks; None for no limit: Ray queues them.
    :param tasks_per_gpu: The number of tasks that share a GPU.
    :param n_lost: How often Ray restarts a task whose node or process is lost.
    :raises UserError: If Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str, *, n_jobs: int | None = None, tasks_per_gpu: int = 4, n_lost: int = 10):
        self._ray = ray = _import_ray()
        self._n_jobs = n_jobs or _ROOM
        self._tasks_per_gpu = tasks_per_gpu
        self._n_lost = n_lost
        self._running: dict[Any, Task] = {}
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            _connect(ray, address)
        # A new process for each task, without state of earlier runs
        self._work = ray.remote(max_calls=1)(execute_elsewhere)

    @property
    def room(self) -> int:
        """The number of tasks that it accepts now."""
        return self._n_jobs - len(self._running)

    def submit(self, orders: Sequence[Order]) -> None:
        """Start tasks; see :class:`srl.sweep.engines.Engine`."""
        for order in orders:
            task = order.task
            options: dict[str, Any] = {
                "name": task.name,
                "num_cpus": task.jobs[0].spec.threads,
                "max_retries": self._n_lost,
                "runtime_env": {"env_vars": thread_variables(order)},
            }
            if task.needs_gpu:
                options["num_gpus"] = 1 / self._tasks_per_gpu
            self._running[self._work.options(**options).remote(absolute(order))] = task

    def wait(self, seconds: float) -> list[Ended]:
        """Wait for tasks to end; see :class:`srl.sweep.engines.Engine`."""
        if not self._running:
            time.sleep(seconds)
            return []
        if not self._ended(1, seconds):
            return []
        return [Ended(self._running.pop(ref), killed=self._why(ref)) for ref in self._ended(None, 0)]

    def end(self, task: Task) -> None:
        """Kill a task; see :class:`srl.sweep.engines.Engine`."""
        for ref, running in self._running.items():
            if running is task:
                self._ray.cancel(ref, force=True)

    def close(self) -> None:
        """Terminate all tasks; see :class:`srl.sweep.engines.Engine`."""
        jobs = [job for task in self._running.values() for job in task.jobs]
        for force in (False, True):
            for ref in self._running:
                self._ray.cancel(ref, force=force)
            # Ray reports the end of a task before its process has ended
            deadline = time.monotonic() + _GRACE
            for ref in self._ended(None, _GRACE):
                del self._running[ref]
            while in_progress(jobs) and time.monotonic() < deadline:
                time.sleep(0.1)
        self._running.clear()
        if self._started_ray:
            self._ray.shutdown()

    def _ended(self, count: int | None, seconds: float) -> list[Any]:
        """Wait until a number of tasks, or all, have ended; return those that have."""
        refs = list(self._running)
        if not refs:
            return []
        ready: list[Any]
        ready, _ = self._ray.wait(refs, num_returns=count or len(refs), timeout=seconds, fetch_local=False)
        return ready

    def _why(self, ref: Any) -> str:
        """Why a task was killed, in one line; empty if it was not."""
        exceptions = self._ray.exceptions
        try:
            return why_ended(self._ray.get(ref))
        except exceptions.RayTaskError as error:
            return f"its process failed: {type(error.cause).__name__}: {_first_line(error.cause)}"
        except exceptions.TaskCancelledError:
            return "it was cancelled"
        except exceptions.RayError as error:
            why = {
                exceptions.OutOfMemoryError: "its node ran out of memory",
                exceptions.NodeDiedError: "its node was lost",
                exceptions.WorkerCrashedError: "its process was ended from outside or crashed",
            }.get(type(error), "Ray could not do it")
            return f"{why} ({type(error).__name__}: {_first_line(error)})"


@dataclass(frozen=True)
class Options(EngineOptions):
    """A Ray cluster."""

    address: str = option("auto", "Address of the Ray cluster: auto, HOST:PORT, or local for this machine.")
    tasks_per_gpu: int = option(4, "Number of runs or populations that share a GPU of a Ray cluster.")

    def check(self) -> None:
        """Check the options; see :class:`srl.sweep.engines.EngineOptions`."""
        if self.tasks_per_gpu < 1:
            raise UserError(f"--tasks-per-gpu {self.tasks_per_gpu}: must be 1 or above.")

    def capacity(self, *, on_gpus: bool = False) -> tuple[int, float | None]:
        """The resources of the cluster; tasks on GPUs share its GPUs."""
        if self.address == "local":
            return super().capacity()
        if self.n_jobs is not None:
            return self.n_jobs, None
        resources = cluster_resources(self.address)
        n_jobs = resources.get("CPU", 1)
        if on_gpus:
            n_jobs = min(n_jobs, resources.get("GPU", 0) * self.tasks_per_gpu)
        return max(int(n_jobs), 1), resources.get("memory")

    def start(self, root: Path, n_jobs: int) -> RayEngine:
        """Start the engine. Without ``--jobs`` it runs more tasks when machines join the cluster."""
        return RayEngine(self.address, n_jobs=self.n_jobs, tasks_per_gpu=self.tasks_per_gpu)


def cluster_resources(address: str) -> dict[str, float]:
    """The total resources of a cluster: ``"CPU"``, ``"GPU"``, and ``"memory"`` in bytes.

    :param address: See :class:`RayEngine`.
    :raises UserError: If Ray is not installed, or no cluster answers.
    """
    ray = _import_ray()
    _connect(ray, address)
    try:
        resources: dict[str, float] = ray.cluster_resources()
        return resources
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    # Disable usage statistics, and a warning of each process about GPUs
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install 'symmetric-rl[ray]'.") from None
    return ray


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [""])[0][:200]


def _connect(ray: Any, address: str) -> None:
    """Connect to a cluster, or start one on this machine.

    :raises UserError: If there is none.
    """
    what_to_do = "Start one with: ray start --head, and on the other machines: ray start --address HOST:6379."
    if address.startswith("ray://"):
        raise UserError(f"--address {address}: a sweep runs on a node of the cluster; give auto there.")
    if address not in ("auto", "local"):
        _check_answer(address, what_to_do)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        ray.init(
            address=address,
            namespace="srl",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **({"include_dashboard": False} if address == "local" else {}),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--address {address}: no Ray cluster: {_first_line(error)} {what_to_do}") from None
    finally:
        # Ray installs a handler for SIGTERM that aborts
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)


def _check_answer(address: str, what_to_do: str) -> None:
    """Check that a cluster answers: Ray would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and int(port) < 2**16):
        raise UserError(f"--address {address}: must be auto, local, or HOST:PORT of a cluster's head.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except OSError as error:
        raise UserError(f"--address {address}: nothing answers there: {error}. {what_to_do}") from None
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return  # Ray checks the certificates
    import grpc  # type: ignore[import-untyped]

    channel = grpc.insecure_channel(address)
    try:
        grpc.channel_ready_future(channel).result(timeout=_ANSWER)
    except grpc.FutureTimeoutError:
        raise UserError(
            f"--address {address}: the server there is not the head of a Ray cluster. {what_to_do}"
        ) from None
    finally:
        channel.close()
