"""From a description of an environment to the vectorized environment that an algorithm trains on.

From the inside out: Gymnasium's environment, ``Monitor`` (raw rewards, whole episodes), the Atari
preprocessing, the user's wrappers, discretized actions, :class:`~srl.envs.vector.SerialVecEnv`,
:class:`~srl.envs.finite.VecCheckFinite`, ``VecFrameStack``, ``VecNormalize``, ``VecTransposeImage``, and in
training :class:`~srl.envs.vec_reward_noise.VecRewardNoise`. With native environments,
:mod:`srl.envs.native_atari` has what is inside of ``VecCheckFinite``, and the stacked and transposed frames
of Atari games.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import ale_py
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.box2d import BipedalWalker
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from srl.envs.box2d_world import FreshWorld
from srl.envs.discretize import DiscretizeAction
from srl.envs.finite import VecCheckFinite
from srl.envs.minatar import FreshGame, is_minatar
from srl.envs.mujoco_log import without_deprecation_messages
from srl.envs.native_atari import make_native
from srl.envs.normalize import make_normalize
from srl.envs.registration import (
    check_rom,
    explained_failures,
    import_object,
    import_packages,
    is_atari,
    is_mujoco,
    registered,
    resolve_env_id,
)
from srl.envs.replay import Replayable
from srl.envs.reward_noise import parse_noise
from srl.envs.seeding import Stream, seed_sequence
from srl.envs.spec import EnvSpec
from srl.envs.vec_reward_noise import VecRewardNoise
from srl.envs.vector import SerialVecEnv
from srl.errors import UserError, nearest
from srl.spaces import check_supported

#: Frames to a step of the agent in SB3's AtariWrapper.
ATARI_FRAME_SKIP = 4


def check_env(spec: EnvSpec) -> spaces.Space[Any]:
    """Make one environment as :func:`make_train_env` would, to find a mistake before a run starts.

    :return: The action space that the algorithm will see.
    :raises UserError: If the environment is unknown or withdrawn, lacks a package or a ROM, does not
        take ``env_kwargs``, or does not fit the bins, the frame stack or the normalization.
    """
    venv = _make_stack(spec, n_envs=1)
    venv.close()
    return venv.action_space


def make_train_env(spec: EnvSpec, monitor_dir: str | None = None, *, append: bool = False) -> VecEnv:
    """Make the environment that an algorithm trains on.

    :param spec: What to make.
    :param monitor_dir: Folder for ``Monitor``'s records of environment ``i``, ``i.monitor.csv``: raw return,
        length and time of each episode. None writes none.
    :param append: Append to files that exist; otherwise they are overwritten.
    :return: ``spec.n_envs`` environments, seeded; reward noise, if any, is outermost.
    :raises UserError: As :func:`check_env`.
    """
    venv = _make_stack(spec, spec.n_envs, monitor_dir, append=append)
    noise = parse_noise(spec.noise)
    if noise is None:
        return venv
    return VecRewardNoise(venv, noise, seed_sequence(spec.seed, Stream.REWARD_NOISE))


def make_eval_env(spec: EnvSpec, n_envs: int = 10) -> VecEnv:
    """Make the environment that an algorithm is evaluated on.

    It differs from training in its episodes, has no reward noise, raw rewards instead of
    normalized ones, and fixed observation statistics: copy those of training with
    ``sync_envs_normalization(without_reward_noise(train_env), eval_env)``. On Atari an episode ends at
    each lost life here too; ``Monitor``'s entry in the infos, which SB3's ``evaluate_policy`` reads, has
    whole games and unclipped rewards.

    :param spec: What to make.
    :param n_envs: Environments side by side, each playing its share of the evaluation's episodes.
    :return: The environments, with streams of their own.
    :raises UserError: As :func:`check_env`.
    """
    return _make_stack(spec, n_envs, training=False)


def make_member_env(
    spec: EnvSpec,
    *,
    n_eval_envs: int | None = None,
    monitor_dir: str | None = None,
    append: bool = False,
) -> VecEnv:
    """Make the environments of one member of a population.

    They are those of training or evaluation without what a population does for all members at once: the
    check for numbers that are not finite, normalization and reward noise.

    :param spec: What to make.
    :param n_eval_envs: Environments side by side for evaluation; None makes those of training.
    :param monitor_dir: As for :func:`make_train_env`.
    :param append: As for :func:`make_train_env`.
    :return: The environments, seeded.
    :raises UserError: As :func:`check_env`.
    """
    spec = replace(spec, normalize=None)
    if n_eval_envs is None:
        return _make_stack(spec, spec.n_envs, monitor_dir, watch=False, append=append)
    return _make_stack(spec, n_eval_envs, training=False, watch=False)


def without_reward_noise(venv: VecEnv) -> VecEnv:
    """Take an outermost :class:`~srl.envs.vec_reward_noise.VecRewardNoise` off.

    SB3's ``sync_envs_normalization`` walks two stacks of wrappers in step, and evaluation has no noise.

    :return: The one below the noise, or ``venv`` itself where its outermost wrapper is another.
    """
    return venv.venv if isinstance(venv, VecRewardNoise) else venv


def _make_stack(
    spec: EnvSpec,
    n_envs: int,
    monitor_dir: str | None = None,
    training: bool = True,
    watch: bool = True,
    append: bool = False,
) -> VecEnv:
    """Make all wrappers but reward noise: the same ones, in the same order, for training and evaluation."""
    try:
        import_packages(spec.packages)
        native = spec.backend == "native"
        stream = Stream.TRAIN_ENV if training else Stream.EVAL_ENV
        sequences = [seed_sequence(spec.seed, stream, index) for index in range(n_envs)]
        limit = _episode_limit(spec) if training else eval_episode_limit(spec) or _episode_limit(spec)
        venv: VecEnv
        if native:
            venv = make_native(spec, n_envs, monitor_dir, limit)
            venv.start_streams(sequences)
        else:
            monitored = _make_monitored(spec, n_envs, monitor_dir, append, limit)
            monitored.start_streams(sequences)
            venv = monitored
        if watch:
            venv = VecCheckFinite(venv)
        # Native Atari games give stacked frames, with channels first, at less cost
        if spec.frame_stack > 1 and not (native and spec.atari):
            order = _channels_order(venv.observation_space)
            venv = VecFrameStack(venv, n_stack=spec.frame_stack, channels_order=order)
        if spec.normalize is not None:
            _check_normalised_keys(spec, venv.observation_space)
            venv = make_normalize(venv, training=training, **normalize_arguments(spec, training))
        # Adds VecTransposeImage below the noise exactly where SB3's algorithms would add it above.
        return BaseAlgorithm._wrap_env(venv, monitor_wrapper=False)
    except (UserError, OSError):  # a full disk is no mistake in the settings
        raise
    except Exception as error:
        # SB3's wrappers and environments' constructors refuse what does not go together in any way they like
        raise UserError(f"{spec.env_id} cannot be made with these settings: {error}") from error


def _channels_order(space: spaces.Space[Any]) -> Literal["first"] | None:
    """How frames are stacked: SB3 knows images of type uint8 alone, and would make others wider."""
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and not is_image_space(space):
        return "first" if np.argmin(space.shape) == 0 else None
    return None


def _check_normalised_keys(spec: EnvSpec, space: spaces.Space[Any]) -> None:
    """Check that the parts of a Dict observation space that are to be normalized exist and are Box spaces."""
    normalize = spec.normalize or {}
    if not isinstance(space, spaces.Dict) or not normalize.get("norm_obs", True):
        return
    keys = normalize.get("norm_obs_keys")
    boxes = [key for key, part in space.items() if isinstance(part, spaces.Box)]
    for key in space if keys is None else keys:
        if key not in space.spaces:
            raise UserError(
                f"normalize: norm_obs_keys names {key!r}, and {spec.env_id} has the observations "
                f"{', '.join(space)}.{nearest(str(key), space)}"
            )
        if key not in boxes:
            raise UserError(
                f"normalize: the observations {key!r} of {spec.env_id} are {space[key]}, and only Box spaces "
                f"can be normalized. Set norm_obs_keys to some of [{', '.join(boxes)}]."
            )


def normalize_arguments(spec: EnvSpec, training: bool) -> dict[str, Any]:
    """Return VecNormalize's arguments; evaluation reports raw rewards."""
    arguments = {"gamma": spec.gamma, **(spec.normalize or {})}
    return arguments if training else {**arguments, "norm_reward": False}


def _episode_limit(spec: EnvSpec) -> int | None:
    """Return ``max_episode_steps`` in the steps that ``Monitor`` counts, which are frames on Atari."""
    if spec.max_episode_steps is None:
        return None
    return spec.max_episode_steps * (ATARI_FRAME_SKIP if spec.atari else 1)


def eval_episode_limit(spec: EnvSpec) -> int | None:
    """Return the length at which ``eval_max_episode_steps`` truncates an episode of an evaluation.

    :return: In the steps that ``Monitor`` counts, which are frames on Atari; None if there is no limit, or
        the environment's own is not above it.
    """
    if spec.eval_max_episode_steps is None:
        return None
    entry, env_kwargs = registered(spec.env_id), spec.env_kwargs or {}
    chosen = _episode_limit(spec)
    own = [env_kwargs.get("max_episode_steps", entry.max_episode_steps) if chosen is None else chosen]
    limit = spec.eval_max_episode_steps
    if spec.atari:
        limit *= ATARI_FRAME_SKIP
        frames = "max_num_frames_per_episode"
        own.append(env_kwargs.get(frames, entry.kwargs[frames]))
    # Neither 0 nor -1 is a limit
    return None if any(steps is not None and 0 < steps <= limit for steps in own) else limit


def _make_monitored(
    spec: EnvSpec,
    n_envs: int,
    monitor_dir: str | None,
    append: bool = False,
    limit: int | None = None,
) -> SerialVecEnv:
    """Make the environments themselves, each in its Monitor, with its actions or frames preprocessed."""
    env_id, _ = resolve_env_id(spec.env_id)
    check_rom(env_id)
    env_kwargs = dict(spec.env_kwargs or {})
    if limit is not None:
        env_kwargs["max_episode_steps"] = limit  # of Gymnasium's TimeLimit, inside of Monitor
    if spec.atari:
        # AtariWrapper skips frames itself. The NoFrameskip games leave that to it; for the others
        # (ALE/Pong-v5 skips 4 frames, Pong-v4 2 to 4) SB3 would skip on top, and only one frame
        # in 16 would be seen. Sticky actions stay as the id has them: ALE draws them per frame either way.
        env_kwargs.setdefault("frameskip", 1)
    if is_atari(env_id):
        # Else each game prints the emulator's name and version
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    quiet_mujoco = without_deprecation_messages() if is_mujoco(env_id) else nullcontext()
    with explained_failures(env_id), quiet_mujoco, warnings.catch_warnings():
        # The version is the experiment's choice, not an oversight
        warnings.filterwarnings("ignore", message=".*is out of date")
        # SB3 asks for images, which not every environment has
        warnings.filterwarnings("ignore", message=".*render_mode='rgb_array'")
        venv = make_vec_env(
            env_id,
            n_envs=n_envs,
            # Given any, it draws none; the streams replace it
            seed=0,
            monitor_dir=monitor_dir,
            vec_env_cls=SerialVecEnv,
            wrapper_class=_preprocessing(spec),
            env_kwargs=env_kwargs,
            monitor_kwargs={"override_existing": not append},
        )
    assert isinstance(venv, SerialVecEnv)
    return venv


def _preprocessing(spec: EnvSpec) -> Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]:
    """Return what wraps each single environment, outside its Monitor."""
    wrappers = [(name, import_object(name), kwargs) for name, kwargs in spec.wrappers]

    def wrap(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        if isinstance(env.unwrapped, BipedalWalker):
            env = FreshWorld(env)
        if is_minatar(env):
            env = FreshGame(env)
        if spec.atari:
            env = AtariWrapper(env, frame_skip=ATARI_FRAME_SKIP)
        for name, wrapper, kwargs in wrappers:
            wrapped = wrapper(env, **kwargs)
            if not isinstance(wrapped, gym.Env):
                raise UserError(f"The wrapper {name} returns {type(wrapped).__name__}, no environment.")
            env = wrapped
        if spec.bins is not None:
            env = DiscretizeAction(env, spec.bins)
        try:
            check_supported(env.observation_space, env.action_space)
        except UserError as error:
            raise UserError(f"{spec.env_id}: {error}") from None
        return Replayable(env)

    return wrap
