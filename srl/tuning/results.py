"""The results of a study: the best hyperparameters, a table of all trials, and Optuna's plots."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial

from srl.config.resolve import check_hyperparams, of_algorithm
from srl.config.spec import RunSpec
from srl.report.files import Writer, bytes_writer
from srl.tuning.space import Parameter, trial_spec
from srl.tuning.study import counted_trials

#: Names of the files that tuning writes next to the trials' run directories.
BEST, TRIALS = "best.yml", "trials.csv"
PLOTS = ("history.png", "importances.png", "slices.png", "intermediate.png")


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


def trials_table(study: optuna.Study, space: Sequence[Parameter]) -> str:
    """Return all trials as CSV: number, state, value, evaluations and hyperparameters."""
    names = [parameter.target for parameter in space]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["trial", "state", "value", "evaluations", *names], lineterminator="\n")
    writer.writeheader()
    for trial in counted_trials(study):
        row = {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value}
        evaluations = [value for _, value in sorted(trial.intermediate_values.items())]
        hyperparams = {
            parameter.target: parameter.value(trial.params[parameter.name])
            for parameter in space
            if parameter.name in trial.params
        }
        writer.writerow(row | {"evaluations": " ".join(f"{value:g}" for value in evaluations)} | hyperparams)
    return text.getvalue()


def plot_writers(study: optuna.Study) -> dict[str, Writer]:
    """Optuna's plots, for :func:`~srl.report.files.write_files`; those that need more trials are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as draw

    drawers: list[Callable[[], Any]] = [
        lambda: draw.plot_optimization_history(study),
        lambda: draw.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator()),
        lambda: draw.plot_slice(study),
        lambda: draw.plot_intermediate_values(study),
    ]
    writers = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its matplotlib figures experimental
        for name, drawer in zip(PLOTS, drawers, strict=True):
            try:
                axes = drawer()
            except (ValueError, RuntimeError):  # importances of one trial, or of equal values
                continue
            content = io.BytesIO()
            getattr(axes, "flat", [axes])[0].figure.savefig(content, dpi=120, bbox_inches="tight")
            plt.close("all")
            writers[name] = bytes_writer(content.getvalue())
    return writers
