"""Options that several commands share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
import yaml
from rich.console import Console

from srl.errors import UserError
from srl.sweep.engines import EngineOptions
from srl.sweep.engines.choose import engine_options, known_engines

_T = TypeVar("_T")
#: An optional option, without "(default: None)" in its help.
Unset = Annotated[_T | None, tyro.conf.arg(help_behavior_hint="")]

#: Options of the symmetric losses.
SYMMETRIC = ("alpha", "beta", "z", "reverse_loss", "importance_weighting")
#: Exit statuses.
FAILED, MISTAKE, STOPPED = 1, 2, 130
#: Maximum number of notes that are printed; the files contain all.
_SHOWN_NOTES = 20


def several(metavar: str) -> Any:
    """An option with several values, none by default; ``metavar`` is shown in its help."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def given(options: object, names: Sequence[str]) -> dict[str, Any]:
    """The options that are not None, by name."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


@dataclass
class LossOptions:
    """The symmetric loss and other hyperparameters. They override the hyperparameter file. In a sweep, alpha,
    beta, z, reverse_loss and importance_weighting apply only to the symmetric algorithms."""

    alpha: Unset[float] = None
    """Weight of the policy loss."""
    beta: Unset[float] = None
    """Weight of the reverse loss."""
    z: Unset[float] = None
    """The finite negative number that replaces log 0."""
    reverse_loss: Unset[str] = None
    """rce (reverse cross-entropy), mae (mean absolute error), or the name of your own loss."""
    importance_weighting: tyro.conf.FlagConversionOff[Unset[bool]] = None
    """SPPO only: whether the reverse loss is divided by pi_old, as published. By default True."""
    advantage_transform: Unset[str] = None
    """Transform of the advantages: none, sign or bins; docs/noise.md."""
    advantage_flip_prob: Unset[float] = None
    """Probability that the sign of an advantage is flipped."""
    bins: Unset[int] = None
    """Number of values per action dimension, for the discretized algorithms. By default 11."""
    hyperparams: Annotated[tuple[str, ...], several("NAME=VALUE [...]")] = ()
    """Other hyperparameters, as NAME=VALUE or NAME:VALUE, for example n_steps=1024 gamma=0.98."""

    def symmetric(self) -> dict[str, Any]:
        """The given parameters of the reverse loss, which do not apply to a sweep's baselines."""
        return given(self, SYMMETRIC)

    def others(self) -> dict[str, Any]:
        """The other given hyperparameters.

        :raises UserError: If one does not parse, or is specified twice.
        """
        values = parse_assignments("--hyperparams", self.hyperparams)
        for name in values.keys() & vars(self).keys():
            if getattr(self, name) is not None:
                option = name.replace("_", "-")
                raise UserError(f"{name} is specified twice: as --{option} and in --hyperparams.")
        return values | given(self, ("advantage_transform", "advantage_flip_prob"))


@dataclass
class EnvOptions:
    """The environment, and your own code. The current directory is on Python's path."""

    gym_packages: Annotated[tuple[str, ...], several("MODULE [MODULE ...]")] = ()
    """Modules to import first, for example modules that register environments with Gymnasium."""
    env_kwargs: Annotated[tuple[str, ...], several("NAME=VALUE [...]")] = ()
    """Arguments of the environment's constructor, as NAME=VALUE or NAME:VALUE, for example size=5."""
    env_wrapper: Annotated[tuple[str, ...], several("MODULE:CLASS [...]")] = ()
    """Wrappers around the environment, the innermost first: module:Class, or
    'module:Class: {ARGUMENT: VALUE}'."""
    max_episode_steps: Unset[int] = None
    """Time limit of an episode in steps of the agent. By default the environment's time limit."""
    hyperparams_file: Unset[Path] = None
    """A hyperparameter file in the format of rl-baselines3-zoo. By default srl's own files."""
    trust_config: bool = False
    """Import Python code that the sweep file or the hyperparameter file names."""

    def wrappers(self) -> list[Any]:
        """The wrappers in the format of a hyperparameter file.

        :raises UserError: If one is not YAML.
        """
        return [read_yaml("--env-wrapper", text, text) for text in self.env_wrapper]

    def of_run(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """Arguments of :func:`~srl.config.spec.make_run_spec`, with the wrappers added to the overrides.

        :raises UserError: If an argument of the environment is malformed.
        """
        wrappers = {"env_wrapper": self.wrappers()} if self.env_wrapper else {}
        return {
            "overrides": overrides | wrappers,
            "gym_packages": self.gym_packages,
            "env_kwargs": parse_assignments("--env-kwargs", self.env_kwargs),
            "max_episode_steps": self.max_episode_steps,
            "hyperparams_file": self.hyperparams_file,
            "trust_file": self.trust_config,
        }


@dataclass
class EvaluationOptions:
    """Evaluations, which have no reward noise. Scores and learning curves are computed from them."""

    eval_freq: Unset[int] = None
    """Training steps between evaluations. By default 10,000 on Atari and 5,000 elsewhere."""
    eval_episodes: Unset[int] = None
    """Number of episodes of each evaluation. By default 10."""
    eval_max_episode_steps: Unset[int] = None
    """Number of steps after which an episode of an evaluation is truncated. By default 50,000, or the
    environment's time limit if that is higher."""


@dataclass
class ExecutionOptions:
    """Device, environment backend, compilation, precision and checkpoints. --env-backend and --precision
    change results; the other options change at most the last bits."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N. auto selects a GPU for image observations if there is one."""
    env_backend: Unset[str] = None
    """gymnasium, or native for environments in C++ threads; docs/environments.md lists the differences. By
    default gymnasium."""
    compile: Unset[str] = None
    """Whether updates are compiled: on, off, or auto for runs that are long enough. By default auto."""
    precision: Unset[str] = None
    """float32, or bf16 for networks for images in bfloat16, which is faster; docs/compilation.md. By default
    float32."""
    checkpoint_every: float = 180.0
    """Seconds between two checkpoints; 0 saves a checkpoint after each update. An interrupted run resumes
    from its last checkpoint."""


@dataclass
class RunExecutionOptions(ExecutionOptions):
    __doc__ = ExecutionOptions.__doc__

    threads: int = 1
    """Number of threads of PyTorch, and of native environments."""


@dataclass
class SweepExecutionOptions(ExecutionOptions):
    __doc__ = ExecutionOptions.__doc__

    jobs: Unset[int] = None
    """Number of processes. By default the number of cores of this machine or of the Ray cluster; 64 on a
    Slurm cluster."""
    population: str = "auto"
    """Whether runs of one environment train together as one stacked network: auto, off, or the maximum
    number of runs in a population."""
    retries: int = 3
    """How often a run that crashes or hangs without progress is retried from its last checkpoint. If its
    process is killed, five times as often."""
    stall_timeout: float = 1800.0
    """Seconds without a heartbeat after which a run is killed and retried."""


def _cluster_options() -> Any:
    """The class of ``--engine`` and of the options that engines declare."""
    help = (
        f"Engine that executes the runs: {', '.join(known_engines())}, or your own engine as module:Class or "
        "'module:Class: {ARGUMENT: VALUE}'; docs/how-to/engine.md."
    )
    options: list[tuple[str, Any, Any]] = [("engine", Annotated[str, tyro.conf.arg(help=help)], "local")]
    for engine in known_engines().values():
        types = get_type_hints(engine)
        for each in fields(engine):
            if "help" in each.metadata:
                # None shows that it was not given
                hint = "" if each.default is None else f"(default: {each.default})"
                config = tyro.conf.arg(help=each.metadata["help"], help_behavior_hint=hint)
                options.append((each.name, Annotated[types[each.name] | None, config], None))
    doc = {"__doc__": "Training on a cluster instead of this machine; docs/clusters.md."}
    return make_dataclass("ClusterOptions", options, namespace=doc)


ClusterOptions: Any = _cluster_options()


def engine_of(cluster: Any, n_jobs: int | None) -> EngineOptions:
    """Make the options of the engine that ``cluster``, an instance of ``ClusterOptions``, selects.

    :param n_jobs: The number of parallel tasks; None for the engine's default.
    :raises UserError: If the engine is unknown, or an option is invalid or belongs to another engine.
    """
    chosen = given(cluster, list(vars(cluster)))
    engine = chosen.pop("engine")
    named = read_yaml("--engine", engine, engine)
    choices = list(named.items()) if isinstance(named, dict) else [(engine, {})]
    name, arguments = choices[0] if len(choices) == 1 else (None, None)
    if not (isinstance(name, str) and isinstance(arguments, dict)):
        raise UserError(f"--engine {engine}: must be a name, or 'module:Class: {{ARGUMENT: VALUE}}'.")
    return engine_options(name, n_jobs, chosen, arguments)


@dataclass
class TrackOptions:
    """Tracking of runs; docs/how-to/tracking.md."""

    track: Unset[str] = None
    """wandb, mlflow or trackio: send the spec, all metrics with evaluations, and the final model of each
    run."""
    track_project: Unset[str] = None
    """Project or experiment of the tracking service. By default srl, or the sweep's name."""


def parse_assignments(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Parse values by name.

    :param option: The option, for messages.
    :param texts: ``NAME=VALUE`` or ``NAME:VALUE``; values are YAML.
    :raises UserError: If one has another format, or a name is given twice.
    """
    values = read_assignments(option, texts)
    return {name: read_yaml(option, f"{name}={value}", value) for name, value in values.items()}


def read_assignments(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Split texts by name; see :func:`parse_assignments`."""
    values: dict[str, str] = {}
    for text in texts:
        found = re.fullmatch(r"(\w+)[=:](.+)", text, re.DOTALL)
        if found is None:
            raise UserError(f"{option} {text}: must be NAME=VALUE, for example n_steps=1024.")
        if found[1] in values:
            raise UserError(f"{option} {found[1]}: is given twice.")
        values[found[1]] = found[2]
    return values


def read_yaml(option: str, text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{option} {text}: {value!r} is not a YAML value.") from None


def put_current_directory_on_path() -> None:
    """Make modules of the current directory importable as ``python -m`` does, in child processes too."""
    here = os.getcwd()
    sys.path.insert(0, here)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))


def split_values(option: str, values: Sequence[str] | None) -> list[str] | None:
    """An option's values, which may also be separated by commas; None for an option that was not given."""
    if values is None:
        return None
    parts = [part for value in values for part in value.split(",") if part]
    if not parts:
        raise UserError(f"{option}: at least one value is needed.")
    return parts


def check_tracking(options: TrackOptions) -> None:
    """Check the options and that the package of the service is installed.

    :raises UserError: If not.
    """
    if options.track is not None:
        from srl.tracking.backends import check_backend

        check_backend(options.track)
    elif options.track_project is not None:
        raise UserError(f"--track-project {options.track_project}: needs --track.")


@contextmanager
def tracked(options: TrackOptions, project: str, paths: Sequence[Path]) -> Iterator[list[str]]:
    """Track runs as asked; see :func:`srl.tracking.process.tracking`.

    :param project: The default project.
    :return: A context that yields lines on problems, which are complete at its end.
    """
    check_tracking(options)
    problems: list[str] = []
    if options.track is None:
        yield problems
        return
    from srl.tracking.process import tracking

    with tracking(options.track, options.track_project or project, paths) as found:
        yield problems
    problems += found


def tracked_status(problems: Sequence[str], status: int) -> int:
    """Print a problem of tracking, and return the exit status, which is 1 if there is one."""
    if not problems:
        return status
    print(
        "srl: tracking failed; the runs are not affected. Rerun the command to send what is missing. "
        f"{problems[0]}",
        file=sys.stderr,
    )
    return FAILED


def print_notes(notes: Sequence[str], console: Console) -> None:
    for note in notes[:_SHOWN_NOTES]:
        # Folder names may contain undecodable bytes
        console.print(
            note.encode(errors="backslashreplace").decode(), markup=False, highlight=False, soft_wrap=True
        )
    if len(notes) > _SHOWN_NOTES:
        console.print(f"and {len(notes) - _SHOWN_NOTES} more lines, which are in the files.")


def new_console() -> Console:
    """A console for standard output: 250 columns wide for a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 250)
