"""Rewards of responses: functions with TRL's signature, checks of their results, and reward noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from srl.envs import parse_noise
from srl.envs.seeding import Stream, stream_rng
from srl.errors import UserError

Array = np.ndarray[Any, np.dtype[np.float64]]


class RewardFunction(Protocol):
    """Scores responses, with the arguments of TRL's reward functions."""

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

    :param function: The reward function.
    :param prompts: The prompt of each response.
    :param completions: The responses.
    :param columns: Other columns of the data set, by name.
    :return: Shape ``(n_responses,)``.
    :raises UserError: If the function fails, or does not return a finite number for each response.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        returned = function(prompts=list(prompts), completions=list(completions), **(columns or {}))
    except Exception as error:
        raise UserError(f"The reward function {name} failed: {type(error).__name__}: {error}") from error
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
    """Add reward noise to scores.

    :param scores: The scores, shape ``(n_responses,)``.
    :param noise: See :func:`srl.envs.parse_noise`: ``gaussian:STD`` adds to each score, ``flip:PROB``
        replaces some by ``1 - score``.
    :param seed: The run's.
    :param index: The number of the rollout in the run: each has its own stream.
    :return: Same shape.
    """
    process = parse_noise(noise)
    if process is None:
        return scores
    return process.apply(scores, stream_rng(seed, Stream.REWARD_NOISE, index))
