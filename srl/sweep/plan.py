"""The runs of a sweep, and its plan."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

from srl.config.algorithms import get_algorithm
from srl.config.resolve import of_family
from srl.config.spec import RunSpec, make_run_spec
from srl.config.sweep import SweepOptions
from srl.errors import UserError
from srl.rundir.checkpoints import checkpoint_steps
from srl.rundir.directory import RunDirectory
from srl.rundir.files import check_writable, write_text
from srl.rundir.plan import (
    PLAN,
    PLAN_FORMAT,
    PlannedRun,
    check_plan,
    default_pairs,
    read_comparisons,
    read_plan,
)
from srl.sweep.engines import Job, Task
from srl.sweep.tasks import Population, make_tasks

_PLAN_LOCK = ".sweep.lock"
#: Options of a sweep that are arguments of :func:`srl.config.spec.make_run_spec` for all of its runs.
_OF_ALL_RUNS = {
    "n_timesteps", "profile", "env_backend", "eval_freq", "n_eval_episodes", "eval_max_episode_steps",
    "compile", "precision", "gym_packages", "env_kwargs", "max_episode_steps", "hyperparams_file",
}  # fmt: skip


def expand(
    options: SweepOptions, *, device: str = "auto", trust_file: bool = False
) -> tuple[list[RunSpec], list[str]]:
    """Make and check all runs of a sweep: each environment and each model is built once.

    :param trust_file: Whether Python code that the hyperparameter file names is imported.
    :return: The runs, seed by seed, so that a table fills evenly; and lines for the user.
    :raises UserError: If one of them is not valid.
    """
    from srl.training.check import check_runs  # imports torch

    specs: list[RunSpec] = []
    notes: dict[str, None] = {}
    cells = list(product(options.envs, options.columns(), options.noise))
    for env, variant, noise in cells:
        algorithm = get_algorithm(variant.algo)
        overrides = {} if options.env_wrapper is None else {"env_wrapper": options.env_wrapper}
        overrides |= {key: value for key, value in options.overrides.items() if key not in options.envs}
        overrides |= options.overrides.get(env, {})
        if algorithm.symmetric:
            overrides |= options.symmetric_overrides
        spec, lines = make_run_spec(
            variant.algo,
            env,
            options.seeds[0],
            noise=noise,
            bins=options.bins if algorithm.discretized else None,
            device=device,
            trust_file=trust_file,
            variant=variant.label,
            overrides=of_family(algorithm, overrides) | variant.overrides,
            **options.model_dump(include=_OF_ALL_RUNS),
        )
        notes |= dict.fromkeys(lines)
        specs.append(spec)
    for path, count in Counter(spec.path for spec in specs).items():
        if count > 1:
            cell = Path(path).parent
            raise UserError(f"{cell} is specified twice; name each environment, column and noise once.")
    check_runs(specs)
    # The rest of a spec does not depend on the seed
    return [spec.model_copy(update={"seed": seed}) for seed in options.seeds for spec in specs], list(notes)


@dataclass
class Plan:
    """The finished and pending runs of a sweep."""

    root: Path
    jobs: list[Job]
    #: Pairs of columns that reports compare.
    compare: list[list[str]] = field(default_factory=list)
    #: Pending jobs that extend a run with fewer steps, and the spec of that run.
    to_extend: list[tuple[Job, RunSpec]] = field(default_factory=list)
    #: Jobs whose run is finished.
    done: list[Job] = field(default_factory=list)
    #: Pending jobs, failed and interrupted runs included.
    to_do: list[Job] = field(default_factory=list)
    #: Pending runs, as tasks for an engine.
    tasks: list[Task] = field(default_factory=list)
    #: Lines on damaged runs, which are pending.
    damaged: list[str] = field(default_factory=list)
    #: Lines on damaged files that no result depends on.
    minor_damage: list[str] = field(default_factory=list)


def make_plan(
    specs: Sequence[RunSpec],
    root: Path,
    *,
    compare: Sequence[Sequence[str]] = (),
    population: Population = "off",
    n_jobs: int = 1,
    memory: float | None = None,
    compile: str = "off",
    extend: bool = False,
) -> Plan:
    """Compare the runs of a sweep with its folder; nothing is written.

    :param compare: Pairs of columns that reports compare.
    :param population: The maximum size of a population, ``"auto"`` or ``"off"``, see
        :func:`~srl.sweep.tasks.make_tasks`.
    :param n_jobs: The number of parallel tasks, used by ``"auto"``.
    :param memory: Bytes that these share; None for no limit.
    :param compile: With ``"auto"``, runs that were started before keep their compilation.
    :param extend: Whether runs that differ only in fewer steps are extended, see :mod:`srl.training.extend`.
    :raises UserError: If the folder cannot be used, or contains runs of other specs or files of a newer srl.
    """
    check_writable(root)
    check_plan(root)
    jobs = [Job(spec, root / spec.path) for spec in specs]
    if compile == "auto":
        jobs = [Job(RunDirectory(job.path).keep_compilation(job.spec), job.path) for job in jobs]
    plan = Plan(root, jobs, [list(pair) for pair in compare])
    started: dict[Path, bool] = {}
    for job in plan.jobs:
        directory = RunDirectory(job.path)
        shorter = directory.shorter(job.spec) if extend else None
        status = directory.read_status()
        if shorter is not None and not (status is not None and directory.was_for(job.spec, status)):
            from srl.training.extend import check_extendable  # imports torch

            check_extendable(directory, shorter)
            plan.to_extend.append((job, shorter))
            plan.to_do.append(job)
            started[job.path] = shorter.stacked
            continue
        there = directory.compare(job.spec)
        (plan.done if there == "done" else plan.to_do).append(job)
        plan.minor_damage += directory.minor_damage() if there != "new" else []
        if there == "unfinished":
            plan.damaged += directory.damage()
            spec = directory.readable_spec()
            if spec is not None and checkpoint_steps(job.path):
                started[job.path] = spec.stacked
    done = {job.path for job in plan.done}
    plan.tasks = make_tasks(plan.jobs, population, n_jobs, memory=memory, done=done, started=started)
    return plan


def extend_runs(plan: Plan, say: Callable[[str], None]) -> None:
    """Turn the shorter runs of a plan into unfinished runs of their new length; ``say`` prints lines."""
    from srl.training.extend import extend  # imports torch

    for job, shorter in plan.to_extend:
        extend(RunDirectory(job.path), shorter, job.spec, say)


def write_plan(plan: Plan) -> None:
    """Write the plan, with runs of earlier sweeps in the same folder, and their pairs of other columns."""
    plan.root.mkdir(parents=True, exist_ok=True)
    with (plan.root / _PLAN_LOCK).open("a+") as lock:
        # Another sweep that starts in this folder adds its runs
        fcntl.flock(lock, fcntl.LOCK_EX)
        check_plan(plan.root)
        before = read_plan(plan.root)
        runs = {run.path: run for run in before}
        runs |= {job.spec.path: PlannedRun.of(job.spec) for job in plan.jobs}
        columns = {job.spec.variant or job.spec.algo for job in plan.jobs}
        earlier = read_comparisons(plan.root)
        if plan.compare and not earlier:
            # Earlier sweeps without pairs keep their default pairs
            earlier = default_pairs((run.variant or run.algo, run.algo) for run in before)
        kept = [pair for pair in earlier if not columns.issuperset(pair)]
        compare = dict.fromkeys([*kept, *map(tuple, plan.compare)])
        entries = [asdict(run) for run in runs.values()]
        content = {"format": PLAN_FORMAT, "compare": list(compare), "runs": entries}
        write_text(plan.root / PLAN, json.dumps(content, indent=1) + "\n")
