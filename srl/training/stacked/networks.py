"""Many policies of one shape as one stacked network.

Each parameter of shape ``(...)`` becomes one of shape ``(n_members, ...)``, and the members' own parameters
become views of it: training the stack trains the policies, which save, load and predict as usual. ``S`` is
the number of members and ``n`` the number of rows of each.

On CPU a batched matrix product is bitwise identical to each member's own ``nn.Linear``, except for a few
shapes that PyTorch computes with other kernels; these and convolutions are computed member by member. A
member's trajectory therefore does not depend on the other members.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import nn
from torch.distributions import Normal

from srl.acting import NumpyActor, can_act_in_numpy
from srl.distributions import (
    BatchedMultiCategoricalDistribution,
    UncheckedBernoulliDistribution,
    UncheckedCategoricalDistribution,
    UncheckedDiagGaussianDistribution,
)
from srl.errors import UserError
from srl.policies import PolicyMixin
from srl.spaces import subtract_start
from srl.training.stacked.layers import (
    ELEMENTWISE,
    Layer,
    StackedLinear,
    apply_layers,
    stacked_layers,
    weight_and_bias,
)

Distribution = (
    BatchedMultiCategoricalDistribution
    | UncheckedBernoulliDistribution
    | UncheckedCategoricalDistribution
    | UncheckedDiagGaussianDistribution
)


class StackedPolicy:
    """Policies of one shape, evaluated together.

    :param policies: The members' policies; their parameters become views of the stack's.
    :raises UserError: If they have a part that cannot be stacked.
    """

    def __init__(self, policies: Sequence[ActorCriticPolicy]):
        first = policies[0]
        self._check(first)
        self._policies = list(policies)
        space = first.observation_space
        self._flat = type(space) is spaces.Box and len(space.shape) == 1
        self._policy = first
        self._n_outputs: int = first.action_net.out_features  # type: ignore[assignment]
        #: Stacked parameters by their names in the policy's ``state_dict``, each of shape ``(S, ...)``.
        self.parameters: dict[str, th.Tensor] = {}
        twins = _twins(first)
        pairs: dict[str, th.Tensor] = {}
        all_parameters = [dict(policy.named_parameters()) for policy in policies]
        for name, parameter in first.named_parameters():
            if name in self.parameters:
                continue
            names = [name, twins[name]] if name in twins else [name]
            # A layer of the policy and its twin of the value function share one tensor, see `act`
            storage = th.stack([th.stack([own[part].data for own in all_parameters]) for part in names])
            for part, stacked in zip(names, storage, strict=True):
                for own, view in zip(all_parameters, stacked, strict=True):
                    own[part].data = view
                self.parameters[part] = stacked.requires_grad_(parameter.requires_grad)
            if name in twins:
                pairs[name] = storage.detach().flatten(0, 1)
        mlp, extractor = first.mlp_extractor, first.features_extractor
        self._features: list[Layer] = []
        if isinstance(extractor, NatureCNN):
            for part in ("cnn", "linear"):
                name = f"features_extractor.{part}"
                self._features += stacked_layers(getattr(extractor, part), name, self.parameters)
        self._policy_layers = stacked_layers(mlp.policy_net, "mlp_extractor.policy_net", self.parameters)
        self._value_layers = stacked_layers(mlp.value_net, "mlp_extractor.value_net", self.parameters)
        self._twin_layers = (
            stacked_layers(mlp.policy_net, "mlp_extractor.policy_net", pairs) if pairs else None
        )
        self._action_net = StackedLinear(*weight_and_bias(self.parameters, "action_net"))
        self._value_net = StackedLinear(*weight_and_bias(self.parameters, "value_net"))
        # In the order of the policy's parameters, which is that of its optimizer
        self.parameters = {name: self.parameters[name] for name, _ in first.named_parameters()}

    @staticmethod
    def _check(policy: ActorCriticPolicy) -> None:
        parts = [*policy.mlp_extractor.modules(), *policy.features_extractor.modules()]
        known = (
            *ELEMENTWISE, nn.Linear, nn.Conv2d, nn.Flatten, nn.Sequential,
            type(policy.mlp_extractor), FlattenExtractor, NatureCNN,
        )  # fmt: skip
        unknown = [type(part).__name__ for part in parts if not isinstance(part, known)]
        if not isinstance(policy.action_dist, Distribution):
            unknown.append(type(policy.action_dist).__name__)
        if not policy.share_features_extractor:
            unknown.append("separate features extractors")
        if unknown:
            raise UserError(
                f"A population cannot stack {unknown[0]}. Train these runs with --population off."
            )

    def numpy_actor(self) -> NumpyActor | None:
        """An actor that samples the members' actions in NumPy, if they act in NumPy alone too."""
        policy = self._policy
        if not (isinstance(policy, PolicyMixin) and policy.numpy_acting and can_act_in_numpy(policy)):
            return None
        return NumpyActor(policy, self.parameters)

    def release(self) -> None:
        """Give the members their own copies of the parameters, so that files do not contain the stack."""
        for policy in self._policies:
            for parameter in policy.parameters():
                parameter.data = parameter.data.clone()

    @contextmanager
    def released(self, member: int) -> Iterator[None]:
        """A context in which one member has its own copies of the parameters."""
        parameters = list(self._policies[member].parameters())
        views = [parameter.data for parameter in parameters]
        for parameter in parameters:
            parameter.data = parameter.data.clone()
        try:
            yield
        finally:
            for parameter, view in zip(parameters, views, strict=True):
                parameter.data = view

    def _extract(self, observations: th.Tensor) -> th.Tensor:
        """The features of observations.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :return: Shape ``(S, n, n_features)``.
        """
        if self._flat:
            return observations.float()
        rows = preprocess_obs(
            subtract_start(observations.flatten(0, 1), self._policy.observation_space),
            self._policy.observation_space,
            normalize_images=self._policy.normalize_images,
        )
        assert isinstance(rows, th.Tensor)
        return apply_layers(self._features, _members(rows, observations.shape[:2])).flatten(2)

    def _distribution(self, outputs: th.Tensor) -> Distribution:
        """The distribution of all rows of all members.

        :param outputs: Outputs of the policy's last layer, shape ``(S, n, n_outputs)``.
        :return: A distribution of ``S * n`` rows.
        """
        rows = outputs.flatten(0, 1)
        distribution: Any = self._policy.action_dist
        if isinstance(distribution, UncheckedDiagGaussianDistribution):
            std = self.parameters["log_std"].exp().unsqueeze(1).expand_as(outputs)
            distribution.distribution = Normal(rows, std.flatten(0, 1), validate_args=False)
        else:
            distribution.proba_distribution(action_logits=rows)
        return distribution  # type: ignore[no-any-return]

    def values(self, observations: th.Tensor) -> th.Tensor:
        """State values.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :return: Shape ``(S, n)``.
        """
        return self._value_net(apply_layers(self._value_layers, self._extract(observations))).squeeze(-1)

    @th.no_grad()
    def act(self, observations: th.Tensor, draws: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Sample actions.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :param draws: Random numbers from :meth:`draws`, shape ``(S, n, ...)``.
        :return: Actions of shape ``(S, n)`` or, of several numbers, ``(S, n, action_dim)``; values of shape
            ``(S, n)``; and the outputs of the policy's last layer for :meth:`log_probs`.
        """
        features = self._extract(observations)
        if self._twin_layers is None:
            latent_policy = apply_layers(self._policy_layers, features)
            latent_value = apply_layers(self._value_layers, features)
        else:
            latents = apply_layers(self._twin_layers, features.repeat(2, 1, 1))
            latent_policy, latent_value = latents.chunk(2)
        values = self._value_net(latent_value).squeeze(-1)
        outputs = self._action_net(latent_policy)
        actions = self._distribution(outputs).choose(draws.flatten(0, 1))
        return _members(actions, observations.shape[:2]), values, outputs

    @th.no_grad()
    def log_probs(self, outputs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Log probabilities of the actions taken.

        :param outputs: Outputs of the policy's last layer from :meth:`act`, shape ``(S, n, n_outputs)``.
        :param actions: Shape ``(S, n, action_dim)``.
        :return: Shape ``(S, n)``.
        """
        log_prob = self._distribution(outputs).log_prob(self._rows(actions))
        return _members(log_prob, outputs.shape[:2])

    @th.no_grad()
    def predict(self, observations: th.Tensor, draws: th.Tensor | None) -> th.Tensor:
        """Actions without values; without draws, the most probable ones.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :param draws: From :meth:`draws`, shape ``(S, n, ...)``, or None.
        :return: As from :meth:`act`.
        """
        latents = apply_layers(self._policy_layers, self._extract(observations))
        distribution = self._distribution(self._action_net(latents))
        actions = distribution.mode() if draws is None else distribution.choose(draws.flatten(0, 1))
        return _members(actions, observations.shape[:2])

    def _rows(self, actions: th.Tensor) -> th.Tensor:
        rows = actions.flatten(0, 1)
        return rows.long().flatten() if isinstance(self._policy.action_space, spaces.Discrete) else rows

    def draws(self, generator: th.Generator, n_steps: int, n_rows: int) -> th.Tensor:
        """The random numbers of one member's actions over several steps, as drawn step by step.

        :param generator: The member's.
        :param n_steps: Number of steps.
        :param n_rows: Number of environments.
        :return: Shape ``(n_steps, n_rows, ...)``.
        """
        distribution: Any = self._policy.action_dist
        if isinstance(distribution, BatchedMultiCategoricalDistribution):
            # The sequence of uniform numbers does not depend on the shape
            n_dims = len(distribution.action_dims)
            return th.rand(n_steps, n_rows, n_dims, generator=generator, device=generator.device)
        outputs = th.zeros(n_rows, self._n_outputs, device=generator.device)
        if isinstance(distribution, UncheckedDiagGaussianDistribution):
            distribution.distribution = Normal(outputs, th.ones_like(outputs), validate_args=False)
        else:
            distribution.proba_distribution(action_logits=outputs)
        return th.stack([distribution.draws(generator) for _ in range(n_steps)])

    def evaluate_actions(
        self, observations: th.Tensor, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Values, log probabilities and entropies, as in SB3's policies.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :param actions: Shape ``(S, n, action_dim)``.
        :return: Each of shape ``(S, n)``.
        """
        features = self._extract(observations)
        outputs = self._action_net(apply_layers(self._policy_layers, features))
        values = self._value_net(apply_layers(self._value_layers, features)).squeeze(-1)
        distribution = self._distribution(outputs)
        log_prob = _members(distribution.log_prob(self._rows(actions)), values.shape)
        entropy = distribution.entropy()
        return values, log_prob, None if entropy is None else _members(entropy, values.shape)


def _twins(policy: ActorCriticPolicy) -> dict[str, str]:
    """The hidden parameters of the policy with those of the value function, if both have the same layers."""
    ours, theirs = policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net
    if str(ours) != str(theirs) or not list(ours.parameters()):
        return {}
    names = [name for name, _ in ours.named_parameters(prefix="mlp_extractor.policy_net")]
    return {name: name.replace("policy_net", "value_net") for name in names}


def _members(rows: th.Tensor, shape: th.Size) -> th.Tensor:
    """Split rows by member: from shape ``(S * n, ...)`` to ``(S, n, ...)``."""
    return rows.unflatten(0, shape)  # type: ignore[no-untyped-call, no-any-return]
