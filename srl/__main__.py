"""The command ``srl``, also as ``python -m srl``."""

from __future__ import annotations

import sys

from srl.errors import MissingExtra


def main() -> None:
    """Run the command line; see :func:`srl.cli.main`."""
    try:
        from srl.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "srl":
            raise
        print(f"srl: {MissingExtra('The command srl', error, 'experiments')}", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
