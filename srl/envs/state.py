"""Read and restore the state of a vectorized environment as plain data.

The state of wrappers is copied; environments are replayed, see :mod:`srl.envs.replay`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from srl.envs.replay import NotRestorable, Replayable
from srl.envs.vec_reward_noise import VecRewardNoise


def env_state(venv: VecEnv) -> dict[str, Any]:
    """Read the state of an environment.

    :param venv: From a function of :mod:`srl.envs.make`, and reset.
    :return: Numbers, strings, arrays, and lists and mappings of these.
    :raises NotRestorable: For environments that do not expose their state, such as native ones.
    """
    state: dict[str, Any] = {}
    for layer in _layers(venv):
        if isinstance(layer, VecRewardNoise):
            state["noise"] = copy.deepcopy(layer.rng.bit_generator.state)
        elif isinstance(layer, VecNormalize):
            state["normalize"] = normalize_state(layer)
        elif isinstance(layer, VecFrameStack):
            state["frames"] = copy.deepcopy(layer.stacked_obs.stacked_obs)
        elif isinstance(layer, DummyVecEnv):
            state["histories"] = [cast(Replayable[Any, Any], env).history() for env in layer.envs]
    if "histories" not in state:
        raise NotRestorable(f"{type(venv.unwrapped).__name__} does not expose the state of its environments.")
    return state


def restore_env(venv: VecEnv, state: dict[str, Any]) -> None:
    """Restore the state of an environment.

    :param venv: A new environment of the same kind, reset once.
    :param state: From :func:`env_state`.
    :raises NotRestorable: If the replay does not reach the state.
    """
    for layer in _layers(venv):
        if isinstance(layer, VecRewardNoise):
            layer.rng.bit_generator.state = state["noise"]
        elif isinstance(layer, VecNormalize):
            _restore_normalize(layer, state["normalize"])
        elif isinstance(layer, VecFrameStack):
            layer.stacked_obs.stacked_obs = copy.deepcopy(state["frames"])
        elif isinstance(layer, DummyVecEnv):
            for env, history in zip(layer.envs, state["histories"], strict=True):
                cast(Replayable[Any, Any], env).replay(history)


def _layers(venv: VecEnv) -> Iterator[VecEnv]:
    """The environment and those that it wraps, the outermost first."""
    yield venv
    while isinstance(venv, VecEnvWrapper):
        venv = venv.venv
        yield venv


def _averages(layer: VecNormalize) -> dict[str, RunningMeanStd]:
    averages = {"returns": layer.ret_rms}
    if layer.norm_obs:
        obs_rms = layer.obs_rms
        averages |= (
            {f"observations.{key}": value for key, value in obs_rms.items()}
            if isinstance(obs_rms, dict)
            else {"observations": obs_rms}
        )
    return averages


def normalize_state(layer: VecNormalize) -> dict[str, Any]:
    """The statistics of a VecNormalize, part of :func:`env_state`."""
    return {
        "averages": {
            name: {"mean": np.array(average.mean), "var": np.array(average.var), "count": average.count}
            for name, average in _averages(layer).items()
        },
        "returns": layer.returns.copy(),
    }


def _restore_normalize(layer: VecNormalize, state: dict[str, Any]) -> None:
    averages = _averages(layer)
    for name, values in state["averages"].items():
        average = averages[name]
        # Scalars instead of arrays without dimensions, as after SB3's first update
        average.mean, average.var = values["mean"].copy()[()], values["var"].copy()[()]
        average.count = values["count"]
    layer.returns = state["returns"].copy()
