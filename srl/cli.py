"""The one command, ``srl``: it hands what a user asks for to the parts that do it, and prints the answers."""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro
import yaml
from rich.console import Console
from rich.filesize import decimal

from srl import __version__
from srl.cli_enjoy import Enjoy, enjoy
from srl.errors import OutOfSpace, UserError

if TYPE_CHECKING:
    from srl.config.spec import RunSpec

#: Exit statuses.
FAILED, MISTAKE, STOPPED = 1, 2, 130
#: Lines on what is left out that are printed; the files have all.
_SHOWN_NOTES = 20


@dataclass
class LossOptions:
    """The symmetric loss, and other hyperparameters, before those of the hyperparameter file. In a sweep,
    alpha, beta, z, reverse_loss and importance_weighting go to the symmetric algorithms alone."""

    alpha: float | None = None
    """Weight of the policy loss."""
    beta: float | None = None
    """Weight of the reverse loss."""
    z: float | None = None
    """The finite stand-in for log 0, negative."""
    reverse_loss: str | None = None
    """rce (reverse cross-entropy) or mae (mean absolute error)."""
    importance_weighting: tyro.conf.FlagConversionOff[bool | None] = None
    """Whether SPPO's reverse loss is divided by pi_old, as published."""
    advantage_transform: str | None = None
    """none, sign or bins."""
    advantage_flip_prob: float | None = None
    """Probability that the sign of an advantage is flipped."""
    bins: int | None = None
    """Values per action dimension of the discretized algorithms. By default 11."""
    hyperparams: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE [...]")] = ()
    """Any other hyperparameters, as NAME=VALUE or NAME:VALUE, for example n_steps=1024 gamma=0.98."""

    def symmetric(self) -> dict[str, Any]:
        """The parameters of the reverse loss that were given; a sweep's baselines do not take them."""
        names = ("alpha", "beta", "z", "reverse_loss", "importance_weighting")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def others(self) -> dict[str, Any]:
        """The other hyperparameters that were given.

        :raises UserError: If one does not parse, or is specified twice.
        """
        values = parse_assignments("--hyperparams", self.hyperparams)
        for name in values.keys() & vars(self).keys():
            if getattr(self, name) is not None:
                option = name.replace("_", "-")
                raise UserError(f"{name} is specified twice: as --{option} and in --hyperparams.")
        for name in ("advantage_transform", "advantage_flip_prob"):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        return values


@dataclass
class EnvOptions:
    """The environment, and code of your own. The current directory is on Python's path."""

    gym_packages: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODULE [MODULE ...]")] = ()
    """Modules to import first, which register environments with Gymnasium."""
    env_kwargs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE [...]")] = ()
    """Arguments of the environment's constructor, as NAME=VALUE or NAME:VALUE, for example size=5."""
    env_wrapper: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODULE:CLASS [...]")] = ()
    """Wrappers around the environment, the innermost first: module:Class, or
    'module:Class: {ARGUMENT: VALUE}'."""
    max_episode_steps: int | None = None
    """Time limit of an episode in steps of the agent; the environment's own if not given."""
    hyperparams_file: Path | None = None
    """A hyperparameter file in the format of rl-baselines3-zoo, in place of srl's own."""
    trust_config: bool = False
    """Import Python code that the sweep's file or the hyperparameter file names."""

    def wrappers(self) -> list[Any]:
        """Return the wrappers as a hyperparameter file has them.

        :raises UserError: If one is not YAML.
        """
        return [_yaml("--env-wrapper", text, text) for text in self.env_wrapper]


@dataclass
class EvaluationOptions:
    """Episodes without reward noise, from which scores and learning curves come."""

    eval_freq: int | None = None
    """Training steps between evaluations. By default 10,000 on Atari and 5,000 elsewhere."""
    eval_episodes: int | None = None
    """Episodes of an evaluation. By default 10."""
    eval_max_episode_steps: int | None = None
    """Steps after which an episode of an evaluation is truncated. By default 50,000, or the environment's
    time limit if that is higher."""


@dataclass
class ExecutionOptions:
    """Where and how training runs. None of it changes what is learned, apart from the last bits."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N. auto takes a GPU for image observations if there is one."""
    env_backend: str | None = None
    """gymnasium, or native for environments in C++ threads; docs/environments.md says what differs. By
    default gymnasium."""
    compile: str | None = None
    """Whether the update is compiled: on, off, or auto for runs that are long enough to repay it. By default
    auto."""
    precision: str | None = None
    """float32, or bf16 to compute networks for images in bfloat16, which is faster; docs/compilation.md. By
    default float32."""
    checkpoint_every: float = 180.0
    """Seconds between two checkpoints, from which an interrupted run resumes; 0 for one after each update."""


@dataclass
class RunExecutionOptions(ExecutionOptions):
    __doc__ = ExecutionOptions.__doc__

    threads: int = 1
    """Threads of torch, and of native environments."""


@dataclass
class SweepExecutionOptions(ExecutionOptions):
    __doc__ = ExecutionOptions.__doc__

    jobs: int | None = None
    """Number of processes. By default as many as this machine or the Ray cluster has cores; 64 on a Slurm
    cluster."""
    population: str = "auto"
    """Whether runs of one environment train as one stacked network: auto, off, or the most runs of one."""
    retries: int = 3
    """How often a run that crashes or hangs is retried from its checkpoint if it gets no further; five times
    as often one that is killed."""
    stall_timeout: float = 1800.0
    """Seconds without a heartbeat after which a run is ended and retried."""


@dataclass
class ClusterOptions:
    """A cluster instead of this machine; see docs/clusters.md."""

    engine: Literal["local", "ray", "slurm"] = "local"
    """What executes the runs: processes of this machine, a Ray cluster or a Slurm cluster."""
    address: str | None = None
    """Of a Ray cluster: auto, HOST:PORT, or local for one on this machine. By default auto."""
    tasks_per_gpu: int | None = None
    """Runs or populations that share a GPU of a Ray cluster. By default 4."""
    partition: str | None = None
    """Partition of a Slurm cluster. By default the cluster's own default."""
    time: str | None = None
    """Time limit of a Slurm job, H:MM:SS or minutes. By default 4:00:00. A job that reaches it is queued
    again."""


@dataclass
class TrackOptions:
    """Tracking; see docs/how-to/tracking.md."""

    track: str | None = None
    """wandb, mlflow or trackio: send the spec, all logged figures with evaluations, and the final model."""
    track_project: str | None = None
    """The project or experiment there. By default srl, or the sweep's name."""


@dataclass
class Train:
    """Train one run into a directory of its own."""

    run: tyro.conf.Positional[Path | None] = None
    """With --extend-to: the directory of the run to extend."""
    algo: str | None = None
    """a2c, ppo, sa2c, sppo; on discretized actions da2c, dppo, dsa2c, dsppo; or a class of another package,
    for example sb3_contrib:TRPO."""
    env: str | None = None
    """A Gymnasium environment, for example CartPole-v1 or PongNoFrameskip-v4."""
    seed: int = 0
    """Seed of everything that is random."""
    noise: str = "none"
    """Reward noise in training: none, gaussian:STD, uniform:HALF_WIDTH or flip:PROB."""
    timesteps: int | None = None
    """Training steps. By default the hyperparameter file's."""
    extend_to: int | None = None
    """Train an existing run on, to this many steps in total. All other settings are those of the run."""
    profile: str = "controlled"
    """controlled, or authors for the settings of the authors' scripts where they differ."""
    out: Path | None = None
    """The run's directory. By default runs/ENV/ALGO/NOISE/seed-N."""
    loss: tyro.conf.OmitArgPrefixes[LossOptions] = field(default_factory=LossOptions)
    environment: tyro.conf.OmitArgPrefixes[EnvOptions] = field(default_factory=EnvOptions)
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationOptions] = field(default_factory=EvaluationOptions)
    execution: tyro.conf.OmitArgPrefixes[RunExecutionOptions] = field(default_factory=RunExecutionOptions)
    tracking: tyro.conf.OmitArgPrefixes[TrackOptions] = field(default_factory=TrackOptions)


@dataclass
class Sweep:
    """Train all runs of a sweep in parallel, and print their table."""

    config: tyro.conf.Positional[Path]
    """The sweep's file, or the name of one that belongs to srl, for example continuous_srl."""
    envs: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="ENV [ENV ...]")] = None
    """Environments instead of the file's."""
    algos: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="ALGO [ALGO ...]")] = None
    """Algorithms, and variants of the file, instead of all of the file's."""
    grid: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,VALUE [...]")] = ()
    """Values of hyperparameters, as beta=0,1,5,20 alpha=0.5,1. Each algorithm becomes a column for each
    combination."""
    noise: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NOISE [NOISE ...]")] = None
    """Reward noises instead of the file's."""
    seeds: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="SEED [SEED ...]")] = None
    """Seeds instead of the file's: numbers, or ranges without their end, as 10000:10005."""
    timesteps: int | None = None
    """Training steps of every run."""
    extend_to: int | None = None
    """Training steps of every run; runs that have fewer are trained on."""
    profile: str | None = None
    """controlled, or authors for the settings of the authors' scripts where they differ."""
    out: Path | None = None
    """The sweep's folder. By default runs/NAME, or runs/NAME-quick."""
    quick: bool = False
    """Train the small version of the sweep."""
    dry_run: bool = False
    """Check everything and print what would be done, without doing it."""
    loss: tyro.conf.OmitArgPrefixes[LossOptions] = field(default_factory=LossOptions)
    environment: tyro.conf.OmitArgPrefixes[EnvOptions] = field(default_factory=EnvOptions)
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationOptions] = field(default_factory=EvaluationOptions)
    execution: tyro.conf.OmitArgPrefixes[SweepExecutionOptions] = field(default_factory=SweepExecutionOptions)
    cluster: tyro.conf.OmitArgPrefixes[ClusterOptions] = field(default_factory=ClusterOptions)
    tracking: tyro.conf.OmitArgPrefixes[TrackOptions] = field(default_factory=TrackOptions)


@dataclass
class Clean:
    """Say what in a folder nothing needs any more, as checkpoints of finished runs; remove it when told."""

    dir: tyro.conf.Positional[Path]
    """The folder of a sweep or a run, or one above them."""
    yes: bool = False
    """Remove it."""


@dataclass
class Report:
    """Write tables, statistics, figures and a page about the runs in a folder, finished or not."""

    dir: tyro.conf.Positional[Path]
    """The folder of a sweep, or one above several, or an archive."""
    format: Literal["page", "archive", "json", "parquet", "zoo"] = "page"
    """page for everything to read; archive for a file NAME.parquet from which srl report makes the same page
    without the runs; json or parquet for a row per run and evaluation; zoo for a copy of the evaluations as
    rl-baselines3-zoo's plot scripts read them."""
    last: int = 1
    """The score of a run is the mean over this many evaluations, the last ones."""
    normalize: str = "auto"
    """How scores of different environments come on one scale: human, minmax, none, or auto for human on Atari
    and minmax elsewhere."""
    reps: int = 2000
    """Bootstrap samples of each interval."""
    compare: tuple[str, ...] = ()
    """Pairs of columns to compare, each as COLUMN:BASELINE, for example sppo:ppo; those of the sweep if not
    given."""
    out: Path | None = None
    """Where to write it; into the folder itself if not given."""
    figures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FORMAT[,FORMAT...]")] = ("png", "svg")
    """Formats of the figures: png, svg, pdf."""
    dpi: int = 150
    """Dots per inch of PNG files."""
    no_titles: bool = False
    """Draw figures without titles, for papers whose captions say the same."""
    gifs: bool = False
    """Play the first finished run of each cell, and show it on the page as a short GIF."""


@dataclass
class Status:
    """Show how far the runs in a folder are: what is done, running and failed, and how long it takes yet.
    Nothing is written."""

    dir: tyro.conf.Positional[Path]
    """The folder of a sweep or a run, or one above them."""
    watch: bool = False
    """Keep showing it until nothing is left to do; wait for the folder if it does not exist yet. Ctrl-C ends
    this command only."""
    interval: float = 2.0
    """Seconds between two looks."""


# They take the options above
from srl.cli_share import Pull, Push, pull, push  # noqa: E402
from srl.cli_tune import Tune, tune  # noqa: E402

#: By the name of each command: its options, and examples.
_EXAMPLES: dict[str, tuple[type, tuple[str, ...]]] = {
    "train": (
        Train,
        (
            "srl train --algo sppo --env CartPole-v1",
            "srl train --algo dsppo --env HalfCheetah-v4 --noise gaussian:0.05 --beta 20 --seed 1",
            "srl train --algo sppo --env MyEnv-v0 --gym-packages mypkg --env-kwargs size=5",
            "srl train --extend-to 2000000 runs/CartPole-v1/sppo/none/seed-0",
        ),
    ),
    "sweep": (
        Sweep,
        (
            "srl sweep continuous_srl --quick",
            "srl sweep mine.yml --out runs/mine --jobs 8",
            "srl sweep discrete_srl --envs CartPole-v1 --algos sppo --noise none --grid beta=0,1,5",
        ),
    ),
    "enjoy": (
        Enjoy,
        (
            "srl enjoy runs/CartPole-v1/sppo/none/seed-0",
            "srl enjoy runs/CartPole-v1/sppo/none/seed-0 --video cartpole.mp4 --episodes 3",
        ),
    ),
    "report": (Report, ("srl report runs/mine", "srl report runs/mine --format archive --out shared")),
    "status": (Status, ("srl status runs/mine --watch",)),
    "tune": (Tune, ("srl tune --algo sppo --env CartPole-v1 --n-trials 50",)),
    "push": (Push, ("srl push runs/CartPole-v1/sppo/none/seed-0 me/sppo-CartPole-v1",)),
    "pull": (Pull, ("srl pull me/sppo-CartPole-v1",)),
    "clean": (Clean, ("srl clean runs/mine", "srl clean runs/mine --yes")),
}


def _subcommand(name: str, words: Sequence[str]) -> Any:
    """A command for tyro, with its examples if it is the one that is called."""
    options, examples = _EXAMPLES[name]
    description = inspect.getdoc(options)
    if name in words[:1]:
        description = "\n  ".join([f"{description}\n\nExamples:", *examples])
    return Annotated[options, tyro.conf.subcommand(name, description=description)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a run failed, 2 a mistake in what was asked, 130 stopped.

    :param arguments: The words after ``srl``; None takes the process' own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        print(f"srl {__version__}")
        sys.exit(0)
    try:
        _check_given_once(words)
        command: Any = tyro.cli(
            Union[tuple(_subcommand(name, words) for name in _EXAMPLES)],  # type: ignore[call-overload] # noqa: UP007
            prog="srl",
            description="Symmetric RL losses for Stable-Baselines3: SA2C, SPPO and their baselines.",
            args=words,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
        )
        # A terminated sweep ends its runs in order, as one that is stopped by Ctrl-C does
        signal.signal(signal.SIGTERM, _interrupt)
        # So does one whose terminal is closed, unless nohup said not to
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, _interrupt)
        run = {
            Train: train,
            Sweep: sweep,
            Enjoy: enjoy,
            Report: report,
            Status: show_status,
            Clean: clean,
            Tune: tune,
            Push: push,
            Pull: pull,
        }[type(command)]
        status = run(command, " ".join(["srl", *words]))  # type: ignore[operator]
    except UserError as error:
        print(f"srl: {error}", file=sys.stderr)
        status = MISTAKE
    except KeyboardInterrupt:
        print("srl: stopped. Rerun the command to resume.", file=sys.stderr)
        status = STOPPED
    except OutOfSpace as error:
        print(f"srl: {error}", file=sys.stderr)
        status = FAILED
    except MemoryError:
        print(
            "srl: not enough memory to start; see `ulimit -v`. Rerun the command.",
            file=sys.stderr,
        )
        status = FAILED
    except BrokenPipeError:
        status = STOPPED
    except OSError as error:
        # A full disk, a folder that went away: nothing that is finished is touched
        where = f"{error.filename}: " if error.filename else ""
        print(f"srl: {where}{error.strerror or error}. Fix this and rerun the command.", file=sys.stderr)
        status = FAILED
    sys.exit(status)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _check_given_once(words: Sequence[str]) -> None:
    """An option that is specified twice would count only once, without a word."""
    options = Counter(word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--"))
    for option, count in options.items():
        if count > 1:
            raise UserError(f"{option} stands {count} times. Name all its values after one {option}.")


def parse_assignments(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Read values by name.

    :param option: The option, for messages.
    :param texts: ``NAME=VALUE`` or ``NAME:VALUE``; values are YAML.
    :raises UserError: If one has another form, or a name is given twice.
    """
    given = _assignments(option, texts)
    return {name: _yaml(option, f"{name}={value}", value) for name, value in given.items()}


def _assignments(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Read texts by name; see :func:`parse_assignments`."""
    values: dict[str, str] = {}
    for text in texts:
        found = re.fullmatch(r"(\w+)[=:](.+)", text, re.DOTALL)
        if found is None:
            raise UserError(f"{option} {text}: must be NAME=VALUE, for example n_steps=1024.")
        if found[1] in values:
            raise UserError(f"{option} {found[1]}: is given twice.")
        values[found[1]] = found[2]
    return values


def _grid(texts: Sequence[str]) -> dict[str, Any] | None:
    """Read ``--grid``; None if it was not given."""
    given = _assignments("--grid", texts)
    grid = {key: [_yaml("--grid", part, part) for part in values.split(",")] for key, values in given.items()}
    return grid or None


def _yaml(option: str, text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{option} {text}: {value!r} is not a YAML value.") from None


def put_current_directory_on_path() -> None:
    """Make modules of the current directory importable as ``python -m`` does, in child processes too."""
    here = os.getcwd()
    sys.path.insert(0, here)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))


def _split(option: str, values: Sequence[str] | None) -> list[str] | None:
    """An option's values, which may be separated by commas too; None for an option that was not given."""
    if values is None:
        return None
    parts = [part for value in values for part in value.split(",") if part]
    if not parts:
        raise UserError(f"{option}: at least one value is needed.")
    return parts


def train(options: Train, command: str) -> int:
    """``srl train``; returns the exit status. The command line is for the run's record."""
    from srl.config.spec import make_run_spec
    from srl.rundir.directory import RunDirectory
    from srl.sweep.execution import check_interval
    from srl.training.check import check_run

    console = new_console()
    check_interval(options.execution.checkpoint_every)
    put_current_directory_on_path()
    if options.extend_to is not None:
        return _extend(options, console, command)
    if options.run is not None:
        raise UserError(
            f"{options.run}: a run's directory is named only with --extend-to. Use --out for a new run."
        )
    if options.algo is None or options.env is None:
        raise UserError("--algo and --env are needed, for example: srl train --algo sppo --env CartPole-v1")
    environment = options.environment
    wrappers = {"env_wrapper": environment.wrappers()} if environment.env_wrapper else {}
    spec, notes = make_run_spec(
        options.algo,
        options.env,
        options.seed,
        noise=options.noise,
        n_timesteps=options.timesteps,
        bins=options.loss.bins,
        profile=options.profile,
        device=options.execution.device,
        threads=options.execution.threads,
        env_backend=options.execution.env_backend or "gymnasium",
        eval_freq=options.evaluation.eval_freq,
        n_eval_episodes=10 if options.evaluation.eval_episodes is None else options.evaluation.eval_episodes,
        compile=options.execution.compile or "auto",
        precision=options.execution.precision or "float32",
        eval_max_episode_steps=options.evaluation.eval_max_episode_steps,
        gym_packages=environment.gym_packages,
        env_kwargs=parse_assignments("--env-kwargs", environment.env_kwargs),
        max_episode_steps=environment.max_episode_steps,
        hyperparams_file=environment.hyperparams_file,
        trust_file=environment.trust_config,
        overrides=options.loss.others() | options.loss.symmetric() | wrappers,
    )
    path = options.out or Path("runs") / spec.path
    if (options.execution.compile or "auto") == "auto":
        spec = RunDirectory(path).as_begun(spec)
    there = RunDirectory(path).compare(spec)
    check_run(spec)
    for note in [*notes, *RunDirectory(path).damage(), *RunDirectory(path).minor_damage()]:
        console.print(note, markup=False)
    if there == "done":
        RunDirectory(path).restore_status(spec)
        console.print(f"{path} holds this run already, finished. Nothing to do.", markup=False)
        with tracked(options.tracking, "srl", [path]) as outcome:
            pass
        return tracked_status(outcome, 0)
    return _train_into(path, spec, options, console, command)


def _extend(options: Train, console: Console, command: str) -> int:
    """``srl train --extend-to``; returns the exit status."""
    from srl.rundir.directory import RunDirectory
    from srl.training.check import check_run
    from srl.training.extend import check_extendable, describe_schedules, extend, extended
    from srl.training.load import read_trusted

    path, n_timesteps = options.run, options.extend_to
    if path is None or n_timesteps is None:
        raise UserError(
            "--extend-to: name the directory of the run, for example: srl train --extend-to 2000000 RUN"
        )
    _check_keeps_settings(options)
    directory = RunDirectory(path)
    spec = read_trusted(directory, options.environment.trust_config)
    longer = extended(spec, n_timesteps)
    status = directory.read_status()
    begun = status is not None and directory.was_for(longer, status)
    if not begun:
        check_extendable(directory, spec)
    if spec == longer and directory.compare(spec) == "done":
        console.print(f"{path} holds this run already, finished. Nothing to do.", markup=False)
        return 0
    check_run(longer)
    for line in describe_schedules(spec) if spec != longer else []:
        console.print(line, markup=False, soft_wrap=True)
    if spec != longer and not begun:
        extend(directory, spec, longer, lambda line: print(line, file=sys.stderr))
    return _train_into(path, longer, options, console, command)


def _check_keeps_settings(options: Train) -> None:
    """See that nothing is set that an extended run has from its spec."""
    allowed = {"run", "extend_to", "checkpoint_every", "trust_config", "track", "track_project"}
    groups = ("loss", "environment", "evaluation", "execution", "tracking")
    for values in (options, *(getattr(options, group) for group in groups)):
        for each in fields(values):
            if each.name not in (*groups, *allowed) and getattr(values, each.name) != each.default:
                name = each.name.replace("_", "-")
                raise UserError(
                    f"--{name}: an extended run keeps its settings. Leave this out of --extend-to."
                )


def _train_into(path: Path, spec: RunSpec, options: Train, console: Console, command: str) -> int:
    """Train a run that was checked, and print its final evaluation; returns the exit status."""
    from srl.rundir.directory import ERROR, RunDirectory
    from srl.rundir.disk import is_full, naming_full_disk, out_of_space
    from srl.sweep.display import RunDisplay
    from srl.sweep.engines.local import use_one_thread

    use_one_thread(spec.threads)
    from srl.training.run import RunFailed, train_run

    try:
        with (
            tracked(options.tracking, "srl", [path]) as outcome,
            naming_full_disk(path),
            RunDisplay(console, spec) as display,
        ):
            train_run(
                spec,
                path,
                command=command,
                tell=display.update,
                checkpoint_every=options.execution.checkpoint_every,
            )
    except RunFailed as error:
        if is_full(path, str(error)):
            raise out_of_space(path) from None
        print(f"srl: the run failed: {error}\nIts folder is {path}.", file=sys.stderr)
        if (path / ERROR).exists():
            print(f"Its traceback is in {path / ERROR}.", file=sys.stderr)
        return FAILED
    evaluations = RunDirectory(path).read_evaluations()
    final = evaluations["results"][-1]
    n_truncated = int(evaluations["reached_max_steps"][-1].sum()) if "reached_max_steps" in evaluations else 0
    truncated = (
        f", {n_truncated} of which were truncated after {spec.eval_max_episode_steps:,} steps "
        "(--eval-max-episode-steps)"
        if n_truncated
        else ""
    )
    console.print(
        f"Final evaluation at step {evaluations['timesteps'][-1]:,}: mean return {final.mean():.1f} over "
        f"{len(final)} episodes{truncated}. The run is in {path}.",
        markup=False,
        soft_wrap=True,
    )
    return tracked_status(outcome, 0)


@contextmanager
def tracked(options: TrackOptions, project: str, paths: Sequence[Path]) -> Iterator[list[str]]:
    """Track runs as asked; see :func:`srl.tracking.tracking`.

    :param options: The options.
    :param project: The project if none is named.
    :param paths: The runs' folders.
    :return: A context that yields what went wrong, in lines, known at its end.
    """
    problems: list[str] = []
    if options.track is None:
        if options.track_project is not None:
            raise UserError(f"--track-project {options.track_project}: needs --track.")
        yield problems
        return
    from srl.tracking import tracking

    with tracking(options.track, options.track_project or project, paths) as outcome:
        yield problems
    problems += outcome.problems


def tracked_status(problems: Sequence[str], status: int) -> int:
    """Say what could not be tracked; return the exit status, which is 1 then.

    :param problems: What went wrong, in lines.
    :param status: The exit status otherwise.
    """
    if not problems:
        return status
    print(
        "srl: tracking failed; the runs are not affected. Rerun the command to send what is missing. "
        f"{problems[0]}",
        file=sys.stderr,
    )
    return FAILED


def sweep(options: Sweep, command: str) -> int:
    """``srl sweep``; returns the exit status. The command line is for the runs' record."""
    from srl.config.files import find_sweep
    from srl.envs.registration import import_packages
    from srl.report.files import check_files, table_files
    from srl.rundir.directory import RunDirectory
    from srl.rundir.disk import naming_full_disk
    from srl.sweep.display import SweepDisplay
    from srl.sweep.engines.choose import capacity, engine_of, make_engine
    from srl.sweep.execution import check_numbers, held_elsewhere, run_sweep
    from srl.sweep.plan import expand, extend_runs, load_sweep, make_plan, write_plan
    from srl.sweep.tasks import describe, parse_population
    from srl.training.extend import describe_schedules

    console = new_console()
    config = find_sweep(options.config)
    engine_options = engine_of(
        options.cluster.engine,
        options.execution.jobs,
        address=options.cluster.address,
        tasks_per_gpu=options.cluster.tasks_per_gpu,
        partition=options.cluster.partition,
        time=options.cluster.time,
    )
    if options.timesteps is not None and options.extend_to is not None:
        raise UserError("--extend-to and --timesteps exclude each other.")
    persistence = check_numbers(
        options.execution.retries, options.execution.stall_timeout, options.execution.checkpoint_every
    )
    put_current_directory_on_path()
    environment = options.environment
    # They may register reward noise and losses too
    import_packages(environment.gym_packages)
    sweep_options = load_sweep(
        config,
        quick=options.quick,
        trust=environment.trust_config,
        gym_packages=list(environment.gym_packages) or None,
        env_kwargs=parse_assignments("--env-kwargs", environment.env_kwargs) or None,
        env_wrapper=environment.wrappers() or None,
        max_episode_steps=environment.max_episode_steps,
        hyperparams_file=environment.hyperparams_file,
        envs=_split("--envs", options.envs),
        algos=_split("--algos", options.algos),
        grid=_grid(options.grid),
        noise=_split("--noise", options.noise),
        seeds=_split("--seeds", options.seeds),
        n_timesteps=options.timesteps if options.extend_to is None else options.extend_to,
        bins=options.loss.bins,
        profile=options.profile,
        eval_freq=options.evaluation.eval_freq,
        n_eval_episodes=options.evaluation.eval_episodes,
        eval_max_episode_steps=options.evaluation.eval_max_episode_steps,
        env_backend=options.execution.env_backend,
        compile=options.execution.compile,
        precision=options.execution.precision,
        overrides=options.loss.others() or None,
        symmetric_overrides=options.loss.symmetric() or None,
    )
    specs, notes = expand(sweep_options, device=options.execution.device, trust_file=environment.trust_config)
    root = options.out or Path("runs") / (config.stem + ("-quick" if options.quick else ""))
    population = parse_population(options.execution.population)
    on_gpus = all(spec.device.startswith("cuda") for spec in specs)
    n_jobs, memory = capacity(engine_options, on_gpus=on_gpus)
    plan = make_plan(
        specs,
        root,
        compare=sweep_options.compare,
        population=population,
        n_jobs=n_jobs,
        memory=memory,
        compile=sweep_options.compile,
        extend=options.extend_to is not None,
    )
    check_files(root, table_files("table"))
    for note in notes:
        console.print(note, markup=False)
    n_cells = len(specs) // len(sweep_options.seeds)
    console.print(
        f"{len(specs):,} runs ({n_cells} combinations of environment, algorithm and noise x "
        f"{len(sweep_options.seeds)} seeds), {sum(spec.n_timesteps for spec in specs):,} training steps in "
        f"all, into {root}.",
        markup=False,
        soft_wrap=True,
    )
    devices = ", ".join(sorted({spec.device for spec in specs}))
    console.print(
        f"Done already: {len(plan.done):,}. To do: {len(plan.to_do):,}{describe(plan.tasks)}, "
        f"{min(n_jobs, max(len(plan.tasks), 1))} at a time, on {devices}.",
        markup=False,
        soft_wrap=True,
    )
    if plan.to_extend:
        console.print(f"Extended: {len(plan.to_extend):,} runs.", markup=False)
        lines = [line for _, shorter in plan.to_extend for line in describe_schedules(shorter)]
        _print_notes(list(dict.fromkeys(lines)), console)
    _print_notes([f"{line} The run is retrained." for line in plan.damaged], console)
    _print_notes([f"{line} The results are not affected." for line in plan.minor_damage], console)
    _print_notes([f"{line}: waited for." for line in held_elsewhere(plan.tasks)], console)
    if options.dry_run:
        done = {job.path for job in plan.done}
        for job in plan.jobs:
            state = "done" if job.path in done else "to do"
            print(f"{state}  {job.spec.path}  {job.spec.n_timesteps:,} steps")
        console.print("Dry run: nothing was trained or written.")
        return 0
    # A sweep may take days, in which srl may be updated: what its end needs is loaded at its beginning
    import srl.report.scores  # noqa: F401

    for job in plan.done:
        RunDirectory(job.path).restore_status(job.spec)

    failures: dict[str, str] = {}
    paths = [job.path for job in plan.jobs]
    with tracked(options.tracking, config.stem, paths) as outcome:
        if plan.to_do:
            engine = make_engine(engine_options, root, n_jobs)
            with naming_full_disk(root), SweepDisplay(console) as display:
                extend_runs(plan, lambda line: print(line, file=sys.stderr))
                write_plan(plan)
                failures = run_sweep(
                    plan,
                    engine,
                    command,
                    tell=display.update,
                    say=display.say,
                    persistence=persistence,
                )
    with naming_full_disk(root):
        _print_scores(root, console)
    if failures:
        print(
            f"srl: {len(failures)} of {len(plan.to_do)} runs failed. Rerun the command to retry them.",
            file=sys.stderr,
        )
        for path, reason in list(failures.items())[:10]:
            print(f"  {path}: {reason}", file=sys.stderr)
    return tracked_status(outcome, FAILED if failures else 0)


def clean(options: Clean, command: str) -> int:
    """``srl clean``; returns the exit status."""
    from srl.rundir.clean import find_garbage, remove, shown

    console = new_console()
    garbage = find_garbage(options.dir)
    for item in garbage:
        line = f"{shown(item.path)}  {decimal(item.n_bytes)}  {item.why}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not garbage:
        console.print(f"{options.dir}: nothing to remove.", markup=False, soft_wrap=True)
        return 0
    if not options.yes:
        total = decimal(sum(item.n_bytes for item in garbage))
        console.print(f"{total} in all; nothing was removed. With --yes it is.", markup=False)
        return 0
    n_bytes, problems = remove(garbage)
    console.print(f"Removed: {decimal(n_bytes)}.", markup=False)
    for problem in problems:
        print(f"srl: {problem}", file=sys.stderr)
    return FAILED if problems else 0


def report(options: Report, command: str) -> int:
    """``srl report``; returns the exit status."""
    if options.last < 1:
        raise UserError(f"--last {options.last}: at least one evaluation is needed.")
    if options.reps < 100:
        raise UserError(f"--reps {options.reps}: at least 100 are needed for a 95% interval.")
    if options.compare and options.format != "page":
        raise UserError(f"--compare has no effect on --format {options.format}, which compares nothing.")
    console = new_console()
    from srl.report.files import check_folder
    from srl.report.normalisation import check_normalisation

    normalisation = check_normalisation(options.normalize)
    if not options.dir.exists():
        raise UserError(f"{options.dir}: there is no such folder or archive.")
    # Next to an archive NAME.parquet, into a folder NAME
    beside = options.dir.with_suffix("") if options.dir.is_file() else options.dir
    out = beside if options.out is None else options.out
    if options.dir.is_file() and options.dir.suffix != ".parquet":
        raise UserError(f"{options.dir}: is neither a folder nor an archive NAME.parquet.")
    uses_parquet = options.dir.is_file() or options.format in ("archive", "parquet")
    if uses_parquet and find_spec("pyarrow") is None:
        raise UserError("Parquet files need the package pyarrow: pip install 'symmetric-rl[report]'.")
    check_folder(out)
    figure_options = (options.figures, options.dpi, options.no_titles)
    if options.format != "page" and figure_options != (("png", "svg"), 150, False):
        raise UserError("--figures, --dpi and --no-titles: only a page has figures.")
    if options.gifs and (options.format != "page" or options.dir.is_file()):
        raise UserError("--gifs: only a page made from run directories can show them.")
    with console.status("Reading runs") as shown:
        tell = shown.update
        if options.format == "page":
            files = _write_page(options, normalisation, out, console, tell)
        else:
            from srl.report.export import export

            files, left_out = export(options.dir, options.format, out, tell)
            _print_notes(left_out, console)
    console.print(f"Written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)
    return 0


def _write_page(
    options: Report, normalisation: Any, out: Path, console: Console, tell: Callable[[str], None]
) -> list[Path]:
    try:
        from srl.report.files import check_files
        from srl.report.report import make_report
        from srl.report.tables import to_rich
        from srl.report.write import FILES, FigureOptions, write_report
    except ModuleNotFoundError as error:
        raise UserError(
            f"A report needs the package {error.name}: pip install 'symmetric-rl[report]', or run "
            "scripts/setup.sh in a checkout."
        ) from None
    formats = _split("--figures", options.figures) or []
    figures = FigureOptions(tuple(formats), options.dpi, not options.no_titles)
    check_files(out, FILES)
    made = make_report(
        options.dir,
        last=options.last,
        normalisation=normalisation,
        reps=options.reps,
        compare=_pairs(options.compare),
        tell=tell,
    )
    gifs: dict[str, bytes] = {}
    if options.gifs:
        from srl.report.gifs import make_gifs
        from srl.training.play import gif_of

        gifs, notes = make_gifs(made.scores, options.dir, gif_of, tell)
        made = replace(made, notes=[*made.notes, *notes])
    files = write_report(made, out, tell, gifs, figures)
    table = made.scores.table
    console.print(to_rich(table, console.width))
    _print_notes([*table.notes, *made.scores.left_out, *made.notes], console)
    console.print()
    _print_notes(made.summary, console)
    return files


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        column, _, baseline = text.partition(":")
        if not column or not baseline or column == baseline:
            raise UserError(f"--compare {text}: must be COLUMN:BASELINE, two columns such as sppo:ppo.")
        pairs.append((column, baseline))
    return pairs


def _print_notes(notes: Sequence[str], console: Console) -> None:
    for note in notes[:_SHOWN_NOTES]:
        # A folder's name may hold bytes that are no text
        console.print(
            note.encode(errors="backslashreplace").decode(), markup=False, highlight=False, soft_wrap=True
        )
    if len(notes) > _SHOWN_NOTES:
        console.print(f"and {len(notes) - _SHOWN_NOTES} more lines, which the files have.")


def show_status(options: Status, command: str) -> int:
    """``srl status``; returns the exit status."""
    # A longer time the system may be unable to sleep for
    if not 0 < options.interval <= 86_400:
        raise UserError(f"--interval {options.interval:g}: must be above 0, and 86400 seconds at the most.")
    try:
        from srl.report.status import print_status, watch_status

        if options.watch:
            watch_status(options.dir, new_console(), options.interval)
        else:
            print_status(options.dir, new_console())
    except KeyboardInterrupt:
        # No run was stopped by that
        return 0 if options.watch else STOPPED
    return 0


def new_console() -> Console:
    """Standard output. A terminal has its own width; a file or a pipe takes a table as wide as it is."""
    return Console(width=None if sys.stdout.isatty() else 250)


def _print_scores(root: Path, console: Console) -> None:
    from srl.report.files import write_tables
    from srl.report.scores import read_scores
    from srl.report.tables import to_rich

    scores = read_scores(root)
    console.print(to_rich(scores.table, console.width))
    _print_notes([*scores.table.notes, *scores.left_out], console)
    files = write_tables([scores.table], root, scores.left_out)
    console.print(f"Written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)
    console.print(f"Statistics, figures and a page: srl report {root}", markup=False, soft_wrap=True)
