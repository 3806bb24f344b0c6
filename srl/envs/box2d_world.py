"""New Box2D worlds at each reset, without traces of earlier episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.core import ActType, ObsType
from gymnasium.envs.box2d import BipedalWalker


class FreshWorld(gym.Wrapper[ObsType, ActType, ObsType, ActType]):
    """Gives BipedalWalker a new world at each reset.

    Gymnasium builds each of its episodes in the same world, whose search tree keeps the traces of bodies that
    are gone: the order of contacts, and with it the last bits of an episode, depends on all episodes before.
    In a new world an episode depends on its random numbers and actions alone, as in Gymnasium's LunarLander.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        walker = self.unwrapped
        assert isinstance(walker, BipedalWalker)
        # What the walker itself does first, while the bodies are still those of its world
        walker._destroy()  # type: ignore[no-untyped-call]
        walker.world = type(walker.world)()
        return self.env.reset(seed=seed, options=options)
