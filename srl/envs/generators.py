"""The state of an environment's random generator as plain data."""

from __future__ import annotations

import copy
import random
from typing import Any

import gymnasium as gym
import numpy as np

#: The generators behind ``numpy.random`` and ``random``, from which the whole process draws.
_GLOBAL = (np.random.get_state.__self__, random.getstate.__self__)  # type: ignore[attr-defined]


def env_generator(env: gym.Env[Any, Any]) -> Any:
    """Return ``env.unwrapped.np_random``; None if the environment has none, or raises an exception."""
    try:
        return env.unwrapped.np_random
    except Exception:  # a property can raise anything
        return None


def read_generator(generator: Any) -> dict[str, Any] | None:
    """Read the state of a random generator.

    :return: Numbers, strings, arrays, and mappings and tuples of these, for :func:`write_generator`; None
        unless the generator is a NumPy ``Generator`` or ``RandomState`` or a ``random.Random`` that the
        process does not share.
    """
    if any(generator is shared for shared in _GLOBAL):
        return None
    if isinstance(generator, np.random.Generator):
        return {"kind": "Generator", "state": dict(copy.deepcopy(generator.bit_generator.state))}
    if isinstance(generator, np.random.RandomState):
        return {"kind": "RandomState", "state": generator.get_state(legacy=False)}
    if isinstance(generator, random.Random) and not isinstance(generator, random.SystemRandom):
        return {"kind": "Random", "state": generator.getstate()}
    return None


def write_generator(generator: Any, state: dict[str, Any]) -> bool:
    """Set a random generator to a state.

    :param generator: Any object.
    :param state: What :func:`read_generator` returned for a generator of the same kind.
    :return: Whether the generator is of that kind. If not, nothing is changed.
    """
    current = read_generator(generator)
    if current is None or current["kind"] != state["kind"]:
        return False
    if state["kind"] == "Generator":
        generator.bit_generator.state = state["state"]
    elif state["kind"] == "RandomState":
        generator.set_state(state["state"])
    else:
        generator.setstate(state["state"])
    return True
