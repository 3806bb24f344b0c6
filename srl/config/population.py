"""Which runs can train together as a population."""

from __future__ import annotations

import json

from srl.config.hyperparams import PPOHyperparams
from srl.config.spec import RunSpec

#: What may differ between members: what each has to itself, and numbers.
_OF_A_MEMBER = {"algo", "variant", "noise", "seed", "profile", "stacked"}
_NUMBERS = {
    "alpha", "beta", "z", "learning_rate", "ent_coef", "vf_coef", "max_grad_norm", "gamma", "gae_lambda",
    "clip_range", "clip_range_vf", "advantage_flip_prob",
}  # fmt: skip


def population_key(spec: RunSpec) -> str | None:
    """What runs must have in common to train together.

    :param spec: A run.
    :return: Equal texts for runs that fit; None for a run that trains alone: with gSDE, a limit on the KL
        divergence, observations in several parts, normalized images, separate features extractors or one of
        the user's own.
    """
    hyperparams = spec.hyperparams
    alone = (
        hyperparams.use_sde
        or hyperparams.policy == "MultiInputPolicy"
        or hyperparams.policy_kwargs.share_features_extractor is False
        or hyperparams.policy_kwargs.features_extractor_class is not None
        or (hyperparams.policy == "CnnPolicy" and hyperparams.normalize is not None)
    )
    has_clip_range_vf = False
    if isinstance(hyperparams, PPOHyperparams):
        alone = alone or hyperparams.target_kl is not None
        has_clip_range_vf = hyperparams.clip_range_vf is not None
    if alone:
        return None
    shared = spec.model_dump(mode="json", exclude=_OF_A_MEMBER | {"hyperparams"})
    shared["hyperparams"] = hyperparams.model_dump(mode="json", exclude=_NUMBERS)
    shared["family"] = spec.algorithm.family
    shared["has_clip_range_vf"] = has_clip_range_vf
    return json.dumps(shared, sort_keys=True)
