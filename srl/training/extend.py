"""Extend finished or interrupted runs to more training steps."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace

from srl.config.lenient import spec_text
from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.rundir.checkpoints import checkpoint_steps, last_checkpoint
from srl.rundir.directory import RunDirectory
from srl.rundir.files import write_text
from srl.rundir.names import FINAL_STATE, SPEC
from srl.rundir.status import Status
from srl.training.checkpoint import read_checkpoint, read_final_state, write_checkpoint
from srl.training.versions import checkpoint_origin


def extended(spec: RunSpec, n_timesteps: int) -> RunSpec:
    """The spec of a run with more training steps.

    :raises UserError: If the run has more already.
    """
    if n_timesteps < spec.n_timesteps:
        raise UserError(
            f"--extend-to {n_timesteps}: the run has {spec.n_timesteps:,} training steps already. Name more."
        )
    return spec.model_copy(update={"n_timesteps": n_timesteps})


def schedules(spec: RunSpec) -> list[str]:
    """The hyperparameters with a schedule over the total number of training steps."""
    values = spec.hyperparams.model_dump()
    return [name for name, value in values.items() if isinstance(value, str) and value.startswith("lin_")]


def describe_schedules(spec: RunSpec) -> list[str]:
    """A line on the schedules that make an extended run differ from a long one; none without schedules."""
    names = schedules(spec)
    if not names:
        return []
    verb = "falls" if len(names) == 1 else "fall"
    return [
        f"{spec.env}, {spec.variant or spec.algo}: {' and '.join(names)} {verb} linearly over the whole run. "
        "The extended run differs from a run that had this length from the start: until now the values "
        "have fallen to 0 already."
    ]


def check_extendable(directory: RunDirectory, spec: RunSpec) -> None:
    """Check that a run can be extended; nothing is written.

    :raises UserError: If it is damaged, of a newer srl, or has no state to continue from.
    """
    there = directory.compare(spec)
    for problem in directory.damage():
        raise UserError(f"{problem} Retrain the run with its own command first; nothing was written.")
    if there == "done":
        if not (directory.path / FINAL_STATE).exists():
            raise UserError(
                f"{directory.path / FINAL_STATE}: missing, so that the run cannot be extended. Runs of "
                "earlier versions of srl have none, and neither have runs with algorithms of other packages "
                "or with environments that cannot be restored, such as native ones. Train a longer run into "
                "another folder."
            )
        read_final_state(directory.path)


def extend(directory: RunDirectory, spec: RunSpec, longer: RunSpec, say: Callable[[str], None]) -> None:
    """Turn a run into the unfinished first part of a longer run.

    :param directory: The run's, see :func:`check_extendable`.
    :param spec: Its spec.
    :param longer: The same with more training steps.
    :param say: Called with lines for the user.
    :raises UserError: If another process is training the run.
    """
    longer = longer.model_copy(update={"stacked": spec.stacked})
    path = directory.path
    with directory.claimed(spec, keep=True) as there:
        status = directory.read_status() or Status("interrupted")
        if there == "done":
            states = [read_final_state(path)]
        else:
            # In this order, the latest checkpoint stays the latest
            states = [read_checkpoint(path, steps) for steps in reversed(checkpoint_steps(path))]
        origin = checkpoint_origin(longer)
        for state in states:
            different = _different_packages(state["origin"], origin)
            if different:
                line = f"extended with other versions than it was started with: {', '.join(different)}"
                status = status.noted(line)
                say(f"{path}: {line}. It is not bitwise identical to a run of this length.")
            write_checkpoint(path, state["model"]["num_timesteps"], state | {"origin": origin})
        text = spec_text(longer)
        digest = hashlib.sha256(text.encode()).hexdigest()
        reason = f"extended from {spec.n_timesteps:,} to {longer.n_timesteps:,} steps"
        status = replace(
            status.ended_as("interrupted", time.time(), reason),
            timesteps=last_checkpoint(path),
            n_timesteps=longer.n_timesteps,
            files={SPEC: (len(text), 0, digest)},
        )
        # If this process ends in between, the status identifies its spec
        directory.write_status(status)
        write_text(path / SPEC, text)
        (path / FINAL_STATE).unlink(missing_ok=True)


def _different_packages(there: dict[str, object], here: dict[str, object]) -> list[str]:
    """The packages with different versions, including Python."""
    one, other = ({"python": origin["python"], **origin["packages"]} for origin in (there, here))  # type: ignore[dict-item]
    return [f"{name} {one.get(name)} and {other.get(name)}" for name in other if one.get(name) != other[name]]
