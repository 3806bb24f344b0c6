"""Action and observation spaces: checks of support, and spaces that do not start at 0.

SB3's policies count the values of Discrete and MultiDiscrete spaces from 0 and ignore ``start``. The
policies of srl subtract ``start`` from observations and add it to actions, so that models, wrappers and
environments use the environment's own spaces.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

from srl.errors import UserError

#: SB3's rollout buffer returns actions as float32, which represents all integers up to this one.
_LARGEST_ACTION = 2**24
_FLATTEN = "Wrap the environment in gymnasium.wrappers.FlattenObservation."


def start_of(space: spaces.Space[Any]) -> np.ndarray | None:
    """The smallest value of each dimension of a Discrete or MultiDiscrete space.

    :param space: Any space.
    :return: An int64 array, of shape ``()`` for Discrete and ``nvec.shape`` for MultiDiscrete; None for a
        space that starts at 0 or has no start.
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        return np.asarray(space.start, dtype=np.int64)
    return None


def has_start(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> bool:
    """Whether one of the spaces, or a part of a Dict space, does not start at 0."""
    parts = [observation_space, action_space]
    if isinstance(observation_space, spaces.Dict):
        parts += observation_space.values()
    return any(start_of(part) is not None for part in parts)


def subtract_start(observations: PyTorchObs, space: spaces.Space[Any]) -> PyTorchObs:
    """Shift observations so that the values of every Discrete and MultiDiscrete part start at 0.

    :param observations: A batch of observations, or a dictionary of batches.
    :param space: Their space.
    :return: New tensors for shifted parts; all other parts are unchanged.
    """
    if isinstance(observations, dict):
        assert isinstance(space, spaces.Dict)
        return {
            key: _subtract(part, start_of(space[key])) if key in space.spaces else part
            for key, part in observations.items()
        }
    return _subtract(observations, start_of(space))


def _subtract(observations: th.Tensor, start: np.ndarray | None) -> th.Tensor:
    if start is None:
        return observations
    return observations.long() - th.as_tensor(start, device=observations.device)


def check_supported(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Check that SA2C and SPPO support the spaces of an environment.

    :raises UserError: If they do not; the message names the space and what to do.
    """
    parts = {"": observation_space}
    if isinstance(observation_space, spaces.Dict):
        parts = {f" {key!r}": part for key, part in observation_space.items()}
    for name, part in parts.items():
        _check_observation_space(name, part)
    _check_action_space(action_space)


def one_line(space: spaces.Space[Any]) -> str:
    """The text of a space in one line; arrays take several lines otherwise."""
    return " ".join(str(space).split())


def _check_observation_space(name: str, space: spaces.Space[Any]) -> None:
    what = f"The observation space{name} is {one_line(space)}"
    if isinstance(space, spaces.Dict | spaces.Tuple):
        kind = "nested" if name else "Tuple"
        raise UserError(f"{what}; {kind} spaces are not supported. {_FLATTEN}")
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise UserError(
            f"{what}, which is not supported. Use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of "
            "these."
        )
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1:
        raise UserError(f"{what}; MultiDiscrete observations must have one dimension. {_FLATTEN}")
    if isinstance(space, spaces.Box) and space.shape == ():
        raise UserError(f"{what}; Box observations must have at least one dimension. {_FLATTEN}")


def _check_action_space(space: spaces.Space[Any]) -> None:
    what = f"The action space is {one_line(space)}"
    if isinstance(space, spaces.Box):
        if not space.is_bounded("both"):
            raise UserError(
                f"{what}, without finite bounds. Give the environment's action_space a finite low and high."
            )
    elif isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        if len(space.shape) > 1:
            kind = type(space).__name__
            size = "nvec.ravel()" if isinstance(space, spaces.MultiDiscrete) else int(np.prod(space.shape))
            raise UserError(
                f"{what}; {kind} actions must have one dimension. Use {kind}({size}) as the environment's "
                "action_space, and reshape the action in its step()."
            )
    elif not isinstance(space, spaces.Discrete):
        raise UserError(
            f"{what}, which is not supported. Use Discrete, MultiDiscrete, MultiBinary or Box actions."
        )
    start = start_of(space)
    if start is not None:
        sizes = space.n if isinstance(space, spaces.Discrete) else space.nvec  # type: ignore[union-attr]
        if max(np.abs(start).max(), np.abs(start + sizes).max()) > _LARGEST_ACTION:
            raise UserError(
                f"{what}; actions beyond {_LARGEST_ACTION:,} are not supported. Use a smaller start."
            )
