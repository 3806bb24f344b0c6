"""The one command, ``srl``: it hands what a user asks for to the parts that do it, and prints the answers."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from rich.console import Console

from srl import __version__, cli_llm
from srl.errors import OutOfSpace, UserError

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
    importance_weighting: bool | None = None
    """Whether SPPO's reverse loss is divided by pi_old, as published."""
    advantage_transform: str | None = None
    """none, sign or bins."""
    advantage_flip_prob: float | None = None
    """Probability that the sign of an advantage is flipped."""
    bins: int | None = None
    """Values per action dimension of the discretised algorithms; 11 if not given."""
    hyperparams: tuple[str, ...] = ()
    """Any other hyperparameters, as NAME=VALUE, for example n_steps=1024 learning_rate=lin_3e-4."""

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

    gym_packages: tuple[str, ...] = ()
    """Modules to import first, which register environments with Gymnasium."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment's constructor, as NAME=VALUE, for example size=5."""
    env_wrapper: tuple[str, ...] = ()
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
class Train:
    """Train one run into a directory of its own."""

    algo: str
    """a2c, ppo, sa2c, sppo; on discretised actions da2c, dppo, dsa2c, dsppo."""
    env: str
    """A Gymnasium environment, for example CartPole-v1 or PongNoFrameskip-v4."""
    loss: tyro.conf.OmitArgPrefixes[LossOptions]
    environment: tyro.conf.OmitArgPrefixes[EnvOptions]
    seed: int = 0
    """Seed of everything that is random."""
    noise: str = "none"
    """Reward noise in training: none, gaussian:STD, uniform:HALF_WIDTH or flip:PROB."""
    timesteps: int | None = None
    """Training steps; the hyperparameter file's if not given."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N. auto takes a GPU for image observations if there is one."""
    out: Path | None = None
    """The run's directory; runs/ENV/ALGO/NOISE/seed-N if not given."""
    profile: str = "controlled"
    """controlled, or authors for the settings of the authors' scripts where they differ."""
    eval_freq: int | None = None
    """Training steps between evaluations; 10,000 on Atari and 5,000 elsewhere if not given."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    eval_max_episode_steps: int | None = None
    """Steps after which an episode of an evaluation is truncated; 50,000 if not given, or the environment's
    time limit if that is higher."""
    threads: int = 1
    """Threads of torch, and of native environments."""
    env_backend: str = "gymnasium"
    """gymnasium, or native for environments in C++ threads; docs/environments.md says what differs."""
    compile: str = "auto"
    """Whether the update is compiled: on, off, or auto for a run that is long enough to repay it."""
    checkpoint_every: float = 180.0
    """Seconds between two checkpoints, from which an interrupted run goes on; 0 for one after each update."""
    ignore_space: bool = False
    """Begin although the disk may be too small."""


@dataclass
class Sweep:
    """Train all runs of a sweep, as many at once as there are cores, and print their table."""

    config: tyro.conf.Positional[Path]
    """The sweep's file, or the name of one that belongs to srl, for example continuous_srl."""
    loss: tyro.conf.OmitArgPrefixes[LossOptions]
    environment: tyro.conf.OmitArgPrefixes[EnvOptions]
    envs: tuple[str, ...] | None = None
    """Environments in place of the file's."""
    algos: tuple[str, ...] | None = None
    """Algorithms, and variants of the file, in place of all of the file's."""
    grid: tuple[str, ...] = ()
    """Values of hyperparameters, as beta=0,1,5,20 alpha=0.5,1: each algorithm becomes a column for each
    combination."""
    noise: tuple[str, ...] | None = None
    """Reward noises in place of the file's."""
    seeds: tuple[str, ...] | None = None
    """Seeds in place of the file's: numbers, or ranges without their end, as 10000:10005."""
    timesteps: int | None = None
    """Training steps of every run."""
    jobs: int | None = None
    """Processes at once. If not given, as many as this machine or the Ray cluster has cores; 64 on a Slurm
    cluster."""
    population: str = "auto"
    """Whether runs of one environment train as one stacked network: auto, off, or the most runs of one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N. auto takes a GPU for image observations if there is one."""
    out: Path | None = None
    """The sweep's folder; runs/NAME, or runs/NAME-quick, if not given."""
    quick: bool = False
    """The small version of the sweep."""
    dry_run: bool = False
    """Say what would be done, and check it, without doing it."""
    profile: str | None = None
    """controlled, or authors for the settings of the authors' scripts where they differ."""
    eval_freq: int | None = None
    """Training steps between evaluations."""
    eval_episodes: int | None = None
    """Episodes of an evaluation."""
    eval_max_episode_steps: int | None = None
    """Steps after which an episode of an evaluation is truncated; 50,000 if not given, or the environment's
    time limit if that is higher."""
    env_backend: str | None = None
    """gymnasium, or native for environments in C++ threads; docs/environments.md says what differs."""
    compile: str | None = None
    """Whether updates are compiled: on, off, or auto for runs that are long enough to repay it; auto if not
    given."""
    checkpoint_every: float = 180.0
    """Seconds between two checkpoints, from which an interrupted run goes on; 0 for one after each update."""
    retries: int = 3
    """How often a run that crashes or hangs is tried again from its checkpoint if it gets no further; five
    times as often one that is killed."""
    stall_timeout: float = 1800.0
    """Seconds without a sign of life after which a run is ended, and tried again."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """What executes the runs: processes of this machine, a Ray cluster or a Slurm cluster; see
    docs/clusters.md."""
    address: str | None = None
    """Of a Ray cluster: auto, HOST:PORT, or local for one of this machine; auto if not given."""
    tasks_per_gpu: int | None = None
    """Runs or populations that share a GPU of a Ray cluster; 4 if not given."""
    partition: str | None = None
    """Of a Slurm cluster; its default one if not given."""
    time: str | None = None
    """Time limit of a Slurm job, H:MM:SS or minutes, 4:00:00 if not given; one that reaches it is put into
    the queue again."""
    ignore_space: bool = False
    """Begin although the disk may be too small."""


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
    out: Path | None = None
    """Where to write it; into the folder itself if not given."""


@dataclass
class Status:
    """Show how far the runs in a folder are: what is done, running and failed, and how long it takes yet.
    Nothing is written."""

    dir: tyro.conf.Positional[Path]
    """The folder of a sweep or a run, or one above them."""
    watch: bool = False
    """Go on showing it until nothing is left to do; Ctrl-C ends that and nothing else."""
    interval: float = 2.0
    """Seconds between two looks."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Clean, tyro.conf.subcommand("clean")]
    | Annotated[cli_llm.LanguageModels, tyro.conf.subcommand("llm")]
)


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
        command = tyro.cli(
            Command,  # type: ignore[arg-type]
            prog="srl",
            description="Symmetric RL losses for Stable-Baselines3: SA2C, SPPO and their baselines.",
            args=words,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        # A terminated sweep ends its runs in order, as one that is stopped by Ctrl-C does
        signal.signal(signal.SIGTERM, _interrupt)
        # So does one whose terminal is closed, unless nohup said not to
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, _interrupt)
        run = {
            Train: train,
            Sweep: sweep,
            Report: report,
            Status: show_status,
            Clean: clean,
            cli_llm.LanguageModels: cli_llm.run,
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


def _put_current_directory_on_path() -> None:
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
    from srl.rundir.store import ERROR, RunDirectory
    from srl.sweep.display import RunDisplay
    from srl.sweep.engines import Job
    from srl.sweep.execution import check_interval
    from srl.sweep.space import check_space, naming_full_disk, out_of_space, says_full
    from srl.training.check import check_run

    console = _console()
    check_interval(options.checkpoint_every)
    _put_current_directory_on_path()
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
        device=options.device,
        threads=options.threads,
        env_backend=options.env_backend,
        eval_freq=options.eval_freq,
        n_eval_episodes=options.eval_episodes,
        compile=options.compile,
        eval_max_episode_steps=options.eval_max_episode_steps,
        gym_packages=environment.gym_packages,
        env_kwargs=parse_assignments("--env-kwargs", environment.env_kwargs),
        max_episode_steps=environment.max_episode_steps,
        hyperparams_file=environment.hyperparams_file,
        trust_file=environment.trust_config,
        overrides=options.loss.others() | options.loss.symmetric() | wrappers,
    )
    path = options.out or Path("runs") / spec.path
    if options.compile == "auto":
        spec = RunDirectory(path).as_begun(spec)
    there = RunDirectory(path).compare(spec)
    check_run(spec)
    for note in [*notes, *RunDirectory(path).damage(), *RunDirectory(path).minor_damage()]:
        console.print(note, markup=False)
    if there == "done":
        RunDirectory(path).restore_status(spec)
        console.print(f"{path} holds this run already, finished. Nothing to do.", markup=False)
        return 0
    jobs = [Job(spec, path)]
    check_space(path, jobs, 1, or_ignore=options.ignore_space)

    from srl.sweep.engines.local import use_one_thread

    use_one_thread(spec.threads)
    from srl.training.run import RunFailed, train_run

    try:
        with naming_full_disk(path, jobs, 1), RunDisplay(console, spec) as display:
            train_run(
                spec,
                path,
                command=command,
                tell=display.update,
                checkpoint_every=options.checkpoint_every,
            )
    except RunFailed as error:
        if says_full(str(error)):
            raise out_of_space(path, jobs, 1) from None
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
    return 0


def sweep(options: Sweep, command: str) -> int:
    """``srl sweep``; returns the exit status. The command line is for the runs' record."""
    from srl.config.files import find_sweep
    from srl.report.files import check_files, table_files
    from srl.rundir.store import RunDirectory
    from srl.sweep.display import SweepDisplay
    from srl.sweep.engines.choose import capacity, engine_of, make_engine
    from srl.sweep.execution import check_numbers, held_elsewhere, run_sweep
    from srl.sweep.plan import expand, load_sweep, make_plan, write_plan
    from srl.sweep.space import check_space, naming_full_disk, size
    from srl.sweep.tasks import describe, parse_population

    console = _console()
    config = find_sweep(options.config)
    engine_options = engine_of(
        options.engine,
        options.jobs,
        address=options.address,
        tasks_per_gpu=options.tasks_per_gpu,
        partition=options.partition,
        time=options.time,
    )
    persistence = check_numbers(options.retries, options.stall_timeout, options.checkpoint_every)
    _put_current_directory_on_path()
    environment = options.environment
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
        n_timesteps=options.timesteps,
        bins=options.loss.bins,
        profile=options.profile,
        eval_freq=options.eval_freq,
        n_eval_episodes=options.eval_episodes,
        eval_max_episode_steps=options.eval_max_episode_steps,
        env_backend=options.env_backend,
        compile=options.compile,
        overrides=options.loss.others() or None,
        symmetric_overrides=options.loss.symmetric() or None,
    )
    specs, notes = expand(sweep_options, device=options.device, trust_file=environment.trust_config)
    root = options.out or Path("runs") / (config.stem + ("-quick" if options.quick else ""))
    population = parse_population(options.population)
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
    _print_notes([f"{line} The run is retrained." for line in plan.damaged], console)
    _print_notes([f"{line} The results are not affected." for line in plan.minor_damage], console)
    _print_notes([f"{line}: waited for." for line in held_elsewhere(plan.tasks)], console)
    n_at_once = n_jobs * max((len(task.jobs) for task in plan.tasks), default=1)
    needed, free = check_space(root, plan.to_do, n_at_once, or_ignore=options.ignore_space)
    if plan.to_do:
        console.print(f"Disk space: up to about {size(needed)} needed, {size(free)} free.", markup=False)
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
    if plan.to_do:
        engine = make_engine(engine_options, root, n_jobs)
        with naming_full_disk(root, plan.to_do, n_at_once):
            write_plan(plan)
            with SweepDisplay(console) as display:
                failures = run_sweep(
                    plan,
                    engine,
                    command,
                    tell=display.update,
                    say=display.say,
                    persistence=persistence,
                )
    with naming_full_disk(root, [], 0):
        _print_scores(root, console)
    if failures:
        print(
            f"srl: {len(failures)} of {len(plan.to_do)} runs failed. Rerun the command to retry them.",
            file=sys.stderr,
        )
        for path, reason in list(failures.items())[:10]:
            print(f"  {path}: {reason}", file=sys.stderr)
        return FAILED
    return 0


def clean(options: Clean, command: str) -> int:
    """``srl clean``; returns the exit status."""
    from srl.rundir.clean import find_garbage, remove, shown
    from srl.sweep.space import size

    console = _console()
    garbage = find_garbage(options.dir)
    for item in garbage:
        line = f"{shown(item.path)}  {size(item.n_bytes)}  {item.why}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not garbage:
        console.print(f"{options.dir}: nothing to remove.", markup=False, soft_wrap=True)
        return 0
    if not options.yes:
        total = size(sum(item.n_bytes for item in garbage))
        console.print(f"{total} in all; nothing was removed. With --yes it is.", markup=False)
        return 0
    n_bytes, problems = remove(garbage)
    console.print(f"Removed: {size(n_bytes)}.", markup=False)
    for problem in problems:
        print(f"srl: {problem}", file=sys.stderr)
    return FAILED if problems else 0


def report(options: Report, command: str) -> int:
    """``srl report``; returns the exit status."""
    if options.last < 1:
        raise UserError(f"--last {options.last}: at least one evaluation is needed.")
    if options.reps < 100:
        raise UserError(f"--reps {options.reps}: at least 100 are needed for a 95% interval.")
    console = _console()
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
        from srl.report.write import FILES, write_report
    except ModuleNotFoundError as error:
        raise UserError(
            f"A report needs the package {error.name}: pip install 'symmetric-rl[report]', or run "
            "scripts/setup.sh in a checkout."
        ) from None
    check_files(out, FILES)
    made = make_report(
        options.dir, last=options.last, normalisation=normalisation, reps=options.reps, tell=tell
    )
    files = write_report(made, out, tell)
    table = made.scores.table
    console.print(to_rich(table))
    _print_notes([*table.notes, *made.scores.left_out, *made.notes], console)
    console.print()
    _print_notes(made.summary, console)
    return files


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
            watch_status(options.dir, _console(), options.interval)
        else:
            print_status(options.dir, _console())
    except KeyboardInterrupt:
        # No run was stopped by that
        return 0 if options.watch else STOPPED
    return 0


def _console() -> Console:
    """Standard output. A terminal has its own width; a file or a pipe takes a table as wide as it is."""
    return Console(width=None if sys.stdout.isatty() else 250)


def _print_scores(root: Path, console: Console) -> None:
    from srl.report.files import write_tables
    from srl.report.scores import read_scores
    from srl.report.tables import to_rich

    scores = read_scores(root)
    console.print(to_rich(scores.table))
    _print_notes([*scores.table.notes, *scores.left_out], console)
    files = write_tables([scores.table], root, scores.left_out)
    console.print(f"Written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)
    console.print(f"Statistics, figures and a page: srl report {root}", markup=False, soft_wrap=True)
