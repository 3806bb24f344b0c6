"""Environments that break in one way each; importing this module registers them."""

from __future__ import annotations

import os
import signal

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Fine(gym.Env):
    """Episodes of 8 steps with a reward of 1 each, and a count of all steps of its life."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-10.0, 10.0, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.n_steps = 0

    def observe(self) -> np.ndarray:
        return np.array([self.n_steps % 8, 1.0], dtype=np.float32)

    def reward(self) -> float:
        return 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        self.n_steps += 1
        return self.observe(), self.reward(), False, self.n_steps % 8 == 0, {}


class NanReward(Fine):
    """NaN as the 40th reward."""

    def reward(self) -> float:
        return float("nan") if self.n_steps == 40 else 1.0


class InfObservation(Fine):
    """Infinity in the 36th observation."""

    def observe(self) -> np.ndarray:
        return super().observe() * (np.inf if self.n_steps == 36 else 1)


class NanInEvaluation(Fine):
    """NaN as the 13th reward: with 8 steps in each evaluation, every 4 steps, in the second of these."""

    def reward(self) -> float:
        return float("nan") if self.n_steps == 13 else 1.0


class Raises(Fine):
    """An error of its own in the 20th step."""

    def reward(self) -> float:
        if self.n_steps == 20:
            raise KeyError("a | pipe, <b>bold</b> and\na second line")
        return 1.0


class Killed(Fine):
    """The process is killed in the 20th step, as by a machine that runs out of memory."""

    def reward(self) -> float:
        if self.n_steps == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0


class CannotBeMade(Fine):
    """Its simulator does not start."""

    def __init__(self, render_mode: str | None = None) -> None:
        raise RuntimeError("no simulator here")


class GlobalRandom(Fine):
    """It draws from NumPy's global generator, as old environments do."""

    def observe(self) -> np.ndarray:
        return np.random.uniform(-1, 1, 2).astype(np.float32)


class HugeReward(Fine):
    """Finite rewards whose square is not: the loss of the first update is infinite."""

    def reward(self) -> float:
        return 1e30


class NoisyScore(Fine):
    """Its reward is always 0, so that noise on it shows."""

    def reward(self) -> float:
        return 0.0


for _class in (
    Fine, NanReward, InfObservation, NanInEvaluation, Raises, Killed, CannotBeMade, GlobalRandom, HugeReward,
    NoisyScore,
):  # fmt: skip
    gym.register(f"{_class.__name__}-v0", entry_point=f"{__name__}:{_class.__name__}")
