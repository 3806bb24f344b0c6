"""Optimizer steps as pure functions match PyTorch's optimizers."""

import pytest
import torch as th
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from srl.optimizers import OPTIMIZERS, clip_by_norm


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "optimizer_class", [th.optim.Adam, th.optim.AdamW, th.optim.RMSprop, RMSpropTFLike, th.optim.SGD]
)
def test_functional_steps_match_the_optimizer(optimizer_class, weight_decay):
    generator = th.Generator().manual_seed(0)
    theirs = th.nn.Parameter(th.randn(5, 3, generator=generator))
    optimizer = optimizer_class([theirs], lr=0.01, weight_decay=weight_decay)
    (group,) = optimizer.param_groups
    rule = OPTIMIZERS[optimizer_class]
    ours, state = theirs.detach().clone(), rule.new_state(theirs)
    for number, rate in enumerate((0.01, 0.005, 0.002, 0.0), start=1):
        group["lr"] = rate
        gradient = th.randn(5, 3, generator=generator)
        theirs.grad = gradient.clone()
        optimizer.step()
        numbers = th.tensor(rule.numbers(number, group), dtype=th.float64).unbind()
        ours, new = rule.step(ours, gradient, state, numbers, group)
        state = state | new
        assert ours.dtype == th.float32
        th.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)
        own = optimizer.state[theirs]
        for name, value in new.items():
            th.testing.assert_close(value, own[name], rtol=1e-6, atol=1e-7)
    assert {name: type(value) for name, value in state.items()} == {
        name: type(value) for name, value in optimizer.state[theirs].items() if value is not None
    }


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_clipped_gradients_match_pytorch(max_norm):
    generator = th.Generator().manual_seed(0)
    gradients = [th.randn(4, 3, generator=generator), th.randn(2, generator=generator)]
    parameters = [th.nn.Parameter(th.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    th.nn.utils.clip_grad_norm_(parameters, max_norm)
    ours = clip_by_norm(gradients, th.tensor(max_norm, dtype=th.float64))
    for clipped, parameter in zip(ours, parameters, strict=True):
        th.testing.assert_close(clipped, parameter.grad, rtol=1e-6, atol=0)
