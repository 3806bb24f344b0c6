"""The run directory: its files, their integrity, and how far runs are."""
