"""The algorithms that a run can name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from srl.errors import UserError, nearest


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm's name stands for."""

    #: As the command line takes it.
    name: str
    #: ``"a2c"`` or ``"ppo"``: which update. ``"own"`` for a class that the name imports.
    family: str
    #: Whether it has the reverse loss; those without train with ``beta=0``.
    symmetric: bool
    #: Whether it acts on discretised actions.
    discretised: bool

    @property
    def label(self) -> str:
        """As the paper writes it."""
        return self.name if self.is_own else self.name.upper()

    @property
    def is_own(self) -> bool:
        """Whether it is a class of another package, written ``package.module:Class``."""
        return self.family == "own"

    @property
    def hyperparams_name(self) -> str:
        """The name of its file in ``configs/hyperparams``, shared by plain and discretised actions.

        A class of another package has the environments of PPO's.
        """
        if self.is_own:
            return "ppo"
        return self.name.removeprefix("d") if self.discretised else self.name


ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for family in ("a2c", "ppo")
    for algorithm in (
        Algorithm(family, family, symmetric=False, discretised=False),
        Algorithm(f"s{family}", family, symmetric=True, discretised=False),
        Algorithm(f"d{family}", family, symmetric=False, discretised=True),
        Algorithm(f"ds{family}", family, symmetric=True, discretised=True),
    )
}


_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_own(name: object) -> bool:
    """Whether a name is that of a class of another package, ``package.module:Class``."""
    return isinstance(name, str) and _OWN.fullmatch(name) is not None


def get_algorithm(name: str) -> Algorithm:
    """The algorithm of that name, in any case, or a class, written ``package.module:Class``, unimported.

    :raises UserError: For an unknown name.
    """
    if is_own(name):
        return Algorithm(name, "own", symmetric=False, discretised=False)
    algorithm = ALGORITHMS.get(name.lower())
    if algorithm is None:
        raise UserError(
            f"There is no algorithm {name!r}. Known: {', '.join(ALGORITHMS)}.{nearest(name, ALGORITHMS)}"
        )
    return algorithm
