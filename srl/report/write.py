"""Write the files of a report: tables, figures, statistics, the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from srl.config.spec import safe_name
from srl.errors import UserError, nearest
from srl.report import figures
from srl.report.ablation import find_ablations
from srl.report.aggregate import ENOUGH_FOR_PROFILES
from srl.report.cells import Cell
from srl.report.comparison import task_name
from srl.report.curves import (
    ENTROPY_LOSS,
    LANGUAGE_MODEL_FIGURES,
    SIGN_CHANGE,
    TRAINING,
    Curve,
    learning_curve,
    training_curves,
)
from srl.report.files import (
    Writer,
    bytes_writer,
    check_files,
    table_files,
    table_writers,
    text_writer,
    write_files,
)
from srl.report.folders import FIGURES, PAGE
from srl.report.normalization import NAMES, Task
from srl.report.page import PageFigure, make_page
from srl.report.report import Report, statistics
from srl.report.tables import noise_order

STATISTICS = "statistics.json"
#: The files that every report has.
FILES = [
    *(file for name in ("table", "robust", "improvement") for file in table_files(name)),
    STATISTICS,
    PAGE,
]


@dataclass(frozen=True)
class FigureOptions:
    """Options of figure files.

    :param formats: Formats of :data:`srl.report.figures.FORMATS`.
    :param dpi: Dots per inch of PNG files; figures on the page have 150.
    """

    formats: tuple[str, ...] = ("png", "svg")
    dpi: int = figures.PAGE_DPI
    titles: bool = True

    def __post_init__(self) -> None:
        for kind in self.formats:
            if kind not in figures.FORMATS:
                known = ", ".join(figures.FORMATS)
                raise UserError(f"--figures {kind}: must be of {known}.{nearest(kind, figures.FORMATS)}")
        if len(set(self.formats)) < len(self.formats) or not self.formats:
            raise UserError("--figures: name each format once.")
        if not 30 <= self.dpi <= 1200:
            raise UserError(f"--dpi {self.dpi}: must be from 30 to 1200.")


#: Folders with a figure for each environment.
_KINDS = ("learning_curve", "sign_change", "entropy", "language_model")
#: Curves by environment and steps, then noise, then column.
_Curves = dict[Task, dict[str, dict[str, Curve]]]


@dataclass(frozen=True)
class _Drawing:
    """A figure to draw."""

    #: Its section of the page.
    kind: str
    #: Its path below the folder of figures, without extension.
    path: str
    caption: str
    draw: Callable[[], Figure]


def write_report(
    report: Report,
    out: Path,
    show_step: Callable[[str], None] = lambda text: None,
    gifs: Mapping[str, bytes] | None = None,
    options: FigureOptions | None = None,
) -> list[Path]:
    """Write tables, figures, statistics and the page.

    :param show_step: Called with a description of each step.
    :param gifs: Animations for the page, by caption.
    :return: Tables, statistics and page, and the folder of figures.
    :raises UserError: If the folder is not writable, or contains files in the way that srl did not write.
    """
    options = options or FigureOptions()
    show_step("Reading training logs")
    curves, training, notes = _curves(report)
    drawings = list(_drawings(report, curves, training))
    check_files(
        out, [f"{FIGURES}/{drawing.path}.{ending}" for drawing in drawings for ending in options.formats]
    )
    kinds = ("improvement", "trend", "aggregate", "ablation", *_KINDS)
    shown: dict[str, list[PageFigure]] = {kind: [] for kind in kinds}
    drawn: dict[str, Writer] = {}
    for number, drawing in enumerate(drawings, 1):
        show_step(f"Drawing figure {number} of {len(drawings)}")
        figure = drawing.draw()
        on_page = figures.render(figure, "png")
        shown[drawing.kind].append(PageFigure.of(on_page, drawing.caption))
        if not options.titles:
            figure = figures.without_title(figure)
        for ending in options.formats:
            is_on_page = (ending, options.dpi, options.titles) == ("png", figures.PAGE_DPI, True)
            content = on_page if is_on_page else figures.render(figure, ending, options.dpi)
            drawn[f"{FIGURES}/{drawing.path}.{ending}"] = bytes_writer(content)
    shown["gif"] = [PageFigure.of_gif(content, caption) for caption, content in (gifs or {}).items()]
    show_step("Writing")
    complete = replace(report, notes=[*report.notes, *notes])
    texts = {
        STATISTICS: json.dumps(statistics(complete), indent=1, ensure_ascii=False) + "\n",
        PAGE: make_page(complete, shown),
    }
    read = table_writers(complete.tables, [*complete.scores.left_out, *complete.notes])
    read |= {name: text_writer(text) for name, text in texts.items()}
    write_files(out, read | drawn, instead_of=[FIGURES, *table_files("trend")])
    return [*(out / name for name in read), *([out / FIGURES] if drawn else [])]


def _curves(report: Report) -> tuple[_Curves, dict[str, _Curves], list[str]]:
    learning: _Curves = {}
    training: dict[str, _Curves] = {name: {} for name in TRAINING}
    notes: list[str] = []

    def put(curves: _Curves, cell: Cell, curve: Curve) -> None:
        by_noise = curves.setdefault((cell.env, cell.n_timesteps), {})
        by_noise.setdefault(cell.noise, {})[cell.column] = curve

    for cell in sorted(report.scores.cells, key=lambda cell: (cell.env, noise_order(cell.noise))):
        curve = learning_curve(cell)
        if curve is not None:
            put(learning, cell, curve)
        found, problems = training_curves(cell, report.scores.source.training)
        notes += problems
        for name, curve in found.items():
            put(training[name], cell, curve)
    return learning, training, notes


def _drawings(report: Report, learning: _Curves, training: dict[str, _Curves]) -> Iterator[_Drawing]:
    columns = report.scores.columns
    comparisons = [comparison for comparison in report.comparisons if comparison.per_task]
    if comparisons:
        yield _Drawing(
            "improvement",
            "improvement",
            "Probability of improvement over the environments that both sides have finished",
            partial(figures.draw_improvements, comparisons, columns),
        )
        yield _Drawing(
            "improvement",
            "improvement_by_environment",
            "Probability of improvement in each environment",
            partial(figures.draw_task_improvements, comparisons, columns),
        )
    names: set[str] = set()
    for task in dict.fromkeys(trend.task for trend in report.trends):
        title = task_name(task, [trend.task for trend in report.trends])
        caption = f"{title}: probability of improvement and noise"
        trends = [trend for trend in report.trends if trend.task == task]
        draw = partial(figures.draw_trends, trends, comparisons, columns, title=caption)
        yield _Drawing("trend", f"trend/{_file_name(title, names)}", caption, draw)
    for kind in dict.fromkeys(aggregate.kind for aggregate in report.aggregates):
        own = [aggregate for aggregate in report.aggregates if aggregate.kind == kind]
        yield _Drawing(
            "aggregate",
            f"aggregate_{kind}",
            f"Scores over environments, {NAMES[kind]}, with 95% intervals",
            partial(figures.draw_aggregates, own, columns),
        )
        enough = [aggregate for aggregate in own if aggregate.n_runs >= ENOUGH_FOR_PROFILES]
        if enough:
            yield _Drawing(
                "aggregate",
                f"profile_{kind}",
                f"Performance profiles, {NAMES[kind]}, with 95% bands",
                partial(figures.draw_profiles, enough, columns),
            )
    pairs = {(comparison.column, comparison.baseline) for comparison in report.comparisons}
    ablations = find_ablations(report.scores.cells, pairs)
    for ablation in ablations:
        task_title = task_name(ablation.task, [one.task for one in ablations])
        title = f"{task_title}: final return and {ablation.name}"
        path = f"ablation/{_file_name(f'{task_title}-{ablation.name}', names)}"
        yield _Drawing(
            "ablation", path, title, partial(figures.draw_ablation, ablation, columns, title=title)
        )
    yield from _drawings_of_curves("learning_curve", "mean return", learning, columns)
    suffixes = _normalized(report)
    yield from _drawings_of_curves(
        "sign_change", "signs changed (%)", training[SIGN_CHANGE], columns, suffixes
    )
    entropy = {
        task: {
            noise: {column: curve.negated() for column, curve in own.items()}
            for noise, own in by_noise.items()
        }
        for task, by_noise in training[ENTROPY_LOSS].items()
    }
    yield from _drawings_of_curves("entropy", "entropy (nats)", entropy, columns)
    for name, label in LANGUAGE_MODEL_FIGURES.items():
        folder = f"language_model/{name.rpartition('/')[2]}"
        yield from _drawings_of_curves("language_model", label, training[name], columns, folder=folder)


def _drawings_of_curves(
    kind: str,
    label: str,
    curves: _Curves,
    columns: list[str],
    suffixes: dict[tuple[Task, str], str] | None = None,
    folder: str | None = None,
) -> Iterator[_Drawing]:
    names: set[str] = set()
    for task, by_noise in sorted(curves.items()):
        env, steps = task
        several = sum(other[0] == env for other in curves) > 1
        title = f"{env}, {steps:,} steps" if several else env
        own = {column: text for (where, column), text in (suffixes or {}).items() if where == task}
        draw = partial(figures.draw_curves, by_noise, columns, title=title, label=label, suffixes=own)
        yield _Drawing(kind, f"{folder or kind}/{_file_name(title, names)}", f"{title}: {label}", draw)


def _file_name(title: str, names: set[str]) -> str:
    """A unique file name for a title, which is added to the used names."""
    name = base = safe_name(title) or "environment"
    number = 1
    while name in names:
        number += 1
        name = f"{base}-{number}"
    names.add(name)
    return name


def _normalized(report: Report) -> dict[tuple[Task, str], str]:
    """Legend texts on whether the updates of each cell normalize advantages."""
    texts = {}
    for cell in report.scores.cells:
        spec = next((run.spec for run in cell.runs if run.spec is not None), None)
        if spec is not None and not spec.algorithm.is_own:
            text = ", normalized" if spec.hyperparams.normalize_advantage else ", not normalized"
            texts[(cell.env, cell.n_timesteps), cell.column] = text
    return texts
