"""Search spaces, and the run of a trial that was sampled from one.

The spaces are those of rl-baselines3-zoo 2.9.2 (``sample_ppo_params`` and ``sample_a2c_params`` of
``rl_zoo3/hyperparams_opt.py``), with its parameter names, plus ``alpha`` and ``beta`` for algorithms with a
reverse loss. ``z`` is not searched: the reverse cross-entropy depends on ``beta * z`` only, and the mean
absolute error does not depend on ``z``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial

from srl.config.algorithms import Algorithm
from srl.config.hyperparams import FAMILIES
from srl.config.spec import RunSpec
from srl.errors import UserError


@dataclass(frozen=True)
class Parameter:
    """A parameter of a search space."""

    #: Its name in Optuna.
    name: str
    distribution: BaseDistribution
    #: The hyperparameter that it determines, with dots.
    target: str
    #: Converts the sampled value to that of the hyperparameter.
    value: Callable[[Any], Any] = lambda sampled: sampled
    #: Whether trials of one population must share it.
    is_shape: bool = False


_NET_ARCHS = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}


def _net_arch(name: str) -> dict[str, list[int]]:
    return {"pi": _NET_ARCHS[name], "vf": _NET_ARCHS[name]}


def _power_of_two(exponent: int) -> int:
    return int(2**exponent)


def _one_minus(value: float) -> float:
    return 1 - value


_LEARNING_RATE = Parameter("learning_rate", FloatDistribution(1e-5, 0.002, log=True), "learning_rate")
_MAX_GRAD_NORM = Parameter("max_grad_norm", FloatDistribution(0.3, 2), "max_grad_norm")
_ENT_COEF = Parameter("ent_coef", FloatDistribution(1e-8, 0.1, log=True), "ent_coef")
_GAMMA = Parameter("one_minus_gamma", FloatDistribution(0.0001, 0.03, log=True), "gamma", _one_minus)
_GAE_LAMBDA = Parameter(
    "one_minus_gae_lambda", FloatDistribution(0.0001, 0.1, log=True), "gae_lambda", _one_minus
)
_ACTIVATION = Parameter(
    "activation_fn", CategoricalDistribution(["tanh", "relu"]), "policy_kwargs.activation_fn", is_shape=True
)


def _architecture(*names: str) -> Parameter:
    return Parameter(
        "net_arch", CategoricalDistribution(names), "policy_kwargs.net_arch", _net_arch, is_shape=True
    )


_PPO = (
    Parameter("batch_size_pow", IntDistribution(2, 10), "batch_size", _power_of_two, is_shape=True),
    Parameter("n_steps_pow", IntDistribution(5, 12), "n_steps", _power_of_two, is_shape=True),
    _GAMMA,
    _GAE_LAMBDA,
    _LEARNING_RATE,
    _ENT_COEF,
    Parameter("clip_range", CategoricalDistribution([0.1, 0.2, 0.3, 0.4]), "clip_range"),
    Parameter("n_epochs", CategoricalDistribution([1, 5, 10, 20]), "n_epochs", is_shape=True),
    _MAX_GRAD_NORM,
    _architecture("tiny", "small", "medium"),
    _ACTIVATION,
)
_A2C = (
    Parameter(
        "n_steps", CategoricalDistribution([32, 64, 128, 256, 512, 1024, 2048]), "n_steps", is_shape=True
    ),
    _GAMMA,
    _GAE_LAMBDA,
    _LEARNING_RATE,
    _MAX_GRAD_NORM,
    _ENT_COEF,
    _architecture("small", "medium"),
    _ACTIVATION,
)
#: The weights of the two losses; the published experiments have ``alpha=0.5`` and ``beta`` from 1 to 20.
_SYMMETRIC = (
    Parameter("alpha", FloatDistribution(0.1, 1.0), "alpha"),
    Parameter("beta", FloatDistribution(0.1, 20.0, log=True), "beta"),
)


def search_space(algorithm: Algorithm, fixed: Mapping[str, Any] | None = None) -> tuple[Parameter, ...]:
    """Return the search space of an algorithm.

    :param algorithm: The algorithm.
    :param fixed: Hyperparameters that are not searched, by name.
    :raises UserError: For an algorithm of another package.
    """
    if algorithm.is_own:
        raise UserError(
            f"srl tune has no search space for {algorithm.name}. It tunes a2c, ppo, sa2c and sppo, also with "
            "discretized actions."
        )
    space = {"a2c": _A2C, "ppo": _PPO}[algorithm.family] + (_SYMMETRIC if algorithm.symmetric else ())
    flat = set(fixed or {})
    options = (fixed or {}).get("policy_kwargs")
    if isinstance(options, dict):
        flat |= {f"policy_kwargs.{name}" for name in options}
    return tuple(parameter for parameter in space if parameter.target not in flat)


def sampled_hyperparams(space: Sequence[Parameter], sampled: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a trial.

    :param space: Its search space.
    :param sampled: Its parameters by their names in Optuna; parameters outside the space are ignored.
    :return: Hyperparameters by name, ``policy_kwargs`` as a mapping.
    """
    values: dict[str, Any] = {}
    for parameter in space:
        if parameter.name in sampled:
            group, _, name = parameter.target.rpartition(".")
            place = values.setdefault(group, {}) if group else values
            place[name] = parameter.value(sampled[parameter.name])
    return values


def trial_spec(base: RunSpec, space: Sequence[Parameter], trial: FrozenTrial | Trial) -> RunSpec:
    """Return the run of a trial.

    :param base: The run that hyperparameters are tuned for. The trial's seed is the base's plus its number.
    :param space: The search space.
    :param trial: The trial, sampled.
    :raises UserError: If its parameters are not those of a run.
    """
    values = sampled_hyperparams(space, trial.params)
    options = values.pop("policy_kwargs", {})
    kept = base.hyperparams.model_dump()
    kept["policy_kwargs"] = base.hyperparams.policy_kwargs.model_dump(exclude_none=True) | options
    try:
        return base.model_copy(
            update={
                "variant": f"trial-{trial.number}",
                "seed": (base.seed + trial.number) % 2**31,
                "hyperparams": FAMILIES[base.algorithm.family](**(kept | values)),
            }
        )
    except ValueError as error:
        raise UserError(f"Trial {trial.number}: {' '.join(str(error).split())}") from None
