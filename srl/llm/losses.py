"""The losses of SPPO on the tokens of language models.

A token is an action; its state is the prompt and the tokens before it. Every tensor has the shape
``(batch_size, n_tokens)``, where the tokens are those of responses. ``mask`` is true on tokens that count and
false on padding. Values at padding are never used: log probabilities there may be arbitrary, even NaN.

The policy's terms come from :mod:`srl.losses`, which has the equations and their numerics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch as th

from srl.advantages import normalize_advantages
from srl.losses import REVERSE_LOSSES, clipped_surrogate_loss, mean_squared_error, ppo_reverse_loss

#: Aggregations of the losses of tokens: verl's names, and the corresponding ``loss_type`` of TRL's
#: GRPOTrainer. ``seq-mean-token-sum-norm`` divides by the same number of tokens for all sequences.
AGGREGATIONS = {
    "token-mean": "bnpo",
    "seq-mean-token-sum": None,
    "seq-mean-token-mean": "grpo",
    "seq-mean-token-sum-norm": "dr_grpo",
}


class PolicyLosses(NamedTuple):
    """The policy's part of a minibatch's loss, its terms, and logged figures; scalars."""

    #: ``alpha L_policy + beta L_reverse``.
    loss: th.Tensor
    policy_loss: th.Tensor
    reverse_loss: th.Tensor
    #: The loss without its constant part, which is of the order of ``1 / pi_old``.
    surrogate: th.Tensor
    #: Estimate of the KL divergence from the old policy, http://joschu.net/blog/kl-approx.html
    approx_kl: th.Tensor
    #: Share of tokens whose ratio is outside the clip range.
    clip_fraction: th.Tensor


def token_weights(
    mask: th.Tensor, aggregation: str = "token-mean", norm: float | None = None, dtype: th.dtype = th.float32
) -> th.Tensor:
    """The weight of each token's loss in the sum.

    :param mask: Which tokens count, boolean, shape ``(batch_size, n_tokens)``.
    :param aggregation: A name of :data:`AGGREGATIONS`.
    :param norm: The divisor of ``seq-mean-token-sum-norm``; None takes ``n_tokens``.
    :param dtype: The dtype of the result.
    :return: Weights, 0 on padding, shape ``(batch_size, n_tokens)``.
    :raises ValueError: If the name is unknown.
    """
    n_rows, n_columns = mask.shape
    weights = mask.to(dtype)
    lengths = weights.sum(-1, keepdim=True)
    if aggregation == "token-mean":
        return weights / lengths.sum().clamp(min=1)
    # As in verl and TRL, a sequence without tokens adds nothing; verl does not count it
    if aggregation == "seq-mean-token-mean":
        return weights / lengths.clamp(min=1) / n_rows
    if aggregation == "seq-mean-token-sum":
        return weights / n_rows
    if aggregation == "seq-mean-token-sum-norm":
        return weights / n_rows / (n_columns if norm is None else norm)
    raise ValueError(f"aggregation={aggregation!r} is not one of {', '.join(AGGREGATIONS)}.")


def policy_losses(
    log_prob: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    mask: th.Tensor,
    *,
    clip_range: float = 0.2,
    clip_range_high: float | None = None,
    alpha: float = 0.5,
    beta: float = 1.0,
    z: float = -1.0,
    reverse_loss: str = "rce",
    importance_weighting: bool = True,
    weights: th.Tensor | None = None,
) -> PolicyLosses:
    """The clipped surrogate loss and the reverse loss of SPPO, over the tokens that count.

    :param log_prob: ``log pi`` of the tokens, shape ``(batch_size, n_tokens)``.
    :param old_log_prob: ``log pi_old``, same shape, without gradient.
    :param advantages: Advantages after normalization, same shape.
    :param mask: Which tokens count, boolean, same shape.
    :param clip_range: Clip range of the ratio.
    :param clip_range_high: The same above 1; None for ``clip_range`` on both sides.
    :param alpha: Weight of the clipped surrogate loss.
    :param beta: Weight of the reverse loss.
    :param z: The finite stand-in for log 0, negative.
    :param reverse_loss: A name of :data:`srl.losses.REVERSE_LOSSES`.
    :param importance_weighting: Whether the reverse loss is divided by ``pi_old``.
    :param weights: Weights of the tokens, same shape, see :func:`token_weights`; None for their mean.
    :return: The loss and its terms, finite and with the correct gradient if the ratio of each token that
        counts is finite.
    """
    # One row for each token: the losses of `srl.losses` average over the last dimension
    new, old = log_prob[mask].unsqueeze(-1), old_log_prob[mask].unsqueeze(-1)
    chosen = advantages[mask].unsqueeze(-1)
    token_weight = (token_weights(mask, dtype=new.dtype) if weights is None else weights)[mask]
    log_ratio = new - old
    ratio = th.exp(log_ratio)
    policy, passes = clipped_surrogate_loss(chosen, ratio, clip_range, clip_range_high)
    reverse = ppo_reverse_loss(
        chosen,
        new,
        old,
        ratio,
        passes,
        reverse_loss=reverse_loss,
        z=z,
        importance_weighting=importance_weighting,
    )
    weighted_prob = ratio if importance_weighting else th.exp(new)
    varying = REVERSE_LOSSES[reverse_loss](chosen * passes, 0.0, weighted_prob, z)
    policy, reverse, varying = ((token_weight * term).sum() for term in (policy, reverse, varying))
    # With beta=0 it is bitwise identical to the loss of PPO
    loss = alpha * policy if beta == 0 else alpha * policy + beta * reverse
    high = clip_range if clip_range_high is None else clip_range_high
    with th.no_grad():
        outside = (ratio < 1 - clip_range) | (ratio > 1 + high)
        approx_kl = ((ratio - 1) - log_ratio).mean()
        clip_fraction = outside.to(ratio.dtype).mean()
    surrogate = alpha * policy + beta * varying
    return PolicyLosses(loss, policy, reverse, surrogate, approx_kl, clip_fraction)


def advantage_weights(
    old_log_prob: th.Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 1.0,
    z: float = -1.0,
    reverse_loss: str = "rce",
    importance_weighting: bool = True,
) -> th.Tensor:
    """Weights of advantages with which the loss of PPO has the gradient of the symmetric loss.

    The reverse loss is linear in ``pi = ratio pi_old``, and ``pi_old`` has no gradient: where the surrogate
    passes a gradient, ``alpha L_policy + beta L_reverse`` differs by a constant from ``L_policy`` with
    advantages ``A (alpha + beta s)`` if it is importance weighted, and ``A (alpha + beta s pi_old)`` if not,
    where ``s = -z`` (``mae``: 2). The weights are not negative, so that clipping affects the same tokens.
    With clipping other than PPO's, this does not hold.

    :param old_log_prob: ``log pi_old`` of tokens, of any shape; arbitrary on padding.
    :return: The weights, without gradient, same shape. The other parameters are those of
        :func:`policy_losses`.
    """
    # The slope of the reverse loss of one token with advantage 1 in the probability
    one, none = old_log_prob.new_ones(1), old_log_prob.new_zeros(1)
    reverse = REVERSE_LOSSES[reverse_loss]
    slope = reverse(one, 0.0, none, z) - reverse(one, 0.0, one, z)
    weighted = th.ones_like(old_log_prob) if importance_weighting else th.exp(old_log_prob)
    return (alpha + beta * slope * weighted).detach()


def value_loss(
    values: th.Tensor,
    old_values: th.Tensor,
    returns: th.Tensor,
    mask: th.Tensor,
    *,
    clip_range: float | None = 0.2,
) -> th.Tensor:
    """The critic's loss, ``0.5 mean(max((V - R)^2, (V_clipped - R)^2))`` over the tokens that count.

    As in OpenAI's PPO2 and TRIL; Stable-Baselines3 takes the clipped square alone, without the half.

    :param values: ``V``, shape ``(batch_size, n_tokens)``.
    :param old_values: ``V`` of the critic at the time of the rollout, same shape.
    :param returns: ``R``, same shape.
    :param mask: Which tokens count, boolean, same shape.
    :param clip_range: Clip range of ``V`` around ``old_values``; None for no clipping.
    :return: The loss, a scalar.
    """
    new, old, target = (tensor[mask].unsqueeze(-1) for tensor in (values, old_values, returns))
    errors = mean_squared_error(new, target)
    if clip_range is not None:
        clipped = old + th.clamp(new - old, -clip_range, clip_range)
        errors = th.max(errors, mean_squared_error(clipped, target))
    return 0.5 * errors.mean()


def kl_estimate(log_prob: th.Tensor, ref_log_prob: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """The estimate k1 of the KL divergence from the reference model, ``log pi - log pi_ref`` of each token.

    :param log_prob: ``log pi`` of the tokens that the policy drew, shape ``(batch_size, n_tokens)``.
    :param ref_log_prob: ``log pi_ref`` of these, same shape.
    :param mask: Which tokens count, boolean, same shape.
    :return: The estimate, 0 on padding, same shape.
    """
    return th.where(mask, log_prob - ref_log_prob, 0.0)


def normalize_masked(advantages: th.Tensor, mask: th.Tensor, *, masked: bool = True) -> th.Tensor:
    """``(A - mean) / (std + 1e-8)`` over a minibatch's tokens.

    :param advantages: Shape ``(batch_size, n_tokens)``.
    :param mask: Which tokens count, boolean, same shape.
    :param masked: Whether the mean and the standard deviation exclude padding. False is the authors' form, in
        which padding counts as zeros.
    :return: Same shape, 0 on padding.
    """
    result = th.zeros_like(advantages)
    if masked:
        result[mask] = normalize_advantages(advantages[mask])
        return result
    padded = th.where(mask, advantages, 0.0)
    result[mask] = normalize_advantages(padded.flatten()).view_as(padded)[mask]
    return result


def generalized_advantages(
    rewards: th.Tensor, values: th.Tensor, mask: th.Tensor, *, gamma: float, gae_lambda: float
) -> tuple[th.Tensor, th.Tensor]:
    """Generalized advantage estimation over the tokens of responses (Schulman et al., arXiv 1506.02438).

    :param rewards: Reward of each token, shape ``(batch_size, n_tokens)``.
    :param values: ``V`` before each token, same shape.
    :param mask: Which tokens count, boolean, same shape; padding follows on the right. The episode ends
        after the last token that counts.
    :param gamma: Discount factor.
    :param gae_lambda: The estimator's lambda.
    :return: Advantages, and returns for the critic; 0 on padding, same shape.
    """
    rewards, values = th.where(mask, rewards, 0.0), th.where(mask, values, 0.0)
    advantages = th.zeros_like(rewards)
    last = th.zeros_like(rewards[:, 0])
    following = th.zeros_like(last)
    for t in reversed(range(rewards.shape[1])):
        last = rewards[:, t] + gamma * following - values[:, t] + gamma * gae_lambda * last
        advantages[:, t] = last
        following = values[:, t]
    return advantages, advantages + values
