"""Small environments, each with one unusual space or reward; importing this module registers them."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
THREE = spaces.Discrete(3)


def draw(space: spaces.Space[Any], rng: np.random.Generator) -> Any:
    """Sample an element of a space with a generator."""
    if isinstance(space, spaces.Dict):
        return {key: draw(part, rng) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(draw(part, rng) for part in space)
    if isinstance(space, spaces.Discrete):
        return int(space.start + rng.integers(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return (space.start + rng.integers(space.nvec)).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(0, 2, space.shape).astype(space.dtype)
    return rng.uniform(space.low, space.high).astype(space.dtype)


class Unusual(gym.Env):
    """Episodes of 10 steps with random observations and a reward that depends on the action. Each step checks
    that the action is in the action space."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    observation_space: ClassVar[spaces.Space[Any]] = VECTOR
    action_space: ClassVar[spaces.Space[Any]] = THREE

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return draw(self.observation_space, self.np_random), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.n_steps += 1
        observation = draw(self.observation_space, self.np_random)
        return observation, self.reward(action), self.n_steps == 10, False, {}

    def reward(self, action) -> Any:
        return float(np.sum(action - getattr(self.action_space, "start", 0)))


def with_spaces(observation: spaces.Space[Any] = VECTOR, action: spaces.Space[Any] = THREE):
    """Return an environment class with these spaces."""
    return type("Unusual", (Unusual,), {"observation_space": observation, "action_space": action})


class IntegerReward(Unusual):
    def reward(self, action):
        return int(action)


class ArrayReward(Unusual):
    def reward(self, action):
        return np.array([1.0])


PARTS = {
    "place": spaces.Box(-10, 10, (2,), np.float64),
    "room": spaces.Discrete(3, start=5),
    "dials": spaces.MultiDiscrete([2, 4], start=[-1, 3]),
    "switches": spaces.MultiBinary(4),
}
ENVIRONMENTS = {
    "DiscreteStart": with_spaces(action=spaces.Discrete(3, start=-1)),
    "DialsStart": with_spaces(action=spaces.MultiDiscrete([2, 5, 3], start=[-2, 0, 7])),
    "EqualDialsStart": with_spaces(action=spaces.MultiDiscrete([3, 3], start=[1, 1])),
    "RoomStart": with_spaces(spaces.Discrete(4, start=1)),
    "RoomsStart": with_spaces(spaces.MultiDiscrete([4, 2], start=[-3, 2]), spaces.Discrete(2, start=100)),
    "DictStart": with_spaces(spaces.Dict(PARTS), spaces.Discrete(3, start=2)),
    "IntegerReward": IntegerReward,
    "ArrayReward": ArrayReward,
    "UnboundedAction": with_spaces(action=spaces.Box(-np.inf, np.inf, (2,), np.float32)),
    "Tuple": with_spaces(spaces.Tuple((spaces.Discrete(3), VECTOR))),
    "Nested": with_spaces(spaces.Dict({"inner": spaces.Dict(PARTS)})),
    "Text": with_spaces(spaces.Text(5)),
    "Rooms2D": with_spaces(spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [0, 0]])),
    "Switches2D": with_spaces(action=spaces.MultiBinary([2, 3])),
    "Dials2D": with_spaces(action=spaces.MultiDiscrete([[2, 3], [4, 2]])),
    "FarStart": with_spaces(action=spaces.Discrete(3, start=2**24)),
    "FloatImage": with_spaces(spaces.Box(0.0, 1.0, (3, 40, 40), np.float32)),
    "FloatImageLast": with_spaces(spaces.Box(0.0, 1.0, (40, 40, 3), np.float32)),
    "TinyImage": with_spaces(spaces.Box(0, 255, (7, 7, 3), np.uint8)),
}
for _name, _class in ENVIRONMENTS.items():
    gym.register(f"Unusual{_name}-v0", entry_point=_class)

#: Prefix of the environment ids that imports this module.
UNUSUAL = f"{__name__}:Unusual"
