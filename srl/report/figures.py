"""Figures of a report.

``columns`` are all columns of the report: a column has the same style in every figure.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from srl.report.ablation import Ablation
from srl.report.aggregate import Aggregate, describe_noise
from srl.report.comparison import Comparison, task_name
from srl.report.curves import Curve
from srl.report.intervals import Array, Estimate
from srl.report.markup import one_line
from srl.report.normalization import NAMES, Task
from srl.report.statistics import AGGREGATES
from srl.report.style import Style, pair_styles, style, styled
from srl.report.trends import Trend, noise_level

#: Maximum number of values of a hyperparameter with a tick each.
_MAX_TICKS = 8
#: Inches of a letter.
_LETTER = 0.075

_AGGREGATE_TITLES = {
    "median": "Median",
    "iqm": "IQM",
    "mean": "Mean",
    "optimality_gap": "Optimality gap (lower is better)",
}


@styled
def draw_curves(
    curves: Mapping[str, Mapping[str, Curve]],
    columns: Sequence[str],
    *,
    title: str,
    label: str,
    suffixes: Mapping[str, str] | None = None,
) -> Figure:
    """Curves over training, with a panel for each noise, side by side.

    :param curves: By noise, then by column.
    :param label: The label of the y axis.
    :param suffixes: Texts after the names of columns in the legend.
    """
    figure, panels = _panels(1, len(curves), width=3.4, height=2.7)
    handles: dict[str, Any] = {}
    for axes, (noise, by_column) in zip(panels[0], curves.items(), strict=True):
        for column in (name for name in columns if name in by_column):
            drawn = _draw_curve(axes, by_column[column], style(column, columns))
            own = [other[column] for other in curves.values() if column in other]
            handles.setdefault(f"{column}{(suffixes or {}).get(column, '')} ({_seeds(own)})", drawn)
        axes.set_title(one_line(describe_noise(noise)), loc="left")
        axes.set_xlabel("training steps")
        axes.xaxis.set_major_formatter(_Numbers())
        axes.yaxis.set_major_formatter(_Numbers())
    _share(panels[0], "ylim")
    panels[0][0].set_ylabel(label)
    _head(figure, title, handles)
    return figure


@styled
def draw_ablation(ablation: Ablation, columns: Sequence[str], *, title: str) -> Figure:
    """Scores against a hyperparameter, with a panel for each noise, side by side.

    Baselines are horizontal lines.
    """
    figure, panels = _panels(1, len(ablation.lines), width=3.4, height=2.7)
    handles: dict[str, Any] = {}
    for axes, (noise, lines) in zip(panels[0], ablation.lines.items(), strict=True):
        for line in sorted(lines, key=lambda line: columns.index(line.column)):
            widths = np.abs([np.subtract(line.means, ends) for ends in (line.lows, line.highs)])
            drawn = _draw_points(axes, line.values, line.means, widths.tolist(), style(line.column, columns))
            handles.setdefault(line.label, drawn)
        for baseline in ablation.baselines[noise]:
            look = style(baseline.column, columns)
            axes.axhspan(baseline.low, baseline.high, color=look.color, alpha=0.18, linewidth=0)
            drawn = axes.axhline(baseline.mean, color=look.color, linestyle=look.dashes)
            handles.setdefault(baseline.column, drawn)
        axes.set_title(one_line(describe_noise(noise)), loc="left")
        axes.set_xlabel(ablation.name)
        axes.yaxis.set_major_formatter(_Numbers())
        _scale_x(axes, [value for line in lines for value in line.values])
    _share(panels[0], "ylim")
    panels[0][0].set_ylabel("mean return")
    counts = [n for lines in ablation.lines.values() for line in lines for n in line.n_seeds]
    counts += [baseline.n_seeds for own in ablation.baselines.values() for baseline in own]
    seeds = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    _head(figure, f"{title} (n={seeds})", handles)
    return figure


@styled
def draw_trends(
    trends: Sequence[Trend], comparisons: Sequence[Comparison], columns: Sequence[str], *, title: str
) -> Figure:
    """Probabilities of improvement in an environment against the noise, with a panel for each kind of noise.

    :param trends: The trends of the environment.
    """
    kinds = list(dict.fromkeys(trend.kind for trend in trends))
    figure, panels = _panels(1, len(kinds), width=3.8, height=2.7)
    looks = pair_styles([(trend.column, trend.baseline) for trend in trends], columns)
    handles: dict[str, Any] = {}
    for axes, kind in zip(panels[0], kinds, strict=True):
        own = [trend for trend in trends if trend.kind == kind]
        for trend in own:
            # No noise, the first one, replaces a noise of the same level
            found = {
                noise_level(one.noise)[1]: one.per_task[trend.task].estimate
                for one in reversed(comparisons)
                if one.name == trend.name
                and noise_level(one.noise)[0] in ("none", kind)
                and trend.task in one.per_task
            }
            levels = sorted(found)
            estimates = [found[level] for level in levels]
            widths = [
                [abs(one.value - end) for one, end in zip(estimates, ends, strict=True)]
                for ends in ([one.low for one in estimates], [one.high for one in estimates])
            ]
            look = looks[trend.column, trend.baseline]
            values = [one.value for one in estimates]
            handles.setdefault(trend.name, _draw_points(axes, levels, values, widths, look))
        axes.axhline(0.5, color="#666666", linewidth=1, linestyle=":")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(f"parameter of {one_line(kind)} noise")
        _scale_x(axes, [level for trend in own for level in trend.levels], linear=True)
    panels[0][0].set_ylabel("probability of improvement")
    _head(figure, title, handles)
    return figure


def _draw_points(
    axes: Axes, x: Sequence[float], y: Sequence[float], widths: Sequence[Sequence[float]], look: Style
) -> Any:
    """Draw a line through points with intervals.

    :param widths: Lengths of the intervals below and above the points, NaN for none.
    """
    return axes.errorbar(
        x, y, widths, color=look.color, linestyle=look.dashes, marker=look.marker, capsize=2.5, elinewidth=1
    )


def _scale_x(axes: Axes, values: Sequence[float], *, linear: bool = False) -> None:
    """Set ticks at the values, on a linear scale or one that separates them."""
    ticks = sorted(set(values))
    positive = [value for value in ticks if value > 0]
    if not linear and ticks[0] >= 0 and len(ticks) > 2 and ticks[-1] > 4 * positive[0]:
        if ticks[0] == 0:
            axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        else:
            axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    if len(ticks) <= _MAX_TICKS:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


class _Numbers(EngFormatter):
    """Numbers with the prefixes k, M and so on, but 0.5 instead of 500m."""

    def __init__(self) -> None:
        super().__init__(sep="")

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.fix_minus(f"{x:g}") if abs(x) < 1 else super().__call__(x, pos)


def _seeds(curves: Sequence[Curve]) -> str:
    """The numbers of seeds of a column's curves in words, in the order of the panels."""
    counts = [f"{curve.n_seeds}{'' if curve.finished else ', not finished'}" for curve in curves]
    return f"n={counts[0] if len(set(counts)) == 1 else ' and '.join(counts)}"


def _draw_curve(axes: Axes, curve: Curve, look: Style) -> Line2D:
    # Mark all points of a short curve, and some of a longer one
    markers = None if len(curve.steps) < 8 else (0.05, 0.15)
    line = _draw_band(axes, curve.steps, curve.mean, curve.low, curve.high, look, markers)
    if len(curve.steps) == 1:
        ends = np.abs([curve.mean - curve.low, curve.high - curve.mean])
        axes.errorbar(curve.steps, curve.mean, ends, color=look.color, alpha=0.5)
    return line


def _draw_band(
    axes: Axes, x: Array, y: Array, low: Array, high: Array, look: Style, markers: tuple[float, float] | None
) -> Line2D:
    (line,) = axes.plot(x, y, color=look.color, linestyle=look.dashes, marker=look.marker, markevery=markers)
    axes.fill_between(x, low, high, color=look.color, alpha=0.18, linewidth=0)
    return line


@styled
def draw_aggregates(aggregates: Sequence[Aggregate], columns: Sequence[str]) -> Figure:
    """Aggregates with their intervals: a row of panels for each noise, a panel for each figure.

    :param aggregates: Of one normalization.
    """
    names = [name for name in AGGREGATES if aggregates[0].kind != "none" or name != "optimality_gap"]
    longest = max(len(describe_noise(aggregate.noise)) for aggregate in aggregates)
    # The label of the noise is vertical
    most = max(len(aggregate.figures) for aggregate in aggregates)
    height = max(0.55 + 0.28 * most, 0.7 + _LETTER * longest)
    width = 2.4 + _LETTER * max(map(len, columns)) / len(names)
    figure, panels = _panels(len(aggregates), len(names), width=width, height=height)
    for row, aggregate in zip(panels, aggregates, strict=True):
        shown = [column for column in columns if column in aggregate.figures]
        for axes, name in zip(row, names, strict=True):
            for place, column in enumerate(shown):
                estimate = aggregate.figures[column][name]
                _draw_interval(axes, place, estimate, style(column, columns))
            _name_places(axes, shown if axes is row[0] else [""] * len(shown))
            axes.set_title(_AGGREGATE_TITLES[name], loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        row[0].set_ylabel(one_line(describe_noise(aggregate.noise)), fontsize=8)
    for place in range(len(names)):
        _share([row[place] for row in panels], "xlim")
    kind = NAMES[aggregates[0].kind]
    _head(figure, f"Final scores over environments, {kind}: estimates and 95% intervals")
    return figure


@styled
def draw_profiles(aggregates: Sequence[Aggregate], columns: Sequence[str]) -> Figure:
    """Performance profiles: a panel for each noise.

    :param aggregates: Of one normalization.
    """
    figure, panels = _panels(1, len(aggregates), width=3.4, height=2.7)
    handles: dict[str, Any] = {}
    for axes, aggregate in zip(panels[0], aggregates, strict=True):
        for column in (name for name in columns if name in aggregate.profiles):
            look = style(column, columns)
            estimates = aggregate.profiles[column]
            value, low, high = np.array([(one.value, one.low, one.high) for one in estimates]).T
            line = _draw_band(axes, aggregate.thresholds, value, low, high, look, (0.05, 0.15))
            handles.setdefault(column, line)
        axes.set_title(one_line(describe_noise(aggregate.noise)), loc="left")
        axes.set_xlabel(f"score, {NAMES[aggregate.kind]}")
        axes.set_ylim(-0.02, 1.02)
    panels[0][0].set_ylabel("share of runs above it")
    _head(figure, "Performance profiles, with 95% bands", handles)
    return figure


@styled
def draw_improvements(comparisons: Sequence[Comparison], columns: Sequence[str]) -> Figure:
    """Probabilities of improvement over all environments, a row for each pair and noise."""
    names = [f"{one.name}, {describe_noise(one.noise)}" for one in comparisons]
    width = 2.4 + _LETTER * max(map(len, names))
    figure, panels = _panels(1, 1, width=width, height=1.0 + 0.3 * len(names))
    axes = panels[0][0]
    looks = _looks_of(comparisons, columns)
    for place, one in enumerate(comparisons):
        if one.overall is not None:
            _draw_interval(axes, place, one.overall.estimate, looks[one.column, one.baseline])
    _name_places(axes, names)
    axes.tick_params(axis="y", labelsize=8)
    _mark_half(axes)
    _head(figure, "Probability of improvement, with 95% intervals")
    return figure


@styled
def draw_task_improvements(comparisons: Sequence[Comparison], columns: Sequence[str]) -> Figure:
    """Probabilities of improvement in each environment: a panel for each noise."""
    by_noise: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_noise.setdefault(comparison.noise, []).append(comparison)
    tasks: list[Task] = sorted({task for comparison in comparisons for task in comparison.per_task})
    n_pairs = max(map(len, by_noise.values()))
    height = 1.5 + len(tasks) * (0.14 + 0.13 * n_pairs)
    figure, panels = _panels(1, len(by_noise), width=3.6, height=height)
    looks = _looks_of(comparisons, columns)
    handles: dict[str, Any] = {}
    for axes, (noise, own) in zip(panels[0], by_noise.items(), strict=True):
        for number, comparison in enumerate(own):
            look = looks[comparison.column, comparison.baseline]
            shift = (number - (len(own) - 1) / 2) * 0.7 / n_pairs
            for place, task in enumerate(tasks):
                if task in comparison.per_task:
                    estimate = comparison.per_task[task].estimate
                    drawn = _draw_interval(axes, place + shift, estimate, look)
                    handles.setdefault(comparison.name, drawn)
        names = [task_name(task, tasks) for task in tasks]
        _name_places(axes, names if axes is panels[0][0] else [""] * len(names))
        _mark_half(axes)
        axes.set_title(one_line(describe_noise(noise)), loc="left")
    _head(figure, "Probability of improvement in each environment, with 95% intervals", handles)
    return figure


def _looks_of(comparisons: Sequence[Comparison], columns: Sequence[str]) -> dict[tuple[str, str], Style]:
    return pair_styles([(one.column, one.baseline) for one in comparisons], columns)


def _draw_interval(axes: Axes, place: float, estimate: Estimate, look: Style) -> Line2D:
    if estimate.has_interval:
        axes.plot(
            [estimate.low, estimate.high],
            [place, place],
            color=look.color,
            linewidth=5,
            alpha=0.35,
            solid_capstyle="butt",
        )
    (point,) = axes.plot(estimate.value, place, color=look.color, marker=look.marker, linestyle="none")
    return point


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [one_line(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _mark_half(axes: Axes) -> None:
    axes.axvline(0.5, color="#666666", linewidth=1, linestyle=":")
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("probability of improvement")


def _share(panels: Sequence[Axes], limits: str) -> None:
    """Give all panels the same ``xlim`` or ``ylim``, which includes those of each."""
    low, high = zip(*(getattr(axes, f"get_{limits}")() for axes in panels), strict=True)
    for axes in panels:
        axes.set(**{limits: (min(low), max(high))})


def _panels(n_rows: int, n_columns: int, *, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(width * n_columns, height * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    return figure, [list(row) for row in panels]


def _head(figure: Figure, title: str, handles: Mapping[str, Any] | None = None) -> None:
    """Add a title above and a legend below the panels, and enlarge the figure for them."""
    heading = figure.suptitle(one_line(title), x=0.01, ha="left", fontsize=10, fontweight="bold")
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    needed = heading.get_window_extent(renderer).width / figure.dpi + 0.2
    if handles:
        labels = [one_line(label) for label in handles]
        legend = figure.legend(list(handles.values()), labels, loc="outside lower left", ncols=1)
        # All columns are as wide as the widest entry
        widest = legend.get_window_extent(renderer).width / figure.dpi
        legend.remove()
        needed = max(needed, widest + 0.1)
        columns = min(len(labels), max(1, int((max(figure.get_figwidth(), needed) - 0.1) // widest)))
        rows = -(-len(labels) // columns)
        figure.set_figheight(figure.get_figheight() + 0.2 * (rows - 1))
        figure.legend(list(handles.values()), labels, loc="outside lower left", ncols=columns)
    figure.set_figwidth(max(figure.get_figwidth(), needed))


#: Metadata that would make files differ between calls, by format.
_METADATA: dict[str, Any] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
#: Formats of the files of figures.
FORMATS = tuple(_METADATA)
#: Dots per inch of figures on the page.
PAGE_DPI = 150


@styled
def render(figure: Figure, kind: str, dpi: int = PAGE_DPI) -> bytes:
    """The content of a figure's file; the same figure gives the same bytes.

    :param kind: One of :data:`FORMATS`.
    :param dpi: Dots per inch of a PNG.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=_METADATA[kind])
    return buffer.getvalue()


def without_title(figure: Figure) -> Figure:
    """The figure without its title; titles of panels are kept."""
    if figure._suptitle is not None:  # type: ignore[attr-defined]
        figure._suptitle.remove()  # type: ignore[attr-defined]
        figure._suptitle = None  # type: ignore[attr-defined]
    return figure
