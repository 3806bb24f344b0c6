"""The description of an environment. It imports neither torch nor SB3."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from srl.envs.discretize import check_bins
from srl.envs.registration import is_atari
from srl.envs.reward_noise import parse_noise
from srl.errors import UserError, nearest

#: Arguments of SB3's ``VecNormalize`` that a spec may set. ``training`` is on in training, off in evaluation.
NORMALIZE_KEYS = frozenset(
    ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
)

#: Implementations of environments, see docs/environments.md.
BACKENDS = ("gymnasium", "native")


@dataclass(frozen=True)
class EnvSpec:
    """Description of the environment of a run.

    :param env_id: A Gymnasium id; renamed ones are resolved when the environment is made.
    :param seed: Seed of the run, 0 or above; :mod:`srl.envs.seeding` derives the streams from it.
    :param n_envs: Number of training environments.
    :param bins: Values per action dimension, see :class:`~srl.envs.discretize.DiscretizeAction`; None
        keeps the action space.
    :param normalize: Arguments of SB3's ``VecNormalize``, for example ``{"norm_obs": True}``; an empty
        dictionary takes its defaults, None disables ``VecNormalize``.
    :param gamma: Discount factor of the algorithm, which ``VecNormalize`` needs to scale rewards by their
        returns; a ``gamma`` in ``normalize`` takes precedence.
    :param frame_stack: Number of the latest observations that are stacked; 1 disables stacking.
    :param noise: Reward noise in training, see :func:`~srl.envs.reward_noise.parse_noise`.
    :param env_kwargs: Further arguments of the environment's constructor.
    :param max_episode_steps: Time limit of an episode in steps of the agent, in place of the environment's;
        None keeps that.
    :param wrappers: Wrappers of the user around the environment and its ``Monitor``, the innermost first: the
        name of each as ``module:Class`` and its arguments.
    :param packages: Modules to import first, which register environments with Gymnasium.
    :param backend: ``"gymnasium"``, or ``"native"`` for environments in C++ threads, see
        :mod:`srl.envs.native_atari`.
    :param n_threads: Threads of the native environments; they affect only the speed.
    :param eval_max_episode_steps: Steps of the agent after which an episode of an evaluation is truncated;
        None for no limit besides the environment's own.
    :param renders: Whether images of the environment are needed.
    :raises UserError: If a value is out of range. :func:`check_env` checks whether it fits the environment.
    """

    env_id: str
    _: KW_ONLY
    seed: int
    n_envs: int = 1
    bins: int | None = None
    normalize: dict[str, Any] | None = None
    gamma: float = 0.99
    frame_stack: int = 1
    noise: str = "none"
    env_kwargs: dict[str, Any] | None = None
    max_episode_steps: int | None = None
    wrappers: tuple[tuple[str, dict[str, Any]], ...] = ()
    packages: tuple[str, ...] = ()
    backend: str = "gymnasium"
    n_threads: int = 1
    eval_max_episode_steps: int | None = None
    renders: bool = False

    def __post_init__(self) -> None:
        _check_whole("seed", self.seed, at_least=0)
        _check_whole("n_envs", self.n_envs, at_least=1)
        _check_whole("frame_stack", self.frame_stack, at_least=1)
        _check_whole("n_threads", self.n_threads, at_least=1)
        if self.max_episode_steps is not None:
            _check_whole("max_episode_steps", self.max_episode_steps, at_least=1)
        if self.eval_max_episode_steps is not None:
            _check_whole("eval_max_episode_steps", self.eval_max_episode_steps, at_least=1)
        if self.backend not in BACKENDS:
            hint = nearest(str(self.backend), BACKENDS)
            raise UserError(f"backend is {self.backend!r} but must be one of {', '.join(BACKENDS)}.{hint}")
        if self.bins is not None:
            check_bins(self.bins)
        for key in self.normalize or {}:
            if key not in NORMALIZE_KEYS:
                known = ", ".join(sorted(NORMALIZE_KEYS))
                hint = nearest(str(key), NORMALIZE_KEYS)
                raise UserError(f"normalize has the unknown key {key!r}; it takes {known}.{hint}")
        parse_noise(self.noise)

    @property
    def atari(self) -> bool:
        """Whether the environment is an Atari game, and so gets SB3's ``AtariWrapper``."""
        return is_atari(self.env_id)


def _check_whole(name: str, value: Any, at_least: int) -> None:
    """Raise :class:`~srl.errors.UserError` unless a value is a whole number in range."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UserError(f"{name} is {value!r} but must be a whole number, {at_least} or above.")
