"""Estimates with intervals, and Student's t interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Array = npt.NDArray[np.float64]

#: Of all intervals.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval, NaN where there is too little to have one."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


def t_interval(values: Array) -> tuple[Array, Array]:
    """The mean over the first dimension, and half of the width of Student's t interval around it.

    :param values: Shape (n, n_points). For n = 1 the width is NaN.
    :return: Two arrays of shape (n_points,).
    """
    n = len(values)
    mean = values.mean(axis=0)
    if n < 2:
        return mean, np.full_like(mean, np.nan)
    quantile = stdtrit(n - 1, (1 + CONFIDENCE) / 2)
    return mean, quantile * values.std(axis=0, ddof=1) / np.sqrt(n)
