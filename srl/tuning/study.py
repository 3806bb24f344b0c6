"""The study in Optuna: its options, storage, sampler and pruner."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from srl.errors import UserError, nearest
from srl.rundir.files import read_bytes

SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "halving", "hyperband", "none")
#: The attribute of a trial that parallel processes sampled beyond ``--n-trials``. It is not trained.
SURPLUS = "srl_surplus"


@dataclass(frozen=True)
class TuningOptions:
    """How hyperparameters are tuned, besides what is trained."""

    #: Total number of trials of the study, in any state.
    n_trials: int = 50
    #: Trials of a batch, and trials that share one shape.
    batch: int = 16
    share: int = 8
    #: Evaluations of a trial; the last one is its value.
    n_evaluations: int = 5
    sampler: str = "tpe"
    pruner: str = "median"
    #: Trials that are sampled at random; none is pruned before they are complete.
    n_startup_trials: int = 10
    seed: int = 0
    #: Whether updates are compiled: ``"on"``, ``"off"``, or ``"auto"`` where compiling saves time.
    compile: str = "off"

    def check(self) -> None:
        """Check the options.

        :raises UserError: If one is out of its range.
        """
        for name in ("n_trials", "batch", "share", "n_evaluations"):
            if getattr(self, name) < 1:
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
    :raises UserError: If it cannot be opened, or is a file of another program.
    """
    try:
        if name.endswith(".log"):
            _check_journal(Path(name))
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


def storage_place(name: str, out: Path) -> str:
    """The database or file of a storage, without login and options; files below ``out`` as relative paths."""
    scheme, _, rest = name.partition("?")[0].partition("://")
    if not name.endswith(".log") and not scheme.startswith("sqlite"):
        return f"{scheme}://{rest.rpartition('@')[2]}"
    file = Path(name if name.endswith(".log") else rest[1:]).resolve()
    folder = out.resolve()
    return str(file.relative_to(folder) if file.is_relative_to(folder) else file)


def _check_journal(file: Path) -> None:
    """Check that a log file is new, empty or Optuna's, which appends to it."""
    try:
        content = read_bytes(file)
    except FileNotFoundError:
        return
    try:
        if not content or "op_code" in json.loads(content.partition(b"\n")[0]):
            return
    except (ValueError, TypeError):  # no JSON, or a number
        pass
    raise UserError(f"--storage {file}: contains no study of Optuna. Name another file.")


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count for ``--n-trials``: not queued, and not :data:`SURPLUS`."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.WAITING and SURPLUS not in trial.user_attrs
    ]


class TrialSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Samples each trial from a random state that depends on the seed and the trial's number only.

    A resumed study therefore continues as an uninterrupted one.

    :param options: The sampler and its seed.
    :param shape: Fixed parameters by name.
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
