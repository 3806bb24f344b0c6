"""Load a trained run: its model, and an environment like that of its evaluations."""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from srl.config.hyperparams import untrusted
from srl.config.spec import RunSpec, resolve_device
from srl.envs import EnvSpec, make_eval_env
from srl.envs.registration import import_packages
from srl.envs.seeding import Stream, seed_globals, seed_sequence
from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.rundir.files import read_bytes
from srl.rundir.names import BEST_MODEL, BEST_VECNORMALIZE, MODEL, SPEC, VECNORMALIZE
from srl.training.model import make_model


def load_run(
    run: str | Path,
    *,
    best: bool = False,
    n_envs: int = 1,
    render_mode: str = "rgb_array",
    device: str = "auto",
    trust: bool = False,
) -> tuple[BaseAlgorithm, VecEnv]:
    """Load a run's model and make its environment.

    The environment is the one of the run's evaluations: with the run's wrappers, discretized actions, frame
    stack and observation statistics, with raw rewards and without reward noise. Its episodes are
    those of the first evaluation. Native environments are replaced by Gymnasium's, which can be rendered.

    The model is built from ``spec.json``, and only its weights are read: nothing is unpickled. The global
    random generators are seeded, as by SB3's ``load``.

    :param run: The run's folder.
    :param best: Load the model of the best evaluation instead of the final one.
    :param n_envs: Number of environments.
    :param render_mode: ``"rgb_array"``, so that ``env.render()`` returns an image, or ``"human"``.
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    :param trust: Import Python code that ``spec.json`` names: environments, wrappers, networks, algorithms.
    :return: The model and its environment.
    :raises UserError: If there is no such run, it has no model yet, it is damaged, or it needs code and
        ``trust`` is false.
    """
    directory = RunDirectory(Path(run))
    spec = read_trusted(directory, trust)
    status = directory.read_status()
    model_file, statistics_file = (BEST_MODEL, BEST_VECNORMALIZE) if best else (MODEL, VECNORMALIZE)
    content = _read(directory, model_file)
    directory.check_file(model_file, content, status)
    spec = spec.model_copy(update={"device": resolve_device(device, spec.hyperparams.policy)})
    env = make_eval_env(playing(spec.env_spec(), render_mode), n_envs)
    try:
        normalize = unwrap_vec_normalize(env)
        if normalize is not None:
            statistics = _read(directory, statistics_file)
            directory.check_file(statistics_file, statistics, status)
            set_statistics(normalize, statistics, directory.path / statistics_file)
        with warnings.catch_warnings():
            # Warnings about the rollouts of training
            warnings.simplefilter("ignore", UserWarning)
            model = make_model(spec.model_copy(update={"compile_update": False}), env)
        try:
            _, parameters, _ = load_from_zip_file(io.BytesIO(content), device=model.device, load_data=False)
            model.set_parameters(parameters, device=model.device)
        except Exception as error:  # zipfile, zlib, torch and SB3 raise different ones
            what = " ".join(str(error).split())[:200]
            raise UserError(f"{directory.path / model_file}: not the model of this run: {what}") from None
        if model.use_sde:
            model.policy.reset_noise()  # type: ignore[operator]
        seed_globals(seed_sequence(spec.seed, Stream.EVAL_ACTIONS), spec.device)
    except BaseException:
        env.close()
        raise
    return model, env


def read_trusted(directory: RunDirectory, trust: bool) -> RunSpec:
    """Read the spec of a run whose model will be built, and import its packages.

    :param directory: The run's.
    :param trust: Whether Python code that the spec names may be imported.
    :raises UserError: If there is no run, it is that of a language model, or its spec names code that may not
        be imported.
    """
    spec = directory.read_spec()
    if spec is None:
        raise UserError(f"{directory.path}: contains no run ({SPEC}).")
    if spec.algorithm.on_language_models:
        raise UserError(
            f"{directory.path}: a run of a language model. Use srl llm eval or srl llm sample. For "
            "a longer run, use srl llm train with --timesteps and another --out."
        )
    if not trust:
        for key, name in spec.named_code().items():
            raise UserError(f"{directory.path / SPEC}, key {key}: {untrusted(name)}")
    import_packages(spec.gym_packages, needed_by=str(directory.path / SPEC))
    return spec


def playing(spec: EnvSpec, render_mode: str) -> EnvSpec:
    """The environment of a run with rendering, if it renders."""
    env_kwargs = {name: value for name, value in (spec.env_kwargs or {}).items() if name != "render_mode"}
    if render_mode != "rgb_array":
        # SB3's default is rgb_array, and only that is left out for environments without this argument
        env_kwargs["render_mode"] = render_mode
    return replace(spec, env_kwargs=env_kwargs, backend="gymnasium", renders=True)


def _read(directory: RunDirectory, name: str) -> bytes:
    try:
        return read_bytes(directory.path / name)
    except FileNotFoundError:
        status = directory.read_status()
        state = "" if status is None else f" The run is {status.state}."
        raise UserError(f"{directory.path / name}: missing.{state}") from None
    except OSError as error:
        raise UserError(f"{directory.path / name}: cannot be read: {error.strerror}.") from None


class _Data:
    """The attributes of a pickled object without its class."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


class _DataUnpickler(pickle.Unpickler):
    """Reads NumPy's arrays and numbers; every other class and function is replaced by :class:`_Data`."""

    _ALLOWED = frozenset(
        (module, name)
        for module in ("numpy", "numpy._core.multiarray", "numpy.core.multiarray")
        for name in ("ndarray", "dtype", "_reconstruct", "scalar")
    )

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in self._ALLOWED else _Data


def set_statistics(normalize: VecNormalize, content: bytes, file: Path) -> None:
    """Load saved statistics into a VecNormalize.

    :param normalize: A new VecNormalize.
    :param content: A file of :meth:`VecNormalize.save`. Only NumPy's classes are imported.
    :param file: Its path, for the message.
    :raises UserError: If the content is something else.
    """
    try:
        saved = _DataUnpickler(io.BytesIO(content)).load()
        for name in ("obs_rms", "ret_rms") if normalize.norm_obs else ("ret_rms",):
            ours, theirs = getattr(normalize, name), getattr(saved, name)
            pairs = [(ours[key], theirs[key]) for key in ours] if isinstance(ours, dict) else [(ours, theirs)]
            for mine, other in pairs:
                assert isinstance(mine, RunningMeanStd)
                if other.mean.shape != mine.mean.shape:
                    raise ValueError(f"{name} has the shape {other.mean.shape}")
                mine.mean, mine.var, mine.count = other.mean, other.var, other.count
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{file}: not the statistics of this run: {' '.join(str(error).split())}") from None
