"""Curves over training: of evaluations, and of figures that updates log."""

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

#: The most points of a curve; more cannot be seen.
N_POINTS = 100

STEPS = "time/total_timesteps"
SIGN_CHANGE = "train/advantage_sign_change"
ENTROPY_LOSS = "train/entropy_loss"
#: Of language models, with what they are.
LANGUAGE_MODEL_FIGURES = {
    "rollout/reward": "training reward, without noise",
    "eval/judge": "score by the judge, which training does not see",
    "eval/kl": "KL divergence from the reference model (nats per response)",
    "eval/perplexity": "perplexity of reference responses",
}
TRAINING = (SIGN_CHANGE, ENTROPY_LOSS, *LANGUAGE_MODEL_FIGURES)


@dataclass(frozen=True)
class Curve:
    """Means over seeds along training, with 95% bands (percentile bootstrap)."""

    #: Training steps, shape (n_points,).
    steps: Array
    mean: Array
    #: The ends of the band; NaN for a single seed.
    low: Array
    high: Array
    n_seeds: int
    #: Whether its runs have ended; the curve of others ends where the slowest of them is.
    finished: bool = True

    def negated(self) -> Curve:
        """The curve of minus its figure."""
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low)


@dataclass(frozen=True)
class Series:
    """Values along one run."""

    steps: Array
    values: Array


def learning_curve(cell: Cell) -> Curve | None:
    """Mean returns of evaluations; of the finished runs, and while there are none of those that train.

    :return: None without an evaluation that all its runs have made.
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
    """Curves of what updates log, from the same runs as the learning curve.

    :param training: Gives what the updates of a run logged, see :func:`read_training`.
    :return: Curves by the names in :data:`TRAINING`, as far as these were logged, and lines on logs that
        could not be read.
    """
    chosen, finished = _chosen(cell)
    logs: list[Mapping[str, Series]] = []
    notes: list[str] = []
    for run in chosen:
        try:
            logs.append(training(run))
        except UserError:
            notes.append(f"{run.path}: not in the curves of training figures, {PROGRESS}: damaged")
        except (OSError, ValueError) as error:
            # The system's own words would name the whole path
            words = getattr(error, "strerror", None) or str(error)
            reason = " ".join(words.split())[:200]
            notes.append(f"{run.path}: not in the curves of training figures, {PROGRESS}: {reason}")
    curves = {}
    for name in TRAINING:
        curve = _mean_curve([log[name] for log in logs if name in log], finished)
        if curve is not None:
            curves[name] = curve
    return curves, notes


def read_training(path: Path, status: Status | None = None) -> dict[str, Series]:
    """What updates logged, from SB3's ``progress.csv``.

    :raises OSError, ValueError: If it cannot be read.
    :raises UserError: If it is not what the finished run left.
    """
    content = read_bytes(path)
    RunDirectory(path.parent).check_file(path.name, content, status)
    # Of a run under way, the last row may be half written
    content = content[: content.rfind(b"\n") + 1]
    # pandas would take columns of longer rows for others
    n_rows, header = content.count(b"\n"), content.partition(b"\n")[0]
    if content.count(b",") > header.count(b",") * n_rows:
        raise ValueError("it has rows that are longer than its header")
    names = [name.strip('"') for name in header.decode(errors="replace").split(",")]
    if STEPS not in names:
        raise ValueError(f"it has no column {STEPS}")
    present = [name for name in (STEPS, *TRAINING) if name in names]
    # A third of the time that pandas takes, and a report reads thousands
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
            # Once for each number of steps, as curves of other runs are put beside it by that
            own_steps, places = np.unique(steps[logged], return_index=True)
            if len(own_steps):
                # As archives keep them
                single = values[logged][places].astype(np.float32).astype(float)
                series[name] = Series(own_steps, single)
    return series


def _chosen(cell: Cell) -> tuple[list[Run], bool]:
    """The finished runs; if there are none, those with evaluations that are under way."""
    done = [run for run in cell.runs if run.state == "done"]
    if done:
        return done, True
    under_way = [r for r in cell.runs if r.state in ("running", "interrupted") and r.evaluations is not None]
    return under_way, False


def _mean_curve(series: Sequence[Series], finished: bool) -> Curve | None:
    if not series:
        return None
    steps = reduce(np.intersect1d, (one.steps for one in series))
    if not len(steps):
        return None
    values = np.stack([one.values[np.searchsorted(one.steps, steps)] for one in series])
    # Neighbouring points that cannot be told apart become their mean
    starts = np.unique(np.linspace(0, len(steps), N_POINTS + 1).astype(int))[:-1]
    counts = np.diff([*starts, len(steps)])
    mean, low, high = mean_band(np.add.reduceat(values, starts, axis=1) / counts)
    return Curve(np.add.reduceat(steps, starts) / counts, mean, low, high, len(series), finished)
