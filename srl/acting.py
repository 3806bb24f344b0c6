"""Acting in NumPy: the policy's forward pass and sampling for few rows, where PyTorch's overhead dominates.

An actor reads the parameters in place, of one policy or of the stacked policies of a population. ``S`` is the
number of members and ``n`` the number of rows of each. A member's results do not depend on ``S``: every
operation processes the members one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn

from srl.distributions import (
    BatchedMultiCategoricalDistribution,
    UncheckedBernoulliDistribution,
    UncheckedCategoricalDistribution,
    UncheckedDiagGaussianDistribution,
)
from srl.spaces import start_of

_Layer = Callable[[np.ndarray], np.ndarray]

#: Methods of a policy that compute what :class:`NumpyActor` computes, and the modules that define them.
_METHODS = ("extract_features", "_get_action_dist_from_latent", "evaluate_actions")
_OWN_MODULES = ("srl.policies", "stable_baselines3.common.policies")


def can_act_in_numpy(policy: ActorCriticPolicy) -> bool:
    """Whether :class:`NumpyActor` supports a policy: an MLP on the CPU without code of the user."""
    return (
        type(policy.observation_space) is spaces.Box
        and not is_image_space(policy.observation_space)
        and type(policy.features_extractor) is FlattenExtractor
        and type(policy.mlp_extractor) is MlpExtractor
        and type(policy.action_net) is type(policy.value_net) is nn.Linear
        and all(_is_known(part) for part in policy.modules() if part is not policy)
        and all(getattr(type(policy), name).__module__ in _OWN_MODULES for name in _METHODS)
        and type(policy.action_dist) in _CHOICES
        and policy.device.type == "cpu"
    )


def _is_known(part: nn.Module) -> bool:
    known = (FlattenExtractor, MlpExtractor, nn.Flatten, nn.Sequential, nn.Linear, nn.Tanh, nn.ReLU)
    has_bias = not isinstance(part, nn.Linear) or part.bias is not None
    return type(part) in known and has_bias and not (part._forward_hooks or part._forward_pre_hooks)


class NumpyActor:
    """Samples actions for policies of one shape.

    :param policy: One of them, for which :func:`can_act_in_numpy` is true.
    :param parameters: The stacked parameters by their names in the policy's ``state_dict``, each of shape
        ``(S, ...)``; they are read at each step.
    """

    def __init__(self, policy: ActorCriticPolicy, parameters: Mapping[str, th.Tensor]):
        arrays = {name: parameter.detach().numpy() for name, parameter in parameters.items()}
        mlp = policy.mlp_extractor
        self._policy_net = [
            *_layers(mlp.policy_net, "mlp_extractor.policy_net", arrays),
            _linear(arrays, "action_net"),
        ]
        self._value_net = [
            *_layers(mlp.value_net, "mlp_extractor.value_net", arrays),
            _linear(arrays, "value_net"),
        ]
        choice, self._draw = _CHOICES[type(policy.action_dist)]
        self._choose = choice(policy, arrays)
        self._n_outputs: int = policy.action_net.out_features  # type: ignore[assignment]
        self._start = start_of(policy.action_space)
        dims = getattr(policy.action_dist, "action_dims", self._n_outputs)
        self._n_draws = self._n_outputs if isinstance(dims, int) else len(dims)

    def draws(self, n_rows: int) -> np.ndarray:
        """Random numbers for the actions of one member, from PyTorch's generator.

        :return: Shape ``(n_rows, n_draws)``.
        """
        return self._draw(th.empty(n_rows, self._n_draws)).numpy()

    def act(self, observations: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sample actions.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :param draws: Random numbers, as the policy's distribution draws them, shape ``(S, n, ...)``.
        :return: Actions of shape ``(S, n, *action_shape)``, values and log probabilities of ``(S, n)``.
        """
        features = _features(observations)
        actions, log_probs = self._choose(_through(self._policy_net, features), draws)
        if self._start is not None:
            actions = actions + self._start
        return actions, _through(self._value_net, features)[..., 0], log_probs

    def values(self, observations: np.ndarray) -> np.ndarray:
        """State values.

        :param observations: Shape ``(S, n, *observation_shape)``.
        :return: Shape ``(S, n)``.
        """
        return _through(self._value_net, _features(observations))[..., 0]


def _features(observations: np.ndarray) -> np.ndarray:
    return observations.reshape(*observations.shape[:2], -1).astype(np.float32, copy=False)


def _through(layers: list[_Layer], x: np.ndarray) -> np.ndarray:
    for layer in layers:
        x = layer(x)
    return x


def _layers(net: nn.Sequential, name: str, arrays: Mapping[str, np.ndarray]) -> list[_Layer]:
    return [
        _linear(arrays, f"{name}.{key}")
        if isinstance(part, nn.Linear)
        else _tanh
        if isinstance(part, nn.Tanh)
        else _relu
        for key, part in net.named_children()
    ]


def _linear(arrays: Mapping[str, np.ndarray], name: str) -> _Layer:
    weight, bias = arrays[f"{name}.weight"].swapaxes(1, 2), arrays[f"{name}.bias"][:, None]

    def linear(x: np.ndarray) -> np.ndarray:
        product: np.ndarray = np.matmul(x, weight)
        product += bias
        return product

    return linear


def _tanh(x: np.ndarray) -> np.ndarray:
    np.tanh(x, out=x)
    return x


def _relu(x: np.ndarray) -> np.ndarray:
    np.maximum(x, 0, out=x)
    return x


def _chosen(table: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """The entries of choices: ``table[..., choices]`` for each row."""
    rows = table.reshape(-1, table.shape[-1])
    entries: np.ndarray = rows[np.arange(len(rows)), choices.ravel()]
    return entries.reshape(choices.shape)


_Choose = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _multi_categorical(policy: ActorCriticPolicy, arrays: Mapping[str, np.ndarray]) -> _Choose:
    assert isinstance(policy.action_dist, BatchedMultiCategoricalDistribution)
    sizes = list(policy.action_dist.action_dims)
    n_dims, largest = len(sizes), max(sizes)
    is_choice = np.arange(largest) < np.array(sizes)[:, None]

    def choose(logits: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = logits.shape[:2]
        if min(sizes) == largest:
            table = logits.reshape(*shape, n_dims, largest)
        else:
            table = np.full((*shape, n_dims, largest), -np.inf, np.float32)
            table[..., is_choice] = logits
        table -= np.maximum.reduce(table, axis=-1, keepdims=True)
        cumulative = np.exp(table)
        np.cumsum(cumulative, axis=-1, out=cumulative)
        total = cumulative[..., -1]
        # In (0, total], so that the first sum to reach it belongs to a choice of positive probability
        height = (1 - draws) * total
        choices = (cumulative >= height[..., None]).argmax(-1)
        chosen = _chosen(table, choices)
        return choices, np.add.reduce(chosen - np.log(total), axis=-1)

    return choose


def _categorical(policy: ActorCriticPolicy, arrays: Mapping[str, np.ndarray]) -> _Choose:
    def choose(logits: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits -= logits.max(-1, keepdims=True)
        weights = np.exp(logits)
        # As PyTorch's multinomial does
        choices = (weights / draws).argmax(-1)
        chosen = _chosen(logits, choices)
        return choices, chosen - np.log(weights.sum(-1))

    return choose


def _bernoulli(policy: ActorCriticPolicy, arrays: Mapping[str, np.ndarray]) -> _Choose:
    def choose(logits: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        is_on = draws * (1 + np.exp(-logits)) < 1
        # log(1 + exp(x)) of the other choice's logit, without overflow
        losing = np.where(is_on, -logits, logits)
        return is_on.astype(np.float32), -np.logaddexp(0, losing).sum(-1)

    return choose


def _gaussian(policy: ActorCriticPolicy, arrays: Mapping[str, np.ndarray]) -> _Choose:
    log_std = arrays["log_std"][:, None]
    constant = np.float32(0.5 * np.log(2 * np.pi))

    def choose(means: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        actions = means + draws * np.exp(log_std)
        return actions, (-0.5 * draws * draws - log_std - constant).sum(-1)

    return choose


_Choice = Callable[[ActorCriticPolicy, Mapping[str, np.ndarray]], _Choose]

#: By the type of the policy's distribution: how actions are chosen, and how random numbers are drawn into a
#: tensor, as in the distributions themselves.
_CHOICES: dict[type, tuple[_Choice, Callable[[th.Tensor], th.Tensor]]] = {
    BatchedMultiCategoricalDistribution: (_multi_categorical, th.Tensor.uniform_),
    UncheckedCategoricalDistribution: (_categorical, th.Tensor.exponential_),
    UncheckedBernoulliDistribution: (_bernoulli, th.Tensor.uniform_),
    UncheckedDiagGaussianDistribution: (_gaussian, th.Tensor.normal_),
}
