"""How long a sweep will take here, from a short measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from srl.experiment.engines.local import process_context
from srl.experiment.spec import RunSpec

#: Steps of one rollout in the measurement, so that an update is measured too and soon.
_ROLLOUT_STEPS = 256
#: Steps of an evaluation episode where the environment sets no limit, or a far one.
_LONGEST_EPISODE = 1000
#: Seconds after which one measurement is given up.
_PATIENCE = 60.0

Kind = tuple[str, str, bool, str]


@dataclass(frozen=True)
class Speed:
    """How fast one kind of run goes."""

    #: Training steps per second, without evaluations.
    steps_per_second: float
    #: Seconds for one evaluation if its episodes are of full length.
    evaluation_seconds: float
    #: Seconds until the first training step.
    startup_seconds: float

    def run_seconds(self, spec: RunSpec) -> float:
        """Seconds that a run takes, at the most."""
        n_evaluations = max(spec.n_timesteps // spec.eval_freq, 1)
        training_seconds = spec.n_timesteps / self.steps_per_second
        return self.startup_seconds + training_seconds + n_evaluations * self.evaluation_seconds


@dataclass(frozen=True)
class Estimate:
    """How long a sweep will take."""

    seconds: float
    n_measured: int
    n_kinds: int


def kind(spec: RunSpec) -> Kind:
    """Runs of one kind are equally fast: a reverse loss costs next to nothing."""
    return spec.env, spec.algorithm.family, spec.algorithm.discretised, spec.device


def measure(spec: RunSpec) -> Speed:
    """Train one rollout and update, and play a part of an evaluation.

    :param spec: A run of the kind to measure; nothing is written.
    """
    began = time.perf_counter()
    import numpy as np
    import torch as th

    from srl.envs import make_eval_env, make_train_env
    from srl.experiment.run import make_model

    th.set_num_threads(spec.threads)
    n_envs = spec.hyperparams.n_envs
    n_steps = min(spec.hyperparams.n_steps, max(_ROLLOUT_STEPS // n_envs, 1))
    hyperparams = spec.hyperparams.model_copy(update={"n_steps": n_steps})
    spec = spec.model_copy(update={"hyperparams": hyperparams})
    env = make_train_env(spec.env_spec())
    model = make_model(spec, env)
    model.learn(1)  # the first update is slow
    startup_seconds = time.perf_counter() - began
    began = time.perf_counter()
    model.learn(max(_ROLLOUT_STEPS, n_steps * n_envs))
    steps_per_second = model.num_timesteps / (time.perf_counter() - began)

    eval_env = make_eval_env(spec.env_spec(), n_envs=spec.n_eval_envs)
    observations = eval_env.reset()
    began = time.perf_counter()
    n_measured = 20
    for _ in range(n_measured):
        actions, _ = model.predict(np.asarray(observations), deterministic=spec.eval_deterministic)
        observations, *_ = eval_env.step(actions)
    step_seconds = (time.perf_counter() - began) / n_measured
    env_spec = eval_env.get_attr("spec", 0)[0]
    longest = min(env_spec.max_episode_steps or _LONGEST_EPISODE, _LONGEST_EPISODE)
    rounds = -(-spec.n_eval_episodes // spec.n_eval_envs)
    env.close()
    eval_env.close()
    return Speed(steps_per_second, step_seconds * longest * rounds, startup_seconds)


def _measure_into(connection: Connection, spec: RunSpec) -> None:
    with suppress(Exception):  # its run will fail in the same way and say why
        connection.send(measure(spec))


def estimate(
    specs: Sequence[RunSpec],
    n_jobs: int,
    *,
    budget: float = 15.0,
    tell: Callable[[str], None] = lambda line: None,
) -> Estimate | None:
    """How long runs take on this machine, at the most.

    One run of each kind is measured, in a process of its own, as many at once as will run at once, until the
    time for that is spent; other kinds are taken to be as fast as the mean of those measured.

    :param specs: The runs.
    :param n_jobs: How many run at once.
    :param budget: Seconds after which no further measurement is begun.
    :param tell: Is given the name of what is measured.
    :return: The estimate; None if nothing could be measured.
    """
    examples: dict[Kind, RunSpec] = {}
    for spec in specs:
        examples.setdefault(kind(spec), spec)
    waiting = list(examples.items())
    # Both families early on: A2C and PPO differ more than environments do
    waiting.sort(key=lambda item: [other for other in examples if other[1] == item[0][1]].index(item[0]))
    context = process_context()
    running: list[tuple[Kind, Connection, BaseProcess]] = []
    speeds: dict[Kind, Speed] = {}
    began = time.monotonic()
    while waiting or running:
        while waiting and len(running) < n_jobs and (time.monotonic() - began < budget):
            key, spec = waiting.pop(0)
            tell(f"{spec.env} {spec.algorithm.label}")
            receiver, sender = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(target=_measure_into, args=(sender, spec), daemon=True)
            process.start()
            sender.close()
            running.append((key, receiver, process))
        if not running:
            break
        key, receiver, process = running.pop(0)
        try:
            if receiver.poll(max(_PATIENCE - (time.monotonic() - began), 0)):
                speeds[key] = receiver.recv()
        except EOFError:
            pass  # it could not be measured
        process.kill()
        process.join()
        receiver.close()
    if not speeds:
        return None
    seconds = 0.0
    longest = 0.0
    for spec in specs:
        alike = [speed for other, speed in speeds.items() if other[1] == spec.algorithm.family]
        known = [speeds[kind(spec)]] if kind(spec) in speeds else alike or list(speeds.values())
        run_seconds = sum(speed.run_seconds(spec) for speed in known) / len(known)
        seconds += run_seconds
        longest = max(longest, run_seconds)
    return Estimate(max(seconds / n_jobs, longest), len(speeds), len(examples))
