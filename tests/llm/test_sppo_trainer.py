"""The PPO trainer with a critic: updates, resuming and rejected options."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch as th
from accelerate.state import AcceleratorState
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, OPTForCausalLM

from srl.errors import UserError
from srl.llm.losses import normalize_masked
from srl.llm.sampling import seeded
from srl.llm.sppo_config import SPPOConfig
from srl.llm.sppo_trainer import SPPOTrainer
from srl.rundir.checkpoints import last_checkpoint
from srl.training.checkpoint import read_checkpoint, write_checkpoint
from tests.llm.tiny import TOKENIZER, count_the, distance, make_trainer, rows, tiny_model, weights


def test_training_increases_reward():
    trainer = make_trainer(n_iterations=12, learning_rate=1e-2, n_rollouts=32, target_coef=0.0)
    before = trainer.evaluate().metrics["eval/reward"]
    for _ in range(12):
        trainer.iterate()
    assert trainer.evaluate().metrics["eval/reward"] > before + 0.5


@pytest.mark.parametrize(("reverse_loss", "c"), [("rce", 0.5 + 0.4), ("mae", 0.5 + 2 * 0.4)])
def test_sppo_matches_ppo_with_alpha_c(reverse_loss, c):
    losses = [{"alpha": 0.5, "beta": 0.4, "reverse_loss": reverse_loss}, {"alpha": c, "beta": 0.0}]
    sppo, ppo, plain = (make_trainer(learning_rate=0.02, **loss) for loss in (*losses, {"beta": 0.0}))
    for _ in range(3):
        figures = [trainer.iterate() for trainer in (sppo, ppo)]
        assert abs(figures[0]["rollout/reward"] - figures[1]["rollout/reward"]) < 5e-4
        assert figures[0]["train/clip_fraction"] > 0
        plain.iterate()
    assert distance(weights(sppo), weights(ppo)) < 1e-3
    assert distance(weights(plain), weights(ppo)) > 1e-2


def test_importance_weighting_changes_training():
    trainers = [make_trainer(importance_weighting=weighting) for weighting in (True, False)]
    for trainer in trainers:
        trainer.iterate()
    assert distance(*map(weights, trainers)) > 1e-3


def test_ppo_loss_matches_explicit_formula():
    trainer = make_trainer(alpha=1.0, beta=0.0, ent_coef=0.01, target_coef=0.2, learning_rate=0.05)
    chosen = rows(8)
    batch, _ = trainer._rollout(chosen)
    references = trainer.sampler.references(chosen)
    # Move the policy away from the rollout policy so that ratios are clipped
    trainer._update(batch.select(slice(0, 8)), references)
    trainer.args.learning_rate = 0.0
    batch.advantages = normalize_masked(batch.advantages, batch.mask)
    loss, _ = trainer._loss(batch, references)

    def log_probs(tokens, attention, n_tokens):
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        logits = trainer.policy(input_ids=tokens, attention_mask=attention, position_ids=positions).logits
        found = logits[:, -n_tokens - 1 : -1].log_softmax(-1)
        return found.gather(-1, tokens[:, -n_tokens:, None])[..., 0], -(found.exp() * found).sum(-1)

    m, t = batch.mask, batch.mask.shape[1]
    new, entropy = log_probs(batch.tokens, batch.attention_mask, t)
    ratio, a = (new[m] - batch.log_prob[m]).exp(), batch.advantages[m]
    assert ((ratio - 1).abs() > 0.2).any()
    policy = -th.min(a * ratio, a * ratio.clamp(0.8, 1.2)).mean()
    values, old, returns = trainer._values(batch)[m], batch.values[m], batch.returns[m]
    clipped = old + (values - old).clamp(-0.2, 0.2)
    value = 0.5 * th.max((values - returns) ** 2, (clipped - returns) ** 2).mean()
    reference, _ = log_probs(references.tokens, references.attention_mask, references.mask.shape[1])
    imitation = -reference[references.mask].mean()
    expected = policy + 0.5 * value - 0.01 * entropy[m].mean() + 0.2 * imitation
    th.testing.assert_close(loss, expected)


def test_each_minibatch_takes_one_policy_forward_pass():
    trainer = make_trainer(target_coef=0.1)
    calls = []
    trainer.policy.register_forward_hook(lambda *_: calls.append(th.is_grad_enabled()))
    trainer.iterate()
    assert sum(calls) == 16 // 8 * 2


def test_token_rewards_are_kl_penalty_plus_final_score():
    trainer = make_trainer(gamma=1.0, gae_lambda=1.0, kl_coef=0.3)
    trainer.iterate()  # so that policy and reference differ
    chosen = rows(8)
    batch, figures = trainer._rollout(chosen)
    kl = (batch.log_prob - batch.ref_log_prob) * batch.mask
    assert float(kl.abs().max()) > 1e-3
    _, responses = trainer.sampler.texts(batch)
    # With gamma = lambda = 1 the return of the first token is the sum of all rewards
    expected = th.tensor(count_the(responses)) - 0.3 * kl.sum(1)
    th.testing.assert_close(batch.returns[:, 0], expected, atol=1e-5, rtol=1e-5)
    assert figures["rollout/kl"] == pytest.approx(float(kl.sum(1).mean()))


def test_prompt_and_response_join_to_the_whole_text():
    # The tokenizer puts spaces between words, and none before the first one
    sampler = make_trainer().sampler
    batch = sampler.generate(rows(8))
    prompts, responses = sampler.texts(batch)
    joined = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    assert joined == TOKENIZER.batch_decode(batch.tokens, skip_special_tokens=True)
    assert all(response.startswith(" ") for response in responses if response)


def test_log_probabilities_match_the_sampling_distribution():
    trainer = make_trainer(temperature=0.7)
    batch = trainer.sampler.generate(rows(6))
    found = trainer.sampler.log_probs(batch)
    for row in range(6):
        length = int(batch.mask[row].sum())
        start = batch.prompt_length - int(batch.attention_mask[row, : batch.prompt_length].sum())
        tokens = batch.tokens[row, start : batch.prompt_length + length][None]
        logits = trainer.policy(input_ids=tokens).logits[0, -length - 1 : -1]
        alone = (logits / 0.7).log_softmax(-1)
        expected = alone.gather(-1, tokens[0, -length:, None])[:, 0]
        th.testing.assert_close(found[row, :length], expected, atol=1e-5, rtol=1e-4)


def test_gradient_accumulation_does_not_change_gradient():
    norms = []
    for steps in (1, 4):
        trainer = make_trainer(gradient_accumulation_steps=steps, n_epochs=1, batch_size=16)
        norms.append(trainer.iterate()["train/grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("at", [1, 2])
def test_resumed_training_ends_with_identical_weights(tmp_path, at):
    options = {"noise": "flip:0.3", "checkpoint_every": 0.0, "eval_every": 1}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    first = make_trainer(output_dir=str(tmp_path / "first"), n_iterations=at, **options)
    first.train()
    assert last_checkpoint(tmp_path / "first") == at
    th.manual_seed(12345)
    second = make_trainer(tiny_model(seed=9), output_dir=str(tmp_path / "first"), **options)
    # The constructor receives the initial models again
    second.sampler.reference.load_state_dict(whole.sampler.reference.state_dict())
    second.train(resume=True)
    assert distance(weights(whole), weights(second)) == 0.0


def test_fresh_training_does_not_replace_checkpoints_of_another_trainer(tmp_path):
    options = {"output_dir": str(tmp_path), "checkpoint_every": 0.0}
    make_trainer(**options).train()
    files = sorted(tmp_path.rglob("*.npz"))
    with pytest.raises(UserError, match="holds checkpoints"):
        make_trainer(seed=1, **options).train()
    assert sorted(tmp_path.rglob("*.npz")) == files


def test_resuming_with_other_arguments_is_rejected(tmp_path):
    options = {"output_dir": str(tmp_path), "checkpoint_every": 0.0}
    make_trainer(**options).train()
    with pytest.raises(UserError, match="seed=0; this one has seed=1"):
        make_trainer(seed=1, **options).train(resume=True)
    longer = make_trainer(n_iterations=4, **options)
    longer.train(resume=True)
    assert longer.iteration == 4


def test_bfloat16_weights_resume_from_a_checkpoint(tmp_path):
    options = {"output_dir": str(tmp_path), "checkpoint_every": 0.0}
    whole = make_trainer(tiny_model().bfloat16(), **(options | {"checkpoint_every": 1e9}))
    whole.train()
    make_trainer(tiny_model().bfloat16(), **options, n_iterations=2).train()
    second = make_trainer(tiny_model().bfloat16(), **options)
    second.train(resume=True)
    assert next(second.policy.parameters()).dtype == th.bfloat16
    assert distance(weights(whole), weights(second)) == 0.0


@pytest.fixture
def fresh_accelerator():
    """Let a test choose the precision, which accelerate keeps for a whole process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_untrained_policy_does_not_differ_from_the_reference(mixed_precision, fresh_accelerator):
    batch, figures = make_trainer(mixed_precision=mixed_precision)._rollout(rows(8))
    assert th.equal(batch.log_prob, batch.ref_log_prob)
    assert figures["rollout/kl"] == 0


def test_model_given_by_name_is_trained_in_float32(tmp_path):
    tiny_model().bfloat16().save_pretrained(tmp_path)
    trainer = make_trainer(str(tmp_path))
    assert {p.dtype for p in trainer.policy.parameters()} == {th.float32}


def test_sampling_ignores_the_generation_config_of_a_model():
    plain, changed = tiny_model(), tiny_model()
    changed.generation_config.update(
        no_repeat_ngram_size=1, repetition_penalty=5.0, min_p=0.9, typical_p=0.5, bad_words_ids=[[5]]
    )
    batches = []
    for model in (plain, changed):
        sampler = make_trainer(model).sampler
        with seeded(np.random.SeedSequence(0), sampler.device):
            batches.append(sampler.generate(rows(8)))
    assert batches[0].tokens.equal(batches[1].tokens)


def test_state_dict_round_trips_through_checkpoint(tmp_path):
    trainer = make_trainer()
    trainer.iterate()
    write_checkpoint(tmp_path, 1, trainer.state_dict())
    other = make_trainer()
    other.load_state_dict(read_checkpoint(tmp_path, 1))
    for one in (trainer, other):
        one.iterate()
    assert distance(weights(trainer), weights(other)) == 0.0


def test_evaluation_does_not_affect_training():
    plain, evaluated = make_trainer(), make_trainer()
    before = th.get_rng_state()
    first = evaluated.evaluate()
    assert first.metrics == evaluated.evaluate().metrics
    assert th.get_rng_state().equal(before)
    for trainer in (plain, evaluated):
        trainer.iterate()
    assert distance(weights(plain), weights(evaluated)) == 0.0
    assert first.metrics["eval/kl"] == 0.0
    assert first.metrics["eval/perplexity"] > 1
    assert len(first.scores) == len(first.responses) == 8


def test_noise_affects_only_training_and_depends_on_seed():
    def trainer(noise, seed=0):
        return make_trainer(noise=noise, seed=seed)

    clean, noisy = trainer("none"), trainer("flip:1.0")
    assert clean.evaluate().metrics == noisy.evaluate().metrics
    figures = noisy.iterate()
    assert figures["rollout/noisy_reward"] == pytest.approx(1 - figures["rollout/reward"])
    assert clean.iterate()["rollout/reward"] == figures["rollout/reward"]
    gaussian = [trainer("gaussian:0.5").iterate()["rollout/noisy_reward"] for _ in range(2)]
    assert gaussian[0] == gaussian[1] != figures["rollout/reward"]


def test_saved_model_loads_with_transformers(tmp_path):
    trainer = make_trainer()
    trainer.iterate()
    trainer.save_model(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.use_cache
    for name, value in loaded.state_dict().items():
        assert value.equal(trainer.policy.state_dict()[name])
    assert (
        AutoTokenizer.from_pretrained(tmp_path)("the movie")["input_ids"]
        == TOKENIZER("the movie")["input_ids"]
    )


def functional_dropout():
    """A model that calls dropout as a function."""
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=48,
            dropout=0.5,
            attention_dropout=0.5,
        )
    )


@pytest.mark.parametrize(
    ("model", "lora"),
    [
        (lambda: tiny_model(dropout=0.5), None),
        (functional_dropout, None),
        (tiny_model, LoraConfig(target_modules=["c_attn"], lora_dropout=0.5, init_lora_weights=False)),
    ],
    ids=["modules", "functions", "adapter"],
)
def test_dropout_is_disabled_during_training(model, lora):
    trainer = make_trainer(model(), peft_config=lora)
    batch = trainer.sampler.generate(rows(4))
    assert trainer.policy.training
    assert trainer.sampler.log_probs(batch).equal(trainer.sampler.log_probs(batch))
    assert trainer._values(batch).equal(trainer._values(batch))


def test_lora_adapters_train_and_base_weights_stay_fixed(tmp_path):
    from peft import AutoPeftModelForCausalLM

    config = LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM")
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    trainer = make_trainer(str(tmp_path / "base"), peft_config=config)
    assert trainer.sampler.reference is None
    names = [
        name
        for part in (trainer.policy, trainer.critic)
        for name, p in part.named_parameters()
        if p.requires_grad
    ]
    assert all("lora" in name or "head" in name for name in names)
    assert trainer.evaluate().metrics["eval/kl"] == 0.0
    trainer.iterate()
    assert trainer.evaluate().metrics["eval/kl"] != 0.0
    for name, value in trainer.policy.get_base_model().state_dict().items():
        if "lora" not in name:
            assert value.equal(base.state_dict()[name.replace(".base_layer", "")]), name
    trainer.save_model(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    batch = trainer.sampler.generate(rows(4))
    trainer_log_prob = trainer.sampler.log_probs(batch)
    trainer.sampler.policy = loaded
    th.testing.assert_close(trainer.sampler.log_probs(batch), trainer_log_prob)


def test_custom_critic_is_trained():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(th.zeros(1))

        def forward(self, input_ids, attention_mask, position_ids):
            return self.value.expand(input_ids.shape)

    critic = Constant()
    make_trainer(value_model=critic).iterate()
    assert critic.value != 0


def test_accelerate_trackers_receive_metrics(tmp_path):
    trainer = make_trainer(output_dir=str(tmp_path), n_iterations=1, log_with="tensorboard", eval_every=1)
    trainer.train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (tmp_path / "logs").glob("events*")
    events = EventAccumulator(str(file)).Reload()
    assert {"rollout/reward", "train/surrogate_loss", "eval/reward", "eval/perplexity"} <= set(
        events.Tags()["scalars"]
    )


def test_missing_tracker_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(UserError, match="log_with='wandb': its package is not installed"):
        make_trainer(output_dir=str(tmp_path), log_with=("wandb",))


def returns(value):
    def wrong(completions, **columns):
        return value(completions)

    return wrong


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            lambda texts: [float("nan")] * len(texts),
            "The reward function wrong returned nan for the response",
        ),
        (lambda texts: [1.0], "wrong returned 1 scores for 16 responses"),
        (lambda texts: None, "wrong returned None, not a list of numbers"),
        (lambda texts: ["good"] * len(texts), "not a list of numbers"),
    ],
)
def test_invalid_rewards_are_rejected(value, message):
    with pytest.raises(UserError, match=message):
        make_trainer(reward=returns(value)).iterate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 5}, "n_rollouts=16 is not a multiple of batch_size=5"),
        ({"gradient_accumulation_steps": 3}, "not a multiple of gradient_accumulation_steps=3"),
        ({"z": 1.0}, "z=1.0 is not a finite number < 0"),
        ({"beta": -1.0}, "beta=-1.0 is not a finite number >= 0"),
        ({"reverse_loss": "mse"}, "is not one of rce, mae"),
        ({"noise": "flip:2"}, "prob is 2.0"),
        ({"n_rollouts": 64}, "has 40 prompts, fewer than n_rollouts=64"),
        ({"mixed_precision": "fp8"}, "mixed_precision: 'fp8': must be 'no' or 'bf16'"),
        ({"temperature": 0.0}, "temperature: 0.0: must be greater than 0"),
        ({"learning_rate": -1.0}, "learning_rate: -1.0: must be greater than 0"),
        ({"gamma": 2.0}, "gamma: 2.0: must be less than or equal to 1"),
        ({"kl_coef": float("nan")}, "kl_coef: nan: must be a finite number"),
        ({"min_new_tokens": 9}, "min_new_tokens=9 is above max_new_tokens=8"),
        ({"log_with": ("tensorbord",)}, "log_with: Unsupported logging capability: tensorbord"),
        ({"n_iterations": 0}, "n_iterations=0: must be at least 1"),
        ({"eval_every": -1}, "eval_every=-1: must be at least 0"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(UserError, match=message):
        make_trainer(**options)


def test_tokenizer_without_padding_token_and_missing_columns_are_rejected():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.pad_token = None
    args = SPPOConfig(n_rollouts=8, batch_size=8, log_with=())
    with pytest.raises(UserError, match="has no padding token"):
        SPPOTrainer(tiny_model(), count_the, args, rows(8), processing_class=tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    with pytest.raises(UserError, match="'<new>' has the number 116, and the model has 116 tokens"):
        SPPOTrainer(tiny_model(), count_the, args, rows(8), processing_class=tokenizer)
    prompts = [{"prompt": row["prompt"]} for row in rows(8)]
    with pytest.raises(UserError, match=r"no column 'response'\. Imitation needs it"):
        SPPOTrainer(tiny_model(), count_the, args, prompts, processing_class=TOKENIZER)
    with pytest.raises(UserError, match="no column 'prompt'"):
        SPPOTrainer(tiny_model(), count_the, args, [{"text": ""}] * 8, processing_class=TOKENIZER)


def test_tokenizer_without_end_of_sequence_trains_with_imitation():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.eos_token = None
    args = SPPOConfig(n_rollouts=8, batch_size=8, n_epochs=1, max_new_tokens=30, log_with=())
    trainer = SPPOTrainer(tiny_model(), count_the, args, rows(8), processing_class=tokenizer)
    assert trainer.iterate()["train/imitation_loss"] > 0
    texts = trainer.sampler.references(rows(8))
    assert trainer.sampler.texts(texts)[1] == [f" {row['response']}" for row in rows(8)]


def test_non_finite_loss_stops_training():
    trainer = make_trainer()
    with th.no_grad():
        trainer.critic.head.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="iteration 1"):
        trainer.iterate()
    assert trainer.policy.state_dict()["lm_head.weight"].isfinite().all()
