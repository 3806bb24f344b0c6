"""The tracking services: Weights & Biases, MLflow and Trackio."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from srl.config.difference import flatten
from srl.config.spec import RunSpec
from srl.errors import UserError, nearest

#: Backends and the packages that they need: as imported, and as installed.
BACKENDS = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
#: The column of ``progress.csv`` with the training steps.
STEP_COLUMN = "time/total_timesteps"


@dataclass
class Sent:
    """The part of a run that was sent to a backend."""

    backend: str
    project: str
    #: The tracked run's id.
    id: str
    #: SHA-256 of the run's spec.
    spec: str
    #: Number of rows of ``progress.csv``.
    rows: int = 0
    #: SHA-256 of the model that was sent; empty for none.
    model: str = ""
    #: Whether the tracked run was finished as done.
    done: bool = False


class Backend(Protocol):
    """A tracking service. An id identifies each run."""

    def create(self, sent: Sent, spec: RunSpec, group: str) -> str:
        """Create a tracked run, unless the service does that when it is opened.

        :return: Its id from now on.
        """
        ...

    def start(self, sent: Sent, spec: RunSpec, group: str) -> None:
        """Open a tracked run, a new one or an existing one to continue. May be called again if it fails."""
        ...

    def log(self, run_id: str, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Send metrics with their training steps."""
        ...

    def finish(self, run_id: str, state: str, files: Sequence[Path]) -> None:
        """Send files as an artifact, and end the tracked run.

        :param state: ``done``, ``failed``, or ``running`` for a run that can be resumed.
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

    def create(self, sent: Sent, spec: RunSpec, group: str) -> str:
        return sent.id

    def start(self, sent: Sent, spec: RunSpec, group: str) -> None:
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
        run.define_metric("*", step_metric=STEP_COLUMN)
        self._runs[sent.id] = run

    def log(self, run_id: str, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, values in rows:
            self._runs[run_id].log({**values, STEP_COLUMN: step})

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

    def create(self, sent: Sent, spec: RunSpec, group: str) -> str:
        tags = {"group": group, "srl.path": spec.path}
        run = self._client.create_run(self._experiment, run_name=spec.path, tags=tags)
        return str(run.info.run_id)

    def start(self, sent: Sent, spec: RunSpec, group: str) -> None:
        from mlflow.entities import Param

        params = [
            Param(name, json.dumps(value)) for name, value in flatten(spec.model_dump(mode="json")).items()
        ]
        for first in range(0, len(params), 100):  # the most that one call takes
            self._client.log_batch(sent.id, params=params[first : first + 100])
        self._client.update_run(sent.id, status="RUNNING")

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

    def start(self, sent: Sent, spec: RunSpec, group: str) -> None:
        # Trackio continues runs by name; the id distinguishes runs of one path in different folders
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

    def log(self, run_id: str, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, values in rows:
            self._runs[run_id].log(dict(values), step=step)

    def _end(self, run: Any, state: str) -> None:
        run.finish()


BACKEND_CLASSES: dict[str, Callable[[str], Backend]] = {
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
