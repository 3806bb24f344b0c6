"""Compare ``srl tune`` with rl-baselines3-zoo's ``-optimize``: time, and the best trial.

The zoo gets the trials of ``srl tune`` (``enqueue_trial``), so that both train the same hyperparameters for
the same number of steps, without pruning. It runs in two ways: as several processes that share a database,
which is the fastest, and with its own ``--n-jobs``. All results are written to one new folder.

    python scripts/compare_tuning.py --out /tmp/tuning --jobs 2
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import tyro

from srl.sweep.engines.local import THREAD_VARIABLES


@dataclass
class Options:
    """Compare srl tune with the zoo's -optimize."""

    out: Path
    """A new folder."""
    env: str = "CartPole-v1"
    """The environment."""
    n_trials: int = 16
    """Trials of each."""
    timesteps: int = 20_000
    """Training steps of a trial."""
    n_evaluations: int = 2
    """Evaluations of a trial."""
    eval_episodes: int = 5
    """Episodes of an evaluation."""
    jobs: int = 2
    """Processes of each."""
    seed: int = 0
    """Seed of both."""


@dataclass
class Result:
    """Duration and result of a study."""

    name: str
    seconds: float
    cpu_seconds: float
    study: Any

    def row(self, ours: Result) -> str:
        """Return a row of the table, with durations relative to srl tune."""
        values = [trial.value for trial in self.study.trials if trial.value is not None]
        wall, cpu = self.seconds / ours.seconds, self.cpu_seconds / ours.cpu_seconds
        return (
            f"| {self.name} | {len(values)} | {self.seconds:,.0f} | {wall:.1f} | {self.cpu_seconds:,.0f} "
            f"| {cpu:.1f} | {max(values):.1f} | {sum(values) / len(values):.1f} |"
        )


def timed(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Run commands in parallel, each with one thread; return their seconds and CPU seconds."""
    environment = dict(os.environ, MPLBACKEND="agg") | dict.fromkeys(THREAD_VARIABLES, "1")
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    processes = [
        subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=subprocess.DEVNULL)
        for command in commands
    ]
    statuses = [process.wait() for process in processes]
    # Remaining child processes, such as the fork server of a sweep
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    if any(statuses):
        raise SystemExit(f"a command failed: {statuses}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return time.monotonic() - began, cpu


def tune(options: Options) -> Result:
    """Run srl tune."""
    out = options.out / "srl"
    command = [
        *("srl", "tune", "--algo", "sppo", "--env", options.env, "--n-trials", str(options.n_trials)),
        *("--timesteps", str(options.timesteps), "--n-evaluations", str(options.n_evaluations)),
        *("--eval-episodes", str(options.eval_episodes), "--jobs", str(options.jobs), "--pruner", "none"),
        *("--seed", str(options.seed), "--out", str(out), "--study-name", "srl"),
    ]
    times = timed([command])
    return Result("srl tune", *times, optuna.load_study(study_name="srl", storage=f"sqlite:///{out}/tune.db"))


def optimize(options: Options, name: str, given: optuna.Study, *, threads: bool = False) -> Result:
    """Run the zoo's -optimize on the trials of a study.

    :param threads: Use one process with the zoo's ``--n-jobs``, which are threads.
    """
    n_processes = 1 if threads else options.jobs
    storage = f"sqlite:///{options.out}/{name}.db"
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    for trial in given.trials:
        study.enqueue_trial(trial.params)
    # `--max-total-trials` does not count waiting trials, so that each process gets its share of them
    share = -(-options.n_trials // n_processes)
    command = [
        *("srl.zoo", "train", "--algo", "sppo", "--env", options.env, "-optimize", "--no-optim-plots"),
        *("-n", str(options.timesteps), "--n-evaluations", str(options.n_evaluations)),
        *("--eval-episodes", str(options.eval_episodes), "--pruner", "none", "--num-threads", "1"),
        *("--n-trials", str(share), "--storage", storage, "--study-name", name),
        *("-f", str(options.out / name), "--verbose", "0", "--device", "cpu"),
    ]
    seeds = range(options.seed, options.seed + n_processes)
    if threads:
        command += ["--n-jobs", str(options.jobs)]
    times = timed([[*command, "--seed", str(seed)] for seed in seeds])
    how = f"--n-jobs {options.jobs}" if threads else f"{n_processes} processes"
    return Result(
        f"zoo -optimize, {how}, the same trials", *times, optuna.load_study(study_name=name, storage=storage)
    )


def main() -> None:
    """Run both and print a table."""
    options = tyro.cli(Options, description=__doc__)
    # Processes whose parents have ended become children of this one, so that their CPU time counts
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)
    options.out.mkdir(parents=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ours = tune(options)
    results = [
        optimize(options, "processes", ours.study),
        optimize(options, "threads", ours.study, threads=True),
    ]
    print("| study | trials | seconds | ratio | CPU seconds | ratio | best trial | mean of trials |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for result in (ours, *results):
        print(result.row(ours))


if __name__ == "__main__":
    main()
