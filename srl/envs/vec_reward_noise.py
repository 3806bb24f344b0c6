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

    Integer rewards become float32, the dtype of SB3's rollout buffer. SB3's ``EvalCallback`` takes an
    evaluation environment without this wrapper.

    Observations, dones and infos pass unchanged, so the episode returns that ``Monitor`` writes into the
    infos stay clean. Draws are independent per environment and step.

    The noise has a generator of its own, :attr:`rng`, seeded by ``seed`` and a constant; ``reset`` does
    not reseed it, ``seed`` does. SB3's algorithms call ``env.seed(seed)`` when they are set up, and with
    the run's seed that gives the stream it began with. To continue an interrupted run, set
    ``rng.bit_generator.state`` after the algorithm was set up or loaded.

    Pickles as ``VecNormalize`` does: with the state of the generator and without the environment, which
    :meth:`set_venv` gives back.

    :param venv: The environment whose rewards get noise.
    :param noise: A process, or its text as :func:`~srl.envs.reward_noise.parse_noise` reads it; ``"none"``
        and None pass rewards through.
    :param seed: Seed of the noise, 0 or above, or a seed sequence of its own. None takes fresh entropy: no
        two runs are the same.
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
        # Processes give integers in a step in which all rewards are whole numbers
        if rewards.dtype.kind != "f":
            rewards = rewards.astype(np.float32)
        return observations, self.noise.apply(rewards, self.rng), dones, infos

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the noise, where a seed is given, and the environments.

        :param seed: The noise starts the stream of this seed; None leaves it unchanged.
        :return: The seed of each environment, as ``VecEnv.seed`` gives it.
        """
        if seed is not None:
            self.rng = noise_rng(seed)
        return self.venv.seed(seed)

    def set_venv(self, venv: VecEnv) -> None:
        """Give an unpickled wrapper its environment.

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
