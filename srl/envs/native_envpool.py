"""MuJoCo, Box2D and CartPole in C++ threads of EnvPool, an optional package."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from srl.envs.discretize import DiscretizeAction
from srl.envs.mujoco_log import without_deprecation_messages
from srl.envs.native import N_SEEDS, NativeVecEnv
from srl.envs.registration import explained_failures
from srl.errors import UserError, nearest

#: The environments of EnvPool that were held against Gymnasium's.
SUPPORTED = (
    "Ant-v4",
    "HalfCheetah-v4",
    "Hopper-v4",
    "HumanoidStandup-v4",
    "Humanoid-v4",
    "InvertedDoublePendulum-v4",
    "InvertedPendulum-v4",
    "Reacher-v4",
    "Swimmer-v4",
    "Walker2d-v4",
    "BipedalWalker-v3",
    "LunarLander-v3",
    "LunarLanderContinuous-v3",
    "CartPole-v1",
)

# What EnvPool leaves out under these ids, and Gymnasium does not: the forces of contacts, which are part of
# the observation and of the reward
_MENDED = {env_id: {"post_constraint": True} for env_id in ("Humanoid-v4", "HumanoidStandup-v4")}


class EnvpoolVecEnv(NativeVecEnv):
    """Environments of EnvPool, where the next episode begins in the step that ends the last, as SB3 wants it.

    The physics is that of the same id in Gymnasium but for rounding; the starting states come from another
    generator of random numbers, from the same distributions.

    :param env_id: One of :data:`SUPPORTED`.
    :param num_envs: Environments side by side.
    :param bins: Values per action dimension, as in :class:`~srl.envs.discretize.DiscretizeAction`; None
        leaves the action space as it is.
    :param n_threads: Threads that step them.
    :param monitor_dir: Folder for ``i.monitor.csv``; None writes none.
    :raises UserError: If the environment is not supported, EnvPool is not installed, or the actions cannot
        be discretised.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        bins: int | None = None,
        n_threads: int = 1,
        monitor_dir: str | None = None,
    ) -> None:
        if env_id not in SUPPORTED:
            raise UserError(
                f"{env_id} has no native version; there is one of Atari games and of {', '.join(SUPPORTED)}. "
                f"Use env_backend='gymnasium'.{nearest(env_id, SUPPORTED)}"
            )
        self._envpool = _import_envpool(env_id)
        observation_space, action_space, self._values = _spaces(env_id, bins)
        super().__init__(env_id, num_envs, observation_space, action_space, monitor_dir)
        self._env_id = env_id
        self._n_threads = min(n_threads, num_envs)
        self._pool: Any = None
        self._ids = np.arange(num_envs, dtype=np.int32)
        self._dimensions = np.arange(0 if self._values is None else len(self._values))
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._sums = np.zeros(num_envs, dtype=np.float64)
        self._stepping = False

    def reset(self) -> np.ndarray:
        if self._stepping:
            self.step_wait()
        seeds = self._take_seeds()
        if self._pool is None or seeds[0] is not None:
            # EnvPool takes seeds only when it is made; environment i gets this one + i
            first = int(np.random.SeedSequence().generate_state(1)[0]) if seeds[0] is None else seeds[0]
            self._pool = self._envpool.make(
                self._env_id,
                env_type="gymnasium",
                num_envs=self.num_envs,
                num_threads=self._n_threads,
                **_MENDED.get(self._env_id, {}),
                seed=first % (N_SEEDS - self.num_envs),
            )
        self._lengths[:] = 0
        self._sums[:] = 0.0
        observations, _ = self._pool.reset()
        return self._as_observations(observations)

    def step_async(self, actions: np.ndarray) -> None:
        actions = np.asarray(actions)
        if self._values is not None:
            actions = self._values[self._dimensions, actions]
        elif isinstance(self.action_space, spaces.Discrete) and not (
            actions.min() >= 0 and actions.max() < self.action_space.n
        ):
            raise IndexError(f"Actions are {actions} but must be in [0, {self.action_space.n}).")
        self._pool.send(actions, self._ids)
        self._stepping = True

    def step_wait(self) -> VecEnvStepReturn:
        raw, rewards, terminated, truncated, _ = self._pool.recv()
        self._stepping = False
        observations = self._as_observations(raw)
        self._sums += rewards
        self._lengths += 1
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            (ended,) = np.nonzero(dones)
            for index in ended.tolist():
                infos[index] = {
                    "terminal_observation": observations[index].copy(),
                    "TimeLimit.truncated": bool(truncated[index] and not terminated[index]),
                    "episode": self._end_episode(index, float(self._sums[index]), int(self._lengths[index])),
                }
            # Left alone, EnvPool would begin the next episode with the next step, and lose its action
            first, _ = self._pool.reset(self._ids[ended])
            observations[ended] = first
            self._lengths[ended] = 0
            self._sums[ended] = 0.0
        return observations, rewards.astype(np.float32, copy=False), dones, infos

    def close(self) -> None:
        if self._stepping:
            self.step_wait()
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        super().close()

    def _as_observations(self, raw: np.ndarray) -> np.ndarray:
        """Copy what EnvPool owns, in the dtype of the observation space."""
        return np.array(raw, dtype=self.observation_space.dtype)


def _import_envpool(env_id: str) -> ModuleType:
    """Import EnvPool, or say how to get it."""
    try:
        return importlib.import_module("envpool")
    except ImportError as error:
        raise UserError(
            f"{env_id} with env_backend='native' needs EnvPool, which cannot be imported ({error}). Run "
            "`pip install 'symmetric-rl[envpool]'`, or use env_backend='gymnasium'."
        ) from error


def _spaces(env_id: str, bins: int | None) -> tuple[spaces.Space[Any], spaces.Space[Any], np.ndarray | None]:
    """Ask Gymnasium's environment for its spaces, so that both backends have the same.

    :return: Observation space, action space, and what the bins stand for, of shape ``(n, bins)``.
    """
    with explained_failures(env_id), without_deprecation_messages(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date")
        env = gym.make(env_id)
    try:
        if bins is None:
            return env.observation_space, env.action_space, None
        discretised = DiscretizeAction(env, bins)
        return env.observation_space, discretised.action_space, discretised.values
    finally:
        env.close()
