"""``srl train``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from srl.errors import UserError

if TYPE_CHECKING:
    from srl.config.spec import RunSpec
from srl.cli.options import (
    FAILED,
    EnvOptions,
    EvaluationOptions,
    LossOptions,
    RunExecutionOptions,
    TrackOptions,
    Unset,
    new_console,
    put_current_directory_on_path,
    tracked,
    tracked_status,
)


@dataclass
class Train:
    """Train one run and save it to a run directory."""

    run: tyro.conf.Positional[Unset[Path]] = None
    """With --extend-to: the directory of the run to extend."""
    algo: Unset[str] = None
    """Algorithm: a2c, ppo, sa2c, sppo; with discretized actions da2c, dppo, dsa2c, dsppo; or a class of
    another package, for example sb3_contrib:TRPO."""
    env: Unset[str] = None
    """Id of a Gymnasium environment, for example CartPole-v1 or PongNoFrameskip-v4."""
    seed: int = 0
    """Seed of all random numbers."""
    noise: str = "none"
    """Reward noise in training: none, gaussian:STD, uniform:HALF_WIDTH or flip:PROB."""
    timesteps: Unset[int] = None
    """Number of training steps. By default that of the hyperparameter file."""
    extend_to: Unset[int] = None
    """Continue the training of a finished run to this total number of steps, with the same settings."""
    profile: str = "controlled"
    """controlled, or authors for the settings of the authors' scripts where they differ."""
    out: Unset[Path] = None
    """The run directory. By default runs/ENV/ALGO/NOISE/seed-N."""
    loss: tyro.conf.OmitArgPrefixes[LossOptions] = field(default_factory=LossOptions)
    environment: tyro.conf.OmitArgPrefixes[EnvOptions] = field(default_factory=EnvOptions)
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationOptions] = field(default_factory=EvaluationOptions)
    execution: tyro.conf.OmitArgPrefixes[RunExecutionOptions] = field(default_factory=RunExecutionOptions)
    tracking: tyro.conf.OmitArgPrefixes[TrackOptions] = field(default_factory=TrackOptions)


def train(options: Train, command: str) -> int:
    """``srl train``; returns the exit status. The command line is for the run's record."""
    from srl.config.spec import make_run_spec
    from srl.rundir.directory import RunDirectory
    from srl.sweep.execution import check_interval
    from srl.training.check import check_run

    console = new_console()
    check_interval(options.execution.checkpoint_every)
    put_current_directory_on_path()
    if options.extend_to is not None:
        return _extend(options, console, command)
    if options.run is not None:
        raise UserError(
            f"{options.run}: a run's directory is named only with --extend-to. Use --out for a new run."
        )
    if options.algo is None or options.env is None:
        raise UserError("--algo and --env are needed, for example: srl train --algo sppo --env CartPole-v1")
    spec, notes = make_run_spec(
        options.algo,
        options.env,
        options.seed,
        noise=options.noise,
        n_timesteps=options.timesteps,
        bins=options.loss.bins,
        profile=options.profile,
        device=options.execution.device,
        threads=options.execution.threads,
        env_backend=options.execution.env_backend or "gymnasium",
        eval_freq=options.evaluation.eval_freq,
        n_eval_episodes=10 if options.evaluation.eval_episodes is None else options.evaluation.eval_episodes,
        compile=options.execution.compile or "auto",
        precision=options.execution.precision or "float32",
        eval_max_episode_steps=options.evaluation.eval_max_episode_steps,
        **options.environment.of_run(options.loss.others() | options.loss.symmetric()),
    )
    path = options.out or Path("runs") / spec.path
    if (options.execution.compile or "auto") == "auto":
        spec = RunDirectory(path).keep_compilation(spec)
    there = RunDirectory(path).compare(spec)
    check_run(spec)
    for note in [*notes, *RunDirectory(path).damage(), *RunDirectory(path).minor_damage()]:
        console.print(note, markup=False)
    if there == "done":
        RunDirectory(path).restore_status(spec)
        console.print(f"{path} holds this run already, finished. Nothing to do.", markup=False)
        with tracked(options.tracking, "srl", [path]) as outcome:
            pass
        return tracked_status(outcome, 0)
    return _train_into(path, spec, options, console, command)


def _extend(options: Train, console: Console, command: str) -> int:
    """``srl train --extend-to``; returns the exit status."""
    from srl.rundir.directory import RunDirectory
    from srl.training.check import check_run
    from srl.training.extend import check_extendable, describe_schedules, extend, extended
    from srl.training.load import read_trusted

    path, n_timesteps = options.run, options.extend_to
    if path is None or n_timesteps is None:
        raise UserError(
            "--extend-to: name the directory of the run, for example: srl train --extend-to 2000000 RUN"
        )
    _check_keeps_settings(options)
    directory = RunDirectory(path)
    spec = read_trusted(directory, options.environment.trust_config)
    longer = extended(spec, n_timesteps)
    status = directory.read_status()
    started = status is not None and directory.was_for(longer, status)
    if not started:
        check_extendable(directory, spec)
    if spec == longer and directory.compare(spec) == "done":
        console.print(f"{path} holds this run already, finished. Nothing to do.", markup=False)
        return 0
    check_run(longer)
    for line in describe_schedules(spec) if spec != longer else []:
        console.print(line, markup=False, soft_wrap=True)
    if spec != longer and not started:
        extend(directory, spec, longer, lambda line: print(line, file=sys.stderr))
    return _train_into(path, longer, options, console, command)


def _check_keeps_settings(options: Train) -> None:
    """Check that no option is set that an extended run takes from its spec."""
    allowed = {"run", "extend_to", "checkpoint_every", "trust_config", "track", "track_project"}
    groups = ("loss", "environment", "evaluation", "execution", "tracking")
    for values in (options, *(getattr(options, group) for group in groups)):
        for each in fields(values):
            if each.name not in (*groups, *allowed) and getattr(values, each.name) != each.default:
                name = each.name.replace("_", "-")
                raise UserError(
                    f"--{name}: an extended run keeps its settings. Leave this out of --extend-to."
                )


def _train_into(path: Path, spec: RunSpec, options: Train, console: Console, command: str) -> int:
    """Train a checked run, and print its final evaluation; returns the exit status."""
    from srl.rundir.directory import RunDirectory
    from srl.rundir.disk import is_full, naming_full_disk, out_of_space
    from srl.rundir.names import ERROR
    from srl.sweep.display import RunDisplay
    from srl.sweep.engines.local import use_one_thread

    use_one_thread(spec.threads)
    from srl.training.attempt import RunFailed
    from srl.training.run import train_run

    try:
        with (
            tracked(options.tracking, "srl", [path]) as outcome,
            naming_full_disk(path),
            RunDisplay(console, spec) as display,
        ):
            train_run(
                spec,
                path,
                command=command,
                tell=display.update,
                checkpoint_every=options.execution.checkpoint_every,
            )
    except RunFailed as error:
        if is_full(path, str(error)):
            raise out_of_space(path) from None
        print(f"srl: the run failed: {error}\nIts folder is {path}.", file=sys.stderr)
        if (path / ERROR).exists():
            print(f"Its traceback is in {path / ERROR}.", file=sys.stderr)
        return FAILED
    evaluations = RunDirectory(path).read_evaluations()
    final = evaluations["results"][-1]
    n_truncated = int(evaluations["reached_max_steps"][-1].sum()) if "reached_max_steps" in evaluations else 0
    truncated = (
        f", {n_truncated} of which were truncated after {spec.eval_max_episode_steps:,} steps "
        "(--eval-max-episode-steps)"
        if n_truncated
        else ""
    )
    console.print(
        f"Final evaluation at step {evaluations['timesteps'][-1]:,}: mean return {final.mean():.1f} over "
        f"{len(final)} episodes{truncated}. The run is in {path}.",
        markup=False,
        soft_wrap=True,
    )
    return tracked_status(outcome, 0)
