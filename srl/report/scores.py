"""Run directories, and plans of sweeps, as scores."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from srl.errors import UserError
from srl.experiment.spec import RunSpec
from srl.experiment.store import PLAN, RunDirectory, find_runs, flatten, read_plan

#: How a run was executed, and its seed, do not tell one row of a table from another.
_NOT_COMPARED = {"seed", "device", "threads", "stacked"}

State = Literal["done", "running", "interrupted", "failed", "damaged", "missing"]


@dataclass(frozen=True)
class Score:
    """A run's final evaluation, or why it has none."""

    path: str
    env: str
    algo: str
    noise: str
    seed: int
    n_timesteps: int
    state: State
    #: Mean return over the episodes of the final evaluation; NaN unless the run is done.
    score: float = float("nan")
    #: Why it is failed or damaged.
    reason: str = ""
    #: All that is compared, flat; empty for a run that is missing.
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def cell(self) -> tuple[str, str, int, str]:
        """Its place in the table: environment, noise, steps, algorithm."""
        return self.env, self.noise, self.n_timesteps, self.algo


def read_scores(root: Path) -> tuple[list[Score], list[str]]:
    """The scores of all runs at or below a folder; nothing is written.

    :param root: The folder of a sweep, or of a run.
    :return: A score for each run that is there or planned, and lines that name what could not be read.
    :raises UserError: If there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder.")
    scores: list[Score] = []
    unreadable: list[str] = []
    for directory in find_runs(root):
        path = directory.path.relative_to(root).as_posix()
        try:
            spec = directory.read_spec()
        except UserError as error:
            unreadable.append(str(error))
            continue
        if spec is not None:
            scores.append(_read_score(directory, spec, path))
    there = {score.path for score in scores}
    scores = _without_copies(scores, unreadable)
    for file in sorted(root.rglob(PLAN)):
        folder = file.parent.relative_to(root)
        try:
            plan = read_plan(file.parent)
        except UserError as error:
            unreadable.append(str(error))
            continue
        for run in plan:
            path = (folder / run.path).as_posix()
            if path not in there:
                score = Score(path, run.env, run.algo, run.noise, run.seed, run.n_timesteps, state="missing")
                scores.append(score)
    if not scores:
        raise UserError("\n".join([f"{root} holds no runs.", *unreadable]))
    return scores, unreadable


def _without_copies(scores: Sequence[Score], notes: list[str]) -> list[Score]:
    """The same run in several folders counts once: the first that is done, else the first."""
    runs: dict[tuple[int, tuple[tuple[str, str], ...]], Score] = {}
    for score in scores:
        first = runs.setdefault((score.seed, score.settings), score)
        if first is not score:
            kept, left = (score, first) if score.state == "done" != first.state else (first, score)
            runs[score.seed, score.settings] = kept
            notes.append(f"{left.path}: left out, the same run as {kept.path}.")
    return list(runs.values())


def _read_score(directory: RunDirectory, spec: RunSpec, path: str) -> Score:
    score = float("nan")
    status = directory.read_status()
    state: State
    reason = ""
    if status is None:
        state = "running" if directory.in_progress else "interrupted"
    elif status.state == "done":
        state = "done"
        try:
            evaluations = directory.read_evaluations()
            score = float(np.mean(evaluations["results"][-1]))
            if int(evaluations["timesteps"][-1]) < spec.n_timesteps or not np.isfinite(score):
                raise UserError("the final evaluation is missing.")
        except UserError as error:
            state, reason, score = "damaged", str(error), float("nan")
    elif status.state == "failed":
        state, reason = "failed", status.reason
    else:
        state = "running" if directory.in_progress else "interrupted"
    compared = flatten(spec.model_dump(mode="json", exclude=_NOT_COMPARED))
    settings = tuple((key, json.dumps(value)) for key, value in compared.items())
    return Score(
        path, spec.env, spec.algo, spec.noise, spec.seed, spec.n_timesteps, state, score, reason, settings
    )


@dataclass(frozen=True)
class Cell:
    """The scores of one environment, noise, number of steps and algorithm over seeds."""

    env: str
    noise: str
    n_timesteps: int
    algo: str
    #: In what it differs from another cell of the same place, as ``beta=2.0``; usually empty.
    variant: str
    scores: tuple[Score, ...]

    @property
    def column(self) -> str:
        """The algorithm as a table names it."""
        return self.algo.upper() + (f" ({self.variant})" if self.variant else "")

    @property
    def values(self) -> list[float]:
        """The scores of the finished runs."""
        return [score.score for score in self.scores if score.state == "done"]

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without one."""
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over seeds, from the unbiased deviation; NaN for fewer than two."""
        n = len(self.values)
        return float(np.std(self.values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")

    def count(self, state: State) -> int:
        """How many of its runs are in a state."""
        return sum(score.state == state for score in self.scores)


def group(scores: Sequence[Score]) -> list[Cell]:
    """Scores over seeds: runs that differ in nothing but the seed and how they were executed.

    Runs of the same place that differ in a hyperparameter stay apart.
    """
    places: dict[tuple[str, str, int, str], list[Score]] = defaultdict(list)
    for score in scores:
        places[score.cell].append(score)
    cells = []
    for place, members in places.items():
        # What is missing has no settings: it belongs to the first variant
        settings = list(dict.fromkeys(score.settings for score in members if score.settings)) or [()]
        differing = dict.fromkeys(
            key
            for one in settings
            for key, value in one
            for other in settings
            if dict(other).get(key) != value
        )
        for setting in settings:
            values = dict(setting)
            variant = ", ".join(
                f"{key.rpartition('.')[2]}={values[key]}" for key in differing if key in values
            )
            own = [s for s in members if s.settings == setting or (not s.settings and setting == settings[0])]
            cells.append(Cell(*place, variant, tuple(sorted(own, key=lambda score: score.seed))))
    return cells
