"""Train one run into its directory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import CallbackList

from srl import SA2C, SPPO
from srl.config.spec import RunSpec
from srl.envs import make_train_env
from srl.envs.finite import NonFiniteError
from srl.envs.registration import import_packages
from srl.envs.replay import NotRestorable
from srl.envs.seeding import Stream, seed_globals, seed_sequence
from srl.envs.state import env_state, restore_env
from srl.errors import UserError
from srl.rundir.checkpoints import checkpoint_steps
from srl.rundir.directory import RunDirectory
from srl.rundir.names import MONITOR
from srl.rundir.status import Status
from srl.training.attempt import Attempt, RunFailed, in_one_line
from srl.training.callbacks import Evaluation, EvaluationLog, FiniteTraining, Heartbeat
from srl.training.checkpoint import CheckpointTimer, write_checkpoint, write_final_state
from srl.training.logs import log_state, make_logger, restore_logger
from srl.training.memory import keep_freed_memory
from srl.training.model import compile_update, make_model, save
from srl.training.resume import generator_state, model_state, restore_generators, restore_model
from srl.training.versions import checkpoint_origin

#: Seconds between two checkpoints.
CHECKPOINT_EVERY = 180.0
#: SB3's ``log_interval`` of each family: updates between two lines of the log.
LOG_INTERVAL = {"a2c": 100, "ppo": 1, "own": 1}


def train_run(
    spec: RunSpec,
    path: Path,
    *,
    command: str = "",
    tell: Callable[[Status], None] | None = None,
    checkpoint_every: float = CHECKPOINT_EVERY,
) -> Status:
    """Train a run into its directory, from its last checkpoint or from scratch.

    :param spec: The run.
    :param path: Its folder, new or of an unfinished run of the same spec.
    :param command: The command line, for the record.
    :param tell: Called with the status about once a second.
    :param checkpoint_every: Seconds between two checkpoints; 0 writes one after each update.
    :return: The status at the end.
    :raises RunFailed: If training failed; the directory says why.
    :raises UserError: If the folder belongs to another run or process.
    """
    attempt = Attempt(spec, path, command=command, tell=tell)
    return attempt.run(lambda: _train(attempt, checkpoint_every))


def _train(attempt: Attempt, checkpoint_every: float) -> int:
    th.set_num_threads(attempt.spec.threads)
    keep_freed_memory()
    for steps in checkpoint_steps(attempt.path):
        try:
            return _train_from(attempt, attempt.resume_from(steps), checkpoint_every)
        except (UserError, NotRestorable) as error:
            attempt.note(f"cannot resume from step {steps:,}: {error}")
    attempt.restart()
    return _train_from(attempt, None, checkpoint_every)


def _train_from(attempt: Attempt, state: dict[str, Any] | None, checkpoint_every: float) -> int:
    spec, path = attempt.spec, attempt.path
    import_packages(spec.gym_packages)  # they may also register reward noise
    seed_globals(seed_sequence(spec.seed, Stream.SETUP))
    env = make_train_env(spec.env_spec(), monitor_dir=str(path / MONITOR), append=state is not None)
    heartbeat = Heartbeat(attempt.beat)
    evaluation = Evaluation(
        spec, EvaluationLog(spec, path, attempt.note), heartbeat, partial(save, path, best=True)
    )
    try:
        model = make_model(spec, env)
        model.set_logger(make_logger(path, state["logs"]["progress"] if state else ""))
        if not spec.algorithm.is_own:
            compile_update(attempt, model)
        callbacks = CallbackList([heartbeat, FiniteTraining(), evaluation])
        try:
            if spec.algorithm.is_own:
                _learn_own(attempt, model, callbacks)
            else:
                _learn(attempt, model, evaluation, callbacks, state, checkpoint_every)
        except NotRestorable:
            raise
        except Exception as error:
            # The failed training step is not counted yet
            in_step = (
                isinstance(error, NonFiniteError)
                and not evaluation.in_progress
                and "at reset" not in str(error)
            )
            step = model.num_timesteps + (env.num_envs if in_step else 0)
            where = "in the evaluation at step" if evaluation.in_progress else "at step"
            raise RunFailed(f"{in_one_line(error)} ({where} {step:,})") from error
        finally:
            model.logger.close()
        save(path, model, model.get_vec_normalize_env())
        return model.num_timesteps
    finally:
        env.close()
        evaluation.eval_env.close()


def _learn_own(attempt: Attempt, model: Any, callbacks: CallbackList) -> None:
    """Call ``learn`` of another package's algorithm, without checkpoints: its state is unknown."""
    model.learn(attempt.spec.n_timesteps, callbacks)
    if model.num_timesteps < attempt.spec.n_timesteps:
        raise RunFailed(f"learn() ended before step {attempt.spec.n_timesteps:,}")


def _learn(
    attempt: Attempt,
    model: SA2C | SPPO,
    evaluation: Evaluation,
    callbacks: CallbackList,
    state: dict[str, Any] | None,
    checkpoint_every: float,
) -> None:
    """SB3's ``learn`` with checkpoints, from which it can resume."""
    spec, log_interval = attempt.spec, LOG_INTERVAL[attempt.spec.algorithm.family]
    n_timesteps, callback = model._setup_learn(spec.n_timesteps, callbacks)
    callback.on_training_start({}, {})
    assert model.env is not None
    iteration = 0
    if state is not None:
        iteration = _restore(model, evaluation, state)
    checkpoints = CheckpointTimer(checkpoint_every, attempt.note)
    while model.num_timesteps < n_timesteps:
        model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
        iteration += 1
        model._update_current_progress_remaining(model.num_timesteps, n_timesteps)
        if iteration % log_interval == 0:
            model.dump_logs(iteration)
        model.train()
        if checkpoints.is_due:
            checkpoints.keep(partial(_write_checkpoint, attempt, model, evaluation, iteration))
    # Before the final evaluation, which a longer run would not have at this step
    with suppress(NotRestorable):
        _write_checkpoint(attempt, model, evaluation, iteration, final=True)
    callback.on_training_end()


def _write_checkpoint(
    attempt: Attempt, model: SA2C | SPPO, evaluation: Evaluation, iteration: int, *, final: bool = False
) -> None:
    assert model.env is not None
    state = {
        "origin": checkpoint_origin(attempt.spec),
        "iteration": iteration,
        "model": model_state(model),
        "generators": generator_state(model.device),
        "env": env_state(model.env),
        "eval_env": None if not evaluation.log.timesteps else env_state(evaluation.eval_env),
        "evaluations": evaluation.log.state(),
        "logs": log_state(attempt.path, model.logger),
    }
    write = write_final_state if final else write_checkpoint
    write(attempt.path, model.num_timesteps, state)


def _restore(model: SA2C | SPPO, evaluation: Evaluation, state: dict[str, Any]) -> int:
    """Restore everything to a checkpoint; returns the number of rollouts so far."""
    assert model.env is not None
    restore_env(model.env, state["env"])
    if state["eval_env"] is not None:
        evaluation.eval_env.reset()
        restore_env(evaluation.eval_env, state["eval_env"])
    evaluation.log.restore(state["evaluations"])
    evaluation.n_calls = state["model"]["num_timesteps"] // model.env.num_envs
    restore_model(model, state["model"])
    restore_logger(model.logger, state["logs"])
    restore_generators(state["generators"], model.device)
    iteration: int = state["iteration"]
    return iteration


def execute_run(
    path: Path, spec: RunSpec, command: str, *, checkpoint_every: float = CHECKPOINT_EVERY
) -> int:
    """Train a run in this process for an engine; the arguments are :func:`train_run`'s.

    :return: The exit status of the process: 0 for done, 1 for failed.
    """
    try:
        train_run(spec, path, command=command, checkpoint_every=checkpoint_every)
    except (RunFailed, UserError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # before or after training: the folder is not writable
        print(f"{path}: {error}", file=sys.stderr)
        directory = RunDirectory(path)
        with suppress(OSError, UserError):  # it may belong to another process
            if directory.compare(spec) != "done":
                status = directory.read_status() or Status("running")
                directory.write_status(status.ended_as("failed", time.time(), str(error)))
        return 1
    return 0
