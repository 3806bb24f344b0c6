"""Algorithms of other packages, with SB3's interface."""

from __future__ import annotations

import inspect
from importlib import metadata
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from srl.envs.registration import import_object
from srl.errors import UserError

#: Arguments of constructors that a run sets itself.
_OF_A_RUN = {
    "self", "policy", "env", "policy_kwargs", "seed", "device", "verbose", "tensorboard_log",
    "stats_window_size", "_init_setup_model",
}  # fmt: skip


def algorithm_class(name: str) -> Any:
    """Import an algorithm.

    :param name: ``package.module:Class``.
    :raises UserError: If there is no such class, or it is not a subclass of SB3's BaseAlgorithm.
    """
    cls = import_object(name)
    if not (isinstance(cls, type) and issubclass(cls, BaseAlgorithm)):
        raise UserError(f"{name} is not a subclass of stable_baselines3.common.base_class.BaseAlgorithm.")
    if inspect.isabstract(cls) or "env" not in inspect.signature(cls).parameters:
        raise UserError(f"{name} is not an algorithm that can be trained.")
    return cls


def parameters_of(name: str) -> list[str]:
    """The arguments of an algorithm's constructor that are hyperparameters."""
    parameters = inspect.signature(algorithm_class(name)).parameters.values()
    return [
        each.name
        for each in parameters
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD) and each.name not in _OF_A_RUN
    ]


def own_package(name: str) -> dict[str, str | None]:
    """The version of the package of an algorithm; empty if it is not installed as one."""
    module = name.partition(":")[0].partition(".")[0]
    packages = metadata.packages_distributions().get(module, ())
    return {package: metadata.version(package) for package in packages}
