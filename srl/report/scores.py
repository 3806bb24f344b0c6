"""The scores of a folder of runs, and the paper's table."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from srl.errors import UserError
from srl.report.cells import Cell, group, name_seeds
from srl.report.published import read_published
from srl.report.runs import Run, State, read_runs
from srl.report.source import Folders, Source
from srl.report.tables import Table, column_order, score_table
from srl.rundir.plan import PLAN, default_pairs, read_comparisons, read_plan


@dataclass(frozen=True)
class Scores:
    """The scores of a folder, the paper's table, and lines on missing runs."""

    root: Path
    source: Source
    runs: list[Run]
    cells: list[Cell]
    #: Names of columns, in the order of the paper's tables.
    columns: list[str]
    table: Table
    #: Lines on runs and folders that are left out of all results.
    left_out: list[str]
    #: Pairs of columns and baselines to compare; empty for the default.
    compare: list[tuple[str, str]] = field(default_factory=list)


def read_scores(root: Path, *, last: int = 1) -> Scores:
    """Read a folder of runs into the paper's table; nothing is written.

    :param root: The folder of a sweep, or of a run, or an archive, see :mod:`srl.report.archive`.
    :param last: The score of a run is the mean over this many evaluations, the last ones.
    :raises UserError: If there is nothing to report on, or a published figure's file is malformed.
    """
    source: Source
    if root.is_file():
        from srl.report.archive import read_archive

        archive = read_archive(root, last=last)
        runs, left_out, compare, source = archive.runs, list(archive.left_out), archive.compare, archive
    else:
        runs, left_out = read_runs(root, last=last)
        compare = _pairs(root, runs)
        source = Folders(root)
    cells = group(runs)
    columns = column_order(cells)
    table = score_table(cells, columns, read_published(), last)
    return Scores(root, source, runs, cells, columns, table, left_out + unfinished(runs), compare)


def _pairs(root: Path, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The pairs of columns that the sweeps in a folder compare.

    Sweeps without pairs, and runs of no sweep, have the default pairs of their own columns.

    :return: Empty if no sweep has pairs.
    """
    plans = sorted(file.parent.relative_to(root) for file in root.rglob(PLAN))
    chosen = {folder: read_comparisons(root / folder) for folder in plans}
    if not any(chosen.values()):
        return []
    others = {run.path: (run.name, run.algo) for run in runs}
    pairs: list[tuple[str, str]] = []
    for folder in plans:
        own = []
        with suppress(UserError):  # a line of `read_runs` names it
            for run in read_plan(root / folder):
                own.append((run.variant or run.algo, run.algo))
                others.pop((folder / run.path).as_posix(), None)
        pairs += chosen[folder] or default_pairs(own)
    return list(dict.fromkeys([*pairs, *default_pairs(others.values())]))


def unfinished(runs: Sequence[Run]) -> list[str]:
    """Lines on runs without a score, grouped by environment, or by cell and reason."""
    alike: dict[tuple[str, State, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.reason:
            alike[_cell_folder(run), run.state, run.reason].append(run)
    lines = []
    for (folder, state, reason), same in alike.items():
        where = f"{folder}: {state}: {_names(same)}" if len(same) > 1 else f"{same[0].path}: {state}"
        lines.append(f"{where}: {reason}")
    by_env: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_env[run.env].append(run)
    for env, of_env in by_env.items():
        if len(of_env) > 1 and all(run.state == "missing" for run in of_env):
            lines.append(f"{env}: all {len(of_env)} runs are missing.")
            continue
        cells: dict[tuple[str, State], list[Run]] = defaultdict(list)
        for run in of_env:
            if run.state != "done" and not run.reason:
                cells[_cell_folder(run), run.state].append(run)
        lines += [f"{folder}: {state}: {_names(of_cell)}." for (folder, state), of_cell in cells.items()]
    return lines


def _cell_folder(run: Run) -> str:
    return Path(run.path).parent.as_posix()


def _names(runs: Sequence[Run]) -> str:
    """The names of folders, with ranges of three or more successive seeds."""
    # The folder of the report itself has no name
    names = [Path(run.path).name or f"seed-{run.seed}" for run in runs]
    if names != [f"seed-{run.seed}" for run in runs]:
        return ", ".join(names)
    _, _, numbers = name_seeds({run.seed for run in runs}).partition(" ")
    return re.sub(r"(\d+)", r"seed-\1", numbers)
