"""The members of a population, and which of them are still active."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from srl import SA2C, SPPO
from srl.compiled import CompiledUpdate
from srl.config.spec import RunSpec
from srl.envs.reward_noise import RewardNoiseProcess, parse_noise
from srl.envs.seeding import Stream, seed_sequence, seed_torch, stream_rng
from srl.rundir.progress import beat_interval
from srl.training.attempt import Attempt, RunFailed, in_one_line
from srl.training.callbacks import EvaluationLog
from srl.training.logs import make_logger
from srl.training.model import compile_update, make_model
from srl.training.stacked.environments import MemberEnvs


@dataclass
class Member:
    """A run in a population, and what it does not share with the other members."""

    attempt: Attempt
    model: SA2C | SPPO
    #: Random generator of its actions.
    generator: th.Generator
    #: Random generator of its minibatch orders.
    permutations: np.random.RandomState
    evaluations: EvaluationLog
    noise: tuple[RewardNoiseProcess, np.random.Generator] | None
    #: Its compiled update; None if it is not compiled.
    compiled: CompiledUpdate | None

    @property
    def spec(self) -> RunSpec:
        """The run."""
        return self.attempt.spec


def make_member(attempt: Attempt, venv: VecEnv, progress: str, others: Sequence[CompiledUpdate]) -> Member:
    """Build a member.

    :param attempt: The attempt at the run.
    :param venv: Its training environments.
    :param progress: The existing content of its ``progress.csv``.
    :param others: The compiled updates of other members.
    """
    spec = attempt.spec
    model = make_model(spec, venv)
    # In place of PyTorch's and NumPy's global generators, which a single run uses
    generator = th.Generator(model.device)
    permutations = np.random.RandomState()
    seed_torch(generator, seed_sequence(spec.seed, Stream.ACTIONS))
    permutations.set_state(np.random.get_state())  # noqa: NPY002
    model.set_logger(make_logger(attempt.path, progress))
    compiled = compile_update(attempt, model, others)
    model.rollout_buffer = None  # type: ignore[assignment]
    model.ep_info_buffer = deque(maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    model._total_timesteps = spec.n_timesteps
    model.start_time = time.time_ns()
    noise = parse_noise(spec.noise)
    return Member(
        attempt,
        model,
        generator,
        permutations,
        EvaluationLog(spec, attempt.path, attempt.note),
        None if noise is None else (noise, stream_rng(spec.seed, Stream.REWARD_NOISE)),
        compiled,
    )


class Members(list[Member]):
    """The members of a population. A member that fails is no longer active; the others continue."""

    def __init__(self, members: Sequence[Member]):
        super().__init__(members)
        #: Indices of the members that have not failed.
        self.active = list(range(len(members)))
        #: Called at each heartbeat.
        self.on_beat: Callable[[], None] = lambda: None
        self._beat_interval = beat_interval(len(members))
        self._next_beat = 0.0

    def note(self, text: str) -> None:
        """Record something about the whole population in the status of each active member."""
        for index in self.active:
            self[index].attempt.note(text)

    def beat(self, timesteps: int, evaluation: Callable[[], str] = str) -> None:
        """Record the progress of all active members, if the interval has passed.

        :param timesteps: Training steps of each so far.
        :param evaluation: Returns the progress of an evaluation in words, empty for none.
        """
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + self._beat_interval
        self.on_beat()
        words = evaluation()
        self.each_active(lambda index: self[index].attempt.beat(timesteps, words))

    def each_active(
        self, action: Callable[[int], None], where: Callable[[Exception], str] = lambda _: ""
    ) -> None:
        """Call a function with the index of each active member; a member for which it raises fails.

        :param action: The function.
        :param where: Returns what to add to the reason of a failure.
        """
        for index in list(self.active):
            try:
                action(index)
            except Exception as error:
                self._fail(index, error, where)

    def drop_failed(self, envs: MemberEnvs, where: Callable[[Exception], str]) -> None:
        """Fail the active members whose environments have failed."""
        for index in [index for index in self.active if index in envs.failures]:
            self._fail(index, envs.failures[index], where)

    def _fail(self, index: int, error: Exception, where: Callable[[Exception], str]) -> None:
        self.active.remove(index)
        failure = RunFailed(f"{in_one_line(error)}{where(error)}")
        failure.__cause__ = error
        self[index].attempt.fail(failure)
