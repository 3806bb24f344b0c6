"""Scores against a hyperparameter: columns of one algorithm that differ in one number."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srl.config.algorithms import get_algorithm
from srl.report.cells import Cell
from srl.report.intervals import mean_band
from srl.report.normalization import Task
from srl.report.tables import noise_order

_PREFIX = "hyperparams."


@dataclass(frozen=True)
class Line:
    """The scores of an algorithm at the values of a hyperparameter."""

    #: The algorithm, with the difference from its other lines.
    label: str
    #: The column of the lowest value.
    column: str
    #: Values of the hyperparameter, ascending, shape (n_values,).
    values: tuple[float, ...]
    #: Mean scores over seeds, and the ends of their 95% bootstrap intervals, NaN for one seed.
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    n_seeds: tuple[int, ...]


@dataclass(frozen=True)
class Baseline:
    """The score of a column that the columns of lines are compared with."""

    column: str
    n_seeds: int
    #: The mean over seeds, and the ends of its 95% bootstrap interval, NaN for one seed.
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Ablation:
    """The scores in an environment against a hyperparameter."""

    task: Task
    #: The hyperparameter, as ``beta``.
    name: str
    #: By noise.
    lines: Mapping[str, Sequence[Line]]
    #: By noise; without those that are points of a line.
    baselines: Mapping[str, Sequence[Baseline]]


def find_ablations(cells: Sequence[Cell], pairs: Collection[tuple[str, str]] = ()) -> list[Ablation]:
    """Find columns of an algorithm that differ only in one numeric hyperparameter.

    :param pairs: The compared pairs of a column and its baseline.
    :return: An ablation for each environment and hyperparameter with a line of two finished values or more.
    """
    finished = [(cell, _settings(cell)) for cell in cells if cell.values]
    # Cells that differ in one number have the same other settings
    groups: dict[tuple[Task, str, str, str], dict[tuple[Any, ...], list[tuple[float, Cell]]]]
    groups = defaultdict(lambda: defaultdict(list))
    by_place: dict[tuple[Task, str, str], list[tuple[Cell, dict[str, str]]]] = defaultdict(list)
    for cell, settings in finished:
        by_place[(cell.env, cell.n_timesteps), cell.algo, cell.noise].append((cell, settings))
    for (task, algo, noise), members in by_place.items():
        for key in _numbers([settings for _, settings in members]):
            for cell, settings in members:
                rest = tuple(item for item in settings.items() if item[0] != key)
                groups[task, key, algo, noise][rest].append((json.loads(settings[key]), cell))
    found: dict[tuple[Task, str], dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    drawn: dict[tuple[Task, str, str], set[str]] = defaultdict(set)
    for (task, key, algo, noise), own in groups.items():
        rests = [dict(rest) for rest, points in own.items() if len(points) > 1]
        for rest, points in own.items():
            if len(points) > 1:
                found[task, key][noise].append(_line(algo, dict(rest), rests, points))
                drawn[task, key, noise].update(cell.column for _, cell in points)
    ordered = sorted(found.items(), key=lambda one: one[0])
    return [
        Ablation(
            task,
            key.removeprefix(_PREFIX),
            {noise: lines[noise] for noise in sorted(lines, key=noise_order)},
            {noise: _baselines(cells, task, noise, drawn[task, key, noise], pairs) for noise in lines},
        )
        for (task, key), lines in ordered
    ]


def _baselines(
    cells: Sequence[Cell], task: Task, noise: str, drawn: Collection[str], pairs: Collection[tuple[str, str]]
) -> list[Baseline]:
    """The finished baselines of the drawn columns in an environment under a noise."""
    names = {baseline for column, baseline in pairs if column in drawn} - set(drawn)
    own = [cell for cell in cells if (cell.env, cell.n_timesteps, cell.noise) == (*task, noise)]
    return [
        Baseline(cell.column, len(cell.values), *_mean_and_interval(cell))
        for cell in own
        if cell.column in names and cell.values
    ]


def _mean_and_interval(cell: Cell) -> tuple[float, float, float]:
    """The mean over seeds, and the ends of its interval."""
    mean, low, high = mean_band(np.array(cell.values)[:, None])
    return float(mean[0]), float(low[0]), float(high[0])


def _settings(cell: Cell) -> dict[str, str]:
    """The settings of a cell's runs without the name of the variant."""
    settings = next((run.settings for run in cell.runs if run.settings), ())
    return {key: value for key, value in settings if key != "variant"}


def _numbers(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The hyperparameters that are numbers, and differ between some of the settings."""
    keys = [key for key in settings[0] if key.startswith(_PREFIX) and all(key in one for one in settings)]
    return [
        key
        for key in keys
        if len({one[key] for one in settings}) > 1
        and all(type(json.loads(one[key])) in (int, float) for one in settings)
    ]


def _line(
    algo: str, rest: Mapping[str, str], others: Sequence[Mapping[str, str]], points: list[tuple[float, Cell]]
) -> Line:
    points = sorted(points, key=lambda point: point[0])
    differing = [key for key in rest if any(other.get(key) != rest[key] for other in others)]
    details = ", ".join(f"{key.removeprefix(_PREFIX)}={json.loads(rest[key])}" for key in differing)
    label = get_algorithm(algo).label + (f" ({details})" if details else "")
    means, lows, highs = zip(*(_mean_and_interval(cell) for _, cell in points), strict=True)
    return Line(
        label,
        points[0][1].column,
        tuple(value for value, _ in points),
        means,
        lows,
        highs,
        tuple(len(cell.values) for _, cell in points),
    )
