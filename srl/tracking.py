"""Send runs to Weights & Biases, MLflow or Trackio while they train.

A process of its own follows the run directories and sends what is new in them. Training neither knows of it
nor shares a random generator or a failure with it, and runs of all engines are tracked alike. What was sent
is recorded in ``tracking.json`` in each run directory, so that a resumed run continues its tracked run, and
what could not be sent is sent when the command is rerun.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from srl.config.difference import flatten
from srl.config.lenient import spec_text
from srl.config.spec import RunSpec
from srl.errors import UserError, nearest
from srl.rundir.directory import RunDirectory
from srl.rundir.files import read_bytes, write_text
from srl.rundir.names import MODEL, PROGRESS, VECNORMALIZE, VERSIONS

#: What is recorded of a run's tracking, in its directory.
TRACKING = "tracking.json"
#: Backends and the packages that they need: as imported, and as installed.
BACKENDS = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
#: Seconds between two looks into the run directories.
_INTERVAL = 2.0
#: The column of ``progress.csv`` with the training steps, and columns that are not sent.
_STEP = "time/total_timesteps"
_LEFT_OUT = {_STEP, "time/time_elapsed", "time/fps"}
#: What the process says when it is ready, and before each error.
_READY, _ERROR = "ready", "error: "
_COMMAND = [sys.executable, "-m", "srl.tracking"]


@dataclass
class Sent:
    """What of a run was sent to a backend."""

    backend: str
    project: str
    #: The tracked run's id.
    id: str
    #: SHA-256 of the spec that it is of.
    spec: str
    #: Rows of ``progress.csv``.
    rows: int = 0
    #: SHA-256 of the model that was sent; empty for none.
    model: str = ""
    #: Whether the tracked run was ended as done.
    done: bool = False


class Backend(Protocol):
    """Sends to a tracking service. Runs are told apart by ids."""

    def start(self, sent: Sent, spec: RunSpec, group: str, is_new: bool) -> str:
        """Open a tracked run, new or to be continued.

        :return: Its id from now on.
        """
        ...

    def log(self, run_id: str, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Send metrics with their training steps."""
        ...

    def finish(self, run_id: str, state: str, files: Sequence[Path]) -> None:
        """Send files as an artifact, and end the tracked run.

        :param state: ``done``, ``failed`` or ``running``, which is that of a run to be resumed.
        """
        ...


class WandbBackend:
    """Weights & Biases; ``WANDB_MODE=offline`` keeps everything in ``./wandb``."""

    def __init__(self, project: str):
        import wandb

        self._module: Any = wandb
        self._project = project
        self._runs: dict[str, Any] = {}
        if wandb.setup().settings.mode in ("online", "shared") and not wandb.login():
            raise RuntimeError("no API key; run `wandb login`, or set WANDB_MODE=offline")

    def start(self, sent: Sent, spec: RunSpec, group: str, is_new: bool) -> str:
        run = self._module.init(
            project=self._project,
            group=group,
            name=spec.path,
            id=sent.id,
            resume="allow",
            config=spec.model_dump(mode="json"),
            reinit="create_new",
            settings=self._module.Settings(
                silent=True, console="off", x_disable_stats=True, allow_offline_artifacts=True
            ),
        )
        run.define_metric("*", step_metric=_STEP)
        self._runs[sent.id] = run
        return sent.id

    def log(self, run_id: str, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, values in rows:
            self._runs[run_id].log({**values, _STEP: step})

    def finish(self, run_id: str, state: str, files: Sequence[Path]) -> None:
        run = self._runs[run_id]
        if files:
            artifact = self._module.Artifact(f"model-{run_id}", type="model")
            for file in files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)
        self._end(run, state)
        del self._runs[run_id]

    def _end(self, run: Any, state: str) -> None:
        run.finish(exit_code=int(state != "done"))


class MlflowBackend:
    """MLflow, at ``MLFLOW_TRACKING_URI``."""

    def __init__(self, project: str):
        from mlflow import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(project)
        self._experiment = found.experiment_id if found else self._client.create_experiment(project)

    def start(self, sent: Sent, spec: RunSpec, group: str, is_new: bool) -> str:
        from mlflow.entities import Param

        run_id = sent.id
        if is_new:
            tags = {"group": group, "srl.path": spec.path}
            run_id = self._client.create_run(self._experiment, run_name=spec.path, tags=tags).info.run_id
        params = [
            Param(name, json.dumps(value)) for name, value in flatten(spec.model_dump(mode="json")).items()
        ]
        for first in range(0, len(params), 100):  # the most that one call takes
            self._client.log_batch(run_id, params=params[first : first + 100])
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def log(self, run_id: str, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, values in rows for name, value in values.items()]
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(run_id, metrics=metrics[first : first + 1000])

    def finish(self, run_id: str, state: str, files: Sequence[Path]) -> None:
        for file in files:
            self._client.log_artifact(run_id, str(file), "model")
        status = {"done": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
        self._client.set_terminated(run_id, status)


class TrackioBackend(WandbBackend):
    """Trackio, whose interface is that of W&B; local, or at the Space of ``TRACKIO_SPACE_ID``."""

    def __init__(self, project: str):
        import trackio

        self._module, self._project = trackio, project
        self._runs = {}
        if os.environ.get("TRACKIO_SPACE_ID"):
            from huggingface_hub import get_token

            if get_token() is None:
                raise RuntimeError("no token for the Space of TRACKIO_SPACE_ID; run `hf auth login`")

    def start(self, sent: Sent, spec: RunSpec, group: str, is_new: bool) -> str:
        # Runs are continued by their names; the id tells apart runs of one path in different folders
        self._runs[sent.id] = self._module.init(
            project=self._project,
            name=f"{spec.path} {sent.id}",
            group=group,
            config=spec.model_dump(mode="json"),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return sent.id

    def log(self, run_id: str, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, values in rows:
            self._runs[run_id].log(dict(values), step=step)

    def _end(self, run: Any, state: str) -> None:
        run.finish()


_CLASSES: dict[str, Callable[[str], Backend]] = {
    "wandb": WandbBackend,
    "mlflow": MlflowBackend,
    "trackio": TrackioBackend,
}


def check_backend(backend: str) -> None:
    """Check the option ``--track``.

    :raises UserError: If there is no such backend, or its package is not installed.
    """
    if backend not in BACKENDS:
        raise UserError(
            f"--track {backend}: must be one of {', '.join(BACKENDS)}.{nearest(backend, BACKENDS)}"
        )
    if find_spec(backend) is None:
        raise UserError(f"--track {backend} needs the package {backend}: pip install {BACKENDS[backend]}.")


def read_progress(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Read the lines of SB3's ``progress.csv`` that are complete.

    :return: Training steps and finite numbers by name.
    """
    try:
        text = read_bytes(path / PROGRESS).decode()
    except (OSError, UnicodeDecodeError):
        return []
    rows = []
    for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
        values = {}
        for name, word in row.items():
            with suppress(TypeError, ValueError):
                if math.isfinite(number := float(word)):
                    values[name] = number
        step = int(values.get(_STEP, 0))
        rows.append((step, {name: value for name, value in values.items() if name not in _LEFT_OUT}))
    return rows


@dataclass
class Follower:
    """Sends what is new in run directories.

    :param project: The project's or experiment's name.
    :param paths: The runs' folders, which need not exist yet.
    """

    backend_name: str
    project: str
    paths: Sequence[Path]
    backend: Backend
    #: Runs that are open, by folder.
    _open: dict[Path, Sent] = field(default_factory=dict)
    #: Time of change and size of what was read last.
    _seen: dict[Path, tuple[int, int]] = field(default_factory=dict)
    #: Runs of which everything was sent.
    _complete: set[Path] = field(default_factory=set)

    def look(self, *, last: bool = False) -> list[str]:
        """Send what is new.

        :param last: End runs that are not done, too.
        :return: What went wrong, in lines.
        """
        problems = []
        for path in self.paths:
            if path in self._complete:
                continue
            try:
                self._look_at(path, last)
            except Exception as error:  # of any package, server or disk
                text = " ".join(str(error).split())[:300]
                problems.append(f"{path}: {type(error).__name__}: {text}")
        return problems

    def _look_at(self, path: Path, last: bool) -> None:
        directory = RunDirectory(path)
        spec = directory.read_spec()
        status = directory.read_status()
        if spec is None or status is None:
            return
        sent = self._open.get(path) or self._recorded(path, spec)
        is_done = status.state == "done"
        digest = hashlib.sha256(read_bytes(path / MODEL)).hexdigest() if is_done else ""
        if sent is not None and is_done and sent.done and sent.model == digest:
            self._complete.add(path)
            return
        if path not in self._open:
            is_new = sent is None
            if sent is None:
                sent = Sent(self.backend_name, self.project, uuid.uuid4().hex[:12], _digest(spec))
            group = spec.path.rpartition("/")[0]
            sent.id = self.backend.start(sent, spec, group, is_new)
            self._open[path] = sent
            self._record(path, sent)
        assert sent is not None
        self._send_rows(path, sent)
        if is_done or last:
            files = [path / name for name in (MODEL, VECNORMALIZE, VERSIONS) if (path / name).is_file()]
            self.backend.finish(sent.id, status.state, files if is_done and digest != sent.model else [])
            sent.model, sent.done = digest, is_done
            self._record(path, sent)
            del self._open[path]
            if is_done:
                self._complete.add(path)

    def _send_rows(self, path: Path, sent: Sent) -> None:
        with suppress(FileNotFoundError):
            state = (path / PROGRESS).stat()
            if self._seen.get(path) == (state.st_mtime_ns, state.st_size):
                return
            rows = read_progress(path)
            if len(rows) > sent.rows:
                self.backend.log(sent.id, rows[sent.rows :])
                sent.rows = len(rows)
                self._record(path, sent)
            self._seen[path] = (state.st_mtime_ns, state.st_size)

    def _recorded(self, path: Path, spec: RunSpec) -> Sent | None:
        """Return what was sent of a run; None if nothing was, or another run was here."""
        try:
            sent = Sent(**json.loads(read_bytes(path / TRACKING))[self.backend_name])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return sent if (sent.spec, sent.project) == (_digest(spec), self.project) else None

    def _record(self, path: Path, sent: Sent) -> None:
        records = {}
        with suppress(OSError, ValueError, TypeError):
            records = dict(json.loads(read_bytes(path / TRACKING)))
        records[self.backend_name] = asdict(sent)
        write_text(path / TRACKING, json.dumps(records, indent=1) + "\n")


def _digest(spec: RunSpec) -> str:
    """Return the digest of a spec, the same alone and in a population."""
    return hashlib.sha256(spec_text(spec.model_copy(update={"stacked": False})).encode()).hexdigest()


@dataclass
class Outcome:
    """How tracking went."""

    #: What went wrong, in lines; empty if everything was sent.
    problems: list[str] = field(default_factory=list)


@contextmanager
def tracking(backend: str | None, project: str, paths: Sequence[Path]) -> Iterator[Outcome]:
    """Track runs in a process of its own, from before training until everything is sent.

    :param backend: ``wandb``, ``mlflow`` or ``trackio``; None tracks nothing.
    :param project: The project's or experiment's name.
    :param paths: The runs' folders.
    :return: A context; at its end, how that went.
    :raises UserError: On entering, if the backend cannot be used: a package or a login is missing.
    """
    outcome = Outcome()
    if backend is None:
        yield outcome
        return
    check_backend(backend)
    process = subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C ends runs in order, whose ends are still to be sent
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        asked = {"backend": backend, "project": project, "paths": [str(path.absolute()) for path in paths]}
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        answer = process.stdout.readline().strip()
        if answer != _READY:
            reason = answer.removeprefix(_ERROR) or "its process ended"
            raise UserError(f"--track {backend}: {reason}. Nothing was trained.")
        yield outcome
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
        said = process.stdout.read().splitlines()
        outcome.problems += [line.removeprefix(_ERROR) for line in said if line.startswith(_ERROR)]
        if process.wait() != 0 and not outcome.problems:
            outcome.problems.append(f"the process that tracks ended with status {process.returncode}")


def main() -> int:
    """Follow run directories until standard input ends; return the exit status."""
    asked = json.loads(sys.stdin.readline())
    # What the packages print must not mix with what is said to the parent
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        backend = _CLASSES[asked["backend"]](asked["project"])
    except BaseException as error:
        text = " ".join(str(error).split())[:300]
        print(f"{_ERROR}{type(error).__name__}: {text}", file=answers)
        return 2
    follower = Follower(asked["backend"], asked["project"], [Path(path) for path in asked["paths"]], backend)
    print(_READY, file=answers)
    from select import select

    while not select([sys.stdin], [], [], _INTERVAL)[0]:
        follower.look()
    problems = follower.look(last=True)
    for problem in problems:
        with suppress(BrokenPipeError):
            print(f"{_ERROR}{problem}", file=answers)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
