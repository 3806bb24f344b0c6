"""Execute a sweep's plan on an engine, whatever happens to its processes.

The run directories are the only record of finished runs. The state in memory - which tasks run, how often
each was tried - may be lost at any moment: the same command reads the folders and resumes.
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

#: Seconds between two looks into the folders of what runs, and of what others run.
_LOOK_INTERVAL = 0.5
_ELSEWHERE_INTERVAL = 2.0
#: Seconds that an engine is given to say that a task has ended.
_PATIENCE = 0.1
#: How often a population is ended at the same checkpoint before it is divided.
_ENDS_TOGETHER = 3
#: How many ends from outside count as much as one failure.
_ENDS_FOR_A_FAILURE = 5


@dataclass(frozen=True)
class Persistence:
    """How a sweep goes about what goes wrong."""

    #: How often a run is retried from where it was, if it does not get any further; five times as often
    #: one whose process is ended from outside, which is mostly not its fault.
    retries: int = 3
    #: Seconds without a sign of life after which a run is ended.
    stall_timeout: float = 1800.0
    #: Seconds between two checkpoints of a run.
    checkpoint_every: float = 180.0


@dataclass(frozen=True)
class SweepProgress(Progress):
    """How far a sweep is, from its run directories."""

    #: The runs of each task that trains, by its name.
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

    A run that crashes, is killed or has no heartbeat is retried from its last checkpoint; the
    reason is in its status. A population that is killed or hangs thrice without getting any further is
    divided in halves, so that one run that cannot be trained does not take others with it. Runs that another
    process trains are waited for, and taken over if it ends without finishing them.

    :param plan: The plan, written.
    :param engine: What executes the runs; it is closed at the end.
    :param command: The command that asked for it, for the record.
    :param tell: Is given the progress about twice a second.
    :param say: Is given a line for each run that fails or is retried.
    :param persistence: How to go about what goes wrong.
    :return: Why runs failed, by their paths.
    :raises OutOfSpace: If the disk is full. What runs is ended in order.
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
    #: Why it was ended from here; empty if it was not.
    ended_because: str = ""
    #: Of its runs that have begun: a cluster may let it wait.
    statuses: dict[Path, Status] = field(default_factory=dict)
    #: Seconds in which these have not changed, by this process' monotonic clock.
    silence: float = 0.0

    def __post_init__(self) -> None:
        #: The statuses that earlier attempts left.
        self.earlier = {job.path: RunDirectory(job.path).read_status() for job in self.task.jobs}


class _Execution:
    def __init__(
        self,
        plan: Plan,
        engine: Engine,
        command: str,
        tell: Callable[[SweepProgress], None],
        say: Callable[[str], None],
        persistence: Persistence,
    ):
        self.failures: dict[str, str] = {}
        self._root = plan.root
        self._jobs = plan.jobs
        self._engine = engine
        self._command = command
        self._tell = tell
        self._say = say
        self._persistence = persistence
        self._runs: dict[Path, RunProgress] = {}
        done = {job.path for job in plan.done}
        for job in plan.jobs:
            if job.path in done:
                self._note(job, "done", RunDirectory(job.path).read_status())
            else:
                self._note(job)
        self._waiting = deque(plan.tasks)
        self._running: list[_Running] = []
        #: Tasks of jobs that another process trains.
        self._elsewhere: list[Task] = []
        #: The training steps of each run's last checkpoint when it was seen last.
        self._got_to: dict[Path, int] = {}
        #: What has happened to each since: ends from outside, a failure counting as several, and how often it
        #: was ended together with others.
        self._ends: Counter[Path] = Counter()
        self._ends_together: Counter[Path] = Counter()
        self._looked = time.monotonic()
        self._next_look = self._next_look_elsewhere = 0.0

    def step(self) -> bool:
        """Advance for a moment; return whether runs are pending."""
        self._start()
        for ended in self._engine.wait(_PATIENCE):
            self._settle(ended)
        now = time.monotonic()
        if now >= self._next_look:
            self._look()
            # Where many wait in a cluster's queue, and folders lie far away, looking takes long
            took = time.monotonic() - now
            self._next_look = now + max(_LOOK_INTERVAL, 10 * took)
            self._tell(self.progress())
        if now >= self._next_look_elsewhere:
            self._next_look_elsewhere = now + _ELSEWHERE_INTERVAL
            self._look_elsewhere()
        return bool(self._waiting or self._running or self._elsewhere)

    def progress(self) -> SweepProgress:
        """How far the sweep is."""
        tasks = {}
        for running in self._running:
            runs = [self._runs[path] for path in running.statuses]
            if training := [run for run in runs if run.state == "running"]:
                tasks[running.task.name] = training
        n_elsewhere = sum(len(task.jobs) for task in self._elsewhere)
        return SweepProgress(list(self._runs.values()), tasks, n_elsewhere)

    def mark_stopped(self) -> None:
        """Say in the folders of runs that this has ended why they ended."""
        for running in self._running:
            for job in running.task.jobs:
                directory = RunDirectory(job.path)
                status = directory.read_status()
                # A run that is stopped while it imports or writes can fail in any way, and names that
                if status is not None and status.state != "done" and not directory.in_progress:
                    with suppress(OSError):  # its process is gone, which tells as much
                        directory.write_status(
                            status.ended_as("interrupted", time.time(), "the sweep was stopped")
                        )

    def _start(self) -> None:
        room = self._engine.room
        orders: list[Order] = []
        while self._waiting and len(orders) < room:
            task = self._free_part(self._waiting.popleft())
            if task is not None:
                orders.append(Order(task, self._command, self._persistence.checkpoint_every))
        if orders:
            running = [_Running(order.task) for order in orders]
            self._engine.submit(orders)
            self._running += running
            self._next_look = 0.0

    def _free_part(self, task: Task) -> Task | None:
        """The pending jobs of a task that no other process trains."""
        free: list[Job] = []
        held: list[Job] = []
        for job in task.jobs:
            directory = RunDirectory(job.path)
            try:
                if directory.in_progress:
                    held.append(job)
                    self._note(job, "running", directory.read_status())
                elif directory.compare(job.spec) == "done":
                    self._note(job, "done", directory.read_status())
                else:
                    free.append(job)
            except UserError as error:  # since the sweep was planned, its folder has become something else
                self._fail(job, str(error))
        if held:
            self._elsewhere.append(Task(tuple(held)))
        return Task(tuple(free)) if free else None

    def _look(self) -> None:
        """See how far runs are, and end those that hang."""
        now = time.monotonic()
        elapsed, self._looked = now - self._looked, now
        for running in self._running:
            # Members of a large population are heard of less often
            limit = max(self._persistence.stall_timeout, 4 * beat_interval(len(running.task.jobs)))
            heard, running.statuses = running.statuses, {}
            for job in running.task.jobs:
                status = RunDirectory(job.path).read_status()
                # It may be of an earlier attempt
                if status is not None and status != running.earlier[job.path]:
                    running.statuses[job.path] = status
                    self._note(job, status.state, status)
            # One that waits in a cluster's queue, for its first turn or again, holds no folder
            there = any(RunDirectory(job.path).in_progress for job in running.task.jobs)
            if running.statuses and running.statuses == heard and there:
                # While this process was suspended, its runs may have been too
                running.silence += min(elapsed, limit / 4)
            else:
                running.silence = 0.0
            if running.silence > limit and not running.ended_because:
                running.ended_because = (
                    f"no heartbeat for {limit:,.0f} s, so it was ended (--stall-timeout); see the "
                    f"end of {running.task.log}"
                )
                self._engine.end(running.task)

    def _note(self, job: Job, state: State | None = None, status: Status | None = None) -> None:
        """Note how far a run is; one of no state waits."""
        checkpoint = last_checkpoint(job.path) if state is None else 0
        state = state or ("interrupted" if checkpoint else "not started")
        entry = PlannedRun.of(job.spec)
        self._runs[job.path] = RunProgress(job.spec.path, entry, state, status, checkpoint=checkpoint)

    def _look_elsewhere(self) -> None:
        """See whether another process has ended."""
        tasks, self._elsewhere = self._elsewhere, []
        for task in tasks:
            free = self._free_part(task)
            if free is not None:
                self._waiting.append(free)

    def _settle(self, ended: Ended) -> None:
        """See how the runs of a task that has ended went."""
        running = next(running for running in self._running if running.task is ended.task)
        self._running.remove(running)
        self._next_look = 0.0
        killed = running.ended_because or ended.killed
        again: list[Job] = []
        #: The same by what there is to say: the step that they resume from, and why they ended.
        alike: dict[tuple[int, str], list[Job]] = {}
        elsewhere: list[Job] = []
        for job in ended.task.jobs:
            directory = RunDirectory(job.path)
            status = directory.read_status()
            if directory.is_finished():
                self._note(job, "done", status)
            elif directory.in_progress:
                elsewhere.append(job)  # another sweep was faster
            else:
                reason = self._reason(job, status, killed, running)
                self._stop_if_full(reason)
                # Which run of a population is at fault is not known, if none says so itself
                if killed and len(ended.task.jobs) > 1:
                    weight = 0
                else:
                    from_outside = ended.killed and not running.ended_because
                    weight = 1 if from_outside else _ENDS_FOR_A_FAILURE
                if self._tries_again(job, status, reason, weight):
                    again.append(job)
                    self._note(job)
                    alike.setdefault((self._got_to[job.path], reason), []).append(job)
                else:
                    self._fail(job, reason)
        if elsewhere:
            self._elsewhere.append(Task(tuple(elsewhere)))
        for (steps, reason), jobs in alike.items():
            from_where = f"from step {steps:,}" if steps else "from the start"
            self._say(f"retried {from_where}: {Task(tuple(jobs)).name}: {reason}")
        if max((self._ends_together[job.path] for job in again), default=0) >= _ENDS_TOGETHER:
            middle = -(-len(again) // 2)
            self._waiting.extend(Task(tuple(half)) for half in (again[:middle], again[middle:]) if half)
        elif again:
            self._waiting.append(Task(tuple(again)))

    def _reason(self, job: Job, status: Status | None, killed: str, running: _Running) -> str:
        """Why a run that has ended is not done; its folder says so afterwards, if it can be written."""
        own = status != running.earlier[job.path]
        if status is not None and own and status.state == "failed" and not killed:
            return status.reason
        reason = killed or f"it ended without saying why; see {running.task.log}"
        directory = RunDirectory(job.path)
        try:
            directory.compare(job.spec)  # by now it may be somebody else's
            directory.write_status((status or Status("running")).ended_as("failed", time.time(), reason))
        except (OSError, UserError) as error:
            return f"{reason}; and its folder cannot be written: {error}"
        return reason

    def _tries_again(self, job: Job, status: Status | None, reason: str, weight: int) -> bool:
        """Whether a run is retried after an end that counts so much; 0 for one together with others."""
        got_to = last_checkpoint(job.path)
        if got_to > self._got_to.get(job.path, 0):
            self._ends[job.path] = self._ends_together[job.path] = 0
        self._got_to[job.path] = got_to
        self._ends[job.path] += weight
        self._ends_together[job.path] += weight == 0
        lasting = status is not None and status.lasting
        return not lasting and self._ends[job.path] <= self._persistence.retries * _ENDS_FOR_A_FAILURE

    def _fail(self, job: Job, reason: str) -> None:
        self.failures[job.spec.path] = reason
        self._note(job, "failed")
        self._say(f"failed: {job.spec.path}: {reason}")

    def _stop_if_full(self, reason: str) -> None:
        """A full disk fails every run: nothing is gained by trying."""
        if is_full(self._root, reason):
            raise out_of_space(self._root)


def check_numbers(retries: int, stall_timeout: float, checkpoint_every: float) -> Persistence:
    """The options of the command line.

    :raises UserError: If one is out of its range.
    """
    if retries < 0:
        raise UserError(f"--retries {retries}: must be 0 or above.")
    if not stall_timeout > 0:
        raise UserError(f"--stall-timeout {stall_timeout:g}: must be above 0 seconds.")
    check_interval(checkpoint_every)
    return Persistence(retries, stall_timeout, checkpoint_every)


def check_interval(checkpoint_every: float) -> None:
    """See that checkpoints can be so often.

    :raises UserError: If not.
    """
    if not checkpoint_every >= 0:
        raise UserError(f"--checkpoint-every {checkpoint_every:g}: must be 0 or more seconds.")


def held_elsewhere(tasks: Sequence[Task]) -> list[str]:
    """Which processes train pending runs, in lines; empty for none."""
    holders: Counter[str] = Counter()
    for task in tasks:
        for job in task.jobs:
            directory = RunDirectory(job.path)
            if directory.in_progress:
                status = directory.read_status()
                who = f"process {status.pid} on {status.host}" if status and status.pid else "another process"
                holders[who] += 1
    return [f"{who} trains {count} of these runs" for who, count in holders.items()]
