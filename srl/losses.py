"""The losses of SA2C and SPPO as pure functions of tensors.

Byun and Perrault, "Symmetric Reinforcement Learning Loss for Robust Learning on Diverse Tasks and Model
Scales", ICML 2025 (arXiv 2405.17618). Every tensor has shape ``(..., batch_size)``; every loss is the mean
over the minibatch, of shape ``(...)``, a scalar for one minibatch. Leading dimensions are the members of a
population, each with its own minibatch; a number such as ``z`` can then be a tensor that broadcasts against
them. Notation: ``A`` advantage, ``pi`` the current policy's probability
of the action taken, ``pi_old`` that of the policy that collected the rollout, ``Z < 0`` the finite stand-in
for log 0.

A reverse loss is a function of ``(advantages, weight, weighted_prob, z)`` under a name in
:data:`REVERSE_LOSSES`. ``weight`` is ``w`` and ``weighted_prob`` is ``w * pi``, where ``w`` is 1, or
``1 / pi_old`` where the loss is importance weighted; then ``weighted_prob`` is the ratio ``pi / pi_old``.
Passing the product instead of the factors keeps gradients finite: ``1 / pi_old`` overflows float32 for
``log pi_old < -88``, the ratio does not, and only the ratio depends on the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch as th
from torch.nn import functional as F

#: A number, or one for each member of a population.
Coefficient = float | th.Tensor

ReverseLoss = Callable[[th.Tensor, Coefficient, th.Tensor, Coefficient], th.Tensor]

#: Limit of ``1 / pi_old`` as a share of the dtype's largest exponent, so that its product with advantages and
#: ``Z`` and the sum over a minibatch stay finite: ``exp(62)`` in float32.
_WEIGHT_EXPONENT_SHARE = 0.7


def policy_gradient_loss(advantages: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
    """The policy gradient loss of A2C, ``-mean(A log pi)``.

    :param advantages: Advantages, shape ``(..., batch_size)``.
    :param log_prob: Log probabilities of the actions taken, shape ``(..., batch_size)``.
    :return: The loss, shape ``(...)``.
    """
    return -(advantages * log_prob).mean(-1)


def clipped_surrogate_loss(
    advantages: th.Tensor,
    ratio: th.Tensor,
    clip_range: Coefficient,
    clip_range_high: Coefficient | None = None,
) -> tuple[th.Tensor, th.Tensor]:
    """The clipped surrogate loss of PPO, and the mask of its gradient.

    ``-mean(min(A ratio, A clip(ratio, 1 - eps, 1 + eps)))`` (Schulman et al. 2017, equation 7).

    :param advantages: Advantages, shape ``(..., batch_size)``.
    :param ratio: ``pi / pi_old``, shape ``(..., batch_size)``.
    :param clip_range: ``eps``; a tensor must be float64, the precision of Python's floats.
    :param clip_range_high: ``eps`` above 1; None for ``clip_range`` on both sides.
    :return: The loss, shape ``(...)``, and a boolean mask of shape ``(..., batch_size)``, true where
        ``A ratio <= A clip(ratio)``, which includes every ratio within the clip range.
    """
    unclipped = advantages * ratio
    high = clip_range if clip_range_high is None else clip_range_high
    clipped = advantages * _clamp(ratio, 1 - clip_range, 1 + high)
    return -th.min(unclipped, clipped).mean(-1), unclipped.detach() <= clipped.detach()


def _clamp(values: th.Tensor, low: Coefficient, high: Coefficient) -> th.Tensor:
    if isinstance(low, th.Tensor) and isinstance(high, th.Tensor):
        return th.clamp(values, low.to(values.dtype), high.to(values.dtype))
    return th.clamp(values, low, high)  # type: ignore[arg-type]


def inverse_probability(log_prob: th.Tensor) -> th.Tensor:
    """``1 / pi`` from ``log pi``, saturating before it overflows.

    The value saturates at ``exp(0.7 log(largest float))``, ``exp(62)`` in float32. As a weight without
    gradient it affects only the reported loss, never a gradient.

    :param log_prob: Log probabilities, shape ``(..., batch_size)``.
    :return: Their inverse probabilities, finite, of the same shape, without gradient.
    """
    largest_exponent = _WEIGHT_EXPONENT_SHARE * math.log(th.finfo(log_prob.dtype).max)
    return th.exp(th.clamp(-log_prob.detach(), max=largest_exponent))


def reverse_cross_entropy(
    advantages: th.Tensor, weight: Coefficient, weighted_prob: th.Tensor, z: Coefficient
) -> th.Tensor:
    """The reverse cross-entropy loss, ``-mean(A Z w (1 - pi))``.

    :param advantages: Advantages, shape ``(..., batch_size)``.
    :param weight: ``w``, shape ``(..., batch_size)`` or a number.
    :param weighted_prob: ``w pi``, shape ``(..., batch_size)``.
    :param z: The finite stand-in for log 0, negative.
    :return: The loss, shape ``(...)``.
    """
    return -(advantages * z * (weight - weighted_prob)).mean(-1)


def mean_absolute_error(
    advantages: th.Tensor, weight: Coefficient, weighted_prob: th.Tensor, z: Coefficient
) -> th.Tensor:
    """The mean absolute error loss, ``mean(A w (1 - 2 pi))``; ``z`` is not used.

    :param advantages: Advantages, shape ``(..., batch_size)``.
    :param weight: ``w``, shape ``(..., batch_size)`` or a number.
    :param weighted_prob: ``w pi``, shape ``(..., batch_size)``.
    :param z: Not used.
    :return: The loss, shape ``(...)``.
    """
    return (advantages * (weight - 2 * weighted_prob)).mean(-1)


#: The reverse losses by the values of the parameter ``reverse_loss``.
REVERSE_LOSSES: dict[str, ReverseLoss] = {"rce": reverse_cross_entropy, "mae": mean_absolute_error}
#: The factor between the gradients of a reverse loss with importance weighting and of PPO's surrogate, as a
#: function of ``z``. Losses without such a factor are left out.
REVERSE_FACTORS: dict[str, Callable[[float], float]] = {"rce": lambda z: -z, "mae": lambda z: 2.0}


def a2c_reverse_loss(
    advantages: th.Tensor, log_prob: th.Tensor, *, reverse_loss: str = "rce", z: Coefficient = -1.0
) -> th.Tensor:
    """The reverse loss of SA2C: ``-mean(A Z (1 - pi))`` or ``mean(A (1 - 2 pi))``.

    :param advantages: Advantages, shape ``(..., batch_size)``.
    :param log_prob: ``log pi``, shape ``(..., batch_size)``; for several action dimensions their sum.
    :param reverse_loss: A name of :data:`REVERSE_LOSSES`.
    :param z: The finite stand-in for log 0, negative.
    :return: The loss, shape ``(...)``.
    """
    return REVERSE_LOSSES[reverse_loss](advantages, 1.0, th.exp(log_prob), z)


def ppo_reverse_loss(
    advantages: th.Tensor,
    log_prob: th.Tensor,
    old_log_prob: th.Tensor,
    ratio: th.Tensor,
    passes_gradient: th.Tensor,
    *,
    reverse_loss: str = "rce",
    z: Coefficient = -1.0,
    importance_weighting: bool = True,
) -> th.Tensor:
    """The reverse loss of SPPO: ``-mean(f A Z (1 - pi) / pi_old)`` or ``mean(f A (1 - 2 pi) / pi_old)``.

    ``f`` is 1 where the clipped surrogate passes a gradient, else 0. With importance weighting, as
    published, the gradient is ``-Z`` (for ``mae``: 2) times the clipped surrogate's.

    :param advantages: Advantages, shape ``(..., batch_size)``.
    :param log_prob: ``log pi``, shape ``(..., batch_size)``.
    :param old_log_prob: ``log pi_old``, shape ``(..., batch_size)``.
    :param ratio: ``pi / pi_old``, shape ``(..., batch_size)``.
    :param passes_gradient: ``f`` as :func:`clipped_surrogate_loss` returns it, shape ``(..., batch_size)``.
    :param reverse_loss: A name of :data:`REVERSE_LOSSES`.
    :param z: The finite stand-in for log 0, negative.
    :param importance_weighting: Whether to divide by ``pi_old``.
    :return: The loss, shape ``(...)``, finite with the right gradient wherever the ratio is finite.
    """
    unclipped_advantages = advantages * passes_gradient
    if importance_weighting:
        return REVERSE_LOSSES[reverse_loss](unclipped_advantages, inverse_probability(old_log_prob), ratio, z)
    return REVERSE_LOSSES[reverse_loss](unclipped_advantages, 1.0, th.exp(log_prob), z)


class _RowMeanSquaredError(th.autograd.Function):
    """The mean squared error over the last dimension.

    PyTorch's mse_loss averages over all dimensions. Here the gradient is bitwise identical to that of one
    row.
    """

    @staticmethod
    def forward(ctx: Any, values: th.Tensor, targets: th.Tensor) -> th.Tensor:
        difference = values - targets
        ctx.save_for_backward(difference)
        return difference.square().mean(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor, None]:
        (difference,) = ctx.saved_tensors
        return 2.0 / difference.shape[-1] * difference * gradients[0].unsqueeze(-1), None


def mean_squared_error(values: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """The value loss, ``mean((V - R)^2)``.

    :param values: ``V``, shape ``(..., batch_size)``.
    :param targets: ``R``, without gradient, shape ``(..., batch_size)``.
    :return: The loss, shape ``(...)``.
    """
    if values.ndim == 1:
        return F.mse_loss(targets, values)
    return _RowMeanSquaredError.apply(values, targets)  # type: ignore[no-untyped-call, no-any-return]


def entropy_loss(entropy: th.Tensor | None, log_prob: th.Tensor) -> th.Tensor:
    """The negative mean entropy, estimated from the log probabilities if it has no closed form.

    :param entropy: Shape ``(..., batch_size)`` or None.
    :param log_prob: Shape ``(..., batch_size)``.
    :return: Shape ``(...)``.
    """
    return -(-log_prob).mean(-1) if entropy is None else -entropy.mean(-1)


class LossWeights(NamedTuple):
    """Weights of the parts of a loss: numbers, or tensors with one number for each member."""

    alpha: Coefficient
    beta: Coefficient
    ent_coef: Coefficient
    vf_coef: Coefficient

    @classmethod
    def of(cls, coefficients: Mapping[str, Coefficient]) -> LossWeights:
        """Select the weights from coefficients by name."""
        return cls(*(coefficients[name] for name in cls._fields))

    def total(
        self,
        policy_loss: th.Tensor,
        reverse_loss: th.Tensor | None,
        entropy_loss: th.Tensor,
        value_loss: th.Tensor,
    ) -> th.Tensor:
        """``alpha L_policy + beta L_reverse - ent_coef entropy + vf_coef L_value``.

        With ``alpha=1, beta=0`` it is bitwise identical to SB3's loss.
        """
        loss = self.alpha * policy_loss
        if reverse_loss is not None and not (isinstance(self.beta, float | int) and self.beta == 0):
            loss = loss + self.beta * reverse_loss
        return loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss


class A2CLosses(NamedTuple):
    """The loss of an A2C update and its parts, each of shape ``(...)``."""

    loss: th.Tensor
    policy_loss: th.Tensor
    #: None for actions without probabilities.
    reverse_loss: th.Tensor | None
    value_loss: th.Tensor
    entropy_loss: th.Tensor


class PPOLosses(NamedTuple):
    """The loss of a PPO minibatch, its parts and logged figures, each of shape ``(...)``."""

    loss: th.Tensor
    policy_loss: th.Tensor
    #: None for actions without probabilities.
    reverse_loss: th.Tensor | None
    value_loss: th.Tensor
    entropy_loss: th.Tensor
    #: Estimate of the reverse KL divergence, http://joschu.net/blog/kl-approx.html
    approx_kl: th.Tensor
    #: Share of ratios outside the clip range.
    clip_fraction: th.Tensor


def a2c_losses(
    values: th.Tensor,
    log_prob: th.Tensor,
    entropy: th.Tensor | None,
    *,
    advantages: th.Tensor,
    returns: th.Tensor,
    weights: LossWeights,
    has_probabilities: bool = True,
    reverse_loss: str = "rce",
    z: Coefficient = -1.0,
) -> A2CLosses:
    """The loss of SA2C, ``alpha L_policy + beta L_reverse - ent_coef entropy + vf_coef L_value``.

    :param values: ``V`` of the current network, shape ``(..., batch_size)`` like all tensors below.
    :param log_prob: ``log pi``.
    :param entropy: Of the policy, or None.
    :param advantages: After normalization.
    :param returns: Targets of ``V``.
    :param weights: The weights of the parts.
    :param has_probabilities: False for actions with densities, which have no reverse loss.
    :param reverse_loss: A name of :data:`REVERSE_LOSSES`.
    :param z: The finite stand-in for log 0, negative.
    :return: The loss and its parts.
    """
    policy = policy_gradient_loss(advantages, log_prob)
    reverse = (
        a2c_reverse_loss(advantages, log_prob, reverse_loss=reverse_loss, z=z) if has_probabilities else None
    )
    value = mean_squared_error(values, returns)
    negative_entropy = entropy_loss(entropy, log_prob)
    return A2CLosses(
        weights.total(policy, reverse, negative_entropy, value), policy, reverse, value, negative_entropy
    )


def ppo_losses(
    values: th.Tensor,
    log_prob: th.Tensor,
    entropy: th.Tensor | None,
    *,
    old_values: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    returns: th.Tensor,
    clip_range: Coefficient,
    clip_range_vf: Coefficient | None = None,
    weights: LossWeights,
    has_probabilities: bool = True,
    reverse_loss: str = "rce",
    z: Coefficient = -1.0,
    importance_weighting: bool = True,
) -> PPOLosses:
    """The loss of SPPO, ``alpha L_policy + beta L_reverse - ent_coef entropy + vf_coef L_value``.

    :param values: ``V`` of the current network, shape ``(..., batch_size)`` like all tensors below.
    :param log_prob: ``log pi``.
    :param entropy: Of the policy, or None.
    :param old_values: ``V`` of the network that collected the rollout.
    :param old_log_prob: ``log pi_old``.
    :param advantages: After normalization.
    :param returns: Targets of ``V``.
    :param clip_range: Clip range of the ratio; a tensor must be float64, the precision of Python's floats.
    :param clip_range_vf: Clip range of ``V`` around ``old_values``; None for no clipping.
    :param weights: The weights of the parts.
    :param has_probabilities: False for actions with densities, which have no reverse loss.
    :param reverse_loss: A name of :data:`REVERSE_LOSSES`.
    :param z: The finite stand-in for log 0, negative.
    :param importance_weighting: Whether the reverse loss is divided by ``pi_old``.
    :return: The loss, its parts and logged figures.
    """
    log_ratio = log_prob - old_log_prob
    ratio = th.exp(log_ratio)
    policy, passes_gradient = clipped_surrogate_loss(advantages, ratio, clip_range)
    reverse = None
    if has_probabilities:
        reverse = ppo_reverse_loss(
            advantages,
            log_prob,
            old_log_prob,
            ratio,
            passes_gradient,
            reverse_loss=reverse_loss,
            z=z,
            importance_weighting=importance_weighting,
        )
    if clip_range_vf is not None:
        # The result depends on the scale of rewards
        values = old_values + _clamp(values - old_values, -clip_range_vf, clip_range_vf)
    value = mean_squared_error(values, returns)
    negative_entropy = entropy_loss(entropy, log_prob)
    with th.no_grad():
        approx_kl = ((ratio - 1) - log_ratio).mean(-1)
        clip_fraction = (th.abs(ratio - 1) > clip_range).float().mean(-1)
    return PPOLosses(
        weights.total(policy, reverse, negative_entropy, value),
        policy,
        reverse,
        value,
        negative_entropy,
        approx_kl,
        clip_fraction,
    )
