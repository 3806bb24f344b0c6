"""A sweep: a file of comparisons, expanded into runs and a plan."""

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
from srl.config.sweep import SweepOptions, is_of_env
from srl.errors import UserError
from srl.rundir.checkpoints import checkpoint_steps
from srl.rundir.directory import RunDirectory
from srl.rundir.files import check_writable, write_text
from srl.rundir.plan import PLAN, PLAN_FORMAT, PlannedRun, check_plan, read_comparisons, read_plan
from srl.sweep.engines import Job, Task
from srl.sweep.tasks import Population, make_tasks

_PLAN_LOCK = ".sweep.lock"


def expand(
    options: SweepOptions, *, device: str = "auto", trust_file: bool = False
) -> tuple[list[RunSpec], list[str]]:
    """All runs of a sweep, checked: each environment and each model is built once.

    :param options: What to compare.
    :param device: See :func:`srl.config.spec.make_run_spec`.
    :param trust_file: Whether Python code that the hyperparameter file names is imported.
    :return: The runs, seed by seed, so that a table fills evenly; and lines to tell the user.
    :raises UserError: For anything that is wrong with any of them.
    """
    from srl.training.check import check_runs  # imports torch

    specs: list[RunSpec] = []
    notes: dict[str, None] = {}
    cells = list(product(options.envs, options.columns(), options.noise))
    for env, variant, noise in cells:
        algorithm = get_algorithm(variant.algo)
        overrides = {
            key: value for key, value in options.overrides.items() if not is_of_env(key, value)
        } | options.overrides.get(env, {})
        if options.env_wrapper is not None:
            overrides["env_wrapper"] = options.env_wrapper
        if algorithm.symmetric:
            overrides |= options.symmetric_overrides
        spec, lines = make_run_spec(
            variant.algo,
            env,
            options.seeds[0],
            noise=noise,
            n_timesteps=options.n_timesteps,
            bins=options.bins if algorithm.discretised else None,
            profile=options.profile,
            device=device,
            env_backend=options.env_backend,
            eval_freq=options.eval_freq,
            n_eval_episodes=options.n_eval_episodes,
            compile=options.compile,
            precision=options.precision,
            eval_max_episode_steps=options.eval_max_episode_steps,
            gym_packages=options.gym_packages,
            env_kwargs=options.env_kwargs,
            max_episode_steps=options.max_episode_steps,
            hyperparams_file=options.hyperparams_file,
            trust_file=trust_file,
            variant=variant.label,
            overrides=of_family(algorithm, overrides) | variant.overrides,
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
    """A sweep in its folder: finished and pending runs."""

    root: Path
    jobs: list[Job]
    #: Pairs of columns that reports compare.
    compare: list[list[str]] = field(default_factory=list)
    #: Jobs whose run has fewer steps and is extended, and its spec. They are pending.
    to_extend: list[tuple[Job, RunSpec]] = field(default_factory=list)
    #: Jobs whose run is finished.
    done: list[Job] = field(default_factory=list)
    #: Jobs still to run, those that failed or were interrupted before included.
    to_do: list[Job] = field(default_factory=list)
    #: Pending runs, as tasks for an engine.
    tasks: list[Task] = field(default_factory=list)
    #: What of its runs is damaged, in lines: those runs are pending.
    damaged: list[str] = field(default_factory=list)
    #: Damaged files that no result depends on, in lines.
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
    """Hold the runs of a sweep against what its folder holds; nothing is written.

    :param specs: The runs.
    :param root: The sweep's folder.
    :param compare: Pairs of columns that reports compare.
    :param population: Whether runs that can train as one do: the most members of a population, or ``"auto"``,
        see :func:`~srl.sweep.tasks.make_tasks`.
    :param n_jobs: How many tasks run at once, among which ``"auto"`` divides them.
    :param memory: Bytes that these share; None for no limit.
    :param compile: With ``"auto"``, runs that were begun before stay compiled or not, as they were begun.
    :param extend: Whether runs that differ in nothing but fewer steps are extended, see
        :mod:`srl.training.extend`.
    :raises UserError: If the folder cannot be used, or holds a run of another spec in a run's place, or files
        of a newer srl.
    """
    check_writable(root)
    check_plan(root)
    jobs = [Job(spec, root / spec.path) for spec in specs]
    if compile == "auto":
        jobs = [Job(RunDirectory(job.path).keep_compilation(job.spec), job.path) for job in jobs]
    plan = Plan(root, jobs, [list(pair) for pair in compare])
    begun: dict[Path, bool] = {}
    for job in plan.jobs:
        directory = RunDirectory(job.path)
        shorter = directory.shorter(job.spec) if extend else None
        status = directory.read_status()
        if shorter is not None and not (status is not None and directory.was_for(job.spec, status)):
            from srl.training.extend import check_extendable  # imports torch

            check_extendable(directory, shorter)
            plan.to_extend.append((job, shorter))
            plan.to_do.append(job)
            begun[job.path] = shorter.stacked
            continue
        there = directory.compare(job.spec)
        (plan.done if there == "done" else plan.to_do).append(job)
        plan.minor_damage += directory.minor_damage() if there != "new" else []
        if there == "unfinished":
            plan.damaged += directory.damage()
            spec = directory.readable_spec()
            if spec is not None and checkpoint_steps(job.path):
                begun[job.path] = spec.stacked
    done = {job.path for job in plan.done}
    plan.tasks = make_tasks(plan.jobs, population, n_jobs, memory=memory, done=done, begun=begun)
    return plan


def extend_runs(plan: Plan, say: Callable[[str], None]) -> None:
    """Turn the shorter runs of a plan into unfinished ones of their new length.

    :param plan: The plan.
    :param say: Is given lines to tell the user.
    """
    from srl.training.extend import extend  # imports torch

    for job, shorter in plan.to_extend:
        extend(RunDirectory(job.path), shorter, job.spec, say)


def write_plan(plan: Plan) -> None:
    """Record its pending and finished runs, those of earlier sweeps in the same folder included."""
    plan.root.mkdir(parents=True, exist_ok=True)
    with (plan.root / _PLAN_LOCK).open("a+") as lock:
        # Another sweep that begins in this folder adds its runs
        fcntl.flock(lock, fcntl.LOCK_EX)
        check_plan(plan.root)
        runs = {run.path: run for run in read_plan(plan.root)}
        runs |= {job.spec.path: PlannedRun.of(job.spec) for job in plan.jobs}
        compare = dict.fromkeys([*read_comparisons(plan.root), *map(tuple, plan.compare)])
        entries = [asdict(run) for run in runs.values()]
        content = {"format": PLAN_FORMAT, "compare": list(compare), "runs": entries}
        write_text(plan.root / PLAN, json.dumps(content, indent=1) + "\n")
