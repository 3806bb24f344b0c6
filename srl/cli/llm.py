"""``srl llm``: train, evaluate and sample language models."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import tyro
from rich.console import Console

from srl.cli.options import (
    FAILED,
    SYMMETRIC,
    Unset,
    given,
    new_console,
    parse_assignments,
    put_current_directory_on_path,
    several,
)
from srl.errors import UserError

if TYPE_CHECKING:
    from srl.config.spec import RunSpec

#: Number of texts that are printed after training.
_SHOWN_TEXTS = 6


@dataclass
class Train:
    """Train a language model and save it to a run directory."""

    task: tyro.conf.Positional[str]
    """offline, imdb, tldr, or a task file in the format of configs/llm."""
    algo: str = "sppo"
    """Algorithm: ppo or sppo, which have a critic; grpo or sgrpo, which use TRL's trainer."""
    alpha: Unset[float] = None
    """Weight of the policy loss."""
    beta: Unset[float] = None
    """Weight of the reverse loss."""
    z: Unset[float] = None
    """The finite negative number that replaces log 0."""
    reverse_loss: Unset[str] = None
    """rce (reverse cross-entropy) or mae (mean absolute error)."""
    importance_weighting: tyro.conf.FlagConversionOff[Unset[bool]] = None
    """Whether the reverse loss is divided by pi_old, as published. By default True."""
    hyperparams: Annotated[tuple[str, ...], several("NAME=VALUE [...]")] = ()
    """Other hyperparameters, as NAME=VALUE, for example kl_coef=0.1 n_epochs=2."""
    noise: str = "none"
    """Noise on the scores in training: none, gaussian:STD, uniform:HALF_WIDTH or flip:PROB."""
    seed: int = 0
    """Seed of all random numbers."""
    variant: Unset[str] = None
    """Name of the run's column in tables. By default the name of the algorithm."""
    timesteps: Unset[int] = None
    """Number of responses to train on. By default that of the task file."""
    eval_freq: Unset[int] = None
    """Number of responses between two evaluations. By default that of the task file."""
    eval_episodes: Unset[int] = None
    """Number of prompts of each evaluation. By default that of the task file."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = 1
    """Number of threads of PyTorch."""
    local_files: Unset[Path] = None
    """Folder with the models and data sets of the task, instead of the Hugging Face Hub."""
    trust_config: bool = False
    """Import Python code that the task file names."""
    out: Unset[Path] = None
    """The run directory. By default runs/TASK/llm-ALGO/NOISE/seed-N."""
    checkpoint_every: float = 180.0
    """Seconds between two checkpoints; 0 saves a checkpoint after each iteration."""


@dataclass
class Evaluate:
    """Evaluate the model of a finished run. The command writes nothing."""

    dir: tyro.conf.Positional[Path]
    """The run directory."""
    episodes: Unset[int] = None
    """Number of prompts. By default that of the run's evaluations."""
    seed: int = 1
    """Seed of the sampled tokens."""
    device: Unset[str] = None
    """auto, cpu, cuda or cuda:N. By default that of the run."""
    local_files: Unset[Path] = None
    """Folder with the models and data sets of the task, instead of the Hugging Face Hub."""
    trust_config: bool = False
    """Import Python code that the run's spec names."""


@dataclass
class Sample:
    """Generate responses to a prompt with the model of a finished run."""

    dir: tyro.conf.Positional[Path]
    """The run directory."""
    prompt: tyro.conf.Positional[str]
    """The beginning of a text."""
    n: int = 3
    """Number of responses."""
    seed: int = 0
    """Seed of the sampled tokens."""
    device: Unset[str] = None
    """auto, cpu, cuda or cuda:N. By default that of the run."""


@dataclass
class LanguageModels:
    """Train, evaluate and sample language models. Needs pip install 'symmetric-rl[llm]'."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Evaluate, tyro.conf.subcommand("eval")]
        | Annotated[Sample, tyro.conf.subcommand("sample")]
    ]


def run(options: LanguageModels, command: str) -> int:
    """``srl llm``; returns the exit status. The command line is for the run's record."""
    from srl.llm.extras import require

    require("trl" if isinstance(options.command, Train) and "grpo" in options.command.algo else "llm")
    if not _uses_hub(options.command) or not _reaches_hub():
        # Prevent retries of the libraries, which find cached files anyway
        os.environ["HF_HUB_OFFLINE"] = "1"
    _quieten()
    if isinstance(options.command, Train):
        return train(options.command, command)
    if isinstance(options.command, Evaluate):
        return evaluate(options.command)
    return sample(options.command)


def _uses_hub(command: Train | Evaluate | Sample) -> bool:
    """Whether a command may load something from the Hugging Face hub."""
    if isinstance(command, Sample):
        return (command.dir / "model" / "adapter_config.json").is_file()
    return command.local_files is None and not (isinstance(command, Train) and command.task == "offline")


def _reaches_hub() -> bool:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=10).close()
    except HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _quieten() -> None:
    """Disable progress bars and warnings of the libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(transformers|peft|trl)\.")


def train(options: Train, command: str) -> int:
    """``srl llm train``; returns the exit status."""
    from srl.llm.run import check_run, train_llm_run
    from srl.llm.spec import make_llm_spec
    from srl.llm.tasks import load_task
    from srl.rundir.directory import RunDirectory
    from srl.sweep.display import RunDisplay
    from srl.sweep.execution import check_interval
    from srl.training.attempt import RunFailed

    check_interval(options.checkpoint_every)
    put_current_directory_on_path()
    console = new_console()
    overrides = parse_assignments("--hyperparams", options.hyperparams)
    for name in overrides.keys() & given(options, SYMMETRIC).keys():
        raise UserError(f"{name} is specified twice: as --{name.replace('_', '-')} and in --hyperparams.")
    spec = make_llm_spec(
        options.task,
        options.algo,
        options.seed,
        noise=options.noise,
        n_timesteps=options.timesteps,
        eval_freq=options.eval_freq,
        n_eval_episodes=options.eval_episodes,
        device=options.device,
        threads=options.threads,
        variant=options.variant,
        trust=options.trust_config,
        overrides=overrides | given(options, SYMMETRIC),
    )
    path = options.out or Path("runs") / spec.path
    directory = RunDirectory(path)
    there = directory.compare(spec)
    for note in [*directory.damage(), *directory.minor_damage()]:
        console.print(note, markup=False)
    if there == "done":
        console.print(f"{path} holds this run already, finished. Nothing to do.", markup=False)
        return 0
    check_run(spec)
    task = load_task(spec, options.local_files, lambda line: console.print(line, markup=False))
    try:
        with RunDisplay(console, spec) as display:
            train_llm_run(
                spec,
                path,
                task,
                command=command,
                tell=display.update,
                checkpoint_every=options.checkpoint_every,
            )
    except RunFailed as error:
        print(f"srl: the run failed: {error}\nIts folder is {path}.", file=sys.stderr)
        return FAILED
    _print_samples(path, console)
    _print_evaluations(path, console)
    console.print(
        f"The run is in {path}. Page: srl report {path}. More texts: srl llm sample {path} PROMPT",
        markup=False,
        soft_wrap=True,
    )
    return 0


def _print_samples(path: Path, console: Console) -> None:
    from srl.report.samples import read_samples

    for text in read_samples(path)[:_SHOWN_TEXTS]:
        console.print(f"\n{text.prompt}", markup=False, highlight=False, style="bold")
        console.print(
            f"  before ({text.reward_before:.2f}): {text.before.strip()}", markup=False, highlight=False
        )
        console.print(
            f"  after  ({text.reward_after:.2f}): {text.after.strip()}", markup=False, highlight=False
        )
    console.print()


def _print_evaluations(path: Path, console: Console) -> None:
    from srl.tracking.follower import read_progress

    rows = [row for _, row in read_progress(path)]
    for name in ("reward", "judge", "kl", "perplexity", "length"):
        values = [row[f"eval/{name}"] for row in rows if f"eval/{name}" in row]
        if values:
            line = f"{name + ':':12}{values[0]:8.3f} before, {values[-1]:8.3f} after training"
            console.print(line, markup=False, highlight=False)


def _finished_run(command: Evaluate | Sample) -> RunSpec:
    """The spec of a finished run on a language model, with the device of a command.

    :raises UserError: If the folder holds none, or an option is invalid.
    """
    from srl.config.spec import resolve_device
    from srl.llm.tasks import options
    from srl.rundir.directory import RunDirectory

    if command.seed < 0:
        raise UserError(f"--seed {command.seed}: must be at least 0.")
    path = command.dir
    directory = RunDirectory(path)
    spec = directory.read_spec()
    if spec is None:
        raise UserError(f"{path} contains no run.")
    options(spec)
    if problems := directory.damage():
        raise UserError(problems[0])
    if not directory.is_finished():
        raise UserError(f"{path}: the run is not finished and has no final model yet.")
    return spec.model_copy(update={"device": resolve_device(command.device or spec.device, "CnnPolicy")})


def evaluate(options: Evaluate) -> int:
    """``srl llm eval``; returns the exit status."""
    from srl.llm.run import load_trained
    from srl.llm.tasks import load_task
    from srl.llm.tasks import options as of

    put_current_directory_on_path()
    spec = _finished_run(options)
    for code in of(spec).named_code():
        if not options.trust_config:
            raise UserError(f"{options.dir}: the spec names Python code, {code!r}; give --trust-config.")
    if options.episodes is not None:
        if options.episodes < 1:
            raise UserError(f"--episodes {options.episodes}: at least one prompt is needed.")
        spec = spec.model_copy(update={"n_eval_episodes": options.episodes})
    task = load_task(spec, options.local_files)
    sampler = load_trained(spec, options.dir, task)
    found = sampler.evaluate(
        list(task.eval_rows),
        task.reward,
        others={} if task.judge is None else {"judge": task.judge},
        seed=options.seed,
        do_sample=not spec.eval_deterministic,
    )
    console = new_console()
    for name, figure in found.metrics.items():
        console.print(f"{name.removeprefix('eval/') + ':':12}{figure:8.3f}", markup=False, highlight=False)
    return 0


def sample(options: Sample) -> int:
    """``srl llm sample``; returns the exit status."""
    from srl.llm.run import load_trained

    if options.n < 1:
        raise UserError(f"--n {options.n}: at least one response is needed.")
    if not options.prompt.strip():
        raise UserError("The prompt is empty.")
    spec = _finished_run(options)
    for response in load_trained(spec, options.dir).respond(options.prompt, options.n, options.seed):
        print(response)
    return 0
