"""``srl clean``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.filesize import decimal

from srl.cli.options import FAILED, new_console


@dataclass
class Clean:
    """List files that are no longer needed, such as checkpoints of finished runs. --yes removes them."""

    dir: tyro.conf.Positional[Path]
    """A run directory, or a folder that contains run directories."""
    yes: bool = False
    """Remove the files."""


def clean(options: Clean, command: str) -> int:
    """``srl clean``; returns the exit status."""
    from srl.rundir.clean import find_garbage, remove, shown

    console = new_console()
    garbage = find_garbage(options.dir)
    for item in garbage:
        line = f"{shown(item.path)}  {decimal(item.n_bytes)}  {item.why}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not garbage:
        console.print(f"{options.dir}: nothing to remove.", markup=False, soft_wrap=True)
        return 0
    if not options.yes:
        total = decimal(sum(item.n_bytes for item in garbage))
        console.print(f"{total} in all; nothing was removed. Use --yes to remove them.", markup=False)
        return 0
    n_bytes, problems = remove(garbage)
    console.print(f"Removed: {decimal(n_bytes)}.", markup=False)
    for problem in problems:
        print(f"srl: {problem}", file=sys.stderr)
    return FAILED if problems else 0
