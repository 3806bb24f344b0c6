"""Comparison of the results of two runs."""

from __future__ import annotations

import csv
import io
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from srl.config.spec import RunSpec
from srl.rundir.directory import RunDirectory
from srl.rundir.status import Status
from srl.training.run import RunFailed, train_run
from srl.training.stacked import train_population

#: Results are bitwise identical on most CPUs; some CPUs round stacked products differently.
TOLERANCE = 1e-5


def train_alone(specs: Sequence[RunSpec], root: Path) -> list[Path]:
    """Train runs one after another; return their folders. Failures are recorded in the status."""
    paths = [root / "alone" / str(index) for index in range(len(specs))]
    for spec, path in zip(specs, paths, strict=True):
        try:
            train_run(spec, path)
        except RunFailed:
            assert RunDirectory(path).read_status().state == "failed"
    return paths


def train_together(
    specs: Sequence[RunSpec], root: Path, name: str = "together"
) -> tuple[list[Path], list[Status]]:
    """Train runs as one population."""
    paths = [root / name / str(index) for index in range(len(specs))]
    return paths, train_population(specs, paths)


def assert_members_are_their_runs_alone(specs: Sequence[RunSpec], root: Path) -> list[Path]:
    """Train runs as a population and alone, and compare them; return the members' folders."""
    paths, statuses = train_together(specs, root)
    assert [(status.state, status.reason) for status in statuses] == [("done", "")] * len(specs)
    for path, alone in zip(paths, train_alone(specs, root), strict=True):
        assert_same_result(path, alone)
    return paths


def assert_same_result(ours: Path, theirs: Path) -> None:
    """Compare models, evaluations and logs of two runs."""
    assert_same_model(ours, theirs, "best_model.zip")
    left, right = (RunDirectory(path).read_evaluations() for path in (ours, theirs))
    assert left.keys() == right.keys()
    for name in left:
        assert np.array_equal(left[name], right[name]), name
    assert monitored(ours) == monitored(theirs)
    assert_same_progress(ours, theirs)
    assert_same_statistics(ours, theirs)


def assert_same_model(ours: Path, theirs: Path, *names: str) -> None:
    """Compare parameters and optimizer states, and the parameters of additional models ``names``."""
    for model in ("model.zip", *names):
        left, right = (_saved(path, "policy.pth", model) for path in (ours, theirs))
        assert left.keys() == right.keys()
        for name in left:
            assert_close(left[name], right[name], name)
    left, right = (_saved(path, "policy.optimizer.pth") for path in (ours, theirs))
    assert left["param_groups"] == right["param_groups"]
    assert left["state"].keys() == right["state"].keys()
    for parameter, state in left["state"].items():
        assert state.keys() == right["state"][parameter].keys()
        for name, value in state.items():
            assert_close(value, right["state"][parameter][name], f"{name} of parameter {parameter}")


def _saved(path: Path, name: str, model: str = "model.zip") -> Any:
    with zipfile.ZipFile(path / model) as archive:
        return th.load(io.BytesIO(archive.read(name)), weights_only=False)


def assert_close(ours: Any, theirs: Any, what: str, tolerance: float | None = None) -> None:
    """Compare arrays with a tolerance relative to the largest value: sums near 0 have large errors."""
    left, right = (np.asarray(value, dtype=np.float64) for value in (ours, theirs))
    assert left.shape == right.shape, what
    scale = np.abs(right).max(initial=0)
    tolerance = TOLERANCE if tolerance is None else tolerance
    np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * scale, err_msg=what)


def monitored(path: Path) -> dict[str, list[list[str]]]:
    """Return returns and lengths of the training episodes of each environment."""
    return {
        file.name: [line.split(",")[:2] for line in file.read_text().splitlines()[2:]]
        for file in sorted((path / "monitor").iterdir())
    }


def assert_same_progress(ours: Path, theirs: Path) -> None:
    """Compare ``progress.csv`` except for times."""
    tables = []
    for path in (ours, theirs):
        with (path / "progress.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    assert len(tables[0]) == len(tables[1])
    for left, right in zip(*tables, strict=True):
        assert list(left) == list(right)
        for name in left:
            if name in ("time/fps", "time/time_elapsed"):
                continue
            assert bool(left[name]) == bool(right[name]), name
            if left[name]:
                # Differences of nearly equal numbers, such as a KL divergence, have larger errors
                np.testing.assert_allclose(
                    float(left[name]), float(right[name]), rtol=100 * TOLERANCE, atol=TOLERANCE, err_msg=name
                )


def assert_same_statistics(ours: Path, theirs: Path) -> None:
    """Compare ``vecnormalize.pkl``, if there is one."""
    files = [path / "vecnormalize.pkl" for path in (ours, theirs)]
    assert files[0].exists() == files[1].exists()
    if not files[0].exists():
        return
    left, right = (pickle.loads(file.read_bytes()) for file in files)
    assert type(left) is type(right) is VecNormalize
    for name in ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "training"):
        assert getattr(left, name) == getattr(right, name), name
    for name in ("obs_rms", "ret_rms"):
        assert (name in vars(left)) == (name in vars(right))
        if name in vars(left):
            for part in ("mean", "var", "count"):
                values = [getattr(getattr(venv, name), part) for venv in (left, right)]
                assert_close(*values, f"{part} of {name}")
