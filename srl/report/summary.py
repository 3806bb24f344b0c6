"""What the numbers say, in words, and no more than they show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from srl.experiment.algorithms import get_algorithm
from srl.report.aggregate import describe_noise
from srl.report.comparison import Comparison, Improvement, task_name
from srl.report.normalisation import Task
from srl.report.runs import UNFINISHED, Cell, Run
from srl.report.tables import noise_order

#: In how many of 100 cases a 95% bootstrap interval of the interquartile mean of so many normally distributed
#: scores holds the true one; simulated, see docs/reports.md.
_COVERAGE = {2: 49, 3: 74, 4: 87, 5: 89, 7: 92, 10: 93, 20: 94}


def describe_runs(runs: Sequence[Run], columns: Sequence[str]) -> str:
    """What there is: runs and their states, algorithms, environments, noises, seeds."""
    states = Counter(run.state for run in runs)
    unfinished = [f"{states[state]:,} {state}" for state in UNFINISHED if states[state]]
    finished = f"{states['done']:,} of {len(runs):,} runs are finished"
    noises = sorted({run.noise for run in runs}, key=noise_order)
    envs = len({run.env for run in runs})
    seeds = len({run.seed for run in runs})
    return (
        f"{finished}{' (' + ', '.join(unfinished) + ')' if unfinished else ''}: {_join(columns)} on "
        f"{_count(envs, 'environment')}, {_join([describe_noise(noise) for noise in noises])}, "
        f"with {_count(seeds, 'seed')}."
    )


def summarise(comparisons: Sequence[Comparison], cells: Sequence[Cell]) -> list[str]:
    """Sentences on each comparison, and on what they leave open.

    :param comparisons: Symmetric algorithms beside their baselines.
    :param cells: All that is reported.
    """
    lines = [line for comparison in comparisons for line in _describe(comparison)]
    if not comparisons:
        lines.append(
            "There are no finished runs of a symmetric algorithm and of its baseline under the same noise: "
            "nothing is compared."
        )
    lines += _noise_effects(comparisons)
    return lines + _caveats(comparisons, cells)


def _describe(comparison: Comparison) -> list[str]:
    pair = f"{comparison.symmetric} and {comparison.baseline}"
    where = _capital(describe_noise(comparison.noise))
    overall = comparison.overall
    if overall is None:
        return [f"{where}, {pair} have no seed and environment in common that both have finished."]
    lines = [f"{where}, {_verdict(comparison, overall)}"]
    if len(comparison.per_task) > 1:
        lines.append(_describe_tasks(comparison))
    return lines


def _verdict(comparison: Comparison, improvement: Improvement) -> str:
    symmetric, baseline = comparison.symmetric, comparison.baseline
    estimate = improvement.estimate
    extent = f"{_count(len(improvement.tasks), 'environment')}, {_count(improvement.n_seeds, 'seed')} each"
    if len(improvement.tasks) == 1:
        extent = f"{improvement.tasks[0][0]}, {_count(improvement.n_seeds, 'seed')} each"
    interval = f"95% interval {estimate.low:.2f} to {estimate.high:.2f}; " if estimate.has_interval else ""
    figure = (
        f"a run of {symmetric} scores above one of {baseline} with probability {estimate.value:.2f} "
        f"({interval}{extent})"
    )
    if not improvement.can_show:
        return f"{figure}; these are too few runs to show a difference, however the scores fall."
    if not estimate.has_interval:
        return f"{figure}; from one seed there is no interval, so that no difference is shown."
    if improvement.shown == 0:
        return f"no difference between {symmetric} and {baseline} is shown: {figure}, and 0.5 is within it."
    return f"{symmetric} scores {'higher' if improvement.shown > 0 else 'lower'} than {baseline}: {figure}."


def _describe_tasks(comparison: Comparison) -> str:
    by_verdict: dict[int, list[str]] = {1: [], -1: [], 0: []}
    tasks = list(comparison.per_task)
    for task, improvement in comparison.per_task.items():
        by_verdict[improvement.shown].append(task_name(task, tasks))
    # A list of many says less than their number, and the table has them
    higher, lower, neither = (
        f"{len(names)}{f' ({_join(names)})' if 0 < len(names) <= 4 else ''}"
        for names in (by_verdict[1], by_verdict[-1], by_verdict[0])
    )
    return (
        f"By environment, {describe_noise(comparison.noise)}: of {len(tasks)}, {comparison.symmetric} "
        f"is shown to score higher than {comparison.baseline} in {higher}, lower in {lower}, and neither "
        f"in {neither}."
    )


def _noise_effects(comparisons: Sequence[Comparison]) -> list[str]:
    """Whether an improvement is larger or smaller with noise than without."""
    lines = []
    clean = {comparison.name: comparison.overall for comparison in comparisons if comparison.noise == "none"}
    for comparison in comparisons:
        without, noisy = clean.get(comparison.name), comparison.overall
        if comparison.noise == "none" or without is None or noisy is None:
            continue
        both = (without, noisy)
        if not all(one.can_show and one.estimate.has_interval for one in both):
            continue
        larger = noisy.estimate.low > without.estimate.high
        smaller = noisy.estimate.high < without.estimate.low
        shown = "larger" if larger else "smaller"
        finding = (
            f"is {shown} than without it" if larger or smaller else "is not shown to differ from that without"
        )
        lines.append(
            f"The probability of improvement of {comparison.name} {describe_noise(comparison.noise)} "
            f"{finding}: {_interval(noisy)} with, {_interval(without)} without."
        )
    return lines


def _interval(improvement: Improvement) -> str:
    estimate = improvement.estimate
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _caveats(comparisons: Sequence[Comparison], cells: Sequence[Cell]) -> list[str]:
    lines = []
    if any(len(comparison.per_task) > 1 for comparison in comparisons):
        lines.append(
            "Findings are at 95% each and not corrected for their number: of 20 comparisons of equals, one "
            "is expected to show a difference."
        )
    numbers = [len(cell.values) for cell in cells if cell.values]
    if numbers:
        numbers += [comparison.overall.n_seeds for comparison in comparisons if comparison.overall]
    fewest = min(numbers, default=0)
    if 0 < fewest < 10:
        known = max((n for n in _COVERAGE if n <= fewest), default=0)
        extent = (
            f"a 95% interval of {known} normally distributed scores holds their true interquartile mean in "
            f"about {_COVERAGE[known]} of 100 cases"
            if known
            else "a single run has none at all"
        )
        lines.append(
            f"Some figures stand on {_count(fewest, 'seed')} only. Bootstrap intervals of few seeds are too "
            f"narrow: {extent}.{' With 10 scores it is 93.' if known else ''}"
        )
    if any(cell.count(state) for cell in cells for state in UNFINISHED):
        lines.append(
            "Not all runs are finished; figures and findings may change with those that are missing."
        )
    confounded = [comparison for comparison in comparisons if _differs_in_coefficient(comparison, cells)]
    if confounded:
        names = dict.fromkeys(comparison.name for comparison in confounded)
        lines.append(
            f"{_join(list(names))}: the policy gradient of SPPO is PPO's times alpha + beta |z|, and the "
            "baseline here has another coefficient. A difference does not tell the reverse loss from a "
            "larger policy coefficient; a baseline with --alpha of that size would."
        )
    return lines


def _differs_in_coefficient(comparison: Comparison, cells: Sequence[Cell]) -> bool:
    """Whether the policy coefficients of a PPO and an SPPO differ in some environment."""
    coefficients: dict[tuple[str, Task], float] = {}
    for cell in cells:
        spec = next((run.spec for run in cell.runs if run.spec is not None), None)
        if cell.noise != comparison.noise or spec is None or get_algorithm(cell.algo).family != "ppo":
            continue
        loss = spec.hyperparams
        if not getattr(loss, "importance_weighting", True):
            continue
        weight = 2.0 if loss.reverse_loss == "mae" else abs(loss.z)
        coefficients[cell.column, (cell.env, cell.n_timesteps)] = loss.alpha + loss.beta * weight
    return any(
        abs(coefficients[comparison.symmetric, task] - coefficients[comparison.baseline, task]) > 1e-9
        for task in comparison.per_task
        if (comparison.symmetric, task) in coefficients and (comparison.baseline, task) in coefficients
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _join(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
