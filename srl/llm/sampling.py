"""Sample responses of a language model, compute the probabilities of their tokens, and evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch as th
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from srl.envs.seeding import Stream, seed_sequence, seed_torch
from srl.errors import UserError
from srl.llm.losses import kl_estimate
from srl.llm.rewards import RewardFunction, score

#: A row of a data set: the prompt and other columns.
Row = Mapping[str, Any]
#: Columns with the names of other arguments of reward functions.
_OWN_COLUMNS = ("prompt", "prompts", "completions")


def reward_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The columns of rows that reward functions get besides prompts and responses."""
    names = [name for name in rows[0] if name not in _OWN_COLUMNS]
    return {name: [row[name] for row in rows] for name in names}


@dataclass
class Rollout:
    """Prompts, padded on the left, and responses, padded on the right, with data on their tokens.

    ``n`` is the number of responses, ``p`` the number of tokens of a prompt, ``t`` that of a response.
    """

    #: Shape ``(n, p + t)``.
    tokens: th.Tensor
    attention_mask: th.Tensor
    #: True up to the end of the response, boolean, shape ``(n, t)`` like all tensors below.
    mask: th.Tensor
    log_prob: th.Tensor | None = None
    ref_log_prob: th.Tensor | None = None
    values: th.Tensor | None = None
    advantages: th.Tensor | None = None
    returns: th.Tensor | None = None

    @property
    def prompt_length(self) -> int:
        """``p``."""
        return self.tokens.shape[1] - self.mask.shape[1]

    def select(self, rows: th.Tensor | slice) -> Rollout:
        """Select responses."""
        tensors = [getattr(self, each.name) for each in fields(self)]
        return Rollout(*(None if tensor is None else tensor[rows] for tensor in tensors))  # type: ignore[arg-type]

    def split(self, size: int) -> Iterator[Rollout]:
        """Split the responses into parts of a size."""
        for start in range(0, len(self.tokens), size):
            yield self.select(slice(start, start + size))


def known(tensor: th.Tensor | None) -> th.Tensor:
    """A tensor of a rollout that is not None."""
    assert tensor is not None
    return tensor


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation."""

    #: Mean values by the names in the log.
    metrics: dict[str, float]
    prompts: list[str]
    responses: list[str]
    #: The reward function's scores, without noise, shape ``(n_prompts,)``.
    scores: np.ndarray[Any, Any]
    #: Number of tokens of each response, shape ``(n_prompts,)``.
    lengths: np.ndarray[Any, Any]


class Sampler:
    """Samples and evaluates responses of a policy.

    :param policy: A causal language model.
    :param tokenizer: Its tokenizer, with a padding token.
    :param reference: The initial model; None for the policy with its adapter disabled.
    :param max_prompt_length: Maximum number of tokens of a prompt; longer ones are truncated.
    :param max_new_tokens: Maximum number of tokens of a response.
    :param min_new_tokens: Minimum number of tokens of a response.
    :param temperature: Divisor of logits, in sampling and in all log probabilities.
    :param top_k: Sample among this many tokens; 0 for all.
    :param batch_size: Responses of a forward pass without gradients.
    :raises UserError: If the tokenizer has no padding token.
    """

    def __init__(
        self,
        policy: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        reference: nn.Module | None = None,
        max_prompt_length: int = 64,
        max_new_tokens: int = 48,
        min_new_tokens: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        batch_size: int = 32,
    ):
        check_padding(tokenizer)
        #: A model of transformers, or a PEFT model that wraps one.
        self.policy: Any = policy
        self.tokenizer, self.reference = tokenizer, reference
        self.max_prompt_length, self.batch_size = max_prompt_length, batch_size
        self.max_new_tokens, self.min_new_tokens = max_new_tokens, min_new_tokens
        self.temperature, self.top_k = temperature, top_k

    @classmethod
    def of(
        cls, args: Any, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, reference: nn.Module | None
    ) -> Sampler:
        """A sampler with the options of a run, or of a trainer's arguments."""
        names = ("max_prompt_length", "max_new_tokens", "min_new_tokens", "temperature", "top_k")
        options = {name: getattr(args, name) for name in names}
        return cls(policy, tokenizer, reference=reference, batch_size=args.inference_batch_size, **options)

    @property
    def device(self) -> th.device:
        """The device of the policy."""
        device: th.device = next(self.policy.parameters()).device
        return device

    def encode(self, rows: Sequence[Row]) -> tuple[th.Tensor, th.Tensor]:
        """The prompts' tokens, padded on the left, and their mask, shape ``(n, p)``."""
        encoded = self.tokenizer(
            [row["prompt"] for row in rows],
            truncation=True,
            max_length=self.max_prompt_length,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        device = self.device
        return encoded["input_ids"].to(device), encoded["attention_mask"].to(device)

    @th.no_grad()
    def generate(self, rows: Sequence[Row], *, do_sample: bool = True) -> Rollout:
        """Sample responses to prompts."""
        tokenizer = self.tokenizer
        prompts, prompt_mask = self.encode(rows)
        sampling = {"temperature": self.temperature, "top_k": self.top_k, "top_p": 1.0} if do_sample else {}
        was_training = self.policy.training
        self.policy.eval()
        parts = []
        for start in range(0, len(rows), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            with _without_generation_config(self.policy):
                tokens = self.policy.generate(
                    input_ids=prompts[chosen],
                    attention_mask=prompt_mask[chosen],
                    do_sample=do_sample,
                    max_new_tokens=self.max_new_tokens,
                    min_new_tokens=self.min_new_tokens or None,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    use_cache=True,
                    **sampling,
                )
            parts.append(tokens[:, prompts.shape[1] :])
        self.policy.train(was_training)
        return self.join(prompts, prompt_mask, [row for part in parts for row in part])

    def join(self, prompts: th.Tensor, prompt_mask: th.Tensor, responses: Sequence[th.Tensor]) -> Rollout:
        """Combine prompts and responses of any lengths. A response ends after its first end of sequence."""
        tokenizer = self.tokenizer
        padded = nn.utils.rnn.pad_sequence(
            list(responses), batch_first=True, padding_value=tokenizer.pad_token_id
        )
        lengths = th.tensor([len(response) for response in responses], device=padded.device)
        mask = th.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        if tokenizer.eos_token_id is not None:
            ends = (padded == tokenizer.eos_token_id) & mask
            mask &= ends.cumsum(1) - ends.long() == 0
        padded = padded.masked_fill(~mask, tokenizer.pad_token_id)
        return Rollout(th.cat([prompts, padded], 1), th.cat([prompt_mask, mask.long()], 1), mask)

    def references(self, rows: Sequence[Row]) -> Rollout:
        """Prompts with the reference responses instead of the policy's."""
        prompts, prompt_mask = self.encode(rows)
        eos, limit = self.tokenizer.eos_token_id, self.max_new_tokens
        end = [] if eos is None else [eos]
        responses = []
        for row in rows:
            text = self.tokenizer(row["response"], add_special_tokens=False)["input_ids"]
            responses.append(th.tensor([*text, *end][:limit], dtype=th.long, device=prompts.device))
        return self.join(prompts, prompt_mask, responses)

    def forward(
        self, model: nn.Module, batch: Rollout, *, entropy: bool = False
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """Log probabilities of the responses' tokens, shape ``(n, t)``, and optionally the entropies."""
        t = batch.mask.shape[1]
        positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        logits = model(
            input_ids=batch.tokens,
            attention_mask=batch.attention_mask,
            position_ids=positions,
            logits_to_keep=t + 1,
        ).logits[:, -t - 1 : -1]
        log_probs = th.log_softmax(logits.float() / self.temperature, -1)
        chosen = log_probs.gather(-1, batch.tokens[:, -t:, None])[..., 0]
        return chosen, -(log_probs.exp() * log_probs).sum(-1) if entropy else None

    @th.no_grad()
    def log_probs(self, batch: Rollout, *, reference: bool = False) -> th.Tensor:
        """Log probabilities of the responses' tokens by the policy, or by the reference model."""
        model: nn.Module = self.policy
        context: AbstractContextManager[Any] = nullcontext()
        if reference and self.reference is not None:
            model = self.reference
        elif reference:
            context = self.policy.disable_adapter()
        with context:
            parts = [self.forward(model, part)[0] for part in batch.split(self.batch_size)]
        return th.cat(parts)

    def texts(self, batch: Rollout) -> tuple[list[str], list[str]]:
        """The prompts after truncation, and the responses."""
        p = batch.prompt_length
        parts = (batch.tokens[:, :p], batch.tokens[:, p:], batch.tokens)
        prompts, responses, both = (
            self.tokenizer.batch_decode(part, skip_special_tokens=True) for part in parts
        )
        # Some tokenizers drop the space before the first word of a text
        return prompts, [
            text.removeprefix(prompt) if text.startswith(prompt) else response
            for prompt, response, text in zip(prompts, responses, both, strict=True)
        ]

    def score(self, function: RewardFunction, rows: Sequence[Row], batch: Rollout) -> np.ndarray[Any, Any]:
        """The scores of responses, shape ``(n,)``."""
        prompts, responses = self.texts(batch)
        return score(function, prompts, responses, reward_columns(rows))

    def respond(self, prompt: str, n: int = 1, seed: int = 0) -> list[str]:
        """Sample responses to a prompt.

        :param prompt: The prompt.
        :param n: Number of responses.
        :param seed: Seed of the sampled tokens.
        """
        with seeded(seed_sequence(seed, Stream.ACTIONS), self.device):
            return self.texts(self.generate([{"prompt": prompt}] * n))[1]

    @th.no_grad()
    def evaluate(
        self,
        rows: Sequence[Row],
        reward: RewardFunction,
        *,
        others: Mapping[str, RewardFunction] | None = None,
        seed: int = 0,
        index: int = 0,
        do_sample: bool = True,
    ) -> Evaluation:
        """Sample responses to prompts, and score them.

        :param rows: The prompts. With references, in the column ``response``, their perplexity is computed
            too.
        :param reward: The reward function.
        :param others: Additional scores by the names in the log.
        :param seed: The run's.
        :param index: Index of the random stream :data:`srl.envs.seeding.Stream.EVAL_ACTIONS`.
        :param do_sample: Sample tokens instead of taking the most probable ones.
        """
        with seeded(seed_sequence(seed, Stream.EVAL_ACTIONS, index), self.device):
            batch = self.generate(rows, do_sample=do_sample)
        scores = self.score(reward, rows, batch)
        kl = kl_estimate(self.log_probs(batch), self.log_probs(batch, reference=True), batch.mask)
        lengths = batch.mask.sum(1)
        metrics = {"eval/reward": float(scores.mean())}
        for name, function in (others or {}).items():
            metrics[f"eval/{name}"] = float(self.score(function, rows, batch).mean())
        metrics |= {"eval/kl": float(kl.sum(1).mean()), "eval/length": float(lengths.float().mean())}
        if "response" in rows[0]:
            # The perplexity of the references
            references = self.references(rows)
            found = -self.log_probs(references)[references.mask].double().mean()
            metrics["eval/perplexity"] = float(found.exp())
        prompts, responses = self.texts(batch)
        return Evaluation(metrics, prompts, responses, scores, lengths.cpu().numpy())


def check_padding(tokenizer: PreTrainedTokenizerBase, model: nn.Module | None = None) -> None:
    """Check that texts of different lengths can form a batch.

    :param model: The model; its embeddings are checked too.
    :raises UserError: If the tokenizer has no padding token, or the model has none for it.
    """
    if tokenizer.pad_token_id is None:
        raise UserError(
            "The tokenizer has no padding token. Name one, for example "
            f"tokenizer.pad_token = {tokenizer.eos_token!r}; in a task's file, model: {{pad_token: ...}}."
        )
    if isinstance(model, PreTrainedModel):
        n_tokens = len(model.get_input_embeddings().weight)
        if tokenizer.pad_token_id >= n_tokens:
            raise UserError(
                f"The padding token {tokenizer.pad_token!r} has the number {tokenizer.pad_token_id}, and the "
                f"model has {n_tokens} tokens. Name another one, or call "
                "model.resize_token_embeddings(len(tokenizer))."
            )


@contextmanager
def _without_generation_config(policy: Any) -> Iterator[None]:
    """A context in which the settings that a model has for generation do not apply.

    Most of them change the probabilities of tokens, and the losses need those of the model.
    """
    model = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def seeded(sequence: np.random.SeedSequence, device: th.device) -> Iterator[None]:
    """A context in which PyTorch's generators are at the start of a stream; it restores them at its end."""
    with th.random.fork_rng([device] if device.type == "cuda" else []):
        seed_torch(th.default_generator, sequence)
        if device.type == "cuda":
            index = th.cuda.current_device() if device.index is None else device.index
            seed_torch(th.cuda.default_generators[index], sequence)
        yield
