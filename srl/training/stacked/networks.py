"""Many policies of one shape as one stacked network.

Each parameter of shape ``(...)`` becomes one of shape ``(n_members, ...)``, and the members' own parameters
become views of it: whatever trains the stack trains the policies, which save, load and predict as always. In
what follows ``S`` is the number of members and ``n`` the number of rows that each has.

On CPU a batched matrix product is bitwise identical to each member's own ``nn.Linear``, except for the few
shapes that PyTorch hands to other kernels; those, and convolutions, are computed member by member. So a
member's trajectory does not depend on its neighbors, nor on whether it has any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

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

#: Modules that treat each number by itself, and so a stack as they treat one network's.
_ELEMENTWISE = (nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Identity)
Distribution = (
    BatchedMultiCategoricalDistribution
    | UncheckedBernoulliDistribution
    | UncheckedCategoricalDistribution
    | UncheckedDiagGaussianDistribution
)
#: Below this many multiplications PyTorch's batched product has its own kernel, which rounds differently.
_SMALL_PRODUCT = 400

_Layer = Callable[[th.Tensor], th.Tensor]


class StackedPolicy:
    """Policies of one shape, evaluated side by side.

    :param policies: The members' policies; their parameters become views of the stack's.
    :raises UserError: If a part of them cannot be stacked.
    """

    def __init__(self, policies: Sequence[ActorCriticPolicy]):
        first = policies[0]
        self._check(first)
        self._policies = list(policies)
        space = first.observation_space
        self._flat = type(space) is spaces.Box and len(space.shape) == 1
        self._policy = first
        self._n_outputs: int = first.action_net.out_features  # type: ignore[assignment]
        #: By their names in the policy's ``state_dict``, each of shape ``(S, ...)``.
        self.parameters: dict[str, th.Tensor] = {}
        twins = _twins(first)
        pairs: dict[str, th.Tensor] = {}
        all_parameters = [dict(policy.named_parameters()) for policy in policies]
        for name, parameter in first.named_parameters():
            if name in self.parameters:
                continue
            names = [name, twins[name]] if name in twins else [name]
            # A layer of the policy and its twin of the value lie next to each other, see `act`
            storage = th.stack([th.stack([own[part].data for own in all_parameters]) for part in names])
            for part, stacked in zip(names, storage, strict=True):
                for own, view in zip(all_parameters, stacked, strict=True):
                    own[part].data = view
                self.parameters[part] = stacked.requires_grad_(parameter.requires_grad)
            if name in twins:
                pairs[name] = storage.detach().flatten(0, 1)
        mlp, extractor = first.mlp_extractor, first.features_extractor
        self._features: list[_Layer] = []
        if isinstance(extractor, NatureCNN):
            for part in ("cnn", "linear"):
                name = f"features_extractor.{part}"
                self._features += _layers(getattr(extractor, part), name, self.parameters)
        self._policy_layers = _layers(mlp.policy_net, "mlp_extractor.policy_net", self.parameters)
        self._value_layers = _layers(mlp.value_net, "mlp_extractor.value_net", self.parameters)
        self._twin_layers = _layers(mlp.policy_net, "mlp_extractor.policy_net", pairs) if pairs else None
        self._action_net = _StackedLinear(*_of(self.parameters, "action_net"))
        self._value_net = _StackedLinear(*_of(self.parameters, "value_net"))
        # In the order of the policy's own, which its optimizer has too
        self.parameters = {name: self.parameters[name] for name, _ in first.named_parameters()}

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

    def numpy_actor(self) -> NumpyActor | None:
        """What samples the members' actions in NumPy, if that is how they act alone."""
        policy = self._policy
        if not (isinstance(policy, PolicyMixin) and policy.numpy_acting and can_act_in_numpy(policy)):
            return None
        return NumpyActor(policy, self.parameters)

    def release(self) -> None:
        """Give the members parameters of their own, else each one's file would hold those of all."""
        for policy in self._policies:
            for parameter in policy.parameters():
                parameter.data = parameter.data.clone()

    @contextmanager
    def released(self, member: int) -> Iterator[None]:
        """Give one member parameters of its own for the time of a context."""
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
        return _through(self._features, _members(rows, observations.shape[:2])).flatten(2)

    def _distribution(self, outputs: th.Tensor) -> Distribution:
        """The distribution of all rows of all members.

        :param outputs: Of the policy's last layer, shape ``(S, n, n_outputs)``.
        :return: Of ``S * n`` rows.
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
        return self._value_net(_through(self._value_layers, self._extract(observations))).squeeze(-1)

    @th.no_grad()
    def act(self, observations: th.Tensor, draws: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Sample actions.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :param draws: What is random in them, from :meth:`draws`, shape ``(S, n, ...)``.
        :return: Actions of shape ``(S, n, *action_shape)``, values of shape ``(S, n)``, and the outputs of
            the policy's last layer for :meth:`log_probs`.
        """
        features = self._extract(observations)
        if self._twin_layers is None:
            latent_policy = _through(self._policy_layers, features)
            latent_value = _through(self._value_layers, features)
        else:
            latents = _through(self._twin_layers, features.repeat(2, 1, 1))
            latent_policy, latent_value = latents.chunk(2)
        values = self._value_net(latent_value).squeeze(-1)
        outputs = self._action_net(latent_policy)
        actions = self._distribution(outputs).choose(draws.flatten(0, 1))
        return _members(actions, observations.shape[:2]), values, outputs

    @th.no_grad()
    def log_probs(self, outputs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Log probabilities of actions that were taken.

        :param outputs: Of the policy's last layer as :meth:`act` gave them, shape ``(S, n, n_outputs)``.
        :param actions: Shape ``(S, n, action_dim)``.
        :return: Shape ``(S, n)``.
        """
        log_prob = self._distribution(outputs).log_prob(self._rows(actions))
        return _members(log_prob, outputs.shape[:2])

    @th.no_grad()
    def predict(self, observations: th.Tensor, draws: th.Tensor | None) -> th.Tensor:
        """Actions alone, the likeliest ones without draws.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :param draws: From :meth:`draws`, shape ``(S, n, ...)``, or None.
        :return: Shape ``(S, n, *action_shape)``.
        """
        latents = _through(self._policy_layers, self._extract(observations))
        distribution = self._distribution(self._action_net(latents))
        actions = distribution.mode() if draws is None else distribution.choose(draws.flatten(0, 1))
        return _members(actions, observations.shape[:2])

    def _rows(self, actions: th.Tensor) -> th.Tensor:
        rows = actions.flatten(0, 1)
        return rows.long().flatten() if isinstance(self._policy.action_space, spaces.Discrete) else rows

    def draws(self, generator: th.Generator, n_steps: int, n_rows: int) -> th.Tensor:
        """What is random in one member's actions over several steps, as it would draw it step by step.

        :param generator: The member's.
        :param n_steps: How many steps.
        :param n_rows: How many environments.
        :return: Shape ``(n_steps, n_rows, ...)``.
        """
        distribution: Any = self._policy.action_dist
        if isinstance(distribution, BatchedMultiCategoricalDistribution):
            # Uniform numbers come one by one whatever the shape is
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
        """Values, log probabilities and entropies, as SB3's policies give them.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :param actions: Shape ``(S, n, action_dim)``.
        :return: Each of shape ``(S, n)``.
        """
        features = self._extract(observations)
        outputs = self._action_net(_through(self._policy_layers, features))
        values = self._value_net(_through(self._value_layers, features)).squeeze(-1)
        distribution = self._distribution(outputs)
        log_prob = _members(distribution.log_prob(self._rows(actions)), values.shape)
        entropy = distribution.entropy()
        return values, log_prob, None if entropy is None else _members(entropy, values.shape)


class _StackedLinear:
    """``nn.Linear`` of each member.

    :param weight: Shape ``(S, n_out, n_in)``.
    :param bias: Shape ``(S, n_out)``.
    """

    def __init__(self, weight: th.Tensor, bias: th.Tensor):
        self._weight, self._bias = weight, bias
        # For use without gradients, where views of what changes in place can be made once
        self._transposed, self._row = weight.detach().transpose(1, 2), bias.detach().unsqueeze(1)
        self._members = list(zip(bias.detach(), self._transposed, strict=True))

    def __call__(self, x: th.Tensor) -> th.Tensor:
        if th.is_grad_enabled():
            return stacked_linear(x, self._weight, self._bias)
        if not _one_by_one(x, self._weight):
            return th.baddbmm(self._row, x, self._transposed)
        return _linear_one_by_one(x, self._members)


class _StackedConv2d:
    """``nn.Conv2d`` of each member, one after the other.

    :param module: The first member's.
    :param weight: Shape ``(S, n_out, n_in, height, width)``.
    :param bias: Shape ``(S, n_out)``.
    """

    def __init__(self, module: nn.Conv2d, weight: th.Tensor, bias: th.Tensor):
        self._arguments: dict[str, Any] = {"stride": module.stride, "padding": module.padding}
        self._weight, self._bias = weight, bias

    def __call__(self, x: th.Tensor) -> th.Tensor:
        members = zip(x, self._weight, self._bias, strict=True)
        return th.stack([F.conv2d(*member, **self._arguments) for member in members])


def _layers(module: nn.Module, name: str, parameters: dict[str, th.Tensor]) -> list[_Layer]:
    """The layers of a part of the policy, for members side by side.

    :param module: The first member's.
    :param name: Where its parameters are.
    :param parameters: The stacked ones.
    """
    if isinstance(module, nn.Sequential):
        parts = module.named_children()
        return [layer for key, part in parts for layer in _layers(part, f"{name}.{key}", parameters)]
    if isinstance(module, nn.Flatten):
        return [lambda x: x.flatten(2)]
    if isinstance(module, nn.Tanh):
        return [_tanh]
    if isinstance(module, nn.Conv2d):
        return [_StackedConv2d(module, *_of(parameters, name))]
    if isinstance(module, nn.Linear):
        return [_StackedLinear(*_of(parameters, name))]
    return [module]


def _tanh(x: th.Tensor) -> th.Tensor:
    return th.tanh(x) if th.is_grad_enabled() else x.tanh_()


def _of(parameters: dict[str, th.Tensor], name: str) -> tuple[th.Tensor, th.Tensor]:
    return parameters[f"{name}.weight"], parameters[f"{name}.bias"]


def _through(layers: Sequence[_Layer], x: th.Tensor) -> th.Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _twins(policy: ActorCriticPolicy) -> dict[str, str]:
    """The names of the policy's hidden parameters with those of the value's, if both have the same layers."""
    ours, theirs = policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net
    if str(ours) != str(theirs) or not list(ours.parameters()):
        return {}
    names = [name for name, _ in ours.named_parameters(prefix="mlp_extractor.policy_net")]
    return {name: name.replace("policy_net", "value_net") for name in names}


def _members(rows: th.Tensor, shape: th.Size) -> th.Tensor:
    """Rows of all members, as rows of each: from shape ``(S * n, ...)`` to ``(S, n, ...)``."""
    return rows.unflatten(0, shape)  # type: ignore[no-untyped-call, no-any-return]


def _one_by_one(x: th.Tensor, weight: th.Tensor) -> bool:
    """Whether a batched product would not give the bits of each member's own."""
    n_out, n_in = weight.shape[1:]
    return not x.is_cuda and (n_out == 1 or x.shape[1] * n_in * n_out < _SMALL_PRODUCT)


def _linear_one_by_one(x: th.Tensor, members: Sequence[tuple[th.Tensor, th.Tensor]]) -> th.Tensor:
    """``nn.Linear`` of each member, one after the other.

    :param x: Shape ``(S, n, n_in)``.
    :param members: Bias and transposed weight of each.
    :return: Shape ``(S, n, n_out)``.
    """
    results = x.new_empty(len(members), x.shape[1], members[0][0].shape[0])
    for (bias, transposed), rows, result in zip(members, x.unbind(), results.unbind(), strict=True):
        th.addmm(bias, rows, transposed, out=result)
    return results


class _SingleOutput(th.autograd.Function):
    """``nn.Linear`` with one output for each member, forward and backward with the bits of each one's own."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x, weight)
        return _linear_one_by_one(x, list(zip(bias, weight.transpose(1, 2), strict=True)))

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0]
        of_weight = th.empty_like(weight)
        for own, rows, result in zip(gradient.mT.unbind(), x.unbind(), of_weight.unbind(), strict=True):
            th.mm(own, rows, out=result)
        return th.bmm(gradient, weight), of_weight, gradient.sum(1)


def stacked_linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """``nn.Linear`` for each member, with gradients.

    :param x: Shape ``(S, n, n_in)``.
    :param weight: Shape ``(S, n_out, n_in)``.
    :param bias: Shape ``(S, n_out)``.
    :return: Shape ``(S, n, n_out)``.
    """
    if not _one_by_one(x, weight):
        return th.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
    if weight.shape[1] == 1:
        return _SingleOutput.apply(x, weight, bias)  # type: ignore[no-untyped-call, no-any-return]
    return th.stack([F.linear(*member) for member in zip(x, weight, bias, strict=True)])
