"""Noise on the rewards of training.

Byun and Perrault, "Symmetric Reinforcement Learning Loss for Robust Learning on Diverse Tasks and Model
Scales", ICML 2025 (arXiv 2405.17618), train with Gaussian noise of standard deviation 0.05 on continuous
tasks and with rewards flipped with probability 0.1 on Atari.

A process is a frozen dataclass with one field, its parameter. To add one, subclass
:class:`RewardNoiseProcess` and give it a ``name``, which adds it to :data:`NOISE_PROCESSES`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.core import ActType, ObsType
from gymnasium.utils import RecordConstructorArgs

from srl.errors import UserError, nearest

# Added to a run's seed, so that the noise shares no stream with other generators of the same seed, such as
# the environments' and the global ones.
NOISE_STREAM = 240517618

NOISE_PROCESSES: dict[str, type[RewardNoiseProcess]] = {}
"""Every noise process by its ``name``."""


class RewardNoiseProcess(ABC):
    """A noise distribution. Subclasses are frozen dataclasses with a single number as field."""

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls):
            NOISE_PROCESSES[cls.name] = cls

    @abstractmethod
    def apply(self, rewards: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw noise for each reward, independently.

        :param rewards: Rewards of a floating dtype, shape ``(n_envs,)`` or any other; not changed.
        :param rng: The random generator. The number of draws does not depend on the rewards.
        :return: A new array of the same shape and dtype.
        :raises TypeError: If ``rewards`` are integers and the noise is not.
        """

    @classmethod
    def form(cls) -> str:
        """Return the text form with the parameter's name, for example ``"gaussian:STD"``."""
        return f"{cls.name}:{_parameter_name(cls).upper()}"

    def __str__(self) -> str:
        """Return the text form, for example ``"gaussian:0.05"``, which :func:`parse_noise` reads."""
        return f"{self.name}:{getattr(self, _parameter_name(type(self)))!r}"

    def _check(self, at_most: float) -> None:
        """Make the parameter a float in [0, at_most], or raise :class:`~srl.errors.UserError`."""
        parameter = _parameter_name(type(self))
        value = getattr(self, parameter)
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and 0.0 <= value <= at_most):
            allowed = "a finite number >= 0" if math.isinf(at_most) else f"a number in [0, {at_most:g}]"
            raise UserError(f"Reward noise {self.form()}: {parameter} is {value!r} but must be {allowed}.")
        object.__setattr__(self, parameter, float(value))


@dataclass(frozen=True)
class GaussianNoise(RewardNoiseProcess):
    """``r`` becomes ``r + N(0, std^2)``.

    :param std: Standard deviation, in units of the training reward; finite, 0 or above.
    :raises UserError: If ``std`` is out of range.
    """

    std: float

    name: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        self._check(at_most=math.inf)

    def apply(self, rewards: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _add(rewards, rng.normal(0.0, self.std, rewards.shape))


@dataclass(frozen=True)
class UniformNoise(RewardNoiseProcess):
    """``r`` becomes ``r + U(-h, h)``.

    :param half_width: ``h``, in units of the training reward; finite, 0 or above.
    :raises UserError: If ``half_width`` is out of range.
    """

    half_width: float

    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        self._check(at_most=math.inf)

    def apply(self, rewards: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _add(rewards, rng.uniform(-self.half_width, self.half_width, rewards.shape))


@dataclass(frozen=True)
class RewardFlip(RewardNoiseProcess):
    """``r`` becomes ``1 - r`` with probability ``prob``.

    It is meant for Atari's clipped rewards: 0 becomes 1 and 1 becomes 0. By the published definition, -1
    becomes 2, which is not a clipped reward.

    :param prob: Probability of a flip, in [0, 1].
    :raises UserError: If ``prob`` is out of range.
    """

    prob: float

    name: ClassVar[str] = "flip"

    def __post_init__(self) -> None:
        self._check(at_most=1.0)

    def apply(self, rewards: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.where(rng.random(rewards.shape) < self.prob, 1 - rewards, rewards)


def parse_noise(text: str) -> RewardNoiseProcess | None:
    """Read a noise process from its text form.

    :param text: ``"none"``, or a process and its parameter: ``"gaussian:0.05"``, ``"uniform:0.1"``,
        ``"flip:0.1"``. ``str`` of the result is the canonical form.
    :return: The process, or None for ``"none"``.
    :raises UserError: If the name is unknown, or the parameter is missing, out of range or not the only one.
    """
    if text == "none":
        return None
    known = "none, " + ", ".join(process.form() for process in NOISE_PROCESSES.values())
    if not isinstance(text, str):
        raise UserError(f"Reward noise is {text!r} but must be a text, one of: {known}.")
    name, *parameters = text.split(":")
    if name not in NOISE_PROCESSES:
        hint = nearest(name, ["none", *NOISE_PROCESSES])
        raise UserError(f"Unknown reward noise {text!r}: it must be one of {known}.{hint}")
    process = NOISE_PROCESSES[name]
    if len(parameters) != 1:
        raise UserError(f"Reward noise {text!r} must have exactly one parameter: {process.form()}.")
    try:
        value = float(parameters[0])
    except ValueError:
        message = f"Reward noise {text!r}: {parameters[0]!r} is not a number in {process.form()}."
        raise UserError(message) from None
    return process(value)  # type: ignore[call-arg]


def is_unknown_process(text: str) -> bool:
    """Whether a text has the form of a process that is not registered, for example one of the user's."""
    found = re.fullmatch(r"([\w.+-]+):([\w.+-]+)", text)
    if found is None or found[1] in ("none", *NOISE_PROCESSES):
        return False
    try:
        return math.isfinite(float(found[2]))
    except ValueError:
        return False


class RewardNoise(gym.Wrapper[ObsType, ActType, ObsType, ActType], RecordConstructorArgs):
    """Add noise to the rewards of one environment.

    ``reset(seed=...)`` reseeds the noise together with the environment: the same seed and actions give the
    same rewards. ``reset()`` continues its stream.

    To log returns without noise, wrap ``Monitor(env)``. SB3's algorithms add a ``Monitor`` to an environment
    without one, outside of the noise.

    :param env: The environment whose rewards get noise.
    :param noise: A process, or its text as :func:`parse_noise` reads it; ``"none"`` and None disable the
        noise.
    :param seed: Seed of the noise until the first ``reset(seed=...)``, 0 or above. None takes fresh
        entropy.
    :raises UserError: If the noise or the seed is invalid.
    """

    def __init__(
        self, env: gym.Env[ObsType, ActType], noise: RewardNoiseProcess | str | None, seed: int | None = None
    ) -> None:
        self.noise = as_process(noise)
        # As text, since an environment's spec is written as JSON
        RecordConstructorArgs.__init__(self, noise=str(self.noise or "none"), seed=seed)
        gym.Wrapper.__init__(self, env)
        self.rng = noise_rng(seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        if seed is not None:
            self.rng = noise_rng(seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: ActType) -> tuple[ObsType, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.noise is None:
            return observation, float(reward), terminated, truncated, info
        clean = np.array(reward, dtype=np.float64)
        if clean.size != 1:
            raise UserError(
                f"A reward of the environment is an array of shape {clean.shape}, and must be a number."
            )
        noisy = self.noise.apply(clean.reshape(1), self.rng)
        return observation, float(noisy[0]), terminated, truncated, info


def _parameter_name(process: type[RewardNoiseProcess]) -> str:
    (parameter,) = dataclasses.fields(process)  # type: ignore[arg-type]
    return parameter.name


def _add(rewards: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Add in double precision and cast to the rewards' dtype, but not from fractions to integers."""
    noisy: np.ndarray = (rewards + noise).astype(rewards.dtype, casting="same_kind")
    return noisy


def as_process(noise: RewardNoiseProcess | str | None) -> RewardNoiseProcess | None:
    """Read the ``noise`` argument of a wrapper."""
    if noise is None or isinstance(noise, RewardNoiseProcess):
        return noise
    if not isinstance(noise, str):
        raise UserError(
            f"Reward noise is {noise!r} but must be a RewardNoiseProcess, such as GaussianNoise(0.1), or its "
            "text, such as 'gaussian:0.1'."
        )
    return parse_noise(noise)


def noise_rng(seed: int | np.random.SeedSequence | None) -> np.random.Generator:
    """Make a generator that is independent of other generators with the same seed."""
    if seed is None or isinstance(seed, np.random.SeedSequence):
        return np.random.default_rng(seed)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UserError(f"The seed of the reward noise is {seed!r} but must be a whole number, 0 or above.")
    return np.random.default_rng(np.random.SeedSequence([int(seed), NOISE_STREAM]))
