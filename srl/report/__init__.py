"""From run directories to tables: it reads what :mod:`srl.experiment.store` lays down, and trains nothing."""
