"""The table: environment x noise x algorithm, mean ± standard error over seeds of the final evaluation."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from srl.experiment.algorithms import ALGORITHMS
from srl.experiment.config_files import ConfigFile, configs_dir
from srl.experiment.store import check_writable, write_text
from srl.report.scores import Cell, State, group, read_scores

TABLE_MARKDOWN = "table.md"
TABLE_CSV = "table.csv"

#: Said of runs that have no score, in this order.
_UNFINISHED: tuple[State, ...] = ("running", "interrupted", "failed", "damaged", "missing")


@dataclass(frozen=True)
class Published:
    """A published figure."""

    mean: float
    standard_error: float
    n_timesteps: int
    source: str


def read_published(folder: Path | None = None) -> dict[tuple[str, str, str], Published]:
    """Published figures by environment, noise and algorithm.

    :param folder: A folder of YAML files; None takes ``configs/published``.
    :raises UserError: If a file is malformed.
    """
    published = {}
    for path in sorted((folder or configs_dir() / "published").glob("*.yml")):
        file = ConfigFile(path)
        try:
            protocol, source = file.data["protocol"], " ".join(file.data["source"].split())
            for env, algos in file.data["scores"].items():
                for algo, (mean, standard_error) in algos.items():
                    published[env, str(protocol["noise"]), algo] = Published(
                        float(mean), float(standard_error), int(protocol["n_timesteps"]), source
                    )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise file.error([], f"not a file of published scores: {error!r}.") from None
    return published


@dataclass(frozen=True)
class Report:
    """A table and what there is to say beneath it."""

    cells: list[Cell]
    published: dict[tuple[str, str, str], Published]
    #: Lines on what is not in the table, or differs.
    notes: list[str]

    @property
    def columns(self) -> list[str]:
        """The algorithms, in the order of the paper's tables."""
        order = list(ALGORITHMS)
        return list(
            dict.fromkeys(
                cell.column for cell in sorted(self.cells, key=lambda c: (order.index(c.algo), c.variant))
            )
        )

    @property
    def rows(self) -> list[tuple[str, str, int]]:
        """Environment, noise and steps of each row."""
        keys = {(cell.env, cell.noise, cell.n_timesteps) for cell in self.cells}
        return sorted(keys, key=lambda key: (key[0], key[1] != "none", key[1], key[2]))

    def find(self, row: tuple[str, str, int], column: str) -> Cell | None:
        """The cell at a place."""
        return next(
            (c for c in self.cells if (c.env, c.noise, c.n_timesteps) == row and c.column == column), None
        )

    def published_beside(self, cell: Cell) -> Published | None:
        """The published figure of a cell."""
        return None if cell.variant else self.published.get((cell.env, cell.noise, cell.algo))


def make_report(root: Path) -> Report:
    """Read a folder of runs; nothing is written.

    :raises UserError: If there is nothing to report on, or a published figure's file is malformed.
    """
    scores, notes = read_scores(root)
    cells = group(scores)
    published = read_published()
    lost = [score for score in scores if score.state in ("failed", "damaged")]
    notes += [f"{score.path}: {score.state}: {score.reason}" for score in lost]
    report = Report(cells, published, notes)
    shown = [(cell, figure) for cell in cells if (figure := report.published_beside(cell))]
    notes += dict.fromkeys(f"[published] {figure.source}." for _, figure in shown)
    other = sorted({figure.n_timesteps for cell, figure in shown if figure.n_timesteps != cell.n_timesteps})
    notes += [f"† published after {steps:,} steps, not the row's." for steps in other]
    return report


def format_cell(report: Report, cell: Cell | None) -> list[str]:
    """A cell in one to three lines: our figure over n seeds, what is unfinished, the published one."""
    if cell is None:
        return ["-"]
    n = len(cell.values)
    lines = [f"{_figure(cell.mean, cell.standard_error)} (n={n})" if n else "-"]
    unfinished = [f"{cell.count(state)} {state}" for state in _UNFINISHED if cell.count(state)]
    if unfinished:
        lines.append(", ".join(unfinished))
    published = report.published_beside(cell)
    if published is not None:
        mark = " †" if published.n_timesteps != cell.n_timesteps else ""
        lines.append(f"[published {published.mean:g} ± {published.standard_error:g}{mark}]")
    return lines


def _figure(mean: float, standard_error: float) -> str:
    if math.isnan(mean):
        return "-"
    # As many decimals as the error deserves
    scale = max(standard_error, abs(mean) / 1000) if standard_error > 0 else abs(mean)
    if scale >= 1 or scale == 0:
        decimals = 0 if scale >= 100 else 1
    else:
        decimals = min(1 - math.floor(math.log10(scale)), 9)
    error = "" if math.isnan(standard_error) else f" ± {standard_error:.{decimals}f}"
    return f"{mean:.{decimals}f}{error}"


def rich_table(report: Report) -> Table:
    """The table for a terminal."""
    table = Table(title="Final evaluation: mean ± standard error over n seeds", title_justify="left")
    table.add_column("environment", no_wrap=True)
    table.add_column("noise")
    table.add_column("steps", justify="right")
    for column in report.columns:
        table.add_column(escape(column), justify="right")
    for row in report.rows:
        cells = ["\n".join(format_cell(report, report.find(row, column))) for column in report.columns]
        table.add_row(escape(row[0]), escape(row[1]), f"{row[2]:,}", *map(escape, cells), end_section=True)
    return table


def markdown(report: Report) -> str:
    """The table as Markdown."""
    lines = [
        "Final evaluation: mean ± standard error over n seeds of the mean return.",
        "",
        "| environment | noise | steps | " + " | ".join(map(_plain, report.columns)) + " |",
        "| --- | --- | ---: |" + " ---: |" * len(report.columns),
    ]
    for row in report.rows:
        cells = [format_cell(report, report.find(row, column)) for column in report.columns]
        texts = [
            _plain(row[0]),
            _plain(row[1]),
            f"{row[2]:,}",
            *("<br>".join(map(_plain, cell)) for cell in cells),
        ]
        lines.append("| " + " | ".join(texts) + " |")
    if report.notes:
        lines += ["", *(f"- {_plain(note)}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A text that Markdown and HTML take for nothing but text."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    for character in "\\`*_{}[]|#":
        text = text.replace(character, "\\" + character)
    return text


def csv_text(report: Report) -> str:
    """The table as CSV: one line for each environment, noise, steps and algorithm."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["environment", "noise", "n_timesteps", "algorithm", "variant", "mean", "standard_error", "n_seeds"]
        + [f"n_{state}" for state in _UNFINISHED]
        + ["published_mean", "published_standard_error", "published_n_timesteps"]
    )
    for row in report.rows:
        for column in report.columns:
            cell = report.find(row, column)
            if cell is None:
                continue
            published = report.published_beside(cell)
            figures: list[Any] = [cell.mean, cell.standard_error]
            writer.writerow(
                [*row, cell.algo, cell.variant]
                + ["" if math.isnan(figure) else repr(figure) for figure in figures]
                + [len(cell.values)]
                + [cell.count(state) for state in _UNFINISHED]
                + (
                    [published.mean, published.standard_error, published.n_timesteps]
                    if published
                    else ["", "", ""]
                )
            )
    return file.getvalue()


def write_report(report: Report, root: Path) -> Sequence[Path]:
    """Write the table as Markdown and CSV.

    :return: The files.
    :raises UserError: If the folder cannot be written to.
    """
    check_writable(root)
    files = [(root / TABLE_MARKDOWN, markdown(report)), (root / TABLE_CSV, csv_text(report))]
    for path, text in files:
        write_text(path, text)
    return [path for path, _ in files]
