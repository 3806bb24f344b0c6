"""The algorithms of srl by name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from srl.errors import UserError, nearest


@dataclass(frozen=True)
class Algorithm:
    """An algorithm."""

    #: Its name on the command line.
    name: str
    #: ``"a2c"`` or ``"ppo"``: which update. ``"llm-ppo"`` and ``"llm-grpo"`` for those of language models,
    #: ``"own"`` for a class that the name imports.
    family: str
    #: Whether it has the reverse loss; without it, ``beta=0``.
    symmetric: bool
    #: Whether it acts on discretized actions.
    discretized: bool

    @property
    def label(self) -> str:
        """Its name in the paper."""
        return self.name if self.is_own else self.name.upper()

    @property
    def is_own(self) -> bool:
        """Whether it is a class of another package, written ``package.module:Class``."""
        return self.family == "own"

    @property
    def symmetric_name(self) -> str:
        """The algorithm with the reverse loss, of the same family."""
        prefix = "llm-" if self.on_language_models else "d" * self.discretized
        return f"{prefix}s{self.family.removeprefix('llm-')}"

    @property
    def on_language_models(self) -> bool:
        """Whether it trains language models (:mod:`srl.llm`)."""
        return self.family.startswith("llm-")

    @property
    def hyperparams_name(self) -> str:
        """The name of its file in ``configs/hyperparams``, shared by plain and discretized actions.

        A class of another package has the environments of PPO's.
        """
        if self.is_own:
            return "ppo"
        return self.name.removeprefix("d") if self.discretized else self.name


ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for family in ("a2c", "ppo")
    for algorithm in (
        Algorithm(family, family, symmetric=False, discretized=False),
        Algorithm(f"s{family}", family, symmetric=True, discretized=False),
        Algorithm(f"d{family}", family, symmetric=False, discretized=True),
        Algorithm(f"ds{family}", family, symmetric=True, discretized=True),
    )
} | {
    f"llm-{prefix}{name}": Algorithm(f"llm-{prefix}{name}", f"llm-{name}", bool(prefix), discretized=False)
    for name in ("ppo", "grpo")
    for prefix in ("", "s")
}


_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_own(name: object) -> bool:
    """Whether a name is that of a class of another package, ``package.module:Class``."""
    return isinstance(name, str) and _OWN.fullmatch(name) is not None


def get_algorithm(name: str) -> Algorithm:
    """The algorithm of a name, in any case, or of a class ``package.module:Class``, which is not imported.

    :raises UserError: For an unknown name.
    """
    if is_own(name):
        return Algorithm(name, "own", symmetric=False, discretized=False)
    algorithm = ALGORITHMS.get(name.lower())
    if algorithm is None:
        known = [name for name, each in ALGORITHMS.items() if not each.on_language_models]
        raise UserError(f"There is no algorithm {name!r}. Known: {', '.join(known)}.{nearest(name, known)}")
    return algorithm


def get_environment_algorithm(name: str) -> Algorithm:
    """The algorithm of a name, which must train in environments.

    :raises UserError: For an unknown name, and for an algorithm of language models.
    """
    algorithm = get_algorithm(name)
    if algorithm.on_language_models:
        short = algorithm.name.removeprefix("llm-")
        raise UserError(f"{algorithm.name} trains language models: srl llm train TASK --algo {short}.")
    return algorithm


def differ_in_reverse_loss(algo: str, baseline: str) -> bool:
    """Whether an algorithm is symmetric and its baseline the same one without the reverse loss."""
    one, other = get_algorithm(algo), get_algorithm(baseline)
    alike = (one.family, one.discretized) == (other.family, other.discretized)
    return one.symmetric and not other.symmetric and alike
