"""Tables as data, and the same table as Markdown, LaTeX, CSV and for a terminal."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Group
from rich.markup import escape
from rich.table import Table as RichTable

from srl.config import variants
from srl.report import markup
from srl.report.intervals import Estimate
from srl.report.published import Published
from srl.report.runs import UNFINISHED, Cell
from srl.report.significance import ALPHA, best_of_rows

#: What bold means where columns of a row are compared.
BOLD = (
    "Bold: the best of a row, if it is shown to score higher than every other column (exact permutation "
    f"test, p at most {ALPHA:g} after Holm's correction for the number of rows)."
)
#: Marks of footnotes, in the order of their use; after these, numbers in brackets.
_MARKS = ("†", "‡", "§", "¶")


@dataclass(frozen=True)
class Entry:
    """The content of a cell."""

    #: The figure with its error or interval; ``"-"`` for none.
    figure: str = "-"
    #: Over how many seeds; None where that is not said.
    n: int | None = None
    #: Whether it is shown to be the best of its row; of a comparison, whether it shows a difference.
    best: bool = False
    #: The p-values of a comparison.
    p_values: str = ""
    #: Runs that are not finished, in words.
    unfinished: str = ""
    #: The published figure, with the marks of what differs.
    published: str = ""
    #: The bare number, to sort by.
    value: float = float("nan")

    @property
    def lines(self) -> list[str]:
        """The entry in one to three lines."""
        first = self.figure if self.n is None else f"{self.figure} (n={self.n})"
        return [line for line in (first, self.p_values, self.unfinished, self.published) if line]


@dataclass(frozen=True)
class Row:
    """A row: an environment, or several, under one noise."""

    env: str
    noise: str
    #: Training steps; None for several environments with steps of their own.
    n_timesteps: int | None
    entries: Mapping[str, Entry]

    @property
    def steps(self) -> str:
        """The training steps in words; empty for several environments."""
        return "" if self.n_timesteps is None else f"{self.n_timesteps:,}"


@dataclass(frozen=True)
class Table:
    """A table."""

    #: The name of its files.
    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    #: The same for machines: one for each figure.
    records: Sequence[Mapping[str, Any]]
    #: Lines beneath it.
    notes: Sequence[str] = ()


def score_table(
    cells: Sequence[Cell],
    columns: Sequence[str],
    published: Mapping[tuple[str, str, str], Published],
    last: int = 1,
) -> Table:
    """The paper's table: mean ± standard error over seeds.

    The best of a row is marked if it is shown to score higher than every other one, see
    :func:`srl.report.significance.best_of_rows`.

    :param cells: What to show.
    :param columns: Their columns, in order.
    :param published: Figures to put beside them, by environment, noise and algorithm.
    :param last: How many evaluations their scores average.
    """
    marks: dict[str, str] = {}
    sources: dict[str, None] = {}
    rows: list[Row] = []
    records: list[dict[str, Any]] = []
    places = rows_of(cells, columns)
    bests = best_of_rows(
        [
            {c: (cell.mean, np.array(cell.values)[:, None]) for c, cell in row.items() if cell.values}
            for _, row in places
        ]
    )
    for ((env, noise, steps), row_cells), best in zip(places, bests, strict=True):
        entries = {}
        for column, cell in row_cells.items():
            plain = cell.name == cell.algo and not cell.variant
            beside = published.get((env, noise, cell.algo)) if plain else None
            entries[column] = _score_entry(cell, column == best, beside, last, marks)
            if beside:
                sources[beside.source] = None
            records.append(_score_record(cell, column == best, beside))
        rows.append(Row(env, noise, steps, entries))
    averaged = "final evaluation" if last == 1 else f"last {last} evaluations"
    return Table(
        "table",
        f"Mean return of the {averaged}: mean ± standard error over n seeds",
        columns,
        rows,
        records,
        ([BOLD] if len(columns) > 1 else [])
        + [f"{mark} {text}." for text, mark in marks.items()]
        + [f"[published] {source}." for source in sources]
        + [line for cell in cells for line in _truncations(cell)],
    )


def _truncations(cell: Cell) -> list[str]:
    """A line on the evaluation episodes that ``eval_max_episode_steps`` truncated, if there are any."""
    runs = [run for run in cell.runs if run.evaluations is not None and run.evaluations.n_truncated]
    n_episodes = sum(run.evaluations.n_truncated for run in runs if run.evaluations)
    limits = {run.spec.eval_max_episode_steps for run in runs if run.spec}
    return [
        f"{cell.env}, {cell.noise}, {cell.column}: {n_episodes:,} evaluation episodes in {len(runs)} of "
        f"{len(cell.runs)} runs were truncated after {limit:,} steps (eval_max_episode_steps); their returns "
        "count up to there."
        for limit in limits
    ]


def _score_entry(
    cell: Cell, best: bool, published: Published | None, last: int, marks: dict[str, str]
) -> Entry:
    """The entry of a cell; marks that are new are added to those given."""
    beside = ""
    if published is not None:
        signs = ""
        for difference in published.differences(cell, last):
            mark = _MARKS[len(marks)] if len(marks) < len(_MARKS) else f"({len(marks) + 1})"
            signs += marks.setdefault(difference, mark)
        beside = f"[published {published.mean:g} ± {published.standard_error:g}{' ' if signs else ''}{signs}]"
    return Entry(
        with_error(cell.mean, cell.standard_error),
        n=len(cell.values) or None,
        best=best,
        unfinished=", ".join(f"{n} {state}" for state in UNFINISHED if (n := cell.count(state))),
        published=beside,
        value=cell.mean,
    )


def _score_record(cell: Cell, best: bool, published: Published | None) -> dict[str, Any]:
    return {
        "environment": cell.env,
        "noise": cell.noise,
        "n_timesteps": cell.n_timesteps,
        "algorithm": cell.algo,
        "name": cell.name,
        "variant": cell.variant,
        "mean": cell.mean,
        "standard_error": cell.standard_error,
        "n_seeds": len(cell.values),
        "best": best,
        **{f"n_{state}": cell.count(state) for state in UNFINISHED},
        "published_mean": published.mean if published else None,
        "published_standard_error": published.standard_error if published else None,
        "published_n_timesteps": published.n_timesteps if published else None,
    }


def column_order(cells: Sequence[Cell]) -> list[str]:
    """The columns of tables, in the order of the paper's."""
    ordered = sorted(cells, key=lambda cell: (variants.column_order(cell.algo, cell.name), cell.variant))
    return list(dict.fromkeys(cell.column for cell in ordered))


def rows_of(
    cells: Sequence[Cell], columns: Sequence[str]
) -> list[tuple[tuple[str, str, int], dict[str, Cell]]]:
    """Cells by environment, noise and steps, in the order of rows; within these by column, in order."""
    rows: dict[tuple[str, str, int], dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.env, cell.noise, cell.n_timesteps), {})[cell.column] = cell
    ordered = sorted(rows.items(), key=lambda row: (row[0][0], *noise_order(row[0][1]), row[0][2]))
    return [(key, {column: row[column] for column in columns if column in row}) for key, row in ordered]


def noise_order(noise: str) -> tuple[bool, str]:
    """A key by which runs without noise come first."""
    return noise != "none", noise


def with_p_values(p: float, adjusted: float) -> str:
    """A p-value, and the same adjusted for the number of comparisons; empty where there is no test."""
    return "" if math.isnan(p) else f"p {p_text(p)}, adjusted {p_text(adjusted)}"


def p_text(p: float) -> str:
    """A p-value with its sign: ``= 0.013``, ``< 0.0001``."""
    if p < 1e-4:
        return "< 0.0001"
    # As many digits as it takes to see on which side of ALPHA it is
    texts = (f"{p:.{digits}g}" for digits in range(2, 18))
    return f"= {next(text for text in texts if (float(text) <= ALPHA) == (p <= ALPHA))}"


def with_error(mean: float, standard_error: float) -> str:
    """A mean and its error, with as many decimals as the error deserves."""
    if math.isnan(mean):
        return "-"
    decimals = _decimals(standard_error if standard_error > 0 else 0.0, mean)
    error = "" if math.isnan(standard_error) else f" ± {standard_error:.{decimals}f}"
    return f"{_rounded(mean, decimals)}{error}"


def with_interval(estimate: Estimate, decimals: int | None = None) -> str:
    """A figure and its interval.

    :param estimate: What to show.
    :param decimals: How many; None for as many as the interval deserves.
    """
    if math.isnan(estimate.value):
        return "-"
    if not estimate.has_interval:
        own = _decimals(0.0, estimate.value) if decimals is None else decimals
        return _rounded(estimate.value, own)
    if decimals is None:
        decimals = _decimals((estimate.high - estimate.low) / 4, estimate.value)
    figures = [_rounded(value, decimals) for value in (estimate.value, estimate.low, estimate.high)]
    return f"{figures[0]} [{figures[1]}, {figures[2]}]"


def _decimals(error: float, value: float) -> int:
    scale = max(error, abs(value) / 1000) if error > 0 else abs(value)
    if scale >= 1 or scale == 0:
        return 0 if scale >= 100 else 1
    return min(1 - math.floor(math.log10(scale)), 9)


def _rounded(value: float, decimals: int) -> str:
    # Adding 0 makes 0 of -0
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def to_markdown(table: Table, left_out: Sequence[str] = ()) -> str:
    """The table as Markdown, with its notes and lines on what is not in it."""
    lines = [
        f"{markup.markdown(table.title)}.",
        "",
        "| environment | noise | steps | " + " | ".join(map(markup.markdown, table.columns)) + " |",
        "| --- | --- | ---: |" + " ---: |" * len(table.columns),
    ]
    for row in table.rows:
        texts = [markup.markdown(row.env), markup.markdown(row.noise), row.steps]
        for column in table.columns:
            entry = row.entries.get(column, Entry())
            first, *below = map(markup.markdown, entry.lines)
            texts.append("<br>".join([f"**{first}**" if entry.best else first, *below]))
        lines.append("| " + " | ".join(texts) + " |")
    notes = [*table.notes, *left_out]
    if notes:
        lines += ["", *(f"- {markup.markdown_line(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """The table as CSV: a line for each figure, at full precision; empty where there is none."""
    file = io.StringIO()
    names = list(table.records[0]) if table.records else []
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for record in table.records:
        writer.writerow({name: _machine(value) for name, value in record.items()})
    return file.getvalue()


def _machine(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return value


def _title(table: Table) -> tuple[str, bool, bool]:
    """The title with the steps and seeds that all rows have in common; whether steps, and seeds, differ."""
    steps = {row.n_timesteps for row in table.rows if row.n_timesteps is not None}
    counts = {entry.n for row in table.rows for entry in row.entries.values() if entry.n is not None}
    title = table.title
    if len(counts) == 1:
        (n,) = counts
        title = re.sub(r"\bn (matched )?seeds", rf"{n} \1seed{'' if n == 1 else 's'}", title)
    if len(steps) == 1:
        title += f", after {next(iter(steps)):,} training steps"
    return title, len(steps) > 1, len(counts) != 1


def to_rich(table: Table, width: int = 250) -> Group:
    """The table for a terminal.

    :param table: The table. What all rows have in common, steps and seeds, is in its title.
    :param width: Columns of the terminal. Columns of the table that do not fit are in further tables.
    """
    title, has_steps, has_counts = _title(table)
    names: dict[str, list[str]] = {
        "environment": [row.env for row in table.rows],
        "noise": [row.noise for row in table.rows],
    }
    if has_steps:
        names["steps"] = [row.steps for row in table.rows]

    def text(column: str, row: Row) -> list[str]:
        entry = row.entries.get(column, Entry())
        lines = entry.lines if has_counts else [entry.figure, *entry.lines[1:]]
        return [markup.one_line(line) for line in lines]

    cells = {column: [text(column, row) for row in table.rows] for column in table.columns}
    room = width - sum(2 + max(map(cell_len, (name, *texts)), default=0) for name, texts in names.items())
    parts: list[list[str]] = [[]]
    left = room
    for column, texts in cells.items():
        needed = 2 + max(map(cell_len, (column, *(line for lines in texts for line in lines))))
        if needed > left and parts[-1]:
            parts.append([])
            left = room
        parts[-1].append(column)
        left -= needed
    return Group(
        *(_part(table, title if not number else "", names, cells, part) for number, part in enumerate(parts))
    )


def _part(
    table: Table,
    title: str,
    names: Mapping[str, Sequence[str]],
    cells: Mapping[str, Sequence[Sequence[str]]],
    columns: Sequence[str],
) -> RichTable:
    """Some columns of a table for a terminal."""
    part = RichTable(
        title=escape(title) or None, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False
    )
    for name in names:
        part.add_column(name, no_wrap=True, justify="right" if name == "steps" else "left")
    for column in columns:
        part.add_column(escape(column), justify="right")
    for place, row in enumerate(table.rows):
        texts = [escape(markup.one_line(own[place])) for own in names.values()]
        for column in columns:
            first, *below = (escape(line) for line in cells[column][place])
            best = row.entries.get(column, Entry()).best
            texts.append("\n".join([f"[bold]{first}[/bold]" if best else first, *below]))
        part.add_row(*texts)
    return part


def to_latex(table: Table) -> str:
    r"""The table as LaTeX in the paper's layout: environments down, noises and algorithms across.

    It needs ``\usepackage{booktabs}`` and ``\usepackage{graphicx}``.
    """
    noises = sorted({row.noise for row in table.rows}, key=noise_order)
    columns = [
        (noise, [c for c in table.columns if any(c in r.entries for r in table.rows if r.noise == noise)])
        for noise in noises
    ]
    rows: dict[tuple[str, int | None], dict[str, Mapping[str, Entry]]] = {}
    for row in table.rows:
        rows.setdefault((row.env, row.n_timesteps), {})[row.noise] = row.entries
    caption, has_steps, has_counts = _title(table)
    n_columns = sum(len(names) for _, names in columns)
    keys = ["environment", "steps"] if has_steps else ["environment"]
    head = [*keys, *(name for _, names in columns for name in names)]
    spans, first = [], len(keys) + 1
    for _, names in columns:
        spans.append(f"\\cmidrule(lr){{{first}-{first + len(names) - 1}}}")
        first += len(names)
    groups = [
        f"\\multicolumn{{{len(names)}}}{{c}}{{{markup.latex('without noise' if noise == 'none' else noise)}}}"
        for noise, names in columns
    ]
    body = []
    for (env, n_timesteps), by_noise in rows.items():
        entries = [by_noise.get(noise, {}).get(name, Entry()) for noise, names in columns for name in names]
        start = [markup.latex(env)] + ([f"{n_timesteps:,}" if n_timesteps else ""] if has_steps else [])
        body.append(_latex_row(start + [_latex_figure(entry, has_counts) for entry in entries]))
        for line in ("p_values", "unfinished", "published"):
            texts = [getattr(entry, line) for entry in entries]
            if any(texts):
                small = [f"{{\\scriptsize {markup.latex(text)}}}" if text else "" for text in texts]
                body.append(_latex_row([""] * len(keys) + small))
    # As wide as it is, but no wider than the text
    width = "\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi"
    lines = [
        "% Needs packages booktabs and graphicx.",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{markup.latex(caption)}.}}",
        f"\\label{{tab:srl-{table.name}}}",
        "\\smallskip",
        f"\\resizebox{{{width}}}{{!}}{{%",
        f"\\begin{{tabular}}{{l{'r' * (len(keys) - 1 + n_columns)}}}",
        "\\toprule",
        _latex_row([""] * len(keys) + groups),
        " ".join(spans),
        _latex_row([markup.latex(name) for name in head]),
        "\\midrule",
        *body,
        "\\bottomrule",
        "\\end{tabular}}",
        *(f"\\par\\smallskip{{\\footnotesize {markup.latex(note)}}}" for note in table.notes),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + " \\\\"


def _latex_figure(entry: Entry, with_n: bool) -> str:
    text = markup.latex(entry.figure)
    if entry.best:
        text = f"\\textbf{{{text}}}"
    return f"{text} {{\\scriptsize ({entry.n})}}" if with_n and entry.n is not None else text
