"""Tune hyperparameters with Optuna: trials train together as populations.

Trials are sampled in batches. In a batch, each group of trials shares the parameters that determine shapes
(network, rollout, minibatches, epochs), which are those of its first trial, so that the group trains as one
population (:mod:`srl.training.stacked`). Each trial is a run directory.
"""

from __future__ import annotations

import fcntl
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from srl.config.compiling import resolve_compile
from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.report.files import check_files, check_folder, text_writer, write_files
from srl.rundir.directory import RunDirectory, request_stop
from srl.rundir.files import read_bytes
from srl.rundir.plan import PLAN
from srl.sweep.engines import EngineOptions
from srl.sweep.engines.local import Options as LocalOptions
from srl.sweep.execution import Persistence, SweepProgress, run_sweep
from srl.sweep.plan import make_plan, write_plan
from srl.training.callbacks import eval_interval
from srl.tuning.division import divide_tasks
from srl.tuning.results import BEST, PLOTS, TRIALS, best_file, plot_writers, trials_table
from srl.tuning.space import search_space, trial_spec
from srl.tuning.study import (
    SURPLUS,
    TrialSampler,
    TuningOptions,
    counted_trials,
    make_pruner,
    open_storage,
    storage_place,
)

_LOCK = "tune.lock"
#: The attribute of a study that holds its settings, and of a trial that names its folder.
_SETTINGS, _FOLDER = "srl", "srl_folder"


@dataclass
class TrialRun:
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
                f"with {self.base.hyperparams.n_envs} environments are too few."
            )

    def run(self, tell: Callable[[SweepProgress], None] = lambda _: None) -> optuna.Study:
        """Run the remaining trials of the study.

        :param tell: Called with the progress of a batch about twice a second.
        :return: The study.
        :raises UserError: If the folder or the study belongs to something else, or files are in the way.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        check_folder(self.out)
        check_files(self.out, (BEST, TRIALS, *PLOTS))
        self._check_owner()
        storage = None if self.storage is None else open_storage(self.storage)
        self.out.mkdir(parents=True, exist_ok=True)
        with self._locked_folder():
            self._check_owner()  # another srl tune may have used the folder since
            self.study = self._open_study(storage or open_storage(f"sqlite:///{self.out / 'tune.db'}"))
            (self.out / _LOCK).write_text(json.dumps(self._owner()) + "\n", encoding="utf-8")
            while batch := self._unfinished() or self._sample():
                self._train(batch, tell)
            return self.study

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        """Lock the folder: its running trials are those of an earlier process, and can be resumed."""
        with (self.out / _LOCK).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.out}: another srl tune uses this folder. To run trials of one study in parallel, "
                    "give each process the same --storage and --study-name, and its own --out."
                ) from None
            yield

    def _owner(self) -> dict[str, str]:
        """The study that uses the folder, for the lock file."""
        storage = "tune.db" if self.storage is None else storage_place(self.storage, self.out)
        return {"study": self.study_name, "storage": storage}

    def _check_owner(self) -> None:
        """Check that the folder does not belong to another study, or to a sweep."""
        lock, owner = self.out / _LOCK, self._owner()
        try:
            there = json.loads(read_bytes(lock) or "null") or owner
            study, storage = there["study"], there["storage"]
        except FileNotFoundError:
            if (self.out / PLAN).exists():
                raise UserError(f"{self.out} contains a sweep. Name another --out.") from None
            return
        except (OSError, ValueError, TypeError, KeyError):
            raise UserError(f"{lock}: not written by srl tune. Name another --out.") from None
        if there != owner:
            raise UserError(
                f"{self.out} belongs to the study {study!r} in {storage}, not to {self.study_name!r} in "
                f"{owner['storage']}. Name another --out."
            )

    def _settings(self) -> dict[str, Any]:
        """The settings that all processes of a study must share."""
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
            raise UserError(f"{name} contains a study {self.study_name!r} that was not created by srl tune.")
        if there is None:
            study.set_user_attr(_SETTINGS, settings)
        elif there != settings:
            part = next(key for key in settings if there.get(key) != settings[key])
            names = [key for key in settings[part] if there[part].get(key) != settings[part][key]]
            key = names[0] if names else "search space"
            raise UserError(
                f"{name} contains a study {self.study_name!r} with other settings: {key} is "
                f"{there[part].get(key)!r} there and {settings[part].get(key)!r} here. Name another "
                "--study-name and another --out."
            )
        return study

    def _unfinished(self) -> list[TrialRun]:
        """Return the trials of this folder that an earlier process has not finished."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.study.sampler = optuna.samplers.RandomSampler()  # unused: they are sampled
        return [
            self._trial_run(Trial(self.study, trial._trial_id))
            for trial in running
            if trial.user_attrs.get(_FOLDER) == str(self.out.resolve())
        ]

    def _trial_run(self, trial: Trial) -> TrialRun:
        spec = trial_spec(self.base, self.space, trial)
        # Trials of one shape share the time that compiling takes
        n_timesteps = spec.n_timesteps * self.options.share
        compiles, _ = resolve_compile(self.options.compile, spec.hyperparams, n_timesteps, spec.device)
        return TrialRun(trial, spec.model_copy(update={"compile_update": compiles}), self.out / spec.path)

    def _sample(self) -> list[TrialRun]:
        """Sample the next batch; empty if the study has all its trials."""
        left = self.options.n_trials - len(counted_trials(self.study))
        batch = []
        shape: dict[str, Any] = {}
        for index in range(min(left, self.options.batch)):
            if index % self.options.share == 0:
                shape = {}
            self.study.sampler = TrialSampler(self.options, shape)
            trial = self.study.ask({each.name: each.distribution for each in self.space})
            n_before = sum(each.number < trial.number for each in counted_trials(self.study))
            if n_before >= self.options.n_trials:  # other processes have sampled since
                trial.set_user_attr(SURPLUS, True)
                self.study.tell(trial, state=TrialState.FAIL)
                break
            trial.set_user_attr(_FOLDER, str(self.out.resolve()))
            batch.append(self._trial_run(trial))
            shape = {each.name: trial.params[each.name] for each in self.space if each.is_shape}
        return batch

    def _train(self, batch: Sequence[TrialRun], tell: Callable[[SweepProgress], None]) -> None:
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

        def on_progress(progress: SweepProgress) -> None:
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
                tell=on_progress,
                say=lambda line: None if "pruned: " in line else self.say(line),
                persistence=self.persistence,
            )
        for running in batch:
            self._report(running)
            self._finish(running, failures.get(running.spec.path, ""))

    def _report(self, running: TrialRun) -> None:
        """Report a trial's new evaluations to Optuna, and stop its run if it is pruned."""
        if running.pruned or running.n_reported == self.options.n_evaluations:
            return
        with suppress(UserError):  # there is none yet
            results = RunDirectory(running.path).read_evaluations()["results"]
            for index in range(running.n_reported, min(len(results), self.options.n_evaluations)):
                running.value = float(results[index].mean())
                running.n_reported = index + 1
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a resumed trial may have reported it before
                    running.trial.report(running.value, running.n_reported)
                is_last = running.n_reported == self.options.n_evaluations
                if not is_last and running.trial.should_prune():
                    running.pruned = True
                    request_stop(running.path, f"pruned: its mean return was {running.value:.1f}")
                    return

    def _finish(self, running: TrialRun, failure: str) -> None:
        """Tell Optuna how a trial ended."""
        number = running.trial.number
        if running.pruned:
            self.study.tell(number, state=TrialState.PRUNED)
            self.say(f"Trial {number}: pruned after evaluation {running.n_reported}.")
        elif running.n_reported == self.options.n_evaluations:
            self.study.tell(number, running.value)
            self.say(f"Trial {number}: mean return {running.value:.1f}.")
        else:
            # Non-finite numbers count against the hyperparameters, a failure of the machine does not
            status = RunDirectory(running.path).read_status()
            is_bad = status is not None and status.lasting
            self.study.tell(number, state=TrialState.PRUNED if is_bad else TrialState.FAIL)
            self.say(f"Trial {number}: failed: {failure or 'it has too few evaluations'}.")

    def write_results(self) -> list[Path]:
        """Write the best hyperparameters, a table of all trials and Optuna's plots to the folder.

        :return: The files; none if no trial is complete.
        :raises UserError: If srl did not write an existing file, or it was changed since.
        """
        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return []
        best = self.study.best_trial
        writers = {
            BEST: text_writer(best_file(self.base, self.space, best, self.study_name)),
            TRIALS: text_writer(trials_table(self.study, self.space)),
        }
        return write_files(self.out, writers | plot_writers(self.study))
