"""Restore the state of environments in another process by replaying their actions.

The state of an environment follows from the state of its random generator at the last full reset and the
actions since then. Both are small, and a replay takes as long as the episode did.
"""

from __future__ import annotations

import time
import zlib
from typing import Any, cast

import gymnasium as gym
import numpy as np
from ale_py import ALEState
from gymnasium.core import ActType, ObsType
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor

from srl.envs.generators import env_generator, read_generator, write_generator

#: Maximum number of recorded steps of an episode, which limits memory, disk space and the time of a replay.
#: Registered environments stay below: an Atari game has at most 27,000 steps.
MAX_RECORDED_STEPS = 50_000


class NotRestorable(RuntimeError):
    """The state of an environment cannot be saved or restored; the message names it and the reason."""


class Replayable(gym.Wrapper[ObsType, ActType, ObsType, ActType]):
    """Records the history that another environment needs to reach the same state.

    Actions, observations and infos are copied, so that later changes of these arrays by the environment do
    not affect the record or the algorithm.

    :param env: An environment with all its wrappers. Its episodes must depend only on the actions and on
        ``env.unwrapped.np_random``.
    """

    def __init__(self, env: gym.Env[ObsType, ActType]):
        super().__init__(env)
        self._life = unwrap_wrapper(env, EpisodicLifeEnv)
        self._monitor = cast("Monitor[Any, Any] | None", unwrap_wrapper(env, Monitor))
        #: The last info of an ended episode that Monitor did not report; None if there is none.
        self._unreported: dict[str, Any] | None = None
        self._was_reset = False
        self._seed: int | None = None
        #: State of the random generator before the last full reset; None if it cannot be read.
        self._generator: dict[str, Any] | None = None
        #: State of the emulator of an Atari game, which has its own generator for sticky actions.
        self._emulator: bytes | None = None
        self._n_steps = 0
        self._actions = _Actions()
        #: Number of actions before each reset after a lost life, which continues the game.
        self._life_starts: list[int] = []
        #: Checksum of the rewards since the last full reset.
        self._rewards = 0
        self._observation: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        if self._life is None or self._life.was_real_done:  # type: ignore[attr-defined]
            self._was_reset = True
            self._seed = seed
            self._generator = read_generator(env_generator(self))
            self._emulator = self._emulator_state()
            self._n_steps = 0
            self._actions.clear()
            self._life_starts = []
            self._rewards = 0
        else:
            self._life_starts.append(self._n_steps)
        observation, info = self._reset_and_report(seed=seed, options=options)
        self._observation = _copied(observation)
        return self._observation, dict(info)

    def _reset_and_report(self, **kwargs: Any) -> tuple[ObsType, dict[str, Any]]:
        """Reset, and report the previous episode as Monitor does, if a wrapper outside of Monitor ended it.

        Only the reset shows that the episode ended: after a lost life, the wrappers do not reset Monitor.
        """
        monitor, last_info = self._monitor, self._unreported
        self._unreported = None
        if monitor is None or last_info is None:
            return self.env.reset(**kwargs)
        rewards, n_reported, is_written = monitor.rewards, len(monitor.episode_returns), monitor.needs_reset
        result = self.env.reset(**kwargs)
        if monitor.rewards is not rewards and len(monitor.episode_returns) == n_reported:
            seconds = round(time.time() - monitor.t_start, 6)
            last_info["episode"] = {"r": round(sum(rewards), 6), "l": len(rewards), "t": seconds}
            if monitor.results_writer is not None and not is_written:
                monitor.results_writer.write_row(last_info["episode"])
        return result

    def step(self, action: ActType) -> tuple[ObsType, Any, bool, bool, dict[str, Any]]:
        self._n_steps += 1
        if self._n_steps <= MAX_RECORDED_STEPS:
            self._actions.append(action)
        observation, reward, terminated, truncated, info = self.env.step(_copied(action))
        self._observation = _copied(observation)
        self._rewards = zlib.crc32(np.float64(reward).tobytes(), self._rewards)
        result = dict(info)
        if "episode" in info and self._monitor is not None and self._monitor.needs_reset:
            # An environment that reuses its info would report this episode at each later step
            del info["episode"]
        self._unreported = result if (terminated or truncated) and "episode" not in result else None
        return self._observation, reward, terminated, truncated, result

    def history(self) -> dict[str, Any]:
        """Return the input of :meth:`replay`: numbers, strings and arrays.

        :raises RuntimeError: Before the first reset.
        :raises NotRestorable: If the state of the random generator cannot be read, or the episode is longer
            than :data:`MAX_RECORDED_STEPS`. After the next reset it may be possible.
        """
        if not self._was_reset:
            raise RuntimeError("An environment that was not reset yet has no history.")
        if self._generator is None:
            kind = type(env_generator(self)).__name__
            raise NotRestorable(
                f"the state of {self.unwrapped}.np_random ({kind}) cannot be saved; it must be a NumPy "
                "Generator or RandomState or a random.Random of the environment's own."
            )
        if self._n_steps > MAX_RECORDED_STEPS:
            raise NotRestorable(
                f"an episode of {self.unwrapped} is longer than {MAX_RECORDED_STEPS:,} steps, the most that "
                "are recorded. After its end there are checkpoints again."
            )
        return {
            "seed": self._seed,
            "generator": self._generator,
            "emulator": None if self._emulator is None else np.frombuffer(self._emulator, np.uint8),
            "actions": self._actions.array(),
            "goes_on": list(self._life_starts),
            "observation": _as_arrays(self._observation),
            "rewards": self._rewards,
        }

    def replay(self, history: dict[str, Any]) -> None:
        """Bring the environment to the state of another one.

        :param history: The history of an environment of the same kind.
        :raises NotRestorable: If the last observation or the rewards are not the recorded ones.
        """
        writer = getattr(self._monitor, "results_writer", None)
        if self._monitor is not None:
            # Its file has these episodes already
            self._monitor.results_writer = None
        try:
            self._replay(history)
        finally:
            if self._monitor is not None:
                self._monitor.results_writer = writer
        # Earlier versions recorded no rewards
        same_rewards = history.get("rewards", self._rewards) == self._rewards
        if not (same_rewards and _equal(self._observation, history["observation"])):
            raise NotRestorable(
                f"{self.unwrapped} did not return the recorded observation and rewards when the actions "
                "since its last reset were repeated. Its episodes depend on something besides the actions "
                "and np_random, such as another random generator, earlier episodes or the time."
            )

    def _replay(self, history: dict[str, Any]) -> None:
        if self._life is not None:
            self._life.was_real_done = True  # type: ignore[attr-defined]
        generator = env_generator(self)
        if not write_generator(generator, history["generator"]):
            raise NotRestorable(
                f"{self.unwrapped}.np_random is a {type(generator).__name__}, where a "
                f"{history['generator']['kind']} was recorded."
            )
        if history["emulator"] is not None:
            state = ALEState.__new__(ALEState)
            state.__setstate__(history["emulator"].tobytes())
            self.unwrapped.ale.restoreState(state)  # type: ignore[attr-defined]
        self.reset(seed=history["seed"])
        life, *others = np.split(history["actions"], history["goes_on"])
        for action in life:
            self.step(action)
        for life in others:
            self.reset()
            for action in life:
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


class _Actions:
    """The actions of an episode, in an array that doubles its size when it is full."""

    def __init__(self) -> None:
        self._array: np.ndarray[Any, Any] = np.empty(0)
        self._n = 0

    def clear(self) -> None:
        self._n = 0

    def append(self, action: Any) -> None:
        """Add a copy of an action; all have the same shape and dtype."""
        if self._n == len(self._array):
            example = np.asarray(action)
            larger = np.empty((max(2 * self._n, 64), *example.shape), example.dtype)
            if self._n:
                larger[: self._n] = self._array
            self._array = larger
        self._array[self._n] = action
        self._n += 1

    def array(self) -> np.ndarray[Any, Any]:
        """Return the actions, shape ``(n, *action.shape)``."""
        actions: np.ndarray[Any, Any] = self._array[: self._n].copy()
        return actions


def _as_arrays(observation: Any) -> Any:
    """An observation as an array, or a Dict observation as arrays by key."""
    if isinstance(observation, dict):
        return {key: _as_arrays(item) for key, item in observation.items()}
    return np.array(observation)


def _copied(value: Any) -> Any:
    """A copy of an observation or action with the same memory layout."""
    if isinstance(value, np.ndarray):
        return value.copy(order="K")
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value
