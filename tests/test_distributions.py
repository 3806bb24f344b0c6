"""The batched MultiCategorical is SB3's distribution with other random draws."""

import pytest
import torch as th
from stable_baselines3.common.distributions import MultiCategoricalDistribution

from srl.distributions import BatchedMultiCategoricalDistribution

SIZES = [[11] * 6, [3], [2, 5, 3], [1, 4], [2, 2]]


def pair(sizes, scale=2.0, batch_size=50):
    logits = scale * th.randn(batch_size, sum(sizes), generator=th.Generator().manual_seed(0))
    ours = BatchedMultiCategoricalDistribution(sizes).proba_distribution(logits.clone().requires_grad_())
    theirs = MultiCategoricalDistribution(sizes).proba_distribution(logits.clone().requires_grad_())
    return ours, theirs


@pytest.mark.parametrize("sizes", SIZES)
def test_log_prob_entropy_mode_are_those_of_sb3(sizes):
    ours, theirs = pair(sizes)
    actions = theirs.sample()
    th.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    th.testing.assert_close(ours.log_prob(actions.float()), theirs.log_prob(actions))
    th.testing.assert_close(ours.entropy(), theirs.entropy())
    assert th.equal(ours.mode(), theirs.mode())
    for ours_dim, theirs_dim in zip(ours.distribution, theirs.distribution, strict=True):
        th.testing.assert_close(ours_dim.probs, theirs_dim.probs)


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_those_of_sb3(sizes):
    gradients = []
    for cls in (BatchedMultiCategoricalDistribution, MultiCategoricalDistribution):
        logits = th.randn(50, sum(sizes), generator=th.Generator().manual_seed(1)).requires_grad_()
        distribution = cls(sizes).proba_distribution(logits)
        actions = th.zeros(50, len(sizes), dtype=th.long)
        (distribution.log_prob(actions).mean() + 0.3 * distribution.entropy().mean()).backward()
        gradients.append(logits.grad)
    assert th.isfinite(gradients[0]).all()
    th.testing.assert_close(*gradients)


@pytest.mark.parametrize("sizes", SIZES)
def test_samples_follow_the_probabilities(sizes):
    th.manual_seed(0)
    logits = th.randn(1, sum(sizes)).repeat(20000, 1)
    distribution = BatchedMultiCategoricalDistribution(sizes).proba_distribution(logits)
    samples = distribution.sample()
    assert samples.shape == (20000, len(sizes))
    for dim, (size, part) in enumerate(zip(sizes, th.split(logits[0], sizes), strict=True)):
        frequencies = th.bincount(samples[:, dim], minlength=size) / 20000
        assert len(frequencies) == size
        th.testing.assert_close(frequencies, th.softmax(part, 0), atol=0.015, rtol=0)
