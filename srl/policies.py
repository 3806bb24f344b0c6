"""SB3's actor-critic policies with the faster action distributions of :mod:`srl.distributions`.

Networks, parameters, initialization and ``state_dict`` are SB3's, so that parameters can be exchanged with
SB3's policies in both directions. MLPs on the CPU sample MultiDiscrete actions in NumPy, see
:mod:`srl.acting`; other actions are bitwise identical to SB3's, unless ``numpy_acting`` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common import policies as sb3
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from srl.acting import NumpyActor, can_act_in_numpy
from srl.distributions import BatchedMultiCategoricalDistribution, without_checks
from srl.errors import UserError
from srl.precision import Precision
from srl.spaces import has_start, subtract_start


class PolicyMixin(sb3.ActorCriticPolicy):
    """Faster distributions, acting in NumPy, and spaces with ``start != 0`` (see :mod:`srl.spaces`)."""

    #: Whether actions are sampled in NumPy if possible; results differ in the last bits.
    numpy_acting: bool
    #: The precision of features extractors; everything after them is in float32.
    precision: Precision = "float32"
    #: Whether images have the channels-last memory format when gradients are computed. It makes convolutions
    #: on the CPU faster; results differ in the last bits.
    channels_last: bool = False
    _actor: NumpyActor | None = None
    #: Addresses of the parameters that the actor reads.
    _actor_addresses: list[int] | None = None
    _actor_is_checked: bool = False

    def _build(self, lr_schedule: Schedule) -> None:
        self._has_start = has_start(self.observation_space, self.action_space)
        self.action_dist = without_checks(self.action_dist, self.action_space)
        self.numpy_acting = isinstance(self.action_dist, BatchedMultiCategoricalDistribution)
        # Fused Adam takes a third of the time; results differ in the last bit. It is used with the batched
        # distribution, whose random draws differ from SB3's anyway; otherwise results are identical to SB3's.
        if (
            isinstance(self.action_dist, BatchedMultiCategoricalDistribution)
            and self.optimizer_class is th.optim.Adam
            and not self.optimizer_kwargs.keys() & {"foreach", "fused", "capturable", "differentiable"}
        ):
            self.optimizer_kwargs = {**self.optimizer_kwargs, "fused": True}
        super()._build(lr_schedule)

    def _prepared(self, obs: PyTorchObs) -> PyTorchObs:
        """Observations for SB3's preprocessing, with values from 0."""
        if self._has_start:
            obs = subtract_start(obs, self.observation_space)
        if self.channels_last and th.is_grad_enabled():
            return (
                {key: _channels_last(part) for key, part in obs.items()}
                if isinstance(obs, dict)
                else _channels_last(obs)
            )
        return obs

    # SB3's policy extracts features in these three methods
    def extract_features(  # type: ignore[override]
        self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None
    ) -> th.Tensor | tuple[th.Tensor, th.Tensor]:
        if self.precision == "float32":
            return super().extract_features(self._prepared(obs), features_extractor)
        # Parameters change at each step, so that caching their casts is useless
        with th.autocast(self.device.type, th.bfloat16, cache_enabled=False):
            features = super().extract_features(self._prepared(obs), features_extractor)
        if isinstance(features, tuple):
            return features[0].float(), features[1].float()
        return features.float()

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        if self.precision == "float32":
            return super().get_distribution(self._prepared(obs))
        features = self.extract_features(obs, self.pi_features_extractor)
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(features))  # type: ignore[arg-type]

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Sample actions, as SB3's policy does.

        :param obs: Observations, shape ``(n, *observation_shape)``.
        :param deterministic: Whether to take the most probable actions.
        :return: Actions of shape ``(n, *action_shape)``, values of ``(n, 1)`` and log probabilities of
            ``(n,)``.
        """
        actor = None if deterministic else self._numpy_actor()
        if actor is None:
            return super().forward(obs, deterministic)
        rows = obs.numpy()[None]
        found = actor.act(rows, actor.draws(len(obs))[None])
        actions, values, log_probs = (th.from_numpy(each[0]) for each in found)
        return actions.reshape(-1, *self.action_space.shape), values[:, None], log_probs  # type: ignore[misc]

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """State values, as in SB3's policy.

        :param obs: Observations, shape ``(n, *observation_shape)``.
        :return: Shape ``(n, 1)``.
        """
        actor = self._numpy_actor()
        if self.precision != "float32":
            features = self.extract_features(obs, self.vf_features_extractor)
            return self.value_net(self.mlp_extractor.forward_critic(features))  # type: ignore[arg-type,no-any-return]
        if actor is None or not isinstance(obs, th.Tensor):
            return super().predict_values(self._prepared(obs))
        return th.from_numpy(actor.values(obs.numpy()[None])[0])[:, None]

    def _numpy_actor(self) -> NumpyActor | None:
        if not self.numpy_acting or th.is_grad_enabled():
            return None
        if not self._actor_is_checked:
            self._actor_is_checked = True
            # The memory of parameters may change, and a copy of the policy has its own parameters
            addresses = [parameter.data_ptr() for parameter in self.parameters()]
            if self._actor_addresses != addresses:
                self._actor_addresses = addresses
                self._actor = None
                if can_act_in_numpy(self):
                    own = {name: parameter.data[None] for name, parameter in self.named_parameters()}
                    self._actor = NumpyActor(self, own)
        return self._actor

    def set_training_mode(self, mode: bool) -> None:
        """Switch between training and evaluation mode, as in SB3, which does so before each rollout."""
        super().set_training_mode(mode)
        self._actor_is_checked = False

    def _apply(self, fn: Callable[[th.Tensor], th.Tensor], recurse: bool = True) -> Any:
        self._actor_is_checked = False  # parameters move to another device or type
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        # A copy has its own parameters, and an actor cannot be pickled
        actor = ("_actor", "_actor_addresses", "_actor_is_checked")
        return {name: value for name, value in vars(self).items() if name not in actor}

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        try:
            return super().make_features_extractor()
        except RuntimeError as error:
            if "Kernel size can't be greater than actual input size" not in str(error):
                raise
            raise UserError(
                f"The images of the observation space {self.observation_space} are too small for SB3's "
                "NatureCNN, which needs at least 36 x 36 pixels, and channels first if they are not of type "
                "uint8. Resize them, for example with gymnasium.wrappers.ResizeObservation, or flatten them "
                "and use MlpPolicy."
            ) from error


def _channels_last(obs: th.Tensor) -> th.Tensor:
    return obs.contiguous(memory_format=th.channels_last) if obs.dim() == 4 else obs


class ActorCriticPolicy(PolicyMixin, sb3.ActorCriticPolicy):
    """SB3's ``ActorCriticPolicy`` (``"MlpPolicy"``), same arguments."""


class ActorCriticCnnPolicy(PolicyMixin, sb3.ActorCriticCnnPolicy):
    """SB3's ``ActorCriticCnnPolicy`` (``"CnnPolicy"``), same arguments."""


class MultiInputActorCriticPolicy(PolicyMixin, sb3.MultiInputActorCriticPolicy):
    """SB3's ``MultiInputActorCriticPolicy`` (``"MultiInputPolicy"``), same arguments."""


#: The policies by the names that an algorithm's parameter ``policy`` takes.
POLICY_ALIASES: dict[str, type[sb3.BasePolicy]] = {
    "MlpPolicy": ActorCriticPolicy,
    "CnnPolicy": ActorCriticCnnPolicy,
    "MultiInputPolicy": MultiInputActorCriticPolicy,
}
