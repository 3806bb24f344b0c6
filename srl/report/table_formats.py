"""Tables as Markdown, CSV and LaTeX, and for a terminal."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.markup import escape
from rich.table import Table as RichTable

from srl.report import markup
from srl.report.tables import Entry, Row, Table, noise_order


def to_markdown(table: Table, left_out: Sequence[str] = ()) -> str:
    """The table as Markdown, with its notes and lines on missing runs."""
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
    """The table as CSV: a line for each number at full precision, empty for NaN."""
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
    """The title with the common steps and seeds of all rows; whether steps and seeds differ."""
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

    Common steps and seeds of all rows are in its title.

    :param width: Columns of the terminal. Columns of the table that do not fit are in more tables.
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
    # At most as wide as the text
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
