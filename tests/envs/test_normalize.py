"""VecNormalize with faster running averages matches SB3."""

import pickle

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from srl.envs.normalize import make_normalize
from tests.test_algorithms import RandomEnv


def play(venv, n_steps=50):
    venv.seed(0)
    played = [venv.reset()]
    for _ in range(n_steps):
        observations, rewards, _, infos = venv.step(np.zeros(venv.num_envs, dtype=int))
        played += [observations, rewards, *(info.get("terminal_observation", 0) for info in infos)]
    return played


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("options", [{}, dict(norm_obs=False), dict(norm_reward=False, gamma=0.9)])
def test_normalized_values_and_saved_statistics_match_sb3(n_envs, options, tmp_path):
    stacks = [
        make(DummyVecEnv([lambda: RandomEnv(spaces.Discrete(2))] * n_envs), **options)
        for make in (make_normalize, VecNormalize)
    ]
    for ours, theirs in zip(*map(play, stacks), strict=True):
        assert np.array_equal(ours, theirs)
    saved = []
    for index, stack in enumerate(stacks):
        stack.save(tmp_path / str(index))
        saved.append(pickle.loads((tmp_path / str(index)).read_bytes()))
    for name in ("ret_rms",) if options.get("norm_obs") is False else ("ret_rms", "obs_rms"):
        ours, theirs = (getattr(stack, name) for stack in saved)
        assert type(ours) is RunningMeanStd
        for part in ("mean", "var", "count"):
            assert type(getattr(ours, part)) is type(getattr(theirs, part))
            assert np.array_equal(getattr(ours, part), getattr(theirs, part))
