"""The progress display: live on a terminal, otherwise a line every 15 seconds."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from srl.config.spec import RunSpec
from srl.rundir.plan import PlannedRun
from srl.rundir.progress import Progress as RunsProgress
from srl.rundir.progress import RunProgress, duration, outlook
from srl.rundir.status import Status
from srl.sweep.execution import SweepProgress

#: Seconds between lines where there is no terminal.
_LINE_INTERVAL = 15.0
#: Maximum number of tasks that are shown.
_SHOWN = 16


class _Display:
    """A progress bar on a terminal; lines elsewhere."""

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

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class RunDisplay(_Display):
    """The progress of one run."""

    def __init__(self, console: Console, spec: RunSpec):
        super().__init__(console)
        name = f"{spec.algorithm.label} on {spec.env}, noise {spec.noise}, seed {spec.seed}"
        self._entry = PlannedRun.of(spec)
        self._compiled = False
        self._task = self._bar.add_task(escape(name), total=spec.n_timesteps, rate="")
        self.say(f"Training {name}: {spec.n_timesteps:,} steps on {spec.device}.")

    def update(self, status: Status) -> None:
        """Show a new status."""
        if status.compile_seconds and not self._compiled:
            self._compiled = True
            self.say(f"The update was compiled in {duration(status.compile_seconds)}.")
        progress = RunsProgress([RunProgress("", self._entry, "running", status)])
        rate = f"evaluating: {status.evaluation}" if status.evaluation else outlook(progress)
        figures = (("return", status.mean_return, "{:,.1f}"), ("loss", status.loss, "{:.3g}"))
        rate = ", ".join([rate, *(f"{name} {form.format(x)}" for name, x, form in figures if x is not None)])
        self._bar.update(self._task, completed=progress.timesteps, rate=rate)
        if self._live is not None:
            self._live.update(self._bar)
        elif self._line_due():
            self.say(f"{progress.timesteps:,} of {progress.n_timesteps:,} steps, {rate}")


class SweepDisplay(_Display):
    """The progress of a sweep."""

    def __init__(self, console: Console):
        super().__init__(console)
        self._compiled: set[str] = set()
        self._task = self._bar.add_task("", total=None, rate="")

    def update(self, progress: SweepProgress) -> None:
        """Show new progress."""
        for name, runs in progress.tasks.items():
            seconds = max((run.status.compile_seconds for run in runs if run.status is not None), default=0)
            if seconds and name not in self._compiled:
                self._compiled.add(name)
                self.say(f"{name}: the update was compiled in {duration(seconds)}.")
        n_running = sum(map(len, progress.tasks.values()))
        counts = (
            f"{len(progress.of('done'))} done, {n_running} running, {len(progress.of('failed'))} failed, "
            f"{len(progress.of('interrupted', 'not started'))} pending"
        )
        if progress.n_elsewhere:
            counts += f", {progress.n_elsewhere} trained by other processes"
        if self._live is None:
            if self._line_due():
                self.say(f"{counts}; {outlook(progress)}")
            return
        self._bar.update(
            self._task,
            description=counts,
            completed=progress.timesteps,
            total=progress.n_timesteps,
            rate=outlook(progress),
        )
        running = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for name, runs in list(progress.tasks.items())[:_SHOWN]:
            share = sum(run.share for run in runs) / len(runs)
            speed = sum(run.steps_per_second for run in runs)
            pace = f"{speed:,.0f} steps/s" if speed else "starting"
            evaluation = next((run.status.evaluation for run in runs if run.status is not None), "")
            if evaluation:
                pace = f"evaluating: {evaluation}"
            running.add_row(escape(name), f"{share:.0%}", escape(pace))
        if len(progress.tasks) > _SHOWN:
            running.add_row(f"and {len(progress.tasks) - _SHOWN} more")
        self._live.update(Group(running, self._bar))
