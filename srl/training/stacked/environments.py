"""The environments of all members, stepped together.

Each member has its own environments, seeds, statistics and reward noise. The arithmetic on them is done for
all members at once, and is bitwise identical to SB3's wrappers.
Arrays have the shape ``(S, n, ...)``: ``S`` members with ``n`` environments each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from srl.envs.finite import check_finite
from srl.envs.vector import SerialVecEnv
from srl.rewards import explained


class MemberEnvs:
    """One VecEnv for each member, stepped together. A member whose environment has failed is not stepped.

    :param venvs: The members' environments, of the same spaces.
    """

    def __init__(self, venvs: Sequence[VecEnv]):
        self.venvs = list(venvs)
        self.n_envs = venvs[0].num_envs
        #: The errors of failed members by index; their observations and rewards are zeros.
        self.failures: dict[int, Exception] = {}
        #: Whether they can step into existing arrays.
        self._serial = all(type(venv) is SerialVecEnv and venv.keys == [None] for venv in venvs)
        self._observations = np.empty(0)
        self._rewards = np.zeros((len(venvs), self.n_envs), dtype=np.float32)
        self._dones = np.zeros((len(venvs), self.n_envs), dtype=bool)
        #: The infos of each member's environments at the latest step.
        self.infos: list[list[dict[str, Any]]] = [[{} for _ in range(self.n_envs)] for _ in venvs]

    def reset(self, members: Sequence[int]) -> np.ndarray:
        """Reset the environments of some members.

        :return: Observations of all members, shape ``(S, n, ...)``; the array is reused.
        """
        for member in members:
            self._attempt(member, self._reset)
        return self._observations

    def _reset(self, member: int) -> None:
        observation = self.venvs[member].reset()
        assert isinstance(observation, np.ndarray)
        if not self._observations.size:
            self._observations = _stack_of(observation, len(self.venvs))
        self._observations[member] = observation
        check_finite("observation at reset", observation)

    def clipped(self, actions: np.ndarray | th.Tensor) -> np.ndarray:
        """Return a policy's actions in NumPy, in a Box action space reshaped and clipped as by SB3.

        :param actions: Of all members; Box actions are flattened, shape ``(S, n, action_dim)``.
        :return: Shape ``(S, n, *action_shape)``.
        """
        space = self.venvs[0].action_space
        array = actions.cpu().numpy() if isinstance(actions, th.Tensor) else actions
        if isinstance(space, spaces.Box):
            array = np.clip(array.reshape(*array.shape[:2], *space.shape), space.low, space.high)
        return array

    def step(self, actions: np.ndarray, members: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step the environments of some members.

        :param actions: Of all members, shape ``(S, n, ...)``.
        :param members: The members that step. The others keep their observations, and their rewards are 0.
        :return: Observations, rewards and dones of all members; the arrays are reused.
        """
        if self.failures or len(members) < len(self.venvs):
            self._rewards[:] = 0
            self._dones[:] = False
        stepping = [member for member in members if member not in self.failures]
        if actions.dtype.kind == "f":
            is_finite = np.isfinite(actions).all(axis=tuple(range(1, actions.ndim)))
            for member in [member for member in stepping if not is_finite[member]]:
                self._attempt(member, lambda member: check_finite("action", actions[member]))
                stepping.remove(member)
        step = self._step_into if self._serial else self._step_wait
        if not self._serial:
            # Start all before waiting for one: native environments step in parallel
            for member in stepping:
                self._attempt(member, lambda member: self.venvs[member].step_async(actions[member]))
            stepping = [member for member in stepping if member not in self.failures]
        for member in stepping:
            try:
                step(member, actions)
            except Exception as error:
                self._fail(member, error)
        self._check_finite(stepping)
        return self._observations, self._rewards, self._dones

    def _step_into(self, member: int, actions: np.ndarray) -> None:
        venv: Any = self.venvs[member]
        self.infos[member] = venv.step_into(
            actions[member], self._observations[member], self._rewards[member], self._dones[member]
        )

    def _step_wait(self, member: int, actions: np.ndarray) -> None:
        observations, rewards, dones, self.infos[member] = self.venvs[member].step_wait()
        assert isinstance(observations, np.ndarray)
        self._observations[member] = observations
        self._rewards[member] = rewards
        self._dones[member] = dones

    def _check_finite(self, members: Sequence[int]) -> None:
        # SB3 bootstraps from last observations
        if self._dones.any():
            for member in members:
                if self._dones[member].any():
                    self._attempt(member, self._check_last_observations)
        arrays: list[np.ndarray] = [self._rewards, self._observations]
        if not all(array.dtype.kind != "f" or np.isfinite(array).all() for array in arrays):
            for member in [member for member in members if member not in self.failures]:
                self._attempt(member, self._check_member)

    def _check_last_observations(self, member: int) -> None:
        for index, info in enumerate(self.infos[member]):
            if info.get("TimeLimit.truncated"):
                check_finite("last observation", np.asarray(info["terminal_observation"])[None], index)

    def _check_member(self, member: int) -> None:
        check_finite("observation", self._observations[member])
        check_finite("reward", self._rewards[member])

    def _attempt(self, member: int, action: Any) -> None:
        try:
            action(member)
        except Exception as error:
            self._fail(member, error)

    def _fail(self, member: int, error: Exception) -> None:
        self.failures[member] = explained(error)
        if self._observations.size:
            self._observations[member] = 0
        self._rewards[member] = 0
        self._dones[member] = False

    def close(self) -> None:
        """Close all environments."""
        for venv in self.venvs:
            venv.close()


def _stack_of(array: np.ndarray, n: int) -> np.ndarray:
    """Zeros for ``n`` arrays of this memory layout, on which the rounding of convolutions depends."""
    strides, sizes = array.strides, array.shape
    # The stride of an axis of size 1 is arbitrary; such an axis comes after others of the same stride
    by_stride = sorted(range(array.ndim), key=lambda axis: (-strides[axis], -sizes[axis]))
    order = [0, *(1 + axis for axis in by_stride)]
    shape = (n, *array.shape)
    stack: np.ndarray = np.zeros([shape[axis] for axis in order], dtype=array.dtype)
    return np.transpose(stack, np.argsort(order))


class StackedRunningMeanStd:
    """SB3's RunningMeanStd for each member.

    :param n_members: ``S``.
    :param shape: Shape of the averaged arrays.
    """

    def __init__(self, n_members: int, shape: tuple[int, ...] = ()):
        self.mean = np.zeros((n_members, *shape), np.float64)
        self.var = np.ones((n_members, *shape), np.float64)
        self.count = 1e-4

    def update(self, batch: np.ndarray) -> None:
        """Add a batch for each member.

        :param batch: Shape ``(S, n, *shape)``.
        """
        n = batch.shape[1]
        if n == 1:  # a single number is its own mean
            mean, var = batch[:, 0], 0.0
        else:  # as np.mean and np.var compute them
            mean = np.add.reduce(batch, axis=1) / n
            var = np.add.reduce(np.square(batch - mean[:, None]), axis=1) / n
        # Bitwise identical to SB3's update_from_moments
        delta = mean - self.mean
        total = self.count + n
        self.mean = self.mean + delta * n / total
        m_2 = self.var * self.count + var * n + np.square(delta) * self.count * n / total
        self.var = m_2 / total
        self.count = n + self.count


class StackedNormalize:
    """SB3's VecNormalize for each member.

    :param wrappers: The members' VecNormalize, new and with the same options except ``gamma``. They hold the
        options, and after :meth:`export` the statistics.
    """

    def __init__(self, wrappers: Sequence[VecNormalize]):
        self._wrappers = list(wrappers)
        first = wrappers[0]
        self._norm_obs, self._norm_reward = first.norm_obs, first.norm_reward
        self._epsilon, self._clip_obs, self._clip_reward = first.epsilon, first.clip_obs, first.clip_reward
        shape = first.observation_space.shape or ()
        self.obs_rms = StackedRunningMeanStd(len(wrappers), shape)
        self.ret_rms = StackedRunningMeanStd(len(wrappers))
        self._gamma = np.array([[wrapper.gamma] for wrapper in wrappers])
        self._returns = np.zeros((len(wrappers), first.num_envs))

    def reset(self, observations: np.ndarray) -> np.ndarray:
        """Add the first observations; returns them normalized, float32."""
        self._returns[:] = 0
        if self._norm_obs:
            self.obs_rms.update(observations)
        return self.observations(observations)

    def step(
        self,
        observations: np.ndarray,
        rewards: np.ndarray,
        dones: np.ndarray,
        infos: Sequence[Sequence[dict[str, Any]]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add a step.

        :param observations: Shape ``(S, n, ...)``.
        :param rewards: Shape ``(S, n)``.
        :param dones: Shape ``(S, n)``.
        :param infos: Their last observations are replaced by normalized ones.
        :return: Normalized observations and rewards, float32.
        """
        if self._norm_obs:
            self.obs_rms.update(observations)
        normalized = self.observations(observations)
        self._returns = self._returns * self._gamma + rewards
        self.ret_rms.update(self._returns)
        if self._norm_reward:
            scale = np.sqrt(self.ret_rms.var + self._epsilon)
            rewards = np.clip(rewards / scale[:, None], -self._clip_reward, self._clip_reward)
        for member, index in np.argwhere(dones):
            info = infos[member][index]
            info["terminal_observation"] = self.observations(info["terminal_observation"], member)
        self._returns[dones] = 0
        return normalized, rewards.astype(np.float32)

    def observations(self, observations: np.ndarray, member: int | None = None) -> np.ndarray:
        """Normalize observations without changing the statistics.

        :param observations: Shape ``(S, n, ...)``, or one observation of one member.
        :param member: The member of a single observation.
        """
        if not self._norm_obs:
            return np.array(observations)
        mean, var = self.obs_rms.mean, self.obs_rms.var
        mean, var = (mean[:, None], var[:, None]) if member is None else (mean[member], var[member])
        scaled = (observations - mean) / np.sqrt(var + self._epsilon)
        clipped: np.ndarray = np.clip(scaled, -self._clip_obs, self._clip_obs)
        return clipped.astype(np.float32)

    def restore(self, member: int, state: dict[str, Any]) -> None:
        """Restore the statistics of a member."""
        for name, average in (("returns", self.ret_rms), ("observations", self.obs_rms)):
            values = state["averages"].get(name)
            if values is not None:
                average.mean[member], average.var[member] = values["mean"], values["var"]
                average.count = values["count"]
        self._returns[member] = state["returns"]

    def export(self) -> list[VecNormalize]:
        """The members' VecNormalize with their statistics and discounted returns."""
        for member, wrapper in enumerate(self._wrappers):
            wrapper.returns = self._returns[member].copy()
            pairs = [(self.ret_rms, wrapper.ret_rms)]
            if self._norm_obs:
                assert isinstance(wrapper.obs_rms, RunningMeanStd)
                pairs.append((self.obs_rms, wrapper.obs_rms))
            for mine, theirs in pairs:
                theirs.mean, theirs.var = mine.mean[member].copy(), mine.var[member].copy()
                theirs.count = mine.count
        return self._wrappers
