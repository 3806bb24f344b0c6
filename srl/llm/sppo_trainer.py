"""SPPO with a critic for language models, as in the paper."""

# ruff: noqa: E402
from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from srl.llm.extras import require

require("llm")

import numpy as np
import torch as th
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from srl.envs.seeding import Stream, seed_sequence, stream_rng
from srl.errors import UserError
from srl.llm.losses import generalized_advantages, kl_estimate, normalize_masked, policy_losses, value_loss
from srl.llm.rewards import RewardFunction, add_noise
from srl.llm.sampling import Evaluation, Rollout, Row, Sampler, check_padding, known, seeded
from srl.llm.sppo_config import SPPOConfig
from srl.rundir.checkpoints import last_checkpoint
from srl.training.checkpoint import CheckpointTimer, read_checkpoint, write_checkpoint

#: Arguments that may change when training is resumed.
_NOT_OF_RESULTS = (
    *("output_dir", "n_iterations", "eval_do_sample", "eval_every", "log_with", "checkpoint_every"),
    "disable_tqdm",
)


class Critic(nn.Module):
    """A transformer with a linear head that estimates the value before each token.

    :param trunk: A transformer without a language-model head.
    :param hidden_size: Its hidden size.
    """

    def __init__(self, trunk: nn.Module, hidden_size: int):
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, **inputs: th.Tensor) -> th.Tensor:
        """Values, shape ``(n, p + t)``."""
        hidden = self.trunk(**inputs).last_hidden_state
        values: th.Tensor = self.head(hidden.float())[..., 0]
        return values


class SPPOTrainer:
    """Symmetric Proximal Policy Optimization for language models: policy, separate critic, GAE.

    Paper: https://arxiv.org/abs/2405.17618, section on RLHF. An iteration samples responses, scores them, and
    updates policy and critic on minibatches of them. The reward of a token is minus ``kl_coef`` times the KL
    estimate, plus the score at the last token. Dropout is off, as in the authors' code.

    :param model: A causal language model, its folder, or its name on the hub.
    :param reward_funcs: The reward function, with the signature of TRL's.
    :param args: The hyperparameters.
    :param train_dataset: Mappings with ``prompt``, and ``response`` for imitation; other columns are
        arguments of the reward function. A list or a ``datasets.Dataset``.
    :param eval_dataset: The same for :meth:`evaluate`.
    :param processing_class: The tokenizer; None loads that of a model given by name.
    :param peft_config: An adapter to train instead of all weights. The critic gets its own adapter.
    :param value_model: Returns values of shape ``(n, n_tokens)``; None takes a copy of the model with a head.
    :param device: ``cpu`` to ignore a GPU; None takes accelerate's device.
    :param eval_funcs: Additional scores of evaluations by the names in the log.
    :raises UserError: If an argument is invalid.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: RewardFunction,
        args: SPPOConfig | None = None,
        train_dataset: Sequence[Row] = (),
        eval_dataset: Sequence[Row] = (),
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        peft_config: Any = None,
        value_model: nn.Module | None = None,
        eval_funcs: Mapping[str, RewardFunction] | None = None,
        device: str | None = None,
    ):
        self.args = args = args or SPPOConfig()
        args.check()
        self.reward_funcs, self.eval_funcs = reward_funcs, dict(eval_funcs or {})
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        if isinstance(model, str):
            if processing_class is None:
                processing_class = AutoTokenizer.from_pretrained(model)
            # In the bfloat16 of many checkpoints, most updates would be rounded off
            model = AutoModelForCausalLM.from_pretrained(model, dtype=th.float32)
        if processing_class is None:
            raise UserError("processing_class: give the tokenizer of the model.")
        self.processing_class = processing_class
        check_padding(processing_class, model)
        self._check(args, train_dataset)
        #: Number of iterations so far.
        self.iteration = 0
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            log_with=_trackers(args) or None,
            project_dir=args.output_dir,
            cpu=device == "cpu",
        )
        if self.accelerator.num_processes > 1:
            raise UserError("SPPOTrainer trains in one process. For several, use srl.llm.verl or TRL.")
        with seeded(seed_sequence(args.seed, Stream.WEIGHTS), self.accelerator.device):
            policy, critic, reference = self._make_models(model, peft_config, value_model)
        self._parameters = [p for m in (policy, critic) for p in m.parameters() if p.requires_grad]
        optimizer = th.optim.AdamW(
            self._parameters, args.learning_rate, eps=args.adam_epsilon, weight_decay=args.weight_decay
        )
        self.policy, self.critic, self.optimizer = self.accelerator.prepare(policy, critic, optimizer)
        if reference is not None:
            # With the precision of the policy, so that both are equal before training
            reference = self.accelerator.prepare_model(reference, evaluation_mode=True)
        self.sampler = Sampler.of(args, self.policy, processing_class, reference)
        # Dropout is off; gradient checkpointing works only in this mode
        self.policy.train()
        self.critic.train()

    @staticmethod
    def _check(args: SPPOConfig, train_dataset: Sequence[Row]) -> None:
        if len(train_dataset) < args.n_rollouts:
            raise UserError(
                f"The data set has {len(train_dataset)} prompts, fewer than n_rollouts={args.n_rollouts}."
            )
        needed = ["prompt", *(["response"] if args.target_coef > 0 else [])]
        for name in needed:
            if name not in train_dataset[0]:
                hint = "" if name == "prompt" else " Imitation needs it; set target_coef=0 to go without."
                raise UserError(f"The data set has no column {name!r}.{hint}")

    def _make_models(
        self, model: PreTrainedModel, peft_config: Any, value_model: nn.Module | None
    ) -> tuple[nn.Module, nn.Module, nn.Module | None]:
        model.config.use_cache = False
        hidden_size = model.config.get_text_config().hidden_size
        reference, policy, critic = None, model, value_model
        if critic is None:
            trunk: nn.Module = copy.deepcopy(model.base_model)
            if peft_config is not None:
                from peft import get_peft_model

                own = copy.deepcopy(peft_config)
                own.task_type = None
                trunk = get_peft_model(trunk, own)
            critic = Critic(trunk, hidden_size)
        if peft_config is None:
            reference = copy.deepcopy(model).eval().requires_grad_(False)
        else:
            from peft import get_peft_model

            policy = get_peft_model(model, copy.deepcopy(peft_config))
        for module in (policy, critic):
            _disable_dropout(module)
        return policy, critic, reference

    def _values(self, batch: Rollout) -> th.Tensor:
        """The critic's values before the responses' tokens, shape ``(n, t)``."""
        t = batch.mask.shape[1]
        positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        values: th.Tensor = self.critic(
            input_ids=batch.tokens, attention_mask=batch.attention_mask, position_ids=positions
        )
        return values[:, -t - 1 : -1]

    @th.no_grad()
    def _rollout(self, rows: Sequence[Row]) -> tuple[Rollout, dict[str, float]]:
        args, device = self.args, self.accelerator.device
        with seeded(seed_sequence(args.seed, Stream.ACTIONS, self.iteration), device):
            batch = self.sampler.generate(rows)
        scores = self.sampler.score(self.reward_funcs, rows, batch)
        noisy = add_noise(scores, args.noise, args.seed, self.iteration)
        batch.log_prob = self.sampler.log_probs(batch)
        batch.ref_log_prob = self.sampler.log_probs(batch, reference=True)
        batch.values = th.cat([self._values(part) for part in batch.split(args.inference_batch_size)])
        kl = kl_estimate(batch.log_prob, batch.ref_log_prob, batch.mask)
        rewards = -args.kl_coef * kl
        last = batch.mask.sum(1) - 1
        rows_of = th.arange(len(last), device=device)
        rewards[rows_of, last] += th.as_tensor(noisy, dtype=rewards.dtype, device=device)
        batch.advantages, batch.returns = generalized_advantages(
            rewards, batch.values, batch.mask, gamma=args.gamma, gae_lambda=args.gae_lambda
        )
        return batch, {
            "rollout/reward": float(scores.mean()),
            "rollout/noisy_reward": float(noisy.mean()),
            "rollout/kl": float(kl.sum(1).mean()),
            "rollout/length": float(batch.mask.sum(1).float().mean()),
        }

    def _loss(
        self, batch: Rollout, references: Rollout | None, shares: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[th.Tensor, dict[str, float]]:
        """The loss of a minibatch or a part of it, with one forward pass of the policy.

        :param batch: Responses with normalized advantages.
        :param references: References of the same prompts.
        :param shares: This part's shares of the minibatch's tokens, of responses and of references.
        """
        args = self.args
        both = batch if references is None else _stack(batch, references)
        all_log_prob, all_entropy = self.sampler.forward(self.policy, both, entropy=args.ent_coef > 0)
        n, t = batch.mask.shape
        losses = policy_losses(
            *(all_log_prob[:n, :t], known(batch.log_prob), known(batch.advantages), batch.mask),
            clip_range=args.clip_range,
            alpha=args.alpha,
            beta=args.beta,
            z=args.z,
            reverse_loss=args.reverse_loss,
            importance_weighting=args.importance_weighting,
        )
        value = value_loss(
            *(self._values(batch), known(batch.values), known(batch.returns), batch.mask),
            clip_range=args.clip_range_vf,
        )
        loss = losses.loss + args.vf_coef * value
        figures = {
            "train/policy_loss": losses.policy_loss,
            "train/surrogate_loss": losses.surrogate,
            "train/value_loss": value,
            "train/approx_kl": losses.approx_kl,
            "train/clip_fraction": losses.clip_fraction,
        }
        if args.ent_coef > 0:
            entropy = known(all_entropy)[:n, :t][batch.mask].mean()
            loss = loss - args.ent_coef * entropy
            figures["train/entropy"] = entropy
        if references is not None:
            imitation = -all_log_prob[n:, : references.mask.shape[1]][references.mask].mean()
            loss = shares[0] * loss + shares[1] * args.target_coef * imitation
            figures["train/imitation_loss"] = imitation * shares[1] / shares[0]
        else:
            loss = shares[0] * loss
        return loss, {name: shares[0] * float(figure.detach()) for name, figure in figures.items()}

    def _update(self, batch: Rollout, references: Rollout | None) -> dict[str, float]:
        args = self.args
        assert batch.advantages is not None
        if args.normalize_advantage:
            batch.advantages = normalize_masked(batch.advantages, batch.mask, masked=args.mask_normalization)
        size = len(batch.tokens) // args.gradient_accumulation_steps
        sums: dict[str, float] = defaultdict(float)
        for start in range(0, len(batch.tokens), size):
            part, reference_part = batch.select(rows := slice(start, start + size)), None
            shares = (float(part.mask.sum() / batch.mask.sum()), 0.0)
            if references is not None:
                reference_part = references.select(rows)
                shares = (shares[0], float(reference_part.mask.sum() / references.mask.sum()))
            loss, figures = self._loss(part, reference_part, shares)
            if not th.isfinite(loss):
                raise FloatingPointError(f"The loss is {loss.item()} in iteration {self.iteration + 1}.")
            self.accelerator.backward(loss)
            for name, figure in figures.items():
                sums[name] += figure
        norm = self.accelerator.clip_grad_norm_(self._parameters, args.max_grad_norm)
        if norm is not None:
            sums["train/grad_norm"] = float(norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums

    def iterate(self) -> dict[str, float]:
        """Sample responses, score them, and update policy and critic on them.

        :return: Figures of the iteration by the names in the log.
        """
        args = self.args
        chosen = stream_rng(args.seed, Stream.PROMPTS, self.iteration).choice(
            len(self.train_dataset), args.n_rollouts, replace=False
        )
        rows = [self.train_dataset[int(number)] for number in chosen]
        batch, figures = self._rollout(rows)
        references = self.sampler.references(rows) if args.target_coef > 0 else None
        rng = stream_rng(args.seed, Stream.MINIBATCHES, self.iteration)
        updates: dict[str, list[float]] = defaultdict(list)
        for _ in range(args.n_epochs):
            for numbers in rng.permutation(args.n_rollouts).reshape(-1, args.batch_size):
                minibatch = th.from_numpy(numbers).to(self.accelerator.device)
                found = self._update(
                    batch.select(minibatch), None if references is None else references.select(minibatch)
                )
                for name, figure in found.items():
                    updates[name].append(figure)
        self.iteration += 1
        return figures | {name: float(np.mean(values)) for name, values in updates.items()}

    def train(self, *, resume: bool = False) -> None:
        """Train for ``n_iterations``, with logs, evaluations and checkpoints in ``output_dir``.

        :param resume: Resume from the latest checkpoint in ``output_dir``, if there is one. On the CPU the
            result is the same as without the interruption.
        :raises UserError: If ``output_dir`` holds checkpoints and this trainer starts from scratch, or if
            they are of a trainer with other arguments.
        """
        args, out = self.args, Path(self.args.output_dir)
        out.mkdir(parents=True, exist_ok=True)
        of_results = {name: value for name, value in asdict(args).items() if name not in _NOT_OF_RESULTS}
        if last := last_checkpoint(out):
            if resume:
                state = read_checkpoint(out, last)
                _check_same_arguments(out, state.get("args", {}), of_results)
                self.load_state_dict(state)
            elif not self.iteration:
                raise UserError(
                    f"{out}: holds checkpoints. Continue from them with train(resume=True), or give another "
                    "output_dir."
                )
        if args.log_with:
            config = {
                k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in asdict(args).items()
            }
            self.accelerator.init_trackers("logs", config)
        is_evaluated = args.eval_every > 0 and len(self.eval_dataset) > 0
        timer = CheckpointTimer(args.checkpoint_every, lambda note: None)
        with tqdm(
            total=args.n_iterations, initial=self.iteration, disable=args.disable_tqdm, unit="iteration"
        ) as bar:
            while self.iteration < args.n_iterations:
                if is_evaluated and self.iteration % args.eval_every == 0:
                    self.accelerator.log(self.evaluate().metrics, step=self.iteration)
                figures = self.iterate()
                self.accelerator.log(figures, step=self.iteration)
                bar.update()
                bar.set_postfix(reward=f"{figures['rollout/reward']:.3f}")
                if timer.is_due:
                    state = {"args": of_results, **self.state_dict()}
                    timer.keep(partial(write_checkpoint, out, self.iteration, state))
        if is_evaluated:
            self.accelerator.log(self.evaluate().metrics, step=self.iteration)
        if args.log_with:
            self.accelerator.end_training()

    def evaluate(self, *, index: int | None = None) -> Evaluation:
        """Evaluate the policy on ``eval_dataset``; training is not affected.

        :param index: Index of the random stream of tokens; None takes the number of iterations.
        :raises UserError: If there is no ``eval_dataset``.
        """
        rows = list(self.eval_dataset)
        if not rows:
            raise UserError("eval_dataset: evaluate() needs one.")
        return self.sampler.evaluate(
            rows,
            self.reward_funcs,
            others=self.eval_funcs,
            seed=self.args.seed,
            index=self.iteration if index is None else index,
            do_sample=self.args.eval_do_sample,
        )

    def save_model(self, output_dir: str | Path) -> None:
        """Write the policy, or its adapter, and the tokenizer to a folder, for ``from_pretrained``."""
        model = self.accelerator.unwrap_model(self.policy)
        use_cache, model.config.use_cache = model.config.use_cache, True
        model.save_pretrained(output_dir)
        model.config.use_cache = use_cache
        self.processing_class.save_pretrained(output_dir)

    def state_dict(self) -> dict[str, Any]:
        """The state of training, besides the arguments of the constructor, as plain data."""
        return {
            "iteration": self.iteration,
            "policy": _trainable(self.accelerator.unwrap_model(self.policy)),
            "critic": _trainable(self.accelerator.unwrap_model(self.critic)),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a trainer with the same arguments.

        :param state: From :meth:`state_dict`.
        """
        for model, weights in ((self.policy, state["policy"]), (self.critic, state["critic"])):
            parameters = dict(self.accelerator.unwrap_model(model).named_parameters())
            with th.no_grad():
                for name, value in weights.items():
                    parameters[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]


def _trainable(model: nn.Module) -> dict[str, th.Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def _trackers(args: SPPOConfig) -> list[Any]:
    """The trackers of ``log_with``.

    :raises UserError: If one is unknown, or its package is missing, which accelerate ignores.
    """
    names = [args.log_with] if isinstance(args.log_with, str) else list(args.log_with)
    try:
        found: list[Any] = filter_trackers(names, args.output_dir)
    except ValueError as error:
        raise UserError(f"log_with: {error}") from None
    for name in names:
        if str(name) not in ("all", *map(str, found)):
            raise UserError(
                f"log_with={name!r}: its package is not installed. Install it, or set log_with=()."
            )
    return found


def _disable_dropout(model: nn.Module) -> None:
    """Set all probabilities of dropout to 0, those of modules and those that modules give to functions."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _check_same_arguments(folder: Path, of_checkpoint: dict[str, Any], own: dict[str, Any]) -> None:
    for name, value in own.items():
        there = of_checkpoint.get(name, "unknown")
        if there != value:
            raise UserError(
                f"{folder}: its checkpoints are of a trainer with {name}={there}; this one has "
                f"{name}={value}. Give the same arguments, or another output_dir."
            )


def _stack(batch: Rollout, references: Rollout) -> Rollout:
    """Responses and references of the same prompts as one batch, padded to the same length."""
    n_more = references.mask.shape[1] - batch.mask.shape[1]
    pad: Callable[..., th.Tensor] = nn.functional.pad
    parts = []
    for each, missing in ((batch, max(n_more, 0)), (references, max(-n_more, 0))):
        parts.append([pad(x, (0, missing)) for x in (each.tokens, each.attention_mask, each.mask)])
    return Rollout(*(th.cat(pair) for pair in zip(*parts, strict=True)))
