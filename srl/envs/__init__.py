"""Environments: reward noise, discretized actions, and vectorized environments from a description."""

from srl.envs.discretize import DiscretizeAction
from srl.envs.make import EnvSpec, check_env, make_eval_env, make_train_env
from srl.envs.registration import resolve_env_id
from srl.envs.reward_noise import (
    GaussianNoise,
    RewardFlip,
    RewardNoise,
    RewardNoiseProcess,
    UniformNoise,
    VecRewardNoise,
    parse_noise,
)

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
