"""Flip noise, normalization, statistics and transforms of advantages."""

import pytest
import torch as th

from srl.advantages import normalize_advantages, prepare_advantages, to_bins


def test_statistics_use_normalized_advantages_before_the_transform():
    advantages = th.tensor([1.0, 2.0, 3.0, 6.0])
    prepared = prepare_advantages(advantages, normalize=True, transform="sign")
    # mean 3: two of four positive advantages become negative, one becomes 0
    assert prepared.n_sign_changes.item() == 3
    assert prepared.abs_max.item() == pytest.approx(3 / advantages.std().item())
    assert prepared.advantages.tolist() == [-1.0, -1.0, 0.0, 1.0]


def test_flips_precede_normalization_and_count_as_sign_changes():
    advantages = th.tensor([1.0, 2.0, -3.0, 0.0])
    mask = th.tensor([True, False, True, True])
    prepared = prepare_advantages(advantages, flip_mask=mask)
    assert prepared.advantages.tolist() == [-1.0, 2.0, 3.0, 0.0]
    assert prepared.n_sign_changes.item() == 2
    normalized = prepare_advantages(advantages, flip_mask=mask, normalize=True)
    th.testing.assert_close(
        normalized.advantages, normalize_advantages(th.tensor([-1.0, 2.0, 3.0, 0.0])), rtol=0, atol=0
    )


def test_minibatch_of_one_is_not_normalized():
    assert prepare_advantages(th.tensor([3.0]), normalize=True).advantages.tolist() == [3.0]


def test_bins_round_away_from_zero_to_fifths_of_the_extremes():
    advantages = th.tensor([10.0, 2.0, 2.1, 0.01, 0.0, -0.1, -5.0, -1.0, -1.01, 8.0, 9.9])
    assert to_bins(advantages).tolist() == pytest.approx([10, 2, 4, 2, 0, -1, -5, -1, -2, 8, 10])


@pytest.mark.parametrize("seed", range(20))
def test_bins_satisfy_their_definition_for_random_advantages(seed):
    advantages = th.randn(64, generator=th.Generator().manual_seed(seed), dtype=th.float64)
    binned = to_bins(advantages)
    for side, extreme in ((advantages > 0, advantages.max()), (advantages < 0, advantages.min())):
        k = (binned[side] * 5 / extreme).round()
        assert k.min() >= 1
        assert k.max() == 5
        th.testing.assert_close(binned[side], k * extreme / 5)
        share = advantages[side] * 5 / extreme
        assert ((share <= k + 1e-9) & (share > k - 1 - 1e-9)).all()


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, 2.0], [-1.0, -5.0], [-3.0, 0.0]])
def test_bins_handle_advantages_of_one_sign_or_zero(values):
    binned = to_bins(th.tensor(values))
    assert th.isfinite(binned).all()
    assert th.equal(binned.sign(), th.tensor(values).sign())
    assert binned.abs().max() == th.tensor(values).abs().max()
