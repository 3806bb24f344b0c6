"""Runs and populations as jobs of a Slurm cluster, through submitit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srl.errors import UserError
from srl.sweep.engines import Ended, EngineOptions, Order, Task, option, why_ended
from srl.sweep.engines.remote import absolute, execute_elsewhere, in_progress, thread_variables

#: Slurm's default limit.
_LARGEST_ARRAY = 1000
#: Default number of parallel tasks of an array.
MAX_PARALLEL = 64
_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?([0-5]?\d):([0-5]\d)|(\d+)")
#: How often a job may reach its time limit and be requeued: practically unlimited.
_MAX_TIMEOUTS = 1000
#: Seconds before the time limit at which Slurm signals a job.
_SIGNAL_BEFORE = 120
#: Seconds between two checks of result files, and between two calls of sacct.
_CHECK_INTERVAL, _SACCT_INTERVAL = 2.0, 30.0
#: Seconds that tasks have to terminate.
_GRACE = 10.0
#: Final states of a job. Submitit also counts suspended jobs as ended.
_ENDED = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "its job was cancelled",
    "COMPLETED": "",
    "DEADLINE": "its job reached its deadline",
    "FAILED": "its job failed",
    "NODE_FAIL": "its node was lost",
    "OUT_OF_MEMORY": "its job ran out of memory",
    "PREEMPTED": "its job was pre-empted, and not queued again",
    "REVOKED": "its job was moved to another cluster",
    "TIMEOUT": "its job was ended at its time limit",
}
#: How often in succession Slurm must report them: a requeued job has them for a moment.
_TIMES_ENDED, _TIMES_PREEMPTED = 2, 10


@dataclass(frozen=True)
class Work:
    """The function of a job, which is requeued after a preemption or its time limit."""

    order: Order

    def __call__(self) -> int:
        """Execute the task in this process, from the runs' last checkpoints."""
        return execute_elsewhere(self.order)

    def checkpoint(self) -> Any:
        """Requeue the same function: its state is in the run directories."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass
class _Job:
    job: Any
    task: Task
    #: Its last state in Slurm, and how often in succession it was reported.
    state: str = ""
    times: int = 0


class SlurmEngine:
    """Jobs of a Slurm cluster: each call of :meth:`submit` is one array for the CPU, one for GPUs.

    A job that is preempted or reaches its time limit is requeued, and its runs resume from their last
    checkpoints; Slurm does the same with those of a node that fails. If this process dies, the jobs continue.

    :param folder: For Slurm's logs and pickled jobs, in storage that all nodes mount at the same path, like
        the run directories.
    :param cluster: ``"slurm"``, the default, or ``"local"`` for processes of this machine, for tests.
    :param partition: The partition; None for the cluster's default.
    :param time: Time limit of a job in minutes, after which it is requeued.
    :param max_parallel: The maximum number of parallel tasks of an array.
    :param mem_gb: Memory of a job; None for the cluster's default.
    :param options: More options of ``sbatch``, by their long names: ``{"account": "lab"}``; True for one
        without a value.
    :raises UserError: If submitit or Slurm is not available.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cluster: str | None = None,
        partition: str | None = None,
        time: int = 240,
        max_parallel: int = MAX_PARALLEL,
        mem_gb: float | None = None,
        options: Mapping[str, str | int | bool] | None = None,
    ):
        try:
            import submitit
        except ImportError:
            raise UserError("--engine slurm needs submitit: pip install 'symmetric-rl[slurm]'.") from None
        self._folder = folder.absolute()
        self._cluster = cluster or "slurm"
        self._max_parallel = max_parallel
        self._running: list[_Job] = []
        #: Orders that Slurm has rejected, which are submitted again.
        self._rejected: list[Order] = []
        self._accepted_once = False
        self._next_check = self._next_sacct = self._next_submit = 0.0
        self._parameters: dict[str, Any] = {
            "name": "srl",
            "timeout_min": time,
            "mem_gb": mem_gb,
            "stderr_to_stdout": True,
            "slurm_partition": partition,
            "slurm_signal_delay_s": _SIGNAL_BEFORE,
            "slurm_array_parallelism": max_parallel,
            "slurm_additional_parameters": {"requeue": True, **(options or {})},
        }
        if self._cluster == "slurm":
            _check_slurm()
        self._submitit = submitit

    @property
    def room(self) -> int:
        """The number of tasks that it accepts now: an array, or as many as can run beside the others."""
        n_there = len(self._running) + len(self._rejected)
        return _LARGEST_ARRAY if n_there == 0 else max(self._max_parallel - n_there, 0)

    def submit(self, orders: Sequence[Order]) -> None:
        """Start tasks; see :class:`srl.sweep.engines.Engine`.

        :raises UserError: If Slurm rejects the first orders. Later orders are submitted again.
        """
        alike: dict[tuple[bool, int], list[Order]] = {}
        for order in orders:
            key = (order.task.needs_gpu, order.task.jobs[0].spec.threads)
            alike.setdefault(key, []).append(order)
        for (needs_gpu, n_threads), group in alike.items():
            try:
                jobs = self._submit_alike(group, needs_gpu, n_threads)
            except (RuntimeError, OSError) as error:
                lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
                reason = f"Slurm did not take the jobs: {lines[-1] if lines else error}"
                if not self._accepted_once:
                    raise UserError(reason) from None
                print(f"{reason}; retrying.", file=sys.stderr)
                self._rejected += group
                self._next_submit = time.monotonic() + _SACCT_INTERVAL
                continue
            self._accepted_once = True
            self._running += [_Job(job, order.task) for job, order in zip(jobs, group, strict=True)]
        self._next_check = 0.0

    def _submit_alike(self, orders: Sequence[Order], needs_gpu: bool, n_threads: int) -> list[Any]:
        executor = self._submitit.AutoExecutor(
            self._folder,
            cluster=self._cluster,
            slurm_max_num_timeout=_MAX_TIMEOUTS,
            local_max_num_timeout=_MAX_TIMEOUTS,
        )
        variables = thread_variables(orders[0])
        executor.update_parameters(
            **self._parameters,
            cpus_per_task=n_threads,
            gpus_per_node=1 if needs_gpu else None,
            # They must be set before submitit imports NumPy
            slurm_setup=[f"export {name}={value}" for name, value in variables.items()],
        )
        with self._submitit.helpers.environment_variables(**variables):
            jobs: list[Any] = executor.submit_array([Work(absolute(order)) for order in orders])
        return jobs

    def wait(self, seconds: float) -> list[Ended]:
        """Wait for tasks to end; see :class:`srl.sweep.engines.Engine`."""
        deadline = time.monotonic() + seconds
        while not (ended := self._check()) and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return ended

    def end(self, task: Task) -> None:
        """Kill a task; see :class:`srl.sweep.engines.Engine`."""
        for running in self._running:
            if running.task is task:
                if self._cluster == "slurm":
                    self._scancel("--signal=USR1", [running])  # it prints its stack
                    self._scancel("", [running])
                else:
                    running.job.cancel()

    def close(self) -> None:
        """Terminate all tasks; see :class:`srl.sweep.engines.Engine`."""
        if self._running and self._cluster == "slurm":
            # Jobs ignore scancel's default signal, which Slurm also sends before a preemption
            self._scancel("--signal=INT", self._running)
            jobs = [job for each in self._running for job in each.task.jobs]
            self._wait_until(lambda: not in_progress(jobs))
            self._scancel("", self._running)
        else:
            for running in self._running:
                running.job.cancel()
            self._wait_until(lambda: all(running.job.done() for running in self._running))
        self._running.clear()
        self._rejected.clear()

    def _scancel(self, option: str, running: Sequence[_Job]) -> None:
        command = ["scancel", *([option] if option else []), *(each.job.job_id for each in running)]
        # It reports errors for jobs that have ended
        subprocess.run(command, check=False, capture_output=True)

    @staticmethod
    def _wait_until(condition: Any) -> None:
        deadline = time.monotonic() + _GRACE
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _check(self) -> list[Ended]:
        """Return the tasks that have ended."""
        now = time.monotonic()
        if self._rejected and now >= self._next_submit:
            again, self._rejected = self._rejected, []
            self.submit(again)
        if not self._running or now < self._next_check:
            return []
        if self._cluster != "slurm":
            return self._take({id(each): each.job.state for each in self._running if each.job.done()})
        self._next_check = now + _CHECK_INTERVAL
        # One system call instead of one for each job
        written = set(os.listdir(self._folder))
        ended = {id(each): "" for each in self._running if each.job.paths.result_pickle.name in written}
        if now >= self._next_sacct:
            self._next_sacct = now + _SACCT_INTERVAL
            ended |= {id(each): each.state for each in self._call_sacct() if id(each) not in ended}
        return self._take(ended)

    def _call_sacct(self) -> list[_Job]:
        """Ask Slurm for the states of jobs; return those that have ended."""
        arrays = dict.fromkeys(each.job.job_id.split("_")[0] for each in self._running)
        command = ["sacct", "-o", "JobID,State,NodeList", "--parsable2", "-j", ",".join(arrays)]
        try:
            answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return []  # it is called again
        from submitit.slurm.slurm import SlurmInfoWatcher

        states = SlurmInfoWatcher().read_info(answer.stdout)
        ended = []
        for each in self._running:
            # "CANCELLED by 1000"
            state = (states.get(each.job.job_id, {}).get("State") or "UNKNOWN").split()[0].rstrip("+")
            each.times = each.times + 1 if state == each.state else 1
            each.state = state
            if state in _ENDED and each.times >= (_TIMES_PREEMPTED if state == "PREEMPTED" else _TIMES_ENDED):
                ended.append(each)
        return ended

    def _take(self, states: Mapping[int, str]) -> list[Ended]:
        """Remove jobs that have ended in these states from the running ones."""
        taken = [each for each in self._running if id(each) in states]
        self._running = [each for each in self._running if id(each) not in states]
        return [Ended(each.task, killed=_why(each, states[id(each)])) for each in taken]


@dataclass(frozen=True)
class Options(EngineOptions):
    """A Slurm cluster."""

    partition: str | None = option(None, "Partition of the Slurm cluster. By default the cluster's default.")
    time: str = option(
        "4:00:00",
        "Time limit of a Slurm job, as H:MM:SS or minutes. A job that reaches it is requeued.",
    )

    def check(self) -> None:
        """Check the options; see :class:`srl.sweep.engines.EngineOptions`."""
        parse_minutes(self.time)

    def capacity(self, *, on_gpus: bool = False) -> tuple[int, float | None]:
        """The number of parallel tasks of an array."""
        return self.n_jobs or MAX_PARALLEL, None

    def start(self, root: Path, n_jobs: int) -> SlurmEngine:
        """Start the engine; see :class:`srl.sweep.engines.EngineOptions`."""
        return SlurmEngine(
            root / "slurm", partition=self.partition, time=parse_minutes(self.time), max_parallel=n_jobs
        )


def parse_minutes(text: str) -> int:
    """Read the option ``--time``.

    :param text: Minutes, or Slurm's ``[D-][H:]MM:SS``; seconds are rounded up to a minute.
    :raises UserError: For anything else, and for zero.
    """
    match = _TIME.fullmatch(text)
    minutes = 0
    if match is not None:
        days, hours, odd, seconds, whole = match.groups()
        minutes = int(whole or 0) + int(days or 0) * 1440 + int(hours or 0) * 60 + int(odd or 0)
        minutes += int(seconds or 0) > 0
    if minutes < 1:
        raise UserError(f"--time {text}: must be H:MM:SS or minutes, at least one minute.")
    return minutes


def _why(ended: _Job, state: str) -> str:
    """Why a job was killed, in one line; empty if it was not."""
    from submitit.core.utils import pickle_load

    try:
        outcome, result = pickle_load(ended.job.paths.result_pickle)
    except Exception:  # it is missing or truncated
        if state in _ENDED:
            return f"{_ENDED[state]} (Slurm: {state})" if _ENDED[state] else ""
        return f"its job ended without a result; see {ended.job.paths.stdout}"
    if outcome == "success":
        return why_ended(result)
    lines = [line.strip() for line in str(result).splitlines() if line.strip()]
    return f"its job failed: {(lines or [''])[-1][:200]}"


def _check_slurm() -> None:
    """Raise a UserError if jobs cannot be submitted or followed from here."""
    missing = [
        name for name in ("sbatch", "srun", "sacct", "scancel", "scontrol") if shutil.which(name) is None
    ]
    if missing:
        raise UserError(
            f"--engine slurm: no {', '.join(missing)} on the PATH. Run the command on a machine that can "
            "submit jobs, or use --engine local."
        )
    ask = ["sacct", "--noheader", "--allocations", "--starttime=now"]
    try:
        subprocess.run(ask, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = " ".join((getattr(error, "stderr", None) or str(error)).split())
        raise UserError(
            f"--engine slurm: sacct, which reports the states of jobs, does not work here: {said}"
        ) from None
