"""Discretization of continuous actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env

from srl.envs.discretize import DiscretizeAction
from srl.errors import UserError

# The protocol uses old versions, and Gymnasium's checker warns about any wrapper or unbounded space
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(different from the unwrapped version|is probably too):UserWarning"),
]


class Echo(gym.Env):
    """Stores the last action; the test chooses the action space."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space
        self.last: Any = None

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.last = action
        return np.zeros(2, np.float32), 0.0, False, False, {}


def box(dtype: type = np.float32) -> spaces.Box:
    return spaces.Box(np.array([-1.0, 0.0, -0.4], dtype), np.array([1.0, 10.0, 0.1], dtype), dtype=dtype)


@pytest.mark.parametrize(
    ("env_id", "n"),
    [("LunarLanderContinuous-v3", 2), ("InvertedDoublePendulum-v4", 1), ("Walker2d-v4", 6)],
)
def test_action_space_has_eleven_bins_per_dimension(env_id, n):
    env = DiscretizeAction(gym.make(env_id))
    assert env.action_space == spaces.MultiDiscrete([11] * n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bins", [2, 3, 11, 50])
def test_bin_values_are_evenly_spaced_with_exact_bounds(bins, dtype):
    space = box(dtype)
    env = DiscretizeAction(Echo(space), bins)
    assert (env.action(np.zeros(3, int)) == space.low).all()
    assert (env.action(np.full(3, bins - 1)) == space.high).all()
    grid = np.array([env.action(np.full(3, index)) for index in range(bins)])
    assert grid.dtype == dtype
    assert np.allclose(np.diff(grid, axis=0), (space.high - space.low) / (bins - 1), atol=1e-6)


def test_middle_of_eleven_bins_is_zero():
    env = DiscretizeAction(gym.make("InvertedDoublePendulum-v4"))
    assert env.action(np.array([5])) == 0.0


def test_each_dimension_is_discretized_independently():
    env = DiscretizeAction(Echo(box()), bins=3)
    env.reset()
    env.step(np.array([0, 1, 2]))
    assert env.unwrapped.last == pytest.approx([-1.0, 5.0, 0.1])
    assert env.unwrapped.last in box()


def test_sampled_actions_are_in_the_original_action_space():
    env = DiscretizeAction(Echo(box()))
    env.action_space.seed(0)
    assert all(env.action(env.action_space.sample()) in box() for _ in range(100))


def test_multi_axis_action_space_is_flattened_and_restored():
    low = -np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    env = DiscretizeAction(Echo(spaces.Box(low, -low)), bins=3)
    assert env.action_space == spaces.MultiDiscrete([3] * 6)
    assert (env.action(np.array([0, 0, 0, 2, 2, 1])) == [[-1, -2, -3], [4, 5, 0]]).all()


def test_out_of_range_bin_raises_index_error():
    with pytest.raises(IndexError):
        DiscretizeAction(Echo(box())).action(np.array([0, 0, 11]))


@pytest.mark.parametrize("bins", [1, 0, -3, 2.0, True, "11", None])
def test_invalid_number_of_bins_raises_user_error(bins):
    with pytest.raises(UserError, match="must be a whole number, 2 or above"):
        DiscretizeAction(Echo(box()), bins)


def test_discretizing_discrete_actions_raises_user_error():
    with pytest.raises(UserError, match=r"CartPole-v1 .* Discrete\(2\), not a Box\. Leave out the bins"):
        DiscretizeAction(gym.make("CartPole-v1"))


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, np.inf), (-np.inf, 0.0)])
def test_unbounded_actions_raise_user_error_with_advice(bounds):
    with pytest.raises(
        UserError, match=r"Echo.*finite bounds\. Wrap it in gymnasium\.wrappers\.RescaleAction"
    ):
        DiscretizeAction(Echo(spaces.Box(*bounds, (2,))))


@pytest.mark.parametrize("env_id", ["LunarLanderContinuous-v3", "InvertedDoublePendulum-v4"])
def test_wrapped_environment_passes_gymnasium_checker(env_id):
    gymnasium_check_env(DiscretizeAction(gym.make(env_id)), skip_render_check=True)


def test_wrapper_is_recreated_from_its_spec():
    env = DiscretizeAction(gym.make("LunarLanderContinuous-v3"), bins=5)
    copy = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(copy, DiscretizeAction)
    assert copy.action_space == spaces.MultiDiscrete([5, 5])
