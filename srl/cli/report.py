"""``srl report``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from srl.cli.options import Unset, new_console, print_notes, several, split_values
from srl.errors import MissingExtra, UserError


@dataclass
class Report:
    """Write tables, statistics, figures and an HTML page about the runs in a folder, finished or not."""

    dir: tyro.conf.Positional[Path]
    """The folder of one or several sweeps, or an archive."""
    format: Literal["page", "archive", "json", "parquet", "zoo"] = "page"
    """page: tables, statistics, figures and the HTML page. archive: a file NAME.parquet from which srl report
    makes the same page without the runs. json or parquet: a row for each run and evaluation. zoo: the
    evaluations in the format of rl-baselines3-zoo's plot scripts."""
    last: int = 1
    """Number of last evaluations whose mean is the score of a run."""
    normalize: str = "auto"
    """Normalization of scores of different environments: human, minmax, none, or auto for human on Atari and
    minmax elsewhere."""
    reps: int = 2000
    """Number of bootstrap samples for each interval."""
    compare: Annotated[tuple[str, ...], several("COLUMN:BASELINE [...]")] = ()
    """Pairs of columns to compare, as COLUMN:BASELINE, for example sppo:ppo. By default the pairs of the
    sweep."""
    out: Unset[Path] = None
    """Folder of the report. By default the folder of the runs."""
    figures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FORMAT[,FORMAT...]")] = ("png", "svg")
    """Formats of the figures: png, svg, pdf."""
    dpi: int = 150
    """Dots per inch of PNG files."""
    no_titles: bool = False
    """Draw figures without titles, for papers with captions."""
    gifs: bool = False
    """Play the first finished run of each table cell, and show it on the page as a short GIF."""


def report(options: Report, command: str) -> int:
    """``srl report``; returns the exit status."""
    if options.last < 1:
        raise UserError(f"--last {options.last}: at least one evaluation is needed.")
    if options.reps < 100:
        raise UserError(f"--reps {options.reps}: at least 100 are needed for a 95% interval.")
    if options.format != "page":
        of_all = ("dir", "format", "out")
        given = [one.name for one in fields(options) if getattr(options, one.name) != one.default]
        names = [f"--{name.replace('_', '-')}" for name in given if name not in of_all]
        if names:
            message = f"{', '.join(names)}: no effect with --format {options.format}, only a page uses this."
            raise UserError(message)
    console = new_console()
    from srl.report.files import check_folder
    from srl.report.normalization import check_normalization

    normalization = check_normalization(options.normalize)
    if not options.dir.exists():
        raise UserError(f"{options.dir}: there is no such folder or archive.")
    # The report of an archive NAME.parquet is written to the folder NAME
    default = options.dir.with_suffix("") if options.dir.is_file() else options.dir
    out = default if options.out is None else options.out
    if options.dir.is_file() and options.dir.suffix != ".parquet":
        raise UserError(f"{options.dir}: is neither a folder nor an archive NAME.parquet.")
    uses_parquet = options.dir.is_file() or options.format in ("archive", "parquet")
    if uses_parquet and find_spec("pyarrow") is None:
        raise MissingExtra("A Parquet file", "pyarrow", "report")
    check_folder(out)
    if options.gifs and options.dir.is_file():
        raise UserError("--gifs: only a page made from run directories can show them.")
    with console.status("Reading runs") as shown:
        if options.format == "page":
            files = _write_page(options, normalization, out, console, shown.update)
        else:
            from srl.report.export import export

            files, left_out = export(options.dir, options.format, out, shown.update)
            print_notes(left_out, console)
    console.print(f"Written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)
    return 0


def _write_page(
    options: Report, normalization: Any, out: Path, console: Console, show_step: Callable[[str], None]
) -> list[Path]:
    try:
        from srl.report.files import check_files
        from srl.report.report import make_report
        from srl.report.table_formats import to_rich
        from srl.report.write import FILES, FigureOptions, write_report
    except ModuleNotFoundError as error:
        raise UserError(
            f"A report needs the package {error.name}: pip install 'symmetric-rl[report]', or run "
            "scripts/setup.sh in a checkout."
        ) from None
    formats = split_values("--figures", options.figures) or []
    figures = FigureOptions(tuple(formats), options.dpi, not options.no_titles)
    check_files(out, FILES)
    made = make_report(
        options.dir,
        last=options.last,
        normalization=normalization,
        reps=options.reps,
        compare=options.compare,
        show_step=show_step,
    )
    gifs: dict[str, bytes] = {}
    if options.gifs:
        from srl.report.gifs import make_gifs
        from srl.training.play import gif_of

        gifs, notes = make_gifs(made.scores, options.dir, gif_of, show_step)
        made = replace(made, notes=[*made.notes, *notes])
    files = write_report(made, out, show_step, gifs, figures)
    table = made.scores.table
    console.print(to_rich(table, console.width))
    print_notes([*table.notes, *made.scores.left_out, *made.notes], console)
    console.print()
    print_notes(made.summary, console)
    return files
