"""``srl sweep``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from srl.cli.options import (
    FAILED,
    ClusterOptions,
    EnvOptions,
    EvaluationOptions,
    LossOptions,
    SweepExecutionOptions,
    TrackOptions,
    Unset,
    check_tracking,
    engine_of,
    new_console,
    parse_assignments,
    print_notes,
    put_current_directory_on_path,
    read_assignments,
    read_yaml,
    several,
    split_values,
    tracked,
    tracked_status,
)
from srl.errors import UserError


@dataclass
class Sweep:
    """Train all runs of a sweep in parallel, and print a table of their scores."""

    config: tyro.conf.Positional[Path]
    """The sweep file, or the name of a sweep of srl, for example continuous_srl."""
    envs: Annotated[tuple[str, ...] | None, several("ENV [ENV ...]")] = None
    """Environments. By default those of the sweep file."""
    algos: Annotated[tuple[str, ...] | None, several("ALGO [ALGO ...]")] = None
    """Algorithms, and variants of the sweep file. By default all of the sweep file."""
    grid: Annotated[tuple[str, ...], several("NAME=VALUE,VALUE [...]")] = ()
    """Values of hyperparameters, for example beta=0,1,5,20 alpha=0.5,1. Each combination of values is a
    variant of each algorithm."""
    noise: Annotated[tuple[str, ...] | None, several("NOISE [NOISE ...]")] = None
    """Reward noises. By default those of the sweep file."""
    seeds: Annotated[tuple[str, ...] | None, several("SEED [SEED ...]")] = None
    """Seeds, as numbers or ranges; 0:5 means 0 to 4. By default those of the sweep file."""
    timesteps: Unset[int] = None
    """Number of training steps of each run. By default that of the sweep file or the hyperparameter file."""
    extend_to: Unset[int] = None
    """Number of training steps of each run. Finished runs with fewer steps are continued."""
    profile: Unset[str] = None
    """controlled, or authors for the settings of the authors' scripts where they differ."""
    out: Unset[Path] = None
    """The sweep's folder. By default runs/NAME, or runs/NAME-quick."""
    quick: bool = False
    """Train the small version of the sweep."""
    dry_run: bool = False
    """Check the sweep and print its runs without training."""
    loss: tyro.conf.OmitArgPrefixes[LossOptions] = field(default_factory=LossOptions)
    environment: tyro.conf.OmitArgPrefixes[EnvOptions] = field(default_factory=EnvOptions)
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationOptions] = field(default_factory=EvaluationOptions)
    execution: tyro.conf.OmitArgPrefixes[SweepExecutionOptions] = field(default_factory=SweepExecutionOptions)
    cluster: tyro.conf.OmitArgPrefixes[ClusterOptions] = field(default_factory=ClusterOptions)
    tracking: tyro.conf.OmitArgPrefixes[TrackOptions] = field(default_factory=TrackOptions)


def sweep(options: Sweep, command: str) -> int:
    """``srl sweep``; returns the exit status. The command line is for the runs' record."""
    from srl.config.files import find_sweep
    from srl.config.sweep import load_sweep
    from srl.envs.registration import import_packages
    from srl.report.files import check_files, table_files
    from srl.rundir.directory import RunDirectory
    from srl.rundir.disk import naming_full_disk
    from srl.sweep.display import SweepDisplay
    from srl.sweep.execution import Persistence, held_elsewhere, run_sweep
    from srl.sweep.plan import expand, extend_runs, make_plan, write_plan
    from srl.sweep.tasks import describe, parse_population
    from srl.training.extend import describe_schedules

    console = new_console()
    config = find_sweep(options.config)
    if options.timesteps is not None and options.extend_to is not None:
        raise UserError("--extend-to and --timesteps exclude each other.")
    execution = options.execution
    persistence = Persistence(execution.retries, execution.stall_timeout, execution.checkpoint_every)
    check_tracking(options.tracking)
    put_current_directory_on_path()
    engine_options = engine_of(options.cluster, execution.jobs)
    environment = options.environment
    # They may also register reward noise and losses
    import_packages(environment.gym_packages)
    grid = {
        name: [read_yaml("--grid", part, part) for part in values.split(",")]
        for name, values in read_assignments("--grid", options.grid).items()
    }
    sweep_options = load_sweep(
        config,
        quick=options.quick,
        trust=environment.trust_config,
        gym_packages=list(environment.gym_packages) or None,
        env_kwargs=parse_assignments("--env-kwargs", environment.env_kwargs) or None,
        env_wrapper=environment.wrappers() or None,
        max_episode_steps=environment.max_episode_steps,
        hyperparams_file=environment.hyperparams_file,
        envs=split_values("--envs", options.envs),
        algos=split_values("--algos", options.algos),
        grid=grid or None,
        noise=split_values("--noise", options.noise),
        seeds=split_values("--seeds", options.seeds),
        n_timesteps=options.timesteps if options.extend_to is None else options.extend_to,
        bins=options.loss.bins,
        profile=options.profile,
        eval_freq=options.evaluation.eval_freq,
        n_eval_episodes=options.evaluation.eval_episodes,
        eval_max_episode_steps=options.evaluation.eval_max_episode_steps,
        env_backend=execution.env_backend,
        compile=execution.compile,
        precision=execution.precision,
        overrides=options.loss.others() or None,
        symmetric_overrides=options.loss.symmetric() or None,
    )
    specs, notes = expand(sweep_options, device=execution.device, trust_file=environment.trust_config)
    root = options.out or Path("runs") / (config.stem + ("-quick" if options.quick else ""))
    population = parse_population(execution.population)
    on_gpus = all(spec.device.startswith("cuda") for spec in specs)
    n_jobs, memory = engine_options.capacity(on_gpus=on_gpus)
    plan = make_plan(
        specs,
        root,
        compare=sweep_options.compare,
        population=population,
        n_jobs=n_jobs,
        memory=memory,
        compile=sweep_options.compile,
        extend=options.extend_to is not None,
    )
    check_files(root, table_files("table"))
    for note in notes:
        console.print(note, markup=False)
    n_cells = len(specs) // len(sweep_options.seeds)
    console.print(
        f"{len(specs):,} runs ({n_cells} combinations of environment, algorithm and noise x "
        f"{len(sweep_options.seeds)} seeds), {sum(spec.n_timesteps for spec in specs):,} training steps in "
        f"all, into {root}.",
        markup=False,
        soft_wrap=True,
    )
    devices = ", ".join(sorted({spec.device for spec in specs}))
    console.print(
        f"Finished: {len(plan.done):,}. Pending: {len(plan.to_do):,}{describe(plan.tasks)}, "
        f"{min(n_jobs, max(len(plan.tasks), 1))} at a time, on {devices}.",
        markup=False,
        soft_wrap=True,
    )
    if plan.to_extend:
        console.print(f"Extended: {len(plan.to_extend):,} runs.", markup=False)
        lines = [line for _, shorter in plan.to_extend for line in describe_schedules(shorter)]
        print_notes(list(dict.fromkeys(lines)), console)
    print_notes([f"{line} The run is retrained." for line in plan.damaged], console)
    print_notes([f"{line} The results are not affected." for line in plan.minor_damage], console)
    print_notes([f"{line}: waited for." for line in held_elsewhere(plan.tasks)], console)
    if options.dry_run:
        done = {job.path for job in plan.done}
        for job in plan.jobs:
            state = "finished" if job.path in done else "pending"
            print(f"{state}  {job.spec.path}  {job.spec.n_timesteps:,} steps")
        console.print("Dry run: nothing was trained or written.")
        return 0
    # A sweep may take days: load the modules of its end now, in case srl is updated meanwhile
    import srl.report.scores  # noqa: F401

    for job in plan.done:
        RunDirectory(job.path).restore_status(job.spec)

    failures: dict[str, str] = {}
    paths = [job.path for job in plan.jobs]
    with tracked(options.tracking, config.stem, paths) as outcome:
        if plan.to_do:
            engine = engine_options.start(root, n_jobs)
            with naming_full_disk(root), SweepDisplay(console) as display:
                extend_runs(plan, lambda line: print(line, file=sys.stderr))
                write_plan(plan)
                failures = run_sweep(
                    plan, engine, command, tell=display.update, say=display.say, persistence=persistence
                )
        else:
            with naming_full_disk(root):
                write_plan(plan)
    with naming_full_disk(root):
        _print_scores(root, console)
    if failures:
        counts = f"{len(failures)} of {len(plan.to_do)} runs failed"
        print(f"srl: {counts}. Rerun the command to retry them.", file=sys.stderr)
        for path, reason in list(failures.items())[:10]:
            print(f"  {path}: {reason}", file=sys.stderr)
    return tracked_status(outcome, FAILED if failures else 0)


def _print_scores(root: Path, console: Console) -> None:
    from srl.report.files import write_tables
    from srl.report.scores import read_scores
    from srl.report.table_formats import to_rich

    scores = read_scores(root)
    console.print(to_rich(scores.table, console.width))
    print_notes([*scores.table.notes, *scores.left_out], console)
    files = write_tables([scores.table], root, scores.left_out)
    console.print(f"Written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)
    console.print(f"Statistics, figures and a page: srl report {root}", markup=False, soft_wrap=True)
