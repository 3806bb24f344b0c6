"""Runs that are killed at random moments, compared with uninterrupted runs.

    python -m tests.training.kills FOLDER [NAME ...] [--kills 10] [--seed 0]

kills each run with SIGKILL up to the given number of times and reruns the same command; in a sweep, it
kills the command or a worker.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from srl.rundir.directory import RunDirectory
from srl.rundir.find import find_runs
from tests.sweep.chaos import disturb
from tests.training.test_resume import outcome

_COMMON = ("--device", "cpu", "--checkpoint-every", "1")
#: Commands by name, with the hyperparameters of the protocol.
COMMANDS = {
    "CartPole": ("train", "--algo", "sppo", "--env", "CartPole-v1", "--timesteps", "60000"),
    "HalfCheetah": (
        *("train", "--algo", "dsppo", "--env", "HalfCheetah-v4", "--noise", "gaussian:0.1"),
        *("--timesteps", "60000"),
    ),
    "LunarLander": (
        *("train", "--algo", "da2c", "--env", "LunarLanderContinuous-v3", "--timesteps", "60000"),
    ),
    "Pong": (
        *("train", "--algo", "sppo", "--env", "PongNoFrameskip-v4", "--noise", "flip:0.1"),
        *("--timesteps", "12000", "--eval-freq", "6000", "--eval-episodes", "1"),
    ),
    "population": (
        *("sweep", "continuous_srl", "--envs", "HalfCheetah-v4", "--algos", "dppo", "dsppo"),
        *("--noise", "gaussian:0.1", "--seeds", "0:2", "--population", "4", "--jobs", "1"),
        *("--timesteps", "24000"),
    ),
}


def command(name: str, out: Path) -> list[str]:
    """Return a command by name."""
    code = "from srl.cli import main; main()"
    return [sys.executable, "-c", code, *COMMANDS[name], *_COMMON, "--out", str(out)]


def run_to_end(words: list[str], log: Path) -> None:
    """Run a command that must succeed."""
    with log.open("ab") as file:
        subprocess.run(words, stdout=file, stderr=file, check=True)


def kill(words: list[str], log: Path, after: float) -> bool:
    """Run a command and kill it after some seconds; return whether it was still running."""
    with log.open("ab") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


def check(name: str, folder: Path, n_kills: int, generator: np.random.Generator) -> str:
    """Run a command with and without kills and compare the results.

    :return: One-line summary.
    """
    folder.mkdir(parents=True)
    whole, killed, log = folder / "whole", folder / "killed", folder / "log"
    began = time.monotonic()
    run_to_end(command(name, whole), log)
    duration = time.monotonic() - began
    if COMMANDS[name][0] == "sweep":
        seed = int(generator.integers(2**31))
        n_killed = sum(disturb(command(name, killed), killed, n_kills, seed, 16 + duration / n_kills))
    else:
        n_killed = 0
        for n_left in range(n_kills, 0, -1):
            # Most kills must come after startup
            n_killed += kill(command(name, killed), log, generator.uniform(1, 8 + duration / n_left / 2))
        run_to_end(command(name, killed), log)
    runs = find_runs(whole)
    attempts = []
    for run in runs:
        there = RunDirectory(killed / run.path.relative_to(whole))
        assert outcome(there.path) == outcome(run.path), there.path
        assert there.damage() == there.minor_damage() == []
        status = there.read_status()
        assert status is not None
        attempts.append(f"{status.attempts} attempts, the last from step {status.resumed_from:,}")
    return f"{name}: killed {n_killed} times, {len(runs)} runs, the same bytes; {'; '.join(attempts)}"


def main() -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(COMMANDS))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    for name in options.names:
        print(check(name, options.folder / name, options.kills, generator), flush=True)


if __name__ == "__main__":
    main()
