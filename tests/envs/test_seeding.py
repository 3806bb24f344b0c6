"""Random streams are not shared between seeds, environments or purposes."""

from __future__ import annotations

import random
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO

from srl import SPPO
from srl.envs.make import make_train_env
from srl.envs.seeding import (
    Stream,
    seed_env,
    seed_globals,
    seed_sequence,
    seed_torch,
    small_seed,
    stream_rng,
)
from srl.envs.spec import EnvSpec
from srl.rundir.directory import RunDirectory
from srl.training.run import train_run
from srl.training.stacked.train import train_population
from tests.envs import lottery  # noqa: F401 (registers the environment)
from tests.small_runs import small_spec

SEEDS = [10_000, 10_001, 10_002, 1_010_000, 2_010_000]


def train_returns(path) -> list[float]:
    files = sorted((path / "monitor").glob("*.csv"))
    return [float(line.split(",")[0]) for file in files for line in file.read_text().splitlines()[2:]]


def lottery_spec(seed: int, **changes):
    return small_spec("sppo", "Lottery-v0", seed=seed, n_timesteps=128, eval_freq=64, **changes)


@pytest.mark.parametrize("population", [False, True], ids=["alone", "population"])
def test_training_and_evaluation_returns_of_adjacent_seeds_are_all_distinct(population, tmp_path):
    specs = [lottery_spec(seed, n_eval_episodes=10) for seed in SEEDS]
    paths = [tmp_path / str(spec.seed) for spec in specs]
    if population:
        train_population(specs, paths)
    else:
        for spec, path in zip(specs, paths, strict=True):
            train_run(spec, path)
    returns = []
    for path in paths:
        evaluations = RunDirectory(path).read_evaluations()["results"]
        assert evaluations.shape == (2, 10)
        returns += [*train_returns(path), *evaluations.ravel()]
    assert len(returns) > len(SEEDS) * 20
    assert len(np.unique(np.round(returns, 9))) == len(returns)


def test_environment_with_its_own_random_state_gets_distinct_streams():
    def first_prizes(seed: int, stream: Stream, index: int) -> list[float]:
        env = gym.make("Lottery-v0", legacy=True)
        seed_env(env, seed_sequence(seed, stream, index))
        prizes = []
        for _ in range(2):
            env.reset()
            prizes.append(env.unwrapped.prize)
        return prizes

    places = list(product(SEEDS, (Stream.TRAIN_ENV, Stream.EVAL_ENV), range(10)))
    prizes = [prize for place in places for prize in first_prizes(*place)]
    assert len(set(prizes)) == 2 * len(places)
    assert first_prizes(*places[3]) == prizes[6:8]


def test_streams_differ_across_seeds_names_and_indices():
    seeds = [*range(300), 2**20, 2**31 - 1, *SEEDS]
    starts = {
        seed_sequence(seed, stream, index).generate_state(4).tobytes()
        for seed in seeds
        for stream in Stream
        for index in range(20)
    }
    assert len(starts) == len(set(seeds)) * len(Stream) * 20


def test_torch_generators_use_full_stream_state_instead_of_32_bits():
    sequence = seed_sequence(7, Stream.ACTIONS)
    generator = th.Generator()
    seed_torch(generator, sequence)
    words = generator.get_state().numpy().view(np.uint64)[3:627]
    assert (words == np.random.MT19937(sequence).state["state"]["key"]).all()
    drawn = th.empty(8, dtype=th.int64).random_(0, 2**32, generator=generator)
    # NumPy's state has one word left; PyTorch uses the lower of two words for an integer
    assert drawn.tolist() == np.random.MT19937(sequence).random_raw(17)[2::2].tolist()


def test_global_generators_are_reproducible_and_distinct():
    def draws(seed: int) -> list[float]:
        seed_globals(seed_sequence(seed, Stream.SETUP))
        return [random.random(), float(np.random.random()), th.rand(1, dtype=th.float64).item()]

    assert draws(3) == draws(3)
    assert len({*draws(3), *draws(4)}) == 6


def test_reward_noise_of_a_run_uses_its_named_stream():
    venv = make_train_env(EnvSpec("Lottery-v0", seed=7, n_envs=2, noise="gaussian:0.5"))
    venv.reset()
    prizes = np.array(venv.get_attr("prize"), dtype=np.float32)
    _, rewards, _, _ = venv.step(np.zeros(2, dtype=int))
    noise = stream_rng(7, Stream.REWARD_NOISE).normal(0.0, 0.5, 2)
    assert np.allclose(rewards, prizes + noise)


@pytest.mark.parametrize("algorithm", [SPPO, PPO])
def test_seed_argument_of_algorithms_seeds_environments_like_sb3(algorithm):
    """Environment ``i`` is reset with ``seed + i``, regardless of its previous streams."""
    venv = make_train_env(EnvSpec("Lottery-v0", seed=7, n_envs=2))
    algorithm("MlpPolicy", venv, n_steps=8, batch_size=8, seed=5).learn(16)
    assert venv.get_attr("prize") == [np.random.default_rng(5 + index).uniform() for index in range(2)]


def test_seeds_for_cpp_environments_fit_in_a_c_int():
    seeds = [small_seed(seed_sequence(seed, Stream.TRAIN_ENV)) for seed in range(1000)]
    assert 0 <= min(seeds) <= max(seeds) < 2**31
    assert len(set(seeds)) == 1000
