"""One update of all members: rollouts of one shape, and the gradient steps.

Tensors have the shape ``(S, ...)``: ``S`` members. What is random is drawn by each member for itself; the
losses are those of :mod:`srl.losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from srl import SA2C, SPPO
from srl.advantages import prepare_advantages
from srl.compiled import CompiledUpdate
from srl.distributions import VECTOR
from srl.losses import A2CLosses, LossWeights, PPOLosses, a2c_losses, ppo_losses
from srl.symmetric import UpdateStatistics
from srl.training.stacked.networks import StackedPolicy


@dataclass
class Rollout:
    """What the members have seen, ``N = n_envs * n_steps`` samples each, in the order of SB3's buffer."""

    #: Shape ``(S, N, *observation_shape)``.
    observations: th.Tensor
    #: Shape ``(S, N, action_dim)``.
    actions: th.Tensor
    #: Shape ``(S, N)``, as all that follow.
    values: th.Tensor
    log_probs: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor

    def of_member(self, index: int) -> RolloutBufferSamples:
        """The samples of one member."""
        return RolloutBufferSamples(*(tensor[index] for tensor in vars(self).values()))


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    episode_starts: np.ndarray,
    last_values: np.ndarray,
    dones: np.ndarray,
    gamma: np.ndarray,
    gae_lambda: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns of all members, bitwise identical to SB3's rollout buffer.

    :param rewards: Float32, shape ``(n_steps, S, n_envs)``.
    :param values: Float32, shape ``(n_steps, S, n_envs)``.
    :param episode_starts: Float32, 1 where an episode begins, shape ``(n_steps, S, n_envs)``.
    :param last_values: Values after the last step, shape ``(S, n_envs)``.
    :param dones: Whether the last step ended an episode, shape ``(S, n_envs)``.
    :param gamma: Of each member, shape ``(S,)``.
    :param gae_lambda: Of each member, shape ``(S,)``.
    :return: Advantages and returns, shape ``(n_steps, S, n_envs)``.
    """
    discount = gamma.astype(np.float32)[:, None]
    decay = (gamma * gae_lambda).astype(np.float32)[:, None]
    advantages = np.empty_like(rewards)
    last: Any = 0
    next_non_terminal, next_values = 1.0 - dones.astype(np.float32), last_values
    for step in reversed(range(len(rewards))):
        delta = rewards[step] + discount * next_values * next_non_terminal - values[step]
        last = delta + decay * next_non_terminal * last
        advantages[step] = last
        next_non_terminal, next_values = 1.0 - episode_starts[step], values[step]
    return advantages, advantages + values


class StackedOptimizer:
    """The members' optimizers as one: any that treats each number by itself.

    :param policy: The stacked network.
    :param models: The members, those of one learning rate next to each other.
    :param learning_rates: Of each member, as its hyperparameters name it.
    """

    def __init__(
        self, policy: StackedPolicy, models: Sequence[SA2C | SPPO], learning_rates: Sequence[float | str]
    ):
        self._policy = policy
        self._models = list(models)
        first = models[0].policy
        starts = [i for i, rate in enumerate(learning_rates) if i == 0 or rate != learning_rates[i - 1]]
        ends = [*starts[1:], len(models)]
        fused = bool(first.optimizer_kwargs.get("fused"))
        #: For each learning rate the first of its members, and what is optimized: the name of a parameter,
        #: its part, and the members in that.
        self._groups = [
            (start, [piece for name in policy.parameters for piece in self._pieces(name, start, end, fused)])
            for start, end in zip(starts, ends, strict=True)
        ]
        self._gradients = [th.zeros_like(parameter) for parameter in policy.parameters.values()]
        #: The same, each of shape ``(S, size)``.
        self._flat_gradients = [gradient.flatten(1) for gradient in self._gradients]
        of_name = dict(zip(policy.parameters, self._gradients, strict=True))
        for _, pieces in self._groups:
            for name, part, members in pieces:
                part.grad = of_name[name][members]
        groups = [
            {
                "params": [part for _, part, _ in pieces],
                "lr": models[start].policy.optimizer.param_groups[0]["lr"],
            }
            for start, pieces in self._groups
        ]
        self._optimizer = first.optimizer_class(groups, **first.optimizer_kwargs)  # type: ignore[call-arg]
        self._max_norm = th.tensor([model.max_grad_norm for model in models], device=models[0].device)

    def _pieces(self, name: str, start: int, end: int, fused: bool) -> list[tuple[str, th.Tensor, slice]]:
        """Parts of a stacked parameter to optimize as one tensor each."""
        parameter = self._policy.parameters[name].detach()
        # A fused optimizer rounds the numbers that do not fill its vectors in another way
        size = 1 if fused and parameter[0].numel() % VECTOR else end - start
        parts = [slice(first, first + size) for first in range(start, end, size)]
        return [(name, parameter[part], part) for part in parts]

    def read_learning_rates(self) -> None:
        """Take the learning rates that the members' own optimizers have now."""
        for group, (start, _) in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["lr"] = self._models[start].policy.optimizer.param_groups[0]["lr"]

    def step(self, loss: th.Tensor) -> None:
        """One step for each member, with its gradient norm clipped as SB3 does.

        :param loss: Shape ``(S,)``.
        """
        parameters = self._policy.parameters
        # The members' losses share nothing, so that the gradient of the sum is each one's own
        gradients = th.autograd.grad(loss.sum(), list(parameters.values()))
        # One copy puts them where the optimizer looks, and as it needs them: some come transposed
        th._foreach_copy_(self._gradients, gradients)
        norms = th.stack([th.linalg.vector_norm(gradient, dim=1) for gradient in self._flat_gradients], 1)
        # Where SB3 divides a number by a tensor, PyTorch multiplies with its reciprocal
        inverse = (th.linalg.vector_norm(norms, dim=1) + 1e-6).reciprocal()
        scale = (inverse * self._max_norm).clamp(max=1.0)
        th._foreach_mul_(self._flat_gradients, [scale.unsqueeze(1)] * len(gradients))
        self._optimizer.step()

    def take_over(self) -> None:
        """Take the state of the members' own optimizers, as of runs that go on."""
        for _, pieces in self._groups:
            for name, part, members in pieces:
                models = self._models[members]
                states = [model.policy.optimizer.state[model.policy.get_parameter(name)] for model in models]
                for key, value in states[0].items():
                    shared = not isinstance(value, th.Tensor) or value.shape != part.shape[1:]
                    self._optimizer.state[part][key] = (
                        copy(value) if shared else th.stack([state[key] for state in states])
                    )

    def export(self) -> None:
        """Give the members' own optimizers their state, so that a loaded model can go on."""
        for _, pieces in self._groups:
            for name, part, members in pieces:
                for row, model in enumerate(self._models[members]):
                    optimizer = model.policy.optimizer
                    parameter = model.policy.get_parameter(name)
                    for key, value in self._optimizer.state[part].items():
                        whole = not isinstance(value, th.Tensor) or value.shape != part.shape
                        optimizer.state[parameter][key] = copy(value) if whole else value[row].clone()


class CompiledUpdater:
    """The members' compiled updates, one after the other: each is that of the run alone.

    :param models: The members.
    :param updates: Their updates.
    :param permutations: Each member's generator of minibatch orders.
    """

    def __init__(
        self,
        models: Sequence[SA2C | SPPO],
        updates: Sequence[CompiledUpdate],
        permutations: Sequence[np.random.RandomState],
    ):
        self._members = list(zip(models, updates, permutations, strict=True))

    def update(self, rollout: Rollout) -> list[UpdateStatistics]:
        """Update all members.

        :param rollout: What they have seen.
        :return: The figures of each member's update.
        """
        statistics = []
        for index, (model, update, permutations) in enumerate(self._members):
            n_epochs = model.n_epochs if isinstance(model, SPPO) else 1
            result = update.run(rollout.of_member(index), permutations.permutation, n_epochs)
            model._n_updates += result.n_epochs
            statistics.append(result.statistics)
        return statistics

    def take_over(self) -> None:
        """Nothing to do: the state is that of the members' own optimizers."""

    def export(self) -> None:
        """Nothing to do: the state is that of the members' own optimizers."""


class Updater:
    """The update of the stacked network.

    :param models: The members, those of one learning rate next to each other.
    :param policy: Their stacked network.
    :param permutations: Each member's generator of minibatch orders.
    :param learning_rates: Of each member, as its hyperparameters name it.
    """

    def __init__(
        self,
        models: Sequence[SA2C | SPPO],
        policy: StackedPolicy,
        permutations: Sequence[np.random.RandomState],
        learning_rates: Sequence[float | str],
    ):
        self._models = list(models)
        self._first = models[0]
        self._policy = policy
        self._optimizer = StackedOptimizer(policy, models, learning_rates)
        self._permutations = list(permutations)
        self._device = models[0].device
        self._weights = LossWeights(
            *(self._column(name).squeeze(1) for name in ("alpha", "beta", "ent_coef", "vf_coef"))
        )
        self._z = self._column("z")
        self._flips = any(model.advantage_flip_prob > 0 for model in models)

    def take_over(self) -> None:
        """Take the state of the members' own optimizers, to resume from it."""
        self._optimizer.take_over()

    def export(self) -> None:
        """Give the members' own optimizers their state."""
        self._optimizer.export()

    def _column(self, name: str) -> th.Tensor:
        """A coefficient of each member, shape ``(S, 1)``."""
        return self._tensor([getattr(model, name) for model in self._models])

    def _tensor(self, values: Sequence[float], dtype: th.dtype = th.float32) -> th.Tensor:
        return th.tensor([[value] for value in values], dtype=dtype, device=self._device)

    def update(self, rollout: Rollout) -> list[UpdateStatistics]:
        """Update all members.

        :param rollout: What they have seen.
        :return: The figures of each member's update.
        """
        statistics = UpdateStatistics()
        self._optimizer.read_learning_rates()
        if isinstance(self._first, SA2C):
            self._update_a2c(rollout, statistics)
        else:
            self._update_ppo(rollout, statistics)
        return statistics.split()

    def _orders(self, n_samples: int) -> th.Tensor:
        """The order in which each member takes its samples, as rows of the flattened rollout."""
        orders = np.stack([generator.permutation(n_samples) for generator in self._permutations])
        offsets = np.arange(len(orders))[:, None] * n_samples
        return th.as_tensor(orders + offsets, device=self._device)

    def _flip_mask(self, n_samples: int) -> th.Tensor | None:
        if not self._flips:
            return None
        nobody = th.zeros(n_samples, dtype=th.bool, device=self._device)
        masks = (model._flip_mask(n_samples) for model in self._models)
        return th.stack([nobody if mask is None else mask for mask in masks])

    def _update_a2c(self, rollout: Rollout, statistics: UpdateStatistics) -> None:
        batch = _take(rollout, self._orders(rollout.returns.shape[1]))
        first = self._first
        values, log_prob, entropy = self._policy.evaluate_actions(batch.observations, batch.actions)
        prepared = prepare_advantages(
            batch.advantages,
            flip_mask=self._flip_mask(batch.returns.shape[1]),
            normalize=first.normalize_advantage,
            transform=first.advantage_transform,
        )
        losses: A2CLosses = a2c_losses(
            values,
            log_prob,
            entropy,
            advantages=prepared.advantages,
            returns=batch.returns,
            weights=self._weights,
            has_probabilities=first._has_probabilities,
            reverse_loss=first.reverse_loss,
            z=self._z,
        )
        statistics.add(losses, prepared)
        self._optimizer.step(losses.loss)
        for model in self._models:
            model._n_updates += 1

    def _update_ppo(self, rollout: Rollout, statistics: UpdateStatistics) -> None:
        first = self._first
        assert isinstance(first, SPPO)
        clip_range = self._tensor([clip_range_of(model) for model in self._models], th.float64)
        clip_range_vf = None
        if first.clip_range_vf is not None:
            clip_range_vf = self._tensor(
                [clip_range_vf_of(model) or 0.0 for model in self._models], th.float64
            )
        n_samples = rollout.returns.shape[1]
        for _ in range(first.n_epochs):
            orders = self._orders(n_samples)
            for start in range(0, n_samples, first.batch_size):
                batch = _take(rollout, orders[:, start : start + first.batch_size])
                values, log_prob, entropy = self._policy.evaluate_actions(batch.observations, batch.actions)
                prepared = prepare_advantages(
                    batch.advantages,
                    flip_mask=self._flip_mask(batch.returns.shape[1]),
                    normalize=first.normalize_advantage,
                    transform=first.advantage_transform,
                )
                losses: PPOLosses = ppo_losses(
                    values,
                    log_prob,
                    entropy,
                    old_values=batch.values,
                    old_log_prob=batch.log_probs,
                    advantages=prepared.advantages,
                    returns=batch.returns,
                    clip_range=clip_range,
                    clip_range_vf=clip_range_vf,
                    weights=self._weights,
                    has_probabilities=first._has_probabilities,
                    reverse_loss=first.reverse_loss,
                    z=self._z,
                    importance_weighting=first.importance_weighting,
                )
                statistics.add(losses, prepared)
                self._optimizer.step(losses.loss)
            for model in self._models:
                model._n_updates += 1


def _take(rollout: Rollout, rows: th.Tensor) -> Rollout:
    """Samples of a rollout, other ones for each member.

    :param rows: Rows of the rollout with its first two dimensions flattened, shape ``(S, batch_size)``.
    """
    flat = rows.flatten()

    def take(tensor: th.Tensor) -> th.Tensor:
        taken = tensor.flatten(0, 1).index_select(0, flat)
        return taken.view(*rows.shape, *taken.shape[1:])

    return Rollout(**{name: take(tensor) for name, tensor in vars(rollout).items()})


def clip_range_of(model: SPPO | SA2C) -> float:
    """A member's clip range now."""
    assert isinstance(model, SPPO)
    return float(model.clip_range(model._current_progress_remaining))  # type: ignore[operator]


def clip_range_vf_of(model: SPPO | SA2C) -> float | None:
    """A member's clip range of values now; None for none."""
    assert isinstance(model, SPPO)
    if model.clip_range_vf is None:
        return None
    return float(model.clip_range_vf(model._current_progress_remaining))  # type: ignore[operator]
