"""From run directories to tables: it reads what :mod:`srl.rundir.store` lays down, and trains nothing."""
