"""Aggregate figures with bootstrap intervals, as rliable computes them: arrays in, numbers out.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021
(arXiv 2108.13264). Score matrices have the shape (n_runs, n_tasks).

rliable 1.2 draws its bootstrap samples from NumPy's global generator, whatever ``random_state`` it is given.
Every interval here is computed with that generator seeded by :data:`BOOTSTRAP_SEED`, and the generator is
restored; ``np.random.seed(0)`` before a call of ``rliable.library.get_interval_estimates`` gives
the same interval by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from rliable import library, metrics

from srl.report.intervals import CONFIDENCE, Array, Estimate
from srl.report.significance import share_above

#: Bootstrap samples of an interval; rliable's own default for performance profiles.
DEFAULT_REPS = 2000
BOOTSTRAP_SEED = 0


#: The aggregates, in the order in which they are shown.
AGGREGATES = ("median", "iqm", "mean", "optimality_gap")


def aggregates(scores: Array, *, reps: int = DEFAULT_REPS) -> dict[str, Estimate]:
    """Median, interquartile mean, mean and optimality gap (of 1) over runs and tasks.

    :param scores: Normalized scores, shape (n_runs, n_tasks).
    :param reps: Bootstrap samples; runs are resampled within each task.
    :return: An estimate by name, see :data:`AGGREGATES`. A single run has no intervals.
    """

    def all_of_them(sample: Array) -> Array:
        return np.array(
            [
                metrics.aggregate_median(sample),
                _iqm(sample),
                metrics.aggregate_mean(sample),
                metrics.aggregate_optimality_gap(sample),
            ]
        )

    return dict(zip(AGGREGATES, _estimates(all_of_them, scores, reps=reps), strict=True))


def interquartile_mean(scores: Array, *, reps: int = DEFAULT_REPS) -> Estimate:
    """The mean of the middle half of all scores.

    :param scores: Shape (n_runs, n_tasks).
    :param reps: Bootstrap samples.
    """
    (estimate,) = _estimates(lambda sample: np.array([_iqm(sample)]), scores, reps=reps)
    return estimate


def _iqm(scores: Array) -> float:
    """As rliable's metric: scipy's trimmed mean, whose checks of its arguments take most of its time."""
    flat = scores.ravel()
    cut = int(0.25 * flat.size)
    return float(np.partition(flat, (cut, flat.size - cut - 1))[cut : flat.size - cut].mean())


def performance_profile(scores: Array, thresholds: Array, *, reps: int = DEFAULT_REPS) -> list[Estimate]:
    """The share of runs above each threshold, over all tasks (rliable's score distribution).

    :param scores: Normalized scores, shape (n_runs, n_tasks).
    :param thresholds: Shape (n_thresholds,).
    :param reps: Bootstrap samples.
    """

    def shares(sample: Array) -> Array:
        # As rliable's score_distributions, which loops over the thresholds in Python
        result: Array = np.mean(sample[:, :, None] > thresholds, axis=(0, 1))
        return result

    return _estimates(shares, scores, reps=reps)


def probability_of_improvement(x: Array, y: Array, *, reps: int = DEFAULT_REPS) -> Estimate:
    """The probability that a run of X scores above a run of Y on the same task, averaged over tasks.

    :param x: Scores, shape (n_runs_x, n_tasks).
    :param y: Scores, shape (n_runs_y, n_tasks); a tie counts half.
    :param reps: Bootstrap samples, drawn independently for X and Y.
    """

    # rliable's own metric computes a p-value each time and is some 50 times slower
    (estimate,) = _estimates(lambda *samples: np.array([share_above(*samples)]), x, y, reps=reps)
    return estimate


def _estimates(function: Callable[..., Array], *scores: Array, reps: int) -> list[Estimate]:
    """Figures with their stratified bootstrap intervals, for one score matrix or for two."""
    values = function(*scores)
    if min(map(len, scores)) < 2:
        return [Estimate(float(value)) for value in values]
    given = {"": scores[0] if len(scores) == 1 else list(scores)}
    with _global_generator_seeded():
        _, intervals = library.get_interval_estimates(
            given, function, reps=reps, confidence_interval_size=CONFIDENCE
        )
    low, high = intervals[""]
    return [Estimate(*map(float, figures)) for figures in zip(values, low, high, strict=True)]


@contextmanager
def _global_generator_seeded() -> Iterator[None]:
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(BOOTSTRAP_SEED)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
