"""One update of all members: the gradient steps on their rollouts.

``S`` is the number of members. A rollout is SB3's ``RolloutBufferSamples`` with a dimension for members in
front: ``N = n_envs * n_steps`` samples of each, in the order of SB3's buffer, in tensors of shape ``(S, N)``,
observations ``(S, N, *observation_shape)`` and actions ``(S, N, action_dim)``. Each member has its own random
generator and its own loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import accumulate, groupby, pairwise
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from srl import SA2C, SPPO
from srl.advantages import PreparedAdvantages
from srl.compiled import CompiledUpdate
from srl.distributions import VECTOR
from srl.losses import A2CLosses, LossWeights, PPOLosses
from srl.symmetric import Evaluated
from srl.training.stacked.networks import StackedPolicy
from srl.updates import UpdateResult, UpdateStatistics


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
    :param episode_starts: Float32, 1 where an episode starts, shape ``(n_steps, S, n_envs)``.
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
    """The members' optimizers as one elementwise optimizer.

    :param policy: The stacked network.
    :param models: The members; those with the same learning rate and options are adjacent.
    :param learning_rates: The learning rate of each member, as in its hyperparameters.
    """

    def __init__(
        self, policy: StackedPolicy, models: Sequence[SA2C | SPPO], learning_rates: Sequence[float | str]
    ):
        self._policy = policy
        self._models = list(models)
        first = models[0].policy
        options = [_options(model) for model in models]
        groups = _alike([(rate, repr(own)) for rate, own in zip(learning_rates, options, strict=True)])
        fused = bool(first.optimizer_kwargs.get("fused"))
        #: For each group its first member, and for each optimized tensor the name of its parameter, the
        #: tensor and its members.
        self._groups = [
            (own.start, [piece for name in policy.parameters for piece in self._pieces(name, own, fused)])
            for own in groups
        ]
        self._gradients = [th.zeros_like(parameter) for parameter in policy.parameters.values()]
        #: Views of the gradients, each of shape ``(S, size)``.
        self._flat_gradients = [gradient.flatten(1) for gradient in self._gradients]
        of_name = dict(zip(policy.parameters, self._gradients, strict=True))
        for _, pieces in self._groups:
            for name, part, members in pieces:
                part.grad = of_name[name][members]
        self._optimizer = first.optimizer_class(
            [{**options[start], "params": [part for _, part, _ in pieces]} for start, pieces in self._groups],
            **first.optimizer_kwargs,
        )  # type: ignore[call-arg]
        self._max_norm = th.tensor([model.max_grad_norm for model in models], device=models[0].device)

    def _pieces(self, name: str, group: slice, fused: bool) -> list[tuple[str, th.Tensor, slice]]:
        """The parts of a stacked parameter that are optimized as one tensor each."""
        parameter = self._policy.parameters[name].detach()
        # A fused optimizer rounds numbers that do not fill its vectors differently
        size = 1 if fused and parameter[0].numel() % VECTOR else group.stop - group.start
        parts = [slice(first, first + size) for first in range(group.start, group.stop, size)]
        return [(name, parameter[part], part) for part in parts]

    def read_learning_rates(self) -> None:
        """Take the current learning rates of the members' own optimizers."""
        for group, (start, _) in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["lr"] = self._models[start].policy.optimizer.param_groups[0]["lr"]

    def step(self, loss: th.Tensor) -> None:
        """One step for each member, with its gradient norm clipped as SB3 does.

        :param loss: Shape ``(S,)``.
        """
        parameters = self._policy.parameters
        # The losses are independent, so that the gradient of the sum has each member's own gradient
        gradients = th.autograd.grad(loss.sum(), list(parameters.values()))
        # One copy moves them to the optimizer's tensors, in its memory layout: some are transposed
        th._foreach_copy_(self._gradients, gradients)
        norms = th.stack([th.linalg.vector_norm(gradient, dim=1) for gradient in self._flat_gradients], 1)
        # As SB3's division of a number by a tensor, which PyTorch computes by the reciprocal
        inverse = (th.linalg.vector_norm(norms, dim=1) + 1e-6).reciprocal()
        scale = (inverse * self._max_norm).clamp(max=1.0)
        th._foreach_mul_(self._flat_gradients, [scale.unsqueeze(1)] * len(gradients))
        self._optimizer.step()

    def take_over(self) -> None:
        """Take the state of the members' own optimizers, to resume."""
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
        """Write the state to the members' own optimizers, so that saved models can resume training."""
        for _, pieces in self._groups:
            for name, part, members in pieces:
                for row, model in enumerate(self._models[members]):
                    optimizer = model.policy.optimizer
                    parameter = model.policy.get_parameter(name)
                    for key, value in self._optimizer.state[part].items():
                        whole = not isinstance(value, th.Tensor) or value.shape != part.shape
                        optimizer.state[parameter][key] = copy(value) if whole else value[row].clone()


class CompiledUpdater:
    """The members' compiled updates, one after the other, each identical to that of the run alone.

    :param models: The members.
    :param updates: Their compiled updates.
    :param permutations: Each member's generator of minibatch orders.
    """

    def __init__(
        self,
        models: Sequence[SA2C | SPPO],
        updates: Sequence[CompiledUpdate],
        permutations: Sequence[np.random.RandomState],
    ):
        self._members = list(zip(models, updates, permutations, strict=True))

    def update(self, rollout: RolloutBufferSamples) -> list[UpdateResult]:
        """Update all members.

        :return: The result of each member's update.
        """
        results = []
        for index, (model, update, permutations) in enumerate(self._members):
            own = RolloutBufferSamples(*(tensor[index] for tensor in rollout))
            results.append(update.run(own, permutations.permutation, model.n_epochs))
            model._n_updates += results[-1].n_epochs
        return results

    def take_over(self) -> None:
        """Nothing to do: the state is that of the members' own optimizers."""

    def export(self) -> None:
        """Nothing to do: the state is that of the members' own optimizers."""


class Updater:
    """The update of the stacked network.

    The network is evaluated for all members at once, and the loss for members with the same options at once.

    :param models: The members; those with the same options are adjacent, see
        :func:`~srl.config.population.member_order`.
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
        self._policy = policy
        self._optimizer = StackedOptimizer(policy, models, learning_rates)
        self._permutations = list(permutations)
        self._device = models[0].device
        #: Members whose losses differ only in coefficients.
        self._groups = [self._models[own] for own in _alike([model._trace_options() for model in models])]
        self._sizes = [len(group) for group in self._groups]
        self._flips = any(model.advantage_flip_prob > 0 for model in models)

    def take_over(self) -> None:
        """Take the state of the members' own optimizers, to resume."""
        self._optimizer.take_over()

    def export(self) -> None:
        """Write the state to the members' own optimizers."""
        self._optimizer.export()

    def update(self, rollout: RolloutBufferSamples) -> list[UpdateResult]:
        """Update all members.

        :return: The result of each member's update.
        """
        first = self._models[0]
        statistics = UpdateStatistics()
        self._optimizer.read_learning_rates()
        coefficients = [self._coefficients(group) for group in self._groups]
        n_samples = rollout.returns.shape[1]
        for _ in range(first.n_epochs):
            minibatches = th.split(self._orders(n_samples), first._minibatch_size, dim=1)
            for rows in minibatches:
                losses, prepared = self._losses(_take(rollout, rows), coefficients)
                statistics.add(losses, prepared)
                self._optimizer.step(losses.loss)
        for model in self._models:
            model._n_updates += first.n_epochs
        return [
            UpdateResult(own, first.n_epochs, len(minibatches), stopped=False) for own in statistics.split()
        ]

    def _orders(self, n_samples: int) -> th.Tensor:
        """The order of each member's samples, as rows of the flattened rollout."""
        orders = np.stack([generator.permutation(n_samples) for generator in self._permutations])
        offsets = np.arange(len(orders))[:, None] * n_samples
        return th.as_tensor(orders + offsets, device=self._device)

    def _flip_mask(self, n_samples: int) -> th.Tensor | None:
        if not self._flips:
            return None
        nobody = th.zeros(n_samples, dtype=th.bool, device=self._device)
        masks = (model._flip_mask(n_samples) for model in self._models)
        return th.stack([nobody if mask is None else mask for mask in masks])

    def _coefficients(self, group: Sequence[SA2C | SPPO]) -> dict[str, th.Tensor]:
        """The coefficients of members as tensors."""
        own = [model._coefficients() for model in group]
        table = th.tensor([list(each.values()) for each in own], dtype=th.float64, device=self._device)
        columns = dict(zip(own[0], table.unsqueeze(2).unbind(1), strict=True))
        # Clip ranges stay in float64, the precision of Python's floats
        weights = {name: columns[name].squeeze(1).float() for name in LossWeights._fields}
        return columns | weights | {"z": columns["z"].float()}

    def _losses(
        self, batch: RolloutBufferSamples, coefficients: Sequence[dict[str, th.Tensor]]
    ) -> tuple[A2CLosses | PPOLosses, PreparedAdvantages]:
        """The losses of all members, each of shape ``(S,)``."""
        evaluated = Evaluated(*self._policy.evaluate_actions(batch.observations, batch.actions))
        flip_mask = self._flip_mask(batch.returns.shape[1])
        if len(self._groups) == 1:
            return self._models[0]._losses(evaluated, batch, flip_mask, coefficients[0])
        parts = [
            group[0]._losses(*arguments)
            for group, *arguments in zip(
                self._groups,
                self._split(evaluated),
                self._split(batch),
                [None] * len(self._groups) if flip_mask is None else th.split(flip_mask, self._sizes),
                coefficients,
                strict=True,
            )
        ]
        losses, prepared = zip(*parts, strict=True)
        return _joined(losses), _joined(prepared)

    def _split(self, tensors: Any) -> list[Any]:
        """Split a named tuple of all members' tensors by group."""
        columns = (
            [None] * len(self._sizes) if tensor is None else th.split(tensor, self._sizes)
            for tensor in tensors
        )
        return [type(tensors)(*row) for row in zip(*columns, strict=True)]


def _joined(parts: Sequence[Any]) -> Any:
    """Join the named tuples of all groups."""
    columns = zip(*parts, strict=True)
    return type(parts[0])(*(None if column[0] is None else th.cat(column) for column in columns))


def _alike(keys: Sequence[Any]) -> list[slice]:
    """The slices of adjacent equal keys."""
    ends = list(accumulate(len(list(group)) for _, group in groupby(keys)))
    return [slice(start, end) for start, end in pairwise([0, *ends])]


def _options(model: SA2C | SPPO) -> dict[str, Any]:
    (group,) = model.policy.optimizer.param_groups
    return {name: value for name, value in group.items() if name != "params"}


def _take(rollout: RolloutBufferSamples, rows: th.Tensor) -> RolloutBufferSamples:
    """Samples of a rollout, different ones for each member.

    :param rows: Rows of the rollout with its first two dimensions flattened, shape ``(S, batch_size)``.
    """
    flat = rows.flatten()

    def take(tensor: th.Tensor) -> th.Tensor:
        taken = tensor.flatten(0, 1).index_select(0, flat)
        return taken.view(*rows.shape, *taken.shape[1:])

    return RolloutBufferSamples(*(take(tensor) for tensor in rollout))
