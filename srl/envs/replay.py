"""Environments that can be put back where they were, in another process, without being serialised.

An environment is what its random generator, as it stood at the last full reset, and the actions since make
of it. Both are small, and playing them again takes no longer than the episode did.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from ale_py import ALEState
from gymnasium.core import ActType, ObsType
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor


class NotRestorable(RuntimeError):
    """An environment whose state cannot be kept, or not be reached again; the message says which and why."""


#: In place of an action: a reset that is none, since a lost life ended the episode and the game goes on.
_GOES_ON = None


class Replayable(gym.Wrapper[ObsType, ActType, ObsType, ActType]):
    """Remembers how the environment came to be where it is.

    :param env: An environment with all its wrappers. Besides its actions it draws from
        ``env.unwrapped.np_random`` alone.
    """

    def __init__(self, env: gym.Env[ObsType, ActType]):
        super().__init__(env)
        self._life = unwrap_wrapper(env, EpisodicLifeEnv)
        self._seed: int | None = None
        self._generator: dict[str, Any] | None = None
        #: Of the emulator of an Atari game, which draws sticky actions itself.
        self._emulator: bytes | None = None
        self._actions: list[Any] = []
        self._observation: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        if self._life is None or self._life.was_real_done:  # type: ignore[attr-defined]
            self._seed = seed
            self._generator = dict(copy.deepcopy(self.unwrapped.np_random.bit_generator.state))
            self._emulator = self._emulator_state()
            self._actions = []
        else:
            self._actions.append(_GOES_ON)
        self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, info

    def step(self, action: ActType) -> tuple[ObsType, Any, bool, bool, dict[str, Any]]:
        self._actions.append(action)
        result = self.env.step(action)
        self._observation = result[0]
        return result

    def history(self) -> dict[str, Any]:
        """How the environment came to be where it is: numbers, texts and arrays.

        :raises RuntimeError: Before the first reset.
        """
        if self._generator is None:
            raise RuntimeError("An environment that was not reset yet has no history.")
        taken = [action for action in self._actions if action is not _GOES_ON]
        return {
            "seed": self._seed,
            "generator": self._generator,
            "emulator": None if self._emulator is None else np.frombuffer(self._emulator, np.uint8),
            "actions": np.array(taken),
            "observation": copy.deepcopy(self._observation),
            "goes_on": [place for place, action in enumerate(self._actions) if action is _GOES_ON],
        }

    def replay(self, history: dict[str, Any]) -> None:
        """Bring the environment to where another one was.

        :param history: Of an environment of the same kind.
        :raises NotRestorable: If it does not get there.
        """
        monitor = unwrap_wrapper(self.env, Monitor)
        writer = getattr(monitor, "results_writer", None)
        if monitor is not None:
            # These episodes are in its file already
            monitor.results_writer = None  # type: ignore[attr-defined]
        try:
            self._replay(history)
        finally:
            if monitor is not None:
                monitor.results_writer = writer  # type: ignore[attr-defined]
        if not _equal(self._observation, history["observation"]):
            raise NotRestorable(
                f"{self.unwrapped} draws from more than its own random generator: played again from its last "
                "reset, it did not come to where it was."
            )

    def _replay(self, history: dict[str, Any]) -> None:
        if self._life is not None:
            self._life.was_real_done = True  # type: ignore[attr-defined]
        self.unwrapped.np_random.bit_generator.state = history["generator"]
        if history["emulator"] is not None:
            state = ALEState.__new__(ALEState)
            state.__setstate__(history["emulator"].tobytes())
            self.unwrapped.ale.restoreState(state)  # type: ignore[attr-defined]
        self.reset(seed=history["seed"])
        for action in _events(history["actions"], history["goes_on"]):
            if action is _GOES_ON:
                self.reset()
            else:
                self.step(action)

    def _emulator_state(self) -> bytes | None:
        game: Any = self.unwrapped
        if not hasattr(game, "ale"):
            return None
        state: bytes = game.ale.cloneState(include_rng=True).serialize()
        return state


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return np.array_equal(np.asarray(one), np.asarray(other))


def _events(actions: np.ndarray[Any, Any], goes_on: Sequence[int]) -> list[Any]:
    events: list[Any] = list(actions)
    for place in goes_on:
        events.insert(place, _GOES_ON)
    return events
