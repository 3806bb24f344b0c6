"""Stop a run at the first number that is not finite, and name its source."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


class NonFiniteError(FloatingPointError):
    """An environment or a policy gave NaN or an infinity; the message is one line and says which."""


class VecCheckFinite(VecCheckNan):
    """``VecCheckNan(raise_exception=True)`` with a short message and at less cost.

    Checked are floating actions, observations and rewards, and the last observation of an episode cut
    by a time limit, from which SB3 bootstraps. Integers (images, discrete actions) are skipped.

    :raises NonFiniteError: From ``step`` and ``reset``: names the environment, what was wrong and how.
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
    """Raise if an array has a number that is not finite.

    :param what: What the array is, for the message.
    :param array: Shape ``(n_envs, ...)``, of any dtype.
    :param first_index: The environment that ``array[0]`` belongs to.
    :raises NonFiniteError: Naming the first environment concerned.
    """
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    row = int(np.argwhere(~np.isfinite(array))[0, 0])
    kind = "NaN" if np.isnan(array[row]).any() else "infinite"
    source = "The policy gave" if what == "action" else "The environment gave"
    raise NonFiniteError(f"{source} a non-finite {what} ({kind}) in environment {first_index + row}.")
