"""Choose an engine by its name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from srl.errors import UserError
from srl.sweep.engines import Engine
from srl.sweep.engines.local import LocalEngine
from srl.sweep.engines.slurm import MAX_PARALLEL, SlurmEngine
from srl.training.memory import available_memory

_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?([0-5]?\d):([0-5]\d)|(\d+)")


@dataclass(frozen=True)
class EngineOptions:
    """What the engines can be told; each takes its own."""

    #: ``"local"``, ``"ray"`` or ``"slurm"``.
    name: str = "local"
    #: How many tasks run at once; None for as many as there is room for.
    n_jobs: int | None = None
    #: Of a Ray cluster.
    address: str = "auto"
    #: Of a Slurm cluster.
    partition: str | None = None
    #: Time limit of a Slurm job in minutes.
    minutes: int = 240
    #: Tasks that share a GPU of a Ray cluster.
    tasks_per_gpu: int = 4


def engine_of(
    name: str,
    n_jobs: int | None,
    *,
    address: str | None = None,
    tasks_per_gpu: int | None = None,
    partition: str | None = None,
    time: str | None = None,
) -> EngineOptions:
    """The options of the command line, checked; None for those that were not given.

    :raises UserError: If one has no meaning, or none for this engine.
    """
    given: dict[str, dict[str, str | int | None]] = {
        "ray": {"--address": address, "--tasks-per-gpu": tasks_per_gpu},
        "slurm": {"--partition": partition, "--time": time},
    }
    for owner, options in given.items():
        for option, value in options.items():
            if value is not None and name != owner:
                raise UserError(f"{option} {value}: is for --engine {owner}, and the engine is {name}.")
    if n_jobs is not None and n_jobs < 1:
        raise UserError(f"--jobs {n_jobs}: at least one run at a time is needed.")
    if tasks_per_gpu is not None and tasks_per_gpu < 1:
        raise UserError(f"--tasks-per-gpu {tasks_per_gpu}: must be 1 or above.")
    default = EngineOptions()
    return EngineOptions(
        name,
        n_jobs,
        default.address if address is None else address,
        partition,
        default.minutes if time is None else parse_minutes(time),
        default.tasks_per_gpu if tasks_per_gpu is None else tasks_per_gpu,
    )


def capacity(options: EngineOptions, *, on_gpus: bool = False) -> tuple[int, float | None]:
    """How much there is to divide a sweep among: of a cluster, not of the machine that submits to it.

    :param options: The engine, and what it is told.
    :param on_gpus: Whether all tasks train on GPUs, which on a Ray cluster share those of the cluster.
    :return: The number of tasks at once, and the bytes of memory that these share; None if not known.
    :raises UserError: If a Ray cluster has to be asked and does not answer.
    """
    if options.name == "slurm":
        return options.n_jobs or MAX_PARALLEL, None
    if options.name == "ray" and options.address != "local":
        if options.n_jobs is not None:
            return options.n_jobs, None
        from srl.sweep.engines.ray import cluster_resources

        resources = cluster_resources(options.address)
        n_jobs = resources.get("CPU", 1)
        if on_gpus:
            n_jobs = min(n_jobs, resources.get("GPU", 0) * options.tasks_per_gpu)
        return max(int(n_jobs), 1), resources.get("memory")
    # Where the system tells, the cores that this process may use
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return options.n_jobs or cores, available_memory()


def make_engine(options: EngineOptions, root: Path, n_jobs: int) -> Engine:
    """The engine that is asked for.

    :param options: Which, and what it is told.
    :param root: The sweep's folder.
    :param n_jobs: Tasks at once, see :func:`capacity`; a Ray cluster to which machines are added takes more,
        unless the options name a number.
    :raises UserError: If it cannot be used here.
    """
    if options.name == "ray":
        from srl.sweep.engines.ray import RayEngine

        return RayEngine(options.address, n_jobs=options.n_jobs, tasks_per_gpu=options.tasks_per_gpu)
    if options.name == "slurm":
        return SlurmEngine(
            root / "slurm", partition=options.partition, time=options.minutes, max_parallel=n_jobs
        )
    return LocalEngine(n_jobs)


def parse_minutes(text: str) -> int:
    """Read the option ``--time``.

    :param text: Minutes, or ``[D-][H:]MM:SS`` as Slurm has it; seconds make a full minute.
    :raises UserError: For anything else, and for no time at all.
    """
    match = _TIME.fullmatch(text)
    minutes = 0
    if match is not None:
        days, hours, odd, seconds, whole = match.groups()
        minutes = int(whole or 0) + int(days or 0) * 1440 + int(hours or 0) * 60 + int(odd or 0)
        minutes += int(seconds or 0) > 0
    if minutes < 1:
        raise UserError(f"--time {text}: must be H:MM:SS or minutes, and a minute at the least.")
    return minutes
