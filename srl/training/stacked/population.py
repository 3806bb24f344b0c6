"""A population in training: rollouts and updates of all members, checkpoints, and the saved models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecNormalize

from srl.compiled import CompiledUpdate
from srl.envs.finite import NonFiniteError
from srl.envs.make import make_member_env, normalize_arguments
from srl.envs.registration import import_packages
from srl.envs.replay import NotRestorable
from srl.envs.seeding import Stream, seed_globals, seed_sequence
from srl.envs.state import env_state, normalize_state, restore_env
from srl.rundir.names import MONITOR
from srl.training.attempt import Attempt
from srl.training.callbacks import eval_interval
from srl.training.checkpoint import CheckpointTimer, write_checkpoint, write_final_state
from srl.training.logs import log_state, restore_logger
from srl.training.memory import keep_freed_memory
from srl.training.model import save
from srl.training.resume import generator_state, model_state, restore_model
from srl.training.run import CHECKPOINT_EVERY, LOG_INTERVAL
from srl.training.stacked.environments import MemberEnvs, StackedNormalize
from srl.training.stacked.evaluation import StackedEvaluation
from srl.training.stacked.members import Member, Members, make_member
from srl.training.stacked.networks import StackedPolicy
from srl.training.stacked.update import CompiledUpdater, Updater, generalized_advantages
from srl.training.versions import checkpoint_origin
from srl.updates import UpdateResult, check_losses


class Population:
    """A population in training. A context: environments and logs are closed at its end.

    :param attempts: The attempts at the runs, entered.
    :param states: The checkpoints to resume from, all of the same step; empty to start from scratch.
    :raises NotRestorable: If the environments cannot be restored.
    """

    def __init__(self, attempts: Sequence[Attempt], states: Sequence[dict[str, Any]] = ()):
        self._spec = spec = attempts[0].spec
        th.set_num_threads(spec.threads)
        keep_freed_memory()
        self._resources = ExitStack()
        with ExitStack() as on_error:
            on_error.push(self._resources)
            for attempt in attempts:
                import_packages(attempt.spec.gym_packages)  # they may also register reward noise
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
            members: list[Member] = []
            compiled: list[CompiledUpdate] = []
            for each in zip(attempts, venvs, progress, strict=True):
                member = make_member(*each, compiled)
                self._resources.callback(member.model.logger.close)
                members.append(member)
                compiled += [] if member.compiled is None else [member.compiled]
            self._members = Members(members)
            eval_venvs = []
            for env_spec in env_specs:
                seed_globals(seed_sequence(env_spec.seed, Stream.SETUP, 1))
                eval_venvs.append(make_member_env(env_spec, n_eval_envs=spec.n_eval_envs))
            eval_envs = MemberEnvs(eval_venvs)
            self._resources.callback(eval_envs.close)
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
            self._evaluation = StackedEvaluation(self._members, eval_envs, self._policy, self._normalize)
            self._actor = self._policy.numpy_actor()
            permutations = [member.permutations for member in self._members]
            self._updater: Updater | CompiledUpdater
            if len(compiled) == len(self._models):
                self._updater = CompiledUpdater(self._models, compiled, permutations)
            else:
                rates = [member.spec.hyperparams.learning_rate for member in self._members]
                self._updater = Updater(self._models, self._policy, permutations, rates)
            self._gamma = np.array([model.gamma for model in self._models])
            self._gae_lambda = np.array([model.gae_lambda for model in self._models])
            self._timesteps = 0
            self._n_steps_taken = 0
            self._observations = np.empty(0)
            self._dones = np.ones((len(self._members), self._envs.n_envs), dtype=bool)
            self._iteration = 0
            self._unlogged: tuple[list[UpdateResult], RolloutBufferSamples] | None = None
            self._is_resumed = bool(states)
            if states:
                self._restore(states)
            on_error.pop_all()

    def _restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Restore everything but the models."""
        self._observations = self._normalized_at_reset(self._envs.reset(self._members.active))
        evaluated = states[0]["eval_env"] is not None
        if evaluated:
            self._evaluation.envs.reset(self._members.active)
        for index, (member, state) in enumerate(zip(self._members, states, strict=True)):
            restore_env(self._envs.venvs[index], state["env"])
            if evaluated:
                restore_env(self._evaluation.envs.venvs[index], state["eval_env"])
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

    def _write_checkpoint(self, *, final: bool = False) -> None:
        """Write a checkpoint, or the final state, of each member, identical to that of its run alone."""
        self._log_update()
        self._updater.export()
        evaluated = bool(self._members[self._members.active[0]].evaluations.timesteps)

        kind = "cuda" if self._device.type == "cuda" else "torch"
        wrappers = [] if self._normalize is None else self._normalize.export()
        states = {}
        for index in self._members.active:
            member, model = self._members[index], self._models[index]
            model._last_obs, model._last_episode_starts = self._observations[index], self._dones[index]
            env = env_state(self._envs.venvs[index])
            if wrappers:
                env["normalize"] = normalize_state(wrappers[index])
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
                "eval_env": env_state(self._evaluation.envs.venvs[index]) if evaluated else None,
                "evaluations": member.evaluations.state(),
            }

        def write(index: int) -> None:
            member = self._members[index]
            logs = log_state(member.attempt.path, member.model.logger)
            write_state = write_final_state if final else write_checkpoint
            write_state(member.attempt.path, self._timesteps, states[index] | {"logs": logs})

        self._members.each_active(write)

    def __enter__(self) -> Population:
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def train(self, beat: Callable[[], None], checkpoint_every: float = CHECKPOINT_EVERY) -> None:
        """Train all members to their last steps."""
        self._members.on_beat = beat
        if not self._is_resumed:
            observations = self._envs.reset(self._members.active)
            self._members.drop_failed(self._envs, self._at_step)
            self._observations = self._normalized_at_reset(observations)
        log_interval = LOG_INTERVAL[self._spec.algorithm.family]
        checkpoints = CheckpointTimer(checkpoint_every, self._members.note)
        while self._timesteps < self._spec.n_timesteps and self._members.active:
            rollout = self._collect()
            self._iteration += 1
            if self._iteration % log_interval == 0:
                self._log_update()
            for index in self._members.active:
                model = self._models[index]
                model._update_current_progress_remaining(self._timesteps, self._spec.n_timesteps)
                if self._iteration % log_interval == 0:
                    model.dump_logs(self._iteration)
                model._update_learning_rate(model.policy.optimizer)
            self._update(rollout)
            if self._members.active and checkpoints.is_due:
                checkpoints.keep(self._write_checkpoint)
        if self._members.active:
            # Before the final evaluation, which a longer run would not have at this step
            with suppress(NotRestorable):
                self._write_checkpoint(final=True)
        active = [self._members[index] for index in self._members.active]
        if any(member.evaluations.due_at_end(self._spec.n_timesteps) for member in active):
            self._evaluate()
        self._save()

    def measure(self, n_rollouts: int) -> float:
        """Measure training steps per second of all members, without evaluations; nothing is saved.

        :param n_rollouts: Number of rollouts and updates to measure, after one for warm-up.
        """
        self._observations = self._normalized_at_reset(self._envs.reset(self._members.active))
        self._update(self._collect())  # warm-up
        began = time.perf_counter()
        for _ in range(n_rollouts):
            self._update(self._collect())
        n_steps = n_rollouts * self._spec.hyperparams.n_steps * self._envs.n_envs * len(self._members)
        return n_steps / (time.perf_counter() - began)

    def _normalized_at_reset(self, observations: np.ndarray) -> np.ndarray:
        return observations if self._normalize is None else self._normalize.reset(observations)

    def _tensor(self, array: np.ndarray) -> th.Tensor:
        tensor = th.as_tensor(array)
        # Normalization returns a new array at each step, environments reuse theirs; the copy keeps the memory
        # layout
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

        In PyTorch, the last are the inputs of :meth:`StackedPolicy.log_probs`, which computes them for all
        steps at once.
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
        clipped = self._envs.clipped(action)
        new_observations, rewards, self._dones = self._envs.step(clipped, self._members.active)
        self._members.drop_failed(self._envs, self._at_step)
        infos = self._envs.infos
        if self._normalize is None:
            self._observations = new_observations
        else:
            self._observations, rewards = self._normalize.step(new_observations, rewards, self._dones, infos)
        for index in self._members.active:
            noise = self._members[index].noise
            if noise is not None:
                rewards[index] = noise[0].apply(rewards[index], noise[1])
        self._timesteps += self._envs.n_envs
        self._n_steps_taken += 1
        for index in self._members.active:
            self._models[index].num_timesteps = self._timesteps
        self._members.beat(self._timesteps)
        if self._n_steps_taken % eval_interval(self._spec) == 0:
            self._evaluate()
        if self._dones.any():
            for index in self._members.active:
                if self._dones[index].any():
                    self._end_episodes(index, rewards)
        return rewards

    def _end_episodes(self, index: int, rewards: np.ndarray) -> None:
        """Record ended episodes, and bootstrap those that a time limit ended, as SB3 does."""
        model, infos, dones = self._models[index], self._envs.infos[index], self._dones[index]
        model._update_info_buffer(infos, dones)
        for env in np.flatnonzero(dones):
            last = infos[env].get("terminal_observation")
            if last is not None and infos[env].get("TimeLimit.truncated", False):
                with th.no_grad():
                    value = model.policy.predict_values(model.policy.obs_to_tensor(last)[0])[0]
                rewards[index, env] += model.gamma * value

    def _update(self, rollout: RolloutBufferSamples) -> None:
        results = self._updater.update(rollout)
        self._unlogged = (results, rollout)
        if not all(result.statistics.is_finite for result in results):
            self._log_update()  # which fails the members with non-finite losses

    def _log_update(self) -> None:
        """Log the latest update, which can wait until a line of the log is written."""
        if self._unlogged is None:
            return
        (results, rollout), self._unlogged = self._unlogged, None
        values, returns = rollout.old_values.cpu().numpy(), rollout.returns.cpu().numpy()

        def record(index: int) -> None:
            model = self._models[index]
            model._record_update(results[index], float(explained_variance(values[index], returns[index])))
            check_losses(model.logger)

        self._members.each_active(record, self._at_step)

    def _evaluate(self) -> None:
        self._log_update()
        self._evaluation.run(self._timesteps)
        self._save_best()

    def _save_best(self) -> None:
        """Write the models of the members whose latest evaluation is their best."""
        best = [index for index in self._members.active if self._members[index].evaluations.is_best]
        if not best:
            return
        self._updater.export()
        wrappers = self._wrappers()

        def write(index: int) -> None:
            if index in best:
                with self._policy.released(index):
                    path = self._members[index].attempt.path
                    save(path, self._models[index], wrappers[index], best=True)

        self._members.each_active(write)

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

        self._members.each_active(finish)

    def _at_step(self, error: Exception) -> str:
        # Non-finite numbers are found before the step is counted
        in_step = isinstance(error, NonFiniteError) and "at reset" not in str(error)
        return f" (at step {self._timesteps + in_step * self._envs.n_envs:,})"


def _stacked(steps: Sequence[Any]) -> th.Tensor:
    if isinstance(steps[0], th.Tensor):
        return th.stack(list(steps))
    return th.from_numpy(np.stack(steps))
