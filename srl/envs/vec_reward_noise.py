"""Reward noise on a vectorized environment."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from srl.envs.reward_noise import RewardNoiseProcess, as_process, noise_rng
from srl.evaluation import TrainingOnlyWrapper


class VecRewardNoise(TrainingOnlyWrapper):
    """Add noise to the rewards of a vectorized environment; the outermost wrapper, in training only.

    Integer rewards become float32, the dtype of SB3's rollout buffer. SB3's ``EvalCallback`` accepts an
    evaluation environment without this wrapper.

    Observations, dones and infos are unchanged, so that the episode returns of ``Monitor`` in the infos have
    no noise. The noise is independent for each environment and step.

    The noise has its own generator, :attr:`rng`, seeded by ``seed`` and a constant; ``reset`` does not reseed
    it, ``seed`` does. SB3's algorithms call ``env.seed(seed)`` during their setup, which restarts the stream
    of that seed. To continue an interrupted run, set ``rng.bit_generator.state`` after the algorithm is set
    up or loaded.

    It is pickled like ``VecNormalize``: with the state of the generator and without the environment, which
    :meth:`set_venv` restores.

    :param venv: The environment whose rewards get noise.
    :param noise: A process, or its text as :func:`~srl.envs.reward_noise.parse_noise` reads it; ``"none"``
        and None disable the noise.
    :param seed: Seed of the noise, 0 or above, or a seed sequence. None takes fresh entropy.
    :raises UserError: If the noise or the seed is invalid.
    """

    def __init__(
        self,
        venv: VecEnv,
        noise: RewardNoiseProcess | str | None,
        seed: int | np.random.SeedSequence | None = None,
    ) -> None:
        super().__init__(venv)
        self.noise = as_process(noise)
        self.rng = noise_rng(seed)

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        if self.noise is None:
            return observations, rewards, dones, infos
        # Rewards of a step may be integers if all of them are whole numbers
        if rewards.dtype.kind != "f":
            rewards = rewards.astype(np.float32)
        return observations, self.noise.apply(rewards, self.rng), dones, infos

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the noise and the environments.

        :param seed: Restarts the noise with the stream of this seed; None does not change the noise.
        :return: The seed of each environment, as in ``VecEnv.seed``.
        """
        if seed is not None:
            self.rng = noise_rng(seed)
        return self.venv.seed(seed)

    def set_venv(self, venv: VecEnv) -> None:
        """Set the environment of an unpickled wrapper.

        :raises ValueError: If the wrapper has one already.
        """
        if self.venv is not None:
            raise ValueError("This VecRewardNoise has an environment already.")
        self.venv = venv
        self.num_envs = venv.num_envs
        self.render_mode = venv.render_mode
        self.class_attributes = dict(inspect.getmembers(type(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("venv", "class_attributes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.venv = None  # type: ignore[assignment]
