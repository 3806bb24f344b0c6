"""Preparation of a minibatch's advantages for the loss: pure functions of tensors.

The order is flip noise, normalization, statistics, transform (:func:`prepare_advantages`). Every tensor has
shape ``(..., batch_size)``, where leading dimensions are the members of a population, each with its own
minibatch; no function waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch as th

#: Number of levels of the ``bins`` transform on each side of zero.
N_ADVANTAGE_BINS = 5


class PreparedAdvantages(NamedTuple):
    """A minibatch's advantages, ready for the loss, and statistics of their preparation."""

    #: Shape ``(..., batch_size)``.
    advantages: th.Tensor
    #: Number of advantages that changed sign by noise and normalization, shape ``(...)``.
    n_sign_changes: th.Tensor
    #: The largest absolute advantage before the transform, shape ``(...)``.
    abs_max: th.Tensor


def flip_advantages(advantages: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """Replace ``A`` by ``-A`` where the mask is true.

    :param advantages: Shape ``(..., batch_size)``.
    :param mask: Boolean, shape ``(..., batch_size)``.
    :return: Shape ``(..., batch_size)``.
    """
    return th.where(mask, -advantages, advantages)


def normalize_advantages(advantages: th.Tensor) -> th.Tensor:
    """``(A - mean) / (std + 1e-8)`` with the unbiased standard deviation, as in SB3.

    A minibatch of one, whose standard deviation is undefined, is not changed.

    :param advantages: Shape ``(..., batch_size)``.
    :return: Shape ``(..., batch_size)``.
    """
    if advantages.shape[-1] == 1:
        return advantages
    mean, std = advantages.mean(-1, keepdim=True), advantages.std(-1, keepdim=True)
    return (advantages - mean) / (std + 1e-8)


def to_bins(advantages: th.Tensor) -> th.Tensor:
    """Round advantages away from zero to fifths of the minibatch's extremes.

    With ``m = max(A)``, a positive ``A`` in ``((k - 1) m / 5, k m / 5]`` becomes ``k m / 5``, k = 1..5;
    negative ones likewise with ``min(A)``; 0 is not changed.

    :param advantages: Shape ``(..., batch_size)``.
    :return: Shape ``(..., batch_size)``.
    """
    levels = th.arange(1, N_ADVANTAGE_BINS + 1, device=advantages.device, dtype=advantages.dtype)

    def round_up(magnitudes: th.Tensor) -> th.Tensor:
        # The last edge is the maximum itself: 5 m / 5 may differ from m by a rounding error
        largest = magnitudes.amax(-1, keepdim=True)
        edges = th.cat([levels[:-1] * largest / N_ADVANTAGE_BINS, largest], dim=-1)
        levels_up = th.searchsorted(edges, magnitudes.contiguous()).clamp(max=N_ADVANTAGE_BINS - 1)
        return edges.gather(-1, levels_up)

    return round_up(advantages.clamp(min=0)) * (advantages > 0) - round_up((-advantages).clamp(min=0)) * (
        advantages < 0
    )


#: The advantage transforms by the values of the parameter ``advantage_transform``.
ADVANTAGE_TRANSFORMS: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "none": lambda advantages: advantages,
    "sign": th.sign,
    "bins": to_bins,
}


def prepare_advantages(
    advantages: th.Tensor,
    *,
    flip_mask: th.Tensor | None = None,
    normalize: bool = False,
    transform: str = "none",
) -> PreparedAdvantages:
    """Flip, normalize and transform a minibatch's advantages, and count sign changes.

    :param advantages: The rollout buffer's advantages, shape ``(..., batch_size)``.
    :param flip_mask: Mask of the flipped signs, boolean, shape ``(..., batch_size)``; None for no flips.
    :param normalize: Whether to normalize.
    :param transform: A name of :data:`ADVANTAGE_TRANSFORMS`.
    :return: The advantages for the loss, and the statistics.
    """
    sign_before = th.sign(advantages)
    if flip_mask is not None:
        advantages = flip_advantages(advantages, flip_mask)
    if normalize:
        advantages = normalize_advantages(advantages)
    return PreparedAdvantages(
        advantages=ADVANTAGE_TRANSFORMS[transform](advantages),
        n_sign_changes=(sign_before != th.sign(advantages)).sum(-1),
        abs_max=advantages.abs().amax(-1),
    )
