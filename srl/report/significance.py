"""Exact tests of whether one algorithm scores higher than another: arrays in, p-values out.

Null hypothesis: in every environment, the scores of X and of Y have the same distribution. Given the pooled
scores of an environment, every choice of the runs that are called X is then equally likely, independently in
each environment. The test statistic is the probability of improvement: the mean over environments of
P(X > Y) + P(X = Y) / 2. This is the sum over environments of Mann and Whitney's U (van Elteren's test with
equal weights). Its null distribution is computed exactly, ties included: for any number of independent runs
and any distribution of scores, a p-value is at most 0.05 with a probability of at most 0.05.

Score matrices have the shape (n_runs, n_tasks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, reduce
from itertools import permutations
from math import comb

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, next_fast_len, rfft
from scipy.stats import rankdata

from srl.report.intervals import Array

#: A difference is shown if its adjusted p-value is at most this.
ALPHA = 0.05
#: Operations beyond which the null distribution is sampled instead of computed. 60 runs on each side in 38
#: environments are below it.
_MAX_OPERATIONS = 500_000_000
_N_SAMPLES = 9_999
#: Possible sums up to which distributions are convolved directly, which takes up to 30 ms.
_MAX_DIRECT = 10_000
_FFT_ERROR = 1e-15
#: Levels up to which all permutations of a trend are enumerated: 5,040 for each seed.
_MOST_EXACT_LEVELS = 7
_SAMPLING_SEED = 0


def share_above(x: Array, y: Array) -> float:
    """The probability of improvement: how often a run of X scores above one of Y; a tie counts half.

    :param x: Scores, shape (n_runs_x, n_tasks).
    :param y: Scores, shape (n_runs_y, n_tasks).
    """
    return float(np.mean((np.sign(x[:, None, :] - y[None, :, :]) + 1) / 2))


def p_value(x: Array, y: Array) -> float:
    """The two-sided p-value of the probability of improvement of X over Y.

    As in :func:`scipy.stats.permutation_test`, it is twice the smaller of the two one-sided p-values. For
    many runs it is estimated from seeded permutations; (count + 1) / (samples + 1) keeps the test valid.

    :param x: Scores, shape (n_runs_x, n_tasks).
    :param y: Scores, shape (n_runs_y, n_tasks).
    :return: NaN if either side has fewer than two runs.
    """
    n_x, n_y = len(x), len(y)
    if min(n_x, n_y) < 2:
        return float("nan")
    ranks = doubled_ranks(np.concatenate([x, y]))
    observed = int(ranks[:n_x].sum())
    if x.shape[1] * (n_x * n_y) ** 2 > _MAX_OPERATIONS:
        return _sampled_p_value(ranks, n_x, observed)
    columns = tuple(sorted(tuple(sorted(column)) for column in ranks.T.tolist()))
    return float(null_distribution(columns, n_x)[1][observed - lowest_sum(columns, n_x)])


def doubled_ranks(scores: Array) -> npt.NDArray[np.int64]:
    """Twice the rank of each score along the first axis, 1 for the lowest; ties share their mean rank."""
    doubled: npt.NDArray[np.int64] = np.rint(2 * rankdata(scores, axis=0)).astype(np.int64)
    return doubled


def lowest_sum(columns: Sequence[Sequence[int]], n_x: int) -> int:
    """The lowest possible sum of the doubled ranks of X.

    :param columns: The doubled ranks of all runs in each environment, in ascending order.
    :param n_x: Runs of X in each.
    """
    return sum(sum(column[:n_x]) for column in columns)


@lru_cache(maxsize=64)
def null_distribution(columns: tuple[tuple[int, ...], ...], n_x: int) -> tuple[Array, Array]:
    """The distribution of the sum of the doubled ranks of X over environments, and two-sided p-values.

    Environments are independent, so the distribution is the convolution of theirs. For few runs it is exact
    up to a relative rounding error. Otherwise FFT computes it with an absolute error of about 1e-15, and
    smaller p-values are 1e-15.

    :param columns: The doubled ranks of all runs in each environment, in ascending order.
    :param n_x: Runs of X in each.
    :return: The probability and the p-value of each sum from :func:`lowest_sum` to the highest.
    """
    return _of_sum([_rank_sum_distribution(column, n_x) for column in columns])


def _of_sum(parts: Sequence[Array]) -> tuple[Array, Array]:
    """The distribution of the sum of independent numbers, and the two-sided p-value of each sum.

    :param parts: The distribution of each number, from its lowest value, in steps of 1.
    :return: Both from the lowest sum to the highest.
    """
    size = sum(map(len, parts)) - len(parts) + 1
    if size <= _MAX_DIRECT:
        distribution, smallest = reduce(np.convolve, parts), 0.0
    else:
        length = next_fast_len(size, real=True)
        transforms = [rfft(part, length) for part in parts]
        distribution = np.clip(irfft(np.prod(transforms, axis=0), length)[:size], 0.0, None)
        smallest = _FFT_ERROR
    at_most, at_least = distribution.cumsum(), distribution[::-1].cumsum()[::-1]
    return distribution, np.clip(2 * np.minimum(at_most, at_least), smallest, 1.0)


@lru_cache(maxsize=256)
def _rank_sum_distribution(ranks: tuple[int, ...], n_x: int) -> Array:
    """The distribution of the sum of ``n_x`` of the ranks, all choices equally likely, from the lowest sum.

    The ranks are assigned to X or Y one after another: X gets the next one with the probability (ranks that X
    still lacks) / (ranks that are left).
    """
    lowest, highest = sum(ranks[:n_x]), sum(ranks[len(ranks) - n_x :])
    width = highest - lowest + 1
    # By the number k of ranks that X has: the distribution of their sum, from the sum of the k lowest of all
    sums = np.zeros((n_x + 1, width))
    sums[0, 0] = 1.0
    for assigned, rank in enumerate(ranks):
        left = len(ranks) - assigned
        for k in range(min(assigned + 1, n_x), 0, -1):
            shift = rank - ranks[k - 1]
            sums[k] *= 1 - (n_x - k) / left
            sums[k, shift:] += (n_x - k + 1) / left * sums[k - 1, : width - shift]
        sums[0] *= 1 - n_x / left
    result: Array = sums[n_x]
    return result


def _sampled_p_value(ranks: npt.NDArray[np.int64], n_x: int, observed: int) -> float:
    generator = np.random.default_rng(_SAMPLING_SEED)
    sums = np.zeros(_N_SAMPLES, np.int64)
    for column in ranks.T:
        sums += [generator.choice(column, n_x, replace=False).sum() for _ in range(_N_SAMPLES)]
    return _sampled(sums, observed)


def _sampled(sums: npt.NDArray[np.int64], observed: int) -> float:
    extreme = min(np.count_nonzero(sums >= observed), np.count_nonzero(sums <= observed))
    return min(1.0, 2 * float(extreme + 1) / (len(sums) + 1))


def trend_test(values: Array) -> tuple[float, float]:
    """Whether values grow with their level: Spearman's rank correlation, tested within seeds.

    The correlation is that of all values with their levels; ties share their mean rank. Null hypothesis: the
    values of a seed are exchangeable between levels. Every permutation of the levels, independently in each
    seed, is then equally likely. The two-sided p-value is twice the smaller of the two one-sided ones. It is
    exact for up to 7 levels; for more it is estimated from seeded permutations.

    :param values: Shape (n_seeds, n_levels), the levels in ascending order.
    :return: The correlation and the p-value; both NaN if all values are equal.
    """
    n_seeds, n_levels = values.shape
    ranks = doubled_ranks(values.ravel()).reshape(values.shape)
    if np.ptp(ranks) == 0:
        return float("nan"), float("nan")
    places = np.arange(n_levels)
    correlation = np.corrcoef(np.tile(places, n_seeds), ranks.ravel())[0, 1]
    observed = int((ranks @ places).sum())
    if n_levels <= _MOST_EXACT_LEVELS:
        # Of each seed the sum for every permutation, shape (n_seeds, n_permutations)
        sums = ranks @ np.array(list(permutations(places))).T
        counts = [np.bincount(row - row.min()) / row.size for row in sums]
        p = float(_of_sum(counts)[1][observed - int(sums.min(axis=1).sum())])
    else:
        generator = np.random.default_rng(_SAMPLING_SEED)
        orders = generator.permuted(np.tile(places, (_N_SAMPLES, n_seeds, 1)), axis=2)
        p = _sampled(np.einsum("isl,sl->i", orders, ranks), observed)
    return float(correlation), p


def smallest_p_value(n_x: int, n_y: int, n_tasks: int) -> float:
    """The p-value of the most extreme outcome: every run of X above every run of Y, in all environments.

    No scores have a smaller one. If it is above ``ALPHA``, so many runs cannot show a difference.

    :param n_x: Runs of X in each environment.
    :param n_y: Runs of Y in each environment.
    :param n_tasks: Environments.
    :return: NaN if either side has fewer than two runs.
    """
    if min(n_x, n_y) < 2:
        return float("nan")
    return float(2 / comb(n_x + n_y, n_x) ** n_tasks)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's method (1979), which controls the family-wise error rate.

    :param p_values: Those of one family; NaN, a comparison without a test, does not belong to it.
    :return: Adjusted p-values in the same order; NaN stays NaN.
    """
    given = np.asarray(p_values, float)
    order = np.argsort(given)[: np.count_nonzero(~np.isnan(given))]
    adjusted = np.full_like(given, np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * given[order]))
    return [float(p) for p in adjusted]


def best_of_rows(rows: Sequence[Mapping[str, tuple[float, Array]]]) -> list[str | None]:
    """The column of each row of a table that is shown to score higher than every other column of the row.

    A row's p-value is the largest of those of its best column and each other one; the rows are a family for
    :func:`holm`.

    :param rows: The figure of each column, which says which is best, and its scores, shape (n_runs, n_tasks).
    :return: The best column of each row, None where that is not shown.
    """
    bests = [max(row, key=lambda column: row[column][0], default=None) for row in rows]
    adjusted = holm([_p_value_of_best(row, best) for row, best in zip(rows, bests, strict=True)])
    return [best if p <= ALPHA else None for best, p in zip(bests, adjusted, strict=True)]


def _p_value_of_best(row: Mapping[str, tuple[float, Array]], best: str | None) -> float:
    others = [scores for column, (_, scores) in row.items() if column != best]
    if best is None or not others:
        return float("nan")
    scores = row[best][1]
    found = [p_value(scores, other) if share_above(scores, other) > 0.5 else 1.0 for other in others]
    return float(np.max(found))
