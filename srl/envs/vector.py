"""Environments stepped one after the other in this process, with less overhead than SB3's DummyVecEnv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from srl.envs.seeding import seed_env


class SerialVecEnv(DummyVecEnv):
    """``DummyVecEnv`` without its deep copies; results are bitwise identical.

    SB3's deep copy of the infos takes as long as a MuJoCo step. :class:`~srl.envs.replay.Replayable`, the
    outermost wrapper of each environment, returns a new info and its own observation at each step.
    """

    #: Seed sequences of the environments' streams, until the reset that starts them.
    _sequences: Sequence[np.random.SeedSequence] = ()

    def start_streams(self, sequences: Sequence[np.random.SeedSequence]) -> None:
        """Start a random stream in each environment at the next reset, unless :meth:`seed` comes first."""
        self._sequences = sequences
        self._reset_seeds()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the environments as SB3 does, in place of their streams."""
        self._sequences = ()
        return super().seed(seed)

    def reset(self) -> VecEnvObs:
        """Reset all environments; the first reset starts their streams."""
        sequences, self._sequences = self._sequences, ()
        for env, sequence in zip(self.envs, sequences, strict=False):
            seed_env(env, sequence)
        return super().reset()

    def step_wait(self) -> VecEnvStepReturn:
        if self.keys != [None]:  # Dict observations
            return super().step_wait()
        observations = np.empty_like(self.buf_obs[None])  # type: ignore[index]
        rewards = np.empty(self.num_envs, dtype=np.float32)
        dones = np.empty(self.num_envs, dtype=bool)
        infos = self.step_into(self.actions, observations, rewards, dones)
        return observations, rewards, dones, infos

    def step_into(
        self, actions: np.ndarray, observations: np.ndarray, rewards: np.ndarray, dones: np.ndarray
    ) -> list[dict[str, Any]]:
        """Step and write the results to existing arrays; Dict observations are not supported.

        :param actions: Actions, shape ``(n_envs, ...)``.
        :param observations: Receives the observations, shape ``(n_envs, *observation_shape)``.
        :param rewards: Receives the rewards, shape ``(n_envs,)``.
        :param dones: Receives whether episodes ended, shape ``(n_envs,)``.
        :return: The infos.
        """
        infos = []
        for index, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            observation, rewards[index], terminated, truncated, info = env.step(action)
            dones[index] = done = terminated or truncated
            info["TimeLimit.truncated"] = truncated and not terminated
            if done:
                info["terminal_observation"] = observation
                observation, self.reset_infos[index] = env.reset()
            observations[index] = observation
            infos.append(info)
        return infos
