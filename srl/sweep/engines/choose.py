"""Choose an engine by its name."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any

from srl.envs.registration import import_object
from srl.errors import UserError, nearest
from srl.sweep import engines
from srl.sweep.engines import EngineOptions


@cache
def known_engines() -> dict[str, type[EngineOptions]]:
    """The options of srl's engines by name: the classes ``Options`` in this package."""
    names = [found.name for found in pkgutil.iter_modules(engines.__path__)]
    modules = {name: import_module(f"{engines.__name__}.{name}") for name in names}
    return {name: module.Options for name, module in modules.items() if hasattr(module, "Options")}


def engine_options(
    name: str,
    n_jobs: int | None,
    given: Mapping[str, Any] = MappingProxyType({}),
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> EngineOptions:
    """Make the options of an engine.

    :param name: Its name, or ``module:Class`` for options of the user's own.
    :param n_jobs: The number of parallel tasks; None for the engine's default.
    :raises UserError: If the engine is unknown, or an option is invalid or belongs to another engine.
    """
    for owner, options in known_engines().items():
        own = {field.name for field in fields(options)}
        for option in given.keys() & own if owner != name else ():
            flag = f"--{option.replace('_', '-')} {given[option]}"
            raise UserError(f"{flag}: is for --engine {owner}, and the engine is {name}.")
    if ":" in name:
        return _options_of_the_user(name, n_jobs, arguments)
    if name not in known_engines() or arguments:
        names = ", ".join(sorted(known_engines()))
        hint = nearest(name, known_engines())
        raise UserError(f"--engine {name}: must be {names}, or module:Class with its arguments.{hint}")
    return known_engines()[name](n_jobs, **given)


def _options_of_the_user(name: str, n_jobs: int | None, arguments: Mapping[str, Any]) -> EngineOptions:
    cls = import_object(name)
    if not (isinstance(cls, type) and issubclass(cls, EngineOptions)):
        raise UserError(f"--engine {name}: must be a subclass of srl.sweep.engines.EngineOptions.")
    try:
        return cls(n_jobs, **arguments)
    except TypeError as error:
        raise UserError(f"--engine {name}: {error}.") from None
