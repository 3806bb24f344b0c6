"""Explain the errors of SB3 and NumPy for rewards that are arrays instead of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from srl.errors import UserError

_SB3 = "stable_baselines3.common"


def explained(error: Exception) -> Exception:
    """Explain an error that was caused by an array as reward.

    SB3's Monitor, DummyVecEnv and rollout buffer convert rewards without a check, and the messages of NumPy
    name neither the reward nor the environment.

    :param error: Raised by a step of an environment, or by adding the step to a rollout.
    :return: A :class:`~srl.errors.UserError` that names the reward, its shape and what to do, or the error
        itself if it has another cause.
    """
    if not isinstance(error, TypeError | ValueError) or isinstance(error, UserError):
        return error
    shape = _reward_shape(error)
    if shape is None:
        return error
    return UserError(
        f"A reward of the environment is an array{shape}, and must be a number. Return float(reward) or "
        "reward.item() from the environment's step()."
    )


def _reward_shape(error: Exception) -> str | None:
    """The shape of the reward that caused an error, in words; None if the cause is another."""
    trace = error.__traceback__
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    where = (frame.f_globals.get("__name__"), frame.f_code.co_name)
    reward: Any = frame.f_locals.get("reward")
    if where == (f"{_SB3}.monitor", "step") and _is_array(reward):
        return f" of shape {reward.shape}"
    # One reward for each environment
    if where == (f"{_SB3}.buffers", "add") and np.ndim(reward) > 1:
        return f" of shape {reward.shape[1:]}"
    # Rewards and the ends of episodes become elements of arrays
    is_element = "setting an array element with a sequence" in str(error)
    is_end = _is_array(frame.f_locals.get("terminated")) or _is_array(frame.f_locals.get("truncated"))
    if where == (f"{_SB3}.vec_env.dummy_vec_env", "step_wait") and is_element and not is_end:
        return ""
    return None


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0
