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
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from srl.sweep.engines.local import use_one_thread

GIB = 2**30


def sb3_cnn_update() -> float:
    """Milliseconds of one minibatch in the update of SB3's PPO, CnnPolicy, Pong, batch 256."""
    from stable_baselines3 import PPO

    return _cnn_update(PPO)


def sppo_cnn_update(**kwargs: Any) -> float:
    """The same of SPPO, with arguments for its constructor; the time of compiling is not counted."""
    from srl import SPPO

    return _cnn_update(SPPO, **kwargs)


def _cnn_update(cls: type, **kwargs: Any) -> float:
    from stable_baselines3.common.logger import configure

    from srl.envs import EnvSpec, make_train_env

    env = make_train_env(EnvSpec("PongNoFrameskip-v4", seed=0, n_envs=8, frame_stack=4))
    model = cls("CnnPolicy", env, seed=0, device="cpu", n_steps=64, batch_size=256, n_epochs=1, **kwargs)
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


def sb3_multidiscrete_ppo_on_each_core() -> float:
    """The same of one such run on each core at once, all together."""
    return float(sum(_on_each_core(_part_of_sb3, [()] * _n_cores())))


def _part_of_sb3(connection: Connection, barrier: Any) -> None:
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", _half_cheetah(PPO, n_envs=1), seed=0, device="cpu")
    connection.send(_speed(model, barrier))


def dsppo() -> float:
    """The same of SPPO, which is DSPPO there."""
    from srl import SPPO

    return _half_cheetah_speed(SPPO)


def dsppo_compiled() -> float:
    """The same with a compiled update; the time of compiling is not counted."""
    from srl import SPPO

    return _half_cheetah_speed(SPPO, compile_update=True)


def sb3_cartpole_ppo() -> float:
    """Steps per second of SB3's PPO on CartPole-v1 with SB3's defaults, updates included."""
    from stable_baselines3 import PPO

    return _speed(PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu"))


def sppo_cartpole_compiled() -> float:
    """The same of SPPO with a compiled update; the time of compiling is not counted."""
    from srl import SPPO

    return _speed(SPPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", compile_update=True))


def _half_cheetah_speed(cls: type, **kwargs: Any) -> float:
    return _speed(cls("MlpPolicy", _half_cheetah(cls, n_envs=1), seed=0, device="cpu", **kwargs))


def _speed(model: Any, barrier: Any = None) -> float:
    """Steps per second of two rollouts and updates, after one that is not measured.

    :param model: An algorithm.
    :param barrier: Of processes that measure at the same time.
    """
    n_steps = model.n_steps * model.n_envs
    model.learn(n_steps)
    if barrier is not None:
        barrier.wait()
    began = time.perf_counter()
    model.learn(2 * n_steps)
    speed: float = 2 * n_steps / (time.perf_counter() - began)
    if barrier is not None:
        barrier.wait()  # no process may have the machine to itself
    return speed


def _half_cheetah(cls: type, n_envs: int) -> Any:
    """HalfCheetah-v4 by the protocol, with 11 bins and VecNormalize; for SB3's classes in SB3's own stack."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    from srl.envs import DiscretizeAction, EnvSpec, make_train_env

    if cls.__module__.startswith("srl."):
        return make_train_env(EnvSpec("HalfCheetah-v4", seed=0, n_envs=n_envs, bins=11, normalize={}))

    return VecNormalize(make_vec_env("HalfCheetah-v4", n_envs, seed=0, wrapper_class=DiscretizeAction))


def sb3_multidiscrete_ppo_evaluated() -> float:
    """The same of SB3's PPO with SB3's EvalCallback: 10 episodes every 5,000 steps."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import EvalCallback

    evaluation = EvalCallback(_half_cheetah(PPO, n_envs=1), n_eval_episodes=10, eval_freq=5000, verbose=0)
    evaluation.eval_env.training = evaluation.eval_env.norm_reward = False  # type: ignore[attr-defined]
    model = PPO("MlpPolicy", _half_cheetah(PPO, n_envs=1), seed=0, device="cpu")
    began = time.perf_counter()
    model.learn(10_000, callback=evaluation)
    return model.num_timesteps / (time.perf_counter() - began)


def sb3_multidiscrete_a2c() -> float:
    """Steps per second of SB3's A2C by the protocol: HalfCheetah-v4, 11 bins, 4 environments, 8 steps."""
    from stable_baselines3 import A2C

    model = A2C("MlpPolicy", _half_cheetah(A2C, n_envs=4), n_steps=8, seed=0, device="cpu")
    model.learn(640)
    began = time.perf_counter()
    model.learn(6400)
    return 6400 / (time.perf_counter() - began)


def ppo_population_16() -> float:
    """Steps per second of 16 members: DPPO and DSPPO, without and with noise, 4 seeds; evaluations off."""
    return _population_speed("ppo", 16, n_rollouts=3)


def ppo_population_64() -> float:
    """The same of 64 members."""
    return _population_speed("ppo", 64, n_rollouts=1)


def ppo_environments_64() -> float:
    """Steps per second of the environments of 64 members alone: constant actions, same processes."""
    return _population_speed("ppo", 64)


def ppo_population_16_evaluated() -> float:
    """The same of 16 members with the protocol's evaluations, from the first step to the saved models."""
    return _population_speed("ppo", 16, n_timesteps=10_000)


def a2c_population_16() -> float:
    """The same of 16 members of DA2C and DSA2C; evaluations off."""
    return _population_speed("a2c", 16, n_rollouts=60)


def ppo_population_64_memory() -> float:
    """Peak resident GiB of 64 members, their evaluation environments included, all processes together."""
    with tempfile.TemporaryDirectory() as folder:
        return sum(memory for _, memory in _population_parts("ppo", 64, 1, 0, folder)) / GIB


def _population_speed(family: str, n_members: int, n_rollouts: int = 0, n_timesteps: int = 0) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return sum(
            speed for speed, _ in _population_parts(family, n_members, n_rollouts, n_timesteps, folder)
        )


def _population_parts(
    family: str, n_members: int, n_rollouts: int, n_timesteps: int, folder: str
) -> list[tuple[float, int]]:
    """Train a population as a sweep does, divided among processes of one thread for each core.

    :return: Steps per second and peak resident bytes of each process.
    """
    n_parts = _n_cores()
    arguments = [
        (family, n_members, part, n_parts, n_rollouts, n_timesteps, folder) for part in range(n_parts)
    ]
    return _on_each_core(_train_part, arguments)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0))


def _on_each_core(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call a function in processes that run at the same time.

    :param target: Is given a connection, to which it sends its result, a barrier of all processes, and the
        arguments of its process.
    :param arguments: Of each process.
    :return: The result of each process.
    """
    context = get_context("spawn")
    barrier = context.Barrier(len(arguments))
    receivers, processes = [], []
    for each in arguments:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=target, args=(sender, barrier, *each))
        process.start()
        sender.close()
        receivers.append(receiver)
        processes.append(process)
    results = [receiver.recv() for receiver in receivers]
    for process in processes:
        process.join()
    return results


def _train_part(
    connection: Connection,
    barrier: Any,
    family: str,
    n_members: int,
    part: int,
    n_parts: int,
    n_rollouts: int,
    n_timesteps: int,
    folder: str,
) -> None:
    import resource
    from contextlib import ExitStack

    from srl.compilation import why_not
    from srl.config.spec import make_run_spec
    from srl.training.run import Attempt
    from srl.training.stacked.train import Population

    compile = "on" if why_not("cpu") is None else "off"
    kinds = [(algo, noise) for algo in (f"d{family}", f"ds{family}") for noise in ("none", "gaussian:0.05")]
    # Without a number of steps there are no evaluations
    options: dict[str, Any] = {"n_timesteps": n_timesteps or 2_000_000}
    options["eval_freq"] = None if n_timesteps else options["n_timesteps"]
    specs = [
        make_run_spec(*(algo, "HalfCheetah-v4", seed), noise=noise, device="cpu", compile=compile, **options)[
            0
        ].model_copy(update={"stacked": True})
        for seed in range(n_members // len(kinds))
        for algo, noise in kinds
    ]
    specs = specs[part * n_members // n_parts : (part + 1) * n_members // n_parts]
    with ExitStack() as stack:
        attempts = [stack.enter_context(Attempt(spec, Path(folder) / spec.path)) for spec in specs]
        population = stack.enter_context(Population(attempts))
        barrier.wait()
        if n_timesteps:
            began = time.perf_counter()
            population.train(lambda: None)
            speed = attempts[0].status.timesteps * len(specs) / (time.perf_counter() - began)
        elif n_rollouts == 0:
            speed = _environment_speed(population)
        else:
            speed = population.measure(n_rollouts)
            if any(len(member.evaluations.timesteps) for member in population._members):
                raise RuntimeError("An evaluation was measured, and the row says that there is none.")
        barrier.wait()  # no process may have the machine to itself
    connection.send((speed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def _environment_speed(population: Any) -> float:
    import numpy as np

    envs, n_steps = population._envs, 2000
    members = range(len(envs.venvs))
    shape = envs.venvs[0].action_space.shape
    actions = np.full((len(members), envs.n_envs, *shape), 5)
    envs.reset(members)
    began = time.perf_counter()
    for _ in range(n_steps):
        envs.step(actions, members)
    n_taken: int = n_steps * len(members) * envs.n_envs
    return n_taken / (time.perf_counter() - began)


def sbx_ppo() -> float:
    """Steps per second of SBX's PPO, in JAX, on HalfCheetah-v4 with 11 bins, updates included."""
    # JAX has no option for the number of its threads; compiling is part of what is not measured
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from sbx import PPO  # type: ignore[import-not-found]

    return _half_cheetah_speed(PPO)


def sb3_atari_ppo() -> float:
    """Steps per second of SB3's PPO on Pong by the protocol, on one thread of the CPU, updates included."""
    from stable_baselines3 import PPO

    return _speed(PPO("CnnPolicy", _sb3_pong(), **_PONG_PPO))


def sppo_atari_compiled() -> float:
    """The same of SPPO with a compiled update; the time of compiling is not counted."""
    return _sppo_pong("gymnasium", compile_update=True)


def sppo_atari_bf16() -> float:
    """The same of SPPO with a compiled update in bfloat16 and native environments."""
    return _sppo_pong("native", compile_update=True, precision="bf16")


#: The hyperparameters of the protocol that matter to speed.
_PONG_PPO: dict[str, Any] = dict(n_steps=128, batch_size=256, n_epochs=4, seed=0, device="cpu")


def _sb3_pong() -> Any:
    """Pong by the protocol in SB3's own environments and wrappers."""
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    return VecFrameStack(make_atari_env("PongNoFrameskip-v4", 8, seed=0), 4)


def _sppo_pong(backend: str, **kwargs: Any) -> float:
    from srl import SPPO
    from srl.envs import EnvSpec, make_train_env

    env = make_train_env(EnvSpec("PongNoFrameskip-v4", seed=0, n_envs=8, frame_stack=4, backend=backend))
    model = SPPO("CnnPolicy", env, **_PONG_PPO, **kwargs)
    speed = _speed(model)
    if model.not_compiled is not None:
        raise RuntimeError(f"The update is not compiled: {model.not_compiled}")
    return speed


def sb3_atari_rollout() -> float:
    """Steps per second of random actions on Pong, 8 environments, in SB3's own wrappers."""
    from stable_baselines3.common.vec_env import VecTransposeImage

    return _rollout_speed(VecTransposeImage(_sb3_pong()))


def native_atari_rollout_1() -> float:
    """The same of the native environments with one thread."""
    return _native_rollout(1)


def native_atari_rollout_2() -> float:
    """The same of the native environments with two threads."""
    return _native_rollout(2)


def _native_rollout(n_threads: int) -> float:
    from srl.envs import EnvSpec, make_train_env

    spec = EnvSpec(
        "PongNoFrameskip-v4", seed=0, n_envs=8, frame_stack=4, backend="native", n_threads=n_threads
    )
    return _rollout_speed(make_train_env(spec))


def _rollout_speed(env: Any) -> float:
    import numpy as np

    rng = np.random.default_rng(0)
    env.reset()
    n_steps = 400
    actions = rng.integers(env.action_space.n, size=(n_steps + 50, env.num_envs))
    for step in range(50):
        env.step(actions[step])
    began = time.perf_counter()
    for step in range(50, n_steps + 50):
        env.step(actions[step])
    return n_steps * int(env.num_envs) / (time.perf_counter() - began)


def sb3_atari_gpu() -> float:
    """Steps per second of SB3's PPO on Pong by the protocol, on the GPU, updates included."""
    from stable_baselines3 import PPO

    return _speed(PPO("CnnPolicy", _sb3_pong(), **_PONG_PPO | {"device": "cuda"}))


def sppo_atari_population_gpu() -> float:
    """Steps per second of 8 members of SPPO on Pong, on the GPU, native environments, all cores."""
    from contextlib import ExitStack

    from srl.config.spec import make_run_spec
    from srl.training.run import Attempt
    from srl.training.stacked.train import Population

    n_threads = max(len(os.sched_getaffinity(0)) // 8, 1)
    specs = [
        make_run_spec(
            *("sppo", "PongNoFrameskip-v4", seed), device="cuda", env_backend="native", threads=n_threads
        )[0]
        for seed in range(8)
    ]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        attempts = [stack.enter_context(Attempt(spec, Path(folder) / spec.path)) for spec in specs]
        population = stack.enter_context(Population(attempts))
        return population.measure(4)


def mujoco_memory() -> float:
    """Peak resident GiB of a whole run of DSPPO on HalfCheetah-v4, evaluations included."""
    return _peak_memory("dsppo", "HalfCheetah-v4", n_timesteps=4096)


def atari_memory() -> float:
    """Peak resident GiB of a whole run of PPO on Pong, evaluations included."""
    return _peak_memory("ppo", "PongNoFrameskip-v4", n_timesteps=2048)


def _peak_memory(algo: str, env: str, n_timesteps: int) -> float:
    import resource

    from srl.config.spec import make_run_spec
    from srl.training.run import train_run

    spec, _ = make_run_spec(algo, env, 0, n_timesteps=n_timesteps, n_eval_episodes=10)
    with tempfile.TemporaryDirectory() as folder:
        train_run(spec, Path(folder) / "run")
    # Linux gives kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def share_of_checkpoints(algo: str, env: str, n_runs: int, n_timesteps: int) -> float:
    """Percent of the run time that checkpoints take at the default interval, from one after each update."""
    from srl.training import run
    from srl.training.stacked.train import Population

    if n_runs > 1:
        clocks = [_clock(Population, "_keep")]
    else:
        clocks = [_clock(run, "_state"), _clock(run, "write_checkpoint")]
    _train(algo, env, n_runs, n_timesteps, checkpoint_every=0)
    seconds = sum(statistics.mean(clock) for clock in clocks)
    return 100 * seconds / (run.CHECKPOINT_EVERY + seconds)


def share_of_logs(algo: str, env: str, n_runs: int, n_timesteps: int) -> float:
    """Percent of the run time that logs and statuses take."""
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.monitor import ResultsWriter

    from srl.rundir.directory import RunDirectory

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
    from srl.config.spec import make_run_spec
    from srl.training.run import train_run
    from srl.training.stacked.train import train_population

    specs = [make_run_spec(algo, env, seed, n_timesteps=n_timesteps)[0] for seed in range(n_runs)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(seed) for seed in range(n_runs)]
        began = time.perf_counter()
        if n_runs == 1:
            train_run(specs[0], paths[0], **options)
        else:
            stacked = [spec.model_copy(update={"stacked": True}) for spec in specs]
            train_population(stacked, paths, **options)
        return time.perf_counter() - began


@dataclass(frozen=True)
class Row:
    """A line of the benchmark."""

    what: str
    unit: str
    ours: Callable[[], float]
    #: None for a figure with an absolute bound.
    theirs: Callable[[], float] | None
    bound: str
    #: Gives the reason if this machine cannot measure it.
    why_not: Callable[[], str | None] = lambda: None


def _no_sbx() -> str | None:
    return None if find_spec("sbx") else "SBX is not installed (pip install sbx-rl)"


def _no_bf16() -> str | None:
    from srl.precision import why_no_bf16

    return why_no_bf16("cpu")


def _no_gpu() -> str | None:
    import torch as th

    return None if th.cuda.is_available() else "there is no GPU"


# Algorithm, environment, runs that train as one, and training steps of each
_HALF_CHEETAH = ("dsppo", "HalfCheetah-v4", 1, 20_480)
_PONG = ("sppo", "PongNoFrameskip-v4", 1, 10_240)
_POPULATION = ("dsppo", "HalfCheetah-v4", 16, 6_144)

ROWS = {
    "cnn_update": Row(
        "SPPO update against SB3's PPO: CnnPolicy, Pong, batch 256",
        "ms/minibatch",
        sppo_cnn_update,
        sb3_cnn_update,
        "<= 1.05",
    ),
    "cnn_update_compiled": Row(
        "the same with a compiled update",
        "ms/minibatch",
        partial(sppo_cnn_update, compile_update=True),
        sb3_cnn_update,
        "none",
    ),
    "cnn_update_bf16": Row(
        "the same in bfloat16, not compiled",
        "ms/minibatch",
        partial(sppo_cnn_update, precision="bf16"),
        sb3_cnn_update,
        "none",
        _no_bf16,
    ),
    "cnn_update_bf16_compiled": Row(
        "the same in bfloat16, compiled",
        "ms/minibatch",
        partial(sppo_cnn_update, compile_update=True, precision="bf16"),
        sb3_cnn_update,
        "none",
        _no_bf16,
    ),
    "dsppo": Row(
        "DSPPO against SB3's PPO on MultiDiscrete: HalfCheetah-v4, 11 bins",
        "steps/s",
        dsppo,
        sb3_multidiscrete_ppo,
        ">= 2.8",
    ),
    "dsppo_compiled": Row(
        "the same with a compiled update",
        "steps/s",
        dsppo_compiled,
        sb3_multidiscrete_ppo,
        ">= 4",
    ),
    "cartpole_compiled": Row(
        "SPPO with a compiled update against SB3's PPO: CartPole-v1",
        "steps/s",
        sppo_cartpole_compiled,
        sb3_cartpole_ppo,
        ">= 1.8",
    ),
    "population": Row(
        "population of 16 (DPPO, DSPPO, clean, noisy, 4 seeds), all cores, against one SB3 PPO on "
        "MultiDiscrete: HalfCheetah-v4, evaluations off",
        "steps/s",
        ppo_population_16,
        sb3_multidiscrete_ppo,
        ">= 16",
    ),
    "population_each_core": Row(
        "the same against one SB3 PPO on each core, all at once",
        "steps/s",
        ppo_population_16,
        sb3_multidiscrete_ppo_on_each_core,
        ">= 9 on 2 cores",
    ),
    "population_evaluated": Row(
        "the same with 10 episodes every 5,000 steps, against SB3's PPO with EvalCallback",
        "steps/s",
        ppo_population_16_evaluated,
        sb3_multidiscrete_ppo_evaluated,
        ">= 8",
    ),
    "population_64": Row(
        "population of 64, all cores, against the population of 16",
        "steps/s",
        ppo_population_64,
        ppo_population_16,
        ">= 1",
    ),
    "population_64_bound": Row(
        "population of 64 against its environments alone, stepped with constant actions",
        "steps/s",
        ppo_population_64,
        ppo_environments_64,
        ">= 0.6",
    ),
    "population_64_memory": Row(
        "memory of the population of 64", "GiB", ppo_population_64_memory, None, "< 8 GiB"
    ),
    "population_a2c": Row(
        "population of 16 (DA2C, DSA2C), all cores, against one SB3 A2C on MultiDiscrete",
        "steps/s",
        a2c_population_16,
        sb3_multidiscrete_a2c,
        ">= 13",
    ),
    "atari_1": Row(
        "Atari rollout, 8 environments, native with 1 thread against SB3's wrappers",
        "steps/s",
        native_atari_rollout_1,
        sb3_atari_rollout,
        ">= 1.3",
    ),
    "atari_2": Row(
        "the same with 2 threads",
        "steps/s",
        native_atari_rollout_2,
        sb3_atari_rollout,
        ">= 2.4",
    ),
    "atari_training": Row(
        "SPPO with a compiled update against SB3's PPO: training on Pong, one thread, float32",
        "steps/s",
        sppo_atari_compiled,
        sb3_atari_ppo,
        ">= 1.25",
    ),
    "atari_training_bf16": Row(
        "the same in bfloat16 with native environments",
        "steps/s",
        sppo_atari_bf16,
        sb3_atari_ppo,
        ">= 2",
        _no_bf16,
    ),
    "checkpoints": Row(
        "checkpoints at the default interval, DSPPO on HalfCheetah-v4",
        "% of the time",
        partial(share_of_checkpoints, *_HALF_CHEETAH),
        None,
        "< 2",
    ),
    "checkpoints_atari": Row(
        "the same, SPPO on Pong", "% of the time", partial(share_of_checkpoints, *_PONG), None, "< 2"
    ),
    "checkpoints_population": Row(
        "the same, a population of 16 on HalfCheetah-v4",
        "% of the time",
        partial(share_of_checkpoints, *_POPULATION),
        None,
        "< 2",
    ),
    "logs": Row(
        "logs and statuses, DSPPO on HalfCheetah-v4",
        "% of the time",
        partial(share_of_logs, *_HALF_CHEETAH),
        None,
        "< 2",
    ),
    "logs_atari": Row("the same, SPPO on Pong", "% of the time", partial(share_of_logs, *_PONG), None, "< 2"),
    "logs_population": Row(
        "the same, a population of 16 on HalfCheetah-v4",
        "% of the time",
        partial(share_of_logs, *_POPULATION),
        None,
        "< 2",
    ),
    "mujoco_memory": Row("memory of one MuJoCo run", "GiB", mujoco_memory, None, "< 1 GiB"),
    "atari_memory": Row("memory of one Atari PPO run", "GiB", atari_memory, None, "< 3 GiB"),
    "dsppo_sbx": Row(
        "DSPPO with a compiled update against SBX's PPO (JAX) on MultiDiscrete, one core each",
        "steps/s",
        dsppo_compiled,
        sbx_ppo,
        "none",
        _no_sbx,
    ),
    "population_sbx": Row(
        "population of 16, all cores, against one SBX PPO on MultiDiscrete: HalfCheetah-v4, evaluations off",
        "steps/s",
        ppo_population_16,
        sbx_ppo,
        "none",
        _no_sbx,
    ),
    "atari_gpu": Row(
        "population of 8 (SPPO on Pong) on the GPU, native environments, against one SB3 PPO on the GPU",
        "steps/s",
        sppo_atari_population_gpu,
        sb3_atari_gpu,
        "none",
        _no_gpu,
    ),
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
        raise SystemExit(f"{measure} failed; call it by itself to see why.") from None
    finally:
        process.join()


def main(rows: tuple[str, ...] = tuple(ROWS), repetitions: int = 5) -> None:
    """Measure speed and memory against Stable-Baselines3.

    :param rows: What to measure.
    :param repetitions: Turns of each ratio; memory and percentages are measured once.
    """
    from srl.training.run import versions

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
