"""The progress of runs and the estimated time left."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from srl.config.algorithms import get_algorithm

if TYPE_CHECKING:
    from srl.rundir.plan import PlannedRun
    from srl.rundir.status import Status

State = Literal["done", "running", "interrupted", "failed", "damaged", "not started"]

#: Seconds of training below which the speed of other runs of the same kind is used.
_SHORT = 10.0


@dataclass(frozen=True)
class RunProgress:
    """The progress of a run."""

    #: Its folder, below the sweep's.
    path: str
    #: Its entry in the plan; None if its spec cannot be read and no plan names it.
    entry: PlannedRun | None
    state: State
    status: Status | None = None
    #: Why it failed or is damaged.
    reason: str = ""
    #: Training steps of its last checkpoint if it is not running.
    checkpoint: int = 0
    #: Seconds since the last heartbeat, rounded down to whole minutes; 0 if unknown.
    silence: float = 0.0
    #: Lines on damaged files that no result depends on.
    minor_damage: tuple[str, ...] = ()

    @property
    def n_timesteps(self) -> int:
        """Its training steps in total."""
        return 0 if self.entry is None else max(self.entry.n_timesteps, 0)

    @property
    def timesteps(self) -> int:
        """Its training steps so far; up to the last checkpoint for a run that failed or was interrupted."""
        if self.state == "done":
            return self.n_timesteps
        if self.state != "running" or self.status is None:
            return min(self.checkpoint, self.n_timesteps)
        return min(max(self.status.timesteps, 0), self.n_timesteps)

    @property
    def share(self) -> float:
        """The share of its training steps that is done, from 0 to 1."""
        return self.timesteps / self.n_timesteps if self.n_timesteps else float(self.state == "done")

    @property
    def steps_per_second(self) -> float:
        """Training steps per second of its latest attempt if it is running or done; 0 if not known."""
        if self.status is None or self.state not in ("running", "done"):
            return 0.0
        return max(self.status.steps_per_second, 0.0)

    @property
    def kind(self) -> Hashable:
        """Runs of one kind are about equally fast: a symmetric loss costs almost nothing."""
        if self.entry is None:
            return None
        algorithm = get_algorithm(self.entry.algo)
        family = algorithm.name if algorithm.is_own else algorithm.family
        return self.entry.env, family, algorithm.discretized


@dataclass(frozen=True)
class Progress:
    """The progress of several runs."""

    #: In the order in which waiting runs will start.
    runs: Sequence[RunProgress]

    def of(self, *states: State) -> list[RunProgress]:
        """The runs in some states."""
        return [run for run in self.runs if run.state in states]

    @property
    def pending(self) -> list[RunProgress]:
        """Running and waiting runs. Failed and damaged runs are left out."""
        return self.of("running", "interrupted", "not started")

    @property
    def timesteps(self) -> int:
        """Training steps so far."""
        return sum(run.timesteps for run in self.runs)

    @property
    def n_timesteps(self) -> int:
        """Training steps in total."""
        return sum(run.n_timesteps for run in self.runs)

    @property
    def steps_per_second(self) -> float:
        """Training steps per second of all running runs."""
        return sum(run.steps_per_second for run in self.of("running"))

    @property
    def seconds_left(self) -> float:
        """Seconds until all pending runs are done; infinite if not known.

        As many runs train at once as now, and the next starts when one is done.
        """
        running = self.of("running")
        if not running:
            return math.inf
        waiting = self.of("interrupted", "not started")
        return makespan(map(self.seconds_left_of, running), map(self.seconds_left_of, waiting))

    def seconds_left_of(self, run: RunProgress) -> float:
        """Seconds of training that a run still needs; infinite if not known.

        They follow from the mean speed of its latest attempt, evaluations included. Until it has trained for
        ten seconds, the mean speed of its kind is used: of running runs, or else of finished ones. For an
        unknown kind it is the mean of all running runs.
        """
        speed = run.steps_per_second
        if run.state != "running" or speed == 0 or (run.status and 0 < run.status.seconds < _SHORT):
            keys = (("running", run.kind), ("done", run.kind), ("running", None))
            speed = next((self._speeds[key] for key in keys if key in self._speeds), 0.0)
        return (run.n_timesteps - run.timesteps) / speed if speed > 0 else math.inf

    @cached_property
    def _speeds(self) -> dict[tuple[str, Hashable], float]:
        """Mean speed of a run by state and kind, and by state alone, weighted by time."""
        sums: dict[tuple[str, Hashable], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for run in self.runs:
            if run.steps_per_second > 0 and run.status is not None:
                weight = max(run.status.seconds, 1.0)
                for key in ((run.state, run.kind), (run.state, None)):
                    sums[key][0] += weight * run.steps_per_second
                    sums[key][1] += weight
        return {key: steps / seconds for key, (steps, seconds) in sums.items()}


def beat_interval(n_runs: int) -> float:
    """Seconds between two heartbeats of the runs of a population.

    Writing a status to disk takes some milliseconds for each run.
    """
    return 1.0 + n_runs / 4


def makespan(busy: Iterable[float], waiting: Iterable[float]) -> float:
    """Seconds until all items are done if each waiting item starts, in order, at the next free place.

    :param busy: Seconds until each place is free; at least one place.
    :param waiting: Seconds that each waiting item takes.
    """
    ends = list(busy)
    heapq.heapify(ends)
    for seconds in waiting:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def outlook(progress: Progress) -> str:
    """Speed and time left in words: ``"1,234 steps/s, about 12 min left"``."""
    left = progress.seconds_left
    when = f"about {duration(left)} left" if math.isfinite(left) else "time left unknown"
    return f"{progress.steps_per_second:,.0f} steps/s, {when}"


def duration(seconds: float) -> str:
    """A time span in words: ``"40 s"``, ``"12 min"``, ``"3 h 20 min"``, ``"5 days 4 h"``."""
    seconds = max(seconds, 0)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"
