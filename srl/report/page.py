"""The HTML page of a report, which needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from srl.report.curves import N_POINTS
from srl.report.markup import one_line
from srl.report.normalization import NAMES
from srl.report.report import Report
from srl.report.runs import Run
from srl.report.significance import ALPHA
from srl.report.statistics import BOOTSTRAP_SEED
from srl.report.tables import noise_order

#: Scale of figures on the page: they are drawn at 150 dots per inch.
_SCALE = 96 / 150
#: Colors of a figure on the page.
_N_COLORS = 128


@dataclass(frozen=True)
class PageFigure:
    """A figure on the page."""

    caption: str
    #: The image in base64.
    content: str
    #: Size on the page in CSS pixels.
    width: int
    height: int
    #: ``"png"`` or ``"gif"``.
    format: str = "png"

    @classmethod
    def of_gif(cls, content: bytes, caption: str) -> PageFigure:
        """An animation from a GIF file."""
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
        return cls(one_line(caption), base64.b64encode(content).decode(), width, height, "gif")

    @classmethod
    def of(cls, png: bytes, caption: str) -> PageFigure:
        """A figure from a PNG file, with fewer colors to make it smaller."""
        with Image.open(io.BytesIO(png)) as image:
            small = image.convert("RGB").quantize(_N_COLORS, method=Image.Quantize.MEDIANCUT)
        buffer = io.BytesIO()
        small.save(buffer, format="PNG", optimize=True)
        width, height = (round(size * _SCALE) for size in small.size)
        return cls(one_line(caption), base64.b64encode(buffer.getvalue()).decode(), width, height)


def make_page(report: Report, figures: Mapping[str, Sequence[PageFigure]]) -> str:
    """The page as HTML.

    :param figures: By kind: ``improvement``, ``aggregate``, ``learning_curve``, ``sign_change``, ``entropy``,
        ``gif``, ``language_model``.
    """
    environment = Environment(
        loader=PackageLoader("srl.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["counts_of"] = lambda entries: [entry.n for entry in entries.values()]
    loader = environment.loader
    assert loader is not None
    style, script = (loader.get_source(environment, f"report.{kind}")[0] for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    envs = sorted({run.env for run in report.scores.runs})
    where = envs[0] if len(envs) == 1 else f"{len(envs)} environments"
    specs: _Entries = {}
    versions: _Entries = {}
    runs = [_run(report, column, run, specs, versions) for column, run in _in_order(report)]
    return environment.get_template("report.html").render(
        title=one_line(f"{', '.join(report.scores.columns)} on {where}"),
        summary=report.summary,
        tables=report.tables,
        figures=figures,
        left_out=report.scores.left_out,
        notes=report.notes,
        runs=runs,
        specs=list(specs.values()),
        versions=list(versions.values()),
        method=_method(report),
        n_points=N_POINTS,
        samples=_samples(report),
        number=_number,
        style=style,
        script=script,
        script_hash=f"sha256-{digest}",
    )


@dataclass
class _Entry:
    """A text that many runs share, numbered from 1."""

    name: str
    text: str
    number: int
    n_runs: int = 0


#: Entries by their text.
_Entries = dict[str, _Entry]


def _add(entries: _Entries, name: str, values: Mapping[str, Any]) -> int:
    """Add values as JSON, and return their number."""
    text = json.dumps(values, indent=1, ensure_ascii=False)
    entry = entries.setdefault(text, _Entry(name, text, len(entries) + 1))
    entry.n_runs += 1
    return entry.number


def _in_order(report: Report) -> list[tuple[str, Run]]:
    """Columns and runs, in the order of the tables."""
    columns = report.scores.columns
    cells = sorted(
        report.scores.cells,
        key=lambda c: (c.env, noise_order(c.noise), c.n_timesteps, columns.index(c.column)),
    )
    return [(cell.column, run) for cell in cells for run in cell.runs]


def _run(report: Report, column: str, run: Run, specs: _Entries, versions: _Entries) -> dict[str, Any]:
    status, found = run.status, report.scores.source.versions(run)
    command = (found or {}).get("command") or "no command recorded"
    progress = f"{run.n_timesteps:,}"
    if status is not None and run.state != "done":
        progress = f"{status.timesteps:,} of {progress}"
    speed = status.steps_per_second if status is not None else 0.0
    return {
        "env": run.env,
        "column": column,
        "noise": run.noise,
        "seed": run.seed,
        "n_timesteps": run.n_timesteps,
        "progress": progress,
        "state": run.state,
        "reason": run.reason,
        "score": run.score,
        "score_text": "-" if math.isnan(run.score) else f"{run.score:.6g}",
        "speed": _number(speed) if speed else "",
        "speed_text": f"{speed:,.0f}" if speed else "-",
        "spec": _spec(run, column, specs),
        "versions": None if found is None else _add(versions, str(command), found),
        "path": run.path,
    }


def _samples(report: Report) -> list[dict[str, Any]]:
    """Texts of language models, from one run of each cell."""
    found = []
    for cell in report.scores.cells:
        texts = next(filter(None, (report.scores.source.samples(run) for run in cell.runs)), [])
        if texts:
            found.append({"name": f"{cell.column} on {cell.env}, noise {cell.noise}", "texts": texts})
    return found


def _spec(run: Run, column: str, specs: _Entries) -> int | None:
    if run.spec is None:
        return None
    values = run.spec.model_dump(mode="json", exclude={"seed"})
    if run.unknown:
        values["not known to this version of srl"] = dict(run.unknown)
    return _add(specs, f"{column} on {run.env}, noise {run.noise}", values)


def _method(report: Report) -> list[str]:
    averaged = "the final evaluation" if report.last == 1 else f"the last {report.last} evaluations"
    kinds = sorted({NAMES[aggregate.kind] for aggregate in report.aggregates})
    return [
        f"The score of a run is its mean return over the episodes of {averaged}, without reward noise.",
        "Intervals of interquartile means, aggregates, profiles and probabilities of improvement are "
        f"stratified percentile bootstraps by rliable, {report.reps:,} samples each, NumPy's generator "
        f"seeded with {BOOTSTRAP_SEED} before each (Agarwal et al., NeurIPS 2021, arXiv 2108.13264).",
        "Means ± standard errors use the unbiased deviation. A best score is bold if it is shown to score "
        "higher than every other column of its row, after Holm's correction for the number of rows.",
        f"Scores over environments are {' and '.join(kinds) or 'in no aggregate'}.",
        "The probability of improvement is that of a run of the first scoring above a run of the second in "
        "the same environment, averaged over environments; both sides have the same environments, steps, "
        "noise and seeds.",
        "The test of a difference is a two-sided permutation test of the probability of improvement, "
        "stratified by environment. Its null distribution is exact, ties included. The null hypothesis is "
        "that both sides have the same distribution of scores in every environment.",
        "P-values are adjusted by Holm's method in two families: the comparisons over several environments, "
        "and the comparisons in one environment, each of all pairs and noises. A difference is called shown "
        f"if its adjusted p-value is at most {ALPHA:g}. Intervals play no part in this.",
    ]


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))
