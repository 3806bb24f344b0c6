"""Estimates with intervals, and bootstrap bands of curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Confidence level of all intervals.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """An estimate and its 95% interval, NaN for too few scores."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


def plain(value: Any) -> Any:
    """A value for JSON, with None for numbers that are not finite."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


#: Bootstrap samples of a band, and the seed of the generator that draws them.
BAND_SAMPLES, BAND_SEED = 2000, 0


def mean_band(values: Array) -> tuple[Array, Array, Array]:
    """The mean over the first dimension with its percentile bootstrap interval at each point.

    Unlike Student's interval it contains no value that no resampled mean has: nothing below 0% or above the
    highest possible return.

    :param values: Shape (n, n_points); rows are resampled whole.
    :return: Mean and the ends of the interval, three arrays of shape (n_points,); the ends are NaN for n = 1.
    """
    n = len(values)
    mean = values.mean(axis=0)
    if n < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    counts = np.random.default_rng(BAND_SEED).multinomial(n, np.full(n, 1 / n), BAND_SAMPLES)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(counts @ values / n, [tail, 100 - tail], axis=0)
    # Sums in another order round differently
    return mean, np.minimum(low, mean), np.maximum(high, mean)
