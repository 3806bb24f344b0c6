"""The losses: formulas, gradient identities and numerical stability."""

import pytest
import torch as th

from srl.losses import (
    a2c_reverse_loss,
    clipped_surrogate_loss,
    inverse_probability,
    policy_gradient_loss,
    ppo_reverse_loss,
)

EPS = 0.2


def minibatch(seed: int = 0, size: int = 257, dtype: th.dtype = th.float64):
    """Return a minibatch whose new and old policies differ enough for clipping on both sides."""
    generator = th.Generator().manual_seed(seed)
    logits = th.randn(size, 7, generator=generator, dtype=dtype, requires_grad=True)
    old_logits = logits.detach() + 0.5 * th.randn(size, 7, generator=generator, dtype=dtype)
    actions = th.randint(7, (size, 1), generator=generator)
    advantages = 2 * th.randn(size, generator=generator, dtype=dtype)
    advantages[0] = 0.0
    log_prob = th.log_softmax(logits, -1).gather(1, actions).squeeze(1)
    old_log_prob = th.log_softmax(old_logits, -1).gather(1, actions).squeeze(1)
    return logits, log_prob, old_log_prob, advantages


def sppo_losses(log_prob, old_log_prob, advantages, **options):
    ratio = th.exp(log_prob - old_log_prob)
    policy_loss, passes = clipped_surrogate_loss(advantages, ratio, EPS)
    reverse = ppo_reverse_loss(advantages, log_prob, old_log_prob, ratio, passes, **options)
    return policy_loss, reverse, passes


def gradient(loss, parameters):
    return th.autograd.grad(loss, parameters, retain_graph=True)[0]


@pytest.mark.parametrize(("reverse_loss", "z"), [("rce", -1.0), ("rce", -6.0), ("mae", -1.0), ("mae", -6.0)])
def test_sppo_losses_match_formulas(reverse_loss, z):
    _, log_prob, old_log_prob, advantages = minibatch()
    policy_loss, reverse, passes = sppo_losses(
        log_prob, old_log_prob, advantages, reverse_loss=reverse_loss, z=z
    )
    pi, pi_old = log_prob.exp(), old_log_prob.exp()
    ratio = pi / pi_old
    clipped = ratio.clamp(1 - EPS, 1 + EPS)
    inside = (ratio >= 1 - EPS) & (ratio <= 1 + EPS)
    f = (inside | (advantages * ratio <= advantages * clipped)).double()
    assert 0 < f.mean() < 1
    th.testing.assert_close(f.bool(), passes)
    th.testing.assert_close(policy_loss, -th.minimum(advantages * ratio, advantages * clipped).mean())
    if reverse_loss == "rce":
        expected = -(f * advantages * z * (1 - pi) / pi_old).mean()
    else:
        expected = (f * advantages * (1 - 2 * pi) / pi_old).mean()
    th.testing.assert_close(reverse, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("alpha", "beta", "z"), [(0.5, 1.0, -1.0), (0.5, 20.0, -1.0), (0.7, 2.5, -6.0)])
@pytest.mark.parametrize("reverse_loss", ["rce", "mae"])
def test_sppo_gradient_is_a_multiple_of_the_policy_gradient(seed, alpha, beta, z, reverse_loss):
    logits, log_prob, old_log_prob, advantages = minibatch(seed)
    policy_loss, reverse, _ = sppo_losses(log_prob, old_log_prob, advantages, reverse_loss=reverse_loss, z=z)
    scale = alpha - beta * z if reverse_loss == "rce" else alpha + 2 * beta
    th.testing.assert_close(
        gradient(alpha * policy_loss + beta * reverse, logits),
        scale * gradient(policy_loss, logits),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize(("reverse_loss", "slope"), [("rce", 3.0), ("mae", 2.0)])
def test_sppo_without_importance_weighting_weights_gradient_as_documented(reverse_loss, slope):
    logits, log_prob, old_log_prob, advantages = minibatch()
    alpha, beta, z = 0.5, 1.5, -3.0
    policy_loss, reverse, passes = sppo_losses(
        log_prob, old_log_prob, advantages, reverse_loss=reverse_loss, z=z, importance_weighting=False
    )
    ratio = th.exp(log_prob - old_log_prob)
    weight = passes * advantages * (alpha * ratio + beta * slope * log_prob.exp())
    th.testing.assert_close(
        gradient(alpha * policy_loss + beta * reverse, logits),
        gradient(-(weight.detach() * log_prob).mean(), logits),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize(("reverse_loss", "slope"), [("rce", 6.0), ("mae", 2.0)])
def test_sa2c_gradient_is_weighted_by_probability(reverse_loss, slope):
    logits, log_prob, _, advantages = minibatch()
    alpha, beta, z = 0.7, 2.5, -6.0
    loss = alpha * policy_gradient_loss(advantages, log_prob)
    loss = loss + beta * a2c_reverse_loss(advantages, log_prob, reverse_loss=reverse_loss, z=z)
    weight = advantages * (alpha + beta * slope * log_prob.exp())
    th.testing.assert_close(
        gradient(loss, logits), gradient(-(weight.detach() * log_prob).mean(), logits), rtol=0, atol=1e-12
    )


def test_sa2c_losses_match_formulas():
    _, log_prob, _, advantages = minibatch()
    pi = log_prob.exp()
    th.testing.assert_close(
        a2c_reverse_loss(advantages, log_prob, reverse_loss="rce", z=-4.0),
        -(advantages * -4.0 * (1 - pi)).mean(),
    )
    th.testing.assert_close(
        a2c_reverse_loss(advantages, log_prob, reverse_loss="mae"), (advantages * (1 - 2 * pi)).mean()
    )


@pytest.mark.parametrize("importance_weighting", [True, False])
@pytest.mark.parametrize("reverse_loss", ["rce", "mae"])
@pytest.mark.parametrize("level", [-60.0, -95.0, -200.0, -5000.0])
def test_tiny_probabilities_have_finite_and_correct_loss_and_gradient(
    level, reverse_loss, importance_weighting
):
    """1 / pi_old overflows float32 below log pi_old = -88; only the ratio, near 1, has a gradient."""
    generator = th.Generator().manual_seed(0)
    offsets = 0.1 * th.randn(64, generator=generator)
    old_log_prob = th.full((64,), level)
    old_log_prob[:8] = -1.0
    log_prob = (old_log_prob + offsets).requires_grad_()
    advantages = th.randn(64, generator=generator)
    policy_loss, reverse, passes = sppo_losses(
        log_prob,
        old_log_prob,
        advantages,
        reverse_loss=reverse_loss,
        z=-2.0,
        importance_weighting=importance_weighting,
    )
    loss = 0.5 * policy_loss + 20.0 * reverse
    assert th.isfinite(loss)
    found = gradient(loss, log_prob)
    # In float64: the gradient of -ratio with respect to log pi is -ratio
    exact_ratio = th.exp(log_prob.detach().double() - old_log_prob.double())
    pi = log_prob.detach().double().exp()
    scale = 0.5 * exact_ratio + 20.0 * 2.0 * (exact_ratio if importance_weighting else pi)
    expected = -advantages * passes * scale / 64
    assert th.isfinite(found).all()
    th.testing.assert_close(found.double(), expected, rtol=1e-3 if level < -1000 else 1e-4, atol=1e-9)


def test_inverse_probability_is_exact_until_it_saturates():
    log_prob = th.tensor([0.0, -1.0, -30.0, -60.0, -100.0, -float("inf")])
    inverse = inverse_probability(log_prob)
    th.testing.assert_close(inverse[:4], th.exp(-log_prob[:4]))
    assert th.isfinite(inverse).all()
    assert inverse[4] == inverse[5] > inverse[3]
