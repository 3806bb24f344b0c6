"""A sweep with repeated kills of the sweep or a worker at random moments.

    python -m tests.sweep.chaos FOLDER [--kills 100] [--seed 0]

trains 40 short runs with and without kills, and compares the results.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from srl.rundir.directory import RunDirectory
from srl.rundir.find import find_runs

#: 2 algorithms x 2 noises x 10 seeds.
SWEEP = [
    *("continuous_srl", "--envs", "CartPole-v1", "--algos", "ppo", "sppo"),
    *("--noise", "none", "flip:0.1", "--device", "cpu", "--jobs", "2"),
    *("--eval-freq", "640", "--eval-episodes", "2", "--checkpoint-every", "0"),
    *("--hyperparams", "n_steps=64", "batch_size=64", "n_epochs=2", "n_envs=1"),
]
FILES = ("table.md", "table.csv", "table.tex")


def command(folder: Path, n_seeds: int, n_timesteps: int, *words: str) -> list[str]:
    """Return the command of a sweep."""
    code = "from srl.cli import main; main()"
    seeds = ("--seeds", f"0:{n_seeds}", "--timesteps", str(n_timesteps))
    return [sys.executable, "-c", code, "sweep", *SWEEP, *seeds, "--out", str(folder), *words]


def descendants(pid: int) -> list[int]:
    """Return all descendants of a process, from /proc."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return [*children, *(below for child in children for below in descendants(child))]


def workers(pid: int) -> list[int]:
    """Return the processes that have claimed a run."""
    found = []
    for child in descendants(pid):
        try:
            files = [os.readlink(file) for file in Path(f"/proc/{child}/fd").iterdir()]
        except OSError:
            continue
        if any(file.endswith("/run.lock") for file in files):
            found.append(child)
    return found


def done(folder: Path) -> dict[Path, float]:
    """Return the end time of each finished run."""
    statuses = {run.path: run.read_status() for run in find_runs(folder)} if folder.exists() else {}
    return {path: status.ended for path, status in statuses.items() if status and status.state == "done"}


def disturb(words: Sequence[str], folder: Path, n_kills: int, seed: int, pause: float) -> tuple[int, int]:
    """Run a command until it finishes, killing it or a worker at random moments.

    :return: Numbers of kills of the command and of workers.
    """
    generator = np.random.default_rng(seed)
    n_sweeps = n_workers = 0
    finished: dict[Path, float] = {}
    log = (folder.parent / f"{folder.name}.log").open("ab")
    while True:
        process = subprocess.Popen(words, stdout=log, stderr=log)
        while process.poll() is None:
            if n_sweeps + n_workers >= n_kills:
                process.wait()
                break
            time.sleep(generator.uniform(0, pause))
            now = done(folder)
            again = [path for path, ended in finished.items() if now.get(path) != ended]
            assert not again, f"finished, and trained again: {again}"
            finished = now
            running = workers(process.pid)
            if generator.random() < 0.3:
                process.send_signal(signal.SIGKILL)
                n_sweeps += process.wait() == -signal.SIGKILL
            elif running:
                try:
                    os.kill(int(generator.choice(running)), signal.SIGKILL)
                    n_workers += 1
                except ProcessLookupError:
                    continue
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, process.returncode
            return n_sweeps, n_workers


def compare(disturbed: Path, undisturbed: Path) -> None:
    """Check that tables, models, evaluations and logs are bitwise identical."""
    from tests.training.test_resume import outcome

    for name in FILES:
        assert (disturbed / name).read_bytes() == (undisturbed / name).read_bytes(), name
    runs = find_runs(undisturbed)
    assert len(find_runs(disturbed)) == len(runs)
    for run in runs:
        path = disturbed / run.path.relative_to(undisturbed)
        assert outcome(path) == outcome(run.path), path
        assert RunDirectory(path).damage() == RunDirectory(path).minor_damage() == []


def main() -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timesteps", type=int, default=6400)
    parser.add_argument("--pause", type=float, default=8.0)
    parser.add_argument("--words", nargs=argparse.REMAINDER, default=[], help="more of the command")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    whole, killed = options.folder / "whole", options.folder / "killed"
    began = time.time()
    subprocess.run(command(whole, 10, options.timesteps, *options.words), check=True)
    print(f"undisturbed: {time.time() - began:.0f} s", flush=True)
    words = command(killed, 10, options.timesteps, *options.words)
    began = time.time()
    n_sweeps, n_workers = disturb(words, killed, options.kills, options.seed, options.pause)
    compare(killed, whole)
    took = time.time() - began
    print(f"killed the sweep {n_sweeps} times, a worker {n_workers} times, {took:.0f} s: the same")


if __name__ == "__main__":
    main()
