"""Normalization of scores of different environments."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from srl.config.files import ConfigFile, configs_dir
from srl.envs.registration import is_atari
from srl.errors import UserError, nearest
from srl.report.cells import Cell
from srl.report.intervals import Array

#: An environment and its training steps.
Task = tuple[str, int]

Kind = Literal["human", "minmax", "none"]
#: Options of normalization; ``auto`` is ``human`` for Atari games and ``minmax`` elsewhere.
Normalization = Literal["auto", "human", "minmax", "none"]

#: The names of kinds of normalization.
NAMES: dict[Kind, str] = {
    "human": "human-normalized",
    "minmax": "min-max normalized",
    "none": "not normalized",
}

#: Ids of Atari games: ``AlienNoFrameskip-v4``, ``ALE/Alien-v5``, ``Alien-v4``.
_ATARI = re.compile(r"(?:ALE/)?([A-Za-z]+?)(?:NoFrameskip|Deterministic)?-v\d+")


@dataclass(frozen=True)
class Scale:
    """The returns of an environment with the normalized scores 0 and 1."""

    kind: Kind
    zero: float = 0.0
    one: float = 1.0

    def normalize(self, scores: Array) -> Array:
        """Normalized scores, of the same shape."""
        return (scores - self.zero) / (self.one - self.zero)


def check_normalization(name: str) -> Normalization:
    """Return a valid name of a normalization; raise a UserError for others."""
    known = get_args(Normalization)
    if name not in known:
        raise UserError(f"--normalize {name}: is not one of {', '.join(known)}.{nearest(name, known)}")
    return name  # type: ignore[return-value]


def read_human_scores(folder: Path | None = None) -> tuple[dict[str, tuple[float, float]], str]:
    """Scores of random play and of a human by Atari game, and their source.

    :param folder: A folder with ``atari.yml``; None takes ``configs/normalisation``.
    :raises UserError: If the file is malformed.
    """
    file = ConfigFile((folder or configs_dir() / "normalisation") / "atari.yml")
    try:
        scores = {
            str(game): (float(random), float(human)) for game, (random, human) in file.data["scores"].items()
        }
        return scores, " ".join(file.data["source"].split())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise file.error([], f"not a file of random and human scores: {error!r}.") from None


def find_scales(cells: Sequence[Cell], how: Normalization) -> tuple[dict[Task, Scale], list[str]]:
    """The scale of each environment from all its finished runs.

    :return: Scales by environment, and lines on environments without one and on methods.
    """
    values: dict[Task, list[float]] = defaultdict(list)
    for cell in cells:
        values[cell.env, cell.n_timesteps] += cell.values
    human, source = read_human_scores()
    scales: dict[Task, Scale] = {}
    notes: list[str] = []
    for task, scores in values.items():
        game = _ATARI.fullmatch(task[0])
        reference = human.get(game[1]) if game else None
        if how == "none":
            scales[task] = Scale("none")
        elif reference is not None and how != "minmax":
            scales[task] = Scale("human", *reference)
        elif how == "human" or (how == "auto" and _looks_like_atari(task[0])):
            notes.append(f"{task[0]}: in no aggregate, since it has no human score.")
        elif scores:
            low, high = min(scores), max(scores)
            if low == high:
                notes.append(f"{task[0]}: all its scores are {low:g}, which min-max normalization makes 0.")
            scales[task] = Scale("minmax", low, high if high > low else low + 1)
    if any(scale.kind == "human" for scale in scales.values()):
        notes.append(f"Human-normalized: 0 is random play, 1 a human's score. {source}")
    if any(scale.kind == "minmax" for scale in scales.values()):
        notes.append(
            "Min-max normalized: 0 and 1 are the lowest and the highest final score of an environment among "
            "the runs of this report, all algorithms and noises together. These values change with the runs."
        )
    return scales, notes


def _looks_like_atari(env: str) -> bool:
    try:
        return is_atari(env)
    except Exception:  # Gymnasium's registry may raise any error for a name
        return False


def normalize(scores: Array, tasks: Sequence[Task], scales: Mapping[Task, Scale]) -> Array:
    """A matrix of normalized scores.

    :param scores: Returns, shape (n_runs, n_tasks).
    """
    columns = [scales[task].normalize(scores[:, place]) for place, task in enumerate(tasks)]
    return np.stack(columns, axis=1)
