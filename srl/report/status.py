"""The progress of the runs in a folder, on one screen; nothing is written."""

from __future__ import annotations

import math
import re
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from srl.config.algorithms import get_algorithm
from srl.config.files import first_mistake
from srl.config.variants import column_order
from srl.errors import UserError
from srl.report.markup import one_line
from srl.report.runs import find_folders
from srl.rundir.checkpoints import last_checkpoint
from srl.rundir.directory import RunDirectory
from srl.rundir.files import read_bytes
from srl.rundir.names import EVALUATIONS, MODEL, RESULTS, SPEC, STATUS, language_model_files
from srl.rundir.plan import PlannedRun, read_plan
from srl.rundir.progress import Progress, RunProgress, State, duration, outlook
from srl.rundir.status import STATUS_TYPE, Status

#: The states in the order in which they are told, with the style of their counts.
_STYLES: dict[State, str] = {
    "done": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "failed": "red",
    "damaged": "red",
    "not started": "",
}
#: Those that color a figure about several runs, the first that is among them.
_TELLING: tuple[State, ...] = ("failed", "damaged", "running", "interrupted")
#: The most lines of each part of the screen.
_MOST_ENVIRONMENTS, _MOST_RUNNING, _MOST_FAILED, _MOST_DAMAGED = 30, 12, 10, 10
#: What is damaged of runs that are done all the same.
_MINOR = "damaged, results whole"
#: Lines that stand around the lines of a part: its heading, "and N more" and an empty one.
_LINES_AROUND = 3
_BAR_WIDTH = 40

T = TypeVar("T")


@dataclass(frozen=True)
class Overview(Progress):
    """How far all runs at or below a folder are."""

    #: Lines on plans and folders that cannot be read.
    unreadable: list[str]


class Folder:
    """A folder with runs, to be looked at again and again.

    What does not change while runs train, specs and the evaluations of finished runs, is read once, and again
    only if the file has changed.

    :param root: The folder of a sweep or of a run, or one above them.
    """

    def __init__(self, root: Path):
        self.root = root
        self._known: dict[tuple[Path, str], tuple[tuple[int, ...], Any]] = {}
        #: The status of each run that trains, and the monotonic clock when it was first seen.
        self._heard: dict[str, tuple[Status, float]] = {}

    def look(self) -> Overview:
        """How far its runs are now.

        :raises UserError: If there is no such folder, or neither a run nor a plan in it.
        """
        if not self.root.is_dir():
            raise UserError(f"{self.root}: there is no such folder.")
        found = find_folders(self.root)
        unreadable = found.unreadable
        planned: dict[str, PlannedRun] = {}
        for folder in sorted(found.plans):
            try:
                entries = read_plan(self.root / folder)
            except UserError as error:
                unreadable.append(self._relative(error))
            else:
                planned |= {(Path(folder) / entry.path).as_posix(): entry for entry in entries}
        runs = [self._run(path, planned.get(path)) for path in dict.fromkeys([*planned, *found.runs])]
        if not runs:
            raise UserError("\n".join([f"{self.root} holds no runs.", *unreadable]))
        return Overview(runs, unreadable)

    def _run(self, path: str, planned: PlannedRun | None) -> RunProgress:
        directory = RunDirectory(self.root / path)
        spec = self._remembered(directory.path / SPEC, lambda: _read_entry(directory))
        status, in_progress = _read_progress(directory)
        entry = planned if spec is None or isinstance(spec, UserError) else spec
        problem = self._problem(directory, spec, status, in_progress)
        if problem is not None:
            return RunProgress(path, entry, "damaged", reason=self._relative(problem))
        if isinstance(status, Status) and status.state != "running":
            minor = self._minor_damage(directory) if status.state == "done" else ()
            last = last_checkpoint(directory.path)
            return RunProgress(path, entry, status.state, status, status.reason, last, minor_damage=minor)
        if in_progress:
            known = status if isinstance(status, Status) else None
            return RunProgress(path, entry, "running", known, silence=self._silence(path, known))
        if not isinstance(status, Status) and self._is_finished(directory):
            return RunProgress(path, entry, "done", minor_damage=self._minor_damage(directory))
        if spec is None and status is None:
            return RunProgress(path, entry, "not started")
        return RunProgress(path, entry, "interrupted", checkpoint=last_checkpoint(directory.path))

    def _silence(self, path: str, status: Status | None) -> float:
        """Whole minutes since the last heartbeat of a run that trains, in seconds.

        On this machine the monotonic clock tells. For another machine it is the time that the status has not
        changed between looks from here, since wall clocks differ and jump.
        """
        if status is None:
            return 0.0
        now = time.monotonic()
        if path not in self._heard or self._heard[path][0] != status:
            self._heard[path] = (status, now)
        seconds = now - self._heard[path][1] if status.silence is None else status.silence
        return seconds // 60 * 60

    def _problem(
        self,
        directory: RunDirectory,
        spec: PlannedRun | UserError | None,
        status: Status | UserError | None,
        in_progress: bool,
    ) -> UserError | None:
        """What is damaged in a run's folder, if anything is."""
        if isinstance(spec, UserError):
            return spec
        if isinstance(status, UserError):
            # A run in progress writes a new one soon; of others the results decide
            return None if in_progress or self._is_finished(directory) else status
        if status is None or status.state != "done":
            return None
        if spec is None:
            return UserError(f"{directory.path / SPEC}: missing.")
        n_timesteps, done = spec.n_timesteps, status
        return self._remembered(
            directory.path / EVALUATIONS, lambda: _find_damage_of_evaluations(directory, n_timesteps)
        ) or self._remembered(directory.path / MODEL, lambda: _find_damage_of_model(directory, done))

    def _is_finished(self, directory: RunDirectory) -> bool:
        """Whether a run without a readable status is done."""
        return self._remembered(directory.path / MODEL, directory.is_finished, "finished")

    def _minor_damage(self, directory: RunDirectory) -> tuple[str, ...]:
        """What else is damaged of a run that is done, looked at once for each of its statuses."""
        return self._remembered(
            directory.path / STATUS,
            lambda: tuple(self._relative(line) for line in directory.minor_damage(thorough=False)),
        )

    def _remembered(self, file: Path, read: Callable[[], T], what: str = "") -> T:
        """What was read from a file; it is read again if the file is another one than then.

        :param what: Tells apart what is read from the same file.
        """
        try:
            found = file.stat()
            version: tuple[int, ...] = (found.st_mtime_ns, found.st_ino, found.st_size)
        except OSError:
            version = ()
        known = self._known.get((file, what))
        if known is None or known[0] != version:
            known = self._known[file, what] = (version, read())
        value: T = known[1]
        return value

    def _relative(self, line: object) -> str:
        """A line on a file, named as it is from the folder that is looked at."""
        return re.sub(rf"(?<![\w./-]){re.escape(str(self.root))}/", "", str(line))


def _read_entry(directory: RunDirectory) -> PlannedRun | UserError | None:
    """What a run is, from its spec; None if it has none."""
    try:
        found = directory.read_spec_leniently()
        if found is not None:
            directory.check_spec(found, directory.read_status())
    except UserError as error:
        return error
    return None if found is None else PlannedRun.of(found.spec)


def _read_progress(directory: RunDirectory) -> tuple[Status | UserError | None, bool]:
    """A run's status, and whether a process of this machine is at it."""
    status, in_progress = _read_status(directory), directory.in_progress
    if isinstance(status, Status) and status.state == "running" and not in_progress:
        status = _read_status(directory)  # it may have ended between the two looks
    return status, in_progress


def _read_status(directory: RunDirectory) -> Status | UserError | None:
    """A run's status; None if it has none."""
    file = directory.path / STATUS
    try:
        status = STATUS_TYPE.validate_json(read_bytes(file))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        keys, message = first_mistake(error)
        where = f" key {'.'.join(map(str, keys))}:" if keys else ""
        return UserError(f"{file}: not the status of a run:{where} {message}")
    except OSError as error:
        return UserError(f"{file}: cannot be read: {error.strerror}.")
    if directory.read_status() is None:
        return UserError(f"{file}: damaged: not what was written.")
    numbers = (status.steps_per_second, status.seconds, status.clock)
    if not all(map(math.isfinite, (*numbers, status.started, status.updated, status.ended))):
        return UserError(f"{file}: not the status of a run: a number in it is not finite.")
    return status


def _find_damage_of_evaluations(directory: RunDirectory, n_timesteps: int) -> UserError | None:
    """Why a run that says it is done has no score."""
    try:
        evaluations = directory.read_evaluations()
    except UserError as error:
        return error
    if evaluations["timesteps"][-1] >= n_timesteps and math.isfinite(evaluations["results"][-1].mean()):
        return None
    return UserError(f"{directory.path / EVALUATIONS}: the final evaluation is missing.")


def _find_damage_of_model(directory: RunDirectory, status: Status) -> UserError | None:
    """Why a run that is done would be retrained although it has a score."""
    results = [*RESULTS[2:], *language_model_files(status)]
    problems = directory.sealed_damage(status, results, thorough=False)
    return UserError(problems[0]) if problems else None


def print_status(root: Path, console: Console) -> None:
    """Print how far the runs in a folder are.

    :raises UserError: If there is no such folder, or neither a run nor a plan in it.
    """
    _print(Folder(root).look(), root, console)


def watch_status(root: Path, console: Console, interval: float) -> None:
    """Show the progress of the runs in a folder until none is pending; wait until it has runs.

    On a terminal the screen stays in its place; elsewhere it is printed again when something has changed.

    :param interval: Seconds between two updates of the display.
    :raises UserError: If it is no folder.
    """
    folder = Folder(root)
    with ExitStack() as stack:
        live = None
        if console.is_interactive:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
        shown: Overview | None = None
        waiting = ""
        while True:
            if root.exists() and not root.is_dir():
                raise UserError(f"{root}: is no folder.")
            try:
                overview = folder.look()
            except UserError as error:  # not there yet, or without runs
                line = f"Waiting: {error}"
                if live is not None:
                    live.update(Text(line), refresh=True)
                elif line != waiting:
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
                waiting = line
                time.sleep(interval)
                continue
            if live is not None:
                size = console.size
                live.update(screen(overview, root, size.width, size.height), refresh=True)
            elif overview != shown:
                _print(overview, root, console, after=shown is not None)
                shown = overview
            if not overview.pending:
                return
            time.sleep(interval)


def _print(overview: Overview, root: Path, console: Console, *, after: bool = False) -> None:
    """Print the whole screen, in the columns of a terminal; elsewhere lines are as long as they are."""
    if after:
        console.print()
    if console.is_terminal:
        console.print(screen(overview, root, console.width))
    else:
        console.print(screen(overview, root), soft_wrap=True)


def screen(overview: Overview, root: Path, width: int | None = None, height: int | None = None) -> Group:
    """All there is to see.

    :param overview: How far the runs are.
    :param root: Their folder, as it is called.
    :param width: The columns that there are; None takes lines as long as they are.
    :param height: The lines that there are; None takes the most of each part.
    """
    running = _by_process(overview.of("running"))
    damaged = [run.reason for run in overview.of("damaged")] + overview.unreadable
    minor = [line for run in overview.runs for line in run.minor_damage]
    # Lines, how many runs each is about, and the most lines
    listed: dict[str, tuple[list[tuple[str, int]], int]] = {
        "failed": (_by_reason(overview), _MOST_FAILED),
        "damaged": ([(line, 1) for line in damaged], _MOST_DAMAGED),
        _MINOR: ([(line, 1) for line in minor], _MOST_DAMAGED),
    }
    totals = [*_totals(overview, root, width), Text()]
    tables = _tables(overview.runs, width)
    space = None
    if height is not None:  # the counts may take a second line
        space = height - len(totals) - 1 - sum(table.row_count + 2 for table in tables)
    wanted = [min(len(lines), most) for lines, most in listed.values()]
    n_running, *n_listed = _shared(space, [min(len(running), _MOST_RUNNING), *wanted])
    parts: list[RenderableType] = [*totals]
    for table in tables:
        parts += [table, Text()]
    if running:
        n_more = sum(len(runs) for _, runs in running[n_running:])
        parts += [_running_table(overview, running[:n_running], width), *_more(n_more), Text()]
    for (heading, (entries, _)), n in zip(listed.items(), n_listed, strict=True):
        if entries:
            lines = [line for line, _ in entries[:n]]
            n_more = sum(n_runs for _, n_runs in entries[n:])
            parts += [*_listed(heading, lines, width, whole=height is None), *_more(n_more), Text()]
    return Group(*parts[:-1])


def _shared(space: int | None, wanted: Sequence[int]) -> list[int]:
    """How many lines each part gets of those that there are: the longest gives way first, none to the end."""
    lines = list(wanted)
    around = _LINES_AROUND * sum(map(bool, lines))
    while space is not None and sum(lines) + around > space and max(lines) > 1:
        lines[lines.index(max(lines))] -= 1
    return lines


def _totals(overview: Overview, root: Path, width: int | None) -> Iterator[RenderableType]:
    """The counts of runs, the bar of steps, and how long it takes."""
    n_runs = len(overview.runs)
    n_of = {state: len(overview.of(state)) for state in _STYLES}
    counts = Text(", ").join(Text(f"{n:,} {state}", style=_STYLES[state]) for state, n in n_of.items() if n)
    name, number = one_line(str(root)), f": {n_runs:,} {'runs' if n_runs > 1 else 'run'}"
    if width is not None and cell_len(name + number) > width:
        # Of a long path, its end says more
        name = "…" + name[-max(width - cell_len(number) - 1, 1) :]
    yield Text(name + number, style="bold", no_wrap=True, overflow="ellipsis")
    yield counts
    steps, n_steps = overview.timesteps, overview.n_timesteps
    figures = f"{_percent(steps / n_steps if n_steps else 0.0)}  {steps:,} of {n_steps:,} steps"
    room = _BAR_WIDTH if width is None else min(max(width - len(figures) - 2, 1), _BAR_WIDTH)
    bar = Table.grid(padding=(0, 2, 0, 0))
    bar.add_row(
        ProgressBar(total=max(n_steps, 1), completed=steps, width=room, complete_style="cyan"),
        Text(figures, no_wrap=True),
    )
    yield bar
    yield Text(_outlook(overview))


def _outlook(overview: Overview) -> str:
    """How fast it goes and how long it takes, in words."""
    failed = overview.of("failed", "damaged")
    if overview.of("running"):
        left_out = ", failed runs left out" if failed and math.isfinite(overview.seconds_left) else ""
        return outlook(overview) + left_out
    if overview.pending:
        return "No runs are training; time left unknown. Rerun the command to resume."
    if failed:
        return "No runs are training. Rerun the command to retry failed runs."
    return "All is done."


def _percent(share: float) -> str:
    """A share in whole percent; only all of it is 100%."""
    return f"{math.floor(100 * share + 1e-9)}%"


def _tables(runs: Sequence[RunProgress], width: int | None) -> list[Table]:
    """Runs done of all, and mean progress, by environment and algorithm or variant, over noises and seeds.

    Columns that do not fit side by side are in further tables.
    """
    members: dict[tuple[str, str], list[RunProgress]] = {}
    all_columns: dict[str, str] = {}
    for run in runs:
        if run.entry is not None:
            algo = get_algorithm(run.entry.algo).name
            name = run.entry.variant or algo
            all_columns[name] = algo
            members.setdefault((run.entry.env, name), []).append(run)
    cells = {place: _cell(there) for place, there in members.items()}
    envs = sorted({env for env, _ in cells})
    shown = envs[:_MOST_ENVIRONMENTS]
    names = sorted(all_columns, key=lambda name: column_order(all_columns[name], name))
    # As many as fit beside the longest name, or beside what is left of it where not even two do
    name_width = max((cell_len(one_line(env)) for env in shown), default=0)
    labels = {name: _label(algo, name) for name, algo in all_columns.items()}
    widths = [cell_len(text) for text in labels.values()] + [cell.cell_len for cell in cells.values()]
    column_width = max(widths, default=0) + 2
    n_columns = len(names) if width is None else max((width - name_width) // column_width, 2)
    tables = []
    for first in range(0, len(names), max(n_columns, 1)):
        columns = names[first : first + n_columns]
        rows = [
            [Text(one_line(env)), *(cells.get((env, name), Text("")) for name in columns)] for env in shown
        ]
        if len(envs) > len(shown):
            rows.append([Text(f"and {len(envs) - len(shown):,} more", style="dim")])
        headings = ["environment", *(labels[name] for name in columns)]
        tables.append(_table(headings, rows, width))
    return tables


def _label(algo: str, name: str | None) -> str:
    """The heading of a column."""
    return get_algorithm(algo).label if name in (None, algo) else one_line(str(name))


def _cell(runs: Sequence[RunProgress]) -> Text:
    """Runs done of all, and their mean progress."""
    states = {run.state for run in runs}
    n_done = sum(run.state == "done" for run in runs)
    share = sum(run.share for run in runs) / len(runs)
    worst: State | None = next((state for state in _TELLING if state in states), None)
    style = "" if worst is None else _STYLES[worst]
    if n_done == len(runs):
        style = _STYLES["done"]
    return Text(f"{n_done:,}/{len(runs):,} {_percent(share):>4}", style=style)


def _table(
    headings: Sequence[str], rows: Sequence[Sequence[Text]], width: int | None, *, n_names: int = 1
) -> Table:
    """A table of names and then figures, whose first column takes the place that the others leave."""
    widths = [
        max([cell_len(heading), *(row[index].cell_len for row in rows if index < len(row))])
        for index, heading in enumerate(headings)
    ]
    if width is not None:
        widths[0] = min(widths[0], max(width - sum(widths[1:]) - 2 * (len(widths) - 1), 12))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        justify: Literal["left", "right"] = "left" if index < n_names else "right"
        table.add_column(heading, justify=justify, no_wrap=True, overflow="ellipsis", width=widths[index])
    for row in rows:
        table.add_row(*row)
    return table


def _by_process(running: Sequence[RunProgress]) -> list[tuple[float, list[RunProgress]]]:
    """Runs in progress, those of one process that differ in nothing but the seed together.

    :return: With the seconds since the last heartbeat of their process; the longest silence comes first.
    """
    silences: dict[tuple[object, ...], float] = {}
    alike: dict[tuple[tuple[object, ...], tuple[object, ...]], list[RunProgress]] = {}
    for run in running:
        process: tuple[object, ...] = (run.path,)
        if run.status is not None and run.status.pid:
            process = (run.status.host, run.status.pid)
        entry = run.entry
        kind = () if entry is None else (entry.env, entry.algo, entry.variant, entry.noise, entry.n_timesteps)
        alike.setdefault((process, kind), []).append(run)
        # A process lives as long as one of its runs does
        silences[process] = min(silences.get(process, run.silence), run.silence)
    processes = [(silences[process], runs) for (process, _), runs in alike.items()]
    return sorted(processes, key=lambda item: -item[0])


def _running_table(
    overview: Overview, processes: Sequence[tuple[float, Sequence[RunProgress]]], width: int | None
) -> Table:
    rows = []
    for silence, members in processes:
        first = members[0].entry
        if first is None:
            continue  # what runs has a spec or a plan
        speed = sum(run.steps_per_second for run in members)
        left = max(map(overview.seconds_left_of, members))
        when = duration(left) if speed else "starting"
        evaluation = next((run.status.evaluation for run in members if run.status is not None), "")
        if evaluation:
            when = f"evaluating {evaluation.partition(' ')[0]}"
        texts = [
            first.env,
            _label(first.algo, first.variant),
            first.noise,
            f"{first.seed}" if len(members) == 1 else f"{len(members)} seeds",
            _percent(sum(run.share for run in members) / len(members)),
            f"{speed:,.0f}",
            f"no heartbeat for {duration(silence)}" if silence else when,
        ]
        rows.append([Text(one_line(text), style="yellow" if silence else "") for text in texts])
    headings = ["running", "", "noise", "seed", "", "steps/s", "time left"]
    return _table(headings, rows, width, n_names=3)


def _by_reason(overview: Overview) -> list[tuple[str, int]]:
    """Lines on failed runs, the latest first, and how many runs each is about.

    Where there are many, those share one whose reasons are the same, or differ in a number such as the step.
    """
    failed = sorted(overview.of("failed"), key=lambda run: -run.status.ended if run.status else 0.0)
    alike: dict[str, list[RunProgress]] = {}
    for run in failed:
        key = run.path if len(failed) <= _MOST_FAILED else re.sub(r"\d+", "0", run.reason)
        alike.setdefault(key, []).append(run)
    lines = []
    for first, *others in alike.values():
        more = f" and {len(others):,} more" if others else ""
        name = "" if first.path == "." else f"{first.path}{more}: "
        lines.append((f"{name}{first.reason}", 1 + len(others)))
    return lines


def _listed(heading: str, lines: Sequence[str], width: int | None, whole: bool) -> Iterator[Text]:
    """Lines under a heading. What is wider than the screen is wrapped or cut."""
    yield Text(heading, style="bold red")
    for line in map(one_line, lines):
        if whole and width is not None:
            yield Text("\n".join(textwrap.wrap(line, max(width, 20), subsequent_indent="  ")))
        else:
            yield Text(line, no_wrap=True, overflow="ignore" if width is None else "ellipsis")


def _more(n_runs: int) -> Iterator[Text]:
    if n_runs > 0:
        yield Text(f"and {n_runs:,} more", style="dim")
