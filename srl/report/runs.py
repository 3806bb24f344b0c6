"""Read the runs of a folder, with a score or the reason why they have none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from srl.config.difference import flatten
from srl.config.lenient import LenientSpec
from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.report.folders import find_folders, foreign_folders
from srl.rundir.directory import RunDirectory
from srl.rundir.plan import read_plan
from srl.rundir.status import Status

#: Keys of a spec that do not distinguish the cells of a table.
_NOT_COMPARED = {"seed", "device", "threads", "stacked", "compile_update", "numpy_acting", "gym_packages"}

State = Literal["done", "running", "interrupted", "failed", "damaged", "short", "missing"]

#: The states of runs without a score, in display order.
UNFINISHED: tuple[State, ...] = ("running", "interrupted", "failed", "damaged", "short", "missing")


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of a run."""

    #: Training steps at each, shape (n_evaluations,).
    timesteps: np.ndarray[Any, Any]
    #: Returns of the episodes, shape (n_evaluations, n_episodes).
    returns: np.ndarray[Any, Any]
    #: Lengths of the episodes in steps, of the same shape; None if they were not recorded.
    lengths: np.ndarray[Any, Any] | None = None
    #: Episodes of all evaluations that ``eval_max_episode_steps`` truncated.
    n_truncated: int = 0

    @property
    def means(self) -> np.ndarray[Any, Any]:
        """Mean return of each evaluation, shape (n_evaluations,)."""
        means: np.ndarray[Any, Any] = self.returns.mean(axis=1)
        return means


@dataclass(frozen=True)
class Run:
    """A run in a folder or in a plan."""

    #: Its folder, relative to the root of the report.
    path: str
    env: str
    #: The algorithm.
    algo: str
    #: The name of its column: the algorithm's, or that of a variant.
    name: str
    noise: str
    seed: int
    n_timesteps: int
    state: State
    #: Mean return over the episodes of the last evaluations; NaN unless the run is done.
    score: float = float("nan")
    #: Why it is failed, damaged or short.
    reason: str = ""
    #: The settings that distinguish cells, flattened; empty for a missing run.
    settings: tuple[tuple[str, str], ...] = ()
    spec: RunSpec | None = field(default=None, repr=False)
    #: Unknown keys of its spec by a newer srl, dotted; they also distinguish cells.
    unknown: Mapping[str, Any] = field(default_factory=dict, repr=False)
    status: Status | None = field(default=None, repr=False)
    #: None if they cannot be read.
    evaluations: Evaluations | None = field(default=None, repr=False)
    #: Lines on damaged files that its score does not depend on.
    minor_damage: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, str, int, str]:
        """Its place in a table: environment, noise, steps, name of the column."""
        return self.env, self.noise, self.n_timesteps, self.name


def read_runs(root: Path, *, last: int = 1) -> tuple[list[Run], list[str]]:
    """Read all runs at or below a folder; nothing is written.

    :param root: The folder of a sweep, or of a run.
    :param last: The score of a run is the mean over this many evaluations, the last ones.
    :return: The runs, planned ones included, and lines on folders that cannot be read or are not runs.
    :raises UserError: If the folder does not exist or contains no run.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder.")
    found = find_folders(root)
    notes = list(found.unreadable)
    runs: list[Run] = []
    for path in found.runs:
        directory = RunDirectory(root / path)
        try:
            found_spec = directory.read_spec_leniently()
            if found_spec is None:
                continue  # it was removed in between
            # A changed spec would be that of another experiment
            directory.check_spec(found_spec, directory.read_status())
        except UserError as error:
            notes.append(_relative(error, root))
            continue
        runs.append(_read_run(directory, found_spec, path, last, root))
    there = {run.path for run in runs}
    runs = _without_copies(runs, notes)
    planned: list[str] = []
    for path in found.plans:
        try:
            plan = read_plan(root / path)
        except UserError as error:
            notes.append(_relative(error, root))
            continue
        for run in plan:
            where = (Path(path) / run.path).as_posix()
            planned.append(where)
            if where not in there:
                name = run.variant or run.algo
                runs.append(
                    Run(where, run.env, run.algo, name, run.noise, run.seed, run.n_timesteps, state="missing")
                )
    notes += foreign_folders(found, planned)
    if not runs:
        raise UserError("\n".join([f"{root} contains no runs.", *notes]))
    return runs, notes


def _relative(line: object, root: Path) -> str:
    """A line with paths relative to the root."""
    return str(line).removeprefix(f"{root}{os.sep}")


def _without_copies(runs: Sequence[Run], notes: list[str]) -> list[Run]:
    """Keep one copy of each run: the first finished one, or else the first."""
    kept: dict[tuple[int, tuple[tuple[str, str], ...]], Run] = {}
    for run in runs:
        first = kept.setdefault((run.seed, run.settings), run)
        if first is not run:
            stays, left = (run, first) if run.state == "done" != first.state else (first, run)
            kept[run.seed, run.settings] = stays
            notes.append(f"{left.path}: left out, the same run as {stays.path}.")
    return list(kept.values())


def _read_run(directory: RunDirectory, found: LenientSpec, path: str, last: int, root: Path) -> Run:
    spec, status = found.spec, directory.read_status()
    evaluations: Evaluations | None = None
    problem = ""
    try:
        arrays = directory.read_evaluations(status)
        lengths = arrays.get("ep_lengths")
        same_shape = lengths is not None and lengths.shape == arrays["results"].shape
        reached = arrays.get("reached_max_steps")
        evaluations = Evaluations(
            arrays["timesteps"],
            arrays["results"],
            lengths if same_shape else None,
            int(reached.sum()) if reached is not None and reached.dtype == bool else 0,
        )
    except UserError as error:
        problem = _relative(error, root)
    state: State
    reason, minor_damage = "", list[str]()
    if (status is not None and status.state == "done") or (status is None and directory.is_finished()):
        state, reason = "done", problem
        minor_damage = directory.minor_damage(thorough=False)
        # The score is valid although a sweep would retrain the run
        minor_damage += directory.model_damage(status) if status else []
    elif status is None and directory.has_status:
        state, reason = "damaged", "status.json cannot be read."
    elif status is not None and status.state == "failed":
        state, reason = "failed", status.reason
    else:
        state = "running" if directory.in_progress else "interrupted"
    return scored_run(
        path,
        spec,
        state,
        reason,
        last,
        unknown=found.unknown,
        status=status,
        evaluations=evaluations,
        minor_damage=[_relative(line, root) for line in minor_damage],
    )


def scored_run(
    path: str,
    spec: RunSpec,
    state: State,
    reason: str,
    last: int,
    *,
    unknown: Mapping[str, Any],
    status: Status | None,
    evaluations: Evaluations | None,
    minor_damage: Sequence[str],
) -> Run:
    """Return a run with the score that its evaluations give.

    :param path: Its folder, relative to the root of the report.
    :param state: ``"done"`` for a run that has ended, which is damaged or short without the evaluations for
        a score; else its state.
    :param reason: Why it is in that state, or has no evaluations.
    :param last: The score is the mean over this many evaluations, the last ones.
    :param unknown: Unknown keys of its spec by a newer srl.
    :param minor_damage: Lines on its damaged files that its score does not depend on.
    """
    compared = flatten(spec.model_dump(mode="json", exclude=_NOT_COMPARED)) | dict(unknown)
    score = float("nan")
    if state == "done":
        state, reason, score = _judge(evaluations, spec, last, reason)
    return Run(
        path,
        spec.env,
        spec.algo,
        spec.variant or spec.algo,
        spec.noise,
        spec.seed,
        spec.n_timesteps,
        state,
        score,
        reason,
        settings=tuple((key, json.dumps(value)) for key, value in compared.items()),
        spec=spec,
        unknown=unknown,
        status=status,
        evaluations=evaluations,
        minor_damage=tuple(minor_damage) if state == "done" else (),
    )


def _judge(
    evaluations: Evaluations | None, spec: RunSpec, last: int, problem: str
) -> tuple[State, str, float]:
    """State, reason and score of a run whose status is done."""
    if evaluations is None:
        return "damaged", problem, float("nan")
    timesteps = evaluations.timesteps
    score = float(evaluations.means[-last:].mean())
    if timesteps[-1] < spec.n_timesteps or not np.isfinite(score):
        return "damaged", "the final evaluation is missing.", float("nan")
    if len(timesteps) < last:
        reason = f"its evaluations are {len(timesteps)}, fewer than the {last} to average."
        return "short", reason, float("nan")
    return "done", "", score
