"""Small environments for each kind of action space; importing this module registers them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from srl.envs.seeding import Stream, seed_sequence, small_seed

#: Prefix of the ids of this module's environments.
SMALL_ENVS = "tests.training.stacked.small_envs:"


class Small(gym.Env):
    """Random observations and rewards that depend on the actions; every seventh step ends the episode.

    Half of the episodes are truncated.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space: spaces.Space[Any] = spaces.Box(-10.0, 10.0, (3,))
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.n_steps = 0
        self.total = 0.0

    def observe(self) -> Any:
        return np.array([*self.np_random.normal(size=2), self.total], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.total = 0.0
        return self.observe(), {}

    def step(self, action):
        self.n_steps += 1
        self.total = 0.5 * self.total + float(np.sum(action))
        is_end = self.n_steps % 7 == 0
        is_cut = is_end and self.np_random.random() < 0.5
        reward = self.total + 0.1 * self.np_random.normal()
        return self.observe(), reward, is_end and not is_cut, is_cut, {"is_success": self.total > 1}


class Switches(Small):
    """MultiBinary actions."""

    action_space = spaces.MultiBinary(3)


class Dials(Small):
    """MultiDiscrete actions of unequal sizes."""

    action_space = spaces.MultiDiscrete([2, 5, 3])


class Levers(Small):
    """Box actions."""

    action_space = spaces.Box(-1.0, 1.0, (2,))


class Panel(Small):
    """Two-dimensional Box actions."""

    action_space = spaces.Box(-1.0, 1.0, (2, 3))

    def step(self, action):
        assert action.shape == (2, 3)
        return super().step(action)


class Knob(Small):
    """Box actions without dimensions."""

    action_space = spaces.Box(-1.0, 1.0, ())

    def step(self, action):
        assert np.shape(action) == ()
        return super().step(action)


class Rooms(Small):
    """Discrete observations."""

    observation_space = spaces.Discrete(5)
    action_space = spaces.Discrete(3)

    def observe(self) -> Any:
        return int(self.np_random.integers(5))


class Frames(Small):
    """Small images."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Discrete(3)

    def observe(self) -> Any:
        return self.np_random.integers(0, 256, (36, 36, 1), dtype=np.uint8)


class Table(Small):
    """Two-dimensional observations."""

    observation_space = spaces.Box(-10.0, 10.0, (2, 3))

    def observe(self) -> Any:
        return self.np_random.normal(size=(2, 3)).astype(np.float32)


class TwoWays(Small):
    """In the 14th step, one run gets an infinite reward and another a NaN observation."""

    seed: int | None = None

    def reset(self, *, seed=None, options=None):
        self.seed = self.seed if seed is None else seed
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, *_, info = super().step(action)
        is_end = self.n_steps % 7 == 0
        if self.n_steps == 14 and self.seed == small_seed(seed_sequence(10, Stream.TRAIN_ENV)):
            reward = float("inf")
        if self.n_steps == 14 and self.seed == small_seed(seed_sequence(20, Stream.TRAIN_ENV)):
            observation = observation * np.float32("nan")
        return observation, reward, False, is_end, info


for _class in (Small, Switches, Dials, Levers, Panel, Knob, Rooms, Frames, Table, TwoWays):
    gym.register(f"{_class.__name__}-v0", entry_point=f"{__name__}:{_class.__name__}")
