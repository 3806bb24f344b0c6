"""Published scores, and the differences of their protocol from that of the runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srl.config.files import ConfigFile, configs_dir
from srl.report.cells import Cell


@dataclass(frozen=True)
class Published:
    """A published score."""

    mean: float
    standard_error: float
    n_timesteps: int
    n_seeds: int
    source: str
    #: Settings of its protocol, by their flattened keys in a run's spec.
    settings: tuple[tuple[str, Any], ...] = ()

    def differences(self, cell: Cell, last: int) -> list[str]:
        """The differences of its protocol from a cell's, in words.

        :param last: The number of evaluations that a score of the cell averages.
        """
        differences = []
        if self.n_timesteps != cell.n_timesteps:
            differences.append(f"published after {self.n_timesteps:,} steps, not the row's")
        if cell.values and self.n_seeds != len(cell.values):
            differences.append(f"published over {self.n_seeds} seeds")
        if last != 1:
            differences.append("published for the final evaluation alone")
        ours = next((dict(run.settings) for run in cell.runs if run.settings), {})
        for key, value in self.settings:
            if key in ours and ours[key] != json.dumps(value):
                name = key.rpartition(".")[2]
                differences.append(f"published with {name}={json.dumps(value)}, ours has {ours[key]}")
        return differences


def read_published(folder: Path | None = None) -> dict[tuple[str, str, str], Published]:
    """Published scores by environment, noise and algorithm.

    :param folder: A folder of YAML files; None takes ``configs/published``.
    :raises UserError: If a file is malformed.
    """
    published = {}
    for path in sorted((folder or configs_dir() / "published").glob("*.yml")):
        file = ConfigFile(path)
        try:
            protocol, source = file.data["protocol"], " ".join(file.data["source"].split())
            settings = file.data.get("settings", {})
            for env, algos in file.data["scores"].items():
                for algo, (mean, standard_error) in algos.items():
                    published[env, str(protocol["noise"]), algo] = Published(
                        float(mean),
                        float(standard_error),
                        int(protocol["n_timesteps"]),
                        int(protocol["n_seeds"]),
                        source,
                        tuple({**settings.get("all", {}), **settings.get(algo, {})}.items()),
                    )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise file.error([], f"not a file of published scores: {error!r}.") from None
    return published
