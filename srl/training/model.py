"""The model of a run: built from the spec, compiled, and saved."""

from __future__ import annotations

import copy
import io
import json
import re
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch as th
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from srl import SA2C, SPPO
from srl.compiled import CompiledUpdate
from srl.config.spec import RunSpec
from srl.envs.seeding import Stream, seed_globals, seed_numpy, seed_sequence, stream_rng
from srl.own_algorithms import algorithm_class
from srl.policies import PolicyMixin
from srl.rundir.files import replacing
from srl.rundir.names import BEST_MODEL, BEST_VECNORMALIZE, MODEL, VECNORMALIZE
from srl.training.attempt import Attempt
from srl.training.policy_options import policy_kwargs

#: Memory addresses in the descriptions that SB3 writes next to pickled objects.
_ADDRESS = re.compile(rb" at 0x[0-9a-f]+")
_ALGORITHM_CLASSES: dict[str, type[SA2C | SPPO]] = {"a2c": SA2C, "ppo": SPPO}


def make_model(spec: RunSpec, env: VecEnv, *, build: bool = True) -> SA2C | SPPO:
    """Build the run's algorithm on its environment.

    :param spec: The run. A baseline is the symmetric algorithm with ``beta=0``, which is bitwise identical to
        SB3's and logs the same values.
    :param env: Its training environment.
    :param build: Whether to build the networks and the rollout buffer.
    :return: The untrained algorithm. The global random generators are at the starts of the run's streams of
        actions and minibatches.
    """
    seed_globals(seed_sequence(spec.seed, Stream.WEIGHTS), spec.device)
    kwargs = spec.hyperparams.algorithm_kwargs()
    for name, value in kwargs.items():
        if isinstance(value, str) and value.startswith("lin_"):
            kwargs[name] = LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    is_own = spec.algorithm.is_own
    if not is_own:
        kwargs |= {
            "compile_update": spec.compile_update,
            "precision": spec.precision,
            "_init_setup_model": build,
        }
    cls = algorithm_class(spec.algo) if is_own else _ALGORITHM_CLASSES[spec.algorithm.family]
    model = cls(
        spec.hyperparams.policy,
        env,
        policy_kwargs=policy_kwargs(spec.hyperparams.policy_kwargs),
        device=spec.device,
        **kwargs,
    )
    if spec.numpy_acting and build and isinstance(model.policy, PolicyMixin):
        model.policy.numpy_acting = True
    # For the record only: as an argument of the constructor, it would seed the environments as SB3 does
    model.seed = spec.seed
    if is_own:
        # Off-policy algorithms sample their first actions from it
        actions = seed_sequence(spec.seed, Stream.ACTIONS, 1)
        model.action_space.seed(int(actions.generate_state(1)[0]))
    else:
        model._flip_rng = stream_rng(spec.seed, Stream.ADVANTAGE_FLIPS)
    seed_globals(seed_sequence(spec.seed, Stream.ACTIONS), spec.device)
    seed_numpy(seed_sequence(spec.seed, Stream.MINIBATCHES))
    if spec.device.startswith("cuda"):
        # As SB3's set_random_seed
        th.backends.cudnn.deterministic, th.backends.cudnn.benchmark = True, False
    return model


def compile_update(
    attempt: Attempt, model: SA2C | SPPO, others: Sequence[CompiledUpdate] = ()
) -> CompiledUpdate | None:
    """Compile a model's update before training, if the run asks for that, and record the outcome.

    :param attempt: The attempt at the run.
    :param model: Its algorithm.
    :param others: The compiled updates of runs that train together with it.
    :return: The compiled update; None if it is not compiled.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a note replaces the warning
        compiled = model.compile_now(others)
    if model.not_compiled is not None:
        attempt.note(f"the update is not compiled, so that last bits may differ: {model.not_compiled}")
    elif compiled is not None:
        attempt.status = replace(attempt.status, compile_seconds=compiled.compile_seconds)
    return compiled


def save(path: Path, model: SA2C | SPPO, vec_normalize: VecNormalize | None, *, best: bool = False) -> None:
    """Write a run's model and its statistics atomically; the model is not changed.

    :param path: The run's folder.
    :param model: The final model, or the best so far.
    :param vec_normalize: Its statistics; None if nothing is normalized.
    :param best: Write ``best_model.zip`` and ``best_vecnormalize.pkl``, without the last observations, which
        are in the middle of a rollout.
    """
    # The same run gives the same file, without times and memory addresses
    model = copy.copy(model)
    model.start_time = 0
    model._num_timesteps_at_start = 0
    # SB3's NatureCNN samples from it to compute the number of features
    model.observation_space = copy.deepcopy(model.observation_space)
    model.observation_space.seed(model.seed)
    episodes = [
        {sys.intern(key): value for key, value in episode.items()} | {"t": 0.0}
        for episode in model.ep_info_buffer or ()
    ]
    model.ep_info_buffer = deque(episodes, maxlen=model._stats_window_size)
    if best:
        # As for a run that ends here
        model._last_obs = model._last_episode_starts = None
        model._total_timesteps, model._current_progress_remaining = model.num_timesteps, 0.0
    saved = io.BytesIO()
    model.save(saved)
    model_file = path / (BEST_MODEL if best else MODEL)
    with replacing(model_file) as temporary, ZipFile(temporary, "w") as file, ZipFile(saved) as original:
        for name in original.namelist():
            content = original.read(name)
            file.writestr(ZipInfo(name), _without_traces(content) if name == "data" else content)
    if vec_normalize is not None:
        statistics = VecNormalize.__new__(VecNormalize)  # a VecNormalize that copy.copy makes cannot be saved
        # Without the results of the last step, which a resumed process may not have taken
        vars(statistics).update(vars(vec_normalize), old_obs=np.array([]), old_reward=np.array([]))
        with replacing(path / (BEST_VECNORMALIZE if best else VECNORMALIZE)) as temporary:
            statistics.save(str(temporary))


def _without_traces(data: bytes) -> bytes:
    """Remove traces of the process from the ``data`` of a saved model, where SB3 lists attributes of classes.

    ``copy`` and ``pickle`` add ``__slotnames__`` to the class of each object that they handle.
    """
    values = json.loads(_ADDRESS.sub(b"", data))
    for value in values.values():
        if isinstance(value, dict):
            value.pop("__slotnames__", None)
    return json.dumps(values, indent=4).encode()
