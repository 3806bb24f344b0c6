"""Measurements of speed and memory for the benchmark, each in its own process with one thread."""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
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
from srl.rundir.directory import RunDirectory
from srl.training import run
from srl.training.attempt import Attempt
from srl.training.run import train_run
from srl.training.stacked.population import Population
from srl.training.stacked.train import train_population

GIB = 2**30
T = TypeVar("T")
#: Shared by all processes that measure at the same time.
_barrier: Any = threading.Barrier(1)


def in_processes(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Call functions at the same time, each in a new process with one thread; returns their results."""
    context = get_context("spawn")
    barrier = (context.Barrier(len(calls)),)
    with ProcessPoolExecutor(len(calls), context, initializer=_begin, initargs=barrier) as pool:
        return [call.result() for call in [pool.submit(call) for call in calls]]


def _begin(barrier: Any) -> None:
    global _barrier
    _barrier = barrier
    # Suppress the output of environments
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    th.set_num_threads(1)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0))


def _seconds(action: Callable[[], object]) -> float:
    """The duration of an action in seconds; all measuring processes start and end together."""
    _barrier.wait()
    began = time.perf_counter()
    action()
    seconds = time.perf_counter() - began
    _barrier.wait()
    return seconds


def _speed(model: Any, n_before: int = 1, n_rollouts: int = 2) -> float:
    """Steps per second of rollouts and updates, after some for warm-up and compilation."""
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
    """HalfCheetah-v4 by the protocol, with 11 bins and VecNormalize; SB3's classes get SB3's wrappers."""
    if issubclass(cls, SPPO):
        return make_train_env(EnvSpec("HalfCheetah-v4", seed=0, n_envs=n_envs, bins=11, normalize={}))
    return VecNormalize(make_vec_env("HalfCheetah-v4", n_envs, seed=0, wrapper_class=DiscretizeAction))


def half_cheetah(cls: type, **kwargs: Any) -> float:
    """Steps per second on HalfCheetah-v4 with 11 bins per dimension, updates included."""
    return _speed(cls("MlpPolicy", _half_cheetah(cls), seed=0, device="cpu", **kwargs))


def half_cheetah_on_each_core(cls: type) -> float:
    """The sum of the same for one run on each core at the same time."""
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
    # JAX has no option for the number of threads; compilation is part of the warm-up
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import sbx  # type: ignore[import-not-found]

    return half_cheetah(sbx.PPO)


def cartpole(cls: type, **kwargs: Any) -> float:
    """Steps per second on CartPole-v1 with SB3's defaults, updates included."""
    return _speed(cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **kwargs))


@contextmanager
def _population(specs: Sequence[RunSpec]) -> Iterator[Population]:
    """A population in temporary folders."""
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
    """Train one part of a population that is divided by the number of cores.

    :param n_rollouts: Rollouts and updates to measure, without evaluations. If both are 0, only the
        environments are stepped, with constant actions.
    :param n_timesteps: Training steps to measure with the protocol's evaluations, up to the saved models.
    :return: Steps per second and peak resident GiB.
    """
    kinds = [(algo, noise) for algo in (f"d{family}", f"ds{family}") for noise in ("none", "gaussian:0.05")]
    # No evaluations without a number of steps
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
                raise RuntimeError("An evaluation was measured, but the row excludes evaluations.")
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


#: The hyperparameters of the protocol that affect the speed.
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

    :param n_threads: Threads of the native environments; None takes SB3's wrappers.
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
    """Percent of the run time for checkpoints at the default interval, measured with one per update."""
    clocks = [_clock(Population, "_write_checkpoint")] if n_runs > 1 else [_clock(run, "_write_checkpoint")]
    _train(algo, env, n_runs, n_timesteps, checkpoint_every=0)
    seconds = sum(statistics.mean(clock) for clock in clocks)
    return 100 * seconds / (run.CHECKPOINT_EVERY + seconds)


def share_of_logs(algo: str, env: str, n_runs: int, n_timesteps: int) -> float:
    """Percent of the run time for logs and statuses."""
    written = ((Logger, "dump"), (ResultsWriter, "write_row"), (RunDirectory, "write_status"))
    clocks = [_clock(owner, name) for owner, name in written]
    seconds = _train(algo, env, n_runs, n_timesteps)
    return 100 * sum(map(sum, clocks)) / seconds


def _clock(owner: Any, name: str) -> list[float]:
    """Replace a function by a timed one; returns the list of durations in seconds."""
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
    """Train one run, or several as a population; returns the duration in seconds."""
    specs = [make_run_spec(algo, env, seed, n_timesteps=n_timesteps)[0] for seed in range(n_runs)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(seed) for seed in range(n_runs)]
        if n_runs == 1:
            return _seconds(lambda: train_run(specs[0], paths[0], **options))
        return _seconds(lambda: train_population(specs, paths, **options))
