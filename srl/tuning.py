"""Tune hyperparameters with Optuna: search spaces, and trials that train together as populations.

The spaces are those of rl-baselines3-zoo 2.9.2 (``sample_ppo_params`` and ``sample_a2c_params`` of
``rl_zoo3/hyperparams_opt.py``), with its parameter names, plus ``alpha`` and ``beta`` for algorithms with a
reverse loss. ``z`` is not searched: the reverse cross-entropy depends on ``beta * z`` only, and the mean
absolute error does not depend on ``z``.

Trials are sampled in batches. In a batch, each group of trials shares the parameters that determine shapes
(network, rollout, minibatches, epochs), which are those of its first trial, so that the group trains as one
population (:mod:`srl.training.stacked`). Each trial is a run directory.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from srl.config.algorithms import Algorithm
from srl.config.compiling import n_minibatches, resolve_compile
from srl.config.hyperparams import FAMILIES
from srl.config.resolve import check_hyperparams, of_algorithm
from srl.config.spec import RunSpec
from srl.errors import UserError, nearest
from srl.rundir.directory import RunDirectory, request_stop
from srl.rundir.files import write_text
from srl.rundir.progress import makespan
from srl.sweep.engines import EngineOptions, Task
from srl.sweep.engines.local import Options as LocalOptions
from srl.sweep.execution import Persistence, SweepProgress, run_sweep
from srl.sweep.plan import make_plan, write_plan
from srl.sweep.tasks import POPULATION_OVERHEAD
from srl.training.callbacks import eval_interval

#: Names of what tuning writes beside the trials' run directories.
BEST, TRIALS = "best.yml", "trials.csv"
SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "halving", "hyperband", "none")
_LOCK = "tune.lock"
#: What a minibatch takes besides its arithmetic, in steps of an environment; and how many weights take as
#: long as such a step when the network acts, and in a row of a minibatch.
_MINIBATCH, _ACTING, _ROW = 4.0, 1.5e5, 4e5
#: The attribute of a study that holds its settings, and of a trial that names its folder.
_SETTINGS, _FOLDER = "srl", "srl_folder"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a search space."""

    #: Its name in Optuna.
    name: str
    distribution: BaseDistribution
    #: The hyperparameter that it determines, with dots.
    target: str
    #: From the sampled value to the hyperparameter's.
    value: Callable[[Any], Any] = lambda sampled: sampled
    #: Whether trials must agree in it to train together.
    is_shape: bool = False


_NET_ARCHS = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}


def _net_arch(name: str) -> dict[str, list[int]]:
    return {"pi": _NET_ARCHS[name], "vf": _NET_ARCHS[name]}


def _power_of_two(exponent: int) -> int:
    return int(2**exponent)


def _one_minus(value: float) -> float:
    return 1 - value


_LEARNING_RATE = Parameter("learning_rate", FloatDistribution(1e-5, 0.002, log=True), "learning_rate")
_MAX_GRAD_NORM = Parameter("max_grad_norm", FloatDistribution(0.3, 2), "max_grad_norm")
_ENT_COEF = Parameter("ent_coef", FloatDistribution(1e-8, 0.1, log=True), "ent_coef")
_GAMMA = Parameter("one_minus_gamma", FloatDistribution(0.0001, 0.03, log=True), "gamma", _one_minus)
_GAE_LAMBDA = Parameter(
    "one_minus_gae_lambda", FloatDistribution(0.0001, 0.1, log=True), "gae_lambda", _one_minus
)
_ACTIVATION = Parameter(
    "activation_fn", CategoricalDistribution(["tanh", "relu"]), "policy_kwargs.activation_fn", is_shape=True
)


def _architecture(*names: str) -> Parameter:
    return Parameter(
        "net_arch", CategoricalDistribution(names), "policy_kwargs.net_arch", _net_arch, is_shape=True
    )


_PPO = (
    Parameter("batch_size_pow", IntDistribution(2, 10), "batch_size", _power_of_two, is_shape=True),
    Parameter("n_steps_pow", IntDistribution(5, 12), "n_steps", _power_of_two, is_shape=True),
    _GAMMA,
    _GAE_LAMBDA,
    _LEARNING_RATE,
    _ENT_COEF,
    Parameter("clip_range", CategoricalDistribution([0.1, 0.2, 0.3, 0.4]), "clip_range"),
    Parameter("n_epochs", CategoricalDistribution([1, 5, 10, 20]), "n_epochs", is_shape=True),
    _MAX_GRAD_NORM,
    _architecture("tiny", "small", "medium"),
    _ACTIVATION,
)
_A2C = (
    Parameter(
        "n_steps", CategoricalDistribution([32, 64, 128, 256, 512, 1024, 2048]), "n_steps", is_shape=True
    ),
    _GAMMA,
    _GAE_LAMBDA,
    _LEARNING_RATE,
    _MAX_GRAD_NORM,
    _ENT_COEF,
    _architecture("small", "medium"),
    _ACTIVATION,
)
#: The weights of the two losses; the published experiments have ``alpha=0.5`` and ``beta`` from 1 to 20.
_SYMMETRIC = (
    Parameter("alpha", FloatDistribution(0.1, 1.0), "alpha"),
    Parameter("beta", FloatDistribution(0.1, 20.0, log=True), "beta"),
)


def search_space(algorithm: Algorithm, fixed: Mapping[str, Any] | None = None) -> tuple[Parameter, ...]:
    """Return the parameters that are searched for an algorithm.

    :param algorithm: The algorithm.
    :param fixed: Hyperparameters that the user has set, by name; they are not searched.
    """
    space = {"a2c": _A2C, "ppo": _PPO}[algorithm.family] + (_SYMMETRIC if algorithm.symmetric else ())
    flat = set(fixed or {})
    options = (fixed or {}).get("policy_kwargs")
    if isinstance(options, dict):
        flat |= {f"policy_kwargs.{name}" for name in options}
    return tuple(parameter for parameter in space if parameter.target not in flat)


def sampled_hyperparams(space: Sequence[Parameter], sampled: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a trial.

    :param space: Its search space.
    :param sampled: Its parameters by their names in Optuna; those of no parameter are left out.
    :return: Hyperparameters by name, ``policy_kwargs`` as a mapping.
    """
    values: dict[str, Any] = {}
    for parameter in space:
        if parameter.name in sampled:
            group, _, name = parameter.target.rpartition(".")
            place = values.setdefault(group, {}) if group else values
            place[name] = parameter.value(sampled[parameter.name])
    return values


def trial_spec(base: RunSpec, space: Sequence[Parameter], trial: FrozenTrial | Trial) -> RunSpec:
    """Return the run of a trial.

    :param base: The run that hyperparameters are tuned for. The trial's seed is the base's plus its number.
    :param space: The search space.
    :param trial: The trial, sampled.
    :raises UserError: If its parameters are not those of a run.
    """
    values = sampled_hyperparams(space, trial.params)
    options = values.pop("policy_kwargs", {})
    kept = base.hyperparams.model_dump()
    kept["policy_kwargs"] = base.hyperparams.policy_kwargs.model_dump(exclude_none=True) | options
    try:
        return base.model_copy(
            update={
                "variant": f"trial-{trial.number}",
                "seed": (base.seed + trial.number) % 2**31,
                "hyperparams": FAMILIES[base.algorithm.family](**(kept | values)),
            }
        )
    except ValueError as error:
        raise UserError(f"Trial {trial.number}: {' '.join(str(error).split())}") from None


@dataclass(frozen=True)
class TuningOptions:
    """How hyperparameters are tuned, besides what is trained."""

    #: Trials of the study in total, whatever their state.
    n_trials: int = 50
    #: Trials that are sampled at once, and how many of these share one shape.
    batch: int = 16
    share: int = 8
    #: Evaluations of a trial; the last one is its value.
    n_evaluations: int = 5
    sampler: str = "tpe"
    pruner: str = "median"
    #: Trials that are sampled at random, and before which nothing is pruned.
    n_startup_trials: int = 10
    seed: int = 0
    #: Whether updates are compiled: ``"on"``, ``"off"``, or ``"auto"`` for shapes that repay it.
    compile: str = "off"

    def check(self) -> None:
        """Check the options.

        :raises UserError: If one is out of its range.
        """
        for name, least in (("n_trials", 1), ("batch", 1), ("share", 1), ("n_evaluations", 1)):
            if getattr(self, name) < least:
                option = {"batch": "trials-per-batch", "share": "trials-per-shape"}.get(name, name)
                raise UserError(f"--{option.replace('_', '-')} {getattr(self, name)}: must be 1 or above.")
        if self.n_startup_trials < 0:
            raise UserError(f"--n-startup-trials {self.n_startup_trials}: must be 0 or above.")
        for option, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            value = getattr(self, option)
            if value not in known:
                raise UserError(
                    f"--{option} {value}: must be one of {', '.join(known)}.{nearest(value, known)}"
                )


def open_storage(name: str) -> optuna.storages.BaseStorage:
    """Open a study's storage.

    :param name: A database such as ``sqlite:///tune.db``, or a log file ``NAME.log``.
    :raises UserError: If it cannot be opened.
    """
    try:
        if name.endswith(".log"):
            return JournalStorage(JournalFileBackend(name))
        if "://" not in name:
            raise UserError(
                f"--storage {name}: must be a database such as sqlite:///tune.db, or a log file NAME.log."
            )
        # Several processes may write to one SQLite file
        arguments = {"connect_args": {"timeout": 60}} if name.startswith("sqlite") else {}
        return optuna.storages.RDBStorage(name, engine_kwargs=arguments)
    except UserError:
        raise
    except Exception as error:  # of SQLAlchemy, of a database driver, or of the operating system
        raise UserError(f"--storage {name}: cannot be opened: {' '.join(str(error).split())[:300]}") from None


class TrialSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Samples each trial from a random state that depends on the seed and the trial's number only.

    A study that is resumed therefore continues as it would have.

    :param options: Which sampler, and its seed.
    :param shape: Parameters that are given, by name.
    """

    def __init__(self, options: TuningOptions, shape: Mapping[str, Any]):
        self._options = options
        self._shape = dict(shape)
        self._sampler: optuna.samplers.BaseSampler

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        digest = hashlib.sha256(f"{self._options.seed} {trial.number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "little")
        if self._options.sampler == "random":
            sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            # As in rl-baselines3-zoo; running trials count as bad ones, which spreads those of a batch
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=self._options.n_startup_trials,
                multivariate=True,
                constant_liar=True,
                seed=seed,
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PartialFixedSampler is called experimental
            self._sampler = optuna.samplers.PartialFixedSampler(self._shape, sampler)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        space: dict[str, BaseDistribution] = self._sampler.infer_relative_search_space(study, trial)
        return space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        values: dict[str, Any] = self._sampler.sample_relative(study, trial, search_space)
        return values

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def make_pruner(options: TuningOptions) -> optuna.pruners.BasePruner:
    """Return the pruner; ``median`` and ``halving`` are set as rl-baselines3-zoo sets them."""
    if options.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=1, reduction_factor=4, min_early_stopping_rate=0
        )
    if options.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=options.n_evaluations)
    if options.pruner == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=options.n_startup_trials, n_warmup_steps=options.n_evaluations // 3
        )
    return optuna.pruners.NopPruner()


@dataclass
class _Running:
    """A trial in training."""

    trial: Trial
    spec: RunSpec
    path: Path
    #: Evaluations that were reported.
    n_reported: int = 0
    value: float | None = None
    pruned: bool = False


@dataclass
class Tuner:
    """A study and its trials' runs.

    :param base: The run that hyperparameters are tuned for.
    :param fixed: Hyperparameters that the user has set, which are not searched.
    """

    base: RunSpec
    options: TuningOptions
    out: Path
    study_name: str
    storage: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineOptions = field(default_factory=LocalOptions)
    n_jobs: int = 1
    persistence: Persistence = field(default_factory=Persistence)
    command: str = ""
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.options.check()
        self.space = search_space(self.base.algorithm, self.fixed)
        if not self.space:
            raise UserError("All hyperparameters of the search space are set by options; none is searched.")
        hyperparams, n_timesteps = self.base.hyperparams, self.base.n_timesteps
        resolve_compile(self.options.compile, hyperparams, n_timesteps, self.base.device)
        interval = max(self.base.n_timesteps // self.options.n_evaluations, 1)
        # Nothing is compared with SB3 in the last bits
        self.base = self.base.model_copy(update={"eval_freq": interval, "numpy_acting": True})
        steps = eval_interval(self.base) * self.base.hyperparams.n_envs
        if steps * self.options.n_evaluations > self.base.n_timesteps:
            raise UserError(
                f"--n-evaluations {self.options.n_evaluations}: {self.base.n_timesteps:,} training steps "
                f"with {self.base.hyperparams.n_envs} environments are too few for that."
            )

    def run(self, tell: Callable[[SweepProgress], None] = lambda _: None) -> optuna.Study:
        """Run the study's trials that are left.

        :param tell: Is given the progress of a batch about twice a second.
        :return: The study.
        :raises UserError: If the folder or the study belongs to something else.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = None if self.storage is None else open_storage(self.storage)
        self.out.mkdir(parents=True, exist_ok=True)
        with self._claimed():
            self.study = self._open_study(storage or open_storage(f"sqlite:///{self.out / 'tune.db'}"))
            while batch := self._left_over() or self._sample():
                self._train(batch, tell)
            return self.study

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Make the folder this process': the trials that it finds there running are its own to resume."""
        with (self.out / _LOCK).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.out}: another srl tune uses this folder. To run trials of one study in parallel, "
                    "give each process the same --storage and --study-name, and an --out of its own."
                ) from None
            yield

    def _settings(self) -> dict[str, Any]:
        """What all processes of a study must agree in."""
        options = asdict(self.options)
        del options["n_trials"]
        spec = self.base.model_dump(mode="json", exclude={"variant", "stacked"})
        return {
            "spec": spec,
            "options": options,
            "space": {
                parameter.name: optuna.distributions.distribution_to_json(parameter.distribution)
                for parameter in self.space
            },
        }

    def _open_study(self, storage: Any) -> optuna.Study:
        name = self.storage or self.out / "tune.db"
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=self.study_name,
                direction="maximize",
                pruner=make_pruner(self.options),
                load_if_exists=True,
            )
        except Exception as error:
            raise UserError(f"--storage {name}: {' '.join(str(error).split())[:300]}") from None
        settings, there = self._settings(), study.user_attrs.get(_SETTINGS)
        if there is None and study.trials:
            raise UserError(f"{name} holds a study {self.study_name!r} that srl tune did not make.")
        if there is None:
            study.set_user_attr(_SETTINGS, settings)
        elif there != settings:
            part = next(key for key in settings if there.get(key) != settings[key])
            names = [key for key in settings[part] if there[part].get(key) != settings[part][key]]
            key = names[0] if names else "search space"
            raise UserError(
                f"{name} holds a study {self.study_name!r} with other settings: {key} is "
                f"{there[part].get(key)!r} there and {settings[part].get(key)!r} here. Name another "
                "--study-name."
            )
        return study

    def _folder(self) -> str:
        return str(self.out.resolve())

    def _left_over(self) -> list[_Running]:
        """Return the trials of this folder that an earlier process has not finished."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.study.sampler = optuna.samplers.RandomSampler()  # unused: they are sampled
        return [
            self._running(Trial(self.study, trial._trial_id))
            for trial in running
            if trial.user_attrs.get(_FOLDER) == self._folder()
        ]

    def _running(self, trial: Trial) -> _Running:
        spec = trial_spec(self.base, self.space, trial)
        # Trials of one shape share the time that compiling takes
        n_timesteps = spec.n_timesteps * self.options.share
        compiles, _ = resolve_compile(self.options.compile, spec.hyperparams, n_timesteps, spec.device)
        return _Running(trial, spec.model_copy(update={"compile_update": compiles}), self.out / spec.path)

    def _sample(self) -> list[_Running]:
        """Sample the next batch; empty if the study has all its trials."""
        n_waiting = len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
        left = self.options.n_trials - len(self.study.get_trials(deepcopy=False)) + n_waiting
        batch = []
        shape: dict[str, Any] = {}
        for index in range(min(left, self.options.batch)):
            if index % self.options.share == 0:
                shape = {}
            self.study.sampler = TrialSampler(self.options, shape)
            trial = self.study.ask({each.name: each.distribution for each in self.space})
            trial.set_user_attr(_FOLDER, self._folder())
            batch.append(self._running(trial))
            shape = {each.name: trial.params[each.name] for each in self.space if each.is_shape}
        return batch

    def _train(self, batch: Sequence[_Running], tell: Callable[[SweepProgress], None]) -> None:
        plan = make_plan(
            [running.spec for running in batch],
            self.out,
            population=len(batch),
            n_jobs=self.n_jobs,
            compile=self.options.compile,
        )
        plan.tasks = divide_tasks(plan.tasks, self.n_jobs)
        numbers = [running.trial.number for running in batch]
        self.say(
            f"Trials {min(numbers)} to {max(numbers)}: {len(batch)} runs in {len(plan.tasks)} populations."
        )
        write_plan(plan)

        def look(progress: SweepProgress) -> None:
            for running in batch:
                self._report(running)
            tell(progress)

        failures = {}
        if plan.to_do:
            engine = self.engine.start(self.out, self.n_jobs)
            failures = run_sweep(
                plan,
                engine,
                self.command,
                tell=look,
                say=lambda line: None if "pruned: " in line else self.say(line),
                persistence=self.persistence,
            )
        for running in batch:
            self._report(running)
            self._tell(running, failures.get(running.spec.path, ""))

    def _report(self, running: _Running) -> None:
        """Report a trial's new evaluations to Optuna, and stop its run if it is pruned."""
        if running.pruned or running.n_reported == self.options.n_evaluations:
            return
        with suppress(UserError):  # there is none yet
            results = RunDirectory(running.path).read_evaluations()["results"]
            for index in range(running.n_reported, min(len(results), self.options.n_evaluations)):
                running.value = float(results[index].mean())
                running.n_reported = index + 1
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of a resumed trial, it may have been reported before
                    running.trial.report(running.value, running.n_reported)
                is_last = running.n_reported == self.options.n_evaluations
                if not is_last and running.trial.should_prune():
                    running.pruned = True
                    request_stop(running.path, f"pruned: its mean return was {running.value:.1f}")
                    return

    def _tell(self, running: _Running, failure: str) -> None:
        """Tell Optuna how a trial ended."""
        number = running.trial.number
        if running.pruned:
            self.study.tell(number, state=TrialState.PRUNED)
            self.say(f"Trial {number}: pruned after evaluation {running.n_reported}.")
        elif running.n_reported == self.options.n_evaluations:
            self.study.tell(number, running.value)
            self.say(f"Trial {number}: mean return {running.value:.1f}.")
        else:
            # A network whose numbers are lost is a bad one; that a machine failed says nothing about it
            status = RunDirectory(running.path).read_status()
            is_bad = status is not None and status.lasting
            self.study.tell(number, state=TrialState.PRUNED if is_bad else TrialState.FAIL)
            self.say(f"Trial {number}: failed: {failure or 'it made too few evaluations'}.")

    def write_results(self) -> list[Path]:
        """Write the best hyperparameters, a table of all trials and Optuna's plots to the folder.

        :return: The files; none if no trial is complete.
        """
        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return []
        best = self.study.best_trial
        write_text(self.out / BEST, best_file(self.base, self.space, best, self.study_name))
        write_text(self.out / TRIALS, _table(self.study, self.space))
        return [self.out / BEST, self.out / TRIALS, *_plots(self.study, self.out)]


def divide_tasks(tasks: Sequence[Task], n_jobs: int) -> list[Task]:
    """Divide populations so that all end soon, the longest first.

    How a population is divided does not change its members' results.

    :param tasks: One for each shape.
    :param n_jobs: How many train at once.
    """
    parts = list(tasks)
    best, soonest = parts, math.inf
    while parts:
        parts = sorted(parts, key=_duration, reverse=True)
        end = makespan([0.0] * n_jobs, [_duration(part) for part in parts])
        if end < soonest:
            best, soonest = parts, end
        jobs = parts[0].jobs
        if len(jobs) == 1 or len(parts) >= 2 * len(tasks) + n_jobs:
            break
        middle = -(-len(jobs) // 2)
        parts = [Task(jobs[:middle]), Task(jobs[middle:]), *parts[1:]]
    return best


def _duration(task: Task) -> float:
    """Return about how long a population takes, in an arbitrary unit."""
    spec = task.jobs[0].spec
    n_steps = spec.n_timesteps / spec.hyperparams.n_envs
    n_updates = n_minibatches(spec.hyperparams, spec.n_timesteps)
    n_rows = spec.n_timesteps * getattr(spec.hyperparams, "n_epochs", 1)
    arithmetic = _n_weights(spec) * (n_steps / _ACTING + n_rows / _ROW)
    shared = (n_steps + _MINIBATCH * n_updates) * (POPULATION_OVERHEAD + len(task.jobs))
    return shared + arithmetic * len(task.jobs)


def _n_weights(spec: RunSpec) -> int:
    """Return the number of weights between hidden layers."""
    layers = spec.hyperparams.policy_kwargs.net_arch
    nets = list(layers.values()) if isinstance(layers, dict) else [layers or [64, 64]] * 2
    return sum(int(a) * int(b) for net in nets for a, b in pairwise(net))


def best_file(base: RunSpec, space: Sequence[Parameter], best: FrozenTrial, study_name: str) -> str:
    """Return a trial's hyperparameters as a file that ``--hyperparams-file`` reads.

    :param base: The run that they were tuned for.
    :param space: The search space.
    :param best: The trial.
    :param study_name: The study's name, for the comment.
    """
    spec = trial_spec(base, space, best)
    values = spec.hyperparams.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    values = of_algorithm(spec.algorithm, values)
    assert check_hyperparams(spec.algorithm, values) == spec.hyperparams
    entry = {"n_timesteps": spec.n_timesteps, "policy": spec.hyperparams.policy, **values}
    comment = (
        f"# Tuned by srl tune for {spec.algorithm.label}: trial {best.number} of {study_name!r}, mean return "
        f"{best.value:.1f}\n"
    )
    return comment + yaml.safe_dump({spec.env: entry}, sort_keys=False)


def _table(study: optuna.Study, space: Sequence[Parameter]) -> str:
    """Return all trials as CSV: number, state, value, evaluations and hyperparameters."""
    names = [parameter.target for parameter in space]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["trial", "state", "value", "evaluations", *names], lineterminator="\n")
    writer.writeheader()
    for trial in study.get_trials(deepcopy=False):
        row = {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value}
        evaluations = [value for _, value in sorted(trial.intermediate_values.items())]
        hyperparams = {
            parameter.target: parameter.value(trial.params[parameter.name])
            for parameter in space
            if parameter.name in trial.params
        }
        writer.writerow(row | {"evaluations": " ".join(f"{value:g}" for value in evaluations)} | hyperparams)
    return text.getvalue()


def _plots(study: optuna.Study, out: Path) -> list[Path]:
    """Draw Optuna's plots; those that need more trials than there are, are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as draw

    drawers: dict[str, Callable[[], Any]] = {
        "history": lambda: draw.plot_optimization_history(study),
        "importances": lambda: draw.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator()),
        "slices": lambda: draw.plot_slice(study),
        "intermediate": lambda: draw.plot_intermediate_values(study),
    }
    files = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its matplotlib figures experimental
        for name, drawer in drawers.items():
            try:
                axes = drawer()
            except (ValueError, RuntimeError):  # importances of one trial, or of equal values
                continue
            figure = getattr(axes, "flat", [axes])[0].figure
            file = out / f"{name}.png"
            figure.savefig(file, dpi=120, bbox_inches="tight")
            plt.close("all")
            files.append(file)
    return files
