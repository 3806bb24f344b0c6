"""Environments that each break in one way; importing this module registers them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from srl.envs.seeding import Stream, seed_sequence, small_seed


class Fine(gym.Env):
    """Episodes of 8 steps with a reward of 1 per step; counts all steps over all episodes."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-10.0, 10.0, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.n_steps = 0

    def observe(self) -> np.ndarray:
        return np.array([self.n_steps % 8, 1.0], dtype=np.float32)

    def reward(self) -> float:
        return 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        self.n_steps += 1
        return self.observe(), self.reward(), False, self.n_steps % 8 == 0, {}


class NanReward(Fine):
    """The 40th reward is NaN."""

    def reward(self) -> float:
        return float("nan") if self.n_steps == 40 else 1.0


class InfObservation(Fine):
    """The 36th observation contains infinity."""

    def observe(self) -> np.ndarray:
        return super().observe() * (np.inf if self.n_steps == 36 else 1)


class NanInEvaluation(Fine):
    """The 13th reward is NaN: in the second evaluation, with 8 steps per evaluation every 4 steps."""

    def reward(self) -> float:
        return float("nan") if self.n_steps == 13 else 1.0


class Raises(Fine):
    """Raises an exception in the 20th step."""

    def reward(self) -> float:
        if self.n_steps == 20:
            raise KeyError("a | pipe, <b>bold</b> and\na second line")
        return 1.0


class Killed(Fine):
    """The process is killed in the 20th step, like by the out-of-memory killer."""

    def reward(self) -> float:
        if self.n_steps == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0


class Once(Fine):
    """Breaks in the 40th step of the first attempt of a sweep's run, but not in later attempts."""

    def happens(self) -> None:
        raise NotImplementedError

    def reward(self) -> float:
        # A sweep redirects the output of its processes to the run directory
        log = Path(os.readlink("/proc/self/fd/1"))
        mark = log.with_name("mark")
        if self.n_steps == 40 and log.name == "output.log" and not mark.exists():
            mark.touch()
            self.happens()
        return 1.0


class HangsOnce(Once):
    """The simulator hangs."""

    def happens(self) -> None:
        while True:
            time.sleep(1)


class WaitsOnce(Once):
    """Waits for a file named ``go`` in the run directory."""

    def happens(self) -> None:
        # The folder may be renamed in the meantime
        while not Path(os.readlink("/proc/self/fd/1")).with_name("go").exists():
            time.sleep(0.1)


class KilledOnce(Once):
    """The system kills the process."""

    def happens(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class RaisesOnce(Once):
    """The simulator crashes."""

    def happens(self) -> None:
        raise ConnectionError("the simulator is gone")


class CannotBeMade(Fine):
    """The simulator does not start."""

    def __init__(self, render_mode: str | None = None) -> None:
        raise RuntimeError("no simulator here")


class GlobalRandom(Fine):
    """Draws from NumPy's global generator, like old environments."""

    def observe(self) -> np.ndarray:
        return np.random.uniform(-1, 1, 2).astype(np.float32)


class HugeReward(Fine):
    """Finite rewards with infinite squares: the loss of the first update is infinite."""

    def reward(self) -> float:
        return 1e30


class NoisyScore(Fine):
    """The reward is always 0, so that noise is visible."""

    def reward(self) -> float:
        return 0.0


class BreaksForOne(Fine):
    """Breaks in one of its methods for one seed only.

    :param method: ``"observe"``, ``"reset"`` or ``"reward"``.
    :param error: ``"nan"``, ``"inf"`` or ``"raises"``.
    :param step: Step at which it breaks; for ``"reset"``, the first step at which resets break.
    :param in_evaluation: Break in evaluations instead of training.
    """

    #: Seed of the run that breaks.
    SEED = 10

    def __init__(
        self, method: str, error: str, step: int, in_evaluation: bool = False, render_mode: str | None = None
    ) -> None:
        super().__init__(render_mode)
        self.method, self.error, self.at_step = method, error, step
        stream = Stream.EVAL_ENV if in_evaluation else Stream.TRAIN_ENV
        # The first environment of the run with that seed, and the second one of the run before it
        places = ((self.SEED, 0), (self.SEED - 1, 1))
        self.bad_seeds = {small_seed(seed_sequence(seed, stream, index)) for seed, index in places}
        self.seed: int | None = None
        self.in_reset = False

    def damage(self, method: str, value):
        is_time = self.n_steps >= self.at_step if method == "reset" else self.n_steps == self.at_step
        if self.seed not in self.bad_seeds or self.method != method or not is_time:
            return value
        if self.error == "raises":
            raise KeyError("broken | for <b>one</b> and\na second line")
        return value * np.float32(self.error)

    def observe(self) -> np.ndarray:
        value = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return value if self.in_reset else self.damage("observe", value)

    def reward(self) -> float:
        return float(self.damage("reward", self.np_random.uniform()))

    def reset(self, *, seed=None, options=None):
        self.seed = self.seed if seed is None else seed
        self.in_reset = True
        observation, info = super().reset(seed=seed)
        self.in_reset = False
        return self.damage("reset", observation), info


#: Reset seed of the first training environment of that run.
BAD_ENV_SEED = small_seed(seed_sequence(BreaksForOne.SEED, Stream.TRAIN_ENV))


class KilledForOne(Fine):
    """The process is killed in the 20th step for one seed in every attempt."""

    def reset(self, *, seed=None, options=None):
        self.seed = getattr(self, "seed", None) if seed is None else seed
        return super().reset(seed=seed)

    def reward(self) -> float:
        if self.seed == BAD_ENV_SEED and self.n_steps == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0


class HangsForOne(KilledForOne):
    """Hangs in the 20th step for one seed in every attempt, and ignores SIGTERM and SIGINT."""

    def reward(self) -> float:
        if self.seed == BAD_ENV_SEED and self.n_steps == 20:
            Path(os.readlink("/proc/self/fd/1")).with_name("mark").touch()
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
            while True:
                time.sleep(1)
        return 1.0


class HugeRewardForOne(Fine):
    """The loss of the first update is infinite for one seed."""

    def reset(self, *, seed=None, options=None):
        self.seed = getattr(self, "seed", None) if seed is None else seed
        return super().reset(seed=seed)

    def reward(self) -> float:
        return 1e30 if self.seed == BAD_ENV_SEED else 1.0


for _class in (
    Fine, NanReward, InfObservation, NanInEvaluation, Raises, Killed, CannotBeMade, GlobalRandom, HugeReward,
    NoisyScore, HugeRewardForOne, HangsOnce, WaitsOnce, KilledOnce, RaisesOnce, KilledForOne, HangsForOne,
):  # fmt: skip
    gym.register(f"{_class.__name__}-v0", entry_point=f"{__name__}:{_class.__name__}")

#: Arguments of the environments that break for one seed, by id.
BREAKS_FOR_ONE = {
    "NanRewardForOne-v0": dict(method="reward", error="nan", step=40),
    "InfObservationForOne-v0": dict(method="observe", error="inf", step=36),
    "NanLastObservationForOne-v0": dict(method="observe", error="nan", step=16),
    "RaisesForOne-v0": dict(method="reward", error="raises", step=20),
    "NanAtResetForOne-v0": dict(method="reset", error="nan", step=0),
    "InfAtSecondResetForOne-v0": dict(method="reset", error="inf", step=8),
    "RaisesAtResetForOne-v0": dict(method="reset", error="raises", step=0),
    "RaisesAtSecondResetForOne-v0": dict(method="reset", error="raises", step=8),
    "NanInEvaluationForOne-v0": dict(method="reward", error="nan", step=13, in_evaluation=True),
    "InfInEvaluationForOne-v0": dict(method="observe", error="inf", step=11, in_evaluation=True),
    "RaisesInEvaluationForOne-v0": dict(method="observe", error="raises", step=4, in_evaluation=True),
    "NanAtResetInEvaluationForOne-v0": dict(method="reset", error="nan", step=0, in_evaluation=True),
    "RaisesAtResetInEvaluationForOne-v0": dict(method="reset", error="raises", step=0, in_evaluation=True),
}
for _id, _kwargs in BREAKS_FOR_ONE.items():
    gym.register(_id, entry_point=f"{__name__}:BreaksForOne", kwargs=_kwargs)
