"""Many policies of one shape as one stacked network.

Each parameter of shape ``(...)`` becomes one of shape ``(n_members, ...)``, and the members' own parameters
become views of it: whatever trains the stack trains the policies, which save, load and predict as always. In
what follows ``S`` is the number of members and ``n`` the number of rows that each has.

On CPU a batched matrix product gives each member the same bits as its own ``nn.Linear``, except for the few
shapes that PyTorch hands to other kernels; those, and convolutions, are computed member by member. So a
member's trajectory does not depend on its neighbours, nor on whether it has any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from srl.distributions import (
    BatchedMultiCategoricalDistribution,
    UncheckedBernoulliDistribution,
    UncheckedCategoricalDistribution,
    UncheckedDiagGaussianDistribution,
)
from srl.errors import UserError

#: Modules that treat each number by itself, and so a stack as they treat one network's.
_ELEMENTWISE = (nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Identity)
Distribution = (
    BatchedMultiCategoricalDistribution
    | UncheckedBernoulliDistribution
    | UncheckedCategoricalDistribution
    | UncheckedDiagGaussianDistribution
)
#: Below this many multiplications PyTorch's batched product has a kernel of its own, which rounds otherwise.
_SMALL_PRODUCT = 400


class StackedPolicy:
    """Policies of one shape, evaluated side by side.

    :param policies: The members' policies; their parameters become views of the stack's.
    :raises UserError: If a part of them cannot be stacked.
    """

    def __init__(self, policies: Sequence[ActorCriticPolicy]):
        first = policies[0]
        self._check(first)
        self._policy = first
        self._space = first.observation_space
        self._n_outputs: int = first.action_net.out_features  # type: ignore[assignment]
        #: By their names in the policy's ``state_dict``, each of shape ``(S, ...)``.
        self.parameters: dict[str, th.Tensor] = {}
        for name, parameter in first.named_parameters():
            members = [dict(policy.named_parameters())[name] for policy in policies]
            stacked = th.stack([member.data for member in members])
            for member, view in zip(members, stacked, strict=True):
                member.data = view
            self.parameters[name] = stacked.requires_grad_(parameter.requires_grad)

    @staticmethod
    def _check(policy: ActorCriticPolicy) -> None:
        parts = [*policy.mlp_extractor.modules(), *policy.features_extractor.modules()]
        known = (
            *_ELEMENTWISE, nn.Linear, nn.Conv2d, nn.Flatten, nn.Sequential,
            type(policy.mlp_extractor), FlattenExtractor, NatureCNN,
        )  # fmt: skip
        strange = [type(part).__name__ for part in parts if not isinstance(part, known)]
        if not isinstance(policy.action_dist, Distribution):
            strange.append(type(policy.action_dist).__name__)
        if not policy.share_features_extractor:
            strange.append("separate features extractors")
        if strange:
            raise UserError(
                f"A population cannot stack {strange[0]}. Train these runs with --population off."
            )

    def _latents(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """What the last layers see.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :return: For the policy and for the value, shape ``(S, n, width)``.
        """
        rows = preprocess_obs(
            observations.flatten(0, 1), self._space, normalize_images=self._policy.normalize_images
        )
        assert isinstance(rows, th.Tensor)
        prepared = _members(rows, observations.shape[:2])
        extractor = self._policy.features_extractor
        if isinstance(extractor, NatureCNN):
            features = self._apply(extractor.cnn, "features_extractor.cnn", prepared)
            features = self._apply(extractor.linear, "features_extractor.linear", features)
        else:
            features = prepared.flatten(2)
        mlp = self._policy.mlp_extractor
        return (
            self._apply(mlp.policy_net, "mlp_extractor.policy_net", features),
            self._apply(mlp.value_net, "mlp_extractor.value_net", features),
        )

    def _apply(self, module: nn.Module, name: str, x: th.Tensor) -> th.Tensor:
        """A module of every member on its own rows.

        :param module: The first member's.
        :param name: Where its parameters are.
        :param x: Shape ``(S, n, ...)``.
        :return: Shape ``(S, n, ...)``.
        """
        if isinstance(module, nn.Sequential):
            for key, part in module.named_children():
                x = self._apply(part, f"{name}.{key}", x)
            return x
        if isinstance(module, nn.Flatten):
            return x.flatten(2)
        if isinstance(module, _ELEMENTWISE):
            return module(x)  # type: ignore[no-any-return]
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        if isinstance(module, nn.Conv2d):
            arguments: dict[str, Any] = {"stride": module.stride, "padding": module.padding}
            return th.stack([F.conv2d(*member, **arguments) for member in zip(x, weight, bias, strict=True)])
        return stacked_linear(x, weight, bias)

    def _distribution(self, latents: th.Tensor) -> Distribution:
        """The distribution of all rows of all members, ``S * n`` of them."""
        outputs = self._apply(self._policy.action_net, "action_net", latents)
        rows = outputs.flatten(0, 1)
        distribution: Any = self._policy.action_dist
        if isinstance(distribution, UncheckedDiagGaussianDistribution):
            std = self.parameters["log_std"].exp().unsqueeze(1).expand_as(outputs)
            distribution.distribution = Normal(rows, std.flatten(0, 1), validate_args=False)
            return distribution
        distribution.proba_distribution(action_logits=rows)
        return distribution  # type: ignore[no-any-return]

    def values(self, observations: th.Tensor) -> th.Tensor:
        """State values.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :return: Shape ``(S, n)``.
        """
        return self._value(self._latents(observations)[1])

    def _value(self, latents: th.Tensor) -> th.Tensor:
        return self._apply(self._policy.value_net, "value_net", latents).squeeze(-1)

    def act(self, observations: th.Tensor, draws: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Sample actions.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :param draws: What is random in them, from :meth:`draws`, shape ``(S, n, ...)``.
        :return: Actions of shape ``(S, n, *action_shape)``, values and log probabilities of shape ``(S, n)``.
        """
        shape = observations.shape[:2]
        latent_policy, latent_value = self._latents(observations)
        values = self._value(latent_value)
        distribution = self._distribution(latent_policy)
        actions = distribution.choose(draws.flatten(0, 1))
        log_prob = distribution.log_prob(actions)
        return _members(actions, shape), values, _members(log_prob, shape)

    def predict(self, observations: th.Tensor, draws: th.Tensor | None) -> th.Tensor:
        """Actions alone, the likeliest ones without draws.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :param draws: From :meth:`draws`, shape ``(S, n, ...)``, or None.
        :return: Shape ``(S, n, *action_shape)``.
        """
        distribution = self._distribution(self._latents(observations)[0])
        actions = distribution.mode() if draws is None else distribution.choose(draws.flatten(0, 1))
        return _members(actions, observations.shape[:2])

    def draws(self, generator: th.Generator, n_steps: int, n_rows: int) -> th.Tensor:
        """What is random in one member's actions over several steps, as it would draw it step by step.

        :param generator: The member's.
        :param n_steps: How many steps.
        :param n_rows: How many environments.
        :return: Shape ``(n_steps, n_rows, ...)``.
        """
        outputs = th.zeros(n_rows, self._n_outputs, device=generator.device)
        distribution: Any = self._policy.action_dist
        if isinstance(distribution, UncheckedDiagGaussianDistribution):
            distribution.distribution = Normal(outputs, th.ones_like(outputs), validate_args=False)
        else:
            distribution.proba_distribution(action_logits=outputs)
            if isinstance(distribution, BatchedMultiCategoricalDistribution):
                # Uniform numbers come one by one whatever the shape is
                n_dims = len(distribution.action_dims)
                return th.rand(n_steps, n_rows, n_dims, generator=generator, device=generator.device)
        return th.stack([distribution.draws(generator) for _ in range(n_steps)])

    def evaluate_actions(
        self, observations: th.Tensor, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Values, log probabilities and entropies, as SB3's policies give them.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :param actions: Shape ``(S, n, action_dim)``.
        :return: Each of shape ``(S, n)``.
        """
        shape = observations.shape[:2]
        latent_policy, latent_value = self._latents(observations)
        distribution = self._distribution(latent_policy)
        rows = actions.flatten(0, 1)
        if isinstance(self._policy.action_space, spaces.Discrete):
            rows = rows.long().flatten()
        log_prob = distribution.log_prob(rows)
        values = self._value(latent_value)
        entropy = distribution.entropy()
        return values, _members(log_prob, shape), None if entropy is None else _members(entropy, shape)


def _members(rows: th.Tensor, shape: th.Size) -> th.Tensor:
    """Rows of all members, as rows of each: from shape ``(S * n, ...)`` to ``(S, n, ...)``."""
    return rows.unflatten(0, shape)  # type: ignore[no-untyped-call, no-any-return]


def stacked_linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """``nn.Linear`` for each member.

    :param x: Shape ``(S, n, n_in)``.
    :param weight: Shape ``(S, n_out, n_in)``.
    :param bias: Shape ``(S, n_out)``.
    :return: Shape ``(S, n, n_out)``.
    """
    n_out, n_in = weight.shape[1:]
    if not x.is_cuda and (n_out == 1 or x.shape[1] * n_in * n_out < _SMALL_PRODUCT):
        return th.stack([F.linear(*member) for member in zip(x, weight, bias, strict=True)])
    return th.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
