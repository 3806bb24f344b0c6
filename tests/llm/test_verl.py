"""The policy loss for verl, and its comparison with verl if that is installed."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch as th

from srl.errors import UserError
from srl.llm.losses import AGGREGATIONS, policy_losses, token_weights
from srl.llm.verl import SymmetricWeights, aggregation_weights, make_policy_loss, register
from tests.llm.test_losses import batch, gradient

CONFIG = SimpleNamespace(clip_ratio=0.2, clip_ratio_low=None, clip_ratio_high=0.3, global_batch_info={})


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("importance_weighting", [True, False])
def test_loss_matches_loss_on_masked_tokens(mode, importance_weighting):
    logits, log_prob, old, advantages, mask = batch()
    weights = SymmetricWeights(0.5, 0.4, -1.5, importance_weighting=importance_weighting)
    loss, metrics = make_policy_loss(weights)(old, log_prob, advantages, mask.long(), mode, CONFIG)
    expected = policy_losses(
        *(log_prob, old, advantages, mask),
        clip_range_high=0.3,
        **vars(weights),
        weights=token_weights(mask, mode, dtype=th.float64),
    )
    th.testing.assert_close(loss, expected.loss, rtol=1e-7, atol=0)
    th.testing.assert_close(gradient(loss, logits), gradient(expected.loss, logits), rtol=1e-7, atol=1e-12)
    assert metrics["actor/pg_clipfrac"] > 0


def test_rollout_importance_ratios_weight_tokens():
    logits, log_prob, old, advantages, mask = batch()
    function = make_policy_loss()
    plain, _ = function(old, log_prob, advantages, mask, config=CONFIG)
    doubled, _ = function(
        old, log_prob, advantages, mask, config=CONFIG, rollout_is_weights=th.full_like(old, 2.0)
    )
    th.testing.assert_close(gradient(doubled, logits), 2 * gradient(plain, logits))


def test_unknown_aggregation_is_rejected():
    with pytest.raises(UserError, match="loss_agg_mode='mean' is not one of token-sum, token-mean"):
        aggregation_weights(batch()[-1], "mean")


@pytest.mark.skipif(find_spec("verl") is not None, reason="verl is installed")
def test_registering_without_verl_raises_user_error():
    with pytest.raises(UserError, match="verl is not installed"):
        register()


@pytest.mark.skipif(find_spec("verl") is None, reason="verl: not installed")
class TestWithVerl:
    def test_loss_is_in_verl_registry(self):
        from verl.trainer.ppo.core_algos import get_policy_loss_fn

        assert get_policy_loss_fn("srl_sppo").__name__ == "symmetric_policy_loss"
        register("mine", SymmetricWeights(beta=0.2))
        assert get_policy_loss_fn("mine") is not get_policy_loss_fn("srl_sppo")

    @pytest.mark.parametrize("mode", [*AGGREGATIONS, "token-sum"])
    @pytest.mark.parametrize(
        "info",
        [
            {},
            {"dp_size": 2, "batch_num_tokens": 50, "global_batch_size": 12, "loss_scale_factor": 7},
        ],
    )
    def test_alpha_1_beta_0_matches_verl_ppo_loss(self, mode, info):
        from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
        from verl.workers.config import ActorConfig

        config = ActorConfig(
            strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio=0.2, clip_ratio_high=0.3
        )
        config.global_batch_info.update(info)
        logits, log_prob, old, advantages, mask = batch()
        arguments = (old, log_prob, advantages, mask, mode, config)
        ours, _ = make_policy_loss(SymmetricWeights(1.0, 0.0))(*arguments)
        theirs, _ = compute_policy_loss_vanilla(*arguments)
        th.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)
        th.testing.assert_close(gradient(ours, logits), gradient(theirs, logits), rtol=1e-7, atol=1e-12)
