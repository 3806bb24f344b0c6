"""Continuous actions as a grid, for losses that need the probability of an action instead of its density."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.core import ObsType
from gymnasium.utils import RecordConstructorArgs

from srl.errors import UserError


class DiscretizeAction(gym.ActionWrapper[ObsType, np.ndarray, np.ndarray], RecordConstructorArgs):
    """Map each dimension of a Box action space to ``bins`` values evenly spaced from low to high.

    The values include both ends exactly, whereas ``gymnasium.wrappers.DiscretizeAction`` uses the centers of
    the bins. A space of shape ``(2, 3)`` is read in C order
    as 6 dimensions.

    :param env: An environment with a bounded Box action space of ``n`` dimensions in all. The wrapped one
        has ``MultiDiscrete([bins] * n)``.
    :param bins: Values per dimension, at least 2.
    :raises UserError: If ``bins`` is not such a number, or the action space is not a bounded Box.
    """

    def __init__(self, env: gym.Env[ObsType, np.ndarray], bins: int = 11) -> None:
        RecordConstructorArgs.__init__(self, bins=bins)
        gym.ActionWrapper.__init__(self, env)
        check_bins(bins)
        space = _bounded_box(env)
        self.bins = bins
        # In float64, in which NumPy sets both ends exactly, before the dtype of the space
        low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
        self.values: np.ndarray = np.linspace(low, high, bins, axis=1).astype(space.dtype)
        """Shape ``(n, bins)``: the value of each bin of each dimension."""
        self.action_space = spaces.MultiDiscrete([bins] * len(low))
        self._dimensions = np.arange(len(low))
        self._shape = space.shape

    def action(self, action: np.ndarray) -> np.ndarray:
        """Return the values of bins.

        :param action: Bin of each dimension, integers in ``[0, bins)``, shape ``(n,)``.
        :return: An action of the wrapped environment, of its space's shape and dtype.
        :raises IndexError: If a bin is ``bins`` or above.
        """
        values: np.ndarray = self.values[self._dimensions, action].reshape(self._shape)
        return values


def check_bins(bins: Any) -> None:
    """Raise :class:`~srl.errors.UserError` unless ``bins`` is a whole number of at least 2."""
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 2:
        raise UserError(f"The number of action bins is {bins!r} but must be a whole number, 2 or above.")


def _bounded_box(env: gym.Env[Any, Any]) -> spaces.Box:
    """Return the action space of an environment, or raise if it cannot be discretized."""
    space = env.action_space
    name = env.spec.id if env.spec is not None else str(env)
    if not isinstance(space, spaces.Box):
        raise UserError(
            f"The actions of {name} cannot be discretized: they are {space}, not a Box. Leave out the bins."
        )
    if not space.is_bounded("both"):
        raise UserError(
            f"The actions of {name} cannot be discretized: {space} has no finite bounds. "
            "Wrap it in gymnasium.wrappers.RescaleAction or give its space finite bounds."
        )
    return space
