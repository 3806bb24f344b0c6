"""The columns of a sweep: algorithms, and named variants of them that differ in hyperparameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from pydantic import ValidationError

from srl.config.algorithms import ALGORITHMS, get_algorithm, get_environment_algorithm
from srl.config.files import first_mistake
from srl.config.resolve import REVERSE_LOSS, check_hyperparams, keys_of
from srl.errors import UserError, nearest

#: Pattern of a variant's name, which names a folder and a column of tables.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._+=-]{0,79}$"
NAMES_ARE = "Names have at most 80 letters, digits and . _ + = -, the first a letter or a digit."


class VariantError(UserError):
    """A mistake in the variants of a sweep, with its path of keys."""

    def __init__(self, keys: Sequence[str | int], message: str):
        super().__init__(f"{'.'.join(map(str, keys))}: {message}")
        self.keys, self.message = list(keys), message


@dataclass(frozen=True)
class Variant:
    """One column of a sweep."""

    #: The algorithm's name, or a different one.
    name: str
    #: The algorithm's name.
    algo: str
    #: Hyperparameters that override all others of the sweep.
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str | None:
        """The name for a run's spec; None if it is the algorithm's."""
        return None if self.name == self.algo else self.name


def make_variants(
    algos: Sequence[str], named: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]
) -> list[Variant]:
    """Return the columns of a sweep.

    :param algos: Algorithms; with a grid, each is expanded into a variant for each point, such as
        ``sppo-beta=5``.
    :param named: Variants by name: ``algo`` and other hyperparameters.
    :param grid: Values by hyperparameter; every combination is a point.
    :raises VariantError: For invalid names, unknown algorithms or keys, values out of range, or a grid
        without ``algos`` or with keys that do not apply to one of them.
    """
    variants = [Variant(name, name) for name in algos]
    if grid:
        if not algos:
            raise VariantError(["grid"], "expands algorithms, and algos is empty. Define variants instead.")
        variants = [variant for name in algos for variant in _grid_of(name, grid)]
    for name, values in named.items():
        variants.append(_named(name, values))
    return variants


def check_comparisons(comparisons: Sequence[Sequence[str]], variants: Sequence[Variant]) -> None:
    """Check that each comparison names two columns of the sweep, and none is the reverse of another one.

    :raises VariantError: If one does not, or is.
    """
    known = [variant.name for variant in variants]
    for index, pair in enumerate(comparisons):
        for name in pair:
            if name not in known:
                hint = nearest(name, known)
                raise VariantError(
                    ["compare", index],
                    f"there is no column {name!r} in this sweep. Known: {', '.join(known)}.{hint}",
                )
        if len(set(pair)) != 2 or len(pair) != 2:
            raise VariantError(["compare", index], f"{list(pair)}: must name two different columns.")
        # It would be counted twice in the correction for the number of tests
        if list(pair[::-1]) in map(list, comparisons[:index]):
            raise VariantError(
                ["compare", index], f"{list(pair)}: tests the same as {list(pair[::-1])}. Remove one."
            )


def column_order(algo: str, name: str) -> tuple[int, bool, list[tuple[bool, str | float]]]:
    """A sort key of columns: algorithms in the paper's order, each followed by its variants by number."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", name)
    by_value = [(index % 2 == 1, float(part) if index % 2 else part) for index, part in enumerate(parts)]
    order = list(ALGORITHMS)
    return order.index(algo) if algo in order else len(order), name != algo, by_value


def _grid_of(algo: str, grid: Mapping[str, Sequence[Any]]) -> list[Variant]:
    for key, values in grid.items():
        known = _keys_of(algo)
        if key not in known:
            raise VariantError(
                ["grid", key],
                f"does not apply to {get_algorithm(algo).label}.{nearest(key, known)} A grid expands all of "
                "algos; define other columns under variants.",
            )
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise VariantError(["grid", key], f"{values!r}: must be a list of values, for example [0, 1, 5].")
    variants = []
    names: dict[str, str] = {}
    for point in product(*grid.values()):
        overrides = dict(zip(grid, point, strict=True))
        name = "-".join([algo, *(f"{key}={_text(value)}" for key, value in overrides.items())])
        validated = _check_values(["grid"], algo, overrides) or name
        if not re.fullmatch(NAME, name):
            raise VariantError(
                ["grid"], f"{name!r} is too long for a name, or contains other characters than allowed."
            )
        if name in names.values():
            raise VariantError(["grid"], f"the point {name} is specified twice.")
        if validated in names:
            raise VariantError(["grid"], f"the points {names[validated]} and {name} have equal values.")
        names[validated] = name
        variants.append(Variant(name, algo, overrides))
    return variants


def _text(value: Any) -> str:
    """A value of a grid in a name: short, and different for different numbers."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value).lower()


def _named(name: str, values: Any) -> Variant:
    keys: list[str | int] = ["variants", name]
    if not re.fullmatch(NAME, name):
        raise VariantError(keys, f"is not a valid column name. {NAMES_ARE}")
    if not isinstance(values, Mapping) or not isinstance(values.get("algo"), str):
        raise VariantError(keys, "must be a mapping with the key algo, for example {algo: sppo, beta: 5}.")
    try:
        algo = get_environment_algorithm(values["algo"]).name
    except UserError as error:
        raise VariantError([*keys, "algo"], str(error)) from None
    if name.lower() in ALGORITHMS:
        raise VariantError(keys, "is the name of an algorithm. Use another.")
    overrides = {key: value for key, value in values.items() if key != "algo"}
    known = _keys_of(algo)
    for key in overrides:
        if key not in known:
            hint = nearest(str(key), known)
            raise VariantError([*keys, key], f"is not a hyperparameter of {get_algorithm(algo).label}.{hint}")
    _check_values(keys, algo, overrides)
    return Variant(name, algo, overrides)


def _keys_of(algo: str) -> list[str]:
    """The hyperparameters that have an effect on an algorithm."""
    algorithm = get_algorithm(algo)
    without = () if algorithm.symmetric else REVERSE_LOSS
    return [key for key in keys_of(algorithm) if key not in without]


def _check_values(keys: Sequence[str | int], algo: str, overrides: dict[str, Any]) -> str | None:
    """Check a variant's values; return them validated, with the defaults, as text.

    None if whether they are valid depends on the environment's other hyperparameters.
    """
    try:
        return check_hyperparams(get_algorithm(algo), overrides).model_dump_json()
    except ValidationError as error:
        where, message = first_mistake(error)
        if where:
            raise VariantError([*keys, *where], message) from None
        return None  # an error without a key
