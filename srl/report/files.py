"""Where a report may be written, and its tables as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from srl.errors import UserError
from srl.experiment.store import SPEC, check_writable, write_text
from srl.report.tables import Table, to_csv, to_latex, to_markdown


def check_folder(out: Path) -> None:
    """See that a report can be written to a folder.

    :raises UserError: If it lies in a run's folder, or cannot be written to.
    """
    for folder in (out.resolve(), *out.resolve().parents):
        if (folder / SPEC).is_file():
            raise UserError(
                f"{out} is in the folder of a run, in which a report writes nothing. Name another with --out."
            )
    check_writable(out)


def write_tables(tables: Sequence[Table], out: Path, left_out: Sequence[str]) -> list[Path]:
    """Write tables as Markdown, CSV and LaTeX.

    :param tables: What to write.
    :param out: The folder.
    :param left_out: Lines on what is in none of them; Markdown has these too.
    :return: The files.
    :raises UserError: If the folder cannot be written to.
    """
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for table in tables:
        texts = {"md": to_markdown(table, left_out), "csv": to_csv(table), "tex": to_latex(table)}
        for ending, text in texts.items():
            file = out / f"{table.name}.{ending}"
            write_text(file, text)
            files.append(file)
    return files
