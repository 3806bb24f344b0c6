"""Curves of evaluations and of logged values over training."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
from pyarrow import float64
from pyarrow.csv import ConvertOptions, ReadOptions, read_csv

from srl.errors import UserError
from srl.report.cells import Cell
from srl.report.intervals import Array, mean_band
from srl.report.runs import Run
from srl.rundir.directory import RunDirectory
from srl.rundir.files import read_bytes
from srl.rundir.names import PROGRESS
from srl.rundir.status import Status

#: Maximum number of points of a curve.
N_POINTS = 100

STEPS = "time/total_timesteps"
SIGN_CHANGE = "train/advantage_sign_change"
ENTROPY_LOSS = "train/entropy_loss"
#: Logged values of language models, with their labels.
LANGUAGE_MODEL_FIGURES = {
    "rollout/reward": "training reward, without noise",
    "eval/judge": "score by the judge, which training does not see",
    "eval/kl": "KL divergence from the reference model (nats per response)",
    "eval/perplexity": "perplexity of reference responses",
}
TRAINING = (SIGN_CHANGE, ENTROPY_LOSS, *LANGUAGE_MODEL_FIGURES)


@dataclass(frozen=True)
class Curve:
    """Means over seeds during training, with 95% bands (percentile bootstrap)."""

    #: Training steps, shape (n_points,).
    steps: Array
    mean: Array
    #: The ends of the band; NaN for a single seed.
    low: Array
    high: Array
    n_seeds: int
    #: Whether its runs are finished; other curves end at the progress of the slowest run.
    finished: bool = True

    def negated(self) -> Curve:
        """The curve of the negated values."""
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low)


@dataclass(frozen=True)
class Series:
    """Values of one run."""

    steps: Array
    values: Array


def learning_curve(cell: Cell) -> Curve | None:
    """Mean returns of evaluations of finished runs, or of unfinished ones if there are no others.

    :return: None without an evaluation that all runs have.
    """
    chosen, finished = _chosen(cell)
    series = [
        Series(run.evaluations.timesteps.astype(float), run.evaluations.means)
        for run in chosen
        if run.evaluations is not None
    ]
    return _mean_curve(series, finished)


def training_curves(
    cell: Cell, training: Callable[[Run], Mapping[str, Series]]
) -> tuple[dict[str, Curve], list[str]]:
    """Curves of logged values, from the same runs as the learning curve.

    :param training: Reads the logged values of a run, see :func:`read_training`.
    :return: Curves by the names in :data:`TRAINING`, and lines on logs that could not be read.
    """
    chosen, finished = _chosen(cell)
    logs: list[Mapping[str, Series]] = []
    notes: list[str] = []
    for run in chosen:
        try:
            logs.append(training(run))
        except (OSError, ValueError) as error:
            reason = describe_problem(error)
            notes.append(f"{run.path}: not in the curves of training figures, {PROGRESS}: {reason}")
    curves = {}
    for name in TRAINING:
        curve = _mean_curve([log[name] for log in logs if name in log], finished)
        if curve is not None:
            curves[name] = curve
    return curves, notes


def describe_problem(error: OSError | ValueError) -> str:
    """Why a log cannot be read, without its path."""
    if isinstance(error, UserError):
        return "damaged"
    return " ".join((getattr(error, "strerror", None) or str(error)).split())[:200]


def read_training(path: Path, status: Status | None = None) -> dict[str, Series]:
    """Read logged values from SB3's ``progress.csv``.

    :raises OSError, ValueError: If it cannot be read.
    :raises UserError: If it has changed since the run finished.
    """
    content = read_bytes(path)
    RunDirectory(path.parent).check_file(path.name, content, status)
    # The last row of a running run may be incomplete
    content = content[: content.rfind(b"\n") + 1]
    # Longer rows would shift columns
    n_rows, header = content.count(b"\n"), content.partition(b"\n")[0]
    if content.count(b",") > header.count(b",") * n_rows:
        raise ValueError("it has rows that are longer than its header")
    names = [name.strip('"') for name in header.decode(errors="replace").split(",")]
    if STEPS not in names:
        raise ValueError(f"it has no column {STEPS}")
    present = [name for name in (STEPS, *TRAINING) if name in names]
    # Three times faster than pandas
    table = read_csv(
        io.BytesIO(content),
        ReadOptions(use_threads=False),
        convert_options=ConvertOptions(
            include_columns=present, column_types=dict.fromkeys(present, float64())
        ),
    )
    steps = table[STEPS].to_numpy()
    series = {}
    for name in TRAINING:
        if name in present:
            values = table[name].to_numpy()
            logged = np.isfinite(values) & np.isfinite(steps)
            # Unique steps, by which curves of several runs are aligned
            own_steps, places = np.unique(steps[logged], return_index=True)
            if len(own_steps):
                # The precision of archives
                single = values[logged][places].astype(np.float32).astype(float)
                series[name] = Series(own_steps, single)
    return series


def _chosen(cell: Cell) -> tuple[list[Run], bool]:
    """The finished runs, or the unfinished ones with evaluations if there are no others."""
    done = [run for run in cell.runs if run.state == "done"]
    if done:
        return done, True
    unfinished = [r for r in cell.runs if r.state in ("running", "interrupted") and r.evaluations is not None]
    return unfinished, False


def _mean_curve(series: Sequence[Series], finished: bool) -> Curve | None:
    if not series:
        return None
    steps = reduce(np.intersect1d, (one.steps for one in series))
    if not len(steps):
        return None
    values = np.stack([one.values[np.searchsorted(one.steps, steps)] for one in series])
    # Average neighboring points
    starts = np.unique(np.linspace(0, len(steps), N_POINTS + 1).astype(int))[:-1]
    counts = np.diff([*starts, len(steps)])
    mean, low, high = mean_band(np.add.reduceat(values, starts, axis=1) / counts)
    return Curve(np.add.reduceat(steps, starts) / counts, mean, low, high, len(series), finished)
