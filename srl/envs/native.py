"""Environments that run in C++ threads, with the interface of those in :mod:`srl.envs.make`.

Atari games have a native version: ale-py's own vector environment (:mod:`srl.envs.native_atari`). How it
differs from Gymnasium's games is measured in ``docs/environments.md``.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from srl.envs.seeding import small_seed

#: Both sources keep a seed in a C++ int, which must not be negative: seeds are taken modulo this.
N_SEEDS = 2**31


class NativeVecEnv(VecEnv):
    """What the native environments have in common: records of episodes as SB3's Monitor keeps them, and the
    attributes that SB3 and this library ask of single environments, of which there are none in Python.

    Infos are empty but at the end of an episode, where they have ``terminal_observation``,
    ``TimeLimit.truncated`` and, where Monitor would have seen an end, ``episode``.

    :param env_id: A Gymnasium id.
    :param num_envs: Environments side by side.
    :param observation_space: Space of one environment's observations.
    :param action_space: Space of one environment's actions.
    :param monitor_dir: Folder for ``i.monitor.csv``; None writes none.
    :raises OSError: If the records cannot be written; from ``step`` too.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        monitor_dir: str | None,
    ) -> None:
        self.spec = gym.spec(env_id)
        super().__init__(num_envs, observation_space, action_space)
        self._began = time.time()
        header: dict[str, float | str] = {"t_start": self._began, "env_id": env_id}
        self._writers = (
            []
            if monitor_dir is None
            else [ResultsWriter(str(Path(monitor_dir) / str(index)), header) for index in range(num_envs)]
        )

    def _end_episode(self, index: int, sum_of_rewards: float, length: int) -> dict[str, float]:
        """Record the end of an episode.

        :param index: The environment.
        :param sum_of_rewards: The episode's raw return.
        :param length: The episode's length, in what Monitor would count as steps.
        :return: Raw return, length, and seconds since this object was made, as Monitor has them in infos.
        """
        episode = {
            "r": round(sum_of_rewards, 6),
            "l": length,
            "t": round(time.time() - self._began, 6),
        }
        if self._writers:
            self._writers[index].write_row(episode)
        return episode

    def start_streams(self, sequences: Sequence[np.random.SeedSequence]) -> None:
        """Start a random stream in each environment at the next reset, unless ``seed`` is called before.

        :param sequences: Of each environment; the C++ generators take 31 bits of it.
        """
        self._seeds = [small_seed(sequence) for sequence in sequences]

    def _take_seeds(self) -> list[int | None]:
        """Return the seeds of the coming reset, or None for each that has none, and forget them."""
        seeds = list(self._seeds)
        self._reset_seeds()
        self._reset_options()
        return seeds

    @abstractmethod
    def reset(self) -> VecEnvObs: ...

    @abstractmethod
    def step_async(self, actions: np.ndarray) -> None: ...

    @abstractmethod
    def step_wait(self) -> VecEnvStepReturn: ...

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return ``spec`` or ``render_mode`` (None: there is no rendering) of environments.

        :raises AttributeError: For any other attribute.
        """
        known = {"spec": self.spec, "render_mode": None}
        if attr_name not in known:
            raise AttributeError(
                f"Native environments have no attribute {attr_name!r}, only {', '.join(known)}."
            )
        return [known[attr_name] for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise AttributeError(f"Native environments have no attribute {attr_name!r} to set.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        raise AttributeError(f"Native environments have no method {method_name!r}.")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Say that there is a Monitor, since ``episode`` in the infos is what it would write there."""
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        return [None] * self.num_envs
