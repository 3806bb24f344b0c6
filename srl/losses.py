"""The losses of SA2C and SPPO as pure functions of tensors.

Byun and Perrault, "Symmetric Reinforcement Learning Loss for Robust Learning on Diverse Tasks and Model
Scales", ICML 2025 (arXiv 2405.17618). Every tensor has shape ``(batch_size,)``; every loss is the mean over
the minibatch, a scalar to be minimised. Notation: ``A`` advantage, ``pi`` the current policy's probability
of the action taken, ``pi_old`` that of the policy that collected the rollout, ``Z < 0`` the finite stand-in
for log 0.

A reverse loss is a function of ``(advantages, weight, weighted_prob, z)`` under a name in
:data:`REVERSE_LOSSES`. ``weight`` is ``w`` and ``weighted_prob`` is ``w * pi``, where ``w`` is 1, or
``1 / pi_old`` where the loss is importance weighted; then ``weighted_prob`` is the ratio ``pi / pi_old``.
Passing the product, not the factors, is what keeps gradients finite: ``1 / pi_old`` overflows float32 once
``log pi_old < -88``, the ratio does not, and only the ratio depends on the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch as th

ReverseLoss = Callable[[th.Tensor, "th.Tensor | float", th.Tensor, float], th.Tensor]

#: Share of the dtype's largest exponent that ``1 / pi_old`` may take, so that its product with advantages
#: and ``Z`` and the sum over a minibatch stay finite: ``exp(62)`` in float32.
_WEIGHT_EXPONENT_SHARE = 0.7


def policy_gradient_loss(advantages: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
    """The policy gradient loss of A2C, ``-mean(A log pi)``.

    :param advantages: Advantages, shape ``(batch_size,)``.
    :param log_prob: Log probabilities of the actions taken, shape ``(batch_size,)``.
    :return: The loss, a scalar.
    """
    return -(advantages * log_prob).mean()


def clipped_surrogate_loss(
    advantages: th.Tensor, ratio: th.Tensor, clip_range: float
) -> tuple[th.Tensor, th.Tensor]:
    """The clipped surrogate loss of PPO, and where it passes a gradient.

    ``-mean(min(A ratio, A clip(ratio, 1 - eps, 1 + eps)))`` (Schulman et al. 2017, equation 7).

    :param advantages: Advantages, shape ``(batch_size,)``.
    :param ratio: ``pi / pi_old``, shape ``(batch_size,)``.
    :param clip_range: ``eps``.
    :return: The loss, a scalar, and a boolean mask of shape ``(batch_size,)``, true where
        ``A ratio <= A clip(ratio)``, which includes every ratio within the clip range.
    """
    unclipped = advantages * ratio
    clipped = advantages * th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    return -th.min(unclipped, clipped).mean(), unclipped.detach() <= clipped.detach()


def inverse_probability(log_prob: th.Tensor) -> th.Tensor:
    """``1 / pi`` from ``log pi``, saturating before it overflows.

    The value saturates at ``exp(0.7 log(largest float))``, ``exp(62)`` in float32. As a weight that carries
    no gradient it shifts the reported loss alone, never a gradient.

    :param log_prob: Log probabilities, shape ``(batch_size,)``.
    :return: Their inverse probabilities, finite, of the same shape, without gradient.
    """
    largest_exponent = _WEIGHT_EXPONENT_SHARE * math.log(th.finfo(log_prob.dtype).max)
    return th.exp(th.clamp(-log_prob.detach(), max=largest_exponent))


def reverse_cross_entropy(
    advantages: th.Tensor, weight: th.Tensor | float, weighted_prob: th.Tensor, z: float
) -> th.Tensor:
    """The reverse cross-entropy loss, ``-mean(A Z w (1 - pi))``.

    :param advantages: Advantages, shape ``(batch_size,)``.
    :param weight: ``w``, shape ``(batch_size,)`` or a number.
    :param weighted_prob: ``w pi``, shape ``(batch_size,)``.
    :param z: The finite stand-in for log 0, negative.
    :return: The loss, a scalar.
    """
    return -(advantages * z * (weight - weighted_prob)).mean()


def mean_absolute_error(
    advantages: th.Tensor, weight: th.Tensor | float, weighted_prob: th.Tensor, z: float
) -> th.Tensor:
    """The mean absolute error loss, ``mean(A w (1 - 2 pi))``; ``z`` has no part in it.

    :param advantages: Advantages, shape ``(batch_size,)``.
    :param weight: ``w``, shape ``(batch_size,)`` or a number.
    :param weighted_prob: ``w pi``, shape ``(batch_size,)``.
    :param z: Not used.
    :return: The loss, a scalar.
    """
    return (advantages * (weight - 2 * weighted_prob)).mean()


#: The reverse losses by the name that the parameter ``reverse_loss`` takes.
REVERSE_LOSSES: dict[str, ReverseLoss] = {"rce": reverse_cross_entropy, "mae": mean_absolute_error}


def a2c_reverse_loss(
    advantages: th.Tensor, log_prob: th.Tensor, *, reverse_loss: str = "rce", z: float = -1.0
) -> th.Tensor:
    """The reverse loss of SA2C: ``-mean(A Z (1 - pi))`` or ``mean(A (1 - 2 pi))``.

    :param advantages: Advantages, shape ``(batch_size,)``.
    :param log_prob: ``log pi``, shape ``(batch_size,)``; for several action dimensions their sum.
    :param reverse_loss: A name of :data:`REVERSE_LOSSES`.
    :param z: The finite stand-in for log 0, negative.
    :return: The loss, a scalar.
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
    z: float = -1.0,
    importance_weighting: bool = True,
) -> th.Tensor:
    """The reverse loss of SPPO: ``-mean(f A Z (1 - pi) / pi_old)`` or ``mean(f A (1 - 2 pi) / pi_old)``.

    ``f`` is 1 where the clipped surrogate passes a gradient, else 0. With importance weighting, as
    published, the gradient is ``-Z`` (for ``mae``: 2) times the clipped surrogate's.

    :param advantages: Advantages, shape ``(batch_size,)``.
    :param log_prob: ``log pi``, shape ``(batch_size,)``.
    :param old_log_prob: ``log pi_old``, shape ``(batch_size,)``.
    :param ratio: ``pi / pi_old``, shape ``(batch_size,)``.
    :param passes_gradient: ``f`` as :func:`clipped_surrogate_loss` returns it, shape ``(batch_size,)``.
    :param reverse_loss: A name of :data:`REVERSE_LOSSES`.
    :param z: The finite stand-in for log 0, negative.
    :param importance_weighting: Whether to divide by ``pi_old``.
    :return: The loss, a scalar, finite with the right gradient wherever the ratio is finite.
    """
    unclipped_advantages = advantages * passes_gradient
    if importance_weighting:
        return REVERSE_LOSSES[reverse_loss](unclipped_advantages, inverse_probability(old_log_prob), ratio, z)
    return REVERSE_LOSSES[reverse_loss](unclipped_advantages, 1.0, th.exp(log_prob), z)
