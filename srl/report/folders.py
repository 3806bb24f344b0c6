"""Find the folders of runs, plans and reports below a root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srl.rundir.find import walk
from srl.rundir.names import SPEC
from srl.rundir.plan import PLAN

#: Names of files and folders of a report.
PAGE = "report.html"
FIGURES = "figures"
ZOO = "zoo"
#: The record of the files that reports have written to a folder.
RECORD = ".srl-report.json"


@dataclass(frozen=True)
class FoundFolders:
    """The folders at or below a root, as paths below it; the root itself is ``"."``."""

    #: Folders with a run's spec.
    runs: list[str]
    #: Folders with a sweep's plan.
    plans: list[str]
    #: Folders with other files.
    others: list[str]
    #: Folders with a report.
    reports: list[str]
    #: Lines on folders that cannot be read.
    unreadable: list[str]


def find_folders(root: Path) -> FoundFolders:
    """Sort the folders at or below a root; nothing in them is read."""
    found = FoundFolders([], [], [], ["."], [])

    def cannot(error: OSError) -> None:
        path = os.path.relpath(error.filename, root)
        found.unreadable.append(f"{path}: cannot be read: {error.strerror}.")

    for folder, folders, files in walk(root, cannot):
        folders.sort()
        path = Path(os.path.relpath(folder, root)).as_posix()
        if SPEC in files:
            found.runs.append(path)
        elif files and {PLAN, PAGE, RECORD}.isdisjoint(files):
            found.others.append(path)
        if PLAN in files:
            found.plans.append(path)
        if PAGE in files or RECORD in files:
            found.reports.append(path)
    found.runs.sort()
    return found


def foreign_folders(found: FoundFolders, planned: Sequence[str]) -> list[str]:
    """Lines on the outermost folders that do not belong to runs, plans or reports."""
    known = [*found.runs, *found.plans, *found.reports, *planned]
    ours = {parent for path in known for parent in _with_parents(path)}
    written = {(Path(path) / name).as_posix() for path in [".", *ours] for name in (FIGURES, ZOO)}
    inside = {*found.runs, *planned, *written}
    outermost = dict.fromkeys(
        next(parent for parent in reversed(_with_parents(path)) if parent not in ours)
        for path in found.others
        if path not in ours and inside.isdisjoint(_with_parents(path))
    )
    return [f"{path}: left out, not a run directory." for path in outermost]


def _with_parents(path: str) -> list[str]:
    """A path and all those above it, from the inside out: ``a/b`` gives ``a/b``, ``a``, ``.``."""
    return [path, *(parent.as_posix() for parent in Path(path).parents)]
