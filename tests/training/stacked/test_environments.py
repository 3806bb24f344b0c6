"""Members' environments and statistics are bitwise identical to those of SB3's wrappers."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from srl.envs.make import make_member_env
from srl.envs.spec import EnvSpec
from srl.training.stacked.environments import MemberEnvs, StackedNormalize, StackedRunningMeanStd
from srl.training.stacked.update import generalized_advantages
from tests.small_runs import BROKEN
from tests.training.stacked.small_envs import SMALL_ENVS

GAMMAS = (0.99, 0.9, 0.5)


def venvs(env, n_envs, seeds=(1, 2, 3)):
    return [make_member_env(EnvSpec(env, seed=seed, n_envs=n_envs)) for seed in seeds]


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(norm_obs=False),
        dict(norm_reward=False),
        dict(clip_obs=0.5, clip_reward=0.5, epsilon=1e-2),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("env", ["CartPole-v1", SMALL_ENVS + "Small-v0", SMALL_ENVS + "Table-v0"])
def test_observations_and_rewards_are_normalized_like_in_sb3(env, n_envs, options):
    theirs = [
        VecNormalize(venv, gamma=gamma, **options)
        for venv, gamma in zip(venvs(env, n_envs), GAMMAS, strict=True)
    ]
    envs = MemberEnvs(venvs(env, n_envs))
    ours = StackedNormalize(
        [VecNormalize(venv, gamma=gamma, **options) for venv, gamma in zip(envs.venvs, GAMMAS, strict=True)]
    )
    members = range(len(theirs))
    observations = ours.reset(envs.reset(members))
    for member in members:
        assert np.array_equal(observations[member], theirs[member].reset())
    n_ends = 0
    actions = np.random.default_rng(0).integers(2, size=(300, len(theirs), n_envs))
    for action in actions:
        observations, rewards, dones = envs.step(action, members)
        observations, rewards = ours.step(observations, rewards, dones, envs.infos)
        assert observations.dtype == rewards.dtype == np.float32
        n_ends += int(dones.sum())
        for member in members:
            expected = theirs[member].step(action[member])
            assert np.array_equal(observations[member], expected[0])
            assert np.array_equal(rewards[member], np.asarray(expected[1], dtype=np.float32))
            assert np.array_equal(dones[member], expected[2])
            for index in np.flatnonzero(dones[member]):
                last = [infos[index]["terminal_observation"] for infos in (envs.infos[member], expected[3])]
                assert np.array_equal(*last)
                assert last[0].dtype == np.float32
    assert n_ends > 20
    for wrapper, expected in zip(ours.export(), theirs, strict=True):
        pairs = [(wrapper.ret_rms, expected.ret_rms)]
        if expected.norm_obs:
            pairs.append((wrapper.obs_rms, expected.obs_rms))
        for mine, other in pairs:
            assert np.array_equal(mine.mean, other.mean)
            assert np.array_equal(mine.var, other.var)
            assert mine.count == other.count
    envs.close()


def test_normalizing_observations_does_not_update_statistics():
    envs = MemberEnvs(venvs("CartPole-v1", 2))
    normalize = StackedNormalize([VecNormalize(venv) for venv in envs.venvs])
    normalize.reset(envs.reset(range(3)))
    mean, var, count = normalize.obs_rms.mean.copy(), normalize.obs_rms.var.copy(), normalize.obs_rms.count
    raw = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    normalized = normalize.observations(raw)
    assert np.array_equal(normalize.obs_rms.mean, mean)
    assert np.array_equal(normalize.obs_rms.var, var)
    assert normalize.obs_rms.count == count
    for member in range(3):
        assert np.array_equal(normalize.observations(raw[member, 0], member), normalized[member, 0])
    envs.close()


def test_exported_statistics_do_not_change_with_further_training():
    envs = MemberEnvs(venvs("CartPole-v1", 1))
    normalize = StackedNormalize([VecNormalize(venv) for venv in envs.venvs])
    normalize.reset(envs.reset(range(3)))
    exported = [wrapper.obs_rms.mean.copy() for wrapper in normalize.export()]
    normalize.step(*envs.step(np.zeros((3, 1), dtype=int), range(3)), envs.infos)
    for wrapper, mean in zip(normalize._wrappers, exported, strict=True):
        assert np.array_equal(wrapper.obs_rms.mean, mean)
    envs.close()


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (17,)], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 17])
def test_running_statistics_match_sb3(n, shape):
    rng = np.random.default_rng(0)
    ours, theirs = StackedRunningMeanStd(5, shape), [RunningMeanStd(shape=shape) for _ in range(5)]
    for _ in range(100):
        batch = rng.normal(3, 10, size=(5, n, *shape)).astype(np.float32)
        ours.update(batch)
        for member, other in enumerate(theirs):
            other.update(batch[member])
    for member, other in enumerate(theirs):
        assert np.array_equal(ours.mean[member], other.mean)
        assert np.array_equal(ours.var[member], other.var)
        assert ours.count == other.count


def test_failed_member_stops_and_others_continue():
    fine = MemberEnvs(venvs(BROKEN + "NanRewardForOne-v0", 1, (0, 20)))
    envs = MemberEnvs(venvs(BROKEN + "NanRewardForOne-v0", 1, (0, 10, 20)))
    envs.reset(range(3))
    fine.reset(range(2))
    actions = np.zeros((3, 1), dtype=int)
    for step in range(1, 60):
        observations, rewards, dones = envs.step(actions, range(3))
        expected = fine.step(actions[:2], range(2))
        for ours, theirs in zip((observations, rewards, dones), expected, strict=True):
            assert np.array_equal(ours[[0, 2]], theirs)
        assert set(envs.failures) == ({1} if step >= 40 else set())
        if step >= 40:
            assert not observations[1].any()
            assert not rewards[1].any()
            assert not dones[1].any()
    assert "non-finite reward (NaN) in environment 0" in str(envs.failures[1])
    assert envs.venvs[1].envs[0].unwrapped.n_steps == 40
    envs.close()
    fine.close()


def test_only_selected_members_step():
    envs = MemberEnvs(venvs("CartPole-v1", 2))
    before = envs.reset(range(3)).copy()
    observations, rewards, _ = envs.step(np.zeros((3, 2), dtype=int), [0, 2])
    assert [bool((observations[member] == before[member]).all()) for member in range(3)] == [
        False,
        True,
        False,
    ]
    assert rewards.tolist() == [[1, 1], [0, 0], [1, 1]]
    envs.close()


def test_non_finite_action_fails_only_its_member():
    envs = MemberEnvs(venvs(SMALL_ENVS + "Levers-v0", 2))
    envs.reset(range(3))
    actions = np.zeros((3, 2, 2), dtype=np.float32)
    actions[1, 1, 0] = np.nan
    envs.step(actions, range(3))
    assert {member: str(error) for member, error in envs.failures.items()} == {
        1: "The policy gave a non-finite action (NaN) in environment 1."
    }
    envs.close()


@pytest.mark.parametrize("n_envs", [1, 4])
def test_advantages_and_returns_match_sb3(n_envs):
    rng = np.random.default_rng(0)
    n_steps, gamma, gae_lambda = 200, np.array([0.99, 0.9, 1.0, 0.0]), np.array([0.95, 1.0, 0.3, 0.5])
    shape = (n_steps, len(gamma), n_envs)
    rewards, values = (rng.normal(0, 10, shape).astype(np.float32) for _ in range(2))
    starts = (rng.random(shape) < 0.1).astype(np.float32)
    last_values = rng.normal(size=shape[1:]).astype(np.float32)
    dones = rng.random(shape[1:]) < 0.5
    advantages, returns = generalized_advantages(
        rewards, values, starts, last_values, dones, gamma, gae_lambda
    )
    assert advantages.dtype == returns.dtype == np.float32
    for member in range(len(gamma)):
        buffer = RolloutBuffer(
            n_steps,
            spaces.Box(-1, 1, (1,)),
            spaces.Discrete(2),
            gamma=float(gamma[member]),
            gae_lambda=float(gae_lambda[member]),
            n_envs=n_envs,
        )
        buffer.rewards, buffer.values = rewards[:, member].copy(), values[:, member].copy()
        buffer.episode_starts = starts[:, member].copy()
        buffer.compute_returns_and_advantage(th.tensor(last_values[member]), dones[member])
        assert np.array_equal(advantages[:, member], buffer.advantages)
        assert np.array_equal(returns[:, member], buffer.returns)
