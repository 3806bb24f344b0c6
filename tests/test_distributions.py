"""The batched MultiCategorical distribution matches SB3's except for its random draws."""

import pytest
import torch as th
from stable_baselines3.common.distributions import MultiCategoricalDistribution

from srl.distributions import (
    BatchedMultiCategoricalDistribution,
    UncheckedBernoulliDistribution,
    UncheckedCategoricalDistribution,
    UncheckedDiagGaussianDistribution,
)

SIZES = [[11] * 6, [3], [2, 5, 3], [1, 4], [2, 2]]


def pair(sizes, scale=2.0, batch_size=50):
    logits = scale * th.randn(batch_size, sum(sizes), generator=th.Generator().manual_seed(0))
    ours = BatchedMultiCategoricalDistribution(sizes).proba_distribution(logits.clone().requires_grad_())
    theirs = MultiCategoricalDistribution(sizes).proba_distribution(logits.clone().requires_grad_())
    return ours, theirs


@pytest.mark.parametrize("sizes", SIZES)
def test_log_prob_entropy_and_mode_match_sb3(sizes):
    ours, theirs = pair(sizes)
    actions = theirs.sample()
    th.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    th.testing.assert_close(ours.log_prob(actions.float()), theirs.log_prob(actions))
    th.testing.assert_close(ours.entropy(), theirs.entropy())
    assert th.equal(ours.mode(), theirs.mode())
    for ours_dim, theirs_dim in zip(ours.distribution, theirs.distribution, strict=True):
        th.testing.assert_close(ours_dim.probs, theirs_dim.probs)


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_match_sb3(sizes):
    gradients = []
    for cls in (BatchedMultiCategoricalDistribution, MultiCategoricalDistribution):
        logits = th.randn(50, sum(sizes), generator=th.Generator().manual_seed(1)).requires_grad_()
        distribution = cls(sizes).proba_distribution(logits)
        actions = th.zeros(50, len(sizes), dtype=th.long)
        (distribution.log_prob(actions).mean() + 0.3 * distribution.entropy().mean()).backward()
        gradients.append(logits.grad)
    assert th.isfinite(gradients[0]).all()
    th.testing.assert_close(*gradients)


@pytest.mark.parametrize("sizes", [[3, 3], [2, 5, 3]])
def test_masked_choices_match_sb3(sizes):
    both = []
    for cls in (BatchedMultiCategoricalDistribution, MultiCategoricalDistribution):
        logits = th.randn(20, sum(sizes), generator=th.Generator().manual_seed(1)).requires_grad_()
        mask = th.zeros(sum(sizes))
        mask[0] = -th.inf
        distribution = cls(sizes).proba_distribution(logits + mask)
        actions = th.ones(20, len(sizes), dtype=th.long)
        log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        (log_prob.mean() + 0.3 * entropy.mean()).backward()
        both.append((log_prob, entropy, logits.grad))
        assert (distribution.sample()[:, 0] > 0).all()
    for ours, theirs in zip(*both, strict=True):
        th.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("sizes", SIZES)
def test_sample_frequencies_match_probabilities(sizes):
    th.manual_seed(0)
    logits = th.randn(1, sum(sizes)).repeat(20000, 1)
    distribution = BatchedMultiCategoricalDistribution(sizes).proba_distribution(logits)
    samples = distribution.sample()
    assert samples.shape == (20000, len(sizes))
    for dim, (size, part) in enumerate(zip(sizes, th.split(logits[0], sizes), strict=True)):
        frequencies = th.bincount(samples[:, dim], minlength=size) / 20000
        assert len(frequencies) == size
        th.testing.assert_close(frequencies, th.softmax(part, 0), atol=0.015, rtol=0)


def distributions(batch_size):
    """Return one distribution of each kind with random logits."""
    generator = th.Generator().manual_seed(3)

    def logits(n):
        return 2 * th.randn(batch_size, n, generator=generator)

    return {
        "Categorical": UncheckedCategoricalDistribution(4).proba_distribution(logits(4)),
        "Bernoulli": UncheckedBernoulliDistribution(3).proba_distribution(logits(3)),
        "DiagGaussian": UncheckedDiagGaussianDistribution(2).proba_distribution(
            logits(2), th.tensor([-1.0, 0.5])
        ),
        "MultiCategorical": BatchedMultiCategoricalDistribution([11] * 6).proba_distribution(logits(66)),
        "unequal MultiCategorical": BatchedMultiCategoricalDistribution([2, 5, 3]).proba_distribution(
            logits(10)
        ),
    }


@pytest.mark.parametrize("batch_size", [1, 4, 16, 100])
@pytest.mark.parametrize("kind", distributions(1))
def test_choose_with_draws_matches_sample_with_the_same_seed(kind, batch_size):
    distribution = distributions(batch_size)[kind]
    th.manual_seed(9)
    generator = th.Generator().manual_seed(9)
    for _ in range(5):
        sample, draws = distribution.sample(), distribution.draws(generator)
        assert len(draws) == batch_size
        choice = distribution.choose(draws)
        assert choice.dtype == sample.dtype
        assert th.equal(choice, sample)
    assert th.equal(generator.get_state(), th.get_rng_state())


@pytest.mark.parametrize("size", [1, 2, 5, 8, 64, 100])
@pytest.mark.parametrize("dims", [[11] * 6, [2, 5, 3], [3], [11] * 17], ids=str)
def test_row_does_not_depend_on_batch_size(dims, size):
    n_rows = 100
    generator = th.Generator().manual_seed(4)
    all_logits = 2 * th.randn(n_rows, sum(dims), generator=generator)
    actions = th.stack([th.randint(n, (n_rows,), generator=generator) for n in dims], dim=1)
    draws = th.rand(n_rows, len(dims), generator=generator)

    def figures(rows):
        logits = all_logits[rows].clone().requires_grad_()
        distribution = BatchedMultiCategoricalDistribution(dims).proba_distribution(logits)
        log_prob, entropy = distribution.log_prob(actions[rows]), distribution.entropy()
        choice, mode = distribution.choose(draws[rows]), distribution.mode()
        (log_prob + 0.1 * entropy).sum().backward()
        return log_prob, entropy, choice, mode, logits.grad

    of_all = figures(slice(None))
    for first in range(0, n_rows - size + 1, size):
        rows = slice(first, first + size)
        for some, all_rows in zip(figures(rows), of_all, strict=True):
            assert th.equal(some, all_rows[rows])


@pytest.mark.parametrize("weight", [0.5, 3.0, -20.0])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradient_of_weighted_entropy_matches_sb3(sizes, weight):
    gradients = []
    for cls in (BatchedMultiCategoricalDistribution, MultiCategoricalDistribution):
        logits = th.randn(5, sum(sizes), generator=th.Generator().manual_seed(1)).requires_grad_()
        (weight * cls(sizes).proba_distribution(logits).entropy()).sum().backward()
        gradients.append(logits.grad)
    assert th.isfinite(gradients[0]).all()
    th.testing.assert_close(*gradients)
