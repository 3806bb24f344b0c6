"""The state of an algorithm in training as plain data, taken between two updates."""

from __future__ import annotations

import random
import time
from collections import deque
from typing import Any

import numpy as np
import torch as th

from srl import SA2C, SPPO


def model_state(model: SA2C | SPPO) -> dict[str, Any]:
    """The state that an algorithm needs to resume: networks, optimizer, counters, episode statistics.

    :param model: Between two updates, before a rollout.
    """
    return {
        "policy": dict(model.policy.state_dict()),
        "optimizer": model.policy.optimizer.state_dict(),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "progress_remaining": model._current_progress_remaining,
        "flip_rng": model._flip_rng.bit_generator.state,
        "episodes": list(model.ep_info_buffer or ()),
        "successes": list(model.ep_success_buffer or ()),
        "last_obs": model._last_obs,
        "last_episode_starts": model._last_episode_starts,
        "seconds": (time.time_ns() - model.start_time) / 1e9,
    }


def restore_model(model: SA2C | SPPO, state: dict[str, Any]) -> None:
    """Restore the state of an algorithm.

    :param model: A new algorithm of the same kind.
    :param state: From :func:`model_state`.
    """
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.num_timesteps = state["num_timesteps"]
    model._n_updates = state["n_updates"]
    model._current_progress_remaining = state["progress_remaining"]
    model._flip_rng.bit_generator.state = state["flip_rng"]
    window = model._stats_window_size
    model.ep_info_buffer = deque(state["episodes"], maxlen=window)
    model.ep_success_buffer = deque(state["successes"], maxlen=window)
    model._last_obs = state["last_obs"]
    model._last_episode_starts = state["last_episode_starts"]
    model.start_time = time.time_ns() - int(state["seconds"] * 1e9)
    model._num_timesteps_at_start = 0


def generator_state(device: th.device) -> dict[str, Any]:
    """The state of the global random generators, which SB3's algorithms use."""
    version, values, gauss = random.getstate()
    return {
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "python": [version, list(values), gauss],
    }


def restore_generators(state: dict[str, Any], device: th.device) -> None:
    """Restore the state of the global random generators."""
    th.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        th.cuda.set_rng_state(state["cuda"], device)
    np.random.set_state(state["numpy"])  # noqa: NPY002
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
