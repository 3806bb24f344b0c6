"""The progress of runs on one screen."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from srl.config.algorithms import get_algorithm
from srl.config.variants import column_order
from srl.report.markup import one_line
from srl.report.overview import Overview
from srl.rundir.progress import RunProgress, State, duration, outlook

#: The states in display order, with the style of their counts.
_STYLES: dict[State, str] = {
    "done": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "failed": "red",
    "damaged": "red",
    "not started": "",
}
#: States that color a cell: the first that one of its runs has.
_COLORING: tuple[State, ...] = ("failed", "damaged", "running", "interrupted")
#: The maximum number of lines of each part of the screen.
_MAX_ENVIRONMENTS, _MAX_RUNNING, _MAX_FAILED, _MAX_DAMAGED = 30, 12, 10, 10
#: Heading of damage to finished runs that does not affect results.
_MINOR = "damaged, results whole"
#: Extra lines of a part: its heading, "and N more" and an empty line.
_EXTRA_LINES = 3
_BAR_WIDTH = 40


def screen(overview: Overview, root: Path, width: int | None = None, height: int | None = None) -> Group:
    """The progress of runs as text.

    :param root: Their folder, as it is shown.
    :param width: The number of columns; None for no limit.
    :param height: The number of lines; None for the maximum of each part.
    """
    running = _by_process(overview.of("running"))
    damaged = [run.reason for run in overview.of("damaged")] + overview.unreadable
    minor = [line for run in overview.runs for line in run.minor_damage]
    # Lines, the number of runs of each, and the maximum number of lines
    listed: dict[str, tuple[list[tuple[str, int]], int]] = {
        "failed": (_by_reason(overview), _MAX_FAILED),
        "damaged": ([(line, 1) for line in damaged], _MAX_DAMAGED),
        _MINOR: ([(line, 1) for line in minor], _MAX_DAMAGED),
    }
    totals = [*_totals(overview, root, width), Text()]
    tables = _tables(overview.runs, width)
    space = None
    if height is not None:  # the counts may need a second line
        space = height - len(totals) - 1 - sum(table.row_count + 2 for table in tables)
    wanted = [min(len(lines), most) for lines, most in listed.values()]
    n_running, *n_listed = _divide(space, [min(len(running), _MAX_RUNNING), *wanted])
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


def _divide(space: int | None, wanted: Sequence[int]) -> list[int]:
    """The number of lines of each part: the longest parts are shortened first, to no less than one line."""
    lines = list(wanted)
    extra = _EXTRA_LINES * sum(map(bool, lines))
    while space is not None and sum(lines) + extra > space and max(lines) > 1:
        lines[lines.index(max(lines))] -= 1
    return lines


def _totals(overview: Overview, root: Path, width: int | None) -> Iterator[RenderableType]:
    """The counts of runs, the progress bar, and the time left."""
    n_runs = len(overview.runs)
    n_of = {state: len(overview.of(state)) for state in _STYLES}
    counts = Text(", ").join(Text(f"{n:,} {state}", style=_STYLES[state]) for state, n in n_of.items() if n)
    name, number = one_line(str(root)), f": {n_runs:,} {'runs' if n_runs > 1 else 'run'}"
    if width is not None and cell_len(name + number) > width:
        # The end of a long path is more informative
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
    """The speed and the time left in words."""
    failed = overview.of("failed", "damaged")
    if overview.of("running"):
        left_out = ", failed runs left out" if failed and math.isfinite(overview.seconds_left) else ""
        return outlook(overview) + left_out
    if overview.pending:
        return "No runs are training; time left unknown. Rerun the command to resume."
    if failed:
        return "No runs are training. Rerun the command to retry failed runs."
    return "All runs are finished."


def _percent(share: float) -> str:
    """A share in percent, rounded down."""
    return f"{math.floor(100 * share + 1e-9)}%"


def _tables(runs: Sequence[RunProgress], width: int | None) -> list[Table]:
    """Finished runs and mean progress by environment and column, over noises and seeds.

    Columns that do not fit side by side are in more tables.
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
    shown = envs[:_MAX_ENVIRONMENTS]
    names = sorted(all_columns, key=lambda name: column_order(all_columns[name], name))
    # As many columns as fit next to the longest name, at least two: the names are cut then
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
    return get_algorithm(algo).label if name in (None, algo) else one_line(str(name))


def _cell(runs: Sequence[RunProgress]) -> Text:
    states = {run.state for run in runs}
    n_done = sum(run.state == "done" for run in runs)
    share = sum(run.share for run in runs) / len(runs)
    worst: State | None = next((state for state in _COLORING if state in states), None)
    style = "" if worst is None else _STYLES[worst]
    if n_done == len(runs):
        style = _STYLES["done"]
    return Text(f"{n_done:,}/{len(runs):,} {_percent(share):>4}", style=style)


def _table(
    headings: Sequence[str], rows: Sequence[Sequence[Text]], width: int | None, *, n_names: int = 1
) -> Table:
    """A table whose first column is as wide as the others permit."""
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
    """Group running runs of one process that differ only in the seed.

    :return: Seconds since the last heartbeat of the process, and the runs; longest first.
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
        # One run with a heartbeat shows that the process is alive
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
            continue  # a running run has a spec or an entry in a plan
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
    """Lines on failed runs, latest first, with the number of runs of each.

    If there are many, runs share a line if their reasons differ at most in numbers.
    """
    failed = sorted(overview.of("failed"), key=lambda run: -run.status.ended if run.status else 0.0)
    alike: dict[str, list[RunProgress]] = {}
    for run in failed:
        key = run.path if len(failed) <= _MAX_FAILED else re.sub(r"\d+", "0", run.reason)
        alike.setdefault(key, []).append(run)
    lines = []
    for first, *others in alike.values():
        more = f" and {len(others):,} more" if others else ""
        name = "" if first.path == "." else f"{first.path}{more}: "
        lines.append((f"{name}{first.reason}", 1 + len(others)))
    return lines


def _listed(heading: str, lines: Sequence[str], width: int | None, whole: bool) -> Iterator[Text]:
    """Lines under a heading. Long lines are wrapped or cut."""
    yield Text(heading, style="bold red")
    for line in map(one_line, lines):
        if whole and width is not None:
            yield Text("\n".join(textwrap.wrap(line, max(width, 20), subsequent_indent="  ")))
        else:
            yield Text(line, no_wrap=True, overflow="ignore" if width is None else "ellipsis")


def _more(n_runs: int) -> Iterator[Text]:
    if n_runs > 0:
        yield Text(f"and {n_runs:,} more", style="dim")
