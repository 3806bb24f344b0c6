"""SB3's actor-critic policies with the faster action distributions of :mod:`srl.distributions`.

Networks, parameters, initialisation and ``state_dict`` are SB3's, so that parameters can be exchanged with
SB3's policies in both directions.
"""

from __future__ import annotations

import torch as th
from stable_baselines3.common import policies as sb3
from stable_baselines3.common.type_aliases import Schedule

from srl.distributions import BatchedMultiCategoricalDistribution, without_checks


class _UncheckedDistributionMixin(sb3.ActorCriticPolicy):
    def _build(self, lr_schedule: Schedule) -> None:
        self.action_dist = without_checks(self.action_dist)
        # Fused Adam takes a third of the time and differs in the last bit. Where the batched distribution's
        # random draws differ from SB3's anyway that costs nothing; elsewhere results stay SB3's to the bit.
        if (
            isinstance(self.action_dist, BatchedMultiCategoricalDistribution)
            and self.optimizer_class is th.optim.Adam
            and not self.optimizer_kwargs.keys() & {"foreach", "fused", "capturable", "differentiable"}
        ):
            self.optimizer_kwargs = {**self.optimizer_kwargs, "fused": True}
        super()._build(lr_schedule)


class ActorCriticPolicy(_UncheckedDistributionMixin, sb3.ActorCriticPolicy):
    """SB3's ``ActorCriticPolicy`` (``"MlpPolicy"``), same arguments."""


class ActorCriticCnnPolicy(_UncheckedDistributionMixin, sb3.ActorCriticCnnPolicy):
    """SB3's ``ActorCriticCnnPolicy`` (``"CnnPolicy"``), same arguments."""


class MultiInputActorCriticPolicy(_UncheckedDistributionMixin, sb3.MultiInputActorCriticPolicy):
    """SB3's ``MultiInputActorCriticPolicy`` (``"MultiInputPolicy"``), same arguments."""


#: The policies by the names that an algorithm's parameter ``policy`` takes.
POLICY_ALIASES: dict[str, type[sb3.BasePolicy]] = {
    "MlpPolicy": ActorCriticPolicy,
    "CnnPolicy": ActorCriticCnnPolicy,
    "MultiInputPolicy": MultiInputActorCriticPolicy,
}
