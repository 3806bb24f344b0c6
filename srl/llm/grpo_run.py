"""Train a run of GRPO with TRL's trainer and the symmetric loss."""

# ruff: noqa: E402
from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from srl.llm.extras import require

require("trl")

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.llm.grpo_trainer import SymmetricGRPOConfig, SymmetricGRPOTrainer
from srl.llm.record import Record
from srl.llm.rewards import RewardFunction, score
from srl.llm.sampling import Evaluation, Sampler, reward_columns
from srl.llm.tasks import Task, options
from srl.training.attempt import Attempt

#: TRL's logged figures, and their names in runs with a critic.
_LOGGED = {
    "srl/reward_without_noise": "rollout/reward",
    "reward": "rollout/noisy_reward",
    "kl": "train/kl_per_token",
    "completions/mean_length": "rollout/length",
    "loss": "train/surrogate_loss",
    "grad_norm": "train/grad_norm",
    "clip_ratio/region_mean": "train/clip_fraction",
    "entropy": "train/entropy",
}


def grpo_config(spec: RunSpec, output_dir: str) -> SymmetricGRPOConfig:
    """TRL's options for a run.

    A rollout has ``n_rollouts`` responses. It is divided into minibatches of ``batch_size``, and each takes
    ``n_epochs`` optimizer steps.

    :param output_dir: TRL's output folder, which is temporary.
    :raises UserError: If they are not compatible.
    """
    h = options(spec)
    if h.target_coef:
        raise UserError(f"target_coef={h.target_coef}: GRPO has no imitation. Set target_coef=0.")
    if h.batch_size % h.num_generations or h.n_rollouts % h.num_generations:
        raise UserError(
            f"num_generations={h.num_generations}: must divide batch_size={h.batch_size} and "
            f"n_rollouts={h.n_rollouts}."
        )
    n_parts = h.gradient_accumulation_steps
    n_minibatches = h.n_rollouts // h.batch_size
    n_iterations = -(-spec.n_timesteps // h.n_rollouts)
    config = SymmetricGRPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=h.batch_size // n_parts,
        gradient_accumulation_steps=n_parts,
        steps_per_generation=n_minibatches * n_parts,
        num_iterations=h.n_epochs,
        num_generations=h.num_generations,
        max_steps=n_iterations * n_minibatches * h.n_epochs,
        max_completion_length=h.max_new_tokens,
        temperature=h.temperature,
        top_k=h.top_k,
        loss_type=h.loss_type,
        epsilon=h.clip_range,
        beta=h.kl_coef,
        learning_rate=h.learning_rate,
        adam_epsilon=h.adam_epsilon,
        weight_decay=h.weight_decay,
        max_grad_norm=h.max_grad_norm,
        lr_scheduler_type="constant",
        seed=spec.seed,
        use_cpu=spec.device == "cpu",
        bf16=h.mixed_precision == "bf16",
        gradient_checkpointing=False,
        disable_dropout=True,
        logging_steps=n_minibatches * h.n_epochs,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        srl_alpha=h.alpha,
        srl_beta=h.beta,
        srl_z=h.z,
        srl_reverse_loss=h.reverse_loss,
        srl_importance_weighting=h.importance_weighting,
        srl_noise=spec.noise,
    )
    config.check()
    return config


def train_grpo(attempt: Attempt, task: Task, record: Record) -> tuple[int, Callable[[Path], None]]:
    """Train a run of GRPO from scratch.

    :param attempt: The attempt at the run.
    :param task: The models, texts and rewards.
    :param record: Records logs and evaluations.
    :return: The training steps, and a function that writes the model to a folder.
    """
    spec = attempt.spec
    hyperparams = options(spec)
    reference = None
    if task.peft_config is None:
        reference = copy.deepcopy(task.model).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SymmetricGRPOTrainer(
            task.model,
            _checked(task.reward, list(reward_columns([task.train_rows[0]]))),
            grpo_config(spec, folder),
            train_dataset=_prompts(task, hyperparams.max_prompt_length),
            processing_class=task.tokenizer,
            peft_config=task.peft_config,
        )
        trainer.remove_callback(PrinterCallback)
        policy = trainer.accelerator.unwrap_model(trainer.model)
        if reference is not None:
            reference.to(trainer.accelerator.device)
        # TRL's rollouts have no minimum length, and evaluations have none either
        limits = hyperparams.model_copy(update={"min_new_tokens": 0})
        sampler = Sampler.of(limits, policy, task.tokenizer, reference)

        def evaluate() -> Evaluation:
            return sampler.evaluate(
                list(task.eval_rows),
                task.reward,
                others={} if task.judge is None else {"judge": task.judge},
                seed=spec.seed,
                index=record.n_evaluations,
                do_sample=not spec.eval_deterministic,
            )

        responses_per_step = hyperparams.n_rollouts / trainer.args.logging_steps
        trainer.add_callback(_Recorder(attempt, record, evaluate, responses_per_step))
        record.add_evaluation(0, evaluate())
        trainer.train()
        steps = round(trainer.state.global_step * responses_per_step)
        if record.is_due_at_end():
            record.add_evaluation(steps, evaluate())

    def save(into: Path) -> None:
        policy.save_pretrained(into)
        task.tokenizer.save_pretrained(into)

    return steps, save


def _checked(function: RewardFunction, names: Sequence[str]) -> RewardFunction:
    """The reward function with a check of its scores; TRL takes NaN for a missing score.

    :param names: Columns of the data set. TRL gives more arguments, which evaluations do not have.
    """

    def checked(prompts: Sequence[str], completions: Sequence[str], **arguments: Any) -> list[float]:
        columns = {name: arguments[name] for name in names}
        scores: list[float] = score(function, prompts, completions, columns).tolist()
        return scores

    return checked


def _prompts(task: Task, max_length: int) -> Dataset:
    """The training prompts, truncated as in evaluations, which TRL does not do."""
    prompts = []
    for row in task.train_rows:
        tokens = task.tokenizer(row["prompt"], truncation=True, max_length=max_length)["input_ids"]
        columns = {name: values[0] for name, values in reward_columns([row]).items()}
        prompts.append({**columns, "prompt": task.tokenizer.decode(tokens, skip_special_tokens=True)})
    return Dataset.from_list(prompts)


class _Recorder(TrainerCallback):  # type: ignore[misc]
    """Records TRL's figures after each rollout."""

    def __init__(
        self, attempt: Attempt, record: Record, evaluate: Callable[[], Evaluation], responses_per_step: float
    ):
        self._attempt, self._record, self._evaluate = attempt, record, evaluate
        self._responses_per_step = responses_per_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **more: Any) -> None:
        if "loss" not in logs:
            return  # the summary at the end
        steps = round(state.global_step * self._responses_per_step)
        figures = {own: float(logs[name]) for name, own in _LOGGED.items() if name in logs}
        figures.setdefault("rollout/reward", figures.get("rollout/noisy_reward", float("nan")))
        self._record.add(steps, figures)
        self._attempt.beat(steps)
        if self._record.is_due(steps):
            self._record.add_evaluation(steps, self._evaluate())
