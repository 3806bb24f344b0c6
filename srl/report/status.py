"""Print or watch the progress of the runs in a folder; nothing is written."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from srl.errors import UserError
from srl.report.overview import Folder, Overview
from srl.report.screen import screen


def print_status(root: Path, console: Console) -> None:
    """Print the progress of the runs in a folder.

    :raises UserError: If there is no such folder, or neither a run nor a plan in it.
    """
    _print(Folder(root).read(), root, console)


def watch_status(root: Path, console: Console, interval: float) -> None:
    """Show the progress of the runs in a folder until none is pending; wait until it has runs.

    On a terminal the screen is updated in place; elsewhere it is printed again after changes.

    :param interval: Seconds between two updates of the display.
    :raises UserError: If it is not a folder.
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
                raise UserError(f"{root}: is not a folder.")
            try:
                overview = folder.read()
            except UserError as error:  # it does not exist yet, or contains no runs
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
                if shown is not None:
                    console.print()
                _print(overview, root, console)
                shown = overview
            if not overview.pending:
                return
            time.sleep(interval)


def _print(overview: Overview, root: Path, console: Console) -> None:
    """Print the whole screen, as wide as the terminal; lines are not wrapped elsewhere."""
    if console.is_terminal:
        console.print(screen(overview, root, console.width))
    else:
        console.print(screen(overview, root), soft_wrap=True)
