"""Aggregates over several environments: normalized scores of matched runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from srl.report.cells import Cell
from srl.report.comparison import Matched, by_column, match
from srl.report.intervals import Array, Estimate
from srl.report.normalization import NAMES, Kind, Scale, Task, normalize
from srl.report.statistics import aggregates, performance_profile
from srl.report.tables import noise_order

#: Number of points of performance profiles.
_N_THRESHOLDS = 101
#: Number of runs of each column over all environments below which no profile is drawn.
ENOUGH_FOR_PROFILES = 10


@dataclass(frozen=True)
class Aggregate:
    """All columns under one noise, over the environments with one normalization."""

    noise: str
    kind: Kind
    matched: Matched
    #: Normalized scores of each column, shape (n_seeds, n_tasks).
    scores: dict[str, Array]
    #: By column and name, see :data:`srl.report.statistics.AGGREGATES`.
    figures: dict[str, dict[str, Estimate]]
    #: Normalized scores at which the profiles are computed, shape (n_thresholds,).
    thresholds: Array
    profiles: dict[str, list[Estimate]]

    @property
    def n_runs(self) -> int:
        """Number of runs of each column over all environments."""
        return len(self.matched.seeds) * len(self.matched.tasks)


def make_aggregates(
    cells: Sequence[Cell], scales: Mapping[Task, Scale], *, reps: int
) -> tuple[list[Aggregate], list[str]]:
    """Compute the aggregates for each noise and kind of normalization.

    All columns with finished runs under a noise are matched, except columns with few of them.

    :param scales: The scales of environments; environments without one are in no aggregate.
    :return: The aggregates, and lines on runs that are left out.
    """
    matches: list[tuple[str, Kind, Matched]] = []
    notes: list[str] = []
    for noise in sorted({cell.noise for cell in cells}, key=noise_order):
        for kind in ("human", "minmax", "none"):
            members = [
                cell
                for cell in cells
                if cell.noise == noise
                and (scale := scales.get((cell.env, cell.n_timesteps))) is not None
                and scale.kind == kind
            ]
            where = f"aggregates, {NAMES[kind]}, {describe_noise(noise)}"
            sides, rare = _without_rare(by_column(members))
            notes += [f"Left out of the {where}: {column}, which has few finished runs." for column in rare]
            if not sides:
                continue
            matched = match(sides)
            notes += [f"Left out of the {where}: {line}." for line in matched.left_out]
            if matched:
                matches.append((noise, kind, matched))
            else:
                notes.append(f"No {where}: no seed is finished with all of {', '.join(sides)}.")
    return [_aggregate(*one, _thresholds(matches, one[1], scales), scales, reps) for one in matches], notes


def _without_rare(
    sides: Mapping[str, Mapping[Task, Cell]],
) -> tuple[dict[str, Mapping[Task, Cell]], list[str]]:
    """Split off the columns with few finished runs, or with finished runs in few environments.

    Few are less than a quarter of the most runs, or half of the most environments, of a column.
    """
    n_runs = {column: sum(len(cell.values) for cell in cells.values()) for column, cells in sides.items()}
    n_envs = {column: sum(bool(cell.values) for cell in cells.values()) for column, cells in sides.items()}
    rare = [
        column
        for column in sides
        if 4 * n_runs[column] < max(n_runs.values()) or 2 * n_envs[column] < max(n_envs.values())
    ]
    return {column: cells for column, cells in sides.items() if column not in rare}, rare


def _aggregate(
    noise: str, kind: Kind, matched: Matched, thresholds: Array, scales: Mapping[Task, Scale], reps: int
) -> Aggregate:
    scores = {column: normalize(returns, matched.tasks, scales) for column, returns in matched.scores.items()}
    return Aggregate(
        noise,
        kind,
        matched,
        scores,
        {column: aggregates(own, reps=reps) for column, own in scores.items()},
        thresholds,
        {column: performance_profile(own, thresholds, reps=reps) for column, own in scores.items()},
    )


def _thresholds(
    matches: Sequence[tuple[str, Kind, Matched]], kind: Kind, scales: Mapping[Task, Scale]
) -> Array:
    """Points from the lowest score, at most 0, to the highest, the same for all noises."""
    scores = np.concatenate(
        [
            normalize(returns, matched.tasks, scales).ravel()
            for _, other, matched in matches
            if other == kind
            for returns in matched.scores.values()
        ]
    )
    low, high = min(0.0, float(scores.min())), max(float(scores.max()), 1e-9)
    return np.linspace(low, high, _N_THRESHOLDS, dtype=np.float64)


def describe_noise(noise: str) -> str:
    """A noise in words."""
    return "without noise" if noise == "none" else f"with noise {noise}"
