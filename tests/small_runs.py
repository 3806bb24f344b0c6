"""Short runs, and the command line called from Python."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from srl.cli import main
from srl.config.spec import RunSpec, make_run_spec

#: Hyperparameters that make PPO updates cheap.
SMALL = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "n_envs": 1}
#: Command-line options with these hyperparameters and short evaluations.
SMALL_WORDS = [
    *("--eval-freq", "32", "--eval-episodes", "2"),
    *("--hyperparams", *(f"{name}={value}" for name, value in SMALL.items())),
]
#: Prefix of the ids of broken environments.
BROKEN = "tests.training.broken_envs:"


def small_spec(algo: str = "sppo", env: str = "CartPole-v1", seed: int = 0, **changes) -> RunSpec:
    """Return the spec of a run of 64 steps; ``overrides`` are added to the small hyperparameters."""
    overrides = SMALL | changes.pop("overrides", {})
    if algo.endswith("a2c"):
        overrides = {
            name: value for name, value in overrides.items() if name not in ("batch_size", "n_epochs")
        }
    options = dict(n_timesteps=64, eval_freq=32, n_eval_episodes=2, device="cpu") | changes
    return make_run_spec(algo, env, seed, overrides=overrides, **options)[0]


@dataclass(frozen=True)
class Outcome:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


def srl(*words: object) -> Outcome:
    """Run the command ``srl`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as exit_:
            main([str(word) for word in words])
    finally:
        signal.signal(signal.SIGTERM, handler)
    return Outcome(exit_.value.code or 0, out.getvalue(), err.getvalue())


def start_srl(*words: object, **options) -> subprocess.Popen[str]:
    """Start the command ``srl`` in a new process, which can import tests and handles signals."""
    return subprocess.Popen(
        [Path(sys.executable).with_name("srl"), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        # A shell ignores SIGINT in the background, where the tests may run
        preexec_fn=lambda: [
            signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)
        ],
        **options,
    )


def until(condition: Callable[[], Any], seconds: float = 600.0) -> Any:
    """Wait until a condition is true; return its value."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)
    return result


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return modification time and content of all files below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
