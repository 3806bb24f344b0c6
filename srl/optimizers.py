"""Optimizer steps as pure functions of tensors, for compiled updates.

Each function computes what the optimizer of the same name computes in place. ``learning_rate`` is a tensor
without dimensions, so that a schedule needs no new compilation; the other options are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

#: The tensors that an optimizer keeps for a parameter, by the names in its ``state``.
State = dict[str, th.Tensor]
#: ``(parameter, gradient, state, learning_rate, options) -> (new parameter, new state)``
Step = Callable[
    [th.Tensor, th.Tensor, State, th.Tensor, Mapping[str, Any]],
    tuple[th.Tensor, State],
]


def adam(
    parameter: th.Tensor,
    gradient: th.Tensor,
    state: State,
    learning_rate: th.Tensor,
    options: Mapping[str, Any],
) -> tuple[th.Tensor, State]:
    """Adam (Kingma and Ba 2015), and AdamW with ``decoupled_weight_decay`` (Loshchilov and Hutter 2019).

    :param parameter: Any shape.
    :param gradient: The same shape.
    :param state: ``step``, ``exp_avg`` and ``exp_avg_sq``.
    :param learning_rate: Without dimensions.
    :param options: ``betas``, ``eps``, ``weight_decay`` and ``decoupled_weight_decay``.
    :return: The new parameter and the new state.
    """
    beta1, beta2 = options["betas"]
    decay = options["weight_decay"]
    if decay and options.get("decoupled_weight_decay"):
        parameter = parameter * (1 - learning_rate * decay)
    elif decay:
        gradient = gradient + decay * parameter
    step = state["step"] + 1
    # In float64, as the numbers of Python that the optimizer computes them from
    time = step.double()
    average = th.lerp(state["exp_avg"], gradient, 1 - beta1)
    square = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient * gradient
    step_size = learning_rate / (1 - beta1**time)
    denominator = square.sqrt() / (1 - beta2**time).sqrt() + options["eps"]
    parameter = parameter - step_size * (average / denominator)
    return parameter, {"step": step, "exp_avg": average, "exp_avg_sq": square}


def rmsprop(
    parameter: th.Tensor,
    gradient: th.Tensor,
    state: State,
    learning_rate: th.Tensor,
    options: Mapping[str, Any],
) -> tuple[th.Tensor, State]:
    """PyTorch's RMSprop, which adds ``eps`` after the square root.

    :param parameter: Any shape.
    :param gradient: The same shape.
    :param state: ``step`` and ``square_avg``.
    :param learning_rate: Without dimensions.
    :param options: ``alpha``, ``eps`` and ``weight_decay``.
    :return: The new parameter and the new state.
    """
    gradient, square = _squares(parameter, gradient, state, options)
    parameter = parameter - learning_rate * (gradient / (square.sqrt() + options["eps"]))
    return parameter, {"step": state["step"] + 1, "square_avg": square}


def rmsprop_tf_like(
    parameter: th.Tensor,
    gradient: th.Tensor,
    state: State,
    learning_rate: th.Tensor,
    options: Mapping[str, Any],
) -> tuple[th.Tensor, State]:
    """SB3's RMSpropTFLike, the default of A2C, which adds ``eps`` below the square root.

    :param parameter: Any shape.
    :param gradient: The same shape.
    :param state: ``square_avg``.
    :param learning_rate: Without dimensions.
    :param options: ``alpha``, ``eps`` and ``weight_decay``.
    :return: The new parameter and the new state.
    """
    gradient, square = _squares(parameter, gradient, state, options)
    parameter = parameter - learning_rate * (gradient / (square + options["eps"]).sqrt())
    return parameter, {"square_avg": square}


def _squares(
    parameter: th.Tensor, gradient: th.Tensor, state: State, options: Mapping[str, Any]
) -> tuple[th.Tensor, th.Tensor]:
    if options["weight_decay"]:
        gradient = gradient + options["weight_decay"] * parameter
    alpha = options["alpha"]
    return gradient, alpha * state["square_avg"] + (1 - alpha) * gradient * gradient


def sgd(
    parameter: th.Tensor,
    gradient: th.Tensor,
    state: State,
    learning_rate: th.Tensor,
    options: Mapping[str, Any],
) -> tuple[th.Tensor, State]:
    """Stochastic gradient descent without momentum.

    :param parameter: Any shape.
    :param gradient: The same shape.
    :param state: Empty.
    :param learning_rate: Without dimensions.
    :param options: ``weight_decay``.
    :return: The new parameter, and nothing.
    """
    if options["weight_decay"]:
        gradient = gradient + options["weight_decay"] * parameter
    return parameter - learning_rate * gradient, {}


def clip_by_norm(gradients: Sequence[th.Tensor], max_norm: th.Tensor) -> list[th.Tensor]:
    """Scale gradients so that their joint norm is at most ``max_norm``, as ``clip_grad_norm_`` does in place.

    :param gradients: Of any shapes.
    :param max_norm: Without dimensions.
    :return: The scaled gradients.
    """
    norm = th.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * scale for gradient in gradients]


class CompiledOptimizer(NamedTuple):
    """What is needed to compile an optimizer."""

    step: Step
    #: The state of a parameter before its first step.
    new_state: Callable[[th.Tensor], dict[str, Any]]
    #: Options with which :attr:`step` is not the optimizer's.
    not_compiled: tuple[str, ...]


OPTIMIZERS: dict[type[th.optim.Optimizer], CompiledOptimizer] = {
    th.optim.Adam: CompiledOptimizer(
        adam,
        lambda parameter: {
            "step": th.tensor(0.0, device=parameter.device),
            "exp_avg": th.zeros_like(parameter),
            "exp_avg_sq": th.zeros_like(parameter),
        },
        ("amsgrad", "maximize"),
    ),
    th.optim.RMSprop: CompiledOptimizer(
        rmsprop,
        lambda parameter: {
            "step": th.tensor(0.0, device=parameter.device),
            "square_avg": th.zeros_like(parameter),
        },
        ("momentum", "centered", "maximize"),
    ),
    RMSpropTFLike: CompiledOptimizer(
        rmsprop_tf_like,
        lambda parameter: {"step": 0, "square_avg": th.ones_like(parameter)},
        ("momentum", "centered"),
    ),
    th.optim.SGD: CompiledOptimizer(sgd, lambda parameter: {}, ("momentum", "maximize")),
}
OPTIMIZERS[th.optim.AdamW] = OPTIMIZERS[th.optim.Adam]
