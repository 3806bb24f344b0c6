"""``srl tune``: tune hyperparameters with Optuna."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from srl.cli.options import FAILED, EnvOptions, LossOptions, Unset, new_console, put_current_directory_on_path
from srl.errors import MissingExtra, UserError

if TYPE_CHECKING:
    from srl.config.spec import RunSpec


@dataclass
class Tune:
    """Tune the hyperparameters of an algorithm on an environment with Optuna. Trials of one shape train
    together as populations. Hyperparameters that you set are not searched. The same command resumes a
    study."""

    algo: str
    """Algorithm: a2c, ppo, sa2c, sppo; with discretized actions da2c, dppo, dsa2c, dsppo."""
    env: str
    """Id of a Gymnasium environment, for example CartPole-v1."""
    loss: tyro.conf.OmitArgPrefixes[LossOptions]
    environment: tyro.conf.OmitArgPrefixes[EnvOptions]
    n_trials: int = 50
    """Total number of trials of the study."""
    timesteps: Annotated[Unset[int], tyro.conf.arg(aliases=["--n-timesteps"])] = None
    """Number of training steps of each trial. By default that of the hyperparameter file."""
    storage: Unset[str] = None
    """Database or log file of the study: sqlite:///tune.db, postgresql://..., NAME.log. By default tune.db in
    --out. Processes with the same --storage and --study-name run trials of one study in parallel."""
    study_name: Unset[str] = None
    """Name of the study. By default ALGO-ENV."""
    sampler: str = "tpe"
    """Sampler of Optuna: tpe or random."""
    pruner: str = "median"
    """Pruner of Optuna: median, halving, hyperband or none."""
    n_startup_trials: int = 10
    """Number of random trials at the start, and of complete trials before the median pruner prunes."""
    n_evaluations: int = 5
    """Number of evaluations of each trial. The mean return of the last one is the value of the trial."""
    eval_episodes: int = 10
    """Number of episodes of each evaluation."""
    trials_per_batch: int = 16
    """Number of trials that are sampled at once."""
    trials_per_shape: int = 8
    """Number of trials of a batch that have the same network, rollout and minibatch sizes, and train as one
    population."""
    seed: int = 0
    """Seed of the sampler, and of the first trial. The same seed gives the same trials."""
    noise: str = "none"
    """Reward noise in training: none, gaussian:STD, uniform:HALF_WIDTH or flip:PROB."""
    jobs: Unset[int] = None
    """Number of processes. By default the number of cores of this machine."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N. auto selects a GPU for image observations if there is one."""
    compile: str = "auto"
    """Whether updates are compiled: on, off, or auto for shapes whose trials are long enough."""
    profile: str = "controlled"
    """controlled, or authors for the settings of the authors' scripts where they differ."""
    out: Unset[Path] = None
    """Folder of the trials and the results. By default runs/tune/STUDY_NAME."""
    checkpoint_every: float = 180.0
    """Seconds between two checkpoints. An interrupted trial resumes from its last checkpoint."""


def training_command(options: Tune, spec: RunSpec, file: Path) -> str:
    """The command that trains with a study's hyperparameters, in the environment of its trials.

    :param options: The options of the study.
    :param spec: The run that hyperparameters were tuned for.
    :param file: The hyperparameter file.
    """
    environment = options.environment
    words: dict[str, Sequence[object]] = {
        "--algo": [spec.algo],
        "--env": [spec.env],
        "--hyperparams-file": [file],
        "--gym-packages": environment.gym_packages,
        "--env-kwargs": environment.env_kwargs,
        "--max-episode-steps": [environment.max_episode_steps or ""],
        "--bins": [options.loss.bins or ""],
        "--noise": ["" if options.noise == "none" else options.noise],
    }
    command = ["srl", "train"]
    for name, values in words.items():
        if any(values):
            command += [name, *map(str, values)]
    if spec.hyperparams.named_code():
        command.append("--trust-config")
    return shlex.join(command)


def tune(options: Tune, command: str) -> int:
    """Run ``srl tune``; return the exit status."""
    try:
        from srl.tuning.study import TuningOptions, counted_trials
        from srl.tuning.tuner import Tuner
    except ModuleNotFoundError as error:
        raise MissingExtra("srl tune", error, "tune") from None
    from srl.config.spec import make_run_spec, safe_name
    from srl.sweep.display import SweepDisplay
    from srl.sweep.engines.local import Options as LocalOptions
    from srl.sweep.engines.local import process_context
    from srl.sweep.execution import Persistence
    from srl.training.check import check_run

    console = new_console()
    tuning = TuningOptions(
        n_trials=options.n_trials,
        batch=options.trials_per_batch,
        share=options.trials_per_shape,
        n_evaluations=options.n_evaluations,
        sampler=options.sampler,
        pruner=options.pruner,
        n_startup_trials=options.n_startup_trials,
        seed=options.seed,
        compile=options.compile,
    )
    tuning.check()
    engine = LocalOptions(options.jobs)
    persistence = Persistence(checkpoint_every=options.checkpoint_every)
    put_current_directory_on_path()
    # The fork server imports torch while this process samples trials
    process_context()
    fixed = options.loss.others() | options.loss.symmetric()
    spec, notes = make_run_spec(
        options.algo,
        options.env,
        options.seed,
        noise=options.noise,
        n_timesteps=options.timesteps,
        bins=options.loss.bins,
        profile=options.profile,
        device=options.device,
        n_eval_episodes=options.eval_episodes,
        **options.environment.of_run(fixed),
    )
    study_name = f"{spec.algo}-{spec.env}" if options.study_name is None else options.study_name
    if not re.search(r"\w", study_name):
        raise UserError(f"--study-name {study_name!r}: a name is needed.")
    out = options.out or Path("runs") / "tune" / safe_name(study_name)
    n_jobs, _ = engine.capacity()
    tuner = Tuner(
        spec,
        tuning,
        out,
        study_name,
        storage=options.storage,
        fixed=fixed,
        engine=engine,
        n_jobs=n_jobs,
        persistence=persistence,
        command=command,
    )
    check_run(spec)
    for note in notes:
        console.print(note, markup=False)
    with SweepDisplay(console) as display:
        tuner.say = display.say
        study = tuner.run(display.update)
    files = tuner.write_results()
    n_running = sum(trial.state.name == "RUNNING" for trial in study.trials)
    if not files and n_running:
        console.print(
            f"No trial is complete yet; {n_running} trials of other processes are running. When they are "
            "finished, rerun the command to write the results.",
            soft_wrap=True,
        )
        return 0
    if not files:
        print("srl: no trial is complete, so there are no best hyperparameters.", file=sys.stderr)
        return FAILED
    best = study.best_trial
    console.print(
        f"Best of {len(counted_trials(study))} trials: number {best.number}, mean return {best.value:.1f}. "
        f"Written: {', '.join(map(str, files))}",
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f"Train with it: {training_command(options, spec, files[0])}",
        markup=False,
        soft_wrap=True,
    )
    return 0
