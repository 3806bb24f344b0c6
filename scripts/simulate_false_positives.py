"""Simulate how often a report shows a difference between equal algorithms, and print tables in Markdown.

    python scripts/simulate_false_positives.py

It also prints the power against a real difference, and how many runs can show a difference at all. The tables
are in docs/reports.md. The same seed gives the same tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from srl.report.intervals import Array
from srl.report.significance import (
    ALPHA,
    doubled_ranks,
    holm,
    lowest_sum,
    null_distribution,
    smallest_p_value,
)

N_SEEDS = (2, 3, 4, 5, 7, 10, 20, 30)
N_ENVS = (1, 2, 3, 4, 6, 9, 12)
#: Comparisons in a family, corrected by Holm's method.
N_COMPARISONS = 4

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Normally distributed scores."""
    return generator.normal(size=shape)


def skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Gamma-distributed scores: most are low, few are very high."""
    return generator.gamma(0.3, size=shape)


def tied(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Scores with a maximum that 80% of the runs reach, as in CartPole; the others are whole numbers."""
    return np.where(generator.random(shape) < 0.8, 500.0, generator.integers(100, 500, shape))


def shared_streams(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Normal scores with a correlation of 0.8 between the two runs of one seed in one environment."""
    *families, _, n_seeds, n_envs = shape
    common = generator.normal(size=(*families, 1, n_seeds, n_envs))
    scores: Array = np.sqrt(0.8) * common + np.sqrt(0.2) * generator.normal(size=shape)
    return scores


def spread(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Normal scores; those of X have three times the standard deviation. The null hypothesis is false."""
    scores = generator.normal(size=shape)
    scores[..., 0, :, :] *= 3.0
    return scores


def shifted(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Normal scores; X scores higher by one standard deviation in every environment."""
    scores = generator.normal(size=shape)
    scores[..., 0, :, :] += 1.0
    return scores


@dataclass(frozen=True)
class Rates:
    """Shares of comparisons in which a difference is shown."""

    #: Of the simulated comparisons, each alone.
    simulated: float
    #: Of the simulated families, those with a difference after Holm's correction.
    simulated_family: float
    #: The exact rate given the pooled scores of each comparison, averaged over comparisons.
    exact: float
    #: The same for families.
    exact_family: float


def simulate(draw: Draw, n_seeds: int, n_envs: int, n_families: int, seed: int = 0) -> Rates:
    """Compare X and Y in independent families of comparisons.

    :param draw: Draws scores of shape (n_families, N_COMPARISONS, 2, n_seeds, n_envs), X before Y.
    :param n_seeds: Runs of X, and of Y, in each environment.
    :param n_envs: Environments.
    :param n_families: Families to simulate.
    :param seed: Of the random generator.
    """
    generator = np.random.default_rng([seed, n_seeds, n_envs])
    scores = draw(generator, (n_families, N_COMPARISONS, 2, n_seeds, n_envs))
    pooled = scores.reshape(n_families * N_COMPARISONS, 2 * n_seeds, n_envs)
    ranks = doubled_ranks(pooled.swapaxes(0, 1))
    sums = ranks[:n_seeds].sum(axis=(0, 2))
    p_values, rates, family_rates = np.empty((3, len(sums)))
    for number, own in enumerate(np.sort(ranks, axis=0).transpose(1, 2, 0).tolist()):
        columns = tuple(sorted(map(tuple, own)))
        distribution, table = null_distribution(columns, n_seeds)
        p_values[number] = table[sums[number] - lowest_sum(columns, n_seeds)]
        rates[number] = distribution[table <= ALPHA].sum()
        # Holm's method shows a difference if the smallest p-value is at most this
        family_rates[number] = distribution[table <= ALPHA / N_COMPARISONS].sum()
    by_family = p_values.reshape(n_families, N_COMPARISONS)
    shown = [min(holm(family)) <= ALPHA for family in by_family.tolist()]
    return Rates(
        float(np.mean(p_values <= ALPHA)),
        float(np.mean(shown)),
        float(rates.mean()),
        float(np.mean(1 - np.prod(1 - family_rates.reshape(by_family.shape), axis=1))),
    )


def table(title: str, cell: Callable[[int, int], str]) -> str:
    """A table with a row for each number of seeds and a column for each number of environments."""
    lines = [
        f"{title}:\n",
        "| seeds | " + " | ".join(f"{n} env{'s' if n > 1 else ''}" for n in N_ENVS) + " |",
        "| ---: |" + " ---: |" * len(N_ENVS),
        *(f"| {n} | " + " | ".join(cell(n, n_envs) for n_envs in N_ENVS) + " |" for n in N_SEEDS),
    ]
    return "\n".join(lines) + "\n"


def percent(*shares: float) -> str:
    """Shares in percent."""
    return " / ".join(f"{100 * share:.1f}" for share in shares)


def attainable(n_seeds: int, n_envs: int) -> str:
    """The smallest p-value, and among how many comparisons it is at most ``ALPHA`` after correction."""
    smallest = smallest_p_value(n_seeds, n_seeds, n_envs)
    n = int(ALPHA / smallest)
    return f"{smallest:.2g} ({n if n < 1000 else '> 999'})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", type=int, default=5000, help="of each cell (default: 5000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random generator (default: 0)")
    options = parser.parse_args(arguments)
    if options.families < 1:
        parser.error(f"--families {options.families}: must be at least 1.")

    def simulate_all(draw: Draw) -> dict[tuple[int, int], Rates]:
        cells = [(n_seeds, n_envs) for n_seeds in N_SEEDS for n_envs in N_ENVS]
        return {cell: simulate(draw, *cell, options.families, options.seed) for cell in cells}

    def show(title: str, rates: dict[tuple[int, int], Rates], *names: str) -> None:
        print(
            table(title, lambda *cell: percent(*(getattr(rates[cell], name) for name in names))), flush=True
        )

    both = f"percent of comparisons / percent of families of {N_COMPARISONS} after Holm's correction"
    for draw in (normal, skewed, tied):
        rates = simulate_all(draw)
        show(f"Equal algorithms, {draw.__name__} scores, exact: {both}", rates, "exact", "exact_family")
        show(f"The same, simulated: {both}", rates, "simulated", "simulated_family")
    rates = simulate_all(shared_streams)
    show(
        f"Equal algorithms, shared random streams, simulated: {both}", rates, "simulated", "simulated_family"
    )
    show(
        "X has three times the standard deviation: percent of comparisons", simulate_all(spread), "simulated"
    )
    show("X higher by one standard deviation: percent of comparisons", simulate_all(shifted), "simulated")
    print(table("Smallest p-value (and the largest number of comparisons in which it is enough)", attainable))


if __name__ == "__main__":
    main()
