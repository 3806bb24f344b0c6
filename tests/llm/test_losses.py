"""Losses on masked tokens: formulas, gradient identities, numerical safety at padding."""

import pytest
import torch as th

from srl.llm.losses import (
    AGGREGATIONS,
    advantage_weights,
    generalized_advantages,
    kl_estimate,
    normalize_masked,
    policy_losses,
    token_weights,
    value_loss,
)

#: Response lengths in a batch.
LENGTHS = (9, 4, 1, 7)


def batch(dtype=th.float64, n_words=11, seed=0):
    """Return logits, log probabilities of the policy and of an older policy, advantages and mask."""
    generator = th.Generator().manual_seed(seed)
    shape = (len(LENGTHS), max(LENGTHS))
    logits = th.randn(*shape, n_words, generator=generator, dtype=dtype, requires_grad=True)
    old_logits = logits.detach() + 0.5 * th.randn(*shape, n_words, generator=generator, dtype=dtype)
    tokens = th.randint(n_words, (*shape, 1), generator=generator)
    log_prob, old = (th.log_softmax(x, -1).gather(-1, tokens)[..., 0] for x in (logits, old_logits))
    advantages = 2 * th.randn(*shape, generator=generator, dtype=dtype)
    mask = th.arange(shape[1]) < th.tensor(LENGTHS)[:, None]
    return logits, log_prob, old, advantages, mask


def gradient(loss, logits):
    return th.autograd.grad(loss, logits, retain_graph=True)[0]


@pytest.mark.parametrize(("reverse_loss", "c"), [("rce", 0.5 + 0.4 * 1.5), ("mae", 0.5 + 0.4 * 2)])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradient_is_a_multiple_of_the_ppo_gradient(reverse_loss, c, masked, aggregation):
    logits, log_prob, old, advantages, mask = batch()
    advantages = normalize_masked(advantages, mask, masked=masked)
    weights = token_weights(mask, aggregation, dtype=th.float64)
    arguments = (log_prob, old, advantages, mask)
    options = {"alpha": 0.5, "beta": 0.4, "z": -1.5, "reverse_loss": reverse_loss, "weights": weights}
    symmetric = policy_losses(*arguments, **options)
    ppo = policy_losses(*arguments, alpha=1.0, beta=0.0, weights=weights)
    assert 0 < ppo.clip_fraction < 1
    expected = c * gradient(ppo.loss, logits)
    th.testing.assert_close(gradient(symmetric.loss, logits), expected, rtol=1e-12, atol=1e-15)
    th.testing.assert_close(gradient(symmetric.surrogate, logits), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("reverse_loss", "factor"), [("rce", 1.5), ("mae", 2.0)])
def test_loss_without_importance_weighting_weights_advantages_by_probability(reverse_loss, factor):
    logits, log_prob, _, advantages, mask = batch()
    old = log_prob.detach()  # so that nothing is clipped
    symmetric = policy_losses(
        *(log_prob, old, advantages, mask),
        alpha=0.5,
        beta=0.4,
        z=-1.5,
        reverse_loss=reverse_loss,
        importance_weighting=False,
    )
    weighed = advantages * (0.5 + 0.4 * factor * old.exp())
    ppo = policy_losses(log_prob, old, weighed, mask, alpha=1.0, beta=0.0)
    th.testing.assert_close(
        gradient(symmetric.loss, logits), gradient(ppo.loss, logits), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("reverse_loss", ["rce", "mae"])
@pytest.mark.parametrize("importance_weighting", [True, False])
def test_ppo_with_weighted_advantages_has_the_same_gradient(reverse_loss, importance_weighting):
    logits, log_prob, old, advantages, mask = batch()
    options = {"alpha": 0.5, "beta": 0.4, "z": -1.5, "reverse_loss": reverse_loss}
    options["importance_weighting"] = importance_weighting
    symmetric = policy_losses(log_prob, old, advantages, mask, **options)
    weighted = advantages * advantage_weights(old, **options)
    ppo = policy_losses(log_prob, old, weighted, mask, alpha=1.0, beta=0.0)
    assert 0 < ppo.clip_fraction < 1
    th.testing.assert_close(
        gradient(symmetric.loss, logits), gradient(ppo.loss, logits), rtol=1e-12, atol=1e-15
    )


def test_losses_match_formulas():
    _, log_prob, old, advantages, mask = batch()
    found = policy_losses(log_prob, old, advantages, mask, alpha=0.5, beta=0.4, z=-1.0)
    pi, pi_old = log_prob.exp(), old.exp()
    ratio, m = pi / pi_old, mask.double()
    surrogate = th.minimum(advantages * ratio, advantages * ratio.clamp(0.8, 1.2))
    f = (advantages * ratio <= advantages * ratio.clamp(0.8, 1.2)).double()
    policy = -(surrogate * m).sum() / m.sum()
    reverse = (f * advantages * (1 - pi) / pi_old * m).sum() / m.sum()
    th.testing.assert_close(found.policy_loss, policy, rtol=1e-12, atol=0)
    th.testing.assert_close(found.reverse_loss, reverse, rtol=1e-12, atol=0)
    th.testing.assert_close(found.loss, 0.5 * policy + 0.4 * reverse, rtol=1e-12, atol=0)


def test_upper_clip_range_can_differ():
    _, log_prob, old, advantages, mask = batch()
    found = policy_losses(log_prob, old, advantages, mask, clip_range=0.2, clip_range_high=0.4, beta=0.0)
    ratio = (log_prob - old).exp()
    expected = -th.minimum(advantages * ratio, advantages * ratio.clamp(0.8, 1.4))[mask].mean()
    th.testing.assert_close(found.policy_loss, expected)


def test_alpha_1_beta_0_is_bitwise_identical_to_ppo():
    logits, log_prob, old, advantages, mask = batch(th.float32)
    ppo = policy_losses(log_prob, old, advantages, mask, alpha=1.0, beta=0.0)
    assert ppo.loss.equal(ppo.policy_loss)
    assert gradient(ppo.loss, logits).equal(gradient(ppo.policy_loss, logits))


@pytest.mark.parametrize("padding", [-200.0, float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"reverse_loss": "mae"}, {"importance_weighting": False}])
def test_padding_does_not_change_loss_or_gradient(padding, options):
    logits, log_prob, old, advantages, mask = batch(th.float32)
    clean = policy_losses(log_prob, old, advantages, mask, **options)
    spoilt = policy_losses(
        log_prob, old.where(mask, padding), advantages.where(mask, padding), mask, **options
    )
    assert spoilt.loss.isfinite()
    assert clean.loss.equal(spoilt.loss)
    assert gradient(clean.loss, logits).equal(gradient(spoilt.loss, logits))
    values, returns = th.randn(2, *mask.shape, generator=th.Generator().manual_seed(1))
    assert value_loss(values.where(mask, padding), returns, values, mask).isfinite()
    assert kl_estimate(log_prob, old.where(mask, padding), mask).isfinite().all()
    assert normalize_masked(advantages.where(mask, padding), mask).isfinite().all()
    assert normalize_masked(advantages.where(mask, padding), mask, masked=False).isfinite().all()


def test_unlikely_unmasked_tokens_have_finite_loss_and_gradient():
    _, _, _, advantages, mask = batch(th.float32)
    log_prob = th.full(mask.shape, -200.0, requires_grad=True)
    found = policy_losses(log_prob, th.full(mask.shape, -200.1), advantages, mask)
    (got,) = th.autograd.grad(found.loss, log_prob)
    assert found.loss.isfinite()
    ppo = policy_losses(log_prob, th.full(mask.shape, -200.1), advantages, mask, alpha=1.0, beta=0.0)
    th.testing.assert_close(got, 1.5 * th.autograd.grad(ppo.loss, log_prob)[0])


def test_value_loss_is_half_the_larger_squared_error():
    mask = th.tensor([[True, True, False]])
    values, old, returns = (
        th.tensor([[1.0, 0.1, 9.0]]),
        th.tensor([[0.0, 0.0, 0.0]]),
        th.tensor([[2.0, 0.0, 0]]),
    )
    # V is clipped to 0.2 at the first token: (0.2 - 2)^2 is larger than (1 - 2)^2
    th.testing.assert_close(value_loss(values, old, returns, mask), th.tensor(0.5 * (1.8**2 + 0.1**2) / 2))
    unclipped = value_loss(values, old, returns, mask, clip_range=None)
    th.testing.assert_close(unclipped, th.tensor(0.5 * (1.0 + 0.1**2) / 2))


def test_unmasked_normalization_counts_padding_as_zeros():
    _, _, _, advantages, mask = batch()
    ours = normalize_masked(advantages, mask)
    assert abs(ours[mask].mean()) < 1e-12
    assert abs(ours[mask].std() - 1) < 1e-6
    zeros = advantages * mask
    theirs = (zeros - zeros.mean()) / (zeros.std() + 1e-8)
    th.testing.assert_close(normalize_masked(advantages, mask, masked=False)[mask], theirs[mask])
    assert not ours[~mask].any()


def test_advantages_do_not_depend_on_padding():
    _, _, _, rewards, mask = batch()
    values = th.randn_like(rewards)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    for row, length in enumerate(LENGTHS):
        r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), 0.0]
        expected = 0.0
        for t in reversed(range(length)):
            expected = r[t] + 0.9 * v[t + 1] - v[t] + 0.9 * 0.8 * expected
            assert abs(advantages[row, t] - expected) < 1e-12
        assert not advantages[row, length:].any()
    th.testing.assert_close(returns, advantages + values.where(mask, 0.0))


def test_aggregations_weight_tokens_according_to_their_names():
    mask = th.tensor([[True, True, True, False], [True, False, False, False]])
    losses = th.tensor([[1.0, 2.0, 3.0, 50.0], [10.0, 50.0, 50.0, 50.0]])
    found = {name: float((token_weights(mask, name) * losses).sum()) for name in AGGREGATIONS}
    assert found == pytest.approx(
        {
            "token-mean": 16 / 4,
            "seq-mean-token-sum": (6 + 10) / 2,
            "seq-mean-token-mean": (2 + 10) / 2,
            "seq-mean-token-sum-norm": (6 + 10) / 2 / 4,
        }
    )
    with pytest.raises(ValueError, match="token-mean"):
        token_weights(mask, "mean")
