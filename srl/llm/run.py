"""Train a run on a language model into its directory."""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

from srl.llm.extras import EXTRAS, require

require("llm")

import torch as th
from stable_baselines3.common.logger import Logger
from transformers import AutoModelForCausalLM, AutoTokenizer

from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.llm.sampling import Evaluation, Sampler
from srl.llm.sppo_trainer import SPPOConfig, SPPOTrainer
from srl.llm.tasks import Files, Task, options
from srl.rundir.store import (
    LANGUAGE_MODEL,
    SAMPLES,
    VERSIONS,
    Status,
    plain_files,
    write_text,
)
from srl.training.callbacks import Episodes, EvaluationLog
from srl.training.checkpoint import CheckpointTimer, write_checkpoint
from srl.training.logs import log_state, make_logger, restore_logger
from srl.training.run import Attempt, RunFailed, in_one_line, versions

#: Texts that a run keeps.
N_SAMPLES = 12


def train_llm_run(
    spec: RunSpec,
    path: Path,
    task: Task,
    *,
    command: str = "",
    tell: Callable[[Status], None] | None = None,
    checkpoint_every: float = 180.0,
) -> Status:
    """Train a run on a language model into its directory.

    PPO and SPPO continue from the checkpoint of an earlier attempt, with the same result on the CPU; GRPO
    restarts from scratch.

    :param spec: The run.
    :param path: Its folder, new or of an unfinished run of the same spec.
    :param task: What :func:`srl.llm.tasks.load_task` gave for the spec.
    :param command: The command that asked for it, for the record.
    :param tell: Is given the status after each iteration.
    :param checkpoint_every: Seconds between two checkpoints; with 0 there is one after each iteration.
    :return: The status at the end.
    :raises RunFailed: If training failed; the directory says why.
    :raises UserError: If the folder does not fit.
    """
    th.set_num_threads(spec.threads)
    check_run(spec)
    attempt = Attempt(spec, path, command=command, tell=tell)
    try:
        with attempt:
            if attempt.running:
                _write_versions(path, command)
                train = _train_grpo if spec.algorithm.family == "llm-grpo" else _train_sppo
                attempt.finish(train(attempt, task, checkpoint_every))
    except Exception as error:
        if error is not attempt.error:
            raise  # the folder does not fit
    if attempt.status.state == "failed":
        raise RunFailed(attempt.status.reason) from attempt.error
    return attempt.status


def check_run(spec: RunSpec) -> None:
    """See that the hyperparameters of a run fit together, before something is loaded or written.

    :raises UserError: If they do not.
    """
    if spec.algorithm.family == "llm-grpo":
        from srl.llm.grpo_run import grpo_config

        grpo_config(spec, "")
    else:
        sppo_config(spec).check()


def load_trained(spec: RunSpec, path: Path, task: Task | None = None) -> Sampler:
    """The policy of a finished run.

    :param spec: The run.
    :param path: Its folder.
    :param task: With the model that the policy began as, for KL divergences; None to go without.
    :raises UserError: If the model cannot be loaded.
    """
    hyperparams, folder, files = options(spec), path / LANGUAGE_MODEL, Files(None)
    th.set_num_threads(spec.threads)
    load: Any = AutoModelForCausalLM.from_pretrained
    if (folder / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        load = AutoPeftModelForCausalLM.from_pretrained
    policy = files.load(load, str(folder)).to(spec.device).eval()
    tokenizer = files.load(AutoTokenizer.from_pretrained, str(folder))
    tokenizer.truncation_side = hyperparams.data.truncation_side
    return Sampler(
        policy,
        tokenizer,
        reference=None if task is None else task.model.to(spec.device).eval(),
        max_prompt_length=hyperparams.max_prompt_length,
        max_new_tokens=hyperparams.max_new_tokens,
        min_new_tokens=hyperparams.min_new_tokens,
        temperature=hyperparams.temperature,
        top_k=hyperparams.top_k,
        batch_size=hyperparams.inference_batch_size,
    )


def _write_versions(path: Path, command: str) -> None:
    """Record the packages of the extras, too."""
    found = versions(command)
    for name in (*EXTRAS["trl"], "tokenizers"):
        try:
            found["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found["packages"][name] = None
    write_text(path / VERSIONS, json.dumps(found, indent=1) + "\n")


def sppo_config(spec: RunSpec) -> SPPOConfig:
    """The trainer's hyperparameters of a run."""
    hyperparams = options(spec)
    names = {each.name for each in fields(SPPOConfig)}
    values = {name: value for name, value in hyperparams if name in names}
    n_iterations = -(-spec.n_timesteps // hyperparams.n_rollouts)
    return SPPOConfig(
        **values,
        output_dir="",
        seed=spec.seed,
        n_iterations=n_iterations,
        noise=spec.noise,
        eval_do_sample=not spec.eval_deterministic,
        log_with=(),
    )


def make_trainer(spec: RunSpec, task: Task) -> SPPOTrainer:
    """The trainer of a run with a critic."""
    return SPPOTrainer(
        task.model,
        task.reward,
        sppo_config(spec),
        task.train_rows,
        task.eval_rows,
        task.tokenizer,
        peft_config=task.peft_config,
        eval_funcs={} if task.judge is None else {"judge": task.judge},
        device=spec.device,
    )


class Record:
    """What a run leaves besides its model: logs, evaluations and texts.

    :param attempt: At the run.
    :param progress: What ``progress.csv`` has already.
    """

    def __init__(self, attempt: Attempt, progress: str = ""):
        self._attempt = attempt
        self._spec, self._path = attempt.spec, attempt.path
        self.logger: Logger = make_logger(self._path, progress)
        self._log = EvaluationLog(self._spec, self._path, attempt.note)
        self._samples: list[dict[str, Any]] = []

    @property
    def n_evaluations(self) -> int:
        """Evaluations so far."""
        return len(self._log.timesteps)

    def is_due(self, steps: int) -> bool:
        """Whether an evaluation is due: before training, and after each ``eval_freq`` steps."""
        done = self._log.timesteps
        return not done or steps // self._spec.eval_freq > done[-1] // self._spec.eval_freq

    def is_due_at_end(self) -> bool:
        """Whether the final evaluation is still to be made."""
        return self._log.due_at_end(self._spec.n_timesteps)

    def add(self, steps: int, figures: Mapping[str, float]) -> None:
        """Log what an iteration gave."""
        for name, figure in figures.items():
            self.logger.record(name, figure)
        self.logger.record("time/total_timesteps", steps, exclude="tensorboard")
        self.logger.dump(steps)

    def evaluated(self, steps: int, found: Evaluation) -> None:
        """Log an evaluation, and keep some of its texts."""
        for name, figure in found.metrics.items():
            self.logger.record(name, figure)
        n = len(found.scores)
        nothing = [False] * n
        episodes = Episodes(found.scores.tolist(), found.lengths.tolist(), nothing, list(nothing))
        self._log.add(steps, episodes, self.logger)
        texts = list(zip(found.prompts, found.responses, found.scores.tolist(), strict=True))[:N_SAMPLES]
        if not self._samples:
            self._samples = [{"prompt": p, "before": r, "reward_before": s} for p, r, s in texts]
        for sample, (_, response, reward) in zip(self._samples, texts, strict=True):
            sample |= {"after": response, "reward_after": reward}
        write_text(self._path / SAMPLES, json.dumps(self._samples, indent=1, ensure_ascii=False) + "\n")

    def state(self) -> dict[str, Any]:
        """All that was recorded, as plain data."""
        return {
            "evaluations": self._log.state(),
            "samples": self._samples,
            "logs": log_state(self._path, self.logger),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue the record of an earlier attempt."""
        self._log.restore(state["evaluations"])
        self._samples = state["samples"]
        restore_logger(self.logger, state["logs"])


def _train_sppo(attempt: Attempt, task: Task, checkpoint_every: float) -> int:
    state: dict[str, Any] | None = None
    for steps in attempt.checkpoints():
        try:
            state = attempt.go_on(steps)
            break
        except UserError as error:
            attempt.note(f"cannot go on from step {steps:,}: {error}")
    if state is None:
        attempt.begin_anew()
        _write_versions(attempt.path, attempt.command)
    trainer = make_trainer(attempt.spec, task)
    record = Record(attempt, state["logs"]["progress"] if state else "")
    if state is not None:
        record.restore(state)
        trainer.load_state_dict(state["trainer"])
    n_rollouts, n_iterations = trainer.args.n_rollouts, trainer.args.n_iterations
    timer = CheckpointTimer(checkpoint_every, attempt.note)
    try:
        while trainer.iteration < n_iterations:
            steps = trainer.iteration * n_rollouts
            attempt.beat(steps)
            if record.is_due(steps):
                record.evaluated(steps, trainer.evaluate(index=record.n_evaluations))
            figures = trainer.iterate()
            steps += n_rollouts
            record.add(steps, figures)
            if timer.is_due:
                made = {"origin": attempt.origin(), "trainer": trainer.state_dict(), **record.state()}
                timer.keep(lambda made=made, steps=steps: write_checkpoint(attempt.path, steps, made))  # type: ignore[misc]
        steps = trainer.iteration * n_rollouts
        attempt.beat(steps)
        if record.is_due_at_end():
            record.evaluated(steps, trainer.evaluate(index=record.n_evaluations))
    except Exception as error:
        raise RunFailed(f"{in_one_line(error)} (at step {trainer.iteration * n_rollouts:,})") from error
    finally:
        record.logger.close()
    save_model(attempt.path, trainer.save_model)
    return steps


def _train_grpo(attempt: Attempt, task: Task, checkpoint_every: float) -> int:
    from srl.llm.grpo_run import train_grpo

    attempt.begin_anew()
    _write_versions(attempt.path, attempt.command)
    record = Record(attempt)
    try:
        steps, save = train_grpo(attempt, task, record)
    except Exception as error:
        raise RunFailed(in_one_line(error)) from error
    finally:
        record.logger.close()
    save_model(attempt.path, save)
    return steps


def save_model(path: Path, save: Callable[[Path], None]) -> None:
    """Write a run's final model into its folder, file by file as a whole.

    :param path: The run's folder.
    :param save: Writes the model and its tokenizer into a folder.
    """
    folder = path / LANGUAGE_MODEL
    folder.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=path, prefix=f".{LANGUAGE_MODEL}."))
    try:
        save(made)
        for name in sorted(plain_files(made)):
            os.replace(made / name, folder / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
