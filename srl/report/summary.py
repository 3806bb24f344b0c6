"""Sentences on the results of a report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from srl.config.algorithms import get_algorithm
from srl.report.aggregate import describe_noise
from srl.report.cells import Cell
from srl.report.comparison import Comparison, Improvement, family_sizes, task_name
from srl.report.normalization import Task
from srl.report.runs import UNFINISHED, Run
from srl.report.significance import ALPHA
from srl.report.tables import noise_order, p_text, with_interval
from srl.report.trends import Trend

#: Coverage in percent of 95% bootstrap intervals of the interquartile mean, by the number of normally
#: distributed scores; simulated, see docs/reports.md.
_COVERAGE = {2: 49, 3: 74, 4: 87, 5: 89, 7: 92, 10: 93, 20: 94}


def describe_runs(runs: Sequence[Run], columns: Sequence[str]) -> str:
    """A sentence on runs and their states, algorithms, environments, noises and seeds."""
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


def summarize(
    comparisons: Sequence[Comparison], cells: Sequence[Cell], trends: Sequence[Trend] = ()
) -> list[str]:
    """Sentences on comparisons and trends, with caveats."""
    lines = [line for comparison in comparisons for line in _describe(comparison)]
    if not comparisons:
        lines.append(
            "There are no finished runs of a column and of its baseline under the same noise: nothing is "
            "compared."
        )
    lines += _noise_effects(comparisons)
    lines += _describe_trends(trends)
    return lines + _caveats(comparisons, cells)


def _describe(comparison: Comparison) -> list[str]:
    pair = f"{comparison.column} and {comparison.baseline}"
    where = describe_noise(comparison.noise)
    where = where[0].upper() + where[1:]
    overall = comparison.overall
    if overall is None:
        return [f"{where}, {pair} have no seed and environment in common that both have finished."]
    lines = [f"{where}, {_verdict(comparison, overall)}"]
    if len(comparison.per_task) > 1:
        lines.append(_describe_tasks(comparison))
    return lines


def _verdict(comparison: Comparison, improvement: Improvement) -> str:
    column, baseline = comparison.column, comparison.baseline
    figure = f"a run of {column} scores above one of {baseline} with probability {_figure(improvement)}"
    if not improvement.can_show:
        return f"{column} and {baseline} have too few runs to show a difference: {figure}."
    if improvement.shown == 0:
        return f"no difference between {column} and {baseline} is shown: {figure}."
    higher = f"{column} scores {'higher' if improvement.shown > 0 else 'lower'} than {baseline}"
    n_envs = len(improvement.tasks)
    if n_envs == 1:
        return f"{higher}: {figure}."
    verdicts = [one.shown for one in comparison.per_task.values()]
    if improvement.shown in verdicts:
        n_alone = verdicts.count(improvement.shown)
        return f"{higher} over {n_envs} environments together, and in {n_alone} of them alone: {figure}."
    alone = "the opposite is shown in some of them" if any(verdicts) else "in none of them alone"
    return (
        f"a difference between {column} and {baseline} is shown over {n_envs} environments together, but "
        f"{alone}: {figure}."
    )


def _figure(improvement: Improvement) -> str:
    """The probability of improvement with its interval, p-value and extent."""
    estimate, (env, _), n_envs = improvement.estimate, improvement.tasks[0], len(improvement.tasks)
    details = [f"95% interval {estimate.low:.2f} to {estimate.high:.2f}"] if estimate.has_interval else []
    if not math.isnan(improvement.adjusted_p_value):
        details.append(f"adjusted p {p_text(improvement.adjusted_p_value)}")
    where = env if n_envs == 1 else _count(n_envs, "environment")
    details.append(f"{where}, {_count(improvement.n_seeds, 'seed')} each")
    return f"{estimate.value:.2f} ({'; '.join(details)})"


def _describe_tasks(comparison: Comparison) -> str:
    by_verdict: dict[int, list[str]] = {1: [], -1: [], 0: []}
    tasks = list(comparison.per_task)
    for task, improvement in comparison.per_task.items():
        by_verdict[improvement.shown].append(task_name(task, tasks))
    higher, lower, neither = (_listed(by_verdict[verdict]) for verdict in (1, -1, 0))
    few = sum(not improvement.can_show for improvement in comparison.per_task.values())
    return (
        f"By environment, {describe_noise(comparison.noise)}: of {len(tasks)}, {comparison.column} "
        f"is shown to score higher than {comparison.baseline} in {higher}, lower in {lower}, and neither "
        f"in {neither}.{f' {few} of them have too few runs to show a difference.' if few else ''}"
    )


def _noise_effects(comparisons: Sequence[Comparison]) -> list[str]:
    """Improvements with noise next to those without."""
    lines = []
    clean = {comparison.name: comparison.overall for comparison in comparisons if comparison.noise == "none"}
    for comparison in comparisons:
        without, noisy = clean.get(comparison.name), comparison.overall
        if comparison.noise == "none" or without is None or noisy is None:
            continue
        with_noise, clean_figure = (with_interval(one.estimate, 2) for one in (noisy, without))
        lines.append(
            f"The probability of improvement of {comparison.name} is {with_noise} "
            f"{describe_noise(comparison.noise)} and {clean_figure} without noise. Whether the two differ is "
            "not tested."
        )
    return lines


def _describe_trends(trends: Sequence[Trend]) -> list[str]:
    by_pair: dict[tuple[str, str], list[Trend]] = {}
    for trend in trends:
        by_pair.setdefault((trend.name, trend.kind), []).append(trend)
    lines = []
    for (name, kind), own in by_pair.items():
        tasks = [trend.task for trend in own]
        grows, falls, neither = (
            [task_name(trend.task, tasks) for trend in own if trend.shown == verdict]
            for verdict in (1, -1, 0)
        )
        lines.append(
            f"The difference of {name} is shown to grow with {kind} noise in {_listed(grows)} of "
            f"{_count(len(own), 'environment')}, to fall in {_listed(falls)}, and neither in "
            f"{_listed(neither)}."
        )
    return lines


def _listed(names: Sequence[str]) -> str:
    """The number of names, and the names if they are few."""
    return f"{len(names)}{f' ({_join(names)})' if 0 < len(names) <= 4 else ''}"


def _caveats(comparisons: Sequence[Comparison], cells: Sequence[Cell]) -> list[str]:
    lines = []
    n_overall, n_single = family_sizes(comparisons)
    if n_overall + n_single > 1:
        lines.append(
            f"A difference is called shown if its adjusted p-value is at most {ALPHA:g}. P-values are "
            f"adjusted by Holm's method, separately for {_count(n_overall, 'comparison')} over several "
            f"environments and {_count(n_single, 'comparison')} in one environment."
        )
    envs = [Counter(env for env, _ in one.overall.tasks) for one in comparisons if one.overall]
    repeated = sorted({env for counts in envs for env, n in counts.items() if n > 1})
    if repeated:
        lines.append(
            f"{_join(repeated)}: runs of several lengths are counted as several environments. With the same "
            "seeds they share random streams, so that p-values over several environments are too small. "
            "Report each length on its own."
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
            f"Some results use only {_count(fewest, 'seed')}. Bootstrap intervals of few seeds are too "
            f"narrow: {extent}.{' With 10 scores it is 93.' if known else ''}"
        )
    if any(cell.count(state) for cell in cells for state in UNFINISHED):
        lines.append(
            "Not all runs are finished; figures and findings may change with those that are missing."
        )
    confounded = [comparison for comparison in comparisons if _differs_in_coefficients(comparison, cells)]
    if confounded:
        names = dict.fromkeys(comparison.name for comparison in confounded)
        lines.append(
            f"{_join(list(names))}: the policy gradient of SPPO is PPO's times c = alpha + beta |z|, and the "
            "baseline here has another balance of c with vf_coef, ent_coef and max_grad_norm. A difference "
            "does not tell the reverse loss from other coefficients; a baseline with these three and Adam's "
            "eps divided by c would."
        )
    return lines


def _differs_in_coefficients(comparison: Comparison, cells: Sequence[Cell]) -> bool:
    """Whether a PPO and an SPPO differ by more than a scale of the loss in some environment."""
    scaled: dict[tuple[str, Task], list[float]] = {}
    for cell in cells:
        spec = next((run.spec for run in cell.runs if run.spec is not None), None)
        is_ppo = get_algorithm(cell.algo).family in ("ppo", "llm-ppo")
        if cell.noise != comparison.noise or spec is None or not is_ppo:
            continue
        loss = spec.hyperparams
        factor = {"rce": abs(loss.z), "mae": 2.0}.get(loss.reverse_loss)
        if factor is None or not getattr(loss, "importance_weighting", True):
            continue
        c = loss.alpha + loss.beta * factor
        scaled[cell.column, (cell.env, cell.n_timesteps)] = [
            coefficient / c for coefficient in (loss.vf_coef, loss.ent_coef, loss.max_grad_norm)
        ]
    pairs = [((comparison.column, task), (comparison.baseline, task)) for task in comparison.per_task]
    return any(
        not np.allclose(scaled[one], scaled[other], rtol=1e-3)
        for one, other in pairs
        if one in scaled and other in scaled
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _join(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
