"""The plan of a sweep, ``sweep.json``: its pending and finished runs, and what reports compare."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from srl.config.algorithms import differ_in_reverse_loss, get_algorithm
from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.rundir.files import read_bytes

#: The plan of a sweep, in its folder: its pending and finished runs.
PLAN = "sweep.json"
PLAN_FORMAT = 1
_PAIRS = TypeAdapter(list[tuple[str, str]])


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep's plan."""

    #: Its folder, below the sweep's.
    path: str
    env: str
    algo: str
    noise: str
    seed: int
    n_timesteps: int
    #: The name of its column, if that is not the algorithm's.
    variant: str | None = None

    @classmethod
    def of(cls, spec: RunSpec) -> PlannedRun:
        """The plan's entry of a run."""
        return cls(spec.path, spec.env, spec.algo, spec.noise, spec.seed, spec.n_timesteps, spec.variant)


def read_plan(root: Path) -> list[PlannedRun]:
    """The runs of the plan in a folder; empty without a plan.

    :raises UserError: If the plan cannot be read.
    """
    return [] if (plan := _load_plan(root)) is None else plan[0]


def check_plan(root: Path) -> None:
    """Check that the plan of a sweep can be written.

    :raises UserError: If it is a link, cannot be read, or has keys of a newer srl or of another program.
    """
    file = root / PLAN
    plan = _load_plan(root)
    if file.is_symlink():
        raise UserError(f"{file} is a link, and srl writes a file there. Move it away; nothing was written.")
    if plan is not None and plan[1]:
        raise newer_version_error(file, plan[1])


def _load_plan(root: Path) -> tuple[list[PlannedRun], dict[str, Any]] | None:
    """The plan in a folder and its unknown keys with their values; None without a plan."""
    file = root / PLAN
    try:
        values = json.loads(read_bytes(file))
        plan = TypeAdapter(list[PlannedRun]).validate_python(values["runs"])
        _PAIRS.validate_python(values.get("compare", []))
        for run in plan:
            get_algorithm(run.algo)
        own = {each.name for each in fields(PlannedRun)}
        unknown = {key: value for key, value in values.items() if key not in ("format", "compare", "runs")}
        if values.get("format", PLAN_FORMAT) != PLAN_FORMAT:
            unknown["format"] = values["format"]
        for run in values["runs"]:
            unknown |= {f"runs.{key}": value for key, value in run.items() if key not in own}
        return plan, unknown
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file}: not the plan of a sweep: {what}. Remove it to continue without it."
        ) from None


def read_comparisons(root: Path) -> list[tuple[str, str]]:
    """The pairs of columns that the plan in a folder compares; empty without any, or a plan."""
    try:
        pairs = json.loads(read_bytes(root / PLAN)).get("compare", [])
        return _PAIRS.validate_python(pairs)
    except (OSError, ValueError, AttributeError):
        return []  # `read_plan` reports the error


def default_pairs(columns: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The names of symmetric columns and their baselines, from names and algorithms of columns."""
    pairs = product(dict.fromkeys(columns), repeat=2)
    return [
        (name, baseline) for (name, algo), (baseline, other) in pairs if differ_in_reverse_loss(algo, other)
    ]


def newer_version_error(file: Path, unknown: dict[str, Any]) -> UserError:
    """The error for a file that this version must not overwrite."""
    keys = ", ".join(f"{key}={value!r}" for key, value in list(unknown.items())[:3])
    return UserError(
        f"{file} was written by a newer version of srl, or by another program: {keys} is unknown. "
        "Update srl, or name another folder with --out; nothing was written."
    )
