"""Speed and memory, each as a ratio against Stable-Baselines3 measured in the same run on the same machine.

    .venv/bin/python scripts/benchmark.py [--rows ROW ...] [--repetitions N]

The two sides of a ratio are measured alternately, each time in a new process with one thread, so that changes
in the machine's speed affect both equally. The table has the median and the range of the ratios. Populations
are divided among as many processes as there are cores, as in a sweep. Rows that this machine cannot measure
are skipped with the reason.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch as th
import tyro
from measurements import (
    cartpole,
    cnn_update,
    half_cheetah,
    half_cheetah_a2c,
    half_cheetah_evaluated,
    half_cheetah_on_each_core,
    half_cheetah_sbx,
    in_processes,
    pong_rollout,
    population,
    population_memory,
    population_pong_gpu,
    run_memory,
    sb3_pong,
    share_of_checkpoints,
    share_of_logs,
    sppo_pong,
)
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO

from srl import SPPO
from srl.precision import why_no_bf16
from srl.sweep.engines.local import use_one_thread
from srl.training.versions import versions


@dataclass(frozen=True)
class Row:
    """A row of the benchmark."""

    what: str
    ours: Callable[[], float]
    #: None for a value with an absolute bound.
    theirs: Callable[[], float] | None = None
    bound: str = "none"
    unit: str = "steps/s"
    #: Returns the reason if this machine cannot measure it.
    why_not: Callable[[], str | None] = lambda: None


def _no_sbx() -> str | None:
    return None if find_spec("sbx") else "SBX is not installed (pip install sbx-rl)"


def _no_gpu() -> str | None:
    return None if th.cuda.is_available() else "there is no GPU"


_no_bf16 = partial(why_no_bf16, "cpu")
# Algorithm, environment, runs that train as one, and training steps of each
_HALF_CHEETAH = ("dsppo", "HalfCheetah-v4", 1, 20_480)
_PONG = ("sppo", "PongNoFrameskip-v4", 1, 10_240)
_POPULATION = ("dsppo", "HalfCheetah-v4", 16, 6_144)
# Sides of several ratios
_SB3_PPO = partial(half_cheetah, PPO)
_SB3_UPDATE = partial(cnn_update, PPO)
_DSPPO_COMPILED = partial(half_cheetah, SPPO, compile_update=True)
_POPULATION_16 = partial(population, "ppo", 16, n_rollouts=3)
_POPULATION_64 = partial(population, "ppo", 64, n_rollouts=1)
_update = partial(Row, theirs=_SB3_UPDATE, unit="ms/minibatch")
_share = partial(Row, bound="< 2", unit="% of the time")
_memory = partial(Row, unit="GiB")
ROWS = {
    "cnn_update": _update(
        "SPPO update against SB3's PPO: CnnPolicy, Pong, batch 256",
        partial(cnn_update, SPPO),
        bound="<= 1.05",
    ),
    "cnn_update_compiled": _update(
        "the same with a compiled update", partial(cnn_update, SPPO, compile_update=True)
    ),
    "cnn_update_bf16": _update(
        "the same in bfloat16, not compiled", partial(cnn_update, SPPO, precision="bf16"), why_not=_no_bf16
    ),
    "cnn_update_bf16_compiled": _update(
        "the same in bfloat16, compiled",
        partial(cnn_update, SPPO, compile_update=True, precision="bf16"),
        why_not=_no_bf16,
    ),
    "dsppo": Row(
        "DSPPO against SB3's PPO on MultiDiscrete: HalfCheetah-v4, 11 bins",
        *(partial(half_cheetah, SPPO), _SB3_PPO, ">= 2.8"),
    ),
    "dsppo_compiled": Row("the same with a compiled update", _DSPPO_COMPILED, _SB3_PPO, ">= 4"),
    "cartpole_compiled": Row(
        "SPPO with a compiled update against SB3's PPO: CartPole-v1",
        *(partial(cartpole, SPPO, compile_update=True), partial(cartpole, PPO), ">= 1.8"),
    ),
    "population": Row(
        "population of 16 (DPPO, DSPPO, clean, noisy, 4 seeds), all cores, against one SB3 PPO on "
        "MultiDiscrete: HalfCheetah-v4, evaluations off",
        *(_POPULATION_16, _SB3_PPO, ">= 16"),
    ),
    "population_each_core": Row(
        "the same against one SB3 PPO on each core, all at once",
        *(_POPULATION_16, partial(half_cheetah_on_each_core, PPO), ">= 9 on 2 cores"),
    ),
    "population_evaluated": Row(
        "the same with 10 episodes every 5,000 steps, against SB3's PPO with EvalCallback",
        *(partial(population, "ppo", 16, n_timesteps=10_000), partial(half_cheetah_evaluated, PPO), ">= 8"),
    ),
    "population_64": Row(
        "population of 64, all cores, against the population of 16", _POPULATION_64, _POPULATION_16, ">= 1"
    ),
    "population_64_bound": Row(
        "population of 64 against its environments alone, stepped with constant actions",
        *(_POPULATION_64, partial(population, "ppo", 64), ">= 0.6"),
    ),
    "population_64_memory": _memory(
        "memory of the population of 64", partial(population_memory, "ppo", 64), bound="< 8 GiB"
    ),
    "population_a2c": Row(
        "population of 16 (DA2C, DSA2C), all cores, against one SB3 A2C on MultiDiscrete",
        *(partial(population, "a2c", 16, n_rollouts=60), half_cheetah_a2c, ">= 13"),
    ),
    "atari_1": Row(
        "Atari rollout, 8 environments, native with 1 thread against SB3's wrappers",
        *(partial(pong_rollout, 1), pong_rollout, ">= 1.3"),
    ),
    "atari_2": Row("the same with 2 threads", partial(pong_rollout, 2), pong_rollout, ">= 2.4"),
    "atari_training": Row(
        "SPPO with a compiled update against SB3's PPO: training on Pong, one thread, float32",
        *(partial(sppo_pong, "gymnasium"), sb3_pong, ">= 1.25"),
    ),
    "atari_training_bf16": Row(
        "the same in bfloat16 with native environments",
        *(partial(sppo_pong, "native", precision="bf16"), sb3_pong, ">= 2"),
        why_not=_no_bf16,
    ),
    "checkpoints": _share(
        "checkpoints at the default interval, DSPPO on HalfCheetah-v4",
        partial(share_of_checkpoints, *_HALF_CHEETAH),
    ),
    "checkpoints_atari": _share("the same, SPPO on Pong", partial(share_of_checkpoints, *_PONG)),
    "checkpoints_population": _share(
        "the same, a population of 16 on HalfCheetah-v4", partial(share_of_checkpoints, *_POPULATION)
    ),
    "logs": _share("logs and statuses, DSPPO on HalfCheetah-v4", partial(share_of_logs, *_HALF_CHEETAH)),
    "logs_atari": _share("the same, SPPO on Pong", partial(share_of_logs, *_PONG)),
    "logs_population": _share(
        "the same, a population of 16 on HalfCheetah-v4", partial(share_of_logs, *_POPULATION)
    ),
    "mujoco_memory": _memory(
        "memory of one MuJoCo run", partial(run_memory, "dsppo", "HalfCheetah-v4", 4096), bound="< 1 GiB"
    ),
    "atari_memory": _memory(
        "memory of one Atari PPO run", partial(run_memory, "ppo", "PongNoFrameskip-v4", 2048), bound="< 3 GiB"
    ),
    "dsppo_sbx": Row(
        "DSPPO with a compiled update against SBX's PPO (JAX) on MultiDiscrete, one core each",
        *(_DSPPO_COMPILED, half_cheetah_sbx),
        why_not=_no_sbx,
    ),
    "population_sbx": Row(
        "population of 16, all cores, against one SBX PPO on MultiDiscrete: HalfCheetah-v4, evaluations off",
        *(_POPULATION_16, half_cheetah_sbx),
        why_not=_no_sbx,
    ),
    "atari_gpu": Row(
        "population of 8 (SPPO on Pong) on the GPU, native environments, against one SB3 PPO on the GPU",
        *(population_pong_gpu, partial(sb3_pong, "cuda")),
        why_not=_no_gpu,
    ),
}


def measured(measure: Callable[[], float]) -> float:
    """Measure in a new process with one thread."""
    return float(in_processes([measure])[0])


def main(rows: tuple[str, ...] = tuple(ROWS), repetitions: int = 5) -> None:
    """Measure speed and memory against Stable-Baselines3.

    :param rows: Names of the rows.
    :param repetitions: Measurements of each ratio; memory and percentages are measured once.
    """
    unknown = [row for row in rows if row not in ROWS]
    if unknown or repetitions < 1:
        raise SystemExit(f"rows must be of {', '.join(ROWS)}, and repetitions at least 1.")
    use_one_thread()
    console = Console(width=None if os.isatty(1) else 160)
    packages = versions()["packages"]
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {packages['torch']}, stable-baselines3 {packages['stable-baselines3']}; "
        f"one thread in each process, {repetitions} turns, load average {os.getloadavg()[0]:.1f}",
        highlight=False,
    )
    table = Table("what", "ours (median)", "other (median)", "ratio (median)", "range", "bound")
    for name in rows:
        row = ROWS[name]
        reason = row.why_not()
        if reason is not None:
            table.add_row(row.what, f"skipped: {reason}", "", "", "", row.bound)
            continue
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
