"""``python -m srl`` is the command ``srl``."""

from srl.cli import main

main()
