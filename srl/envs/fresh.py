"""Environments changed so that an episode depends only on their random generator and the actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.core import ActType, ObsType
from gymnasium.envs.box2d import BipedalWalker


class FreshWorld(gym.Wrapper[ObsType, ActType, ObsType, ActType]):
    """Creates a new Box2D world for BipedalWalker at each reset, as Gymnasium's LunarLander does.

    Gymnasium uses one world for all episodes. Its search tree keeps traces of removed bodies, so that the
    order of contacts, and with it the last bits of an episode, depends on all earlier episodes.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        walker = self.unwrapped
        assert isinstance(walker, BipedalWalker)
        # The first step of the walker's own reset, which needs the bodies of the old world
        walker._destroy()  # type: ignore[no-untyped-call]
        walker.world = type(walker.world)()
        return self.env.reset(seed=seed, options=options)


class FreshGame(gym.Wrapper[ObsType, ActType, ObsType, ActType]):
    """Exposes a MinAtar game's random generator as ``np_random``, and clears the last action at each reset.

    The games have their own RandomState, and a sticky action may repeat the last action of the previous
    episode.

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
    """Whether an environment is a game of the package ``minatar``, which is not imported."""
    return type(env.unwrapped).__module__ == "minatar.gym"
