"""``srl status``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from srl.cli.options import STOPPED, new_console
from srl.errors import UserError


@dataclass
class Status:
    """Show the progress of the runs in a folder: finished, running and failed runs, and the time left. The
    command writes nothing."""

    dir: tyro.conf.Positional[Path]
    """A run directory, or a folder that contains run directories."""
    watch: bool = False
    """Refresh the display until no run is pending, and wait for the folder if it does not exist yet. Ctrl-C
    ends only this command."""
    interval: float = 2.0
    """Seconds between two updates of the display."""


def show_status(options: Status, command: str) -> int:
    """``srl status``; returns the exit status."""
    # The system may not support longer sleeps
    if not 0 < options.interval <= 86_400:
        raise UserError(f"--interval {options.interval:g}: must be above 0 and at most 86400 seconds.")
    try:
        from srl.report.status import print_status, watch_status

        if options.watch:
            watch_status(options.dir, new_console(), options.interval)
        else:
            print_status(options.dir, new_console())
    except KeyboardInterrupt:
        # Ctrl-C stops no run
        return 0 if options.watch else STOPPED
    return 0
