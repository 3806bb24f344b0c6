"""An environment whose returns identify the random stream that produced them."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Lottery(gym.Env):
    """Episodes of 20 steps; every reward of an episode is the first number drawn at its reset.

    :param legacy: Replace Gymnasium's generator with a ``RandomState`` that ``reset`` seeds.
    """

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, legacy: bool = False):
        self.legacy = legacy

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.legacy and seed is not None:
            self.np_random = np.random.RandomState(seed)
        self.prize = float(self.np_random.uniform())
        self.n_steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.n_steps += 1
        return np.zeros(3, np.float32), self.prize, self.n_steps == 20, False, {}


gym.register("Lottery-v0", entry_point=Lottery)
