"""Which runs can train together, and how many of them at once."""

from __future__ import annotations

import json
from collections.abc import Sequence

from srl.experiment.hyperparams import PPOHyperparams
from srl.experiment.spec import RunSpec

#: What may differ between members: one number each, or what each has to itself.
_OF_A_MEMBER = {"algo", "noise", "seed", "profile", "stacked"}
_NUMBERS = {
    "alpha", "beta", "z", "learning_rate", "ent_coef", "vf_coef", "max_grad_norm", "gamma", "gae_lambda",
    "clip_range", "clip_range_vf", "advantage_flip_prob",
}  # fmt: skip
#: The most members that ``auto`` puts together: beyond that a step gets hardly cheaper, and one process that
#: dies takes many runs with it.
LARGEST = 64


def population_key(spec: RunSpec) -> str | None:
    """What runs must have in common to train together.

    :param spec: A run.
    :return: Equal texts for runs that fit; None for a run that trains alone: with gSDE, a limit on the KL
        divergence, observations in several parts, or separate features extractors.
    """
    hyperparams = spec.hyperparams
    alone = (
        hyperparams.use_sde
        or hyperparams.policy == "MultiInputPolicy"
        or hyperparams.policy_kwargs.share_features_extractor is False
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


def group(specs: Sequence[RunSpec], size: int | None, n_jobs: int) -> list[list[int]]:
    """Put runs together that can train as one population.

    :param specs: The runs.
    :param size: The most members of a population; None fills ``n_jobs`` processes evenly.
    :param n_jobs: How many processes run at once.
    :return: Indices of ``specs``, in the order of the first of each; a run that fits no other is by itself.
    """
    groups: dict[str, list[int]] = {}
    for index, spec in enumerate(specs):
        groups.setdefault(population_key(spec) or f"alone {index}", []).append(index)
    parts = []
    for members in groups.values():
        largest = min(LARGEST, -(-len(members) // n_jobs)) if size is None else size
        n_parts = -(-len(members) // largest)
        # Neighbours in the plan spread over the parts, so that all of a seed advance together
        parts += [members[part::n_parts] for part in range(n_parts)]
    return sorted(parts, key=lambda part: part[0])
