"""Train a run on a language model into its directory."""

# ruff: noqa: E402
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from srl.llm.extras import EXTRAS, require

require("llm")

import torch as th
from transformers import AutoModelForCausalLM, AutoTokenizer

from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.llm.record import Record
from srl.llm.sampling import Sampler
from srl.llm.sppo_config import SPPOConfig
from srl.llm.sppo_trainer import SPPOTrainer
from srl.llm.tasks import Files, Task, options
from srl.rundir.checkpoints import checkpoint_steps
from srl.rundir.files import plain_files
from srl.rundir.names import LANGUAGE_MODEL
from srl.rundir.status import Status
from srl.training.attempt import Attempt, RunFailed, in_one_line
from srl.training.checkpoint import CheckpointTimer, write_checkpoint
from srl.training.versions import checkpoint_origin


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

    PPO and SPPO resume from the checkpoint of an earlier attempt, with the same result on the CPU; GRPO
    restarts from scratch.

    :param spec: The run.
    :param path: Its folder, new or of an unfinished run of the same spec.
    :param task: From :func:`srl.llm.tasks.load_task`.
    :param command: The command line, for the record.
    :param tell: Called with the status after each iteration.
    :param checkpoint_every: Seconds between two checkpoints; 0 writes one after each iteration.
    :return: The status at the end.
    :raises RunFailed: If training failed; the directory says why.
    :raises UserError: If the folder belongs to another run or process.
    """
    th.set_num_threads(spec.threads)
    check_run(spec)
    attempt = Attempt(spec, path, command=command, tell=tell, packages=(*EXTRAS["trl"], "tokenizers"))
    train = _train_grpo if spec.algorithm.family == "llm-grpo" else _train_sppo
    return attempt.run(lambda: train(attempt, task, checkpoint_every))


def check_run(spec: RunSpec) -> None:
    """Check that the hyperparameters of a run are valid, before anything is loaded or written.

    :raises UserError: If they are not.
    """
    if spec.algorithm.family == "llm-grpo":
        from srl.llm.grpo_run import grpo_config

        grpo_config(spec, "")
    else:
        sppo_config(spec).check()


def load_trained(spec: RunSpec, path: Path, task: Task | None = None) -> Sampler:
    """Load the policy of a finished run.

    :param spec: The run.
    :param path: Its folder.
    :param task: Has the initial model, for KL divergences; None for no KL divergences.
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
    reference = None if task is None else task.model.to(spec.device).eval()
    return Sampler.of(hyperparams, policy, tokenizer, reference)


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


def _train_sppo(attempt: Attempt, task: Task, checkpoint_every: float) -> int:
    state: dict[str, Any] | None = None
    for steps in checkpoint_steps(attempt.path):
        try:
            state = attempt.resume_from(steps)
            break
        except UserError as error:
            attempt.note(f"cannot resume from step {steps:,}: {error}")
    if state is None:
        attempt.restart()
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
                record.add_evaluation(steps, trainer.evaluate(index=record.n_evaluations))
            figures = trainer.iterate()
            steps += n_rollouts
            record.add(steps, figures)
            if timer.is_due:
                origin = checkpoint_origin(attempt.spec)
                state = {"origin": origin, "trainer": trainer.state_dict(), **record.state()}
                timer.keep(partial(write_checkpoint, attempt.path, steps, state))
        steps = trainer.iteration * n_rollouts
        attempt.beat(steps)
        if record.is_due_at_end():
            record.add_evaluation(steps, trainer.evaluate(index=record.n_evaluations))
    except Exception as error:
        raise RunFailed(f"{in_one_line(error)} (at step {trainer.iteration * n_rollouts:,})") from error
    finally:
        record.logger.close()
    save_model(attempt.path, trainer.save_model)
    return steps


def _train_grpo(attempt: Attempt, task: Task, checkpoint_every: float) -> int:
    from srl.llm.grpo_run import train_grpo

    attempt.restart()
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
    """Write a run's final model to its folder, each file atomically.

    :param path: The run's folder.
    :param save: Writes the model and its tokenizer to a folder.
    """
    folder = path / LANGUAGE_MODEL
    folder.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path, prefix=f".{LANGUAGE_MODEL}."))
    try:
        save(temporary)
        for name in sorted(plain_files(temporary)):
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
