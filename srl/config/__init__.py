"""From YAML to checked specs of runs and sweeps; it imports neither torch nor SB3."""
