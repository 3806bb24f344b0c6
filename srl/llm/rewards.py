"""Rewards of responses: functions with the signature of TRL's, checked, and with noise for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from srl.envs import parse_noise
from srl.envs.seeding import Stream, stream_rng
from srl.errors import UserError

Array = np.ndarray[Any, np.dtype[np.float64]]


class RewardFunction(Protocol):
    """Scores responses. It is called as TRL's trainers call theirs, and may ignore what it does not need."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> Sequence[float]:
        """Return a number for each response."""
        ...


def score(
    function: RewardFunction,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Array:
    """The scores of responses.

    :param function: What scores them.
    :param prompts: One for each response.
    :param completions: The responses.
    :param columns: Other columns of the data set, by name.
    :return: Shape ``(n_responses,)``.
    :raises UserError: If the function does not return a finite number for each response.
    """
    name = getattr(function, "__name__", type(function).__name__)
    returned = function(prompts=list(prompts), completions=list(completions), **(columns or {}))
    try:
        scores = np.array([float(value) for value in returned], dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(
            f"The reward function {name} returned {returned!r:.80}, not a list of numbers."
        ) from None
    if len(scores) != len(completions):
        raise UserError(
            f"The reward function {name} returned {len(scores)} scores for {len(completions)} responses."
        )
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise UserError(
            f"The reward function {name} returned {scores[wrong[0]]} for the response "
            f"{completions[wrong[0]]!r:.80}: scores must be finite."
        )
    return scores


def add_noise(scores: Array, noise: str, seed: int, index: int) -> Array:
    """The scores that training sees.

    :param scores: Of the reward function, shape ``(n_responses,)``.
    :param noise: See :func:`srl.envs.parse_noise`: ``gaussian:STD`` adds to each score, ``flip:PROB`` makes
        ``1 - score`` of some.
    :param seed: The run's.
    :param index: Counts the rollouts of the run: each has a stream of its own.
    :return: Same shape.
    """
    process = parse_noise(noise)
    if process is None:
        return scores
    return process.apply(scores, stream_rng(seed, Stream.REWARD_NOISE, index))
