"""SPPO as PPO with other coefficients: docs/equivalence.md has the derivation."""

from __future__ import annotations

from typing import Any

import torch as th

from srl.errors import UserError
from srl.losses import REVERSE_FACTORS
from srl.symmetric import check_symmetric_loss

#: Parameters of the symmetric loss with SPPO's defaults.
_DEFAULTS = {
    "alpha": 0.5,
    "beta": 1.0,
    "z": -1.0,
    "reverse_loss": "rce",
    "importance_weighting": True,
    "advantage_transform": "none",
    "advantage_flip_prob": 0.0,
}
#: Optimizers whose step does not change when every gradient is multiplied by a number, and ``eps`` with it.
#: RMSpropTFLike is not among them: its average of squares starts at 1.
_SCALE_FREE: tuple[type[th.optim.Optimizer], ...] = (th.optim.Adam, th.optim.AdamW, th.optim.RMSprop)


def policy_coefficient(
    alpha: float = 0.5, beta: float = 1.0, z: float = -1.0, reverse_loss: str = "rce"
) -> float:
    """Return the factor between the policy gradients of SPPO and PPO.

    :param alpha: Weight of the policy loss.
    :param beta: Weight of the reverse loss.
    :param z: The finite stand-in for log 0, negative.
    :param reverse_loss: A name of :data:`~srl.losses.REVERSE_FACTORS`.
    :return: ``alpha + beta |z|`` for ``"rce"``, ``alpha + 2 beta`` for ``"mae"``.
    :raises UserError: For a parameter out of range, or a loss that is not a multiple of the surrogate.
    """
    check_symmetric_loss(alpha=alpha, beta=beta, z=z, reverse_loss=reverse_loss)
    if reverse_loss not in REVERSE_FACTORS:
        raise UserError(
            f"reverse_loss={reverse_loss!r}: srl.losses.REVERSE_FACTORS has no factor for this loss."
        )
    return alpha + beta * REVERSE_FACTORS[reverse_loss](z)


def equivalent_ppo_kwargs(**sppo_kwargs: Any) -> dict[str, Any]:
    """Return arguments with which SB3's PPO takes the same steps as SPPO with the given ones.

    With ``c`` from :func:`policy_coefficient`, these are ``vf_coef / c``, ``ent_coef / c``,
    ``max_grad_norm / c`` and the optimizer's ``eps / c``; all others are unchanged. The steps are equal up to
    rounding and the 1e-6 that PyTorch's gradient clipping adds to the norm.

    :param sppo_kwargs: Keyword arguments of SPPO's constructor; missing ones have SPPO's defaults.
    :return: Keyword arguments for ``stable_baselines3.PPO``.
    :raises UserError: If no PPO is equivalent: without importance weighting, with transformed or flipped
        advantages, with ``alpha = beta = 0``, in bfloat16, or with an optimizer that depends on the
        gradient's scale.

    Example::

        model = PPO("MlpPolicy", env, **equivalent_ppo_kwargs(beta=20.0))
    """
    loss = {name: sppo_kwargs.get(name, default) for name, default in _DEFAULTS.items()}
    for name in ("importance_weighting", "advantage_transform", "advantage_flip_prob"):
        if loss[name] != _DEFAULTS[name]:
            raise UserError(
                f"{name}={loss[name]!r}: no PPO is equivalent, since this is not a rescaling of its gradient."
            )
    if sppo_kwargs.get("precision", "float32") != "float32":
        raise UserError(f"precision={sppo_kwargs['precision']!r}: PPO computes in float32 only.")
    c = policy_coefficient(loss["alpha"], loss["beta"], loss["z"], loss["reverse_loss"])
    if c == 0:
        raise UserError("alpha=0 and beta=0: no PPO is equivalent, since there is no policy loss.")
    policy_kwargs = dict(sppo_kwargs.get("policy_kwargs") or {})
    optimizer = policy_kwargs.get("optimizer_class", th.optim.Adam)
    if optimizer not in _SCALE_FREE:
        known = ", ".join(known.__name__ for known in _SCALE_FREE)
        raise UserError(
            f"optimizer_class={optimizer.__name__}: its step depends on the scale of the gradient. "
            f"The equivalence holds for {known}."
        )
    optimizer_kwargs = policy_kwargs.get("optimizer_kwargs")
    # The default of SB3's policies for Adam without arguments
    default_eps = 1e-5 if optimizer_kwargs is None and optimizer is th.optim.Adam else 1e-8
    optimizer_kwargs = dict(optimizer_kwargs or {})
    optimizer_kwargs["eps"] = optimizer_kwargs.get("eps", default_eps) / c
    is_decoupled = optimizer is th.optim.AdamW or optimizer_kwargs.get("decoupled_weight_decay")
    if optimizer_kwargs.get("weight_decay") and not is_decoupled:
        # It is added to the gradient
        optimizer_kwargs["weight_decay"] /= c
    scaled = {
        name: sppo_kwargs.get(name, default) / c
        for name, default in (("vf_coef", 0.5), ("ent_coef", 0.0), ("max_grad_norm", 0.5))
    }
    own = (*_DEFAULTS, "compile_update", "precision")
    others = {name: value for name, value in sppo_kwargs.items() if name not in own}
    return {**others, **scaled, "policy_kwargs": {**policy_kwargs, "optimizer_kwargs": optimizer_kwargs}}
