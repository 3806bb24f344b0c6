"""The algorithms that a run can name."""

from __future__ import annotations

from dataclasses import dataclass

from srl.errors import UserError, nearest


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm's name stands for."""

    #: As the command line takes it.
    name: str
    #: ``"a2c"`` or ``"ppo"``: which update.
    family: str
    #: Whether it has the reverse loss; those without train with ``beta=0``.
    symmetric: bool
    #: Whether it acts on discretized actions.
    discretised: bool

    @property
    def label(self) -> str:
        """As the paper writes it."""
        return self.name.upper()

    @property
    def hyperparams_name(self) -> str:
        """The name of its file in ``configs/hyperparams``, shared by plain and discretized actions."""
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


def get_algorithm(name: str) -> Algorithm:
    """The algorithm of that name, in any case.

    :raises UserError: For an unknown name.
    """
    algorithm = ALGORITHMS.get(name.lower())
    if algorithm is None:
        raise UserError(
            f"There is no algorithm {name!r}. Known: {', '.join(ALGORITHMS)}.{nearest(name, ALGORITHMS)}"
        )
    return algorithm
