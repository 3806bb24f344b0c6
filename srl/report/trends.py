"""Trends of the difference of two columns with the noise on rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from srl.report.cells import Cell, name_seeds
from srl.report.normalization import Task
from srl.report.significance import ALPHA, holm, trend_test

#: Minimum number of levels of noise, with 0 for no noise, for a test of a trend.
_FEWEST_LEVELS = 3


@dataclass(frozen=True)
class Trend:
    """The difference of a column and its baseline over the levels of a noise, in one environment."""

    column: str
    baseline: str
    task: Task
    #: The name of the noise process, such as ``gaussian``.
    kind: str
    #: Parameters of the noise, ascending; 0 without noise.
    levels: tuple[float, ...]
    #: Seeds that both sides have finished under each level.
    seeds: tuple[int, ...]
    #: Spearman's correlation of level and difference.
    correlation: float
    p_value: float
    #: Adjusted by Holm's method for all trends of a report.
    adjusted_p_value: float = float("nan")
    #: A line on other seeds; empty without any.
    left_out: str = ""

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"{self.column} over {self.baseline}"

    @property
    def shown(self) -> int:
        """1 if the difference is shown to grow with the noise, -1 to fall, 0 if neither is shown."""
        if not self.adjusted_p_value <= ALPHA:
            return 0
        return 1 if self.correlation > 0 else -1


def noise_level(noise: str) -> tuple[str, float]:
    """The kind of a noise and its parameter: ``("gaussian", 0.05)``, and ``("none", 0.0)``.

    A noise whose parameter is not a number is a kind of its own.
    """
    kind, _, parameter = noise.partition(":")
    try:
        return kind, float(parameter or 0)
    except ValueError:
        return noise, 0.0


def find_trends(cells: Sequence[Cell], pairs: Sequence[tuple[str, str]]) -> list[Trend]:
    """Find the trends of pairs of columns and baselines, in each environment with enough levels of a noise.

    :return: The trends, pair by pair.
    """
    done = {(cell.column, (cell.env, cell.n_timesteps), cell.noise): cell.done for cell in cells}
    kinds = sorted({noise_level(cell.noise)[0] for cell in cells} - {"none"})
    tasks = sorted({(cell.env, cell.n_timesteps) for cell in cells})
    noises = sorted({cell.noise for cell in cells}, key=noise_level)
    trends = []
    for pair in pairs:
        for task in tasks:
            for kind in kinds:
                own = [noise for noise in noises if noise_level(noise)[0] in ("none", kind)]
                sides = {noise: [done.get((column, task, noise), {}) for column in pair] for noise in own}
                trends += _trend(
                    pair, task, kind, {noise: side for noise, side in sides.items() if all(side)}
                )
    adjusted = holm([trend.p_value for trend in trends])
    return [replace(trend, adjusted_p_value=p) for trend, p in zip(trends, adjusted, strict=True)]


def _trend(
    pair: tuple[str, str], task: Task, kind: str, sides: Mapping[str, Sequence[Mapping[int, float]]]
) -> list[Trend]:
    """The trend over the levels that both sides have finished; empty if they are too few."""
    # Of noises of the same level, such as none and flip:0, one counts
    by_level = {noise_level(noise)[1]: noise for noise in sorted(sides, key=lambda noise: noise == "none")}
    levels = [by_level[level] for level in sorted(by_level)]
    finished = [set(scores) for noise in levels for scores in sides[noise]]
    if len(levels) < _FEWEST_LEVELS or not (seeds := sorted(set.intersection(*finished))):
        return []
    differences = np.array(
        [[sides[noise][0][seed] - sides[noise][1][seed] for noise in levels] for seed in seeds]
    )
    lacking = set.union(*finished) - set(seeds)
    return [
        Trend(
            *pair,
            task,
            kind,
            tuple(noise_level(noise)[1] for noise in levels),
            tuple(seeds),
            *trend_test(differences),
            left_out=f"{name_seeds(lacking)}, not finished under every noise" if lacking else "",
        )
    ]
