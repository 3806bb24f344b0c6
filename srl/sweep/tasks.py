"""Group runs into the tasks of an engine: single runs and populations."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Literal

from srl.config.population import population_key
from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.rundir.progress import makespan
from srl.sweep.engines import Job, Task

#: The maximum number of members of a population; ``"auto"`` chooses it, ``"off"`` trains each run alone.
Population = int | Literal["auto", "off"]

#: The maximum of ``"auto"``. More members hardly make a step cheaper, and a process that dies stops them all.
_LARGEST = 64
#: The fixed cost of a population's step, in members: measured between 4 and 22, see docs/benchmarks.md.
POPULATION_OVERHEAD = 8
#: Members below which a population is divided only if processes would be idle.
_SMALLEST = 4
#: Bytes of a process and of an environment, and copies of a rollout in memory; measured and rounded up.
_PROCESS_BYTES = 500e6
_ENV_BYTES = 6e6
_COPIES_OF_A_ROLLOUT = 4
#: Share of the free memory that populations may take.
_MEMORY_SHARE = 0.7


def parse_population(text: str) -> Population:
    """Read the option ``--population``.

    :param text: ``"auto"``, ``"off"``, or the maximum number of members.
    :raises UserError: For anything else.
    """
    if text in ("auto", "off"):
        return text  # type: ignore[return-value]
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise UserError(f"--population {text}: must be auto, off, or the maximum size, 1 or above.")
    return int(text)


def make_tasks(
    jobs: Sequence[Job],
    population: Population,
    n_jobs: int,
    *,
    memory: float | None = None,
    done: Collection[Path] = (),
    started: Mapping[Path, bool] | None = None,
) -> list[Task]:
    """Group runs that can train together into populations.

    ``"auto"`` divides the runs among ``n_jobs`` processes within the memory limit, see :func:`divide`. On the
    CPU it trains networks for images alone, because stacking does not make their convolutions faster.

    :param population: The maximum number of members of a population, ``"auto"``, or ``"off"``.
    :param memory: Bytes that these share; None for no limit.
    :param done: Folders of finished jobs, which are in no task. They count in whether a run is stacked, so
        that an interrupted sweep gives the same results: on some CPUs a stacked network rounds differently.
    :param started: Folders of jobs that resume from a checkpoint, and whether they were started stacked,
        which does not change.
    :return: Tasks in the order of their first runs. A run that fits no other is alone; it is a population of
        one only if ``population`` is a number, or the rest of its population is done.
    """
    started = {} if started is None else started
    groups: dict[str, list[Job]] = {}
    for index, job in enumerate(jobs):
        if started.get(job.path) is False:
            key = None
        elif started.get(job.path):
            key = population_key(job.spec)
        else:
            key = _group(job.spec, population)
        groups.setdefault(key or f"alone {index}", []).append(job)
    left = {key: [job for job in group if job.path not in done] for key, group in groups.items()}
    largest, steps = [], []
    for key, group in groups.items():
        alone = key.startswith("alone")
        largest.append(1 if alone else min(_LARGEST, _fitting(group[0].spec, n_jobs, memory)))
        steps.append(group[0].spec.n_timesteps)
    n_of_all = divide([len(group) for group in groups.values()], steps, largest, n_jobs)
    n_of_left = divide([len(members) for members in left.values()], steps, largest, n_jobs)
    tasks: list[tuple[Job, ...]] = []
    for key, n_whole, n_parts in zip(groups, n_of_all, n_of_left, strict=True):
        members = left[key]
        if isinstance(population, int) and not key.startswith("alone"):
            stacked, n_parts = True, -(-len(members) // population)
        else:
            stacked = n_whole < len(groups[key]) or any(started.get(job.path) for job in members)
        # Adjacent runs of the plan, so that tables fill evenly
        ends = [round(part * len(members) / max(n_parts, 1)) for part in range(n_parts + 1)]
        for first, end in pairwise(ends):
            part = members[first:end]
            if stacked:
                part = [Job(job.spec.model_copy(update={"stacked": True}), job.path) for job in part]
            tasks.append(tuple(part))
    order = {job.path: index for index, job in enumerate(jobs)}
    return [Task(members) for members in sorted(tasks, key=lambda members: order[members[0].path])]


def divide(
    n_runs: Sequence[int], n_timesteps: Sequence[int], largest: Sequence[int], n_jobs: int
) -> list[int]:
    """Find the number of populations of each group of runs that minimizes the total time.

    A population takes as long as its training steps times its members and a constant overhead. There are
    ``n_jobs`` populations in total, or a multiple of that: more would repeat the overhead, fewer would leave
    processes idle. The group whose populations take longest is divided first, but below four members only if
    processes would be idle otherwise.

    :param n_runs: Runs in each group, shape (n_groups,).
    :param n_timesteps: Training steps of each run of a group, shape (n_groups,).
    :param largest: The maximum size of a population of each group, shape (n_groups,).
    :return: Populations of each group, shape (n_groups,).
    """
    n_jobs = max(min(n_jobs, sum(n_runs)), 1)
    parts = [-(-n // most) for n, most in zip(n_runs, largest, strict=True)]

    def duration(group: int, n_members: float) -> float:
        return n_timesteps[group] * (POPULATION_OVERHEAD + n_members)

    def priority(group: int) -> tuple[bool, float, int]:
        n_members = n_runs[group] / parts[group]
        return n_members <= _SMALLEST, -duration(group, n_members), group

    divisible = [priority(group) for group, n in enumerate(n_runs) if parts[group] < n]
    heapq.heapify(divisible)
    best, soonest = list(parts), math.inf
    while True:
        # Below the smallest size only if processes would be idle
        last = not divisible or (divisible[0][0] and sum(parts) >= n_jobs)
        if last or sum(parts) % n_jobs == 0:
            durations = [
                duration(group, (n_runs[group] + part) // n_parts)
                for group, n_parts in enumerate(parts)
                for part in range(n_parts)
            ]
            if sum(durations) / n_jobs >= soonest:
                return best  # more populations take even longer
            end = makespan([0.0] * n_jobs, sorted(durations, reverse=True))
            if end < soonest:
                best, soonest = list(parts), end
        if last:
            return best
        *_, group = heapq.heappop(divisible)
        parts[group] += 1
        if parts[group] < n_runs[group]:
            heapq.heappush(divisible, priority(group))


def describe(tasks: Sequence[Task]) -> str:
    """Describe the populations in words, as in ``" in 2 populations of 8"``; empty without any."""
    sizes = sorted(len(task.jobs) for task in tasks if task.jobs[0].spec.stacked)
    if not sizes:
        return ""
    span = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    n_alone = len(tasks) - len(sizes)
    populations = "1 population" if len(sizes) == 1 else f"{len(sizes)} populations"
    return f" in {populations} of {span}" + (f" and {n_alone} alone" if n_alone else "")


def _group(spec: RunSpec, population: Population) -> str | None:
    if population == "off":
        return None
    if population == "auto" and spec.hyperparams.policy == "CnnPolicy" and spec.device == "cpu":
        return None
    return population_key(spec)


def _fitting(spec: RunSpec, n_jobs: int, memory: float | None) -> int:
    """The maximum size of a population such that ``n_jobs`` of them fit into memory."""
    if memory is None:
        return _LARGEST
    hyperparams = spec.hyperparams
    n_envs = hyperparams.n_envs + spec.n_eval_envs
    # Atari's frames are far larger than all other observations of the protocol
    observation = 84 * 84 * hyperparams.frame_stack if hyperparams.policy == "CnnPolicy" else 400 * 8
    rollout = prod((hyperparams.n_envs, hyperparams.n_steps, observation, _COPIES_OF_A_ROLLOUT))
    share = memory * _MEMORY_SHARE / n_jobs - _PROCESS_BYTES
    return max(int(share / (n_envs * _ENV_BYTES + rollout)), 1)
