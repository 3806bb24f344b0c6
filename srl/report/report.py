"""A report: the tables, statistics and notes on a folder of runs, before they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from srl.errors import UserError, nearest
from srl.report.aggregate import Aggregate, describe_noise, make_aggregates
from srl.report.cells import Cell
from srl.report.comparison import Comparison, compare_pairs, family_sizes, task_name
from srl.report.intervals import CONFIDENCE, Array, Estimate, plain
from srl.report.normalization import NAMES, Normalization, Scale, Task, find_scales
from srl.report.scores import Scores, read_scores
from srl.report.significance import ALPHA, best_of_rows
from srl.report.statistics import BOOTSTRAP_SEED, DEFAULT_REPS, interquartile_mean
from srl.report.summary import describe_runs, summarize
from srl.report.tables import BOLD, Entry, Row, Table, rows_of, with_interval, with_p_values
from srl.report.trends import Trend, find_trends


@dataclass(frozen=True)
class Report:
    """The tables, statistics and notes of a report."""

    scores: Scores
    aggregates: list[Aggregate]
    comparisons: list[Comparison]
    trends: list[Trend]
    scales: Mapping[Task, Scale]
    #: The paper's table, the robust one, the probabilities of improvement, and trends with noise if there are
    #: any.
    tables: list[Table]
    #: Sentences on the runs and the results.
    summary: list[str]
    #: Lines on methods, and on runs that are left out of some results.
    notes: list[str]
    #: The arguments of :func:`make_report`.
    last: int
    normalization: Normalization
    reps: int


def make_report(
    root: Path,
    *,
    last: int = 1,
    normalization: Normalization = "auto",
    reps: int = DEFAULT_REPS,
    compare: Sequence[str] = (),
    show_step: Callable[[str], None] = lambda text: None,
) -> Report:
    """Read a folder of runs and compute all results; nothing is written.

    :param root: The folder of a sweep, or of a run.
    :param last: The score of a run is the mean over this many evaluations, the last ones.
    :param normalization: The normalization of scores of different environments.
    :param reps: Bootstrap samples of each interval.
    :param compare: Pairs to compare, as ``COLUMN:BASELINE``; by default those of the sweep.
    :param show_step: Called with a description of each step.
    :raises UserError: If there are no runs, a pair to compare does not exist, or a configuration file is
        malformed.
    """
    show_step("Reading runs")
    scores = read_scores(root, last=last)
    cells, columns = scores.cells, scores.columns
    names = {cell.column: cell.name for cell in cells}
    pairs = [_pair(text, list(dict.fromkeys(names[column] for column in columns))) for text in compare]
    for column, baseline in pairs:
        if (baseline, column) in pairs:
            # It would be counted twice in the correction for the number of tests
            raise UserError(
                f"--compare {column}:{baseline}: tests the same as {baseline}:{column}. Remove one."
            )
    show_step("Computing intervals over environments")
    scales, on_scales = find_scales(cells, normalization)
    aggregates, notes = make_aggregates(cells, scales, reps=reps)
    show_step("Comparing algorithms")
    comparisons = compare_pairs(cells, pairs or scores.compare, reps=reps)
    trends = find_trends(cells, list(dict.fromkeys((one.column, one.baseline) for one in comparisons)))
    show_step("Computing intervals of each environment")
    tables = [
        scores.table,
        _robust_table(cells, columns, aggregates, on_scales, reps),
        _improvement_table(comparisons),
        *([_trend_table(trends)] if trends else []),
    ]
    notes += [f"{line} The score does not depend on it." for run in scores.runs for line in run.minor_damage]
    for comparison in comparisons:
        where = f"{comparison.name}, {describe_noise(comparison.noise)}"
        notes += [f"Left out of {where}: {line}." for line in comparison.left_out]
    notes += [
        f"Left out of the trend of {one.name} with {one.kind} noise in {one.task[0]}: {one.left_out}."
        for one in trends
        if one.left_out
    ]
    return Report(
        scores,
        aggregates,
        comparisons,
        trends,
        scales,
        tables,
        [describe_runs(scores.runs, columns), *summarize(comparisons, cells, trends)],
        notes,
        last,
        normalization,
        reps,
    )


def _pair(text: str, columns: Sequence[str]) -> tuple[str, str]:
    """The column and the baseline of a text, of which both may contain colons."""
    parts = text.split(":")
    splits = [(":".join(parts[:n]), ":".join(parts[n:])) for n in range(1, len(parts))]
    pair = max(splits, key=lambda split: sum(name in columns for name in split), default=("", ""))
    if not all(pair) or pair[0] == pair[1]:
        raise UserError(f"--compare {text}: must be COLUMN:BASELINE, two columns such as sppo:ppo.")
    for name in pair:
        if name not in columns:
            hint = nearest(name, columns)
            raise UserError(f"There is no column {name!r} to compare. Known: {', '.join(columns)}.{hint}")
    return pair


def _robust_table(
    cells: Sequence[Cell],
    columns: Sequence[str],
    aggregates: Sequence[Aggregate],
    on_scales: Sequence[str],
    reps: int,
) -> Table:
    """Interquartile means with 95% intervals, per environment and over environments."""
    rows: list[Row] = []
    records: list[dict[str, Any]] = []
    over_envs = [
        {column: (figures["iqm"], one.scores[column]) for column, figures in one.figures.items()}
        for one in aggregates
    ]
    places = rows_of(cells, columns)
    in_env = [
        {
            column: (interquartile_mean(scores := np.array(cell.values)[:, None], reps=reps), scores)
            for column, cell in row.items()
            if cell.values
        }
        for _, row in places
    ]
    # Environment, noise, steps, number of environments, normalization
    keys: list[tuple[str, str, int | None, int, str]] = []
    for one in aggregates:
        n_envs = len(one.matched.tasks)
        name = f"{n_envs} environment{'' if n_envs == 1 else 's'}, {NAMES[one.kind]}"
        keys.append((name, one.noise, None, n_envs, one.kind))
    keys += [(*key, 1, "none") for key, _ in places]
    bests = _bests(over_envs) + _bests(in_env)
    for (env, noise, steps, n_envs, kind), figures, best in zip(keys, over_envs + in_env, bests, strict=True):
        entries = {
            column: Entry(
                with_interval(iqm, None if kind == "none" else 3),
                n=len(scores),
                best=column == best,
                value=iqm.value,
            )
            for column, (iqm, scores) in figures.items()
        }
        rows.append(Row(env, noise, steps, entries))
        records += [
            {
                # Rows over environments have no steps
                "environment": "" if steps is None else env,
                "n_environments": n_envs,
                "noise": noise,
                "n_timesteps": steps,
                "normalisation": kind,
                "column": column,
                "iqm": iqm.value,
                "low": iqm.low,
                "high": iqm.high,
                "n_seeds": len(scores),
                "best": column == best,
            }
            for column, (iqm, scores) in figures.items()
        ]
    title = "Interquartile mean [95% interval] of final scores, n seeds"
    matched = (
        "Rows over environments compare matched runs: the seeds that every algorithm has finished in each of "
        "the environments. Rows of one environment show all finished seeds."
    )
    bold = f"{BOLD} Rows over environments and rows of one environment are corrected separately."
    notes = [matched, *([bold] if len(columns) > 1 else []), *on_scales]
    return Table("robust", title, columns, rows, records, notes)


def _bests(rows: Sequence[Mapping[str, tuple[Estimate, Array]]]) -> list[str | None]:
    return best_of_rows(
        [{column: (iqm.value, scores) for column, (iqm, scores) in row.items()} for row in rows]
    )


def _improvement_table(comparisons: Sequence[Comparison]) -> Table:
    """Probabilities of improvement with 95% intervals and p-values, over environments and in each."""
    columns = list(dict.fromkeys(comparison.name for comparison in comparisons))
    rows: list[Row] = []
    records: list[dict[str, Any]] = []
    noises = list(dict.fromkeys(comparison.noise for comparison in comparisons))
    tasks = sorted({task for comparison in comparisons for task in comparison.per_task})
    places = [(None, noise) for noise in noises] + [(task, noise) for task in tasks for noise in noises]
    for task, noise in places:
        entries = {}
        for comparison in comparisons:
            improvement = comparison.overall if task is None else comparison.per_task.get(task)
            if comparison.noise != noise or improvement is None:
                continue
            # Bold is what is shown to differ from 1/2, whichever side it is on
            entries[comparison.name] = Entry(
                with_interval(improvement.estimate, 2),
                n=improvement.n_seeds,
                p_values=with_p_values(improvement.p_value, improvement.adjusted_p_value),
                best=improvement.shown != 0,
                value=improvement.estimate.value,
            )
            records.append(
                {
                    "environment": task[0] if task else "",
                    "n_environments": len(improvement.tasks),
                    "noise": noise,
                    "n_timesteps": task[1] if task else None,
                    "column": comparison.column,
                    "baseline": comparison.baseline,
                    "probability": improvement.estimate.value,
                    "low": improvement.estimate.low,
                    "high": improvement.estimate.high,
                    "n_seeds": improvement.n_seeds,
                    "p_value": improvement.p_value,
                    "adjusted_p_value": improvement.adjusted_p_value,
                    "shown": improvement.shown,
                }
            )
        if entries:
            name = "all environments in common" if task is None else task_name(task, tasks)
            rows.append(Row(name, noise, task[1] if task else None, entries))
    title = "Probability of improvement [95% interval] over the baseline, n matched seeds on each side"
    n_overall, n_single = family_sizes(comparisons)
    families = f"{n_single} in all"
    if n_overall:
        families = (
            f"separately for the {n_overall} over several environments and the {n_single} in one environment"
        )
    note = (
        "p: two-sided p-value of the exact permutation test stratified by environment. Adjusted: by Holm's "
        f"method for the comparisons of all pairs and noises, {families}. Bold: a difference is shown "
        f"(adjusted p at most {ALPHA:g}). The bootstrap intervals play no part in this."
    )
    return Table("improvement", title, columns, rows, records, [note] if rows else [])


def _trend_table(trends: Sequence[Trend]) -> Table:
    """Correlations between the noise and the difference of two columns."""
    rows: dict[tuple[Task, str], dict[str, Entry]] = {}
    for trend in trends:
        rows.setdefault((trend.task, trend.kind), {})[trend.name] = Entry(
            "-" if np.isnan(trend.correlation) else f"{trend.correlation:.2f}",
            n=len(trend.seeds),
            p_values=with_p_values(trend.p_value, trend.adjusted_p_value),
            best=trend.shown != 0,
            value=trend.correlation,
        )
    tasks = [trend.task for trend in trends]
    records = [
        {
            "environment": trend.task[0],
            "n_timesteps": trend.task[1],
            "noise": trend.kind,
            "levels": " ".join(f"{level:g}" for level in trend.levels),
            "column": trend.column,
            "baseline": trend.baseline,
            "correlation": trend.correlation,
            "n_seeds": len(trend.seeds),
            "p_value": trend.p_value,
            "adjusted_p_value": trend.adjusted_p_value,
            "shown": trend.shown,
        }
        for trend in trends
    ]
    n_tests = sum(not np.isnan(trend.p_value) for trend in trends)
    return Table(
        "trend",
        "Trend with noise: rank correlation between its parameter and the difference to the baseline, n "
        "matched seeds",
        list(dict.fromkeys(trend.name for trend in trends)),
        [
            Row(task_name(task, tasks), kind, task[1], entries)
            for (task, kind), entries in sorted(rows.items(), key=lambda row: row[0])
        ],
        records,
        [
            "Spearman's correlation over seeds and noise levels, runs without noise included, between the "
            "parameter of the noise and the difference of the two scores with the same seed and noise. p: "
            "two-sided p-value of the test that permutes noise levels within seeds. Adjusted: by Holm's "
            f"method for the {n_tests} trends. Bold: a trend is shown (adjusted p at most {ALPHA:g})."
        ],
    )


def statistics(report: Report) -> dict[str, Any]:
    """All results with the scores that they were computed from, as plain data for JSON.

    Score matrices have the shape (n_seeds, n_environments).
    """
    n_comparisons = family_sizes(report.comparisons)
    return {
        "format": 1,
        "last": report.last,
        "normalize": report.normalization,
        "reps": report.reps,
        "bootstrap_seed": BOOTSTRAP_SEED,
        "confidence": CONFIDENCE,
        "significance": ALPHA,
        "n_comparisons": dict(zip(("several_environments", "one_environment"), n_comparisons, strict=True)),
        "runs": dict(Counter(run.state for run in report.scores.runs)),
        "scales": [
            {"environment": env, "n_timesteps": steps, "kind": s.kind, "zero": s.zero, "one": s.one}
            for (env, steps), s in report.scales.items()
        ],
        "aggregates": [
            {
                "noise": aggregate.noise,
                "normalisation": aggregate.kind,
                "environments": [list(task) for task in aggregate.matched.tasks],
                "seeds": list(aggregate.matched.seeds),
                "left_out": list(aggregate.matched.left_out),
                "columns": {
                    column: {
                        "scores": aggregate.matched.scores[column].tolist(),
                        "normalised_scores": aggregate.scores[column].tolist(),
                        **{name: _estimate(estimate) for name, estimate in figures.items()},
                        "profile": [_estimate(estimate) for estimate in aggregate.profiles[column]],
                    }
                    for column, figures in aggregate.figures.items()
                },
                "profile_thresholds": aggregate.thresholds.tolist(),
            }
            for aggregate in report.aggregates
        ],
        **{
            table.name: [{key: plain(value) for key, value in record.items()} for record in table.records]
            for table in report.tables
        },
        "comparisons": [_comparison(comparison) for comparison in report.comparisons],
        "summary": report.summary,
        "notes": report.notes,
        "left_out": report.scores.left_out,
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    overall = comparison.overall
    return {
        "noise": comparison.noise,
        "column": comparison.column,
        "baseline": comparison.baseline,
        "environments": [list(task) for task in overall.tasks] if overall else [],
        "seeds": list(comparison.seeds),
        "left_out": list(comparison.left_out),
        "probability_of_improvement": _estimate(overall.estimate) if overall else None,
        "p_value": plain(overall.p_value) if overall else None,
        "adjusted_p_value": plain(overall.adjusted_p_value) if overall else None,
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {name: plain(getattr(estimate, name)) for name in ("value", "low", "high")}
