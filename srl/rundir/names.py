"""The files of a run directory by their names.

| file | content |
| --- | --- |
| ``spec.json`` | the full :class:`~srl.config.spec.RunSpec` |
| ``status.json`` | ``running``, ``done``, ``failed`` or ``interrupted``; progress, times, why it ended |
| ``versions.json`` | package versions, commit, platform and command |
| ``monitor/N.monitor.csv`` | SB3's Monitor: raw return, length and time of each training episode |
| ``progress.csv``, ``events.out.tfevents.*`` | SB3's logger |
| ``evaluations.npz`` | as SB3's EvalCallback writes it: ``timesteps``, ``results``, ``ep_lengths`` |
| ``model.zip``, ``vecnormalize.pkl`` | the final model and its observation and reward statistics |
| ``best_model.zip``, ``best_vecnormalize.pkl`` | the same after the evaluation with the highest mean return |
| ``final_state.npz`` | of a finished run: what it needs to be extended |
| ``checkpoints/STEPS.npz`` | of an unfinished run: what it needs to resume |
| ``error.txt`` | the traceback of a run that failed |
| ``output.log`` | what a sweep's run printed |
| ``model/``, ``samples.json`` | a language model in place of ``model.zip``, and texts before and after |
| ``tracking.json`` | what was sent to a tracking service, see :mod:`srl.tracking` |
| ``tracking-SERVICE.lock`` | locked by the process that sends the run |
| ``stop.txt`` | why the run was told to stop early, as a pruned trial of ``srl tune`` |

``evaluations.npz`` also has ``successes`` if an episode reported ``is_success``, and
``reached_max_steps`` if one was truncated by ``eval_max_episode_steps``: bool, (n_evaluations, n_episodes).
"""

from __future__ import annotations

import re
from pathlib import Path

from srl.rundir.files import RANDOM, plain_files
from srl.rundir.status import Status

SPEC = "spec.json"
STATUS = "status.json"
VERSIONS = "versions.json"
EVALUATIONS = "evaluations.npz"
MODEL = "model.zip"
VECNORMALIZE = "vecnormalize.pkl"
BEST_MODEL = "best_model.zip"
BEST_VECNORMALIZE = "best_vecnormalize.pkl"
MONITOR = "monitor"
FINAL_STATE = "final_state.npz"
CHECKPOINTS = "checkpoints"
PROGRESS = "progress.csv"
ERROR = "error.txt"
LOG = "output.log"
LOCK = "run.lock"
#: Asks the process that trains a run to end it, see :func:`srl.rundir.directory.request_stop`.
STOP = "stop.txt"
#: A language model as transformers saves it, and texts that it wrote before and after training.
LANGUAGE_MODEL = "model"
SAMPLES = "samples.json"

#: The results of a run, which must be complete for it to count as finished.
RESULTS = (SPEC, EVALUATIONS, MODEL, VECNORMALIZE)
MODELS = (MODEL, VECNORMALIZE, BEST_MODEL, BEST_VECNORMALIZE, FINAL_STATE)
#: Files that an attempt at a run writes, and that the next attempt removes first.
OUTPUTS = (VERSIONS, PROGRESS, EVALUATIONS, *MODELS, SAMPLES, ERROR)
_EVENTS = re.compile(r"events\.out\.tfevents\.[0-9]+(\..+\.[0-9]+\.[0-9]+)?")
_MONITOR_FILE = re.compile(r"[0-9]+\.monitor\.csv")
CHECKPOINT = re.compile(r"(?:0|[1-9][0-9]*)\.npz")
_REPLACED = (SPEC, STATUS, VERSIONS, EVALUATIONS, *MODELS, SAMPLES, ERROR)
TEMPORARY = re.compile(rf"\.(?:{'|'.join(map(re.escape, _REPLACED))}){RANDOM}")
TEMPORARY_CHECKPOINT = re.compile(rf"\.[0-9]+\.npz{RANDOM}")
#: Folders that keep the files of a damaged finished run when it is retrained.
ASIDE = re.compile(r"damaged-[0-9]+")


def growing_logs(folder: Path) -> list[Path]:
    """The append-only logs of a run: TensorBoard's and Monitor's files."""
    monitor = folder / MONITOR
    names = [name for name in plain_files(folder) if _EVENTS.fullmatch(name)]
    if not monitor.is_symlink():
        names += [f"{MONITOR}/{name}" for name in plain_files(monitor) if _MONITOR_FILE.fullmatch(name)]
    return [folder / name for name in sorted(names)]


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run, unfinished files included."""
    checkpoints = folder / CHECKPOINTS
    names = [] if checkpoints.is_symlink() else plain_files(checkpoints)
    return [
        checkpoints / name
        for name in names
        if CHECKPOINT.fullmatch(name) or TEMPORARY_CHECKPOINT.fullmatch(name)
    ]


def language_model_files(status: Status) -> list[str]:
    """The files of a finished run's language model, as paths below its folder."""
    return [name for name in status.files if name.startswith(f"{LANGUAGE_MODEL}/")]
