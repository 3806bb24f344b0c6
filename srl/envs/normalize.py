"""SB3's VecNormalize with less work for a single environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize


class _Averages(RunningMeanStd):
    """SB3's ``RunningMeanStd`` without averages over batches of one; results are bitwise identical.

    It is pickled as SB3's class, so that a saved VecNormalize needs only SB3.
    """

    def __init__(self, averages: RunningMeanStd):
        vars(self).update(vars(averages))

    def update(self, arr: np.ndarray) -> None:
        if len(arr) > 1:
            super().update(arr)
        else:
            self.update_from_moments(arr[0], np.zeros_like(arr[0]), 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return RunningMeanStd, (), vars(self)


def make_normalize(venv: VecEnv, **arguments: Any) -> VecNormalize:
    """Make SB3's ``VecNormalize`` with faster averages."""
    normalize = VecNormalize(venv, **arguments)
    normalize.ret_rms = _Averages(normalize.ret_rms)
    if normalize.norm_obs:
        averages = normalize.obs_rms
        normalize.obs_rms = (
            {key: _Averages(average) for key, average in averages.items()}
            if isinstance(averages, dict)
            else _Averages(averages)
        )
    return normalize
