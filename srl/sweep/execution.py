"""Execute a sweep's plan on an engine, and retry runs whose processes crash, hang or are killed.

The run directories are the only record of finished runs. The state in memory may be lost at any moment: the
same command reads the folders and resumes.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from srl.errors import UserError
from srl.rundir.checkpoints import last_checkpoint
from srl.rundir.directory import RunDirectory
from srl.rundir.disk import is_full, out_of_space
from srl.rundir.plan import PlannedRun
from srl.rundir.progress import Progress, RunProgress, State, beat_interval
from srl.rundir.status import Status
from srl.sweep.engines import Ended, Engine, Job, Order, Task
from srl.sweep.plan import Plan

#: Seconds between two checks of running runs, and of runs that other processes train.
_CHECK_INTERVAL = 0.5
_ELSEWHERE_INTERVAL = 2.0
#: Seconds to wait for the end of a task.
_WAIT = 0.1
#: Number of ends of a population at the same checkpoint after which it is divided.
_ENDS_TOGETHER = 3
#: Number of external kills that count as one failure.
_ENDS_FOR_A_FAILURE = 5


@dataclass(frozen=True)
class Persistence:
    """How a sweep treats failures.

    :raises UserError: If a value is out of range.
    """

    #: How often a run without progress is retried from its last checkpoint; five times as often if its
    #: process was killed, which is usually not its fault.
    retries: int = 3
    #: Seconds without a heartbeat after which a run is killed.
    stall_timeout: float = 1800.0
    #: Seconds between two checkpoints of a run.
    checkpoint_every: float = 180.0

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise UserError(f"--retries {self.retries}: must be 0 or above.")
        if not self.stall_timeout > 0:
            raise UserError(f"--stall-timeout {self.stall_timeout:g}: must be above 0 seconds.")
        check_interval(self.checkpoint_every)


@dataclass(frozen=True)
class SweepProgress(Progress):
    """The progress of a sweep, from its run directories."""

    #: The runs of each running task, by its name.
    tasks: dict[str, list[RunProgress]]
    #: Runs that another sweep or process trains.
    n_elsewhere: int


def run_sweep(
    plan: Plan,
    engine: Engine,
    command: str,
    *,
    tell: Callable[[SweepProgress], None],
    say: Callable[[str], None],
    persistence: Persistence | None = None,
) -> dict[str, str]:
    """Execute the pending runs of a plan.

    A run that crashes, is killed or has no heartbeat is retried from its last checkpoint; the reason is in
    its status. A population that is killed or hangs three times without progress is divided in halves, so
    that one broken run does not stop the others. Runs that another process trains are waited for, and
    trained here if it ends without finishing them.

    :param engine: Executes the runs; it is closed at the end.
    :param tell: Called with the progress about twice a second.
    :param say: Called with a line for each run that fails or is retried.
    :return: The reasons of failed runs, by path.
    :raises OutOfSpace: If the disk is full. Running tasks are terminated.
    """
    execution = _Execution(plan, engine, command, tell, say, persistence or Persistence())
    try:
        while execution.step():
            pass
        tell(execution.progress())
    finally:
        engine.close()
        execution.mark_stopped()
    return execution.failures


@dataclass
class _Running:
    task: Task
    #: Why this process killed it; empty if it did not.
    ended_because: str = ""
    #: The statuses of its started runs: a cluster may queue the task.
    statuses: dict[Path, Status] = field(default_factory=dict)
    #: Seconds without a change of these, by the monotonic clock of this process.
    silence: float = 0.0

    def __post_init__(self) -> None:
        #: The statuses of earlier attempts.
        self.earlier = {job.path: RunDirectory(job.path).read_status() for job in self.task.jobs}


@dataclass
class _Execution:
    plan: Plan
    engine: Engine
    command: str
    tell: Callable[[SweepProgress], None]
    say: Callable[[str], None]
    persistence: Persistence

    def __post_init__(self) -> None:
        self.failures: dict[str, str] = {}
        self._runs: dict[Path, RunProgress] = {}
        done = {job.path for job in self.plan.done}
        for job in self.plan.jobs:
            if job.path in done:
                self._record(job, "done", RunDirectory(job.path).read_status())
            else:
                self._record(job)
        self._waiting = deque(self.plan.tasks)
        self._running: list[_Running] = []
        #: Tasks of jobs that another process trains.
        self._elsewhere: list[Task] = []
        #: The training steps of each run's last checkpoint at the last check.
        self._last_checkpoint: dict[Path, int] = {}
        #: Weighted number of ends of each run since then, and number of ends together with others.
        self._ends: Counter[Path] = Counter()
        self._ends_together: Counter[Path] = Counter()
        self._checked = time.monotonic()
        self._next_check = self._next_check_elsewhere = 0.0

    def step(self) -> bool:
        """Advance for a moment; return whether runs are pending."""
        self._start()
        for ended in self.engine.wait(_WAIT):
            self._handle_end(ended)
        now = time.monotonic()
        if now >= self._next_check:
            self._check_running()
            # With many queued tasks on a slow file system, a check takes long
            took = time.monotonic() - now
            self._next_check = now + max(_CHECK_INTERVAL, 10 * took)
            self.tell(self.progress())
        if now >= self._next_check_elsewhere:
            self._next_check_elsewhere = now + _ELSEWHERE_INTERVAL
            self._check_elsewhere()
        return bool(self._waiting or self._running or self._elsewhere)

    def progress(self) -> SweepProgress:
        """The progress of the sweep."""
        tasks = {}
        for running in self._running:
            runs = [self._runs[path] for path in running.statuses]
            if training := [run for run in runs if run.state == "running"]:
                tasks[running.task.name] = training
        n_elsewhere = sum(len(task.jobs) for task in self._elsewhere)
        return SweepProgress(list(self._runs.values()), tasks, n_elsewhere)

    def mark_stopped(self) -> None:
        """Record in the statuses of unfinished runs that the sweep was stopped."""
        for running in self._running:
            for job in running.task.jobs:
                directory = RunDirectory(job.path)
                status = directory.read_status()
                # A run that is stopped while it imports or writes may report any error
                if status is not None and status.state != "done" and not directory.in_progress:
                    with suppress(OSError):  # the run counts as interrupted anyway
                        directory.write_status(
                            status.ended_as("interrupted", time.time(), "the sweep was stopped")
                        )

    def _start(self) -> None:
        room = self.engine.room
        orders: list[Order] = []
        while self._waiting and len(orders) < room:
            task = self._free_part(self._waiting.popleft())
            if task is not None:
                orders.append(Order(task, self.command, self.persistence.checkpoint_every))
        if orders:
            running = [_Running(order.task) for order in orders]
            self.engine.submit(orders)
            self._running += running
            self._next_check = 0.0

    def _free_part(self, task: Task) -> Task | None:
        """The pending jobs of a task that no other process trains."""
        free: list[Job] = []
        held: list[Job] = []
        for job in task.jobs:
            directory = RunDirectory(job.path)
            try:
                if directory.in_progress:
                    held.append(job)
                    self._record(job, "running", directory.read_status())
                elif directory.compare(job.spec) == "done":
                    self._record(job, "done", directory.read_status())
                else:
                    free.append(job)
            except UserError as error:  # its folder has changed since the sweep was planned
                self._fail(job, str(error))
        if held:
            self._elsewhere.append(Task(tuple(held)))
        return Task(tuple(free)) if free else None

    def _check_running(self) -> None:
        """Read the statuses of running runs, and kill tasks that hang."""
        now = time.monotonic()
        elapsed, self._checked = now - self._checked, now
        for running in self._running:
            # Heartbeats of a large population are less frequent
            limit = max(self.persistence.stall_timeout, 4 * beat_interval(len(running.task.jobs)))
            earlier, running.statuses = running.statuses, {}
            for job in running.task.jobs:
                status = RunDirectory(job.path).read_status()
                # It may be of an earlier attempt
                if status is not None and status != running.earlier[job.path]:
                    running.statuses[job.path] = status
                    self._record(job, status.state, status)
            # A task that waits in a cluster's queue holds no lock
            is_training = any(RunDirectory(job.path).in_progress for job in running.task.jobs)
            if running.statuses and running.statuses == earlier and is_training:
                # While this process was suspended, its runs may have been suspended too
                running.silence += min(elapsed, limit / 4)
            else:
                running.silence = 0.0
            if running.silence > limit and not running.ended_because:
                running.ended_because = (
                    f"no heartbeat for {limit:,.0f} s, so it was killed (--stall-timeout); see the "
                    f"end of {running.task.log}"
                )
                self.engine.end(running.task)

    def _record(self, job: Job, state: State | None = None, status: Status | None = None) -> None:
        """Record the progress of a run; without a state it is waiting."""
        checkpoint = last_checkpoint(job.path) if state is None else 0
        state = state or ("interrupted" if checkpoint else "not started")
        entry = PlannedRun.of(job.spec)
        self._runs[job.path] = RunProgress(job.spec.path, entry, state, status, checkpoint=checkpoint)

    def _check_elsewhere(self) -> None:
        """Queue runs that another process has stopped training."""
        tasks, self._elsewhere = self._elsewhere, []
        for task in tasks:
            free = self._free_part(task)
            if free is not None:
                self._waiting.append(free)

    def _handle_end(self, ended: Ended) -> None:
        """Record the results of a task that has ended, and queue unfinished runs again."""
        running = next(running for running in self._running if running.task is ended.task)
        self._running.remove(running)
        self._next_check = 0.0
        killed = running.ended_because or ended.killed
        again: list[Job] = []
        #: The same by the step that they resume from, and the reason.
        alike: dict[tuple[int, str], list[Job]] = {}
        elsewhere: list[Job] = []
        for job in ended.task.jobs:
            directory = RunDirectory(job.path)
            status = directory.read_status()
            if directory.is_finished():
                self._record(job, "done", status)
            elif directory.in_progress:
                elsewhere.append(job)  # another sweep has started it
            else:
                reason = self._reason(job, status, killed, running)
                if is_full(self.plan.root, reason):  # every run would fail
                    raise out_of_space(self.plan.root)
                # If a population was killed, the run at fault is unknown
                if killed and len(ended.task.jobs) > 1:
                    weight = 0
                else:
                    is_external = ended.killed and not running.ended_because
                    weight = 1 if is_external else _ENDS_FOR_A_FAILURE
                if self._is_retried(job, status, reason, weight):
                    again.append(job)
                    self._record(job)
                    alike.setdefault((self._last_checkpoint[job.path], reason), []).append(job)
                else:
                    self._fail(job, reason)
        if elsewhere:
            self._elsewhere.append(Task(tuple(elsewhere)))
        for (steps, reason), jobs in alike.items():
            from_where = f"from step {steps:,}" if steps else "from the start"
            self.say(f"retried {from_where}: {Task(tuple(jobs)).name}: {reason}")
        if max((self._ends_together[job.path] for job in again), default=0) >= _ENDS_TOGETHER:
            middle = -(-len(again) // 2)
            self._waiting.extend(Task(tuple(half)) for half in (again[:middle], again[middle:]) if half)
        elif again:
            self._waiting.append(Task(tuple(again)))

    def _reason(self, job: Job, status: Status | None, killed: str, running: _Running) -> str:
        """Why a run has ended unfinished; the reason is also written to its status if possible."""
        own = status != running.earlier[job.path]
        if status is not None and own and status.state == "failed" and not killed:
            return status.reason
        reason = killed or f"it ended without an error message; see {running.task.log}"
        directory = RunDirectory(job.path)
        try:
            directory.compare(job.spec)  # by now it may belong to another run
            directory.write_status((status or Status("running")).ended_as("failed", time.time(), reason))
        except (OSError, UserError) as error:
            return f"{reason}; and its folder cannot be written: {error}"
        return reason

    def _is_retried(self, job: Job, status: Status | None, reason: str, weight: int) -> bool:
        """Whether a run is retried after an end of a weight, 0 for an end together with others."""
        steps = last_checkpoint(job.path)
        if steps > self._last_checkpoint.get(job.path, 0):
            self._ends[job.path] = self._ends_together[job.path] = 0
        self._last_checkpoint[job.path] = steps
        self._ends[job.path] += weight
        self._ends_together[job.path] += weight == 0
        lasting = status is not None and status.lasting
        return not lasting and self._ends[job.path] <= self.persistence.retries * _ENDS_FOR_A_FAILURE

    def _fail(self, job: Job, reason: str) -> None:
        self.failures[job.spec.path] = reason
        self._record(job, "failed")
        self.say(f"failed: {job.spec.path}: {reason}")


def check_interval(checkpoint_every: float) -> None:
    """Check the interval of checkpoints in seconds.

    :raises UserError: If it is negative.
    """
    if not checkpoint_every >= 0:
        raise UserError(f"--checkpoint-every {checkpoint_every:g}: must be 0 or more seconds.")


def held_elsewhere(tasks: Sequence[Task]) -> list[str]:
    """Lines on other processes that train pending runs; empty for none."""
    holders: Counter[str] = Counter()
    for task in tasks:
        for job in task.jobs:
            directory = RunDirectory(job.path)
            if directory.in_progress:
                status = directory.read_status()
                who = f"process {status.pid} on {status.host}" if status and status.pid else "another process"
                holders[who] += 1
    return [f"{who} trains {count} of these runs" for who, count in holders.items()]
