"""The command ``srl``, with one file for each command."""

from srl.cli.commands import main

__all__ = ["main"]
