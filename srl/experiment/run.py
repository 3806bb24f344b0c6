"""Train one run into its directory."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from srl import SA2C, SPPO
from srl.envs import make_train_env
from srl.envs.finite import NonFiniteError
from srl.errors import UserError
from srl.experiment.callbacks import Evaluation, FiniteTraining, Heartbeat
from srl.experiment.memory import keep_freed_memory
from srl.experiment.policy_options import policy_kwargs
from srl.experiment.spec import RunSpec
from srl.experiment.store import (
    ERROR,
    MODEL,
    MONITOR,
    VECNORMALIZE,
    VERSIONS,
    RunDirectory,
    Status,
    replacing,
    write_text,
)

_ALGORITHM_CLASSES: dict[str, type[SA2C | SPPO]] = {"a2c": SA2C, "ppo": SPPO}
#: The packages whose versions a run records.
RECORDED_PACKAGES = (
    "symmetric-rl", "torch", "stable-baselines3", "gymnasium", "ale-py", "mujoco", "box2d", "numpy",
    "opencv-python-headless", "tensorboard",
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


def make_model(spec: RunSpec, env: VecEnv) -> SA2C | SPPO:
    """The run's algorithm on its environment.

    :param spec: The run. A baseline is the symmetric algorithm with ``beta=0``, which is SB3's to the bit
        and logs the same figures.
    :param env: Its training environment.
    :return: The algorithm, untrained.
    """
    kwargs = spec.hyperparams.algorithm_kwargs()
    for name in ("learning_rate", "clip_range", "clip_range_vf"):
        if isinstance(kwargs.get(name), str):
            kwargs[name] = LinearSchedule(float(kwargs[name].removeprefix("lin_")), 0.0, 1.0)
    return _ALGORITHM_CLASSES[spec.algorithm.family](
        spec.hyperparams.policy,
        env,
        policy_kwargs=policy_kwargs(spec.hyperparams.policy_kwargs),
        seed=spec.seed,
        device=spec.device,
        **kwargs,
    )


def train_run(
    spec: RunSpec, path: Path, *, command: str = "", tell: Callable[[Status], None] | None = None
) -> Status:
    """Train a run into its directory, from the start.

    :param spec: The run.
    :param path: Its folder, new or of an unfinished run of the same spec.
    :param command: The command that asked for it, for the record.
    :param tell: Is given the status about once a second.
    :return: The status at the end.
    :raises RunFailed: If training failed; the directory says why.
    :raises UserError: If the folder does not fit.
    """
    attempt = Attempt(spec, path, command=command, tell=tell)
    try:
        with attempt:
            if attempt.running:  # else another process has finished it since it was planned
                attempt.finish(_train(spec, path, attempt.beat))
    except Exception as error:
        if error is not attempt.error:
            raise  # the folder does not fit
    if attempt.status.state == "failed":
        raise RunFailed(attempt.status.reason) from attempt.error
    return attempt.status


class Attempt:
    """One attempt at a run, as its directory tells it. A context: on an exception the attempt has failed.

    :param spec: The run.
    :param path: Its folder, new or of an unfinished run of the same spec.
    :param command: The command that asked for it, for the record.
    :param tell: Is given the status about once a second.
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
    ):
        self.spec = spec
        self.path = path
        #: What ended it.
        self.error: Exception | None = None
        self._directory = RunDirectory(path)
        self._command = command
        self._tell = tell
        self._claim = self._directory.claimed(spec)

    @property
    def running(self) -> bool:
        """Whether there is something left to do."""
        return self.status.state == "running"

    def __enter__(self) -> Attempt:
        there = self._claim.__enter__()
        try:
            finished = self._directory.read_status()
            if there == "done" and finished is not None:
                self.status = finished
                return self
            started = time.time()
            self.status = Status(
                state="running",
                n_timesteps=self.spec.n_timesteps,
                started=started,
                updated=started,
                pid=os.getpid(),
                host=socket.gethostname(),
            )
            self._directory.write_status(self.status)
            try:
                write_text(self.path / VERSIONS, json.dumps(versions(self._command), indent=1) + "\n")
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

    def beat(self, timesteps: int) -> None:
        """Record how far training is."""
        now = time.time()
        self.status = replace(
            self.status,
            timesteps=min(timesteps, self.spec.n_timesteps),
            updated=now,
            steps_per_second=timesteps / max(now - self.status.started, 1e-9),
        )
        self._directory.write_status(self.status)
        if self._tell is not None:
            self._tell(self.status)

    def finish(self, timesteps: int) -> None:
        """Record that the run is done."""
        self.beat(timesteps)
        self.status = self.status.ended_as("done", time.time())
        self._directory.write_status(self.status)

    def fail(self, error: BaseException) -> None:
        """Record why the run has failed."""
        if isinstance(error, Exception):
            self.error = error
        self.status = self.status.ended_as("failed", time.time(), in_one_line(error))
        # Saying why must not hide the reason itself: the disk may be full
        try:
            self._directory.write_status(self.status)
            write_text(self.path / ERROR, "".join(traceback.format_exception(error)))
        except OSError as problem:
            reason = f"{self.status.reason}; and that could not be written: {problem}"
            print(f"{self.path}: {reason}", file=sys.stderr)


def _train(spec: RunSpec, path: Path, beat: Callable[[int], None]) -> int:
    th.set_num_threads(spec.threads)
    keep_freed_memory()
    env = make_train_env(spec.env_spec(), monitor_dir=str(path / MONITOR))
    evaluation = Evaluation(spec, path)
    try:
        model = make_model(spec, env)
        model.set_logger(configure(str(path), ["csv", "tensorboard"]))
        try:
            model.learn(
                spec.n_timesteps, callback=CallbackList([Heartbeat(beat), FiniteTraining(), evaluation])
            )
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


def save(path: Path, model: SA2C | SPPO, vec_normalize: VecNormalize | None) -> None:
    """Write a run's final model and its statistics, each file whole or not at all."""
    with replacing(path / MODEL) as temporary, temporary.open("wb") as file:
        model.save(file)
    if vec_normalize is not None:
        with replacing(path / VECNORMALIZE) as temporary:
            vec_normalize.save(str(temporary))


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


def versions(command: str = "") -> dict[str, Any]:
    """What a run ran on: package versions, commit, platform.

    :param command: The command that asked for it.
    """
    packages: dict[str, str | None] = {}
    for name in RECORDED_PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "command": command,
        "commit": COMMIT,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
    }


def execute_run(path: Path, spec: RunSpec, command: str) -> int:
    """Train a run in this process for an engine.

    :return: The process' exit status: 0 for done, 1 for failed.
    """
    try:
        train_run(spec, path, command=command)
    except (RunFailed, UserError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # before or after training: its folder could not be written
        print(f"{path}: {error}", file=sys.stderr)
        now = time.time()
        with suppress(OSError):
            RunDirectory(path).write_status(Status("failed", updated=now, ended=now, reason=str(error)))
        return 1
    return 0
