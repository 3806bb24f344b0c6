"""Train one run into its directory."""

from __future__ import annotations

import copy
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any
from zipfile import ZipFile, ZipInfo

import torch as th
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from srl import SA2C, SPPO
from srl.compiled import CompiledUpdate
from srl.config.spec import RunSpec
from srl.envs import make_train_env
from srl.envs.finite import NonFiniteError
from srl.envs.replay import NotRestorable
from srl.envs.seeding import Stream, seed_globals, seed_numpy, seed_sequence, stream_rng
from srl.envs.state import env_state, restore_env
from srl.errors import UserError
from srl.own_algorithms import algorithm_class, own_package
from srl.policies import PolicyMixin
from srl.rundir.checkpoints import checkpoint_steps, last_checkpoint, remove_checkpoints
from srl.rundir.directory import RunDirectory
from srl.rundir.files import replacing, write_text
from srl.rundir.names import (
    BEST_MODEL,
    BEST_VECNORMALIZE,
    ERROR,
    MODEL,
    MONITOR,
    PROGRESS,
    SPEC,
    VECNORMALIZE,
    VERSIONS,
)
from srl.rundir.status import State, Status, boot_id
from srl.training.callbacks import Evaluation, EvaluationLog, FiniteTraining, Heartbeat, check_losses
from srl.training.checkpoint import CheckpointTimer, read_checkpoint, write_checkpoint, write_final_state
from srl.training.logs import cut_logs, goes_on_from, log_state, make_logger, restore_logger
from srl.training.memory import keep_freed_memory
from srl.training.policy_options import policy_kwargs
from srl.training.resume import generator_state, model_state, restore_generators, restore_model

#: Seconds between two checkpoints.
CHECKPOINT_EVERY = 180.0
#: SB3's ``log_interval`` of each family: updates between two lines of the log.
LOG_INTERVAL = {"a2c": 100, "ppo": 1, "own": 1}
#: Where an object lay, in the descriptions that SB3 writes beside pickled objects.
_ADDRESS = re.compile(rb" at 0x[0-9a-f]+")
_ALGORITHM_CLASSES: dict[str, type[SA2C | SPPO]] = {"a2c": SA2C, "ppo": SPPO}
#: The packages whose versions a run records.
RECORDED_PACKAGES = (
    "symmetric-rl", "torch", "stable-baselines3", "gymnasium", "ale-py", "mujoco", "box2d", "numpy",
    "opencv-python-headless", "tensorboard", "minatar",
)  # fmt: skip


def _commit() -> str | None:
    """The commit of the checkout that srl runs from, marked if it was changed since; None outside of one."""
    root = Path(__file__).resolve().parent.parent.parent
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    ask = [git, "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


#: Asked when this code is loaded: a sweep's processes are forks of one that loaded it at the start, and the
#: checkout may move on while they train.
COMMIT = _commit()


class RunFailed(Exception):
    """A run ended before its last step; its message is the reason in one line."""


def make_model(spec: RunSpec, env: VecEnv, *, build: bool = True) -> SA2C | SPPO:
    """The run's algorithm on its environment.

    :param spec: The run. A baseline is the symmetric algorithm with ``beta=0``, which is bitwise identical to
        SB3's and logs the same figures.
    :param env: Its training environment.
    :param build: Whether to build the networks and the rollout buffer.
    :return: The algorithm, untrained, with the global random generators at the starts of the streams that
        it draws actions and minibatches from.
    """
    seed_globals(seed_sequence(spec.seed, Stream.WEIGHTS), spec.device)
    kwargs = spec.hyperparams.algorithm_kwargs()
    for name, value in kwargs.items():
        if isinstance(value, str) and value.startswith("lin_"):
            kwargs[name] = LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    is_own = spec.algorithm.is_own
    if not is_own:
        kwargs |= {
            "compile_update": spec.compile_update,
            "precision": spec.precision,
            "_init_setup_model": build,
        }
    cls = algorithm_class(spec.algo) if is_own else _ALGORITHM_CLASSES[spec.algorithm.family]
    model = cls(
        spec.hyperparams.policy,
        env,
        policy_kwargs=policy_kwargs(spec.hyperparams.policy_kwargs),
        device=spec.device,
        **kwargs,
    )
    if spec.numpy_acting and build and isinstance(model.policy, PolicyMixin):
        model.policy.numpy_acting = True
    # For the record: given to the constructor, it would seed the environments as SB3 does
    model.seed = spec.seed
    if is_own:
        # Off-policy algorithms draw their first actions from it
        actions = seed_sequence(spec.seed, Stream.ACTIONS, 1)
        model.action_space.seed(int(actions.generate_state(1)[0]))
    else:
        model._flip_rng = stream_rng(spec.seed, Stream.ADVANTAGE_FLIPS)
    seed_globals(seed_sequence(spec.seed, Stream.ACTIONS), spec.device)
    seed_numpy(seed_sequence(spec.seed, Stream.MINIBATCHES))
    if spec.device.startswith("cuda"):
        # As SB3's set_random_seed
        th.backends.cudnn.deterministic, th.backends.cudnn.benchmark = True, False
    return model


def compile_update(
    attempt: Attempt, model: SA2C | SPPO, others: Sequence[CompiledUpdate] = ()
) -> CompiledUpdate | None:
    """Compile a model's update before training, if its run is to be compiled; record how that went.

    :param attempt: At the run.
    :param model: Its algorithm.
    :param others: The updates of other runs that train with it.
    :return: The update; None if it is not compiled.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the note says it
        compiled = model.compile_now(others)
    if model.not_compiled is not None:
        attempt.note(f"the update is not compiled, so that last bits may differ: {model.not_compiled}")
    elif compiled is not None:
        attempt.status = replace(attempt.status, compile_seconds=compiled.compile_seconds)
    return compiled


def train_run(
    spec: RunSpec,
    path: Path,
    *,
    command: str = "",
    tell: Callable[[Status], None] | None = None,
    checkpoint_every: float = CHECKPOINT_EVERY,
) -> Status:
    """Train a run into its directory, from where an earlier attempt at it was interrupted, or from the start.

    :param spec: The run.
    :param path: Its folder, new or of an unfinished run of the same spec.
    :param command: The command that asked for it, for the record.
    :param tell: Is given the status about once a second.
    :param checkpoint_every: Seconds between two checkpoints; with 0 there is one after each update.
    :return: The status at the end.
    :raises RunFailed: If training failed; the directory says why.
    :raises UserError: If the folder does not fit.
    """
    attempt = Attempt(spec, path, command=command, tell=tell)
    return attempt.run(lambda: _train(attempt, checkpoint_every))


class Attempt:
    """One attempt at a run, as its directory tells it. A context: on an exception the attempt has failed.

    :param spec: The run.
    :param path: Its folder, new or of an unfinished run of the same spec.
    :param command: The command that asked for it, for the record.
    :param tell: Is given the status about once a second.
    :param packages: What it records the versions of, besides :data:`RECORDED_PACKAGES`.
    :raises UserError: On entering, if the folder does not fit.
    """

    status: Status

    def __init__(
        self,
        spec: RunSpec,
        path: Path,
        *,
        command: str = "",
        tell: Callable[[Status], None] | None = None,
        packages: Sequence[str] = (),
    ):
        self.spec = spec
        self.path = path
        #: What ended it.
        self.error: Exception | None = None
        self._directory = RunDirectory(path)
        self._command = command
        self._tell = tell
        self._packages = packages
        #: The monotonic clock and the training steps at the first heartbeat.
        self._first_beat: tuple[float, int] | None = None
        self._claim = self._directory.claimed(spec, keep=True)

    def run(self, train: Callable[[], int]) -> Status:
        """Make the attempt.

        :param train: Trains the run and returns its training steps.
        :return: The status at the end.
        :raises RunFailed: If training failed; the directory says why.
        :raises UserError: If the folder does not fit.
        """
        try:
            with self:
                if self.running:  # else another process has finished it since it was planned
                    self.finish(train())
        except Exception as error:
            if error is not self.error:
                raise  # the folder does not fit
        if self.status.state == "failed":
            raise RunFailed(self.status.reason) from self.error
        return self.status

    @property
    def running(self) -> bool:
        """Whether the run is not finished."""
        return self.status.state == "running"

    def __enter__(self) -> Attempt:
        damage = self._directory.damage() + self._directory.minor_damage()
        begun = self._directory.readable_spec()
        there = self._claim.__enter__()
        try:
            earlier = self._directory.read_status()
            if there == "done" and earlier is not None:
                self.status = earlier
                remove_checkpoints(self.path)  # a process that was killed at its very end leaves them
                return self
            started = time.time()
            self.status = Status(
                state="running",
                timesteps=last_checkpoint(self.path),
                n_timesteps=self.spec.n_timesteps,
                started=started,
                updated=started,
                pid=os.getpid(),
                host=socket.gethostname(),
                clock=time.monotonic(),
                boot=boot_id(),
                attempts=1 if earlier is None else earlier.attempts + 1,
                notes=() if earlier is None else earlier.notes,
                files=self._directory.seal([SPEC]),
            )
            if earlier is not None and there != "new":
                why = earlier.reason or "it did not say why"
                if earlier.state != "done":
                    self.note(f"attempt {earlier.attempts} ended: {why}")
            for problem in damage if there != "new" else []:
                self.note(problem)
            if begun is not None and begun.stacked != self.spec.stacked and checkpoint_steps(self.path):
                self.note(
                    "started in a population and resumed alone, or the other way round; where a stacked "
                    "network rounds differently, the result differs in the last bits"
                )
            self._directory.write_status(self.status)
            try:
                self._write_versions()
            except Exception as error:
                self.fail(error)
        except BaseException:
            self._claim.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and self.running:
                self.fail(error)
        finally:
            self._claim.__exit__(None, None, None)

    def _write_versions(self) -> None:
        more = own_package(self.spec.algo) if self.spec.algorithm.is_own else {}
        more |= {name: _version(name) for name in self._packages}
        write_text(self.path / VERSIONS, json.dumps(versions(self._command, more), indent=1) + "\n")

    def note(self, text: str) -> None:
        """Record what went wrong with earlier attempts."""
        print(f"{self.path}: {text}", file=sys.stderr)
        self.status = self.status.noted(text)

    def go_on(self, steps: int) -> dict[str, Any]:
        """Put the folder back to where it was at a checkpoint.

        :return: The state in it.
        :raises UserError: If it, or a log that goes with it, is damaged, or it is of other versions of the
            packages, which would make another run of it.
        """
        state = read_checkpoint(self.path, steps)
        origin = checkpoint_origin(self.spec)
        different = [key for key in origin if state["origin"].get(key) != origin[key]]
        if different:
            raise UserError(f"its checkpoint was made with another {' and '.join(different)}.")
        if not goes_on_from(self.path, state["logs"]):
            self.note(f"{self.path / PROGRESS}: damaged; it is restored from the checkpoint")
        cut_logs(self.path, state["logs"])
        (self.path / ERROR).unlink(missing_ok=True)
        self.status = replace(self.status, timesteps=steps, resumed_from=steps)
        if self.spec.device.startswith("cuda"):
            self.note(f"resumed from step {steps:,} on a GPU, where results are not bitwise reproducible")
        return state

    def begin_anew(self) -> None:
        """Remove what earlier attempts have left."""
        self._directory.clear()
        self._write_versions()
        self.status = replace(self.status, timesteps=0, resumed_from=0)

    def beat(
        self,
        timesteps: int,
        evaluation: str = "",
        mean_return: float | None = None,
        loss: float | None = None,
    ) -> None:
        """Record how far training is.

        :param timesteps: Training steps so far.
        :param evaluation: The progress of the evaluation that is running, in words; empty for none.
        :param mean_return: Mean return of the last training episodes; None for not known.
        :param loss: The loss of the latest update; None for not known.
        :raises RunFailed: If the folder was removed since, and another may have taken its place.
        :raises UserError: If the run was told to stop.
        """
        if not self._directory.is_held:
            raise RunFailed(f"{self.path}: removed while it trained.")
        if timesteps < self.spec.n_timesteps and (reason := self._directory.requested_stop()):
            raise UserError(reason)
        now = time.monotonic()
        if self._first_beat is None:
            self._first_beat = now, timesteps
        first_time, first_steps = self._first_beat
        seconds = now - first_time
        self.status = replace(
            self.status,
            timesteps=min(timesteps, self.spec.n_timesteps),
            evaluation=evaluation,
            mean_return=mean_return,
            loss=loss,
            updated=time.time(),
            clock=now,
            seconds=seconds,
            steps_per_second=(timesteps - first_steps) / seconds if seconds > 0 else 0.0,
        )
        self._directory.write_status(self.status)
        if self._tell is not None:
            self._tell(self.status)

    def finish(self, timesteps: int) -> None:
        """Record that the run is done, and what it leaves."""
        self.beat(timesteps)
        self.status = replace(self.status.ended_as("done", time.time()), files=self._directory.seal())
        self._directory.write_status(self.status)
        remove_checkpoints(self.path)

    def fail(self, error: BaseException) -> None:
        """Record why the run has failed or was interrupted."""
        if isinstance(error, Exception):
            self.error = error
        # Ctrl-C and SIGTERM are no exceptions of the run's
        state: State = "failed" if isinstance(error, Exception) else "interrupted"
        self.status = self.status.ended_as(state, time.time(), in_one_line(error))
        # Numbers are the same the next time
        cause = error.__cause__ if isinstance(error, RunFailed) else error
        self.status = replace(self.status, lasting=isinstance(cause, (FloatingPointError, UserError)))
        if not self._directory.is_held:
            print(f"{self.path}: {self.status.reason}", file=sys.stderr)
            return  # the folder may belong to another process by now
        # Saying why must not hide the reason itself: the disk may be full
        try:
            self._directory.write_status(self.status)
            if state == "failed":
                write_text(self.path / ERROR, "".join(traceback.format_exception(error)))
        except OSError as problem:
            reason = f"{self.status.reason}; and that could not be written: {problem}"
            print(f"{self.path}: {reason}", file=sys.stderr)


def _train(attempt: Attempt, checkpoint_every: float) -> int:
    th.set_num_threads(attempt.spec.threads)
    keep_freed_memory()
    for steps in checkpoint_steps(attempt.path):
        try:
            return _train_from(attempt, attempt.go_on(steps), checkpoint_every)
        except (UserError, NotRestorable) as error:
            attempt.note(f"cannot resume from step {steps:,}: {error}")
    attempt.begin_anew()
    return _train_from(attempt, None, checkpoint_every)


def _train_from(attempt: Attempt, state: dict[str, Any] | None, checkpoint_every: float) -> int:
    """Train from a checkpoint's state, or from the start."""
    spec, path = attempt.spec, attempt.path
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
            # A training step that fails is not counted yet
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
    """The ``learn`` of another package's algorithm. It keeps no checkpoints: what it needs is not known."""
    model.learn(attempt.spec.n_timesteps, callbacks)
    if model.num_timesteps < attempt.spec.n_timesteps:
        raise RunFailed(f"learn() ended by itself, before step {attempt.spec.n_timesteps:,}")


def _learn(
    attempt: Attempt,
    model: SA2C | SPPO,
    evaluation: Evaluation,
    callbacks: CallbackList,
    state: dict[str, Any] | None,
    checkpoint_every: float,
) -> None:
    """SB3's ``learn``, which can begin in the middle and keeps checkpoints."""
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
            check_losses(model.logger)
            checkpoints.keep(partial(_write_checkpoint, attempt, model, evaluation, iteration))
    # Before the evaluation at the end, which a longer run would not make
    check_losses(model.logger)
    with suppress(NotRestorable):
        _write_checkpoint(attempt, model, evaluation, iteration, final=True)
    callback.on_training_end()


def _write_checkpoint(
    attempt: Attempt,
    model: SA2C | SPPO,
    evaluation: Evaluation,
    iteration: int,
    *,
    final: bool = False,
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
    """Bring everything to where it was; returns how many rollouts there were."""
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


def checkpoint_origin(spec: RunSpec) -> dict[str, Any]:
    """What a checkpoint must have in common with the run that resumes from it: spec and versions."""
    values = spec.model_dump(mode="json", exclude={"stacked"})
    return {"spec": values, "python": platform.python_version(), "packages": package_versions()}


def save(path: Path, model: SA2C | SPPO, vec_normalize: VecNormalize | None, *, best: bool = False) -> None:
    """Write a run's model and its statistics, each file whole or not at all; the model is left as it is.

    :param path: The run's folder.
    :param model: The final model, or the best so far.
    :param vec_normalize: Its statistics; None if nothing is normalized.
    :param best: Write ``best_model.zip`` and ``best_vecnormalize.pkl``, without the last observations, which
        are halfway through a rollout.
    """
    # The same run gives the same file: it says neither when that was nor where in memory
    model = copy.copy(model)
    model.start_time = 0
    model._num_timesteps_at_start = 0
    # SB3's network for images draws one from it, to see how many features that has
    model.observation_space = copy.deepcopy(model.observation_space)
    model.observation_space.seed(model.seed)
    episodes = [
        {sys.intern(key): value for key, value in episode.items()} | {"t": 0.0}
        for episode in model.ep_info_buffer or ()
    ]
    model.ep_info_buffer = deque(episodes, maxlen=model._stats_window_size)
    if best:
        # As of a run that ends there, whatever its length
        model._last_obs = model._last_episode_starts = None
        model._total_timesteps, model._current_progress_remaining = model.num_timesteps, 0.0
    whole = io.BytesIO()
    model.save(whole)
    file_of_model = path / (BEST_MODEL if best else MODEL)
    with replacing(file_of_model) as temporary, ZipFile(temporary, "w") as file, ZipFile(whole) as made:
        for name in made.namelist():
            content = made.read(name)
            file.writestr(ZipInfo(name), _without_traces(content) if name == "data" else content)
    if vec_normalize is not None:
        with replacing(path / (BEST_VECNORMALIZE if best else VECNORMALIZE)) as temporary:
            vec_normalize.save(str(temporary))


def _without_traces(data: bytes) -> bytes:
    """What SB3 saves as ``data``, without traces of the process: it describes classes by their attributes.

    ``copy`` and ``pickle`` add ``__slotnames__`` to the class of each object that they see.
    """
    values = json.loads(_ADDRESS.sub(b"", data))
    for value in values.values():
        if isinstance(value, dict):
            value.pop("__slotnames__", None)
    return json.dumps(values, indent=4).encode()


def in_one_line(error: BaseException) -> str:
    """Why a run ended, from the exception that ended it."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by the user"
    if isinstance(error, SystemExit):
        return "stopped by a signal"
    text = " ".join(str(error).split())
    if isinstance(error, (RunFailed, UserError, NonFiniteError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def package_versions() -> dict[str, str | None]:
    """The versions of what a run depends on; None for what is not installed."""
    return {name: _version(name) for name in RECORDED_PACKAGES}


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(command: str = "", more: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """What a run ran on: package versions, commit, platform.

    :param command: The command that asked for it.
    :param more: Versions of other packages.
    """
    return {
        "command": command,
        "commit": COMMIT,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {**package_versions(), **(more or {})},
    }


def execute_run(
    path: Path, spec: RunSpec, command: str, *, checkpoint_every: float = CHECKPOINT_EVERY
) -> int:
    """Train a run in this process for an engine; the arguments are :func:`train_run`'s.

    :return: The process' exit status: 0 for done, 1 for failed.
    """
    try:
        train_run(spec, path, command=command, checkpoint_every=checkpoint_every)
    except (RunFailed, UserError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # before or after training: its folder could not be written
        print(f"{path}: {error}", file=sys.stderr)
        directory = RunDirectory(path)
        with suppress(OSError, UserError):  # by now it may be somebody else's
            if directory.compare(spec) != "done":
                status = directory.read_status() or Status("running")
                directory.write_status(status.ended_as("failed", time.time(), str(error)))
        return 1
    return 0
