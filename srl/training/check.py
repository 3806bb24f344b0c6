"""Check runs before anything starts or is written: build each environment and each model once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from srl.config.spec import RunSpec
from srl.envs import make_train_env
from srl.envs.registration import check_rom, is_builtin, registered
from srl.envs.spec import EnvSpec
from srl.errors import UserError
from srl.evaluation import TrainingOnlyWrapper
from srl.rewards import explained
from srl.spaces import one_line
from srl.training.attempt import in_one_line
from srl.training.model import make_model
from srl.training.policy_options import checking_optimizer

#: Fields of a spec that cannot make the model invalid, given its environment.
_NEVER_REFUSED = {
    "env", "seed", "noise", "n_timesteps", "profile", "eval_freq", "n_eval_episodes", "n_eval_envs",
    "eval_deterministic", "stacked",
}  # fmt: skip


def check_run(spec: RunSpec) -> None:
    """Check one run; see :func:`check_runs`."""
    check_runs([spec])


def check_runs(specs: Iterable[RunSpec]) -> None:
    """Make the environment of each run, step it once, and build the run's model on it.

    Runs that differ only in seed, noise, length or evaluation are checked once. Atari games have the same
    observations: the first one is made, and for the others only the ROM is checked.

    :raises UserError: For the first mistake in the order of the runs' paths: an environment that cannot be
        made or returns arrays as rewards, unsupported spaces, or a policy, optimizer or other hyperparameter
        that does not fit the environment.
    """
    by_environment: dict[str, dict[str, RunSpec]] = {}
    for spec in sorted(specs, key=lambda spec: spec.path):
        alone = replace(spec.env_spec(), seed=0, n_envs=1, noise="none", gamma=0.99)
        models = by_environment.setdefault(_without_game(alone), {})
        models.setdefault(spec.model_dump_json(exclude=_NEVER_REFUSED), spec)
    for models in by_environment.values():
        _check_environment(list(models.values()))


def _without_game(spec: EnvSpec) -> str:
    """Describe an environment; Atari games with the same requirements have the same description."""
    if not spec.atari or spec.env_kwargs or spec.wrappers:
        return repr(spec)
    check_rom(spec.env_id)
    of_all_games = {k: v for k, v in registered(spec.env_id).kwargs.items() if k != "game"}
    return repr((replace(spec, env_id=""), of_all_games))


def _check_environment(specs: Sequence[RunSpec]) -> None:
    """Check runs on one kind of environment."""
    env = make_train_env(replace(specs[0].env_spec(), n_envs=1, noise="none"))
    try:
        if not is_builtin(specs[0].env):
            _check_reward(specs[0].env, env)
        for spec in specs:
            if not spec.algorithm.is_own:
                _check_policy(spec, env.observation_space)
                _check_effect(spec, env.observation_space, env.action_space)
            _check_model(spec, env)
    finally:
        env.close()


def _check_reward(env_id: str, env: VecEnv) -> None:
    """Take one step and check that the reward is a number; a run reports all other problems itself."""
    env.action_space.seed(0)
    try:
        env.reset()
        env.step(np.array([env.action_space.sample()]))
    except Exception as error:
        reason = explained(error)
        if reason is not error:
            raise UserError(f"{env_id}: {reason}") from error


def _check_policy(spec: RunSpec, space: spaces.Space[Any]) -> None:
    policy, options = spec.hyperparams.policy, spec.hyperparams.policy_kwargs
    what = f"{policy} does not fit the observations of {spec.env}, {one_line(space)}."
    if isinstance(space, spaces.Dict) != (policy == "MultiInputPolicy"):
        fitting = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
        raise UserError(f"{what} Use --hyperparams policy={fitting}.")
    if policy != "CnnPolicy" or is_image_space(space, normalized_image=options.normalize_images is False):
        return
    if is_image_space(space, normalized_image=True):
        raise UserError(
            f"{what} It takes images of type uint8 from 0 to 255. For other images, set --hyperparams "
            "'policy_kwargs={normalize_images: false}'."
        )
    raise UserError(f"{what} Use --hyperparams policy=MlpPolicy.")


def _check_effect(
    spec: RunSpec, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> None:
    """Check that the hyperparameters fit the spaces, and that each of them has an effect."""
    hyperparams, options = spec.hyperparams, spec.hyperparams.policy_kwargs
    is_box = isinstance(action_space, spaces.Box)
    here = f"and {spec.env} has {one_line(action_space)} here."
    if hyperparams.use_sde and not is_box:
        raise UserError(f"use_sde=True needs a Box action space, {here}")
    if options.log_std_init is not None and not is_box:
        raise UserError(
            f"policy_kwargs.log_std_init has no effect: it needs a Box action space, {here} Leave it out."
        )
    if is_box and hyperparams.beta != 0:
        raise UserError(
            f"{spec.algorithm.label} with beta={hyperparams.beta:g} needs the probability of an action, "
            f"and {spec.env} has the action space {action_space}, which has only a density. Discretize the "
            f"actions with --algo d{spec.algo}, or use --algo {spec.algorithm.family}."
        )
    if is_box:
        fields = type(hyperparams).model_fields
        for name in ("z", "reverse_loss", "importance_weighting"):
            if name in fields and getattr(hyperparams, name) != fields[name].default:
                raise UserError(f"{name} has no effect without a reverse loss (beta=0). Leave it out.")
    if options.normalize_images is False and not _has_images(hyperparams.policy, observation_space):
        raise UserError(
            "policy_kwargs.normalize_images has no effect: the observations of "
            f"{spec.env}, {one_line(observation_space)}, are not images. Leave it out."
        )


def _has_images(policy: str, space: spaces.Space[Any]) -> bool:
    """Whether observations are images for a policy with ``normalize_images=False``."""
    parts = space.values() if isinstance(space, spaces.Dict) else [space]
    return any(is_image_space(part, normalized_image=policy != "MlpPolicy") for part in parts)


class _Repeated(TrainingOnlyWrapper):
    """One environment that stands for many: a model reads only their number and spaces."""

    def __init__(self, venv: VecEnv, n_envs: int):
        super().__init__(venv)
        self.num_envs = n_envs


def _check_model(spec: RunSpec, env: VecEnv) -> None:
    """Build the model on the CPU, without orthogonal initialization, which takes most of the time."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training shows the same warnings
            many = _Repeated(env, spec.hyperparams.n_envs)
            # The CPU of this machine does not matter for a run on a GPU
            anywhere = spec.model_copy(update={"device": "cpu", "precision": "float32"})
            model = make_model(anywhere, many, build=spec.algorithm.is_own)
            if spec.algorithm.is_own:
                return
            optimizer = model.policy_kwargs.get("optimizer_class", th.optim.Adam)
            model.policy_kwargs |= {"ortho_init": False, "optimizer_class": checking_optimizer(optimizer)}
            model._setup_model()
            model.precision = spec.precision
            model.set_policy_precision()
    except UserError as error:
        raise UserError(f"{spec.env}: {error}") from error.__cause__
    except Exception as error:
        # SB3 raises various exceptions on invalid combinations
        raise UserError(
            f"{spec.algorithm.label} cannot train on {spec.env} with these hyperparameters: "
            f"{in_one_line(error)}"
        ) from error
