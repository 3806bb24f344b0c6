"""The layers of many networks of one shape, computed side by side with the results of each network alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

#: Elementwise modules, which need no change for a stack.
ELEMENTWISE = (nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Identity)
#: Below this many multiplications PyTorch's batched product has its own kernel, which rounds differently.
_SMALL_PRODUCT = 400

Layer = Callable[[th.Tensor], th.Tensor]


class StackedLinear:
    """``nn.Linear`` of each member.

    :param weight: Shape ``(S, n_out, n_in)``.
    :param bias: Shape ``(S, n_out)``.
    """

    def __init__(self, weight: th.Tensor, bias: th.Tensor):
        self._weight, self._bias = weight, bias
        # Views of the parameters, which change in place, for use without gradients
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


def stacked_layers(module: nn.Module, name: str, parameters: dict[str, th.Tensor]) -> list[Layer]:
    """The layers of a part of the policy, for members side by side.

    :param module: The first member's.
    :param name: The prefix of its parameters' names.
    :param parameters: The stacked parameters by name.
    """
    if isinstance(module, nn.Sequential):
        parts = module.named_children()
        return [layer for key, part in parts for layer in stacked_layers(part, f"{name}.{key}", parameters)]
    if isinstance(module, nn.Flatten):
        return [lambda x: x.flatten(2)]
    if isinstance(module, nn.Tanh):
        return [_tanh]
    if isinstance(module, nn.Conv2d):
        return [_StackedConv2d(module, *weight_and_bias(parameters, name))]
    if isinstance(module, nn.Linear):
        return [StackedLinear(*weight_and_bias(parameters, name))]
    return [module]


def _tanh(x: th.Tensor) -> th.Tensor:
    return th.tanh(x) if th.is_grad_enabled() else x.tanh_()


def weight_and_bias(parameters: dict[str, th.Tensor], name: str) -> tuple[th.Tensor, th.Tensor]:
    """The stacked weight and bias of the layer of this name."""
    return parameters[f"{name}.weight"], parameters[f"{name}.bias"]


def apply_layers(layers: Sequence[Layer], x: th.Tensor) -> th.Tensor:
    """The output of layers in sequence."""
    for layer in layers:
        x = layer(x)
    return x


def _one_by_one(x: th.Tensor, weight: th.Tensor) -> bool:
    """Whether a batched product would round differently from the product of each member alone."""
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
    """``nn.Linear`` with one output for each member, forward and backward bitwise identical to its own."""

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
