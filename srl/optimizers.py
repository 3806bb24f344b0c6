"""Optimizer steps as pure functions of tensors, for compiled updates.

A step has two parts: numbers that depend on the learning rate and the step count, which Python computes, and
arithmetic on tensors, which is compiled and takes the numbers as scalar tensors. A schedule therefore needs
no recompilation. Each pair computes the same step as the optimizer of its name.

Parameter and gradient have the same arbitrary shape. A step returns the new parameter and the new state; its
numbers come from :func:`rate_alone` unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

#: The tensors that an optimizer keeps for a parameter, by the names in its ``state``.
State = dict[str, th.Tensor]
#: The options of an optimizer: an entry of its ``param_groups``.
Options = Mapping[str, Any]


def adam_numbers(step: int, options: Options) -> tuple[float, float, float]:
    """The numbers for :func:`adam`.

    :param step: The step count, from 1.
    :param options: ``lr``, ``betas`` and ``weight_decay``.
    :return: Step size, bias correction of the root of the squares, and factor of the decoupled decay.
    """
    beta1, beta2 = options["betas"]
    rate = float(options["lr"])
    return rate / (1 - beta1**step), (1 - beta2**step) ** 0.5, 1 - rate * options["weight_decay"]


def adam(
    parameter: th.Tensor, gradient: th.Tensor, state: State, numbers: Sequence[th.Tensor], options: Options
) -> tuple[th.Tensor, State]:
    """Adam (Kingma and Ba 2015), and AdamW with ``decoupled_weight_decay`` (Loshchilov and Hutter 2019).

    :param state: ``step``, ``exp_avg`` and ``exp_avg_sq``.
    :param numbers: From :func:`adam_numbers`.
    :param options: ``betas``, ``eps``, ``weight_decay`` and ``decoupled_weight_decay``.
    """
    step_size, correction, decay = numbers
    beta1, beta2 = options["betas"]
    if options["weight_decay"] and options.get("decoupled_weight_decay"):
        parameter = parameter * decay
    else:
        gradient = _decayed(gradient, parameter, options)
    average = th.lerp(state["exp_avg"], gradient, 1 - beta1)
    square = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient * gradient
    parameter = parameter - step_size * (average / (square.sqrt() / correction + options["eps"]))
    return parameter, {"step": state["step"] + 1, "exp_avg": average, "exp_avg_sq": square}


def rate_alone(step: int, options: Options) -> tuple[float]:
    """The learning rate, the only number that the following optimizers need."""
    return (float(options["lr"]),)


def rmsprop(
    parameter: th.Tensor, gradient: th.Tensor, state: State, numbers: Sequence[th.Tensor], options: Options
) -> tuple[th.Tensor, State]:
    """PyTorch's RMSprop, which adds ``eps`` after the square root.

    :param state: ``step`` and ``square_avg``.
    :param options: ``alpha``, ``eps`` and ``weight_decay``.
    """
    gradient = _decayed(gradient, parameter, options)
    square = _averaged(gradient, state, options)
    parameter = parameter - numbers[0] * (gradient / (square.sqrt() + options["eps"]))
    return parameter, {"step": state["step"] + 1, "square_avg": square}


def rmsprop_tf_like(
    parameter: th.Tensor, gradient: th.Tensor, state: State, numbers: Sequence[th.Tensor], options: Options
) -> tuple[th.Tensor, State]:
    """SB3's RMSpropTFLike, the default of A2C, which adds ``eps`` below the square root.

    :param state: ``square_avg``.
    :param options: ``alpha``, ``eps`` and ``weight_decay``.
    """
    gradient = _decayed(gradient, parameter, options)
    square = _averaged(gradient, state, options)
    return parameter - numbers[0] * (gradient / (square + options["eps"]).sqrt()), {"square_avg": square}


def sgd(
    parameter: th.Tensor, gradient: th.Tensor, state: State, numbers: Sequence[th.Tensor], options: Options
) -> tuple[th.Tensor, State]:
    """Stochastic gradient descent without momentum.

    :param state: Empty.
    :param options: ``weight_decay``.
    """
    return parameter - numbers[0] * _decayed(gradient, parameter, options), {}


def _decayed(gradient: th.Tensor, parameter: th.Tensor, options: Options) -> th.Tensor:
    decay = options["weight_decay"]
    return gradient.add(parameter, alpha=decay) if decay else gradient


def _averaged(gradient: th.Tensor, state: State, options: Options) -> th.Tensor:
    alpha: float = options["alpha"]
    return (alpha * state["square_avg"]).addcmul(gradient, gradient, value=1 - alpha)


def clip_by_norm(gradients: Sequence[th.Tensor], max_norm: th.Tensor) -> list[th.Tensor]:
    """Scale gradients so that their joint norm is at most ``max_norm``, as ``clip_grad_norm_`` does in place.

    :param gradients: Of any shapes.
    :param max_norm: A scalar tensor.
    :return: The scaled gradients.
    """
    norm = th.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * scale for gradient in gradients]


class CompiledOptimizer(NamedTuple):
    """The parts of an optimizer that can be compiled."""

    #: ``(step, options) -> numbers``
    numbers: Callable[[int, Options], tuple[float, ...]]
    #: ``(parameter, gradient, state, numbers, options) -> (new parameter, new state)``
    step: Callable[[th.Tensor, th.Tensor, State, Sequence[th.Tensor], Options], tuple[th.Tensor, State]]
    #: The initial state of a parameter, including the step count.
    new_state: Callable[[th.Tensor], dict[str, Any]]
    #: Options that are not supported.
    not_compiled: tuple[str, ...]


def _no_steps(parameter: th.Tensor) -> th.Tensor:
    return th.zeros((), device=parameter.device)


OPTIMIZERS: dict[type[th.optim.Optimizer], CompiledOptimizer] = {
    th.optim.Adam: CompiledOptimizer(
        adam_numbers,
        adam,
        lambda parameter: {
            "step": _no_steps(parameter),
            "exp_avg": th.zeros_like(parameter),
            "exp_avg_sq": th.zeros_like(parameter),
        },
        ("amsgrad", "maximize"),
    ),
    th.optim.RMSprop: CompiledOptimizer(
        rate_alone,
        rmsprop,
        lambda parameter: {"step": _no_steps(parameter), "square_avg": th.zeros_like(parameter)},
        ("momentum", "centered", "maximize"),
    ),
    RMSpropTFLike: CompiledOptimizer(
        rate_alone,
        rmsprop_tf_like,
        lambda parameter: {"step": 0, "square_avg": th.ones_like(parameter)},
        ("momentum", "centered"),
    ),
    th.optim.SGD: CompiledOptimizer(rate_alone, sgd, lambda parameter: {}, ("momentum", "maximize")),
}
OPTIMIZERS[th.optim.AdamW] = OPTIMIZERS[th.optim.Adam]
