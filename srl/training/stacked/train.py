"""Train runs that share environment, algorithm family and shapes as one population, into their directories.

Each member has its own seed, random generators, environments, statistics, reward noise, minibatch order,
optimizer state, schedules, logs and evaluations. The arithmetic on networks is done for all members at once.
The result of a member does not depend on the other members.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from srl.config.population import member_order, population_key
from srl.config.spec import RunSpec
from srl.envs.replay import NotRestorable
from srl.errors import UserError
from srl.rundir.checkpoints import checkpoint_steps
from srl.rundir.directory import RunDirectory
from srl.rundir.status import Status
from srl.training.attempt import Attempt
from srl.training.run import CHECKPOINT_EVERY
from srl.training.stacked.population import Population


def train_population(
    specs: Sequence[RunSpec],
    paths: Sequence[Path],
    *,
    command: str = "",
    tell: Callable[[Sequence[Status]], None] | None = None,
    checkpoint_every: float = CHECKPOINT_EVERY,
) -> list[Status]:
    """Train runs together, each into its directory, from their last checkpoints or from scratch.

    :param specs: The runs; all of one :func:`~srl.config.population.population_key`.
    :param paths: Their folders, new or of unfinished runs of the same specs.
    :param command: The command line, for the record.
    :param tell: Called with the statuses of the runs about once a second.
    :param checkpoint_every: Seconds between two checkpoints; 0 writes one after each update.
    :return: The final status of each run, in the order of ``specs``. A member that fails does not stop the
        others; its status and its folder give the reason.
    :raises UserError: If the runs cannot train together, or a folder belongs to another run.
    """
    keys = {population_key(spec) for spec in specs}
    if len(keys) != 1 or None in keys or len(specs) != len(paths):
        raise UserError(
            "These runs cannot train as one population: they differ in what its members share, such as the "
            "environment or shapes."
        )
    if len(set(paths)) < len(paths):
        raise UserError("Each run needs its own folder, and one of these is specified twice.")
    specs = [spec.model_copy(update={"stacked": True}) for spec in specs]
    for spec, path in zip(specs, paths, strict=True):
        RunDirectory(path).compare(spec)
    attempts = [Attempt(spec, path, command=command) for spec, path in zip(specs, paths, strict=True)]
    with ExitStack() as stack:
        for attempt in attempts:
            try:
                stack.enter_context(attempt)
            except (UserError, OSError) as error:
                # Another process has started this run, or the disk is full; the others continue
                print(f"{attempt.path}: {error}", file=sys.stderr)
                attempt.status = Status("failed", reason=str(error))
        members = [attempt for attempt in attempts if attempt.running]
        members.sort(key=lambda attempt: member_order(attempt.spec))

        def beat() -> None:
            if tell is not None:
                tell([attempt.status for attempt in attempts])

        try:
            for together, states in _by_progress(members):
                _train_together(together, states, beat, checkpoint_every)
        except Exception as error:
            for attempt in members:
                if attempt.running:
                    attempt.fail(error)
    return [attempt.status for attempt in attempts]


def _by_progress(attempts: Sequence[Attempt]) -> list[tuple[list[Attempt], list[dict[str, Any]]]]:
    """Groups of runs that can resume together, with their states; no states for runs that restart.

    The runs of a population have checkpoints of the same steps, unless one is damaged, or the population was
    interrupted while it wrote them.
    """
    groups: list[tuple[list[Attempt], list[dict[str, Any]]]] = []
    steps = {attempt.path: checkpoint_steps(attempt.path) for attempt in attempts}
    waiting = list(attempts)
    while waiting:
        counts = Counter(step for attempt in waiting for step in steps[attempt.path])
        if not counts:
            for attempt in waiting:
                attempt.restart()
            return [*groups, (waiting, [])]
        best = max(counts, key=lambda step: (counts[step], step))
        together, states = [], []
        for attempt in [attempt for attempt in waiting if best in steps[attempt.path]]:
            try:
                states.append(attempt.resume_from(best))
                together.append(attempt)
            except UserError as error:
                attempt.note(f"cannot resume from step {best:,}: {error}")
                steps[attempt.path].remove(best)
        if together:
            groups.append((together, states))
            waiting = [attempt for attempt in waiting if attempt not in together]
    return groups


def _train_together(
    attempts: Sequence[Attempt],
    states: Sequence[dict[str, Any]],
    beat: Callable[[], None],
    checkpoint_every: float,
) -> None:
    try:
        with Population(attempts, states) as population:
            population.train(beat, checkpoint_every)
    except NotRestorable as error:
        if not states:
            raise
        for attempt in attempts:
            attempt.note(f"restarted from scratch: {error}")
            attempt.restart()
        _train_together(attempts, [], beat, checkpoint_every)


def execute_population(
    specs: Sequence[RunSpec],
    paths: Sequence[Path],
    command: str,
    *,
    checkpoint_every: float = CHECKPOINT_EVERY,
) -> int:
    """Train a population in this process for an engine; the arguments are :func:`train_population`'s.

    :return: The exit status of the process: 0 if all are done, 1 if one failed.
    """
    try:
        statuses = train_population(specs, paths, command=command, checkpoint_every=checkpoint_every)
    except (UserError, OSError) as error:
        print(f"{paths[0]} and {len(paths) - 1} more: {error}", file=sys.stderr)
        return 1
    return 0 if all(status.state == "done" for status in statuses) else 1
