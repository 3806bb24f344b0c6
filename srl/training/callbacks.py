"""Callbacks of a run: evaluation, progress, and stopping a run with non-finite losses."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from srl.config.spec import RunSpec
from srl.envs import make_eval_env
from srl.envs.make import eval_episode_limit, without_reward_noise
from srl.envs.seeding import Stream, seed_globals, seed_sequence
from srl.rundir.files import replacing
from srl.rundir.names import EVALUATIONS
from srl.training.resume import generator_state, restore_generators
from srl.updates import check_losses


@dataclass
class Episodes:
    """The episodes of an evaluation, in the order of their ends."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    #: ``is_success`` in the last info of each episode; False if it is missing.
    successes: list[bool] = field(default_factory=list)
    #: Whether each episode was truncated by ``eval_max_episode_steps``.
    reached_max_steps: list[bool] = field(default_factory=list)
    #: Whether any info had ``is_success``.
    reports_success: bool = False

    def add(self, info: Mapping[str, Any], max_length: int | None) -> bool:
        """Record the end of an episode.

        :param info: The info of a step that ended an episode.
        :param max_length: See :func:`~srl.envs.make.eval_episode_limit`.
        :return: Whether the episode counts; a lost life of an Atari game is not the end of an episode.
        """
        episode = info.get("episode")
        if episode is None:
            return False
        success = info.get("is_success")
        self.reports_success |= success is not None
        self.successes.append(bool(success))
        self.returns.append(episode["r"])
        self.lengths.append(episode["l"])
        at_limit = max_length is not None and episode["l"] >= max_length
        self.reached_max_steps.append(at_limit and bool(info.get("TimeLimit.truncated")))
        return True


class EvaluationLog:
    """The results of evaluations, written to ``evaluations.npz`` and the logger as by SB3's EvalCallback.

    :param spec: The run.
    :param directory: The run's folder.
    :param note: Called with a line on the first evaluation with truncated episodes.
    """

    def __init__(self, spec: RunSpec, directory: Path, note: Callable[[str], None]):
        self._spec = spec
        self._file = directory / EVALUATIONS
        self._note = note
        self._evaluations: list[Episodes] = []
        #: Training steps at each evaluation.
        self.timesteps: list[int] = []

    def add(self, timesteps: int, episodes: Episodes, logger: Logger) -> None:
        """Record an evaluation; the file is replaced atomically."""
        self.timesteps.append(timesteps)
        self._evaluations.append(episodes)
        if any(evaluation.reports_success for evaluation in self._evaluations):
            logger.record("eval/success_rate", np.mean(episodes.successes))
        self._write()
        n_truncated = [sum(evaluation.reached_max_steps) for evaluation in self._evaluations]
        if n_truncated[-1] and not any(n_truncated[:-1]):
            limit = f"{self._spec.eval_max_episode_steps:,} steps (--eval-max-episode-steps)"
            self._note(
                f"evaluation at step {timesteps:,}: {n_truncated[-1]} of {len(episodes.returns)} episodes "
                f"were truncated after {limit}; their returns count up to there. Later evaluations are not "
                "noted here; `srl report` counts all such episodes."
            )
        logger.record("eval/mean_reward", float(np.mean(episodes.returns)))
        logger.record("eval/mean_ep_length", np.mean(episodes.lengths))
        logger.record("time/total_timesteps", timesteps, exclude="tensorboard")
        logger.dump(timesteps)

    def _write(self) -> None:
        columns = {
            "timesteps": self.timesteps,
            "results": [evaluation.returns for evaluation in self._evaluations],
            "ep_lengths": [evaluation.lengths for evaluation in self._evaluations],
        }
        if any(evaluation.reports_success for evaluation in self._evaluations):
            columns["successes"] = [evaluation.successes for evaluation in self._evaluations]
        if any(any(evaluation.reached_max_steps) for evaluation in self._evaluations):
            columns["reached_max_steps"] = [evaluation.reached_max_steps for evaluation in self._evaluations]
        with replacing(self._file) as temporary, temporary.open("wb") as file:
            np.savez(file, **columns)  # type: ignore[arg-type]

    @property
    def is_best(self) -> bool:
        """Whether the latest evaluation has a higher mean return than all before it."""
        *earlier, latest = [np.mean(evaluation.returns) for evaluation in self._evaluations]
        return bool(latest > max(earlier, default=-np.inf))

    def state(self) -> dict[str, Any]:
        """All evaluations so far, as plain data."""
        evaluations = [vars(evaluation) for evaluation in self._evaluations]
        return {"timesteps": self.timesteps, "evaluations": copy.deepcopy(evaluations)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the evaluations of a checkpoint; later ones are dropped."""
        self.timesteps = list(state["timesteps"])
        self._evaluations = [Episodes(**evaluation) for evaluation in state["evaluations"]]
        if self.timesteps:
            self._write()
        else:
            self._file.unlink(missing_ok=True)

    def due_at_end(self, n_timesteps: int) -> bool:
        """Whether the final evaluation, which every finished run has, is missing."""
        return not self.timesteps or self.timesteps[-1] < n_timesteps

    def seed_sequence(self, spec: RunSpec) -> np.random.SeedSequence:
        """The seed sequence of the next evaluation's actions."""
        return seed_sequence(spec.seed, Stream.EVAL_ACTIONS, len(self.timesteps))


class Evaluation(BaseCallback):
    """Evaluates by the protocol of a run.

    The episodes are played in a vectorized environment. Evaluations have their own random stream, so that
    training does not depend on their frequency. Every finished run has an evaluation after its last step.

    :param spec: The run.
    :param log: Records the results.
    :param heartbeat: Beats during evaluations too, which can take minutes.
    :param save_best: Called with the model and its statistics after each evaluation that is the best so far,
        as SB3's EvalCallback saves ``best_model.zip``.
    """

    def __init__(
        self,
        spec: RunSpec,
        log: EvaluationLog,
        heartbeat: Heartbeat,
        save_best: Callable[[Any, VecNormalize | None], None],
    ):
        super().__init__()
        self._heartbeat = heartbeat
        self._save_best = save_best
        seed_globals(seed_sequence(spec.seed, Stream.SETUP, 1))
        env_spec = spec.env_spec()
        self.eval_env = make_eval_env(env_spec, n_envs=spec.n_eval_envs)
        self._max_length = eval_episode_limit(env_spec)
        self.log = log
        self._spec = spec
        #: Whether an evaluation is running.
        self.in_progress = False

    def _on_step(self) -> bool:
        if self.n_calls % eval_interval(self._spec) == 0:
            self._evaluate()
        return True

    def _on_training_end(self) -> None:
        if self.log.due_at_end(self._spec.n_timesteps):
            self._evaluate()

    def _evaluate(self) -> None:
        spec, device = self._spec, self.model.device
        # Actions and some environments use the global generators, with which training continues
        generators = generator_state(device)
        seed_globals(self.log.seed_sequence(spec), device)
        self.in_progress = True
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(without_reward_noise(self.training_env), self.eval_env)
        episodes = Episodes()
        n_steps = 0

        def on_step(local_variables: dict[str, Any], _: dict[str, Any]) -> None:
            nonlocal n_steps
            n_steps += 1
            self._heartbeat.beat(lambda: evaluation_progress([episodes], spec, n_steps))
            if local_variables["done"]:
                episodes.add(local_variables["info"], self._max_length)

        evaluate_policy(
            self.model,
            self.eval_env,
            n_eval_episodes=spec.n_eval_episodes,
            deterministic=spec.eval_deterministic,
            callback=on_step,
        )
        self.in_progress = False
        restore_generators(generators, device)
        self.log.add(self.model.num_timesteps, episodes, self.logger)
        if self.log.is_best:
            self._save_best(self.model, self.model.get_vec_normalize_env())


def evaluation_progress(episodes: Sequence[Episodes], spec: RunSpec, n_steps: int) -> str:
    """The progress of an evaluation, for example ``"3/10 episodes, 12,300 steps"``.

    :param episodes: The finished episodes of each evaluated run.
    :param spec: One of the runs.
    :param n_steps: Steps of all of them so far.
    """
    n_done = sum(len(one.returns) for one in episodes)
    n_episodes = len(episodes) * spec.n_eval_episodes
    return f"{n_done}/{n_episodes} episodes, {n_steps:,} steps"


def eval_interval(spec: RunSpec) -> int:
    """Steps of the vectorized training environment between two evaluations."""
    return max(spec.eval_freq // spec.hyperparams.n_envs, 1)


class FiniteTraining(BaseCallback):
    """Stops a run whose loss is NaN or infinite."""

    def _on_rollout_start(self) -> None:
        check_losses(self.logger)

    def _on_training_end(self) -> None:
        check_losses(self.logger)

    def _on_step(self) -> bool:
        return True


#: Names of the loss in the logs of algorithms; the first that is present counts.
_LOSSES = ("train/loss", "train/policy_loss", "train/actor_loss", "train/policy_objective")


class Heartbeat(BaseCallback):
    """Reports the progress of training about once a second.

    :param tell: Called with the training steps so far, the progress of an evaluation in words, the mean
        return of the last episodes and the loss of the latest update.
    :param interval: Seconds between two reports.
    """

    def __init__(self, tell: Callable[[int, str, float | None, float | None], None], interval: float = 1.0):
        super().__init__()
        self._tell = tell
        self._loss: float | None = None
        self._interval = interval
        self._due = 0.0

    def _on_step(self) -> bool:
        self.beat()
        return True

    def beat(self, evaluation: Callable[[], str] = str) -> None:
        """Report the progress, if the interval has passed.

        :param evaluation: Returns the progress of an evaluation in words, empty for none.
        """
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._interval
            returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
            logged = self.logger.name_to_value
            names = [name for name in _LOSSES if name in logged]
            if names and math.isfinite(logged[names[0]]):
                self._loss = float(logged[names[0]])
            mean_return = float(np.mean(returns)) if returns else None
            self._tell(self.model.num_timesteps, evaluation(), mean_return, self._loss)
