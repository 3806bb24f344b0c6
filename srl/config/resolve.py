"""Resolve the hyperparameters of a run from a file and the user's overrides.

The files are those of rl-baselines3-zoo as far as they need no evaluated Python: an entry for each
environment, anchors, ``normalize``, ``frame_stack``, ``n_timesteps``, ``lin_2.5e-4``; ``policy_kwargs`` as
plain YAML. Defaults are part of a resolved entry, so that it is complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from srl.config.algorithms import Algorithm
from srl.config.files import configs_dir, read_config, user_error
from srl.config.hyperparams import FAMILIES, EnvHyperparams, untrusted
from srl.config.values import whole_number
from srl.envs.registration import is_atari
from srl.errors import UserError, nearest

#: Hyperparameters of the reverse loss.
REVERSE_LOSS = ("beta", "z", "reverse_loss", "importance_weighting")

#: Keys of PPO's entries that also apply to algorithms of other packages.
_OF_ENVIRONMENTS = ("n_timesteps", "n_envs", "normalize", "frame_stack", "env_wrapper", "policy")

#: Names of profiles: the default, and the settings of the authors' scripts.
PROFILES = ("controlled", "authors")


def keys_of(algorithm: Algorithm) -> list[str]:
    """The names of an algorithm's hyperparameters; a class of another package is imported."""
    own: list[str] = []
    if algorithm.is_own:
        from srl.own_algorithms import parameters_of

        own = parameters_of(algorithm.name)
    return [*FAMILIES[algorithm.family].model_fields, *own]


def of_family(algorithm: Algorithm, values: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters without those of other families, for a sweep over several families."""
    own = keys_of(algorithm)
    others = {name for model in FAMILIES.values() for name in model.model_fields}
    return {name: value for name, value in values.items() if name in own or name not in others}


def of_algorithm(algorithm: Algorithm, values: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters without those of other families, and of symmetric algorithms if it is not one."""
    values = of_family(algorithm, values)
    if algorithm.symmetric:
        return values
    return {name: value for name, value in values.items() if name not in ("alpha", *REVERSE_LOSS)}


def check_hyperparams(
    algorithm: Algorithm, values: dict[str, Any], model: type[EnvHyperparams] | None = None
) -> EnvHyperparams:
    """Complete and check an algorithm's hyperparameters.

    An algorithm without reverse loss has ``beta=0``, and ``alpha=1`` unless given.

    :param values: Hyperparameters by name; missing ones have SB3's defaults.
    :param model: Their class; that of the algorithm's family if not given.
    :raises ValidationError: For an unknown name or a value out of range.
    :raises UserError: For a reverse loss in an algorithm without one.
    """
    if not algorithm.symmetric and not algorithm.is_own:
        for name in REVERSE_LOSS:
            if name in values and (name, values[name]) != ("beta", 0):
                raise UserError(
                    f"{name}={values[name]}: {algorithm.label} has no reverse loss. Use "
                    f"{algorithm.symmetric_name.removeprefix('llm-')}, or leave {name} out."
                )
        values = {"alpha": 1.0, **values, "beta": 0.0}
    return (model or FAMILIES[algorithm.family])(**values)


def resolve_hyperparams(
    algorithm: Algorithm,
    env_id: str,
    *,
    overrides: dict[str, Any],
    profile: str = "controlled",
    path: Path | None = None,
    trust: bool = False,
    n_timesteps: int | None = None,
) -> tuple[EnvHyperparams, int, list[str]]:
    """Resolve the hyperparameters of a run from its entry in a file and the user's overrides.

    :param env_id: The environment; one without an entry takes ``atari`` or ``default``.
    :param overrides: Hyperparameters by name that override the file's.
    :param profile: ``"controlled"``, or a key of ``profiles`` in the entries.
    :param path: A file of the user, which all algorithms of a sweep share: keys that do not apply to the
        algorithm are ignored. None takes the algorithm's file in ``configs/hyperparams``.
    :param trust: Whether this file may name Python code, which is imported for training.
    :param n_timesteps: Training steps if the file has none.
    :return: The hyperparameters, the number of training steps, and lines for the user.
    :raises UserError: For a mistake in the file or an override.
    """
    shipped = configs_dir() / "hyperparams" / f"{algorithm.hyperparams_name}.yml"
    file = read_config(shipped if path is None else path)
    notes = []
    key = env_id if env_id in file.data else "atari" if is_atari(env_id) else "default"
    if path is not None and key not in file.data:
        raise UserError(f"{path} has no entry {env_id} and no {key}. Add one.{nearest(env_id, file.data)}")
    if key == "default":
        notes.append(
            f"{env_id} has no entry in {file.path.name}: its hyperparameters are those of `default`."
        )
    entry = file.data.get(key)
    if not isinstance(entry, dict):
        raise file.error([key], "must be a mapping of hyperparameters.")
    values = {name: value for name, value in entry.items() if name != "profiles"}
    profiles = entry.get("profiles", {})
    if not isinstance(profiles, dict) or not all(
        isinstance(deviation, dict) for deviation in profiles.values()
    ):
        raise file.error([key, "profiles"], "must be a mapping of names to mappings of hyperparameters.")
    values |= profiles.get(profile, {})
    if path is not None:
        values = of_algorithm(algorithm, values)
    elif algorithm.is_own:
        values = {name: value for name, value in values.items() if name in _OF_ENVIRONMENTS}
        notes.append(
            f"{algorithm.name} has the default hyperparameters of its class; n_timesteps, n_envs, normalize, "
            f"frame_stack and policy are those of PPO in {file.path.name}."
        )
    own_timesteps = values.pop("n_timesteps", None)
    try:
        n_timesteps = _positive_steps(n_timesteps if own_timesteps is None else own_timesteps)
    except ValueError as error:
        raise file.error([key, "n_timesteps"], str(error)) from None
    known = keys_of(algorithm)
    if algorithm.is_own:
        for name in overrides:
            if name not in known:
                raise UserError(
                    f"Hyperparameter {name}: {algorithm.name} has no such argument.{nearest(name, known)}"
                )
    try:
        of_file = check_hyperparams(algorithm, values)
    except ValidationError as error:
        raise file.validation_error(error, known, [key]) from None
    for name, where in of_file.named_code().items():
        if not trust:
            raise file.error([key, *where.split(".")], untrusted(name))
    for name, reason in of_file.without_effect(values).items():
        raise file.error([key, *name.split(".")], _no_effect(reason))
    try:
        hyperparams = check_hyperparams(algorithm, values | overrides)
    except ValidationError as error:
        raise user_error(error, known, "Hyperparameter") from None
    for name, reason in hyperparams.without_effect(values | overrides).items():
        raise UserError(f"Hyperparameter {name}: {_no_effect(reason)}")
    return hyperparams, n_timesteps, notes


def _no_effect(reason: str) -> str:
    return f"has no effect, because {reason}. Leave it out, or change that."


def _positive_steps(value: Any) -> int:
    number = whole_number(value) if value is not None else None
    if not isinstance(number, (int, float)) or number < 1 or number != int(number):
        raise ValueError(f"{value!r}: the number of training steps is needed, a whole number of at least 1.")
    return int(number)
