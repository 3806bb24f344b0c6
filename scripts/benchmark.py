"""Speed and memory, each as a ratio against Stable-Baselines3 measured in the same run on the same machine.

    .venv/bin/python scripts/benchmark.py [--rows ROW ...] [--repetitions N]

The two sides of a ratio take turns, each turn in a process of its own with one thread, so that a machine
whose speed drifts disturbs both alike. Printed is the median of the turn-by-turn ratios and their range.
Populations are divided among as many such processes as there are cores, as a sweep divides them. Rows that
need what this machine does not have are skipped, with the reason.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage

from srl import SPPO
from srl.compilation import why_not
from srl.config.spec import RunSpec, make_run_spec
from srl.envs import DiscretizeAction, EnvSpec, make_train_env
from srl.precision import why_no_bf16
from srl.rundir.directory import RunDirectory
from srl.sweep.engines.local import use_one_thread
from srl.training import run
from srl.training.attempt import Attempt
from srl.training.run import train_run
from srl.training.stacked.population import Population
from srl.training.stacked.train import train_population
from srl.training.versions import versions

GIB = 2**30
T = TypeVar("T")

#: Of all processes that measure at the same time.
_barrier: Any = threading.Barrier(1)


def in_processes(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Call functions at the same time, each in a fresh process with one thread; returns their results."""
    context = get_context("spawn")
    barrier = (context.Barrier(len(calls)),)
    with ProcessPoolExecutor(len(calls), context, initializer=_begin, initargs=barrier) as pool:
        return [call.result() for call in [pool.submit(call) for call in calls]]


def _begin(barrier: Any) -> None:
    global _barrier
    _barrier = barrier
    # What environments print does not belong into the table
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    th.set_num_threads(1)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0))


def _seconds(action: Callable[[], object]) -> float:
    """The seconds that something takes, while no other process that measures has the machine to itself."""
    _barrier.wait()
    began = time.perf_counter()
    action()
    seconds = time.perf_counter() - began
    _barrier.wait()
    return seconds


def _speed(model: Any, n_before: int = 1, n_rollouts: int = 2) -> float:
    """Steps per second of rollouts and updates, after some that are not measured, such as compilation."""
    n_steps = model.n_steps * model.n_envs
    model.learn(n_before * n_steps)
    return float(n_rollouts * n_steps / _seconds(lambda: model.learn(n_rollouts * n_steps)))


def cnn_update(cls: type, **kwargs: Any) -> float:
    """Milliseconds of one minibatch in an update: CnnPolicy, Pong, batch 256."""
    env = make_train_env(EnvSpec("PongNoFrameskip-v4", seed=0, n_envs=8, frame_stack=4))
    model = cls("CnnPolicy", env, seed=0, device="cpu", n_steps=64, batch_size=256, n_epochs=1, **kwargs)
    model.set_logger(configure(None, []))
    model.learn(512)
    model.n_epochs = 4
    return _seconds(model.train) / 8 * 1e3


def _half_cheetah(cls: type, n_envs: int = 1) -> Any:
    """HalfCheetah-v4 by the protocol, with 11 bins and VecNormalize; for SB3's classes in SB3's own stack."""
    if issubclass(cls, SPPO):
        return make_train_env(EnvSpec("HalfCheetah-v4", seed=0, n_envs=n_envs, bins=11, normalize={}))
    return VecNormalize(make_vec_env("HalfCheetah-v4", n_envs, seed=0, wrapper_class=DiscretizeAction))


def half_cheetah(cls: type, **kwargs: Any) -> float:
    """Steps per second on HalfCheetah-v4 with 11 bins per dimension, updates included."""
    return _speed(cls("MlpPolicy", _half_cheetah(cls), seed=0, device="cpu", **kwargs))


def half_cheetah_on_each_core(cls: type) -> float:
    """The same of one such run on each core at once, all together."""
    return sum(in_processes([partial(half_cheetah, cls)] * _n_cores()))


def half_cheetah_evaluated(cls: type) -> float:
    """The same with SB3's EvalCallback: 10 episodes every 5,000 steps."""
    evaluation = EvalCallback(_half_cheetah(cls), n_eval_episodes=10, eval_freq=5000, verbose=0)
    evaluation.eval_env.training = evaluation.eval_env.norm_reward = False  # type: ignore[attr-defined]
    model = cls("MlpPolicy", _half_cheetah(cls), seed=0, device="cpu")
    seconds = _seconds(lambda: model.learn(10_000, callback=evaluation))
    return float(model.num_timesteps / seconds)


def half_cheetah_a2c() -> float:
    """Steps per second of SB3's A2C by the protocol: 4 environments, 8 steps."""
    model = A2C("MlpPolicy", _half_cheetah(A2C, n_envs=4), n_steps=8, seed=0, device="cpu")
    return _speed(model, n_before=20, n_rollouts=200)


def half_cheetah_sbx() -> float:
    """Steps per second of SBX's PPO, in JAX."""
    # JAX has no option for the number of its threads; compiling is part of what is not measured
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import sbx  # type: ignore[import-not-found]

    return half_cheetah(sbx.PPO)


def cartpole(cls: type, **kwargs: Any) -> float:
    """Steps per second on CartPole-v1 with SB3's defaults, updates included."""
    return _speed(cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **kwargs))


@contextmanager
def _population(specs: Sequence[RunSpec]) -> Iterator[Population]:
    """Runs in training together."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stacked = [spec.model_copy(update={"stacked": True}) for spec in specs]
        attempts = [stack.enter_context(Attempt(spec, Path(folder) / spec.path)) for spec in stacked]
        yield stack.enter_context(Population(attempts))


def population(family: str, n_members: int, **how: int) -> float:
    """Steps per second of members with and without the reverse loss and noise, as a sweep divides them.

    :param how: See :func:`_train_part`.
    """
    return sum(speed for speed, _ in _parts(family, n_members, **how))


def population_memory(family: str, n_members: int) -> float:
    """Peak resident GiB of members, their evaluation environments included, all processes together."""
    return sum(memory for _, memory in _parts(family, n_members, n_rollouts=1))


def _parts(family: str, n_members: int, **how: int) -> list[tuple[float, float]]:
    parts = [partial(_train_part, family, n_members, part, **how) for part in range(_n_cores())]
    return in_processes(parts)


def _train_part(
    family: str, n_members: int, part: int, n_rollouts: int = 0, n_timesteps: int = 0
) -> tuple[float, float]:
    """Train the part of a population that one of as many processes as there are cores does.

    :param n_rollouts: Rollouts and updates to measure, without evaluations. With 0 of both, the environments
        alone are stepped, with constant actions.
    :param n_timesteps: Training steps to measure with the protocol's evaluations, up to the saved models.
    :return: Steps per second and peak resident GiB.
    """
    kinds = [(algo, noise) for algo in (f"d{family}", f"ds{family}") for noise in ("none", "gaussian:0.05")]
    # Without a number of steps there are no evaluations
    options: dict[str, Any] = {"n_timesteps": n_timesteps or 2_000_000}
    options["eval_freq"] = None if n_timesteps else options["n_timesteps"]
    options["compile"] = "on" if why_not("cpu") is None else "off"
    specs = [
        make_run_spec(algo, "HalfCheetah-v4", seed, noise=noise, device="cpu", **options)[0]
        for seed in range(n_members // len(kinds))
        for algo, noise in kinds
    ]
    n_parts = _n_cores()
    specs = specs[part * n_members // n_parts : (part + 1) * n_members // n_parts]
    with _population(specs) as members:
        if n_timesteps:
            seconds = _seconds(lambda: members.train(lambda: None))
            speed = members._members[0].attempt.status.timesteps * len(specs) / seconds
        elif n_rollouts == 0:
            speed = _environment_speed(members)
        else:
            _barrier.wait()
            speed = members.measure(n_rollouts)
            _barrier.wait()
            if any(len(member.evaluations.timesteps) for member in members._members):
                raise RuntimeError("An evaluation was measured, and the row says that there is none.")
    return speed, _peak_memory()


def _environment_speed(population: Population, n_steps: int = 2000) -> float:
    envs = population._envs
    members = range(len(envs.venvs))
    actions = np.full((len(members), envs.n_envs, *(envs.venvs[0].action_space.shape or ())), 5)
    envs.reset(members)

    def step() -> None:
        for _ in range(n_steps):
            envs.step(actions, members)

    return n_steps * len(members) * envs.n_envs / _seconds(step)


def _peak_memory() -> float:
    """Peak resident GiB of this process; Linux gives kibibytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def _sb3_pong() -> Any:
    """Pong by the protocol in SB3's own environments and wrappers."""
    return VecFrameStack(make_atari_env("PongNoFrameskip-v4", 8, seed=0), 4)


def _pong(backend: str, n_threads: int = 1) -> Any:
    spec = EnvSpec(
        "PongNoFrameskip-v4", seed=0, n_envs=8, frame_stack=4, backend=backend, n_threads=n_threads
    )
    return make_train_env(spec)


#: The hyperparameters of the protocol that matter to speed.
_PONG_PPO: dict[str, Any] = dict(n_steps=128, batch_size=256, n_epochs=4, seed=0)


def sb3_pong(device: str = "cpu") -> float:
    """Steps per second of SB3's PPO on Pong by the protocol, updates included."""
    return _speed(PPO("CnnPolicy", _sb3_pong(), device=device, **_PONG_PPO))


def sppo_pong(backend: str, **kwargs: Any) -> float:
    """The same of SPPO with a compiled update, on the CPU."""
    model = SPPO("CnnPolicy", _pong(backend), device="cpu", compile_update=True, **_PONG_PPO, **kwargs)
    speed = _speed(model)
    if model.not_compiled is not None:
        raise RuntimeError(f"The update is not compiled: {model.not_compiled}")
    return speed


def population_pong_gpu(n_members: int = 8) -> float:
    """Steps per second of members of SPPO on Pong, on the GPU, native environments, all cores."""
    options: dict[str, Any] = {"env_backend": "native", "threads": max(_n_cores() // n_members, 1)}
    names = ("sppo", "PongNoFrameskip-v4")
    specs = [make_run_spec(*names, seed, device="cuda", **options)[0] for seed in range(n_members)]
    with _population(specs) as members:
        return members.measure(4)


def pong_rollout(n_threads: int | None = None, n_steps: int = 400) -> float:
    """Steps per second of random actions on Pong, 8 environments.

    :param n_threads: Of the native environments; None takes SB3's own wrappers.
    """
    env: Any = VecTransposeImage(_sb3_pong()) if n_threads is None else _pong("native", n_threads)
    actions = np.random.default_rng(0).integers(env.action_space.n, size=(n_steps + 50, env.num_envs))
    env.reset()

    def play(chosen: np.ndarray) -> None:
        for action in chosen:
            env.step(action)

    play(actions[:50])
    return float(n_steps * env.num_envs / _seconds(lambda: play(actions[50:])))


def run_memory(algo: str, env: str, n_timesteps: int) -> float:
    """Peak resident GiB of a whole run, evaluations included."""
    spec, _ = make_run_spec(algo, env, 0, n_timesteps=n_timesteps, n_eval_episodes=10)
    with tempfile.TemporaryDirectory() as folder:
        train_run(spec, Path(folder) / "run")
    return _peak_memory()


def share_of_checkpoints(algo: str, env: str, n_runs: int, n_timesteps: int) -> float:
    """Percent of the run time that checkpoints take at the default interval, from one after each update."""
    clocks = [_clock(Population, "_write_checkpoint")] if n_runs > 1 else [_clock(run, "_write_checkpoint")]
    _train(algo, env, n_runs, n_timesteps, checkpoint_every=0)
    seconds = sum(statistics.mean(clock) for clock in clocks)
    return 100 * seconds / (run.CHECKPOINT_EVERY + seconds)


def share_of_logs(algo: str, env: str, n_runs: int, n_timesteps: int) -> float:
    """Percent of the run time that logs and statuses take."""
    written = ((Logger, "dump"), (ResultsWriter, "write_row"), (RunDirectory, "write_status"))
    clocks = [_clock(owner, name) for owner, name in written]
    seconds = _train(algo, env, n_runs, n_timesteps)
    return 100 * sum(map(sum, clocks)) / seconds


def _clock(owner: Any, name: str) -> list[float]:
    """A list that gets the seconds that each call of a function takes from now on."""
    function, seconds = getattr(owner, name), []

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - began)

    setattr(owner, name, timed)
    return seconds


def _train(algo: str, env: str, n_runs: int, n_timesteps: int, **options: Any) -> float:
    """Train runs into folders, as a population if they are several; the seconds that takes."""
    specs = [make_run_spec(algo, env, seed, n_timesteps=n_timesteps)[0] for seed in range(n_runs)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(seed) for seed in range(n_runs)]
        if n_runs == 1:
            return _seconds(lambda: train_run(specs[0], paths[0], **options))
        return _seconds(lambda: train_population(specs, paths, **options))


@dataclass(frozen=True)
class Row:
    """A line of the benchmark."""

    what: str
    ours: Callable[[], float]
    #: None for a figure with an absolute bound.
    theirs: Callable[[], float] | None = None
    bound: str = "none"
    unit: str = "steps/s"
    #: Gives the reason if this machine cannot measure it.
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
    """A figure, measured in a fresh process with one thread."""
    return float(in_processes([measure])[0])


def main(rows: tuple[str, ...] = tuple(ROWS), repetitions: int = 5) -> None:
    """Measure speed and memory against Stable-Baselines3.

    :param rows: What to measure.
    :param repetitions: Turns of each ratio; memory and percentages are measured once.
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
