"""How long a sweep will take here, from a short measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from srl.experiment.engines import Task
from srl.experiment.engines.local import process_context, start_process
from srl.experiment.spec import RunSpec

#: Steps of one rollout in the measurement, so that an update is measured too and soon.
_ROLLOUT_STEPS = 256
#: Steps of an evaluation episode where the environment sets no limit, or a far one.
_LONGEST_EPISODE = 1000
#: Members of a population that are measured together.
_MEASURED_MEMBERS = 8
#: Seconds after which one measurement is given up.
_PATIENCE = 60.0

Kind = tuple[str, str, bool, str, bool]


@dataclass(frozen=True)
class Speed:
    """How fast one kind of task goes."""

    #: Runs that were measured together.
    n_members: int
    #: Training steps per second of all of them, without evaluations.
    steps_per_second: float
    #: Seconds for one evaluation of all of them if its episodes are of full length.
    evaluation_seconds: float
    #: Seconds until the first training step.
    startup_seconds: float

    def task_seconds(self, task: Task) -> float:
        """Seconds that a task takes, at the most: a larger population makes a step no dearer."""
        spec, n_members = task.jobs[0].spec, len(task.jobs)
        n_evaluations = max(spec.n_timesteps // spec.eval_freq, 1)
        training_seconds = n_members * spec.n_timesteps / self.steps_per_second
        seconds_per_evaluation = self.evaluation_seconds * n_members / self.n_members
        return self.startup_seconds + training_seconds + n_evaluations * seconds_per_evaluation


@dataclass(frozen=True)
class Estimate:
    """How long a sweep will take."""

    seconds: float
    n_measured: int
    n_kinds: int


def kind(task: Task) -> Kind:
    """Tasks of one kind are equally fast for each run: a reverse loss costs next to nothing."""
    spec = task.jobs[0].spec
    return spec.env, spec.algorithm.family, spec.algorithm.discretised, spec.device, spec.stacked


def measure(task: Task) -> Speed:
    """Train one rollout and update, and play a part of an evaluation.

    :param task: A task of the kind to measure; of a population some members. Its folders are not touched.
    """
    began = time.perf_counter()
    spec = task.jobs[0].spec
    n_envs = spec.hyperparams.n_envs
    n_steps = min(spec.hyperparams.n_steps, max(_ROLLOUT_STEPS // n_envs, 1))
    hyperparams = spec.hyperparams.model_copy(update={"n_steps": n_steps})
    spec = spec.model_copy(update={"hyperparams": hyperparams})
    if not spec.stacked:
        return _measure_run(spec, began)
    from srl.population.train import measure_population

    n_members = min(len(task.jobs), _MEASURED_MEMBERS)
    measured = measure_population(spec, n_members, max(_ROLLOUT_STEPS // (n_steps * n_envs), 1))
    rounds = -(-spec.n_eval_episodes // spec.n_eval_envs)
    return Speed(
        n_members,
        measured.steps_per_second,
        measured.eval_step_seconds * _episode_steps(measured.max_episode_steps) * rounds,
        measured.startup_seconds,
    )


def _measure_run(spec: RunSpec, began: float) -> Speed:
    import numpy as np
    import torch as th

    from srl.envs import make_eval_env, make_train_env
    from srl.experiment.run import make_model

    th.set_num_threads(spec.threads)
    env = make_train_env(spec.env_spec())
    model = make_model(spec, env)
    model.learn(1)  # the first update is slow
    startup_seconds = time.perf_counter() - began
    began = time.perf_counter()
    model.learn(max(_ROLLOUT_STEPS, spec.hyperparams.n_steps * env.num_envs))
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
    rounds = -(-spec.n_eval_episodes // spec.n_eval_envs)
    env.close()
    eval_env.close()
    evaluation_seconds = step_seconds * _episode_steps(env_spec.max_episode_steps) * rounds
    return Speed(1, steps_per_second, evaluation_seconds, startup_seconds)


def _episode_steps(limit: int | None) -> int:
    return min(limit or _LONGEST_EPISODE, _LONGEST_EPISODE)


def _measure_into(connection: Connection, task: Task) -> None:
    with suppress(Exception):  # its runs will fail in the same way and say why
        connection.send(measure(task))


def estimate(
    tasks: Sequence[Task],
    n_jobs: int,
    *,
    budget: float = 15.0,
    tell: Callable[[str], None] = lambda line: None,
) -> Estimate | None:
    """How long tasks take on this machine, at the most.

    One task of each kind is measured, in a process of its own, as many at once as will run at once, until the
    time for that is spent; other kinds are taken to be as fast as the mean of those measured.

    :param tasks: What to run.
    :param n_jobs: How many run at once.
    :param budget: Seconds after which no further measurement is begun.
    :param tell: Is given the name of what is measured.
    :return: The estimate; None if nothing could be measured.
    """
    examples: dict[Kind, Task] = {}
    for task in tasks:
        examples.setdefault(kind(task), task)
    waiting = list(examples.items())
    # Both families early on: A2C and PPO differ more than environments do
    waiting.sort(key=lambda item: [other for other in examples if other[1] == item[0][1]].index(item[0]))
    context = process_context()
    running: list[tuple[Kind, Connection, BaseProcess]] = []
    speeds: dict[Kind, Speed] = {}
    began = time.monotonic()
    while waiting or running:
        while waiting and len(running) < n_jobs and (time.monotonic() - began < budget):
            key, task = waiting.pop(0)
            tell(task.name)
            receiver, sender = context.Pipe(duplex=False)
            process = start_process(
                partial(context.Process, target=_measure_into, args=(sender, task), daemon=True)
            )
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
    for task in tasks:
        alike = [speed for other, speed in speeds.items() if other[1] == kind(task)[1]]
        known = [speeds[kind(task)]] if kind(task) in speeds else alike or list(speeds.values())
        task_seconds = sum(speed.task_seconds(task) for speed in known) / len(known)
        seconds += task_seconds
        longest = max(longest, task_seconds)
    return Estimate(max(seconds / n_jobs, longest), len(speeds), len(examples))
