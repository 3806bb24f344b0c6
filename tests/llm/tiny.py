"""A small language model for tests: random weights and the vocabulary of the offline task."""

from __future__ import annotations

from typing import Any

import torch as th
from transformers import GPT2Config, GPT2LMHeadModel

from srl.llm.offline import make_reviews, make_tokenizer
from srl.llm.sppo_trainer import SPPOConfig, SPPOTrainer

TOKENIZER = make_tokenizer()


def tiny_model(seed: int = 0, dropout: float = 0.0) -> GPT2LMHeadModel:
    """Return a GPT-2 with one layer."""
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        config = GPT2Config(
            vocab_size=len(TOKENIZER),
            n_positions=48,
            n_embd=16,
            n_layer=1,
            n_head=2,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=TOKENIZER.eos_token_id,
            eos_token_id=TOKENIZER.eos_token_id,
            pad_token_id=TOKENIZER.pad_token_id,
        )
        return GPT2LMHeadModel(config)


def rows(n: int, index: int = 3) -> list[dict[str, Any]]:
    """Return prompts and reference responses."""
    return [{"prompt": review.prompt, "response": review.response} for review in make_reviews(n, index)]


def count_the(completions, **columns) -> list[float]:
    """Reward: number of words that are "the", "was" or "it", divided by 5."""
    return [sum(word in ("the", "was", "it") for word in text.split()) / 5 for text in completions]


def make_trainer(model: Any = None, reward: Any = count_the, **options: Any) -> SPPOTrainer:
    """Return a trainer of a tiny model."""
    peft_config, value_model = options.pop("peft_config", None), options.pop("value_model", None)
    args = SPPOConfig(
        **{
            "n_iterations": 3,
            "n_rollouts": 16,
            "batch_size": 8,
            "n_epochs": 2,
            "learning_rate": 3e-3,
            "max_prompt_length": 16,
            "max_new_tokens": 8,
            "log_with": (),
            "disable_tqdm": True,
            "eval_every": 0,
            **options,
        }
    )
    return SPPOTrainer(
        tiny_model() if model is None else model,
        *(reward, args, rows(40), rows(8, 4), TOKENIZER),
        peft_config=peft_config,
        value_model=value_model,
    )


def weights(trainer: SPPOTrainer) -> dict[str, th.Tensor]:
    """Return all weights of policy and critic."""
    return {
        f"{part}.{name}": value
        for part in ("policy", "critic")
        for name, value in getattr(trainer, part).state_dict().items()
    }


def distance(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> float:
    """Return the largest absolute difference of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
