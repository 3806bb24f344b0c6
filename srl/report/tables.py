"""Tables as data, the paper's table, and the format of numbers in tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srl.config import variants
from srl.report.cells import Cell
from srl.report.intervals import Estimate
from srl.report.published import Published
from srl.report.runs import UNFINISHED
from srl.report.significance import ALPHA, best_of_rows
from srl.report.trends import noise_level

#: The meaning of bold where columns of a row are compared.
BOLD = (
    "Bold: the best of a row, if it is shown to score higher than every other column (exact permutation "
    f"test, p at most {ALPHA:g} after Holm's correction for the number of rows)."
)
#: Marks of footnotes, followed by numbers in brackets.
_MARKS = ("†", "‡", "§", "¶")


@dataclass(frozen=True)
class Entry:
    """The content of a cell."""

    #: The number with its error or interval; ``"-"`` for none.
    figure: str = "-"
    #: The number of seeds; None if it is not shown.
    n: int | None = None
    #: Whether it is shown to be the best of its row; of a comparison, whether it shows a difference.
    best: bool = False
    #: The p-values of a comparison.
    p_values: str = ""
    #: Unfinished runs in words.
    unfinished: str = ""
    #: The published number, with the marks of differences.
    published: str = ""
    #: The number, to sort by.
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
    #: Training steps; None for several environments with different steps.
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
    #: Its numbers as records for CSV and JSON.
    records: Sequence[Mapping[str, Any]]
    #: Lines below it.
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

    :param published: Published scores by environment, noise and algorithm.
    :param last: The number of evaluations that a score averages.
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
            reference = published.get((env, noise, cell.algo)) if plain else None
            entries[column] = _score_entry(cell, column == best, reference, last, marks)
            if reference:
                sources[reference.source] = None
            records.append(_score_record(cell, column == best, reference))
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
    """Lines on evaluation episodes that ``eval_max_episode_steps`` has truncated."""
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
    """The entry of a cell; new marks are added to ``marks``."""
    text = ""
    if published is not None:
        signs = ""
        for difference in published.differences(cell, last):
            mark = _MARKS[len(marks)] if len(marks) < len(_MARKS) else f"({len(marks) + 1})"
            signs += marks.setdefault(difference, mark)
        text = f"[published {published.mean:g} ± {published.standard_error:g}{' ' if signs else ''}{signs}]"
    return Entry(
        with_error(cell.mean, cell.standard_error),
        n=len(cell.values) or None,
        best=best,
        unfinished=", ".join(f"{n} {state}" for state in UNFINISHED if (n := cell.count(state))),
        published=text,
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
    """Cells by environment, noise and steps, then by column, in the order of tables."""
    rows: dict[tuple[str, str, int], dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.env, cell.noise, cell.n_timesteps), {})[cell.column] = cell
    ordered = sorted(rows.items(), key=lambda row: (row[0][0], *noise_order(row[0][1]), row[0][2]))
    return [(key, {column: row[column] for column in columns if column in row}) for key, row in ordered]


def noise_order(noise: str) -> tuple[bool, str, float, str]:
    """A sort key by which no noise comes first, then each kind by its parameter."""
    return noise != "none", *noise_level(noise), noise


def with_p_values(p: float, adjusted: float) -> str:
    """A p-value and the adjusted one in words; empty without a test."""
    return "" if math.isnan(p) else f"p {p_text(p)}, adjusted {p_text(adjusted)}"


def p_text(p: float) -> str:
    """A p-value with its sign: ``= 0.013``, ``< 0.0001``."""
    if p < 1e-4:
        return "< 0.0001"
    # Enough digits to compare it with ALPHA
    texts = (f"{p:.{digits}g}" for digits in range(2, 18))
    return f"= {next(text for text in texts if (float(text) <= ALPHA) == (p <= ALPHA))}"


def with_error(mean: float, standard_error: float) -> str:
    """A mean and its error, with decimals according to the error."""
    if math.isnan(mean):
        return "-"
    decimals = _decimals(standard_error if standard_error > 0 else 0.0, mean)
    error = "" if math.isnan(standard_error) else f" ± {standard_error:.{decimals}f}"
    return f"{_rounded(mean, decimals)}{error}"


def with_interval(estimate: Estimate, decimals: int | None = None) -> str:
    """A number and its interval.

    :param decimals: The number of decimals; None chooses it according to the interval.
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
    # Adding 0 turns -0 into 0
    return f"{round(value, decimals) + 0.0:.{decimals}f}"
