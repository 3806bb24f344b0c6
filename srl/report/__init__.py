"""From run directories to tables: it reads what :mod:`srl.rundir.directory` lays down, and trains nothing."""
