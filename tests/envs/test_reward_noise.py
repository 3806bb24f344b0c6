"""Reward noise: text format, statistics, and that only the learner's rewards change."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper

from srl import SA2C
from srl.envs.reward_noise import (
    NOISE_PROCESSES,
    GaussianNoise,
    RewardFlip,
    RewardNoise,
    RewardNoiseProcess,
    UniformNoise,
    parse_noise,
)
from srl.envs.vec_reward_noise import VecRewardNoise
from srl.errors import UserError

# The protocol uses old versions, and Gymnasium's checker warns about any wrapper or unbounded space
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(different from the unwrapped version|is probably too):UserWarning"),
]

ALL = [GaussianNoise(0.5), UniformNoise(0.5), RewardFlip(0.5)]
MANY = 20_000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cartpoles(n_envs: int = 2, seed: int = 0) -> VecEnv:
    return make_vec_env("CartPole-v1", n_envs=n_envs, seed=seed)


def rollout(venv: VecEnv, steps: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
    """Reset and step with fixed actions; return observations, rewards, dones and infos."""
    observations, rewards, dones, infos = [venv.reset()], [], [], []
    for step in range(steps):
        observation, reward, done, info = venv.step(np.full(venv.num_envs, (step // 3) % 2))
        observations.append(observation)
        rewards.append(reward)
        dones.append(done)
        infos += info
    return np.array(observations), np.array(rewards), np.array(dones), infos


@pytest.mark.parametrize("process", ALL, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3,), (4, 2)])
def test_noise_keeps_shape_and_dtype_and_does_not_modify_input(process, dtype, shape):
    rewards = np.ones(shape, dtype=dtype)
    noisy = process.apply(rewards, rng())
    assert noisy.shape == shape
    assert noisy.dtype == dtype
    assert noisy is not rewards
    assert (rewards == 1).all()


@pytest.mark.parametrize("process", ALL, ids=str)
def test_noise_is_determined_by_rewards_and_generator(process):
    rewards = np.linspace(-1, 1, 50)
    assert (process.apply(rewards, rng(3)) == process.apply(rewards, rng(3))).all()
    assert (process.apply(rewards, rng(3)) != process.apply(rewards, rng(4))).any()


def test_gaussian_noise_has_zero_mean_and_given_standard_deviation():
    noise = GaussianNoise(0.05).apply(np.full(MANY, 3.0), rng()) - 3.0
    assert noise.mean() == pytest.approx(0.0, abs=0.002)
    assert noise.std() == pytest.approx(0.05, rel=0.03)
    assert np.abs(noise).max() > 0.15  # tails of the Gaussian


def test_uniform_noise_covers_its_interval():
    noise = UniformNoise(0.2).apply(np.full(MANY, 3.0), rng()) - 3.0
    assert -0.2 <= noise.min() < -0.199
    assert 0.199 < noise.max() <= 0.2
    assert noise.std() == pytest.approx(0.2 / np.sqrt(3), rel=0.03)


@pytest.mark.parametrize(("reward", "flipped"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 2.0)])
def test_flip_maps_reward_to_one_minus_reward_with_given_probability(reward, flipped):
    noisy = RewardFlip(0.1).apply(np.full(MANY, reward), rng())
    assert set(np.unique(noisy)) == {reward, flipped}
    assert (noisy == flipped).mean() == pytest.approx(0.1, abs=0.01)


def test_flip_with_probability_one_always_flips():
    assert (RewardFlip(1).apply(np.zeros(100), rng()) == 1).all()


@pytest.mark.parametrize("process", [GaussianNoise(0.5), UniformNoise(0.5)], ids=str)
def test_additive_noise_rejects_integer_rewards(process):
    with pytest.raises(TypeError):
        process.apply(np.array([1, 2]), rng())


@pytest.mark.parametrize("process_class", [GaussianNoise, UniformNoise, RewardFlip])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), True, "0.1", None])
def test_out_of_range_parameter_raises_user_error_with_value(process_class, value):
    with pytest.raises(UserError) as error:
        process_class(value)
    assert repr(value) in str(error.value)
    assert process_class.form() in str(error.value)


def test_flip_probability_above_one_raises_user_error_with_range():
    with pytest.raises(UserError, match=r"1\.5 but must be a number in \[0, 1\]"):
        RewardFlip(1.5)


@pytest.mark.parametrize(
    ("text", "process", "canonical"),
    [
        ("gaussian:0.05", GaussianNoise(0.05), "gaussian:0.05"),
        ("uniform:.5", UniformNoise(0.5), "uniform:0.5"),
        ("flip:0.10", RewardFlip(0.1), "flip:0.1"),
        ("flip:1", RewardFlip(1), "flip:1.0"),
    ],
)
def test_text_parses_to_process_and_back_to_canonical_text(text, process, canonical):
    assert parse_noise(text) == process
    assert str(process) == canonical
    assert parse_noise(canonical) == process


def test_text_none_parses_to_no_process():
    assert parse_noise("none") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gausian:0.05", "Did you mean gaussian?"),
        ("poisson:1", "none, gaussian:STD, uniform:HALF_WIDTH, flip:PROB"),
        ("gaussian", "exactly one parameter: gaussian:STD"),
        ("gaussian:", "'' is not a number"),
        ("flip:often", "'often' is not a number"),
        ("flip:0.1:0.2", "exactly one parameter"),
        ("none:0.1", "Unknown reward noise"),
        ("flip:2", r"[0, 1]"),
        ("gaussian:nan", "finite"),
        (0.1, "must be a text"),
        (None, "must be a text"),
    ],
)
def test_invalid_noise_text_raises_helpful_user_error(text, says):
    with pytest.raises(UserError) as error:
        parse_noise(text)
    assert says in str(error.value)


def test_new_process_needs_only_one_class():
    @dataclass(frozen=True)
    class Shift(RewardNoiseProcess):
        by: float
        name: ClassVar[str] = "shift"

        def apply(self, rewards, rng):
            return rewards + self.by

    try:
        assert parse_noise("shift:2") == Shift(2.0)
        assert str(Shift(2.0)) == "shift:2.0"
    finally:
        del NOISE_PROCESSES["shift"]


def test_vec_noise_changes_only_rewards():
    observations, rewards, dones, infos = rollout(cartpoles())
    noisy = rollout(VecRewardNoise(cartpoles(), "gaussian:0.05", seed=0))
    assert (noisy[0] == observations).all()
    assert (noisy[2] == dones).all()
    assert (noisy[1] != rewards).all()
    assert np.abs(noisy[1] - rewards).max() < 0.5
    assert noisy[1].dtype == rewards.dtype
    assert dones.any()  # otherwise the loop below compares nothing
    for clean_info, noisy_info in zip(infos, noisy[3], strict=True):
        assert clean_info.keys() == noisy_info.keys()
        if "episode" in clean_info:
            assert clean_info["episode"]["r"] == noisy_info["episode"]["r"]
            assert (clean_info["terminal_observation"] == noisy_info["terminal_observation"]).all()


def test_vec_noise_depends_on_seed():
    first, again, other = (
        rollout(VecRewardNoise(cartpoles(), "gaussian:0.05", seed=seed))[1] for seed in (7, 7, 8)
    )
    assert (first == again).all()
    assert (first != other).all()


def test_vec_noise_is_independent_across_environments_and_steps():
    noise = rollout(VecRewardNoise(cartpoles(), "gaussian:0.05", seed=0))[1] - 1.0
    assert len(np.unique(noise)) == noise.size
    generator = rng()
    many = np.array([GaussianNoise(1.0).apply(np.zeros(2), generator) for _ in range(4000)])
    assert abs(np.corrcoef(many.T)[0, 1]) < 0.05


def test_vec_noise_does_not_share_stream_with_default_rng_of_same_seed():
    venv = VecRewardNoise(cartpoles(), "gaussian:0.05", seed=5)
    assert venv.rng.random() != np.random.default_rng(5).random()


def test_vec_noise_continues_after_reset_and_restarts_with_seed():
    venv = VecRewardNoise(cartpoles(), "gaussian:0.05", seed=3)
    first, second = rollout(venv, 5)[1], rollout(venv, 5)[1]
    assert (first != second).all()
    assert venv.seed(3) == [3, 4]
    assert (rollout(venv, 5)[1] == first).all()


def test_vec_noise_without_seed_differs_each_time():
    first, second = (VecRewardNoise(cartpoles(1), "flip:0.1").rng.random() for _ in range(2))
    assert first != second


def test_vec_noise_continues_from_saved_generator_state():
    venv = VecRewardNoise(cartpoles(), "gaussian:0.05", seed=3)
    venv.reset()
    state = venv.rng.bit_generator.state
    ahead = venv.step(np.zeros(2, dtype=int))[1]
    other = VecRewardNoise(cartpoles(), "gaussian:0.05", seed=99)
    other.reset()
    other.rng.bit_generator.state = state
    assert (other.step(np.zeros(2, dtype=int))[1] == ahead).all()


def test_vec_noise_pickles_generator_and_accepts_new_environment():
    venv = VecRewardNoise(cartpoles(), "gaussian:0.05", seed=3)
    rollout(venv, 5)
    copy = pickle.loads(pickle.dumps(venv))
    copy.set_venv(cartpoles())
    venv.seed(None)  # affects only the next reset of the environments
    assert copy.noise == venv.noise
    assert (rollout(copy, 1)[1] == rollout(venv, 1)[1]).all()
    with pytest.raises(ValueError, match="already"):
        copy.set_venv(cartpoles())


def single_noise(env: gym.Env, noise: object) -> RewardNoise:
    return RewardNoise(env, noise)


def vec_noise(env: gym.Env, noise: object) -> VecRewardNoise:
    return VecRewardNoise(make_vec_env(lambda: env), noise)


@pytest.mark.parametrize("wrap", [single_noise, vec_noise])
@pytest.mark.parametrize("noise", [None, "none", GaussianNoise(0), UniformNoise(0), "flip:0"])
def test_zero_noise_passes_rewards_unchanged(wrap: Callable, noise):
    env = wrap(gym.make("LunarLander-v3"), noise)
    plain = gym.make("LunarLander-v3")
    vectorised = isinstance(env, VecRewardNoise)
    if vectorised:
        env.seed(3)
    env.reset(**({} if vectorised else {"seed": 3}))
    plain.reset(seed=3)
    for _ in range(5):
        reward = env.step(np.zeros(1, dtype=int) if vectorised else 0)[1]
        assert reward == (np.float32 if vectorised else float)(plain.step(0)[1])


@pytest.mark.parametrize("noise", [0.1, GaussianNoise])
@pytest.mark.parametrize("wrap", [RewardNoise, VecRewardNoise])
def test_wrapper_rejects_noise_that_is_neither_a_process_nor_a_text(wrap, noise):
    env = gym.make("CartPole-v1") if wrap is RewardNoise else make_vec_env("CartPole-v1")
    with pytest.raises(UserError, match=r"must be a RewardNoiseProcess, .* or its text") as error:
        wrap(env, noise)
    assert repr(noise) in str(error.value)


@pytest.mark.parametrize("seed", [-1, True, 1.5])
def test_invalid_noise_seed_raises_user_error(seed):
    with pytest.raises(UserError, match="seed of the reward noise"):
        VecRewardNoise(cartpoles(1), "flip:0.1", seed=seed)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLanderContinuous-v3", "InvertedDoublePendulum-v4"])
@pytest.mark.parametrize("process", ALL, ids=str)
def test_wrapped_environment_passes_gymnasium_checker(env_id, process):
    gymnasium_check_env(RewardNoise(gym.make(env_id), process), skip_render_check=True)


def test_single_noise_restarts_with_reset_seed_and_continues_without():
    env = RewardNoise(gym.make("CartPole-v1"), "gaussian:0.05")

    def rewards(**reset: int) -> list[float]:
        env.reset(**reset)
        return [env.step(0)[1] for _ in range(4)]

    first = rewards(seed=5)
    assert all(isinstance(reward, float) and reward != 1.0 for reward in first)
    assert rewards(seed=5) == first
    assert rewards(seed=6) != first
    assert rewards() != first


def test_single_and_vectorized_noise_of_one_environment_match():
    env = RewardNoise(gym.make("CartPole-v1"), "gaussian:0.05", seed=5)
    env.reset()
    venv = VecRewardNoise(cartpoles(1), "gaussian:0.05", seed=5)
    venv.reset()
    assert env.step(0)[1] == pytest.approx(venv.step(np.zeros(1, dtype=int))[1][0], abs=1e-6)


def test_single_noise_is_recreated_from_its_spec():
    env = RewardNoise(gym.make("CartPole-v1"), GaussianNoise(0.05), seed=5)
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    copy = gym.make(spec)
    assert isinstance(copy, RewardNoise)
    assert copy.noise == env.noise
    env.reset()
    copy.reset()
    assert copy.step(0)[1] == env.step(0)[1]


class IntegerRewards(VecEnvWrapper):
    """Returns rewards with an integer dtype, like SubprocVecEnv if no reward is fractional."""

    def __init__(self, venv: VecEnv, dtype: type) -> None:
        super().__init__(venv)
        self.dtype = dtype

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards.astype(self.dtype), dones, infos


@pytest.mark.parametrize("process", ALL, ids=str)
@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.uint8])
def test_integer_rewards_are_converted_to_float_before_noise(process, dtype):
    ours, theirs = (
        VecRewardNoise(IntegerRewards(cartpoles(), dtype), process, 0),
        VecRewardNoise(cartpoles(), process, 0),
    )
    ours, theirs = rollout(ours), rollout(theirs)
    assert ours[1].dtype == np.float32
    assert (ours[1] == theirs[1]).all()


@pytest.mark.slow
def test_subproc_environments_with_integer_rewards_train():
    env = SubprocVecEnv([lambda: gym.make("FrozenLake-v1")] * 2)
    try:
        SA2C("MlpPolicy", VecRewardNoise(env, "gaussian:0.1", 0), device="cpu").learn(40)
    finally:
        env.close()


@pytest.mark.parametrize(
    "reward", [1, np.int64(1), True, np.array([1.0]), np.array(1.0), np.float32(1)], ids=repr
)
def test_noisy_reward_of_single_environment_is_a_float(reward):
    env = gym.wrappers.TransformReward(gym.make("CartPole-v1").unwrapped, lambda _: reward)
    noisy = RewardNoise(env, UniformNoise(0.25), 0)
    noisy.reset(seed=0)
    value = noisy.step(0)[1]
    assert type(value) is float
    assert 0.75 <= value <= 1.25


def test_returns_of_monitor_inside_of_the_noise_have_no_noise():
    env = RewardNoise(Monitor(gym.make("CartPole-v1")), "gaussian:5", seed=0)
    model = SA2C("MlpPolicy", env, n_steps=64, seed=0).learn(128)
    assert len(model.ep_info_buffer) > 1
    assert all(episode["r"] == episode["l"] for episode in model.ep_info_buffer)


def test_array_reward_of_single_environment_is_rejected():
    noisy = RewardNoise(
        gym.wrappers.TransformReward(gym.make("CartPole-v1").unwrapped, lambda _: np.zeros(2)), ALL[0]
    )
    noisy.reset(seed=0)
    with pytest.raises(UserError, match=r"reward .* of shape \(2,\)"):
        noisy.step(0)
