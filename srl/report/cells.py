"""Group runs over seeds into the cells of tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srl.config.algorithms import get_algorithm
from srl.report.runs import Run, State


@dataclass(frozen=True)
class Cell:
    """The runs of one environment, noise, number of steps and column over seeds."""

    env: str
    noise: str
    n_timesteps: int
    #: The name of the column: the algorithm's, or that of a variant.
    name: str
    #: The difference from other cells of the same place, as ``beta=2.0``; usually empty.
    variant: str
    runs: tuple[Run, ...]

    @property
    def algo(self) -> str:
        """The algorithm."""
        return self.runs[0].algo

    @property
    def column(self) -> str:
        """The column as a table names it."""
        name = get_algorithm(self.algo).label if self.name == self.algo else self.name
        return name + (f" ({self.variant})" if self.variant else "")

    @property
    def done(self) -> dict[int, float]:
        """The scores of the finished runs by seed."""
        return {run.seed: run.score for run in self.runs if run.state == "done"}

    @property
    def values(self) -> list[float]:
        """The scores of the finished runs."""
        return list(self.done.values())

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without one."""
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over seeds, from the unbiased deviation; NaN for fewer than two."""
        n = len(self.values)
        return float(np.std(self.values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")

    def count(self, state: State) -> int:
        """The number of its runs in a state."""
        return sum(run.state == state for run in self.runs)


def name_seeds(seeds: set[int]) -> str:
    """Seeds in words: ``seed 7``, ``seeds 0 to 4, 7``."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    texts = [
        f"{first} to {end}" if end > first + 1 else ", ".join(map(str, dict.fromkeys((first, end))))
        for first, end in ranges
    ]
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(texts)}"


def group(runs: Sequence[Run]) -> list[Cell]:
    """Group runs that differ only in the seed and in how they were executed.

    Runs of the same place with different hyperparameters are separate cells, named after the difference. The
    cell with the values that the algorithm has in all other places keeps the plain name.
    """
    places: dict[tuple[str, str, int, str], list[Run]] = defaultdict(list)
    for run in runs:
        places[run.place].append(run)
    # Missing runs have no settings
    settings = {
        place: list(dict.fromkeys(run.settings for run in members if run.settings)) or [()]
        for place, members in places.items()
    }
    cells = []
    for place, members in places.items():
        own = settings[place]
        differing = _differing(own)
        elsewhere = [
            dict(other[0])
            for where, other in settings.items()
            if where[-1] == place[-1] and len(other) == 1 and other[0]
        ]
        usual = {key: {values.get(key) for values in elsewhere} for key in differing}
        plain = next(
            (
                one
                for one in own
                if elsewhere and all(usual[key] == {dict(one).get(key)} for key in differing)
            ),
            None,
        )
        for setting in own:
            values = dict(setting)
            named = [] if setting == plain else [key for key in differing if key in values]
            variant = ", ".join(f"{key.rpartition('.')[2]}={values[key]}" for key in named)
            # Missing runs belong to the plain cell, or else to the first
            with_missing = own[0] if plain is None else plain
            mine = [
                run
                for run in members
                if run.settings == setting or (not run.settings and setting == with_missing)
            ]
            cells.append(Cell(*place, variant, tuple(sorted(mine, key=lambda run: run.seed))))
    return cells


def _differing(settings: Sequence[tuple[tuple[str, str], ...]]) -> list[str]:
    """The keys in which some settings differ."""
    return list(
        dict.fromkeys(
            key
            for one in settings
            for key, value in one
            for other in settings
            if dict(other).get(key) != value
        )
    )
