"""Find run directories below a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from srl.rundir.directory import RunDirectory
from srl.rundir.names import ASIDE, LOCK, SPEC, STATUS
from srl.rundir.plan import PLAN


def find_runs(root: Path) -> list[RunDirectory]:
    """All run directories at or below a folder, in the order of their paths."""
    found = [Path(folder) for folder, folders, files in walk(root) if SPEC in files]
    return [RunDirectory(folder) for folder in sorted(found)]


def walk(
    root: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """:func:`os.walk` without the files in ``damaged-N``, and without specs and plans that are not files.

    :param root: The folder to start from.
    :param onerror: Called with the error of a folder that cannot be read.
    """
    for folder, folders, names in os.walk(root, onerror=onerror):
        files = [
            name for name in names if name not in (SPEC, PLAN) or os.path.isfile(os.path.join(folder, name))
        ]
        if not {SPEC, STATUS, LOCK}.isdisjoint(names):
            folders[:] = [name for name in folders if not ASIDE.fullmatch(name)]
        yield folder, folders, files
