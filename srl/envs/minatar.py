"""MinAtar's games, with episodes that depend only on their own random generator and the actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.core import ActType, ObsType


class FreshGame(gym.Wrapper[ObsType, ActType, ObsType, ActType]):
    """Shows a MinAtar game's generator as ``np_random``, and forgets the last action at each reset.

    The games draw from a RandomState of their own, and a sticky action may repeat the last one of the episode
    before. With both under control an episode can be replayed after an interruption.

    :param env: A game of the package ``minatar``, in any wrappers.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        env: Any = self.unwrapped
        if seed is not None:
            env.game.seed(seed)
        env.np_random = env.game.random
        env.game.last_action = 0
        return self.env.reset(seed=None, options=options)


def is_minatar(env: gym.Env[Any, Any]) -> bool:
    """Say whether an environment is a game of the package ``minatar``; it is not imported."""
    return type(env.unwrapped).__module__ == "minatar.gym"
