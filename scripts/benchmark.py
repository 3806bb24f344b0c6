"""Speed and memory, each as a ratio against Stable-Baselines3 measured in the same run on the same machine.

    .venv/bin/python scripts/benchmark.py [--rows ROW ...] [--repetitions N]

The two sides of a ratio take turns, each turn in a process of its own with one thread, so that a machine
whose speed drifts disturbs both alike. Printed is the median of the turn-by-turn ratios and their range.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from srl.experiment.engines.local import use_one_thread

GIB = 2**30


def sb3_cnn_update() -> float:
    """Milliseconds of one minibatch in the update of SB3's PPO, CnnPolicy, Pong, batch 256."""
    from stable_baselines3 import PPO

    return _cnn_update(PPO)


def sppo_cnn_update() -> float:
    """The same of SPPO."""
    from srl import SPPO

    return _cnn_update(SPPO)


def _cnn_update(cls: type) -> float:
    from stable_baselines3.common.logger import configure

    from srl.envs import EnvSpec, make_train_env

    env = make_train_env(EnvSpec("PongNoFrameskip-v4", seed=0, n_envs=8, frame_stack=4))
    model = cls("CnnPolicy", env, seed=0, device="cpu", n_steps=64, batch_size=256, n_epochs=1)
    model.set_logger(configure(None, []))
    model.learn(512)
    model.n_epochs = 4
    began = time.perf_counter()
    model.train()
    return (time.perf_counter() - began) / 8 * 1e3


def sb3_multidiscrete_ppo() -> float:
    """Steps per second of SB3's PPO on HalfCheetah-v4 with 11 bins per dimension, updates included."""
    from stable_baselines3 import PPO

    return _half_cheetah_speed(PPO)


def dsppo() -> float:
    """The same of SPPO, which is DSPPO there."""
    from srl import SPPO

    return _half_cheetah_speed(SPPO)


def _half_cheetah_speed(cls: type) -> float:
    from srl.envs import EnvSpec, make_train_env

    env = make_train_env(EnvSpec("HalfCheetah-v4", seed=0, bins=11))
    model = cls("MlpPolicy", env, seed=0, device="cpu")
    model.learn(2048)
    began = time.perf_counter()
    model.learn(2 * 2048)
    return 4096 / (time.perf_counter() - began)


def mujoco_memory() -> float:
    """Peak resident GiB of a whole run of DSPPO on HalfCheetah-v4, evaluations included."""
    return _peak_memory("dsppo", "HalfCheetah-v4", n_timesteps=4096)


def atari_memory() -> float:
    """Peak resident GiB of a whole run of PPO on Pong, evaluations included."""
    return _peak_memory("ppo", "PongNoFrameskip-v4", n_timesteps=2048)


def _peak_memory(algo: str, env: str, n_timesteps: int) -> float:
    import resource

    from srl.experiment.run import train_run
    from srl.experiment.spec import make_run_spec

    spec, _ = make_run_spec(algo, env, 0, n_timesteps=n_timesteps, n_eval_episodes=10)
    with tempfile.TemporaryDirectory() as folder:
        train_run(spec, Path(folder) / "run")
    # Linux gives kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


@dataclass(frozen=True)
class Row:
    """A line of the benchmark."""

    what: str
    unit: str
    ours: Callable[[], float]
    #: None for a figure with an absolute bound.
    theirs: Callable[[], float] | None
    bound: str


ROWS = {
    "cnn_update": Row(
        "SPPO update against SB3's PPO: CnnPolicy, Pong, batch 256",
        "ms/minibatch",
        sppo_cnn_update,
        sb3_cnn_update,
        "<= 1.05",
    ),
    "dsppo": Row(
        "DSPPO against SB3's PPO on MultiDiscrete: HalfCheetah-v4, 11 bins",
        "steps/s",
        dsppo,
        sb3_multidiscrete_ppo,
        ">= 2.0",
    ),
    "mujoco_memory": Row("memory of one MuJoCo run", "GiB", mujoco_memory, None, "< 1 GiB"),
    "atari_memory": Row("memory of one Atari PPO run", "GiB", atari_memory, None, "< 3 GiB"),
}


def _measure_into(connection: Connection, measure: Callable[[], float]) -> None:
    # What environments print does not belong into the table
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    import torch as th

    th.set_num_threads(1)
    connection.send(measure())


def measured(measure: Callable[[], float]) -> float:
    """A figure, measured in a fresh process with one thread."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_into, args=(sender, measure))
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    except EOFError:
        raise SystemExit(f"{measure.__name__} failed; call it by itself to see why.") from None
    finally:
        process.join()


def main(rows: tuple[str, ...] = tuple(ROWS), repetitions: int = 5) -> None:
    """Measure speed and memory against Stable-Baselines3.

    :param rows: What to measure: cnn_update, dsppo, mujoco_memory, atari_memory.
    :param repetitions: Turns of each ratio; memory is measured once.
    """
    from srl.experiment.run import versions

    unknown = [row for row in rows if row not in ROWS]
    if unknown or repetitions < 1:
        raise SystemExit(f"rows must be of {', '.join(ROWS)}, and repetitions at least 1.")
    use_one_thread()
    console = Console(width=None if os.isatty(1) else 160)
    packages = versions()["packages"]
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {packages['torch']}, stable-baselines3 {packages['stable-baselines3']}; "
        f"one thread, {repetitions} turns",
        highlight=False,
    )
    table = Table("what", "ours (median)", "SB3 (median)", "ratio (median)", "range", "bound")
    for name in rows:
        row = ROWS[name]
        with console.status(row.what):
            if row.theirs is None:
                table.add_row(row.what, f"{measured(row.ours):.2f} {row.unit}", "", "", "", row.bound)
                continue
            turns = [(measured(row.ours), measured(row.theirs)) for _ in range(repetitions)]
        ours, theirs = ([turn[side] for turn in turns] for side in (0, 1))
        ratios = [a / b for a, b in turns]
        table.add_row(
            row.what,
            f"{statistics.median(ours):,.1f} {row.unit}",
            f"{statistics.median(theirs):,.1f} {row.unit}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            row.bound,
        )
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
