"""Make vectorized environments from their description.

From the inside out: Gymnasium's environment, ``Monitor`` (raw rewards, whole episodes), the Atari
preprocessing, the user's wrappers, discretized actions, :class:`~srl.envs.vector.SerialVecEnv`,
:class:`~srl.envs.finite.VecCheckFinite`, ``VecFrameStack``, ``VecNormalize``, ``VecTransposeImage``, and in
training :class:`~srl.envs.vec_reward_noise.VecRewardNoise`. For native environments,
:mod:`srl.envs.native_atari` replaces everything inside ``VecCheckFinite``, and stacks and transposes frames.
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

from srl.envs.discretize import DiscretizeAction
from srl.envs.finite import VecCheckFinite
from srl.envs.fresh import FreshGame, FreshWorld, is_minatar
from srl.envs.mujoco_log import without_deprecation_messages
from srl.envs.native_atari import make_native
from srl.envs.normalize import make_normalize
from srl.envs.registration import (
    check_rom,
    explained_failures,
    import_object,
    import_packages,
    is_atari,
    is_lunar_lander,
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

#: Frames per step of the agent in SB3's AtariWrapper.
ATARI_FRAME_SKIP = 4


def check_env(spec: EnvSpec) -> spaces.Space[Any]:
    """Make one environment like :func:`make_train_env`, to find mistakes before a run starts.

    :return: The action space for the algorithm.
    :raises UserError: If the environment is unknown or withdrawn, lacks a package or a ROM, does not
        accept ``env_kwargs``, or does not fit the bins, the frame stack or the normalization.
    """
    venv = _make_stack(spec, n_envs=1)
    venv.close()
    return venv.action_space


def make_train_env(spec: EnvSpec, monitor_dir: str | None = None, *, append: bool = False) -> VecEnv:
    """Make the environment that an algorithm trains on.

    :param spec: The description of the environment.
    :param monitor_dir: Folder for ``Monitor``'s records of environment ``i``, ``i.monitor.csv``: raw return,
        length and time of each episode. None writes no records.
    :param append: Append to existing files instead of overwriting them.
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

    It differs from training in its episodes, has no reward noise, raw rewards instead of normalized ones, and
    fixed observation statistics: copy those of training with
    ``sync_envs_normalization(without_reward_noise(train_env), eval_env)``. Atari episodes end at
    each lost life, as in training; ``Monitor``'s entry in the infos, which SB3's ``evaluate_policy`` reads,
    has whole games and unclipped rewards.

    :param spec: The description of the environment.
    :param n_envs: Number of environments, which share the evaluation's episodes.
    :return: The environments, with their own random streams.
    :raises UserError: As :func:`check_env`.
    """
    return _make_stack(spec, n_envs, training=False)


def make_member_env(
    spec: EnvSpec, *, n_eval_envs: int | None = None, monitor_dir: str | None = None, append: bool = False
) -> VecEnv:
    """Make the environments of one member of a population.

    They have no check for non-finite numbers, no normalization and no reward noise: a population computes
    these for all members at once.

    :param spec: The description of the environment.
    :param n_eval_envs: Number of environments for evaluation; None makes the training environments.
    :param monitor_dir: As for :func:`make_train_env`.
    :param append: As for :func:`make_train_env`.
    :return: The environments, seeded.
    :raises UserError: As :func:`check_env`.
    """
    spec = replace(spec, normalize=None)
    if n_eval_envs is None:
        return _make_stack(spec, spec.n_envs, monitor_dir, check_finite=False, append=append)
    return _make_stack(spec, n_eval_envs, training=False, check_finite=False)


def without_reward_noise(venv: VecEnv) -> VecEnv:
    """Remove an outermost :class:`~srl.envs.vec_reward_noise.VecRewardNoise`.

    SB3's ``sync_envs_normalization`` walks two stacks of wrappers in parallel, and evaluation has no noise.

    :return: The environment below the noise, or ``venv`` if its outermost wrapper is another one.
    """
    return venv.venv if isinstance(venv, VecRewardNoise) else venv


def _make_stack(
    spec: EnvSpec,
    n_envs: int,
    monitor_dir: str | None = None,
    training: bool = True,
    check_finite: bool = True,
    append: bool = False,
) -> VecEnv:
    """Make all wrappers except reward noise, in the same order for training and evaluation."""
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
        if check_finite:
            venv = VecCheckFinite(venv)
        # Native Atari games stack frames themselves, channels first
        if spec.frame_stack > 1 and not (native and spec.atari):
            order = _channels_order(venv.observation_space)
            venv = VecFrameStack(venv, n_stack=spec.frame_stack, channels_order=order)
        if spec.normalize is not None:
            _check_normalized_keys(spec, venv.observation_space)
            venv = make_normalize(venv, training=training, **normalize_arguments(spec, training))
        # Adds VecTransposeImage below the noise, if SB3's algorithms would add it above
        return BaseAlgorithm._wrap_env(venv, monitor_wrapper=False)
    except (UserError, OSError):  # a full disk is not a mistake in the settings
        raise
    except Exception as error:
        # SB3's wrappers and constructors of environments raise various exceptions on invalid combinations
        raise UserError(f"{spec.env_id} cannot be made with these settings: {error}") from error


def _channels_order(space: spaces.Space[Any]) -> Literal["first"] | None:
    """The axis on which frames are stacked: SB3 recognizes only images of type uint8."""
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and not is_image_space(space):
        return "first" if np.argmin(space.shape) == 0 else None
    return None


def _check_normalized_keys(spec: EnvSpec, space: spaces.Space[Any]) -> None:
    """Check that the normalized parts of a Dict observation space exist and are Box spaces."""
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
    """Return ``max_episode_steps`` in the unit of ``Monitor``, which is frames on Atari."""
    if spec.max_episode_steps is None:
        return None
    return spec.max_episode_steps * (ATARI_FRAME_SKIP if spec.atari else 1)


def eval_episode_limit(spec: EnvSpec) -> int | None:
    """Return the length at which ``eval_max_episode_steps`` truncates an episode of an evaluation.

    :return: In the unit of ``Monitor``, which is frames on Atari; None if there is no limit, or the limit of
        the environment is not larger.
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
    # 0 and -1 mean no limit
    return None if any(steps is not None and 0 < steps <= limit for steps in own) else limit


def _make_monitored(
    spec: EnvSpec, n_envs: int, monitor_dir: str | None, append: bool = False, limit: int | None = None
) -> SerialVecEnv:
    """Make the environments, each with its Monitor and preprocessing."""
    env_id, _ = resolve_env_id(spec.env_id)
    check_rom(env_id)
    env_kwargs = dict(spec.env_kwargs or {})
    if limit is not None:
        env_kwargs["max_episode_steps"] = limit  # of Gymnasium's TimeLimit, inside of Monitor
    if spec.atari:
        # AtariWrapper skips frames. NoFrameskip games do not, others do (ALE/Pong-v5 skips 4 frames, Pong-v4
        # 2 to 4), and with both only one frame in 16 would be seen. Sticky actions stay as in the id: ALE
        # draws them per frame in any case.
        env_kwargs.setdefault("frameskip", 1)
    if is_lunar_lander(env_id) and not spec.renders and not spec.wrappers:
        # SB3 sets a render mode by default. With one, its engines emit bodies, which have no effect on it,
        # but slow it down, and disappear only when images are made.
        env_kwargs.setdefault("render_mode", None)
    if is_atari(env_id):
        # Otherwise each game prints the emulator's name and version
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    quiet_mujoco = without_deprecation_messages() if is_mujoco(env_id) else nullcontext()
    with explained_failures(env_id), quiet_mujoco, warnings.catch_warnings():
        # The experiment chooses the version
        warnings.filterwarnings("ignore", message=".*is out of date")
        # SB3 asks for images, which not all environments render
        warnings.filterwarnings("ignore", message=".*render_mode='rgb_array'")
        venv = make_vec_env(
            env_id,
            n_envs=n_envs,
            # Without a seed, SB3 would draw one; the streams replace it
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
    """Return the function that wraps each single environment outside its Monitor."""
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
