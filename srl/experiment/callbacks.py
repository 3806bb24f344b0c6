"""What happens beside training: evaluation, progress, and stopping a run whose figures are lost."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from srl.envs import make_eval_env
from srl.envs.make import without_reward_noise
from srl.experiment.spec import RunSpec
from srl.experiment.store import EVALUATIONS, replacing

#: Tells the random stream of sampled actions in evaluations from training's.
_EVALUATION_STREAM = 2_000_000


class Evaluation(EvalCallback):
    """SB3's EvalCallback by the protocol of a run.

    The episodes run side by side. Evaluations draw from a random stream of their own, so that training does
    not depend on how often it is evaluated; the first that is due after the last step of training is made at
    its end, so that every finished run has a final evaluation; ``evaluations.npz`` is replaced whole.

    :param spec: The run.
    :param directory: The run's folder.
    """

    def __init__(self, spec: RunSpec, directory: Path):
        super().__init__(
            make_eval_env(spec.env_spec(), n_envs=spec.n_eval_envs),
            n_eval_episodes=spec.n_eval_episodes,
            eval_freq=max(spec.eval_freq // spec.hyperparams.n_envs, 1),
            log_path=str(directory),
            deterministic=spec.eval_deterministic,
            verbose=0,
        )
        self._directory = directory
        self._spec = spec
        #: Whether an evaluation is running.
        self.in_progress = False

    @property
    def training_env(self) -> VecEnv:
        """The training environment below its reward noise, which evaluation does not have."""
        return without_reward_noise(super().training_env)

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq != 0:
            return True
        return self._evaluate()

    def _on_training_end(self) -> None:
        if not self.evaluations_timesteps or self.evaluations_timesteps[-1] < self._spec.n_timesteps:
            self.eval_freq = 1  # SB3's test of whether one is due now says yes
            self._evaluate()

    def _evaluate(self) -> bool:
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        # An environment may draw from the global generators, and training goes on from them
        python_state, numpy_state = random.getstate(), np.random.get_state()
        with th.random.fork_rng(devices=devices), replacing(self._directory / EVALUATIONS) as temporary:
            th.manual_seed(self._spec.seed + _EVALUATION_STREAM + len(self.evaluations_timesteps))
            # np.savez, in SB3's callback, adds the ending
            self.log_path = str(temporary.with_name(temporary.name + ".new"))
            self.in_progress = True
            proceed = super()._on_step()
            self.in_progress = False
            os.replace(self.log_path + ".npz", temporary)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        return proceed


class FiniteTraining(BaseCallback):
    """Ends a run whose loss has become NaN or infinite."""

    def _on_rollout_start(self) -> None:
        self._check()

    def _on_training_end(self) -> None:
        self._check()

    def _check(self) -> None:
        for name, value in self.logger.name_to_value.items():
            if name.startswith("train/") and name.endswith("loss") and not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value} after an update; the network is lost")

    def _on_step(self) -> bool:
        return True


class Heartbeat(BaseCallback):
    """Tells how far training is, about once a second.

    :param tell: Is given the number of training steps done.
    :param interval: Seconds between two tellings.
    """

    def __init__(self, tell: Callable[[int], None], interval: float = 1.0):
        super().__init__()
        self._tell = tell
        self._interval = interval
        self._due = 0.0

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._interval
            self._tell(self.num_timesteps)
        return True
