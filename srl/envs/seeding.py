"""All random streams of a run, derived from the run's seed.

A stream is ``numpy.random.SeedSequence(seed, spawn_key=(stream, index))``: streams of different seeds, names
or indices are independent. ``SPPO(seed=...)`` in Python code uses SB3's seeding instead.
"""

from __future__ import annotations

import random
from enum import IntEnum
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.env_util import unwrap_wrapper

from srl.envs.generators import env_generator, read_generator


class Stream(IntEnum):
    """The purposes of random numbers in a run.

    The numbers are part of the definition of a run's result: a new stream takes a new number, and the number
    of a removed stream is not reused.
    """

    #: A training environment; the index is its position.
    TRAIN_ENV = 0
    #: An evaluation environment; the index is its position.
    EVAL_ENV = 1
    #: Noise on the rewards of training.
    REWARD_NOISE = 2
    #: Sign flips of advantages.
    ADVANTAGE_FLIPS = 3
    #: Initial weights of the networks.
    WEIGHTS = 4
    #: Actions in training.
    ACTIONS = 5
    #: The order of samples in minibatches.
    MINIBATCHES = 6
    #: Actions in an evaluation; the index counts evaluations.
    EVAL_ACTIONS = 7
    #: Constructors of environments that draw from global generators; index 0 for training, 1 for evaluation.
    SETUP = 8
    #: Prompts for a language model; the index counts iterations. For language models the index of
    #: REWARD_NOISE, ACTIONS (sampled tokens) and MINIBATCHES counts iterations too.
    PROMPTS = 9
    #: Texts of the offline task; the index is their purpose.
    TEXTS = 10


def seed_sequence(seed: int, stream: Stream, index: int = 0) -> np.random.SeedSequence:
    """Return the seed sequence of a stream.

    :param seed: Seed of the run, 0 or above.
    :param stream: The purpose.
    :param index: The number of the stream among those of the same purpose.
    """
    return np.random.SeedSequence(seed, spawn_key=(stream, index))


def stream_rng(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """Return a new generator at the start of a stream; the parameters are those of :func:`seed_sequence`."""
    return np.random.default_rng(seed_sequence(seed, stream, index))


def small_seed(sequence: np.random.SeedSequence) -> int:
    """Return a seed in [0, 2^31) for a generator that takes no larger one, such as a C++ environment's."""
    return int(sequence.generate_state(1)[0] >> 1)


def seed_env(env: gym.Env[Any, Any], sequence: np.random.SeedSequence) -> None:
    """Start an environment's random stream; the next ``reset()`` draws its first numbers.

    ``reset(seed=...)`` seeds all generators of the environment with 31 bits, which any environment accepts.
    If ``np_random`` is a NumPy Generator, as in Gymnasium's own environments, a RandomState or Python's
    Random, it then gets the whole stream, so that no two environments of any two seeds share an episode.
    """
    seed = small_seed(sequence)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    life: Any = unwrap_wrapper(env, EpisodicLifeEnv)
    if life is not None:
        # Otherwise the next reset would continue the game that this reset has started
        life.was_real_done = True
    generator = env_generator(env)
    if isinstance(generator, np.random.Generator):
        env.unwrapped.np_random = np.random.default_rng(sequence)
    elif read_generator(generator) is None:
        return  # of another type, or shared by the whole process
    elif isinstance(generator, np.random.RandomState):
        # In place, since the environment may have other references to it
        generator.set_state(_mersenne_twister(sequence))
    elif isinstance(generator, random.Random):
        generator.seed(_large_seed(sequence))


def seed_torch(generator: th.Generator, sequence: np.random.SeedSequence) -> None:
    """Start a stream in a generator of PyTorch."""
    if generator.device.type == "cpu":
        generator.set_state(_torch_cpu_state(sequence))
    else:
        generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


def seed_numpy(sequence: np.random.SeedSequence) -> None:
    """Start a stream in NumPy's global generator, from which SB3 draws the order of minibatches."""
    np.random.set_state(_mersenne_twister(sequence))  # noqa: NPY002


def seed_globals(sequence: np.random.SeedSequence, device: th.device | str = "cpu") -> None:
    """Start a stream in the global generators: PyTorch's gets the stream, NumPy's and Python's its children.

    :param sequence: The seed sequence of the stream.
    :param device: The device of the run, whose generator is seeded too.
    """
    children = np.random.SeedSequence(sequence.entropy, spawn_key=sequence.spawn_key).spawn(2)
    seed_torch(th.default_generator, sequence)
    device = th.device(device)
    # Without a GPU, SB3 uses the CPU instead
    if device.type == "cuda" and th.cuda.is_available():
        index = th.cuda.current_device() if device.index is None else device.index
        th.cuda.init()  # type: ignore[no-untyped-call]
        seed_torch(th.cuda.default_generators[index], sequence)
    seed_numpy(children[0])
    random.seed(_large_seed(children[1]))


def _large_seed(sequence: np.random.SeedSequence) -> int:
    return int.from_bytes(sequence.generate_state(8).tobytes(), "little")


def _mersenne_twister(sequence: np.random.SeedSequence) -> dict[str, Any]:
    return dict(np.random.MT19937(sequence).state)


def _torch_cpu_state(sequence: np.random.SeedSequence) -> th.Tensor:
    """Return the state of PyTorch's Mersenne Twister for a stream.

    ``manual_seed`` uses 32 bits of a seed, too few to separate the streams of all seeds. The words of the
    state are therefore those of NumPy's Mersenne Twister for the stream.
    """
    words = _mersenne_twister(sequence)["state"]["key"]
    # A header of three numbers, the words as 64-bit numbers, and cached normal draws
    state = th.Generator().manual_seed(0).get_state().numpy().view(np.uint64).copy()
    state[3 : 3 + len(words)] = words
    return th.from_numpy(state.view(np.uint8))
