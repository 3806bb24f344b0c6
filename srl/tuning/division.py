"""Divide the populations of a batch of trials among processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from srl.config.compiling import n_minibatches
from srl.config.spec import RunSpec
from srl.rundir.progress import makespan
from srl.sweep.engines import Task
from srl.sweep.tasks import POPULATION_OVERHEAD

#: The overhead of a minibatch in environment steps, and the number of weights whose arithmetic takes as long
#: as an environment step: when the network acts, and for a row of a minibatch.
_MINIBATCH, _ACTING, _ROW = 4.0, 1.5e5, 4e5


def divide_tasks(tasks: Sequence[Task], n_jobs: int) -> list[Task]:
    """Divide populations so that the last one ends as early as possible; the longest come first.

    How a population is divided does not change its members' results.

    :param tasks: One for each shape.
    :param n_jobs: Number of populations that train at once.
    """
    parts = list(tasks)
    best, soonest = parts, math.inf
    while parts:
        parts = sorted(parts, key=_duration, reverse=True)
        end = makespan([0.0] * n_jobs, [_duration(part) for part in parts])
        if end < soonest:
            best, soonest = parts, end
        jobs = parts[0].jobs
        if len(jobs) == 1 or len(parts) >= 2 * len(tasks) + n_jobs:
            break
        middle = -(-len(jobs) // 2)
        parts = [Task(jobs[:middle]), Task(jobs[middle:]), *parts[1:]]
    return best


def _duration(task: Task) -> float:
    """Estimate the duration of a population, in an arbitrary unit."""
    spec = task.jobs[0].spec
    n_steps = spec.n_timesteps / spec.hyperparams.n_envs
    n_updates = n_minibatches(spec.hyperparams, spec.n_timesteps)
    n_rows = spec.n_timesteps * getattr(spec.hyperparams, "n_epochs", 1)
    arithmetic = _n_weights(spec) * (n_steps / _ACTING + n_rows / _ROW)
    shared = (n_steps + _MINIBATCH * n_updates) * (POPULATION_OVERHEAD + len(task.jobs))
    return shared + arithmetic * len(task.jobs)


def _n_weights(spec: RunSpec) -> int:
    """Return the number of weights between hidden layers."""
    layers = spec.hyperparams.policy_kwargs.net_arch
    nets = list(layers.values()) if isinstance(layers, dict) else [layers or [64, 64]] * 2
    return sum(int(a) * int(b) for net in nets for a, b in pairwise(net))
