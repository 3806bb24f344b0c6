"""Evaluations of a population: the episodes of all members side by side, each in its own environments."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch as th

from srl.envs.make import eval_episode_limit
from srl.envs.seeding import seed_torch
from srl.training.callbacks import Episodes, evaluation_progress
from srl.training.stacked.environments import MemberEnvs, StackedNormalize
from srl.training.stacked.members import Members
from srl.training.stacked.networks import StackedPolicy


class StackedEvaluation:
    """Evaluates the active members of a population.

    :param members: The members.
    :param envs: Their evaluation environments.
    :param policy: Their stacked network.
    :param normalize: Their observation statistics; None if nothing is normalized.
    """

    def __init__(
        self, members: Members, envs: MemberEnvs, policy: StackedPolicy, normalize: StackedNormalize | None
    ):
        self._members, self._policy, self._normalize = members, policy, normalize
        self.envs = envs
        self._device = members[0].model.device

    def run(self, timesteps: int) -> None:
        """Play the episodes of an evaluation, and record them in the log of each member.

        :param timesteps: Training steps of each member so far.
        """
        spec, envs, members = self._members[0].spec, self.envs, self._members

        def where(_: Exception) -> str:
            return f" (in the evaluation at step {timesteps:,})"

        generators = [th.Generator(self._device) for _ in members]
        for generator, member in zip(generators, members, strict=True):
            seed_torch(generator, member.evaluations.seed_sequence(member.spec))
        # As SB3's evaluate_policy spreads episodes over environments
        targets = np.array([(spec.n_eval_episodes + i) // envs.n_envs for i in range(envs.n_envs)])
        counts = np.zeros((len(members), envs.n_envs), dtype=int)
        episodes = [Episodes() for _ in members]
        max_length = eval_episode_limit(spec.env_spec())
        n_steps = 0
        observations = envs.reset(members.active)
        members.drop_failed(envs, where)
        playing = list(members.active)
        while playing:
            draws = None
            if not spec.eval_deterministic:
                draws = th.stack(
                    [self._policy.draws(generator, 1, envs.n_envs)[0] for generator in generators]
                )
            if self._normalize is not None:
                observations = self._normalize.observations(observations)
            actions = self._policy.predict(th.as_tensor(observations, device=self._device), draws)
            observations, _, dones = envs.step(envs.clipped(actions), playing)
            members.drop_failed(envs, where)
            n_steps += int((counts[playing] < targets).sum())
            members.beat(timesteps, partial(evaluation_progress, episodes, spec, n_steps))
            for index, env in np.argwhere(dones):
                info = envs.infos[index][env]
                if counts[index, env] >= targets[env]:
                    continue
                counts[index, env] += episodes[index].add(info, max_length)
            playing = [
                index for index in playing if index in members.active and (counts[index] < targets).any()
            ]
        members.each_active(
            lambda index: members[index].evaluations.add(
                timesteps, episodes[index], members[index].model.logger
            )
        )
