"""Environments: reward noise, discretized actions, and vectorized environments from a description."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from srl.errors import MissingExtra

if TYPE_CHECKING:
    from srl.envs.discretize import DiscretizeAction
    from srl.envs.make import check_env, make_eval_env, make_train_env
    from srl.envs.registration import resolve_env_id
    from srl.envs.reward_noise import (
        GaussianNoise,
        RewardFlip,
        RewardNoise,
        RewardNoiseProcess,
        UniformNoise,
        parse_noise,
    )
    from srl.envs.spec import EnvSpec
    from srl.envs.vec_reward_noise import VecRewardNoise

_MODULES = {
    "DiscretizeAction": "discretize",
    "EnvSpec": "spec",
    "GaussianNoise": "reward_noise",
    "RewardFlip": "reward_noise",
    "RewardNoise": "reward_noise",
    "RewardNoiseProcess": "reward_noise",
    "UniformNoise": "reward_noise",
    "VecRewardNoise": "vec_reward_noise",
    "check_env": "make",
    "make_eval_env": "make",
    "make_train_env": "make",
    "parse_noise": "reward_noise",
    "resolve_env_id": "registration",
}

__all__ = [
    "DiscretizeAction",
    "EnvSpec",
    "GaussianNoise",
    "RewardFlip",
    "RewardNoise",
    "RewardNoiseProcess",
    "UniformNoise",
    "VecRewardNoise",
    "check_env",
    "make_eval_env",
    "make_train_env",
    "parse_noise",
    "resolve_env_id",
]


def __getattr__(name: str) -> Any:
    # Reading specs needs no torch; the wrappers of vectorized environments import it through SB3
    if name in _MODULES:
        try:
            module = import_module(f"srl.envs.{_MODULES[name]}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "srl":
                raise
            raise MissingExtra(f"srl.envs.{name}", error, "experiments") from error
        return getattr(module, name)
    raise AttributeError(f"module 'srl.envs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
