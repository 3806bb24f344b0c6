"""Conditions for runs to train together as a population."""

from __future__ import annotations

import json

from srl.config.hyperparams import PPOHyperparams
from srl.config.spec import RunSpec

#: Keys that may differ between members, and hyperparameters that may.
_OF_A_MEMBER = {"algo", "variant", "noise", "seed", "profile", "stacked"}
_NUMBERS = {
    "alpha", "beta", "z", "learning_rate", "ent_coef", "vf_coef", "max_grad_norm", "gamma", "gae_lambda",
    "clip_range", "clip_range_vf", "advantage_flip_prob", "rms_prop_eps",
}  # fmt: skip
#: Options of the loss, which is computed together for members with the same options.
_LOSS = ("reverse_loss", "importance_weighting", "advantage_transform", "normalize_advantage")
#: Arguments of the optimizer that may differ. Others change its state.
_OPTIMIZER_NUMBERS = {"eps", "betas", "alpha", "weight_decay"}


def population_key(spec: RunSpec) -> str | None:
    """The settings that runs must share to train together.

    :return: Equal texts for runs that fit; None for a run that trains alone: with gSDE, bfloat16, a limit on
        the KL divergence, Dict observations, normalized images, separate features extractors, or the user's
        own features extractor or algorithm.
    """
    if spec.algorithm.is_own:
        return None
    hyperparams = spec.hyperparams
    alone = (
        hyperparams.use_sde
        or spec.precision != "float32"
        or hyperparams.policy == "MultiInputPolicy"
        or hyperparams.policy_kwargs.share_features_extractor is False
        or hyperparams.policy_kwargs.features_extractor_class is not None
        or (hyperparams.policy == "CnnPolicy" and hyperparams.normalize is not None)
    )
    if alone or (isinstance(hyperparams, PPOHyperparams) and hyperparams.target_kl is not None):
        return None
    shared = spec.model_dump(mode="json", exclude=_OF_A_MEMBER | {"hyperparams"})
    shared["hyperparams"] = own = hyperparams.model_dump(mode="json", exclude=_NUMBERS | {*_LOSS})
    optimizer = own["policy_kwargs"].pop("optimizer_kwargs") or {}
    shared["optimizer"] = {name: optimizer[name] for name in optimizer.keys() - _OPTIMIZER_NUMBERS}
    shared["family"] = spec.algorithm.family
    return json.dumps(shared, sort_keys=True)


def member_order(spec: RunSpec) -> str:
    """A sort key that makes members of a population with the same loss and optimizer adjacent."""
    hyperparams = spec.hyperparams
    clips_values = getattr(hyperparams, "clip_range_vf", None) is not None
    loss = [getattr(hyperparams, name, None) for name in _LOSS]
    optimizer = hyperparams.policy_kwargs.optimizer_kwargs, getattr(hyperparams, "rms_prop_eps", None)
    return repr((clips_values, *loss, hyperparams.learning_rate, *optimizer))
