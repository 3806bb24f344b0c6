"""Small environments, each with one unusual property; importing this module registers them."""

from __future__ import annotations

import copy
import random
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

#: Prefix of the ids of this module's environments.
UNUSUAL = "tests.envs.unusual_envs:"


class Base(gym.Env):
    """Random observations, a reward of 1 for each step and episodes of 20 steps."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space: spaces.Space[Any] = spaces.Box(-1, 1, (3,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(3)
    length = 20

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        # A space stores its random state, and models are saved with their spaces
        self.observation_space = copy.deepcopy(self.observation_space)
        self.action_space = copy.deepcopy(self.action_space)

    def observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        return self.observe(), 1.0, self.t >= self.length, False, {}


class NeverEnds(Base):
    length = 10**9


class Long(Base):
    length = 150


class RarelyEnds(Base):
    """Each step ends the episode with a probability of 5%."""

    def step(self, action):
        return self.observe(), 1.0, bool(self.np_random.random() < 0.05), False, {}


class Success(Base):
    """Reports ``is_success`` only in the last info of a successful episode."""

    length = 5
    success: Any = True

    def step(self, action):
        observation, reward, done, truncated, info = super().step(action)
        if done and self.np_random.random() < 0.5:
            info["is_success"] = self.success
        return observation, reward, done, truncated, info


class NumpySuccess(Success):
    success = np.bool_(True)


class Tidy(Base):
    """Observations and rewards depend on the actions. A time limit ends episodes after 7 steps."""

    action_space: spaces.Space[Any] = spaces.MultiDiscrete([2, 5, 3])
    scale: Any = 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = np.zeros(3, np.float32)
        return self.result(self.x), self.info()

    def result(self, observation: np.ndarray) -> np.ndarray:
        return observation.copy()

    def info(self) -> dict[str, Any]:
        return {}

    def own(self, action: np.ndarray) -> np.ndarray:
        return action.copy()

    def step(self, action):
        self.t += 1
        action = self.own(action)
        action *= self.scale
        action += 1
        noise = self.np_random.uniform(-0.1, 0.1, 3).astype(np.float32)
        self.x = np.clip(0.5 * self.x + 0.1 * action[0] + noise, -1, 1).astype(np.float32)
        return self.result(self.x), float(self.x.sum()), False, self.t >= 7, self.info()


class Untidy(Tidy):
    """Like :class:`Tidy`, but writes to its actions, and always returns the same array and info."""

    shared = np.zeros(3, np.float32)  # shared by all environments

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.only_info: dict[str, Any] = {}

    def result(self, observation: np.ndarray) -> np.ndarray:
        self.shared[:] = observation
        return self.shared

    def info(self) -> dict[str, Any]:
        return self.only_info

    def own(self, action: np.ndarray) -> np.ndarray:
        return action


class TidyBox(Tidy):
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    scale = np.float32(0.5)


class UntidyBox(Untidy):
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    scale = np.float32(0.5)


class TidyParts(Tidy):
    """Dict observations with two parts."""

    observation_space = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Box(-1, 1, (3,))})

    def result(self, observation):
        return {"a": observation.copy(), "b": -observation}


class UntidyParts(Untidy):
    observation_space = TidyParts.observation_space

    def result(self, observation):
        observation = super().result(observation)
        self.negated = getattr(self, "negated", np.zeros(3, np.float32))
        np.negative(observation, out=self.negated)
        return {"a": observation, "b": self.negated}


class LegacyRandom(Base):
    """Replaces ``np_random``, Gymnasium's Generator, with a RandomState."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.np_random = self.generator(0)

    def generator(self, seed: int) -> Any:
        return np.random.RandomState(seed)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.np_random = self.generator(seed)
        self.t = 0
        return self.observe(), {}


class PythonRandom(LegacyRandom):
    def generator(self, seed: int) -> Any:
        return random.Random(seed)

    def observe(self) -> np.ndarray:
        return np.array([self.np_random.uniform(-1, 1) for _ in range(3)], np.float32)


class SystemRandom(PythonRandom):
    def generator(self, seed: int) -> Any:
        return random.SystemRandom()


class GlobalState(LegacyRandom):
    """Draws from the global generator of ``numpy.random``, like scikit-learn's ``check_random_state``."""

    def generator(self, seed: int) -> Any:
        return np.random.mtrand._rand


class NoRandom(Base):
    np_random = None

    def observe(self) -> np.ndarray:
        return np.full(3, self.t / self.length, np.float32)


class RaisingRandom(NoRandom):
    @property
    def np_random(self):
        raise RuntimeError("there is no generator here")


for _class in (
    NeverEnds, Long, RarelyEnds, Success, NumpySuccess, Tidy, Untidy, TidyBox, UntidyBox, TidyParts,
    UntidyParts, LegacyRandom, PythonRandom, SystemRandom, GlobalState, NoRandom, RaisingRandom,
):  # fmt: skip
    gym.register(f"{_class.__name__}-v0", entry_point=f"{__name__}:{_class.__name__}")
