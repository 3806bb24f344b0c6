"""Comparisons of matched runs: the same environments, steps, noise and seeds for all columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from srl.config.algorithms import differ_in_reverse_loss
from srl.report.cells import Cell, name_seeds
from srl.report.intervals import Array, Estimate
from srl.report.normalization import Task
from srl.report.significance import ALPHA, holm, p_value, smallest_p_value
from srl.report.statistics import probability_of_improvement
from srl.report.tables import column_order, noise_order


@dataclass(frozen=True)
class Matched:
    """Final scores of the environments and seeds that all columns have finished."""

    columns: tuple[str, ...]
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    #: Returns of each column, shape (n_seeds, n_tasks).
    scores: dict[str, Array]
    #: Lines on other finished runs.
    left_out: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.tasks)


def match(sides: Mapping[str, Mapping[Task, Cell]]) -> Matched:
    """Find the environments and seeds that all columns have finished.

    These are as many environments as possible whose common seeds are at least half of the seeds that all
    columns have finished in a median environment.

    :param sides: The cells of each column, by environment and steps.
    """
    tasks = sorted({task for cells in sides.values() for task in cells})
    done = {
        (column, task): set(cells[task].done) if task in cells else set()
        for column, cells in sides.items()
        for task in tasks
    }
    shared = {task: set.intersection(*(done[column, task] for column in sides)) for task in tasks}
    chosen, seeds = _in_common(shared)
    left_out = []
    for task in tasks:
        finished = set.union(*(done[column, task] for column in sides))
        name = task_name(task, tasks)
        for column in sides:
            lacking = finished - done[column, task]
            if lacking and lacking == finished:
                left_out.append(f"{name}: all seeds, none finished with {column}")
            elif lacking:
                left_out.append(f"{name}: {name_seeds(lacking)}, not finished with {column}")
        unused = shared[task] - seeds if task in chosen else shared[task]
        if unused:
            why = "not finished in all environments that are compared"
            if task not in chosen:
                why = "since with it too few seeds would be common to all environments"
            left_out.append(f"{name}: {name_seeds(unused)}, {why}")
    order = tuple(sorted(seeds))
    scores = {
        column: np.array([[cells[task].done[seed] for task in chosen] for seed in order])
        for column, cells in sides.items()
    }
    return Matched(tuple(sides), chosen, order, scores if chosen else {}, tuple(left_out))


def _in_common(shared: Mapping[Task, set[int]]) -> tuple[tuple[Task, ...], set[int]]:
    """The selected environments and their common seeds."""
    tasks = sorted(task for task in shared if shared[task])
    if not tasks:
        return (), set()
    enough = np.median([len(shared[task]) for task in tasks]) / 2
    best: tuple[tuple[Task, ...], set[int]] = ((), set())
    for first in tasks:
        chosen, seeds = [first], shared[first]
        for task in sorted(tasks, key=lambda task: (-len(shared[first] & shared[task]), task)):
            common = seeds & shared[task]
            if task != first and common and len(common) >= enough:
                chosen.append(task)
                seeds = common
        if (len(chosen), len(seeds)) > (len(best[0]), len(best[1])):
            best = tuple(sorted(chosen)), set(seeds)
    return best


def task_name(task: Task, tasks: Sequence[Task]) -> str:
    """An environment's name, with the steps if there are others of the same name."""
    env, steps = task
    return env if sum(other[0] == env for other in set(tasks)) == 1 else f"{env} ({steps:,} steps)"


def by_column(cells: Sequence[Cell]) -> dict[str, dict[Task, Cell]]:
    """Cells of one noise by column and environment, without columns that have no finished run."""
    columns: dict[str, dict[Task, Cell]] = {}
    for column in column_order(cells):
        own = {(cell.env, cell.n_timesteps): cell for cell in cells if cell.column == column}
        if any(cell.values for cell in own.values()):
            columns[column] = own
    return columns


@dataclass(frozen=True)
class Improvement:
    """The probability of improvement of a column over its baseline."""

    estimate: Estimate
    n_seeds: int
    tasks: tuple[Task, ...]
    #: P-value of the exact test; NaN with fewer than two seeds.
    p_value: float = float("nan")
    #: Adjusted by Holm's method within its family, see :func:`compare_pairs`.
    adjusted_p_value: float = float("nan")
    #: The adjusted p-value if in all comparisons of the family one side always scored higher.
    smallest_p_value: float = float("nan")

    @property
    def can_show(self) -> bool:
        """Whether there are enough runs to show a difference in this number of comparisons."""
        return self.smallest_p_value <= ALPHA

    @property
    def shown(self) -> int:
        """1 if it is shown to be better, -1 for worse, 0 if neither is shown."""
        if not self.adjusted_p_value <= ALPHA:
            return 0
        return 1 if self.estimate.value > 0.5 else -1


@dataclass(frozen=True)
class Comparison:
    """A column and its baseline under one noise."""

    noise: str
    column: str
    baseline: str
    #: Over the environments and seeds that both have finished; None without any. With one environment it is
    #: that of ``per_task``.
    overall: Improvement | None
    #: In each environment, with all seeds that both have finished there.
    per_task: dict[Task, Improvement]
    left_out: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"{self.column} over {self.baseline}"


def compare_pairs(
    cells: Sequence[Cell], chosen: Sequence[tuple[str, str]] = (), *, reps: int
) -> list[Comparison]:
    """Compare columns with their baselines.

    P-values are adjusted in two families, see :func:`family_sizes`.

    :param chosen: Pairs of columns and baselines; by default each symmetric algorithm and its counterparts
        without the reverse loss.
    :return: The comparisons, noise by noise.
    """
    names = {cell.column: cell.name for cell in cells}
    algos = {cell.column: cell.algo for cell in cells}

    def are_compared(column: str, baseline: str) -> bool:
        if chosen:
            return (names[column], names[baseline]) in chosen
        return differ_in_reverse_loss(algos[column], algos[baseline])

    found = []
    for noise in sorted({cell.noise for cell in cells}, key=noise_order):
        columns = by_column([cell for cell in cells if cell.noise == noise])
        found += [
            _compare(noise, column, baseline, {name: columns[name] for name in (column, baseline)}, reps)
            for baseline in columns
            for column in columns
            if are_compared(column, baseline)
        ]
    return _adjusted(found)


def family_sizes(comparisons: Sequence[Comparison]) -> tuple[int, int]:
    """The number of tests in the two families of a report, of all pairs and noises.

    :return: Comparisons over several environments, and in one environment, each with at least two seeds.
    """
    overall, single = (sum(one.n_seeds > 1 for one in family.values()) for family in _families(comparisons))
    return overall, single


#: Index of a comparison, and the environment; None over several environments.
_Key = tuple[int, Task | None]


def _families(comparisons: Sequence[Comparison]) -> tuple[dict[_Key, Improvement], dict[_Key, Improvement]]:
    overall: dict[_Key, Improvement] = {}
    single: dict[_Key, Improvement] = {}
    for number, comparison in enumerate(comparisons):
        if comparison.overall is not None and len(comparison.overall.tasks) > 1:
            overall[number, None] = comparison.overall
        for task, improvement in comparison.per_task.items():
            single[number, task] = improvement
    return overall, single


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    overall, single = (_adjusted_family(family) for family in _families(comparisons))
    result = []
    for number, one in enumerate(comparisons):
        per_task = {task: single[number, task] for task in one.per_task}
        in_one = per_task[one.overall.tasks[0]] if one.overall else None
        result.append(replace(one, overall=overall.get((number, None), in_one), per_task=per_task))
    return result


def _adjusted_family(family: Mapping[_Key, Improvement]) -> dict[_Key, Improvement]:
    tests = family.values()
    adjusted = holm([one.p_value for one in tests])
    smallest = holm([smallest_p_value(one.n_seeds, one.n_seeds, len(one.tasks)) for one in tests])
    return {
        key: replace(one, adjusted_p_value=p, smallest_p_value=bound)
        for (key, one), p, bound in zip(family.items(), adjusted, smallest, strict=True)
    }


def _compare(
    noise: str, column: str, baseline: str, sides: Mapping[str, Mapping[Task, Cell]], reps: int
) -> Comparison:
    def improvement(matched: Matched) -> Improvement:
        x, y = matched.scores[column], matched.scores[baseline]
        estimate = probability_of_improvement(x, y, reps=reps)
        return Improvement(estimate, len(matched.seeds), matched.tasks, p_value(x, y))

    every = match(sides)
    shared = sorted(set(sides[column]) & set(sides[baseline]))
    single = {task: match({name: {task: cells[task]} for name, cells in sides.items()}) for task in shared}
    return Comparison(
        noise,
        column,
        baseline,
        improvement(every) if every else None,
        {task: improvement(matched) for task, matched in single.items() if matched},
        every.left_out,
        every.seeds,
    )
