"""Stop a run at the first non-finite number, and name its source."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


class NonFiniteError(FloatingPointError):
    """An environment or a policy returned NaN or infinity; the message names it in one line."""


class VecCheckFinite(VecCheckNan):
    """``VecCheckNan(raise_exception=True)`` with a short message and less overhead.

    It checks floating-point actions, observations and rewards, and the last observation of an episode that a
    time limit truncates, from which SB3 bootstraps. Integers (images, discrete actions) are skipped.

    :raises NonFiniteError: From ``step`` and ``reset``, with the environment and the kind of number.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, raise_exception=True)

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = super().step_wait()
        for index in np.flatnonzero(dones):
            if infos[index].get("TimeLimit.truncated"):
                last = infos[index]["terminal_observation"]
                arrays = last.values() if isinstance(last, dict) else [last]
                for array in arrays:
                    check_finite("last observation", np.asarray(array)[None], first_index=int(index))
        return observations, rewards, dones, infos

    def _check_val(self, event: str, **values: Any) -> None:
        for name, value in values.items():
            what = f"{name.rstrip('s')} at reset" if event == "reset" else name.rstrip("s")
            arrays = value.values() if isinstance(value, dict) else [value]
            for array in arrays:
                check_finite(what, np.asarray(array))


def check_finite(what: str, array: np.ndarray, first_index: int = 0) -> None:
    """Raise if an array has a non-finite number.

    :param what: The name of the array, for the message.
    :param array: Shape ``(n_envs, ...)``, of any dtype.
    :param first_index: The index of the environment of ``array[0]``.
    :raises NonFiniteError: With the first affected environment.
    """
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    row = int(np.argwhere(~np.isfinite(array))[0, 0])
    kind = "NaN" if np.isnan(array[row]).any() else "infinite"
    source = "The policy gave" if what == "action" else "The environment gave"
    raise NonFiniteError(f"{source} a non-finite {what} ({kind}) in environment {first_index + row}.")
