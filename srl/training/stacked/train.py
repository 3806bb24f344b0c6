"""Train runs that share environment, algorithm family and shapes as one population, into their directories.

Each member keeps what makes it a run of its own: seed, random generators, environments, statistics, reward
noise, minibatch order, optimizer state, schedules, logs and evaluations. What is arithmetic on networks is
done for all at once. The result of a member depends neither on its neighbors nor on whether it has any.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from srl import SA2C, SPPO
from srl.compiled import CompiledUpdate
from srl.config.population import member_order, population_key
from srl.config.spec import RunSpec
from srl.envs.finite import NonFiniteError
from srl.envs.make import eval_episode_limit, make_member_env, normalize_arguments
from srl.envs.replay import NotRestorable
from srl.envs.reward_noise import RewardNoiseProcess, parse_noise
from srl.envs.seeding import Stream, seed_globals, seed_sequence, seed_torch, stream_rng
from srl.envs.state import env_state, restore_env
from srl.errors import UserError
from srl.rundir.checkpoints import checkpoint_steps
from srl.rundir.directory import RunDirectory
from srl.rundir.names import MONITOR
from srl.rundir.progress import beat_interval
from srl.rundir.status import Status
from srl.training.callbacks import (
    Episodes,
    EvaluationLog,
    check_losses,
    eval_interval,
    evaluation_progress,
)
from srl.training.checkpoint import CheckpointTimer, write_checkpoint, write_final_state
from srl.training.logs import log_state, make_logger, restore_logger
from srl.training.memory import keep_freed_memory
from srl.training.resume import generator_state, model_state, restore_model
from srl.training.run import (
    CHECKPOINT_EVERY,
    LOG_INTERVAL,
    Attempt,
    RunFailed,
    checkpoint_origin,
    compile_update,
    in_one_line,
    make_model,
    save,
)
from srl.training.stacked.environments import MemberEnvs, StackedNormalize
from srl.training.stacked.networks import StackedPolicy
from srl.training.stacked.update import CompiledUpdater, Updater, generalized_advantages
from srl.updates import UpdateResult


def train_population(
    specs: Sequence[RunSpec],
    paths: Sequence[Path],
    *,
    command: str = "",
    tell: Callable[[Sequence[Status]], None] | None = None,
    checkpoint_every: float = CHECKPOINT_EVERY,
) -> list[Status]:
    """Train runs together, each into its directory, from where they were interrupted, or from the start.

    :param specs: The runs; all of one :func:`~srl.config.population.population_key`.
    :param paths: Their folders, new or of unfinished runs of the same specs.
    :param command: The command that asked for them, for the record.
    :param tell: Is given the status of the runs about once a second.
    :param checkpoint_every: Seconds between two checkpoints; with 0 there is one after each update.
    :return: How each run ended, in the order of ``specs``. A member that fails does not stop the others; its
        status and its folder say why.
    :raises UserError: If the runs cannot train together, or a folder does not fit its run.
    """
    keys = {population_key(spec) for spec in specs}
    if len(keys) != 1 or None in keys or len(specs) != len(paths):
        raise UserError(
            "These runs cannot train as one population: they differ in what its members share, such as the "
            "environment or shapes."
        )
    if len(set(paths)) < len(paths):
        raise UserError("Each run needs a folder of its own, and one of these is named twice.")
    specs = [spec.model_copy(update={"stacked": True}) for spec in specs]
    for spec, path in zip(specs, paths, strict=True):
        RunDirectory(path).compare(spec)
    attempts = [Attempt(spec, path, command=command) for spec, path in zip(specs, paths, strict=True)]
    with ExitStack() as stack:
        for attempt in attempts:
            try:
                stack.enter_context(attempt)
            except (UserError, OSError) as error:
                # Another process has taken this run since, or the disk is full; the others continue
                print(f"{attempt.path}: {error}", file=sys.stderr)
                attempt.status = Status("failed", reason=str(error))
        members = [attempt for attempt in attempts if attempt.running]
        members.sort(key=lambda attempt: member_order(attempt.spec))

        def beat() -> None:
            if tell is not None:
                tell([attempt.status for attempt in attempts])

        try:
            for together, states in _by_progress(members):
                _train_together(together, states, beat, checkpoint_every)
        except Exception as error:
            for attempt in members:
                if attempt.running:
                    attempt.fail(error)
    return [attempt.status for attempt in attempts]


def _by_progress(attempts: Sequence[Attempt]) -> list[tuple[list[Attempt], list[dict[str, Any]]]]:
    """Runs that can resume together, with the states that they resume from; none for those that restart.

    The runs of a population have checkpoints of the same steps, unless it was interrupted while it wrote
    them, or one is damaged.
    """
    groups: list[tuple[list[Attempt], list[dict[str, Any]]]] = []
    steps = {attempt.path: checkpoint_steps(attempt.path) for attempt in attempts}
    waiting = list(attempts)
    while waiting:
        counts = Counter(step for attempt in waiting for step in steps[attempt.path])
        if not counts:
            for attempt in waiting:
                attempt.begin_anew()
            return [*groups, (waiting, [])]
        best = max(counts, key=lambda step: (counts[step], step))
        together, states = [], []
        for attempt in [attempt for attempt in waiting if best in steps[attempt.path]]:
            try:
                states.append(attempt.go_on(best))
                together.append(attempt)
            except UserError as error:
                attempt.note(f"cannot resume from step {best:,}: {error}")
                steps[attempt.path].remove(best)
        if together:
            groups.append((together, states))
            waiting = [attempt for attempt in waiting if attempt not in together]
    return groups


def _train_together(
    attempts: Sequence[Attempt],
    states: Sequence[dict[str, Any]],
    beat: Callable[[], None],
    checkpoint_every: float,
) -> None:
    try:
        with Population(attempts, states) as population:
            population.train(beat, checkpoint_every)
    except NotRestorable as error:
        if not states:
            raise
        for attempt in attempts:
            attempt.note(f"restarted from scratch: {error}")
            attempt.begin_anew()
        _train_together(attempts, [], beat, checkpoint_every)


@dataclass
class Member:
    """What a run has to itself."""

    attempt: Attempt
    model: SA2C | SPPO
    #: Draws its actions.
    generator: th.Generator
    #: Draws its minibatch orders.
    permutations: np.random.RandomState
    evaluations: EvaluationLog
    noise: tuple[RewardNoiseProcess, np.random.Generator] | None

    @property
    def spec(self) -> RunSpec:
        """The run."""
        return self.attempt.spec


class Population:
    """Runs in training. A context, at whose end environments and logs are closed.

    :param attempts: The runs, begun.
    :param states: Where they resume from, all after the same number of steps; empty for the start.
    :raises NotRestorable: If they cannot be brought to where they were.
    """

    def __init__(self, attempts: Sequence[Attempt], states: Sequence[dict[str, Any]] = ()):
        self._spec = spec = attempts[0].spec
        th.set_num_threads(spec.threads)
        keep_freed_memory()
        self._resources = ExitStack()
        self._compiled: list[CompiledUpdate] = []
        with ExitStack() as on_error:
            on_error.push(self._resources)
            env_specs = [attempt.spec.env_spec() for attempt in attempts]
            venvs = []
            for env_spec, attempt in zip(env_specs, attempts, strict=True):
                seed_globals(seed_sequence(env_spec.seed, Stream.SETUP))
                venvs.append(
                    make_member_env(env_spec, monitor_dir=str(attempt.path / MONITOR), append=bool(states))
                )
            self._envs = MemberEnvs(venvs)
            self._resources.callback(self._envs.close)
            progress = [state["logs"]["progress"] for state in states] or [""] * len(venvs)
            self._members = [self._member(*each) for each in zip(attempts, venvs, progress, strict=True)]
            eval_venvs = []
            for env_spec in env_specs:
                seed_globals(seed_sequence(env_spec.seed, Stream.SETUP, 1))
                eval_venvs.append(make_member_env(env_spec, n_eval_envs=spec.n_eval_envs))
            self._eval_envs = MemberEnvs(eval_venvs)
            self._resources.callback(self._eval_envs.close)
            self._models = [member.model for member in self._members]
            for model, state in zip(self._models, states, strict=False):
                restore_model(model, state["model"])
            self._device = self._models[0].device
            self._normalize: StackedNormalize | None = None
            if spec.hyperparams.normalize is not None:
                self._normalize = StackedNormalize(
                    [
                        VecNormalize(venv, **normalize_arguments(env_spec, training=True))
                        for venv, env_spec in zip(venvs, env_specs, strict=True)
                    ]
                )
            self._policy = StackedPolicy([model.policy for model in self._models])  # type: ignore[misc]
            self._actor = self._policy.numpy_actor()
            permutations = [member.permutations for member in self._members]
            self._updater: Updater | CompiledUpdater
            if len(self._compiled) == len(self._models):
                self._updater = CompiledUpdater(self._models, self._compiled, permutations)
            else:
                rates = [member.spec.hyperparams.learning_rate for member in self._members]
                self._updater = Updater(self._models, self._policy, permutations, rates)
            self._gamma = np.array([model.gamma for model in self._models])
            self._gae_lambda = np.array([model.gae_lambda for model in self._models])
            self._active = list(range(len(self._members)))
            self._beat_interval = beat_interval(len(self._members))
            self._tell: Callable[[], None] = lambda: None
            self._next_beat = 0.0
            self._timesteps = 0
            self._n_steps_taken = 0
            self._observations = np.empty(0)
            self._dones = np.ones((len(self._members), self._envs.n_envs), dtype=bool)
            self._iteration = 0
            self._unlogged: tuple[list[UpdateResult], RolloutBufferSamples] | None = None
            self._goes_on = bool(states)
            if states:
                self._restore(states)
            on_error.pop_all()

    def _restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Bring everything but the models to where it was."""
        self._observations = self._normalized_at_reset(self._envs.reset(self._active))
        evaluated = states[0]["eval_env"] is not None
        if evaluated:
            self._eval_envs.reset(self._active)
        for index, (member, state) in enumerate(zip(self._members, states, strict=True)):
            restore_env(self._envs.venvs[index], state["env"])
            if evaluated:
                restore_env(self._eval_envs.venvs[index], state["eval_env"])
            if self._normalize is not None:
                self._normalize.restore(index, state["env"]["normalize"])
            if member.noise is not None:
                member.noise[1].bit_generator.state = state["env"]["noise"]
            kind = "cuda" if self._device.type == "cuda" else "torch"
            member.generator.set_state(state["generators"][kind])
            member.permutations.set_state(state["generators"]["numpy"])
            member.evaluations.restore(state["evaluations"])
            restore_logger(member.model.logger, state["logs"])
            self._observations[index] = state["model"]["last_obs"]
            self._dones[index] = state["model"]["last_episode_starts"]
        self._updater.take_over()
        self._iteration = states[0]["iteration"]
        self._timesteps = self._models[0].num_timesteps
        self._n_steps_taken = self._timesteps // self._envs.n_envs

    def _keep(self, *, final: bool = False) -> None:
        """Write a checkpoint, or the final state, of each member: that which the run alone would have."""
        self._log_update()
        self._updater.export()
        evaluated = bool(self._members[self._active[0]].evaluations.timesteps)

        kind = "cuda" if self._device.type == "cuda" else "torch"
        states = {}
        for index in self._active:
            member, model = self._members[index], self._models[index]
            model._last_obs, model._last_episode_starts = self._observations[index], self._dones[index]
            env = env_state(self._envs.venvs[index])
            if self._normalize is not None:
                env["normalize"] = self._normalize.state(index)
            if member.noise is not None:
                env["noise"] = member.noise[1].bit_generator.state
            generators = generator_state(model.device)
            generators[kind] = member.generator.get_state()
            generators["numpy"] = member.permutations.get_state(legacy=False)
            states[index] = {
                "origin": checkpoint_origin(member.spec),
                "iteration": self._iteration,
                "model": model_state(model),
                "generators": generators,
                "env": env,
                "eval_env": env_state(self._eval_envs.venvs[index]) if evaluated else None,
                "evaluations": member.evaluations.state(),
            }

        def write(index: int) -> None:
            member = self._members[index]
            logs = log_state(member.attempt.path, member.model.logger)
            write_state = write_final_state if final else write_checkpoint
            write_state(member.attempt.path, self._timesteps, states[index] | {"logs": logs})

        self._each_active(write)

    def _member(self, attempt: Attempt, venv: VecEnv, progress: str) -> Member:
        spec = attempt.spec
        model = make_model(spec, venv)
        # Alone, the run would use PyTorch's and NumPy's global generators from here on
        generator = th.Generator(model.device)
        permutations = np.random.RandomState()
        seed_torch(generator, seed_sequence(spec.seed, Stream.ACTIONS))
        permutations.set_state(np.random.get_state())  # noqa: NPY002
        model.set_logger(make_logger(attempt.path, progress))
        self._resources.callback(model.logger.close)
        compiled = compile_update(attempt, model, self._compiled)
        if compiled is not None:
            self._compiled.append(compiled)
        model.rollout_buffer = None  # type: ignore[assignment]
        model.ep_info_buffer = deque(maxlen=model._stats_window_size)
        model.ep_success_buffer = deque(maxlen=model._stats_window_size)
        model._total_timesteps = spec.n_timesteps
        model.start_time = time.time_ns()
        noise = parse_noise(spec.noise)
        return Member(
            attempt,
            model,
            generator,
            permutations,
            EvaluationLog(spec, attempt.path, attempt.note),
            None if noise is None else (noise, stream_rng(spec.seed, Stream.REWARD_NOISE)),
        )

    def __enter__(self) -> Population:
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def train(self, beat: Callable[[], None], checkpoint_every: float = CHECKPOINT_EVERY) -> None:
        """Train all members to their ends."""
        self._tell, self._next_beat = beat, 0.0
        if not self._goes_on:
            observations = self._envs.reset(self._active)
            self._drop_failed(self._envs, self._at_step)
            self._observations = self._normalized_at_reset(observations)
        log_interval = LOG_INTERVAL[self._spec.algorithm.family]
        checkpoints = CheckpointTimer(checkpoint_every, self._note)
        while self._timesteps < self._spec.n_timesteps and self._active:
            rollout = self._collect()
            self._iteration += 1
            if self._iteration % log_interval == 0:
                self._log_update()
            for index in self._active:
                model = self._models[index]
                model._update_current_progress_remaining(self._timesteps, self._spec.n_timesteps)
                if self._iteration % log_interval == 0:
                    model.dump_logs(self._iteration)
                model._update_learning_rate(model.policy.optimizer)
            self._update(rollout)
            if self._active and checkpoints.is_due:
                checkpoints.keep(self._keep)
        if self._active:
            # Before the evaluation at the end, which a longer run would not make
            with suppress(NotRestorable):
                self._keep(final=True)
        if self._active and self._members[self._active[0]].evaluations.due_at_end(self._spec.n_timesteps):
            self._evaluate()
        self._save()

    def measure(self, n_rollouts: int) -> float:
        """Training steps per second of all members, without evaluations; for benchmarks, nothing is saved.

        :param n_rollouts: Rollouts and updates to measure, after one that is not.
        """
        self._observations = self._normalized_at_reset(self._envs.reset(self._active))
        self._update(self._collect())  # the first is slow
        began = time.perf_counter()
        for _ in range(n_rollouts):
            self._update(self._collect())
        n_steps = n_rollouts * self._spec.hyperparams.n_steps * self._envs.n_envs * len(self._members)
        return n_steps / (time.perf_counter() - began)

    def _normalized_at_reset(self, observations: np.ndarray) -> np.ndarray:
        return observations if self._normalize is None else self._normalize.reset(observations)

    def _tensor(self, array: np.ndarray) -> th.Tensor:
        tensor = th.as_tensor(array)
        # Normalization returns a new array at each step, environments reuse theirs; a copy keeps the memory
        # layout of the array
        return tensor.to(self._device, copy=self._normalize is None)

    def _collect(self) -> RolloutBufferSamples:
        n_steps, n_envs = self._spec.hyperparams.n_steps, self._envs.n_envs
        draws = th.stack(
            [self._policy.draws(member.generator, n_steps, n_envs) for member in self._members], dim=1
        )
        rewards = np.zeros((n_steps, len(self._members), n_envs), dtype=np.float32)
        episode_starts = np.zeros_like(rewards)
        steps = []
        for step in range(n_steps):
            steps.append(self._act(draws[step]))
            episode_starts[step] = self._dones
            rewards[step] = self._step(steps[-1][1])
        observations, actions, values, outputs = (_stacked(column) for column in zip(*steps, strict=True))
        advantages, returns = generalized_advantages(
            rewards, values.cpu().numpy(), episode_starts, self._last_values(), self._dones,
            self._gamma, self._gae_lambda,
        )  # fmt: skip

        def in_order(tensor: th.Tensor) -> th.Tensor:
            """From ``(n_steps, S, n_envs, ...)`` to ``(S, N, ...)``, one environment after the other."""
            return tensor.movedim(0, 2).flatten(1, 2).contiguous()

        all_actions = in_order(actions).float()
        all_actions = all_actions.reshape(*all_actions.shape[:2], -1)
        # As in SB3's buffer; policies take observations of float64 as float32
        shape = get_obs_shape(self._models[0].observation_space)
        observations = in_order(observations).reshape(*all_actions.shape[:2], *shape)
        return RolloutBufferSamples(
            observations=observations.float() if observations.dtype == th.float64 else observations,
            actions=all_actions,
            old_values=in_order(values),
            old_log_prob=in_order(outputs)
            if self._actor is not None
            else self._policy.log_probs(in_order(outputs), all_actions),
            advantages=in_order(self._tensor(advantages)),
            returns=in_order(self._tensor(returns)),
        )

    def _act(self, draws: th.Tensor) -> tuple[Any, Any, Any, Any]:
        """Sample actions; returns observations, actions, values, and log probabilities.

        In PyTorch, the last are what :meth:`StackedPolicy.log_probs` computes them from, for all steps at
        once.
        """
        if self._actor is None:
            observations = self._tensor(self._observations)
            return observations, *self._policy.act(observations, draws)
        kept = self._observations if self._normalize is not None else self._observations.copy()
        return kept, *self._actor.act(kept, draws.numpy())

    def _last_values(self) -> np.ndarray:
        """Values of the current observations, shape ``(S, n_envs)``."""
        if self._actor is not None:
            return self._actor.values(self._observations)
        with th.no_grad():
            return self._policy.values(self._tensor(self._observations)).cpu().numpy()

    def _step(self, action: np.ndarray | th.Tensor) -> np.ndarray:
        """Step the environments; returns the rewards that the members learn from, shape ``(S, n_envs)``."""
        new_observations, rewards, self._dones = self._envs.step(self._for_env(action), self._active)
        self._drop_failed(self._envs, self._at_step)
        infos = self._envs.infos
        if self._normalize is None:
            self._observations = new_observations
        else:
            self._observations, rewards = self._normalize.step(new_observations, rewards, self._dones, infos)
        for index in self._active:
            noise = self._members[index].noise
            if noise is not None:
                rewards[index] = noise[0].apply(rewards[index], noise[1])
        self._timesteps += self._envs.n_envs
        self._n_steps_taken += 1
        for index in self._active:
            self._models[index].num_timesteps = self._timesteps
        self._tell_alive()
        if self._n_steps_taken % eval_interval(self._spec) == 0:
            self._evaluate()
        if self._dones.any():
            for index in self._active:
                if self._dones[index].any():
                    self._end_episodes(index, rewards)
        return rewards

    def _note(self, text: str) -> None:
        """Record something about the whole population in the status of each member."""
        for index in self._active:
            self._members[index].attempt.note(text)

    def _tell_alive(self, evaluation: Callable[[], str] = str) -> None:
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + self._beat_interval
        self._tell()
        words = evaluation()
        self._each_active(lambda index: self._members[index].attempt.beat(self._timesteps, words))

    def _end_episodes(self, index: int, rewards: np.ndarray) -> None:
        """Note what episodes gave, and bootstrap those that a time limit ended, as SB3 does."""
        model, infos, dones = self._models[index], self._envs.infos[index], self._dones[index]
        model._update_info_buffer(infos, dones)
        for env in np.flatnonzero(dones):
            last = infos[env].get("terminal_observation")
            if last is not None and infos[env].get("TimeLimit.truncated", False):
                with th.no_grad():
                    value = model.policy.predict_values(model.policy.obs_to_tensor(last)[0])[0]
                rewards[index, env] += model.gamma * value

    def _for_env(self, actions: np.ndarray | th.Tensor) -> np.ndarray:
        space = self._models[0].action_space
        array = actions.cpu().numpy() if isinstance(actions, th.Tensor) else actions
        return np.clip(array, space.low, space.high) if isinstance(space, spaces.Box) else array

    def _update(self, rollout: RolloutBufferSamples) -> None:
        results = self._updater.update(rollout)
        self._unlogged = (results, rollout)
        if not all(result.statistics.is_finite for result in results):
            self._log_update()  # which sees whose losses are not

    def _log_update(self) -> None:
        """Log the latest update; before a line of the log is written is soon enough."""
        if self._unlogged is None:
            return
        (results, rollout), self._unlogged = self._unlogged, None
        values, returns = rollout.old_values.cpu().numpy(), rollout.returns.cpu().numpy()

        def record(index: int) -> None:
            model = self._models[index]
            model._record_update(results[index], float(explained_variance(values[index], returns[index])))
            check_losses(model.logger)

        self._each_active(record, self._at_step)

    def _evaluate(self) -> None:
        """Play the evaluation's episodes of all members side by side, each in its own environments."""
        self._log_update()
        spec, envs = self._spec, self._eval_envs
        timesteps = self._timesteps

        def where(_: Exception) -> str:
            return f" (in the evaluation at step {timesteps:,})"

        generators = [th.Generator(self._device) for _ in self._members]
        for generator, member in zip(generators, self._members, strict=True):
            seed_torch(generator, member.evaluations.seed_sequence(member.spec))
        # As SB3's evaluate_policy spreads episodes over environments
        targets = np.array([(spec.n_eval_episodes + i) // envs.n_envs for i in range(envs.n_envs)])
        counts = np.zeros((len(self._members), envs.n_envs), dtype=int)
        episodes = [Episodes() for _ in self._members]
        max_length = eval_episode_limit(spec.env_spec())
        n_steps = 0
        observations = envs.reset(self._active)
        self._drop_failed(envs, where)
        playing = list(self._active)
        while playing:
            draws = None
            if not spec.eval_deterministic:
                draws = th.stack(
                    [self._policy.draws(generator, 1, envs.n_envs)[0] for generator in generators]
                )
            observations, dones = self._evaluation_step(observations, playing, draws)
            self._drop_failed(envs, where)
            n_steps += int((counts[playing] < targets).sum())
            self._tell_alive(partial(evaluation_progress, episodes, spec, n_steps))
            for index, env in np.argwhere(dones):
                info = envs.infos[index][env]
                if counts[index, env] >= targets[env]:
                    continue
                counts[index, env] += episodes[index].add(info, max_length)
            playing = [
                index for index in playing if index in self._active and (counts[index] < targets).any()
            ]
        self._each_active(
            lambda index: self._members[index].evaluations.add(
                self._timesteps, episodes[index], self._models[index].logger
            )
        )
        self._save_best()

    def _evaluation_step(
        self, observations: np.ndarray, playing: Sequence[int], draws: th.Tensor | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._normalize is not None:
            observations = self._normalize.observations(observations)
        actions = self._policy.predict(self._tensor(observations), draws)
        observations, _, dones = self._eval_envs.step(self._for_env(actions), playing)
        return observations, dones

    def _save_best(self) -> None:
        """Write the models of the members whose latest evaluation is their best."""
        best = [index for index in self._active if self._members[index].evaluations.is_best]
        if not best:
            return
        self._updater.export()
        wrappers = self._wrappers()

        def write(index: int) -> None:
            if index in best:
                with self._policy.released(index):
                    path = self._members[index].attempt.path
                    save(path, self._models[index], wrappers[index], best=True)

        self._each_active(write)

    def _wrappers(self) -> Sequence[VecNormalize | None]:
        """The members' VecNormalize with their statistics."""
        return [None] * len(self._members) if self._normalize is None else self._normalize.export()

    def _save(self) -> None:
        self._updater.export()
        self._policy.release()
        wrappers = self._wrappers()

        def finish(index: int) -> None:
            member, model = self._members[index], self._models[index]
            model._last_obs = self._observations[index]
            model._last_episode_starts = self._dones[index]
            save(member.attempt.path, model, wrappers[index])
            model.logger.close()
            member.attempt.finish(self._timesteps)

        self._each_active(finish)

    def _at_step(self, error: Exception) -> str:
        # A number that is not finite is found in a step that is not counted yet
        in_step = isinstance(error, NonFiniteError) and "at reset" not in str(error)
        return f" (at step {self._timesteps + in_step * self._envs.n_envs:,})"

    def _drop_failed(self, envs: MemberEnvs, where: Callable[[Exception], str]) -> None:
        for index in [index for index in self._active if index in envs.failures]:
            self._fail(index, envs.failures[index], where)

    def _each_active(
        self, action: Callable[[int], None], where: Callable[[Exception], str] = lambda _: ""
    ) -> None:
        """Do something for each member; one that it fails for drops out."""
        for index in list(self._active):
            try:
                action(index)
            except Exception as error:
                self._fail(index, error, where)

    def _fail(self, index: int, error: Exception, where: Callable[[Exception], str]) -> None:
        self._active.remove(index)
        failure = RunFailed(f"{in_one_line(error)}{where(error)}")
        failure.__cause__ = error
        self._members[index].attempt.fail(failure)


def _stacked(steps: Sequence[Any]) -> th.Tensor:
    """What was kept at each step, as one tensor."""
    if isinstance(steps[0], th.Tensor):
        return th.stack(list(steps))
    return th.from_numpy(np.stack(steps))


def execute_population(
    specs: Sequence[RunSpec],
    paths: Sequence[Path],
    command: str,
    *,
    checkpoint_every: float = CHECKPOINT_EVERY,
) -> int:
    """Train a population in this process for an engine; the arguments are :func:`train_population`'s.

    :return: The process' exit status: 0 if all are done, 1 if one failed.
    """
    try:
        statuses = train_population(specs, paths, command=command, checkpoint_every=checkpoint_every)
    except (UserError, OSError) as error:
        print(f"{paths[0]} and {len(paths) - 1} more: {error}", file=sys.stderr)
        return 1
    return 0 if all(status.state == "done" for status in statuses) else 1
