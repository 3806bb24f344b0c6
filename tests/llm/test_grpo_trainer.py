"""The symmetric loss in TRL's GRPOTrainer. These tests detect changes to TRL's internals."""

from __future__ import annotations

import pytest
import torch as th
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from srl.errors import UserError
from srl.llm.extras import check_trl
from srl.llm.grpo_trainer import LOSS_TYPES, SymmetricGRPOConfig, SymmetricGRPOTrainer
from srl.llm.losses import policy_losses, token_weights
from tests.llm.tiny import TOKENIZER, count_the, rows, tiny_model


def make(tmp_path, kind=SymmetricGRPOTrainer, reward=count_the, peft_config=None, **options):
    config = SymmetricGRPOConfig if kind is SymmetricGRPOTrainer else GRPOConfig
    args = config(
        output_dir=str(tmp_path / "out"),
        **{
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "num_iterations": 2,
            "max_completion_length": 8,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "max_steps": 3,
            "logging_steps": 1,
            "report_to": [],
            "save_strategy": "no",
            "seed": 0,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            **options,
        },
    )
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in rows(64)])
    return kind(
        tiny_model(),
        reward,
        args,
        train_dataset=prompts,
        processing_class=TOKENIZER,
        **({} if peft_config is None else {"peft_config": peft_config}),
    )


def count_length(completions, **columns):
    return [len(text.split()) / 8 for text in completions]


def trained(trainer):
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def equal(one, other):
    return all(value.equal(other[name]) for name, value in one.items())


def test_alpha_1_beta_0_is_bitwise_identical_to_trl(tmp_path):
    plain = trained(make(tmp_path, GRPOTrainer))
    assert equal(plain, trained(make(tmp_path, srl_alpha=1.0, srl_beta=0.0)))
    assert not equal(plain, trained(make(tmp_path, srl_alpha=0.5, srl_beta=1.0)))


def batch():
    """Return float64 inputs of TRL's loss with an old policy whose ratios are clipped."""
    generator = th.Generator().manual_seed(0)
    encoded = TOKENIZER([row["prompt"] for row in rows(8)], padding=True, return_tensors="pt")
    completion_ids = th.randint(3, len(TOKENIZER), (8, 8), generator=generator)
    mask = (th.arange(8) < th.tensor([8, 3, 5, 8, 1, 2, 7, 8])[:, None]).long()
    return {
        "prompt_ids": encoded["input_ids"],
        "prompt_mask": encoded["attention_mask"],
        "completion_ids": completion_ids,
        "completion_mask": mask,
        "advantages": th.randn(8, generator=generator, dtype=th.float64),
        "num_items_in_batch": mask.sum(),
        "noise": 0.3 * th.randn(8, 8, generator=generator, dtype=th.float64),
    }


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("importance_weighting", [True, False])
@pytest.mark.parametrize("on_policy", [True, False])
def test_gradient_matches_loss_on_masked_tokens(tmp_path, loss_type, importance_weighting, on_policy):
    """Also checks the assumption that TRL computes log probabilities once, before reading advantages."""
    symmetric = {"alpha": 0.5, "beta": 0.7, "z": -1.5, "importance_weighting": importance_weighting}
    trainer = make(
        tmp_path, loss_type=loss_type, **{f"srl_{name}": value for name, value in symmetric.items()}
    )
    model = trainer.model.double().eval()
    trainer.current_gradient_accumulation_steps = 1
    inputs = batch()
    ids = th.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = th.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    log_prob = trainer._get_per_token_logps_and_entropies(model, ids, attention, 8)[0]
    old = log_prob.detach() if on_policy else log_prob.detach() + inputs["noise"]
    if not on_policy:
        inputs["old_per_token_logps"] = old.clone()
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    loss = trainer._compute_loss(model, inputs)
    hook.remove()
    assert len(calls) == 1
    assert inputs["advantages"].dim() == 1  # the inputs of TRL are not modified
    found = th.autograd.grad(loss, list(model.parameters()))
    aggregation = {"grpo": "seq-mean-token-mean", "dr_grpo": "seq-mean-token-sum-norm"}.get(loss_type)
    mask = inputs["completion_mask"].bool()
    advantages = inputs["advantages"][:, None].expand_as(old)
    expected = policy_losses(
        *(log_prob, old, advantages, mask),
        weights=token_weights(mask, aggregation or "token-mean", dtype=th.float64),
        **symmetric,
    )
    assert (expected.clip_fraction > 0) != on_policy
    wanted = th.autograd.grad(expected.loss, list(model.parameters()))
    got, want = (th.cat([part.flatten() for part in parts]) for parts in (found, wanted))
    # TRL computes log probabilities in float32
    assert float((got - want).norm() / want.norm()) < 1e-6


def test_only_lora_adapters_train(tmp_path):
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM")
    trainer = make(tmp_path, peft_config=config, max_steps=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    after = trained(trainer)
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert changed
    assert all("lora" in name for name in changed)


def test_noise_affects_only_training_rewards(tmp_path):
    trainer = make(tmp_path, srl_noise="flip:1.0", max_steps=1)
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert logged["reward"] == pytest.approx(1 - logged["srl/reward_without_noise"], abs=1e-6)
    options = {"reward_weights": [1.0, 0.5], "srl_noise": "flip:1.0", "max_steps": 1}
    weighted = make(tmp_path, reward=[count_the, count_length], **options)
    weighted.train()
    (logged,) = [entry for entry in weighted.state.log_history if "reward" in entry]
    assert logged["reward"] == pytest.approx(1.5 - logged["srl/reward_without_noise"], abs=1e-6)
    trainer.model.eval()
    scores = trainer._calculate_rewards([{}], ["this movie was"], ["the the"], [[1, 2]])
    assert scores.tolist() == [[pytest.approx(0.4)]]


def test_resumed_training_ends_with_identical_weights(tmp_path):
    options = {"srl_noise": "gaussian:0.5", "num_iterations": 1, "max_steps": 4}
    whole = trained(make(tmp_path / "whole", **options))
    trained(make(tmp_path, **options, save_strategy="steps", save_steps=2))
    resumed = make(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert equal(whole, dict(resumed.model.state_dict()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"loss_type": name}, f"loss_type='{name}'.* needs PPO")
            for name in ("cispo", "sapo", "vespo", "luspo")
        ),
        ({"importance_sampling_level": "sequence"}, "that of a sequence is about 0"),
        ({"delta": 4.0}, "delta=4.0: clips ratios"),
        ({"srl_reverse_loss": "mse"}, "is not one of rce, mae"),
        ({"srl_z": 0.0}, "srl_z=0.0 is not a finite number < 0"),
        ({"srl_beta": -1.0}, "srl_beta=-1.0 is not a finite number >= 0"),
        ({"srl_noise": "flip"}, "exactly one parameter"),
    ],
)
def test_incompatible_options_are_rejected(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path, **options)


def test_other_loss_types_of_trl_are_accepted_with_alpha_1_beta_0():
    SymmetricGRPOConfig(
        loss_type="cispo", srl_alpha=1.0, srl_beta=0.0, use_cpu=True, bf16=False, report_to=[]
    ).check()


def test_untested_trl_versions_are_rejected():
    for version in ("1.12.0", "1.16.3"):
        check_trl(version)
    for version in ("1.11.0", "1.15.0", "1.17.0", "2.0.0"):
        with pytest.raises(UserError, match=f"TRL {version} was not tested"):
            check_trl(version)
