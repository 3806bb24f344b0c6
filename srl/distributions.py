"""SB3's action distributions with the same parameters and less overhead.

SB3 builds one Categorical for each dimension of a MultiDiscrete space, which halves the speed of PPO, and
torch's distributions check their arguments at every construction and every ``log_prob``, which waits for the
device. The classes here are subclasses, which SB3's policies accept.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from torch.distributions import Bernoulli, Categorical, Normal
from torch.nn import functional as F

from srl.spaces import start_of

#: Numbers in the widest vector of a CPU, a multiple of the size of every narrower one.
VECTOR = 16

SelfBatched = TypeVar("SelfBatched", bound="BatchedMultiCategoricalDistribution")


class UncheckedCategoricalDistribution(CategoricalDistribution):
    """SB3's CategoricalDistribution without argument checks; results are bitwise identical.

    :param action_dim: Number of discrete actions.
    :param start: The smallest action, see :mod:`srl.spaces`.
    """

    def __init__(self, action_dim: int, start: int = 0):
        super().__init__(action_dim)
        self._start = start

    def proba_distribution(self, action_logits: th.Tensor) -> UncheckedCategoricalDistribution:
        self.distribution = Categorical(logits=action_logits, validate_args=False)
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return super().log_prob(actions - self._start if self._start else actions)

    def sample(self) -> th.Tensor:
        return self._shifted(super().sample())

    def mode(self) -> th.Tensor:
        return self._shifted(super().mode())

    def _shifted(self, choices: th.Tensor) -> th.Tensor:
        return choices + self._start if self._start else choices

    def draws(self, generator: th.Generator) -> th.Tensor:
        """Random numbers of :meth:`sample` for :meth:`choose`, as in torch's multinomial.

        :return: Shape ``(batch_size, n_choices)``.
        """
        return th.empty_like(self.distribution.probs).exponential_(generator=generator)

    def choose(self, draws: th.Tensor) -> th.Tensor:
        """The actions of random numbers.

        :return: Shape ``(batch_size,)``.
        """
        return self._shifted((self.distribution.probs / draws).argmax(-1))


class UncheckedBernoulliDistribution(BernoulliDistribution):
    """SB3's BernoulliDistribution without argument checks; results are bitwise identical."""

    def proba_distribution(self, action_logits: th.Tensor) -> UncheckedBernoulliDistribution:
        self.distribution = Bernoulli(logits=action_logits, validate_args=False)
        return self

    def draws(self, generator: th.Generator) -> th.Tensor:
        """Random numbers of :meth:`sample` for :meth:`choose`.

        :return: Shape ``(batch_size, n_dims)``.
        """
        probs = self.distribution.probs
        return th.rand(probs.shape, generator=generator, device=probs.device)

    def choose(self, draws: th.Tensor) -> th.Tensor:
        """The actions of random numbers.

        :return: Shape ``(batch_size, n_dims)``.
        """
        return (draws < self.distribution.probs).float()


class UncheckedDiagGaussianDistribution(DiagGaussianDistribution):
    """SB3's DiagGaussianDistribution without argument checks; results are bitwise identical."""

    def proba_distribution(
        self, mean_actions: th.Tensor, log_std: th.Tensor
    ) -> UncheckedDiagGaussianDistribution:
        self.distribution = Normal(
            mean_actions, th.ones_like(mean_actions) * log_std.exp(), validate_args=False
        )
        return self

    def draws(self, generator: th.Generator) -> th.Tensor:
        """Random numbers of :meth:`sample` for :meth:`choose`.

        :return: Shape ``(batch_size, n_dims)``.
        """
        mean = self.distribution.mean
        return th.normal(th.zeros_like(mean), th.ones_like(mean), generator=generator)

    def choose(self, draws: th.Tensor) -> th.Tensor:
        """The actions of random numbers.

        :return: Shape ``(batch_size, n_dims)``.
        """
        return self.distribution.mean + draws * self.distribution.stddev


class BatchedMultiCategoricalDistribution(MultiCategoricalDistribution):
    """All dimensions of a MultiDiscrete action in one batch of categorical distributions.

    Probabilities, log probabilities, entropies and the layer for the logits are those of SB3's
    MultiCategoricalDistribution, so that parameters can be exchanged. All dimensions are sampled at once:
    samples have the same distribution but are different numbers. Dimensions of unequal size are padded to the
    largest with logits of probability zero.

    :param action_dims: Sizes of the discrete dimensions.
    :param start: The smallest action of each dimension, shape ``(n_dims,)``, see :mod:`srl.spaces`; None for
        zeros.
    """

    def __init__(self, action_dims: list[int], start: np.ndarray | None = None):
        super().__init__(action_dims)
        self._start = None if start is None else th.as_tensor(start)
        self._n_dims, self._largest = len(action_dims), max(action_dims)
        # The position of each logit in the flattened padded table; None without padding
        self._positions: th.Tensor | None = None
        if min(action_dims) != self._largest:
            is_choice = th.arange(self._largest) < th.tensor(action_dims).unsqueeze(1)
            self._positions = is_choice.flatten().nonzero().flatten()
        self._logits = th.empty(0)
        # Shape (n_dims, largest, rows): PyTorch's softmax is ten times faster with the rows last
        self._log_probs = th.empty(0)

    def proba_distribution(self: SelfBatched, action_logits: th.Tensor) -> SelfBatched:
        """Take the logits.

        :param action_logits: Shape ``(batch_size, sum(action_dims))``.
        :return: This distribution.
        """
        self._logits = action_logits
        # Masked choices may have -inf, whose product with probability 0 is NaN. This logit has probability 0,
        # too, and a gradient that is multiplied with it does not overflow
        lowest = -math.sqrt(th.finfo(action_logits.dtype).max)
        table = action_logits.t().clamp(min=lowest)
        # Rows that do not fill a vector of the CPU would be rounded differently, and the result of a row must
        # not depend on the number of rows
        if len(action_logits) == 1:
            table = table.expand(-1, VECTOR)
        elif len(action_logits) % VECTOR:
            table = F.pad(table, (0, -len(action_logits) % VECTOR))
        if self._positions is not None:
            padded = table.new_full((self._n_dims * self._largest, table.shape[1]), lowest)
            self._positions = self._positions.to(table.device)
            table = padded.index_copy(0, self._positions, table)
        self._log_probs = th.log_softmax(table.reshape(self._n_dims, self._largest, -1), dim=1)
        return self

    @property
    def distribution(self) -> list[Categorical]:  # type: ignore[override]
        """The dimensions as separate distributions, as in SB3, created on access."""
        return [
            Categorical(logits=logits, validate_args=False)
            for logits in th.split(self._logits, list(self.action_dims), dim=1)
        ]

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Joint log probability.

        :param actions: Shape ``(batch_size, n_dims)``.
        :return: Shape ``(batch_size,)``.
        """
        choices = actions.long()
        if self._start is not None:
            choices = choices - self._start_on(actions.device)
        choices = choices.t().unsqueeze(1)
        chosen = self._log_probs[..., : len(actions)].gather(1, choices)
        return chosen.squeeze(1).t().contiguous().sum(-1)

    def entropy(self) -> th.Tensor:
        """Entropy of the joint distribution, the sum over dimensions, in nats.

        :return: Shape ``(batch_size,)``.
        """
        # Padding adds 0, since it has probability 0 and a finite log probability
        terms = (self._log_probs.exp() * self._log_probs).flatten(0, 1)
        # Columns are summed in blocks of four vectors, whose order differs from that of a partial block
        missing = -terms.shape[1] % (4 * VECTOR)
        return -(F.pad(terms, (0, missing)) if missing else terms).sum(0)[: len(self._logits)]

    def sample(self) -> th.Tensor:
        """One draw for each row.

        :return: Shape ``(batch_size, n_dims)``.
        """
        return self.choose(self.draws())

    def draws(self, generator: th.Generator | None = None) -> th.Tensor:
        """Random numbers of :meth:`sample` for :meth:`choose`, from a generator or PyTorch's global one.

        :return: Shape ``(batch_size, n_dims)``.
        """
        logits = self._logits
        return th.rand(len(logits), self._n_dims, generator=generator, device=logits.device)

    def choose(self, draws: th.Tensor) -> th.Tensor:
        """The choices of uniform random numbers, by the inverse of the cumulative distribution.

        :param draws: From [0, 1), shape ``(batch_size, n_dims)``.
        :return: Shape ``(batch_size, n_dims)``; never a choice of probability zero.
        """
        cumulative = self._log_probs.exp().cumsum(1)[..., : len(draws)]
        # In (0, total], so that the first sum to reach it belongs to a choice of positive probability
        height = (1 - draws).t().unsqueeze(1) * cumulative[:, -1:]
        return self._shifted((cumulative < height).sum(1).t())

    def mode(self) -> th.Tensor:
        """The most probable choice of each dimension.

        :return: Shape ``(batch_size, n_dims)``.
        """
        return self._shifted(self._log_probs.argmax(dim=1).t()[: len(self._logits)])

    def _shifted(self, choices: th.Tensor) -> th.Tensor:
        return choices if self._start is None else choices + self._start_on(choices.device)

    def _start_on(self, device: th.device) -> th.Tensor:
        assert self._start is not None
        self._start = self._start.to(device)
        return self._start


def without_checks(distribution: Distribution, action_space: spaces.Space[Any]) -> Distribution:
    """The faster distribution with the same parameters.

    :param distribution: From SB3's ``make_proba_distribution``.
    :param action_space: The action space.
    :return: Its counterpart in this module; the distribution itself if there is none (gSDE).
    """
    start = start_of(action_space)
    # Exact types: a user's own subclass is not replaced
    if type(distribution) is MultiCategoricalDistribution:
        return BatchedMultiCategoricalDistribution(list(distribution.action_dims), start)
    if type(distribution) is CategoricalDistribution:
        return UncheckedCategoricalDistribution(distribution.action_dim, 0 if start is None else int(start))
    if type(distribution) is BernoulliDistribution:
        return UncheckedBernoulliDistribution(distribution.action_dims)
    if type(distribution) is DiagGaussianDistribution:
        return UncheckedDiagGaussianDistribution(distribution.action_dim)
    return distribution
