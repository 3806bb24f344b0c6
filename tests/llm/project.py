"""A folder with a custom task: a tiny policy, a tiny classifier, texts and the task file."""

from __future__ import annotations

import json
from pathlib import Path

import torch as th
from transformers import GPT2Config, GPT2ForSequenceClassification

from tests.llm.tiny import TOKENIZER, rows, tiny_model

TASK = """
n_timesteps: 32
eval_freq: 16
n_eval_episodes: 6
hyperparams:
  model: {path: owner/policy}
  data: {path: owner/texts, prompt: prompt, response: response}
  reward: {path: owner/classifier, label: 1}
  n_rollouts: 16
  batch_size: 8
  n_epochs: 1
  learning_rate: 1.0e-3
  max_prompt_length: 16
  max_new_tokens: 8
algorithms:
  grpo: &grpo {target_coef: 0.0, num_generations: 4}
  sgrpo: *grpo
"""
REWARDS = """
def words(prompts, completions, **columns):
    return [len(text.split()) / 8 for text in completions]


def nothing(prompts, completions, **columns):
    return [float("nan")] * len(completions)


def failing(prompts, completions, **columns):
    return [columns["score"]]


def few(prompts, completions, **columns):
    return [1.0]
"""


#: Lines of data sets with a mistake.
BAD_TEXTS = {
    "broken": ['{"prompt": "the movie was", "response": "good"}', "{"],
    "numbers": ['{"prompt": 1, "response": "good"}'],
    "nulls": ['{"prompt": "the movie was", "response": "good"}', '{"prompt": null, "response": "good"}'],
    "empty": ['{"prompt": "the movie was", "response": "good"}', '{"prompt": " ", "response": "good"}'],
}


def make_project(folder: Path) -> None:
    """Write the task file, and the models and texts that it names to ``files``."""
    files = folder / "files"
    for name in ("policy", "classifier", "texts"):
        (files / name).mkdir(parents=True)
    tiny_model().save_pretrained(files / "policy")
    with th.random.fork_rng(devices=[]):
        th.manual_seed(1)
        config = GPT2Config(
            vocab_size=len(TOKENIZER),
            n_positions=48,
            n_embd=8,
            n_layer=1,
            n_head=1,
            num_labels=2,
            pad_token_id=TOKENIZER.pad_token_id,
            id2label={0: "NEGATIVE", 1: "POSITIVE"},
            label2id={"NEGATIVE": 0, "POSITIVE": 1},
        )
        GPT2ForSequenceClassification(config).save_pretrained(files / "classifier")
    for name in ("policy", "classifier"):
        TOKENIZER.save_pretrained(files / name)
    for split, n in (("train", 40), ("test", 10)):
        lines = [json.dumps(row) for row in rows(n, len(split))]
        (files / "texts" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    for name, lines in BAD_TEXTS.items():
        (files / name).mkdir()
        for split in ("train", "test"):
            (files / name / f"{split}.jsonl").write_text("\n".join(lines * 20))
    (files / "cut").mkdir()
    for file in (files / "policy").iterdir():
        (files / "cut" / file.name).write_bytes(file.read_bytes()[:900])
    (folder / "tiny.yml").write_text(TASK)
    (folder / "my_rewards.py").write_text(REWARDS)
    (folder / "broken_rewards.py").write_text("1 / 0")
