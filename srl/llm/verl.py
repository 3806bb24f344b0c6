"""The symmetric loss as a policy loss of verl.

Importing this module registers it as ``srl_sppo``, with the weights of :class:`SymmetricWeights`, if verl is
installed. verl's workers import it with::

    VERL_USE_EXTERNAL_MODULES=srl.llm.verl python -m verl.trainer.main_ppo \\
        actor_rollout_ref.actor.policy_loss.loss_mode=srl_sppo ...

For other weights, call :func:`register` in your own module, and name that module instead.

verl's own loss clips twice (``clip_ratio_c``); this one clips once, as PPO and the published loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch as th

from srl.errors import UserError
from srl.llm.losses import AGGREGATIONS, policy_losses

PolicyLoss = Callable[..., tuple[th.Tensor, dict[str, Any]]]

#: The name that verl's option ``policy_loss.loss_mode`` takes.
NAME = "srl_sppo"


@dataclass(frozen=True)
class SymmetricWeights:
    """The weights of the symmetric loss, see :func:`srl.llm.losses.policy_losses`."""

    alpha: float = 0.5
    beta: float = 1.0
    z: float = -1.0
    reverse_loss: str = "rce"
    importance_weighting: bool = True


def make_policy_loss(weights: SymmetricWeights | None = None) -> PolicyLoss:
    """Make a policy loss with verl's signature.

    :param weights: Weights of its terms; None takes the defaults.
    """
    weights = weights or SymmetricWeights()

    def symmetric_policy_loss(
        old_log_prob: th.Tensor,
        log_prob: th.Tensor,
        advantages: th.Tensor,
        response_mask: th.Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: th.Tensor | None = None,
    ) -> tuple[th.Tensor, dict[str, Any]]:
        """The loss of a micro batch, and its logged figures; every tensor has the shape ``(n, n_tokens)``."""
        mask = response_mask.bool()
        batch_info = getattr(config, "global_batch_info", None) or {}
        token_weight = aggregation_weights(mask, loss_agg_mode, batch_info, dtype=log_prob.dtype)
        if rollout_is_weights is not None:
            token_weight = token_weight * rollout_is_weights
        clip_range = getattr(config, "clip_ratio", 0.2)
        low, high = (getattr(config, f"clip_ratio_{side}", None) for side in ("low", "high"))
        losses = policy_losses(
            *(log_prob, old_log_prob, advantages, mask),
            clip_range=clip_range if low is None else low,
            clip_range_high=clip_range if high is None else high,
            weights=token_weight,
            **asdict(weights),
        )
        return losses.loss, {
            "actor/pg_clipfrac": losses.clip_fraction.item(),
            "actor/ppo_kl": losses.approx_kl.item(),
            "actor/surrogate_loss": losses.surrogate.item(),
        }

    return symmetric_policy_loss


def aggregation_weights(
    mask: th.Tensor, mode: str, batch_info: Mapping[str, Any] | None = None, dtype: th.dtype = th.float32
) -> th.Tensor:
    """The weight of each token's loss in verl's ``agg_loss``.

    :param mask: Which tokens count, boolean, shape ``(n, n_tokens)``.
    :param mode: verl's ``loss_agg_mode``.
    :param batch_info: verl's ``config.global_batch_info`` of the whole batch: ``dp_size``,
        ``batch_num_tokens``, ``global_batch_size``, ``loss_scale_factor``; each may be None.
    :param dtype: The dtype of the result.
    :return: Shape ``(n, n_tokens)``.
    :raises UserError: If the mode is unknown.
    """
    info = {key: value for key, value in (batch_info or {}).items() if value is not None}
    weights = mask.to(dtype)
    lengths = weights.sum(-1, keepdim=True)
    weights = weights * float(info.get("dp_size", 1))
    if mode == "token-sum":
        return weights
    if mode == "token-mean":
        return weights / float(info.get("batch_num_tokens", lengths.sum()))
    if mode not in AGGREGATIONS:
        raise UserError(f"loss_agg_mode={mode!r} is not one of token-sum, {', '.join(AGGREGATIONS)}.")
    weights = weights / float(info.get("global_batch_size", (lengths > 0).sum()))
    if mode == "seq-mean-token-mean":
        return weights / (lengths + 1e-8)
    if mode == "seq-mean-token-sum-norm":
        return weights / float(info.get("loss_scale_factor", mask.shape[-1]))
    return weights


def register(name: str = NAME, weights: SymmetricWeights | None = None) -> PolicyLoss:
    """Register the symmetric loss with verl.

    :param name: The value of ``policy_loss.loss_mode``.
    :param weights: Weights of its terms; None takes the defaults.
    :return: The registered function.
    :raises UserError: If verl is not installed.
    """
    if find_spec("verl") is None:
        raise UserError("verl is not installed: pip install verl")
    from verl.trainer.ppo.core_algos import register_policy_loss

    registered: PolicyLoss = register_policy_loss(name)(make_policy_loss(weights))
    return registered


if find_spec("verl") is not None:
    register()
