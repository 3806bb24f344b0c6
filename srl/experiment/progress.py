"""What a user sees while runs train: live on a terminal, else a line now and then."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from srl.experiment.execution import Progress as SweepProgress
from srl.experiment.spec import RunSpec
from srl.experiment.store import Status

#: Seconds between lines where there is no terminal.
_LINE_INTERVAL = 15.0
#: Tasks in progress shown one by one.
_SHOWN = 16


def duration(seconds: float) -> str:
    """A time span for people: ``"40 s"``, ``"12 min"``, ``"3 h 20 min"``, ``"5 days 4 h"``."""
    seconds = max(seconds, 0)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"


class _Display:
    """A progress bar that is live on a terminal; elsewhere the same in lines."""

    def __init__(self, console: Console):
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
            expand=True,
        )
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )
        self._next_line = time.monotonic() + _LINE_INTERVAL

    def __enter__(self):  # type: ignore[no-untyped-def]
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _line_due(self) -> bool:
        if self._live is not None or time.monotonic() < self._next_line:
            return False
        self._next_line = time.monotonic() + _LINE_INTERVAL
        return True

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class RunDisplay(_Display):
    """The progress of one run.

    :param console: Where to show it.
    :param spec: The run.
    """

    def __init__(self, console: Console, spec: RunSpec):
        super().__init__(console)
        name = f"{spec.algorithm.label} on {spec.env}, noise {spec.noise}, seed {spec.seed}"
        self._name = name
        self._task = self._bar.add_task(escape(name), total=spec.n_timesteps, rate="")
        self._say(f"Training {name}: {spec.n_timesteps:,} steps on {spec.device}.")

    def update(self, status: Status) -> None:
        """Show a new status."""
        left = (status.n_timesteps - status.timesteps) / max(status.steps_per_second, 1e-9)
        rate = f"{status.steps_per_second:,.0f} steps/s, {duration(left)} left"
        if status.evaluation:
            rate = f"evaluating: {status.evaluation}"
        self._bar.update(self._task, completed=status.timesteps, rate=rate)
        if self._live is not None:
            self._live.update(self._bar)
        elif self._line_due():
            self._say(f"{status.timesteps:,} of {status.n_timesteps:,} steps, {rate}")


class SweepDisplay(_Display):
    """The progress of a sweep.

    :param console: Where to show it.
    :param n_skipped: Runs that were done before.
    """

    def __init__(self, console: Console, n_skipped: int):
        super().__init__(console)
        self._n_skipped = n_skipped
        self._began = time.monotonic()
        self._task = self._bar.add_task("", total=None, rate="")

    def update(self, progress: SweepProgress) -> None:
        """Show new progress."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        speed = progress.steps / elapsed
        left = f"{duration((progress.n_steps - progress.steps) / speed)} left" if progress.steps else ""
        rate = f"{speed:,.0f} steps/s {left}"
        counts = (
            f"{progress.done + self._n_skipped} done, "
            f"{sum(map(len, progress.running.values()))} running, "
            f"{progress.failed} failed, {progress.to_do} to do"
        )
        if progress.elsewhere:
            counts += f", {progress.elsewhere} trained by other processes"
        if self._live is None:
            if self._line_due():
                self._say(f"{counts}; {rate}")
            return
        self._bar.update(
            self._task, description=counts, completed=progress.steps, total=progress.n_steps, rate=rate
        )
        running = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for name, statuses in list(progress.running.items())[:_SHOWN]:
            share = sum(status.timesteps / max(status.n_timesteps, 1) for status in statuses) / len(statuses)
            speed = sum(status.steps_per_second for status in statuses)
            started = any(status.started for status in statuses)
            evaluation = next((status.evaluation for status in statuses if status.evaluation), "")
            pace = f"{speed:,.0f} steps/s" if started else "starting"
            if evaluation:
                pace = f"evaluating: {evaluation}"
            running.add_row(escape(name), f"{share:.0%}", escape(pace))
        if len(progress.running) > _SHOWN:
            running.add_row(f"and {len(progress.running) - _SHOWN} more")
        self._live.update(Group(running, self._bar))

    def say(self, line: str) -> None:
        """Say something that is to stay."""
        self._say(line)
